//! People who log in by sshd: each record of what they do has the person and the gateway, and what
//! they may send depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::vm::Vm;

use crate::world::{HOST6, REFUSED, TRAFFIC, detach, installed};

/// Two gateways by which people come in, and in which mode.
pub fn gateways(mode: &str) -> String {
    format!(
        r#"mode = "{mode}"
[[gateways]]
name    = "dublin"
clients = ["203.0.113.7", "2001:db8:f::7"]
[[gateways]]
name    = "frankfurt"
clients = ["203.0.113.8"]
[[rules]]
name    = "who came by dublin"
from    = {{ session = {{ gateway = "dublin" }} }}
to      = {{ networks = ["203.0.113.60"] }}
verdict = "approve"
"#
    )
}

/// Approves of all else.
const ALL: &str = r#"[[rules]]
name    = "all"
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;

/// People log in by a gateway, and by nothing else.
pub const LOGINS: &str = r#"[[rules]]
name      = "logins by the gateways"
direction = "accepted"
from      = { ports = ["22/tcp"] }
to        = { gateway = ["dublin", "frankfurt"] }
verdict   = "approve"
"#;

pub const DUBLIN: &str = "203.0.113.7";
/// The same gateway.
pub const DUBLIN6: &str = "2001:db8:f::7";
const FRANKFURT: &str = "203.0.113.8";
/// Of no gateway.
const ELSEWHERE: &str = "203.0.113.9";

/// Two people with a key, of whom one may become another user.
const PEOPLE: &str = r"set -eu
ssh-keygen -q -t ed25519 -N '' -f /run/key
for name in bob alice; do
    useradd --create-home --shell /bin/sh $name
    install -d -o $name -m 700 /home/$name/.ssh
    install -o $name -m 600 /run/key.pub /home/$name/.ssh/authorized_keys
    install -o $name -m 600 /run/key /home/$name/.ssh/id_ed25519
    printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' \
        > /home/$name/.ssh/config
done
echo 'bob ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/bob
printf 'UseDNS no\nMaxStartups 100\n' > /etc/ssh/sshd_config.d/quick.conf
systemctl start ssh
# Where people copy to, at the far end.
ip netns exec far /usr/sbin/sshd -p 2222 -o PidFile=none
head -c 100000 /dev/zero > /run/export
";

/// A host on which this policy is in force, and people who log in.
pub fn with_people(name: &str, policy: &str) -> Result<Vm> {
    let mut vm = installed(name)?;
    vm.write("/run/people", PEOPLE)?;
    vm.ok("sh /run/people")?;
    vm.write("/etc/trefoil/policy.toml", policy)?;
    vm.ok("systemctl reload trefoil")?;
    Ok(vm)
}

/// Sends a datagram to this port of the far end.
fn sends(port: u16) -> String {
    format!("{TRAFFIC} udp 203.0.113.60:{port}")
}

/// The command that logs in from the far end, and does something there.
pub fn ssh(name: &str, from: &str, command: &str) -> String {
    // The guest is emulated, and this is the cheapest exchange of keys.
    let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                   -o ConnectTimeout=60 -o KexAlgorithms=curve25519-sha256";
    let host = if from.contains(':') {
        HOST6
    } else {
        "192.0.2.1"
    };
    format!(
        "ip netns exec far ssh {options} -b {from} -i /run/key {name}@{host} \"{command}\" </dev/null"
    )
}

/// A command that goes on after who began it has logged out, once `/run/go` exists.
fn later(command: &str) -> String {
    format!(
        "(nohup setsid sh -c 'until [ -e /run/go ]; do sleep 0.2; done; {command}' \
         >/dev/null 2>&1 </dev/null &)"
    )
}

/// Facts about a sender: user, login, far address and gateway of his session; empty if there is none.
fn facts(record: &Record) -> [String; 4] {
    ["USER", "LOGIN", "SESSION_ADDR", "SESSION_GATEWAY"]
        .map(|name| record.text(&format!("TREFOIL_{name}")))
}

