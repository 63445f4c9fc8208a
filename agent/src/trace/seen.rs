//! Facts that a program of `trefoil trace` has seen, and a line about them.

use std::fmt;
use std::net::Ipv6Addr;

use serde::Serialize;
use trefoil_ebpf::abi::{
    Address, Decision, NO_IP, NO_RULE, Owner, Peer, Tracked, quality, sender,
    trace::{basis, hook, key, known, outcome},
    verdict,
};

use crate::{
    clock::{self, BootClock},
    flow::ip_address,
    policy::explain::verdict_name,
    report::{FlowFacts, words},
};

/// One packet or call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When, nanoseconds since boot.
    pub time_ns: u64,
    /// One of [`hook`].
    pub hook: u8,
    /// One of [`basis`].
    pub basis: u8,
    /// One of [`known`].
    pub flow: u8,
    /// One of [`outcome`].
    pub outcome: u8,
    /// One of [`sender`].
    pub sender: u8,
    /// Index of the interface; 0 for none.
    pub interface: u32,
    /// Bytes that the hook saw.
    pub bytes: u32,
    /// Destination, decision and owner.
    pub tracked: Tracked,
}

impl Seen {
    /// Reads a line; `None` if it is not of a program of this version.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut seen = Self::default();
        let (flow, owner) = (&mut seen.tracked.flow, &mut seen.tracked.owner);
        for word in line.split(' ') {
            let (name, value) = word.split_once('=')?;
            match name {
                key::TIME => seen.time_ns = value.parse().ok()?,
                key::HOOK => seen.hook = value.parse().ok()?,
                key::BASIS => seen.basis = value.parse().ok()?,
                key::FLOW => seen.flow = value.parse().ok()?,
                key::OUTCOME => seen.outcome = value.parse().ok()?,
                key::SENDER => seen.sender = value.parse().ok()?,
                key::INTERFACE => seen.interface = value.parse().ok()?,
                key::BYTES => seen.bytes = value.parse().ok()?,
                key::TO => flow.peer.address = Address(value.parse::<Ipv6Addr>().ok()?.octets()),
                key::PORT => flow.peer.port = value.parse().ok()?,
                key::PROTOCOL => flow.peer.protocol = value.parse().ok()?,
                key::DECISION => flow.decision = Decision::from_word(hexadecimal(value)?),
                key::PID => owner.pid = value.parse().ok()?,
                key::START => owner.start_ns = value.parse().ok()?,
                key::EXE => owner.exe_id = value.parse().ok()?,
                key::CGROUP => owner.cgroup_id = value.parse().ok()?,
                key::UID => owner.uid = value.parse().ok()?,
                key::GID => owner.gid = value.parse().ok()?,
                key::QUALITY => owner.quality = value.parse().ok()?,
                key::COMM => {
                    let (first, second) = value.split_once(',')?;
                    owner.comm[..8].copy_from_slice(&hexadecimal(first)?.to_ne_bytes());
                    owner.comm[8..].copy_from_slice(&hexadecimal(second)?.to_ne_bytes());
                }
                _ => return None,
            }
        }
        (seen.hook != 0).then_some(seen)
    }

    fn decision(&self) -> &Decision {
        &self.tracked.flow.decision
    }

    /// Why it was decided so, in one sentence.
    fn reason(&self, facts: &FlowFacts) -> String {
        let peer = &self.tracked.flow.peer;
        match (self.basis, self.decision().verdict) {
            (basis::LINK, _) => return "the link needs it".to_owned(),
            (basis::LOOPBACK, _) => return "it goes to the loopback interface".to_owned(),
            (basis::UNREADABLE, _) => return "its headers cannot be read".to_owned(),
            (_, verdict::LOCAL) => return "it leaves neither this host nor the link".to_owned(),
            _ => {}
        }
        let rule = match (&facts.rule, self.decision().rule) {
            (Some(name), _) => Some(format!("rule `{}`", words::clean(name))),
            (None, NO_RULE) => None,
            (None, number) => Some(format!("rule number {}", number + 1)),
        };
        match (rule, self.decision().verdict) {
            (Some(rule), verdict::OVER_BUDGET) => {
                format!("{rule} matches first, and what it allows is used up")
            }
            (Some(rule), _) => format!("{rule} matches first"),
            (None, verdict::UNDETERMINED) if peer.protocol == NO_IP => {
                "it carries no IP, so no rule is about it".to_owned()
            }
            (None, verdict::UNDETERMINED) => format!(
                "no rule matches, and the country of {} is not known",
                ip_address(&peer.address)
            ),
            (None, _) => "no rule matches".to_owned(),
        }
    }

    /// With names for what the ids mean; `interface` is that of the packet.
    #[must_use]
    pub fn explain(
        &self,
        facts: &FlowFacts,
        interface: Option<String>,
        clock: &BootClock,
    ) -> Explained {
        let Tracked { owner, flow } = &self.tracked;
        let is_ip = flow.peer.protocol != NO_IP;
        let text = |fact: &Option<std::sync::Arc<str>>| fact.as_deref().map(str::to_owned);
        let has_destination = !flow.peer.address.is_unspecified();
        let names_process = owner.pid != 0;
        Explained {
            time: clock::rfc3339(clock.unix_us(self.time_ns)),
            hook: hook_name(self.hook, is_v6(&flow.peer)),
            pid: names_process.then_some(owner.pid),
            comm: names_process.then(|| comm(owner)),
            exe: text(&facts.exe),
            unit: text(&facts.unit),
            user_unit: text(&facts.user_unit),
            container: text(&facts.container),
            cgroup: text(&facts.cgroup),
            uid: quality::names_a_process(owner.quality).then_some(owner.uid),
            user: text(&facts.user),
            attribution: words::attribution(owner.quality),
            sender: (self.hook == hook::UPLINK).then(|| self.sender_name()),
            dst_addr: (is_ip && has_destination)
                .then(|| ip_address(&flow.peer.address).to_string()),
            dst_port: (is_ip && flow.peer.port != 0).then_some(flow.peer.port),
            protocol: words::protocol_of(&flow.peer),
            dst_country: facts.country.map(|country| country.as_str()),
            dst_asn: facts.asn,
            interface,
            bytes: (self.hook >= hook::EGRESS).then_some(self.bytes),
            flow: flow_name(self.flow),
            decided: basis_name(self.basis),
            verdict: verdict_name(self.decision().verdict).unwrap_or("none"),
            mode: words::mode(self.decision()),
            rule: text(&facts.rule),
            policy: text(&facts.policy),
            outcome: self.outcome_name(),
            reason: self.reason(facts),
            destination: words::destination(&flow.peer),
        }
    }

    fn sender_name(&self) -> &'static str {
        match (self.sender, self.basis) {
            (sender::FORWARDED, _) => "forwarded",
            (sender::PACKET, _) => "packet",
            (_, basis::SOCKET) => "socket",
            _ => "kernel",
        }
    }

    /// In the words of records, and those for what they do not tell.
    fn outcome_name(&self) -> &'static str {
        let decision = self.decision();
        let would_drop = decision.verdict != verdict::NONE
            && !verdict::is_approved(decision.verdict)
            && self.basis != basis::LINK;
        match self.outcome {
            outcome::DROPPED => "dropped",
            outcome::REFUSED => "refused",
            outcome::REFUSED_BY_OTHER => "refused-by-another",
            outcome::LEFT_TO_EGRESS => "left-to-egress",
            outcome::CUT => "cut",
            _ if would_drop && !decision.blocks() => "would-drop",
            _ => "passed",
        }
    }
}

