//! How things are called in front of a person.

use std::{borrow::Cow, net::IpAddr};

use trefoil_ebpf::abi::{
    Counters, DECISION_ENFORCED, Decision, FLOW_CUT, NO_IP, Peer, direction, quality, verdict,
};

pub use crate::policy::explain::verdict_name as verdict;
use crate::{flow::ip_address, policy::service::Protocol};

/// A direction's name; `None` when it is not known.
#[must_use]
pub fn direction(direction: u8) -> Option<&'static str> {
    match direction {
        direction::OUTBOUND => Some("outbound"),
        direction::ACCEPTED => Some("accepted"),
        direction::CLAIMED => Some("claimed"),
        _ => None,
    }
}

/// The name of an attribution's quality.
#[must_use]
pub fn attribution(quality: u8) -> &'static str {
    match quality {
        quality::DIRECT => "direct",
        quality::INFERRED => "inferred",
        quality::KERNEL => "kernel",
        quality::FORWARDED => "forwarded",
        _ => "none",
    }
}

/// The mode that a decision was taken in.
#[must_use]
pub fn mode(decision: &Decision) -> &'static str {
    if decision.flags & DECISION_ENFORCED != 0 {
        "enforce"
    } else {
        "report"
    }
}

/// Names the outcome of a flow with these `FLOW_*` bits. An event that happened goes
/// before one that should have.
#[must_use]
pub fn outcome(state: u16, decision: &Decision, counted: &Counters) -> &'static str {
    if state & FLOW_CUT != 0 {
        "cut"
    } else if counted.blocked_packets > 0 {
        "dropped"
    } else if counted.refused > 0 {
        "refused"
    } else if decision.verdict == verdict::NONE || verdict::is_approved(decision.verdict) {
        "passed"
    } else if decision.flags & DECISION_ENFORCED == 0 {
        "would-drop"
    } else if counted.packets_out > 0 {
        "passed"
    } else {
        "dropped"
    }
}

/// The name of an IP protocol, as policies call it, or its number.
#[must_use]
pub fn protocol(number: u8) -> String {
    Protocol(number).to_string()
}

/// The protocol of what goes to a peer; for a frame that carries no IP, its ethertype.
#[must_use]
pub fn protocol_of(peer: &Peer) -> String {
    match peer.protocol {
        NO_IP => ethertype(peer.port),
        number => protocol(number),
    }
}

/// `ethertype-8847`: what a frame carries that carries no IP.
#[must_use]
pub fn ethertype(kind: u16) -> String {
    format!("ethertype-{kind:04x}")
}

/// Where a packet goes: as [`endpoint`], or no address for a frame that carries no IP.
#[must_use]
pub fn destination(peer: &Peer) -> String {
    match peer.protocol {
        NO_IP => protocol_of(peer),
        number => endpoint(ip_address(&peer.address), peer.port, &protocol(number)),
    }
}

/// `203.0.113.9:443/tcp`, `[2001:db8::1]:443/tcp`, or `203.0.113.9/icmp`.
#[must_use]
pub fn endpoint(address: IpAddr, port: u16, protocol: &str) -> String {
    match (address, port) {
        (address, 0) => format!("{address}/{protocol}"),
        (IpAddr::V4(address), port) => format!("{address}:{port}/{protocol}"),
        (IpAddr::V6(address), port) => format!("[{address}]:{port}/{protocol}"),
    }
}

/// `812 B`, `1.2 kB`, `34 MB`: at most five figures wide with its unit.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut scaled, mut unit) = (bytes as f64, 0);
    // 999.5 would be shown as 1000.
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let figures = usize::from(unit > 0 && scaled < 9.95);
    format!("{scaled:.figures$} {}", units[unit])
}

/// `85 ms`, `4.2 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`.
#[must_use]
pub fn duration(ns: u64) -> String {
    let (ms, s) = (ns / 1_000_000, ns / 1_000_000_000);
    match s {
        0 if ms == 0 => "less than 1 ms".to_owned(),
        0 => format!("{ms} ms"),
        1..10 => format!("{s}.{} s", ms / 100 % 10),
        10..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

/// `1 packet`, `2 packets`.
#[must_use]
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// Text that others chose, made fit to be shown: a process names itself, and
/// could otherwise move the cursor or write lines of its own.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_unfit) {
        Cow::Owned(
            text.chars()
                .map(|c| if is_unfit(c) { '?' } else { c })
                .collect(),
        )
    } else {
        Cow::Borrowed(text)
    }
}

/// Control characters, and those that turn the direction of writing or show nothing.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::NO_RULE;

    use super::*;

    #[test]
    fn amounts_of_bytes() {
        let cases = [
            (0, "0 B"),
            (812, "812 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_234, "1.2 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (34_000_000, "34 MB"),
            (u64::MAX, "18 EB"),
        ];
        for (amount, text) in cases {
            assert_eq!(bytes(amount), text);
        }
    }

    #[test]
    fn durations() {
        let cases = [
            (0, "less than 1 ms"),
            (85_000_000, "85 ms"),
            (4_250_000_000, "4.2 s"),
            (59_000_000_000, "59 s"),
            (185_000_000_000, "3 min 5 s"),
            (7_800_000_000_000, "2 h 10 min"),
            (273_600_000_000_000, "3 d 4 h"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn endpoints() {
        let v4 = "203.0.113.9".parse().unwrap();
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(endpoint(v4, 443, "tcp"), "203.0.113.9:443/tcp");
        assert_eq!(endpoint(v6, 443, "udp"), "[2001:db8::1]:443/udp");
        assert_eq!(endpoint(v6, 0, "icmpv6"), "2001:db8::1/icmpv6");
    }

    #[test]
    fn what_happened_goes_before_what_should_have() {
        let decision = |verdict, flags| Decision {
            generation: 1,
            rule: NO_RULE,
            verdict,
            flags,
        };
        let none = Counters::default();
        let sent = Counters {
            packets_out: 1,
            ..none
        };
        let blocked = Counters {
            blocked_packets: 1,
            ..sent
        };
        let refused = Counters { refused: 1, ..none };
        for approved in [
            verdict::LOCAL,
            verdict::GATEWAY,
            verdict::APPROVED,
            verdict::EXCEPTION,
        ] {
            assert_eq!(
                outcome(0, &decision(approved, DECISION_ENFORCED), &sent),
                "passed"
            );
        }
        for denied in [verdict::DENIED, verdict::UNDETERMINED, verdict::OVER_BUDGET] {
            let (report, enforce) = (decision(denied, 0), decision(denied, DECISION_ENFORCED));
            assert_eq!(outcome(0, &report, &sent), "would-drop");
            assert_eq!(outcome(0, &enforce, &blocked), "dropped");
            assert_eq!(outcome(0, &enforce, &refused), "refused");
            assert_eq!(outcome(0, &enforce, &none), "dropped");
            assert_eq!(outcome(0, &enforce, &sent), "passed");
            // The reset has left, and packets before it may not have.
            assert_eq!(outcome(FLOW_CUT, &enforce, &blocked), "cut");
        }
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\n\u{202e}c"), "a?[2Jb??c");
        assert!(matches!(clean("größe"), Cow::Borrowed("größe")));
    }

    #[test]
    fn every_verdict_has_a_name() {
        assert!((1..verdict::N).all(|number| verdict(number).is_some()));
        assert_eq!(verdict(verdict::NONE), None);
        assert_eq!(verdict(verdict::N), None);
    }
}
