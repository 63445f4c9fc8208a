//! Every interface that leads out of the host is watched, or it is said that it is not.

mod world;

use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{Agent, acknowledge, detach, kernel_verb};
use trefoil_lab::kernel::stand_at_exit;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::{Program, pass_on};
use trefoil_lab::wiring::far_link_address;
use trefoil_lab::{Lab, places, wait_for};
use world::books::{FOREIGN_LINK, OFTEN, PEER_LINK};
use world::{TRAFFIC, at, enforcing, reporting};

/// Waits for a record that says this of an interface, and returns its reason.
fn told(agent: &mut Agent<'_>, subject: &str, state: &str) -> Result<String> {
    agent.wait_for(&format!("{subject} is {state}"), |records| {
        let is_it = |record: &&trefoil_lab::Record| {
            record.is("subject", subject) && record.is("state", state)
        };
        let found = records.iter().rev().find(is_it)?;
        Some(found.text("reason"))
    })
}

#[test]
fn an_interface_that_leads_out_and_is_not_named_is_told_while_it_is_up() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).settings(OFTEN);
    let mut agent = agent.uplink("to-foreign").start()?;
    let status = || kernel_verb(&lab, "status", &[]);
    acknowledge(&lab)?;
    // From the start.
    for link in ["to-peer", "to-gateway"] {
        let reason = told(&mut agent, &format!("uplink {link}"), "uncovered")?;
        ensure!(
            reason.contains("the settings name other uplinks"),
            "{reason}"
        );
        lab.host.ip(&format!("link set {link} down\n"))?;
        told(&mut agent, &format!("uplink {link}"), "covered")?;
    }
    wait_for("all is as it should be", || {
        Ok((status()?.code == 0).then_some(()))
    })?;
    // And one that comes.
    lab.host.ip(&format!(
        "link add late type veth peer name late netns {}\n\
         link set late addrgenmode none\n\
         link set late up\n\
         route add 198.51.100.9 via 203.0.113.99 dev late onlink\n",
        lab.foreign.path()
    ))?;
    told(&mut agent, "uplink late", "uncovered")?;
    let found = wait_for("status has a finding", || {
        let status = status()?;
        Ok((status.code == 1).then_some(status.stdout))
    })?;
    ensure!(found.contains("uplink late is not watched"), "{found}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn an_uplink_that_moves_into_another_namespace_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let elsewhere = Namespace::new("elsewhere")?;
    let agent = lab.agent().policy(&reporting()).settings(OFTEN);
    let mut agent = agent.uplink("to-foreign").start()?;
    let moved = format!("link set to-foreign netns {}\n", elsewhere.path());
    lab.host.ip(&moved)?;
    let reason = told(&mut agent, "uplink to-foreign", "uncovered")?;
    ensure!(reason.contains("in another network namespace"), "{reason}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

/// A container with an interface of its own, on one of the host's, and no route but to what
/// is on the link.
#[test]
fn what_is_built_on_an_uplink_passes_its_hook_from_whatever_namespace() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).settings(OFTEN);
    let agent = agent.uplink("auto").start()?;
    for (link, number, place, to, expected) in [
        ("to-foreign", FOREIGN_LINK, &lab.foreign, places::FOREIGN, 0),
        ("to-peer", PEER_LINK, &lab.peer, places::PEER, 5),
    ] {
        let container = Namespace::new("container")?;
        lab.host.ip(&format!(
            "link add link {link} name own netns {} type macvlan mode bridge\n",
            container.path()
        ))?;
        container.ip(&format!(
            "link set lo up\n\
             link set own addrgenmode none\n\
             link set own up\n\
             address add 192.0.2.77/32 dev own\n\
             route add {to} dev own src 192.0.2.77\n\
             neighbour add {to} lladdr {} dev own nud permanent\n",
            far_link_address(number)
        ))?;
        for cgroup in [None, Some(lab.unit("lab.service")?)] {
            let before = lab.link_to(place)?;
            let program = Program::new(TRAFFIC, &container, cgroup.as_deref(), None)?;
            // The kernel may refuse the call of who is watched.
            program.args(["udp", &at(to, 9), "--count", "5"]).run()?;
            let sent = lab.link_to(place)?.since(before).tx_packets;
            ensure!(sent == expected, "{sent} to {to} of {cgroup:?}");
        }
    }
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn others_behind_the_hook_are_told_when_they_come_and_when_they_go() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).settings(OFTEN);
    let mut agent = agent.uplink("auto").start()?;
    let status = |code: i32, part: &str| {
        wait_for(&format!("status ends with {code} and says {part}"), || {
            let status = kernel_verb(&lab, "status", &["--json"])?;
            let is_it = status.code == code && status.stdout.contains(part);
            Ok(is_it.then_some(()))
        })
    };
    acknowledge(&lab)?;
    status(0, "\"behind_hook\":[]")?;
    let other = lab.host.enter(|| stand_at_exit("to-foreign"))?;
    let reason = told(&mut agent, "uplink to-foreign", "partly")?;
    // The agent has given up the right to ask for its name, and who asks for its status has not.
    ensure!(reason.contains("a BPF program (id"), "{reason}");
    status(1, "BPF program other (id")?;
    drop(other);
    let gone = "nothing else stands at its exit any more";
    let ended = |agent: &mut Agent<'_>, times: usize| {
        agent.wait_for("they are gone", |records| {
            let is_it = |record: &&trefoil_lab::Record| record.text("reason").contains(gone);
            (records.iter().filter(is_it).count() == times).then_some(())
        })
    };
    ended(&mut agent, 1)?;
    status(0, "\"behind_hook\":[]")?;

    lab.host.tc("qdisc add dev to-foreign clsact\n")?;
    let words = [
        "filter",
        "add",
        "dev",
        "to-foreign",
        "egress",
        "pref",
        "7",
        "bpf",
    ];
    let mut add = Command::new("tc");
    add.args(words).args(["bytecode", "1,6 0 0 4294967295,"]);
    pass_on(&mut add, Some(&lab.host), None, None)?;
    let output = add.output()?;
    ensure!(output.status.success(), "{output:?}");
    let filter = "bpf filter";
    agent.wait_for("the filter is told", |records| {
        let is_it = |record: &trefoil_lab::Record| record.text("reason").contains(filter);
        records.iter().any(is_it).then_some(())
    })?;
    status(1, "of clsact, chain 0, priority 7")?;
    lab.host.tc("qdisc del dev to-foreign clsact\n")?;
    ended(&mut agent, 2)?;
    status(0, "\"behind_hook\":[]")?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
