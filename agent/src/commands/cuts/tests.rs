//! Fates of connections that are made up, under a small policy.

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::{
    connections::Executable,
    policy::{self, Surroundings, geography::Nowhere},
};

const POLICY: &str = r#"
mode = "report"

[[rules]]
name    = "the shop's database"
from    = { unit = "shop.service", exe = "/usr/bin/psql" }
to      = { networks = ["198.51.100.0/24"], ports = ["5432/tcp"] }
verdict = "approve"

[[rules]]
name    = "administration"
from    = { exe = "/usr/sbin/sshd" }
to      = { networks = ["203.0.113.7/32"] }
verdict = "approve"

[[rules]]
name    = "never there"
to      = { networks = ["203.0.113.0/25"] }
verdict = "deny"
"#;

const SSHD: &str = "/usr/sbin/sshd";

fn holder(pid: u32, exe: &str, unit: &str) -> Arc<Holder> {
    Arc::new(Holder {
        pid,
        comm: "x".to_owned(),
        uid: Some(1000),
        gid: Some(1000),
        interactive: Some(false),
        session: None,
        executable: Some(Executable {
            path: exe.into(),
            foreign: false,
        }),
        cgroup: Some(format!("/system.slice/{unit}")),
    })
}

fn connection(local_port: u16, peer: &str, holders: Vec<Arc<Holder>>) -> Connection {
    Connection {
        protocol: 6,
        local: SocketAddr::new([192, 0, 2, 1].into(), local_port),
        peer: peer.parse().unwrap(),
        accepted: local_port < 1024,
        direction: None,
        uid: 0,
        holders,
    }
}

fn compiled(text: &str) -> Compiled {
    let own: [IpAddr; 1] = [[192, 0, 2, 1].into()];
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| None,
        own_addresses: &own,
        link_local: policy::LinkLocal::default(),
    };
    policy::load(text, "policy.toml", &surroundings, 1).unwrap()
}

/// Judges these connections as if processes in `watched` were watched, and a
/// child of `asker` asked.
fn cuts(watched: &str, asker: u32, list: Vec<Connection>) -> Cuts {
    let compiled = compiled(POLICY);
    let judge = Judge {
        compiled: &compiled,
        geo: None,
        watched: watched.to_owned(),
        origins: HashMap::new(),
        asker: Asker {
            ancestors: vec![asker],
            ..Asker::default()
        },
    };
    judge.cuts(&Connections {
        list,
        ..Connections::default()
    })
}

fn ports(cuts: &Cuts) -> Vec<u16> {
    cuts.would_cut.iter().map(|fate| fate.src_port).collect()
}

#[test]
fn what_is_not_approved_would_be_cut() {
    let psql = holder(10, "/usr/bin/psql", "shop.service");
    let other = holder(11, "/usr/bin/psql", "other.service");
    let cuts = cuts(
        "/",
        1,
        vec![
            connection(40001, "198.51.100.10:5432", vec![psql.clone()]),
            connection(40002, "198.51.100.10:443", vec![psql.clone()]),
            connection(40003, "198.51.100.10:5432", vec![other]),
            connection(40004, "203.0.113.10:5432", vec![psql.clone()]),
            // Local, whatever the policy says, and not counted.
            connection(40005, "192.0.2.1:443", vec![psql.clone()]),
            connection(40006, "127.0.0.1:443", vec![psql]),
        ],
    );
    assert_eq!(ports(&cuts), [40002, 40003, 40004]);
    assert_eq!(cuts.open_connections, 4);
    let fate = &cuts.would_cut[2];
    assert_eq!(
        (fate.verdict, fate.rule.as_deref()),
        ("denied", Some("never there"))
    );
    assert_eq!(fate.unit.as_deref(), Some("shop.service"));
    assert_eq!((fate.pid, fate.uid), (Some(10), 1000));
}

#[test]
fn only_what_is_watched_is_cut() {
    let list = || {
        vec![
            connection(40001, "203.0.113.10:1", vec![holder(1, "/x", "a.service")]),
            connection(
                40002,
                "203.0.113.10:1",
                vec![holder(2, "/x", "a.service/b")],
            ),
            connection(40003, "203.0.113.10:1", vec![holder(3, "/x", "a.service2")]),
            connection(40004, "203.0.113.10:1", vec![]),
        ]
    };
    let below = cuts("/system.slice/a.service", 9, list());
    assert_eq!(ports(&below), [40001, 40002]);
    assert_eq!(below.open_connections, 2);
    // The kernel judges what nobody is known to hold, too.
    let all = cuts("/", 9, list());
    assert_eq!(ports(&all), [40001, 40002, 40003, 40004]);
    assert_eq!((all.would_cut[3].pid, all.would_cut[3].uid), (None, 0));
}