/// A packet or call with names for everything. Fields are called as in records.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    time: String,
    hook: &'static str,
    outcome: &'static str,
    verdict: &'static str,
    mode: &'static str,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    decided: &'static str,
    flow: &'static str,
    attribution: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u16>,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_country: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_asn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    #[serde(skip)]
    destination: String,
}

impl fmt::Display for Explained {
    /// One line: when and where, who, where to, what became of it, and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.get(11..26).unwrap_or_default();
        write!(f, "{time} {:13} ", self.hook)?;
        match (&self.exe, &self.comm, self.pid) {
            (Some(name), _, Some(pid)) | (None, Some(name), Some(pid)) => {
                let name = name.rsplit('/').next().unwrap_or(name);
                write!(f, "{}[{pid}]", words::clean(name))?;
            }
            _ => write!(f, "{}", self.sender.unwrap_or("?"))?,
        }
        if let Some(unit) = self.user_unit.as_ref().or(self.unit.as_ref()) {
            write!(f, " in {}", words::clean(unit))?;
        }
        write!(f, " -> {}", self.destination)?;
        if let Some(country) = self.dst_country {
            write!(f, " ({country})")?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, ", {bytes} B")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " by {}", words::clean(interface))?;
        }
        write!(
            f,
            ": {}; {} ({} mode), {}; {}, flow {}, owner {}",
            self.outcome,
            self.verdict,
            self.mode,
            self.reason,
            self.decided,
            self.flow,
            self.attribution
        )
    }
}

