//! `trefoil explain`: what a policy says about one flow, and why.

use super::{Ending, Failure, say, say_json, sources};
use crate::{
    cli::{ExplainArgs, parse_destination},
    owner::users,
    policy::{
        self, Policy, Problems, Question, Surroundings, pattern::cgroup_of_unit, problem::Fault,
        service::Protocol,
    },
    settings::Flags,
};

const TCP: &str = "tcp";

pub fn explain(args: &ExplainArgs) -> Result<Ending, Failure> {
    let (destination, port) = parse_destination(&args.to).ok_or_else(|| {
        Failure::Usage(format!(
            "--to {}: not an address; write 192.0.2.1:443, [2001:db8::1]:443, or an address alone",
            args.to
        ))
    })?;
    let name = args.protocol.as_deref().unwrap_or(TCP);
    let protocol = Protocol::parse(name).map_err(|fault| wrong("--protocol", &fault))?;
    if port.is_some() && !protocol.has_ports() {
        return Err(Failure::Usage(format!(
            "--to {}: {protocol} has no ports; write {destination} alone",
            args.to
        )));
    }
    if let Some(exe) = args.exe.as_deref().filter(|exe| !exe.starts_with('/')) {
        return Err(Failure::Usage(format!(
            "--exe {exe}: not an absolute path, which is what rules and records know executables by"
        )));
    }
    let cgroup = args
        .unit
        .as_deref()
        .map(|unit| cgroup_of_unit(unit).map_err(|fault| wrong("--unit", &fault)))
        .transpose()?;
    let uid = match args.user.as_deref() {
        None => 0,
        Some(user) => match user.parse() {
            Ok(uid) => uid,
            Err(_) => users::uid(user).ok().flatten().ok_or_else(|| {
                Failure::Usage(format!(
                    "--user {user}: no such user on this host; give the user id"
                ))
            })?,
        },
    };

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
    let policy = Policy::parse(&text.text, &text.source).map_err(bad)?;
    let own = sources::own_addresses();
    let by_name = |name: &str| users::uid(name).ok().flatten();
    let surroundings = Surroundings {
        geography: &geo,
        users: &by_name,
        own_addresses: &own,
    };
    let question = Question {
        cgroup: cgroup.as_deref().map(str::as_bytes),
        executable: args.exe.as_deref().map(str::as_bytes),
        uid,
        destination,
        protocol: protocol.0,
        port: port.unwrap_or(0),
    };
    let explanation = policy::explain(&policy, &surroundings, &question);
    if args.json {
        say_json(&explanation)?;
    } else {
        say(&format!("{explanation}\n"))?;
    }
    Ok(Ending::Fine)
}

fn wrong(flag: &str, fault: &Fault) -> Failure {
    let help = fault
        .help
        .as_ref()
        .map_or(String::new(), |help| format!("; {help}"));
    Failure::Usage(format!("{flag}: {}{help}", fault.message))
}