#[test]
fn the_worst_of_several_holders_counts() {
    let approved = holder(10, "/usr/bin/psql", "shop.service");
    let other = holder(11, "/usr/bin/xargs", "shop.service");
    let found = cuts(
        "/",
        1,
        vec![connection(
            40001,
            "198.51.100.10:5432",
            vec![approved, other],
        )],
    );
    assert_eq!(found.would_cut[0].pid, Some(11));
}

#[test]
fn sessions_come_first_and_yours_before_all() {
    let text = |cuts: &Cuts| cuts.text(Mode::Enforce);
    let found = cuts(
        "/",
        22,
        vec![
            connection(
                40001,
                "203.0.113.10:443",
                vec![holder(10, "/usr/bin/curl", "a.service")],
            ),
            connection(
                22,
                "203.0.113.9:50001",
                vec![holder(21, SSHD, "session-1.scope")],
            ),
            connection(
                22,
                "203.0.113.10:50002",
                vec![holder(22, SSHD, "session-2.scope")],
            ),
            connection(
                22,
                "203.0.113.7:50003",
                vec![holder(23, SSHD, "session-3.scope")],
            ),
        ],
    );
    assert_eq!(
        text(&found),
        "enforcing it now would cut 3 of 4 open connections:
  YOUR SESSION: ssh from 203.0.113.10:50002/tcp, sshd[22] (session-2.scope): denied by rule \"never there\"
  login session: ssh from 203.0.113.9:50001/tcp, sshd[21] (session-1.scope): denied by rule \"never there\"
  curl[10] (a.service) to 203.0.113.10:443/tcp: denied by rule \"never there\"
your session stays with a rule before all others that approves
  from = { exe = \"/usr/sbin/sshd\" }, to = { networks = [\"203.0.113.10/32\"] }
"
    );
    assert_eq!(
        found.summary(),
        "enforcing the policy cuts 3 of 4 open connections, 2 login sessions among them; the \
         first: sshd[22] (session-2.scope) with its client 203.0.113.10 on port 22/tcp: denied by \
         rule \"never there\""
    );

    let stays = cuts(
        "/",
        23,
        vec![connection(
            22,
            "203.0.113.7:50003",
            vec![holder(23, SSHD, "session-3.scope")],
        )],
    );
    assert_eq!(
        text(&stays),
        "enforcing it now would cut none of 1 open connection
your session stays: ssh from 203.0.113.7:50003/tcp, sshd[23] (session-3.scope): approved by rule \
         \"administration\"
"
    );
}

#[test]
fn a_long_list_is_a_short_text() {
    let mut list = Vec::new();
    for at in 0..300_u16 {
        let curl = holder(100 + u32::from(at % 2), "/usr/bin/curl", "a.service");
        list.push(connection(40_000 + at, "203.0.113.10:443", vec![curl]));
        let wget = holder(300, "/usr/bin/wget", "b.service");
        let peer = format!("198.51.100.{}:80", at % 100);
        list.push(connection(50_000 + at, &peer, vec![wget]));
        let sshd = holder(400, SSHD, "ssh.service");
        list.push(connection(
            22,
            &format!("203.0.113.8:{}", 1000 + at),
            vec![sshd],
        ));
        let parent = holder(600, "/usr/bin/runner", "runner.service");
        list.push(connection(60_000 + at, "203.0.113.8:80", vec![parent]));
        let web = holder(500, "/usr/sbin/nginx", "web.service");
        list.push(connection(
            443,
            &format!("203.0.113.8:{}", 1000 + at),
            vec![web],
        ));
    }
    let found = cuts("/", 600, list);
    assert_eq!(found.would_cut.len(), 1500);
    let text = found.text(Mode::Report);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "if it were enforced now, it would cut 1500 of 1500 open connections:"
    );
    assert_eq!(text.matches("YOUR SESSION: ").count(), 10);
    assert_eq!(text.matches("login session: ").count(), 10);
    // Two processes of a kind; many clients of one place.
    assert!(
        text.contains("\n  300 × curl (a.service) to 203.0.113.10:443/tcp: denied"),
        "{text}"
    );
    assert!(
        text.contains(
            "\n  300 × nginx[500] (web.service) with its client 203.0.113.8 on port 443/tcp"
        ),
        "{text}"
    );
    assert!(
        text.contains("\n  3 × wget[300] (b.service) to 198.51.100.0:80/tcp: "),
        "{text}"
    );
    // 290 of either kind of session, and 92 of the 100 places of wget, 3 connections each.
    assert!(text.contains("\n  ... and 856 more; "), "{text}");
    assert_eq!(lines.len(), 1 + 10 + 10 + 10 + 1 + 2);
}

#[test]
fn a_process_cannot_draw_on_the_terminal() {
    let evil = holder(10, "/tmp/\u{1b}[2J", "a.service");
    let found = cuts(
        "/",
        10,
        vec![connection(40001, "203.0.113.10:443", vec![evil])],
    );
    assert!(!found.text(Mode::Enforce).contains('\u{1b}'));
    assert!(!found.summary().contains('\u{1b}'));
}