fn is_v6(peer: &Peer) -> bool {
    peer.address.as_v4().is_none()
}

/// The hook that decides there.
fn hook_name(number: u8, is_v6: bool) -> &'static str {
    match (number, is_v6) {
        (hook::CONNECT, false) => "connect4",
        (hook::CONNECT, true) => "connect6",
        (hook::SENDMSG, false) => "sendmsg4",
        (hook::SENDMSG, true) => "sendmsg6",
        (hook::EGRESS, _) => "egress",
        (hook::UPLINK, _) => "uplink_egress",
        _ => "unknown",
    }
}

fn flow_name(number: u8) -> &'static str {
    match number {
        known::NEW => "new",
        known::KNOWN => "known",
        _ => "none",
    }
}

fn basis_name(number: u8) -> &'static str {
    match number {
        basis::JUDGE => "judged",
        basis::FLOW => "as its flow",
        basis::SOCKET => "as at its socket",
        basis::DATAGRAM => "as the beginning of its datagram",
        _ => "not judged",
    }
}

fn comm(owner: &Owner) -> String {
    let name = owner.comm.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "time=5 hook=3 basis=2 flow=2 outcome=2 sender=0 interface=7 bytes=60 \
                        to=::ffff:203.0.113.9 port=443 protocol=6 decision=106000100000007 pid=42 \
                        start=9 exe=1 cgroup=2 uid=3 gid=4 quality=2 comm=6c727563,0";

    #[test]
    fn a_line_is_read_whole_or_not_at_all() {
        let seen = Seen::parse(LINE).unwrap();
        assert_eq!(seen.tracked.owner.pid, 42);
        assert_eq!(comm(&seen.tracked.owner), "curl");
        assert_eq!(
            seen.tracked.flow.decision,
            Decision {
                generation: 7,
                rule: 1,
                verdict: 6,
                flags: 1,
            }
        );
        for wrong in ["", "hook=300", "hook", "hook=1 other=2", "time=1"] {
            assert_eq!(Seen::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_says_who_where_to_what_and_why() {
        let facts = FlowFacts {
            exe: Some("/usr/bin/curl".into()),
            unit: Some("lab.service".into()),
            rule: Some("never there".into()),
            ..FlowFacts::default()
        };
        let clock = BootClock::booted_at(0);
        let explained = Seen::parse(LINE)
            .unwrap()
            .explain(&facts, Some("eth0".into()), &clock);
        assert_eq!(
            explained.to_string(),
            "00:00:00.000000 egress        curl[42] in lab.service -> 203.0.113.9:443/tcp, 60 B by \
             eth0: dropped; denied (enforce mode), rule `never there` matches first; as its flow, \
             flow known, owner direct"
        );
        let json = serde_json::to_value(&explained).unwrap();
        assert_eq!(json["dst_addr"], "203.0.113.9");
        assert_eq!(json["outcome"], "dropped");
    }
}
