//! Sources that may open sessions, and the ports of this host by which they
//! may.

use super::*;
use crate::policy::geography::Nowhere;
use crate::policy::source::Direction;
use crate::policy::{LinkLocal, Question};
use trefoil_ebpf::abi::verdict;

fn read(rules: &str) -> Result<Compiled, Problems> {
    let text = format!(
        "mode = \"enforce\"\n[[gateways]]\nname = \"in\"\nclients = [\"192.0.2.0/28\"]\n\
         [[gateways]]\nname = \"out\"\nendpoints = [\"192.0.2.1:443/tcp\"]\n{rules}"
    );
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: LinkLocal::default(),
    };
    load(&text, "policy.toml", &surroundings, 7)
}

fn rule(head: &str, verdict: &str) -> String {
    format!(
        "[[rules]]\nname = \"{}\"\nverdict = \"{verdict}\"\n{head}\n",
        head.len()
    )
}

/// The verdict on TCP with 192.0.2.1.
fn judge(policy: &Compiled, direction: Option<Direction>, near_port: Option<u16>) -> u8 {
    policy
        .judge(&Question {
            cgroup: None,
            executable: None,
            is_foreign: false,
            uid: 0,
            gid: None,
            interactive: None,
            origin: None,
            direction,
            near_port,
            destination: [192, 0, 2, 1].into(),
            may_stay: false,
            protocol: 6,
            port: 40_000,
            time_us: 0,
        })
        .verdict
}

const ACCEPTED: Option<Direction> = Some(Direction::Accepted);
const OUTBOUND: Option<Direction> = Some(Direction::Outbound);

#[test]
fn clients_of_a_gateway_are_let_in_by_the_services_port_alone() {
    let ssh = "direction = \"accepted\"\nfrom = { ports = [\"22/tcp\"] }\n\
               to = { gateway = \"in\" }";
    let policy = read(&rule(ssh, "approve")).unwrap();
    assert_eq!(judge(&policy, ACCEPTED, Some(22)), verdict::GATEWAY);
    for (direction, port) in [
        (ACCEPTED, Some(23)),
        (ACCEPTED, Some(0)),
        (OUTBOUND, Some(22)),
        (OUTBOUND, None),
        (None, Some(22)),
        (None, Some(0)),
    ] {
        let judged = judge(&policy, direction, port);
        assert_eq!(judged, verdict::UNDETERMINED, "{direction:?} {port:?}");
    }
}

#[test]
fn what_is_not_known_of_the_near_end_is_denied() {
    let ssh = "direction = \"accepted\"\nfrom = { ports = [\"22/tcp\"] }";
    let rest = "to = { networks = [\"192.0.2.0/24\"] }";
    let policy = read(&(rule(ssh, "deny") + &rule(rest, "approve"))).unwrap();
    for (direction, port, expected) in [
        (ACCEPTED, Some(22), verdict::DENIED),
        (ACCEPTED, Some(0), verdict::DENIED),
        (None, Some(22), verdict::DENIED),
        (None, Some(0), verdict::DENIED),
        (None, Some(23), verdict::APPROVED),
        (ACCEPTED, Some(23), verdict::APPROVED),
        (OUTBOUND, Some(22), verdict::APPROVED),
        (OUTBOUND, None, verdict::APPROVED),
    ] {
        let judged = judge(&policy, direction, port);
        assert_eq!(judged, expected, "{direction:?} {port:?}");
    }
    // A port is nothing to approve by where nobody knows who wrote it.
    let from = "from = { ports = [\"22/tcp\"] }";
    let policy = read(&rule(from, "approve")).unwrap();
    assert_eq!(judge(&policy, OUTBOUND, Some(22)), verdict::APPROVED);
    assert_eq!(judge(&policy, None, Some(22)), verdict::UNDETERMINED);
}

#[test]
fn a_policy_that_asks_for_no_near_end_has_one_class_of_them() {
    let policy = read(&rule("to = { networks = [\"192.0.2.0/24\"] }", "deny")).unwrap();
    for ranges in &policy.near_ends {
        assert_eq!(ranges.len(), 1);
    }
}

#[test]
fn rules_that_no_session_can_match_are_refused_with_what_to_write() {
    for (head, verdict, expected) in [
        (
            "direction = \"accepted\"\nto = { gateway = \"out\" }",
            "approve",
            "give it `clients`",
        ),
        (
            "to = { gateway = \"in\" }",
            "approve",
            "direction = \"accepted\"",
        ),
        (
            "direction = \"accepted\"\nto = { protocols = [\"udp\"] }",
            "approve",
            "is `outbound`",
        ),
        (
            "direction = \"accepted\"\nfrom = { ports = [\"53/udp\"] }",
            "approve",
            "is `outbound`",
        ),
        (
            "from = { ports = [\"53/udp\"] }\nto = { ports = [\"53/tcp\"] }",
            "deny",
            "same protocol",
        ),
        (
            "direction = \"inbound\"\nfrom = { user = 0 }",
            "deny",
            "accepted",
        ),
        ("from = { ports = [\"ssh\"] }", "deny", "443/tcp"),
    ] {
        let problems = read(&rule(head, verdict)).unwrap_err().to_string();
        assert!(problems.contains(expected), "{head}: {problems}");
    }
    let none = "mode = \"report\"\n[[gateways]]\nname = \"none\"\n";
    let problems = Policy::parse(none, "p").unwrap_err().to_string();
    assert!(problems.contains("`clients = "), "{problems}");
}
