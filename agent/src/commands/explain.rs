//! `trefoil explain`: what a policy says about one flow, and why.

use super::{Ending, Failure, say, say_json, sources, wrong};
use crate::{
    cli::{DirectionArg, ExplainArgs},
    clock,
    owner::users::OfHostOnce,
    policy::{self, Inquiry, Policy, Problems, Surroundings, Users, problem::Fault},
    settings::Flags,
};

pub fn explain(args: &ExplainArgs) -> Result<Ending, Failure> {
    let users = OfHostOnce::default();
    let inquiry = inquiry(args, &users)?;
    let flags = Flags {
        policy: args.policy.clone(),
        geo: args.sources.geo.clone(),
        ..Flags::default()
    };
    let settings = sources::settings(args.sources.config.as_deref())?
        .with(flags)
        .map_err(|error| Failure::Configuration(error.to_string()))?;
    let geo = sources::geo(&[], &settings)?;
    let text = sources::policy_text(&settings)?;
    let bad = |problems: Problems| Failure::Configuration(problems.to_string());
    let own = sources::own_addresses();
    let surroundings = Surroundings {
        geography: &geo,
        users: &users,
        own_addresses: &own,
        link_local: settings.link_local,
    };
    // A policy that `run` would refuse says nothing about any flow.
    policy::load(&text.text, &text.source, &surroundings, 1).map_err(bad)?;
    let policy = Policy::parse(&text.text, &text.source).map_err(bad)?;
    let explanation = policy::explain(&policy, &surroundings, &inquiry.question());
    if args.json {
        say_json(&explanation)?;
    } else {
        say(&format!("{explanation}\n"))?;
    }
    Ok(Ending::Fine)
}

fn inquiry(args: &ExplainArgs, users: &dyn Users) -> Result<Inquiry, Failure> {
    let mut inquiry = Inquiry::to(&args.to)
        .map_err(|fault| wrong("--to", &fault))?
        .at(clock::unix_us());
    if let Some(protocol) = &args.protocol {
        if args.to.contains('/') {
            let fault = Fault::new(format!("`{}` has a protocol already", args.to));
            return Err(wrong("--protocol", &fault.help("name it once")));
        }
        inquiry = inquiry
            .by(protocol)
            .map_err(|fault| wrong("--protocol", &fault))?;
    }
    if let Some(unit) = &args.unit {
        inquiry = inquiry
            .from_unit(unit)
            .map_err(|fault| wrong("--unit", &fault))?;
    }
    if let Some(path) = &args.cgroup {
        inquiry = inquiry
            .from_cgroup(path)
            .map_err(|fault| wrong("--cgroup", &fault))?;
    }
    if let Some(container) = &args.container {
        inquiry = inquiry
            .from_container(container)
            .map_err(|fault| wrong("--container", &fault))?;
    }
    if let Some(path) = &args.exe {
        inquiry = inquiry
            .from_executable(path)
            .map_err(|fault| wrong("--exe", &fault))?;
    }
    if let Some(user) = &args.user {
        inquiry = inquiry
            .from_user(user, users)
            .map_err(|fault| wrong("--user", &fault))?;
    }
    if let Some(group) = &args.group {
        inquiry = inquiry
            .from_group(group, users)
            .map_err(|fault| wrong("--group", &fault))?;
    }
    if args.interactive {
        inquiry = inquiry.logged_in();
    }
    if let Some(address) = &args.session_addr {
        inquiry = inquiry
            .logged_in_from(address)
            .map_err(|fault| wrong("--session-addr", &fault))?;
    }
    if args.direction == Some(DirectionArg::Accepted) {
        inquiry = inquiry
            .accepted()
            .map_err(|fault| wrong("--direction", &fault))?;
    }
    if let Some(port) = args.from_port {
        inquiry = inquiry
            .from_port(port)
            .map_err(|fault| wrong("--from-port", &fault))?;
    }
    Ok(inquiry)
}