#[test]
fn people_who_log_in_by_ssh_are_told_with_the_gateway_that_they_came_by() -> Result<()> {
    let policy = gateways("report") + ALL;
    let mut vm = with_people("sessions", &policy)?;
    let logins = [
        ("bob", DUBLIN, sends(1001)),
        ("alice", FRANKFURT, sends(1002)),
        ("bob", DUBLIN, format!("sudo {}", sends(1003))),
        ("bob", DUBLIN, format!("sudo su alice -c '{}'", sends(1004))),
        ("bob", FRANKFURT, later(&sends(1005))),
        ("alice", DUBLIN, format!("screen -dm {}", sends(1006))),
        (
            "alice",
            FRANKFURT,
            "scp -q -P 2222 /run/export bob@203.0.113.60:/tmp/".to_owned(),
        ),
    ];
    for (name, from, command) in &logins {
        vm.ok(&ssh(name, from, command))?;
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
        (2222, ["alice", "alice", FRANKFURT, "frankfurt"]),
    ]);
    vm.wait_until("all that was sent is told", |vm| {
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
        if *port == 2222 {
            ensure!(record.number("TREFOIL_BYTES_OUT")? > 100_000, "{record}");
        }
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

#[test]
fn what_people_may_send_who_log_in_by_ssh_depends_on_their_gateway() -> Result<()> {
    let policy = gateways("enforce") + LOGINS;
    let mut vm = with_people("sessions-enforced", &policy)?;
    // By the exit code of the last command: the kernel refuses the call, or the sender is content.
    for (port, name, from, command, code) in [
        (1001, "bob", DUBLIN, sends(1001), 0),
        (1002, "bob", FRANKFURT, sends(1002), REFUSED),
        (1003, "bob", DUBLIN, format!("sudo {}", sends(1003)), 0),
        (
            1004,
            "bob",
            FRANKFURT,
            format!("sudo {}", sends(1004)),
            REFUSED,
        ),
        (
            1005,
            "bob",
            DUBLIN,
            format!("sudo su alice -c '{}'", sends(1005)),
            0,
        ),
        (
            1006,
            "alice",
            FRANKFURT,
            format!("sh -c '{}'", sends(1006)),
            REFUSED,
        ),
        (1007, "alice", DUBLIN, later(&sends(1007)), 0),
        (1008, "alice", FRANKFURT, later(&sends(1008)), 0),
    ] {
        let ended = vm.run(&ssh(name, from, &command))?;
        ensure!(ended.code == code, "{port}: {ended:?}");
    }
    // Whoever comes by another way is not let in.
    let ended = vm.run(&format!("timeout 5 {}", ssh("bob", ELSEWHERE, "true")))?;
    ensure!(ended.code != 0, "{ended:?}");
    vm.ok("touch /run/go")?;
    let service = "systemd-run --quiet --wait --unit=exports --collect";
    let ended = vm.run(&format!("{service} {}", sends(1009)))?;
    ensure!(ended.code == REFUSED, "{ended:?}");

    for port in [1002, 1004, 1006, 1008, 1009] {
        let fields = format!("-u trefoil TREFOIL_EVENT=violation TREFOIL_DST_PORT={port}");
        let told = vm.wait_until(&format!("{port} is told as refused"), |vm| {
            Ok(vm.journal(&fields)?.pop())
        })?;
        ensure!(told.is("TREFOIL_OUTCOME", "refused"), "{told}");
        let gateway = ["frankfurt", ""][usize::from(port == 1009)];
        ensure!(told.is("TREFOIL_SESSION_GATEWAY", gateway), "{told}");
    }
    let fields = format!(
        "-u trefoil TREFOIL_EVENT=violation TREFOIL_DIRECTION=accepted TREFOIL_DST_ADDR={ELSEWHERE}"
    );
    vm.wait_until("the login by no gateway is told", |vm| {
        Ok(vm.journal(&fields)?.pop())
    })?;
    // The job that went on after its owner had logged out.
    vm.wait_until("the job by dublin is told", |vm| {
        Ok(vm.journal("-u trefoil TREFOIL_DST_PORT=1007")?.pop())
    })?;
    detach(&mut vm)?;
    let records = vm.journal("-u trefoil TREFOIL_STATE=closed TREFOIL_PROTOCOL=udp")?;
    let approved: BTreeSet<String> = records
        .iter()
        .filter(|one| one.is("TREFOIL_VERDICT", "approved"))
        .map(|one| one.text("TREFOIL_DST_PORT"))
        .collect();
    let expected = ["1001", "1003", "1005", "1007"].map(str::to_owned);
    ensure!(approved == BTreeSet::from(expected), "{approved:?}");
    Ok(())
}

/// Logins of two people by two gateways, several at the same time. `TREFOIL_LOGINS` says how many;
/// many take longer than a machine may run without `TREFOIL_VM_MINUTES`.
#[test]
fn of_many_short_logins_by_ssh_none_is_taken_for_another() -> Result<()> {
    const AT_ONCE: usize = 4;
    const A_COMMAND: usize = 40;
    const FIRST_PORT: usize = 3000;
    let count = match env::var("TREFOIL_LOGINS") {
        Ok(count) => count.parse().context("TREFOIL_LOGINS is no number")?,
        Err(_) => 80,
    };
    let policy = gateways("report") + ALL;
    let mut vm = with_people("sessions-many", &policy)?;
    // Else their managers begin and end with each login.
    vm.ok("loginctl enable-linger bob alice")?;
    vm.ok(
        "printf 'flows = \"each\"\n' > /run/each && cat /etc/trefoil/trefoil.toml >> /run/each && \
           cp /run/each /etc/trefoil/trefoil.toml && systemctl restart trefoil",
    )?;
    let expected: Vec<(&str, &str, &str)> = (0..count)
        .map(|number| match number % 4 {
            0 => ("bob", DUBLIN, "dublin"),
            1 => ("alice", DUBLIN, "dublin"),
            2 => ("alice", FRANKFURT, "frankfurt"),
            _ => ("bob", FRANKFURT, "frankfurt"),
        })
        .collect();
    let ports: Vec<usize> = (FIRST_PORT..FIRST_PORT + count).collect();
    for (ports, logins) in ports.chunks(A_COMMAND).zip(expected.chunks(A_COMMAND)) {
        let logins: Vec<_> = ports.iter().zip(logins).collect();
        let mut script = String::from("set -e\n");
        for at_once in logins.chunks(AT_ONCE) {
            script.push_str("all=\n");
            for &(port, (name, from, _)) in at_once {
                let command = ssh(name, from, &format!("{TRAFFIC} udp 203.0.113.60:{port}"));
                script.push_str(&format!("{command} & all=\"$all $!\"\n"));
            }
            script.push_str("for one in $all; do wait $one; done\n");
        }
        vm.write("/run/logins", &script)?;
        vm.ok("sh /run/logins")?;
    }
    let about = |vm: &mut Vm| vm.journal("-u trefoil TREFOIL_PROTOCOL=udp TREFOIL_STATE=closed");
    detach(&mut vm)?;
    let records = about(&mut vm)?;
    for (port, (name, from, gateway)) in ports.iter().zip(&expected) {
        let mut about = records
            .iter()
            .filter(|one| one.is("TREFOIL_DST_PORT", *port));
        let record = about
            .next()
            .with_context(|| format!("no record of {port}"))?;
        ensure!(
            facts(record) == [*name, *name, *from, *gateway].map(str::to_owned),
            "{name} from {from}: {record}"
        );
        ensure!(about.next().is_none(), "two records of {port}");
    }
    Ok(())
}
