//! People who log in by sshd: each record of what they do has the person and the gateway.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::vm::Vm;

use crate::world::{TRAFFIC, detach, installed};

const POLICY: &str = r#"mode = "report"
[[gateways]]
name    = "dublin"
clients = ["203.0.113.7"]
[[gateways]]
name    = "frankfurt"
clients = ["203.0.113.8"]
[[rules]]
name    = "who came by dublin"
from    = { session = { gateway = "dublin" } }
to      = { networks = ["203.0.113.60"] }
verdict = "approve"
[[rules]]
name    = "all"
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;

const DUBLIN: &str = "203.0.113.7";
const FRANKFURT: &str = "203.0.113.8";

/// Two people with a key, of whom one may become another user.
const PEOPLE: &str = r"set -eu
ssh-keygen -q -t ed25519 -N '' -f /run/key
for name in bob alice; do
    useradd --create-home --shell /bin/sh $name
    install -d -o $name -m 700 /home/$name/.ssh
    install -o $name -m 600 /run/key.pub /home/$name/.ssh/authorized_keys
done
echo 'bob ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/bob
echo 'UseDNS no' > /etc/ssh/sshd_config.d/quick.conf
systemctl start ssh
";

/// Sends a datagram to this port of the far end.
fn sends(port: u16) -> String {
    format!("{TRAFFIC} udp 203.0.113.60:{port}")
}

/// Logs in from the far end, and does something there.
fn by_ssh(vm: &mut Vm, name: &str, from: &str, command: &str) -> Result<()> {
    let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    vm.ok(&format!(
        "ip netns exec far ssh {options} -b {from} -i /run/key {name}@192.0.2.1 \"{command}\" \
         </dev/null"
    ))
    .map(drop)
}

/// Facts about a sender: user, login, far address and gateway of his session; empty if there is none.
fn facts(record: &Record) -> [String; 4] {
    ["USER", "LOGIN", "SESSION_ADDR", "SESSION_GATEWAY"]
        .map(|name| record.text(&format!("TREFOIL_{name}")))
}

#[test]
fn people_who_log_in_by_ssh_are_told_with_the_gateway_that_they_came_by() -> Result<()> {
    let mut vm = installed("sessions")?;
    vm.write("/etc/trefoil/policy.toml", POLICY)?;
    vm.ok("systemctl reload trefoil")?;
    vm.write("/run/people", PEOPLE)?;
    vm.ok("sh /run/people")?;

    let logins = [
        ("bob", DUBLIN, sends(1001)),
        ("alice", FRANKFURT, sends(1002)),
        ("bob", DUBLIN, format!("sudo {}", sends(1003))),
        ("bob", DUBLIN, format!("sudo su alice -c '{}'", sends(1004))),
        // After he has logged out.
        (
            "bob",
            FRANKFURT,
            format!(
                "(nohup setsid sh -c 'until [ -e /run/go ]; do sleep 0.2; done; {}' \
                 >/dev/null 2>&1 </dev/null &)",
                sends(1005)
            ),
        ),
        ("alice", DUBLIN, format!("screen -dm {}", sends(1006))),
    ];
    for (name, from, command) in &logins {
        by_ssh(&mut vm, name, from, command)?;
    }
    vm.ok("touch /run/go")?;
    vm.ok(&format!(
        "systemd-run --quiet --wait --unit=exports --collect {}",
        sends(1007)
    ))?;

    let expected = BTreeMap::from([
        (1001, ["bob", "bob", DUBLIN, "dublin"]),
        (1002, ["alice", "alice", FRANKFURT, "frankfurt"]),
        (1003, ["root", "bob", DUBLIN, "dublin"]),
        (1004, ["alice", "bob", DUBLIN, "dublin"]),
        (1005, ["bob", "bob", FRANKFURT, "frankfurt"]),
        (1006, ["alice", "alice", DUBLIN, "dublin"]),
        (1007, ["root", "", "", ""]),
    ]);
    vm.wait_until("all datagrams are told", |vm| {
        let mut n_told = 0;
        for port in expected.keys() {
            let told = vm.journal(&format!("-u trefoil TREFOIL_DST_PORT={port}"))?;
            n_told += usize::from(!told.is_empty());
        }
        Ok((n_told == expected.len()).then_some(()))
    })?;
    // Removal of the programs from the kernel ends their flows.
    detach(&mut vm)?;
    let records = vm.journal("-u trefoil TREFOIL_STATE=closed")?;
    for (port, sender) in &expected {
        let mut about = records
            .iter()
            .filter(|one| one.is("TREFOIL_DST_PORT", port));
        let record = about
            .next()
            .with_context(|| format!("no record of {port}"))?;
        ensure!(facts(record) == *sender, "{sender:?}: {record}");
        let rule = ["all", "who came by dublin"][usize::from(sender[3] == "dublin")];
        ensure!(record.is("TREFOIL_RULE", rule), "{rule}: {record}");
        ensure!(about.next().is_none(), "two records of {port}");
    }
    // Packets of sshd itself are of a session as well, with their own connection's name.
    let answers: Vec<&Record> = records
        .iter()
        .filter(|one| one.is("TREFOIL_SRC_PORT", 22) && one.is("TREFOIL_DIRECTION", "accepted"))
        .collect();
    ensure!(answers.len() >= logins.len(), "{answers:?}");
    for answer in answers {
        let (name, own) = ("TREFOIL_SESSION_COMMUNITY_ID", "TREFOIL_COMMUNITY_ID");
        let is_own = answer.text(name).is_empty() || answer.text(name) == answer.text(own);
        ensure!(is_own, "{answer}");
    }
    Ok(())
}
