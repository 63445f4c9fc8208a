//! Records of flows and violations: from numbers and names to fields and words.

use std::sync::Arc;

use sha1::{Digest, Sha1};
use trefoil_ebpf::abi::{
    Counters, Decision, Flow, NO_IP, NOBODY_LOGGED_IN, Owner, Peer, Tracked, direction, quality,
    verdict,
};

use super::{Field, Kind, Priority, Record, SessionFacts, community_id, words};
use crate::{
    clock::BootClock,
    flow::{FlowReport, ReportKind, Rollup, Stage, ip_address},
    geo::Country,
};

/// Names for a flow's ids: the facts that the kernel does not have.
///
/// A name that is not known is `None`; it is better absent than wrong.
#[derive(Clone, Debug, Default)]
pub struct FlowFacts {
    /// Path of the executable.
    pub exe: Option<Arc<str>>,
    /// `truncated`, `foreign` or `unlinked`, when that path is not plainly a
    /// file of the host.
    pub exe_note: Option<&'static str>,
    /// SHA-256 of the executable, 64 hex digits.
    pub exe_sha256: Option<Arc<str>>,
    /// Path of the parent's executable.
    pub parent_exe: Option<Arc<str>>,
    /// Name of the user.
    pub user: Option<Arc<str>>,
    /// Name of the user who logged in.
    pub login: Option<Arc<str>>,
    /// Origin of the login session.
    pub session: Option<SessionFacts>,
    /// Unit of the system's manager: `journalctl -u` shows the record for it.
    pub unit: Option<Arc<str>>,
    /// Unit of a user's manager: `journalctl --user-unit` shows the record for it.
    pub user_unit: Option<Arc<str>>,
    /// Container.
    pub container: Option<Arc<str>>,
    /// Path of the control group.
    pub cgroup: Option<Arc<str>>,
    /// Country of the destination.
    pub country: Option<Country>,
    /// Autonomous system of the destination.
    pub asn: Option<u32>,
    /// Name by which the destination was looked up.
    pub dst_name: Option<Arc<str>>,
    /// Where that name is from.
    pub name_source: Option<Arc<str>>,
    /// Name of the rule that decided.
    pub rule: Option<Arc<str>>,
    /// Policy of the decision's generation, if it is not the one in force.
    pub policy: Option<Arc<str>>,
}

impl Record {
    /// The record of one flow.
    #[must_use]
    pub fn flow(report: &FlowReport, facts: &FlowFacts, clock: &BootClock) -> Self {
        let Tracked { owner, flow } = &report.tracked;
        let time_us = clock.unix_us(report.time_ns);
        let message = flow_message(report, facts);
        let mut record = begin(report.kind, &flow.decision, time_us, message);
        let state = match report.stage {
            Stage::Opened => "opened",
            Stage::Update => "update",
            Stage::Closed => "closed",
        };
        record.set(Field::State, state);
        record.set(Field::Flow, flow_name(&report.tracked));
        record.set_ends(&report.tracked);
        record.set_decision(flow, &report.counted, facts);
        record.set_counters(&report.counted);
        record.set_new(report.is_since_known.then_some(&report.since_last));
        record.set_time(Field::Started, clock, flow.started_ns);
        if let Some(ending) = report.ending {
            record.set_time(Field::Ended, clock, ending.time_ns);
            record.set(
                Field::End,
                if ending.inferred { "inferred" } else { "seen" },
            );
        }
        record.set_owner(owner, facts, clock);
        record.set_destination(facts.country, facts);
        record
    }

    /// The record of many flows. `facts` are those of its sample.
    #[must_use]
    pub fn rollup(rollup: &Rollup, facts: &FlowFacts, clock: &BootClock) -> Self {
        let Tracked { owner, flow } = &rollup.sample;
        let country = rollup.key.group.and_then(|group| group.country);
        let time_us = clock.unix_us(rollup.ended_ns);
        let message = rollup_message(rollup, country, facts);
        let mut record = begin(rollup.kind, &flow.decision, time_us, message);
        record.set(Field::State, "rollup");
        record.set(Field::Flows, rollup.closed);
        if rollup.open > 0 {
            record.set(Field::FlowsOpen, rollup.open);
            record.set(Field::BytesOpen, rollup.open_counted.bytes_out);
        }
        record.set_decision(flow, &rollup_sum(rollup), facts);
        record.set_counters(&rollup.counted);
        record.set_new(rollup.new.as_ref());
        record.set_time(Field::Started, clock, rollup.began_ns);
        record.set_time(Field::Ended, clock, rollup.ended_ns);
        if rollup.key.group.is_some() {
            record.set_service(&rollup.sample);
            record.set_owner(owner, facts, clock);
            record.set(Field::Attribution, words::attribution(owner.quality));
            record.set_known(Field::DstCountry, country.map(|country| country.as_str()));
        }
        record
    }

    fn set_time(&mut self, field: Field, clock: &BootClock, since_boot_ns: u64) {
        self.set(field, crate::clock::rfc3339(clock.unix_us(since_boot_ns)));
    }

    /// Everything that a rollup's flows have in common, too.
    fn set_service(&mut self, tracked: &Tracked) {
        let flow = &tracked.flow;
        self.set_known(Field::Direction, words::direction(flow.direction));
        self.set(Field::Protocol, words::protocol_of(&flow.peer));
        self.set_known(
            Field::SrcPort,
            Some(flow.local_port).filter(|port| *port != 0),
        );
        let has_port = flow.peer.port != 0 && flow.peer.protocol != NO_IP;
        self.set_known(Field::DstPort, has_port.then_some(flow.peer.port));
    }

    fn set_ends(&mut self, tracked: &Tracked) {
        self.set_service(tracked);
        let flow = &tracked.flow;
        if flow.peer.protocol == NO_IP {
            return;
        }
        let far = ip_address(&flow.peer.address);
        self.set(Field::DstAddr, far.to_string());
        if !flow.named.is_unspecified() {
            self.set(Field::DstNamed, ip_address(&flow.named).to_string());
        }
        if !flow.local.is_unspecified() {
            let near = ip_address(&flow.local);
            self.set(Field::SrcAddr, near.to_string());
            let id = community_id(
                flow.peer.protocol,
                (near, flow.local_port),
                (far, flow.peer.port),
            );
            self.set_known(Field::CommunityId, id);
        }
    }

    fn set_destination(&mut self, country: Option<Country>, facts: &FlowFacts) {
        self.set_known(Field::DstCountry, country.map(|country| country.as_str()));
        self.set_known(Field::DstAsn, facts.asn);
        self.set_known(Field::DstName, facts.dst_name.clone());
        self.set_known(Field::NameSource, facts.name_source.clone());
    }

    fn set_decision(&mut self, flow: &Flow, counted: &Counters, facts: &FlowFacts) {
        let decision = &flow.decision;
        // The mode and the policy are those that judged, not those of today.
        if decision.verdict != verdict::NONE {
            self.set(Field::Mode, words::mode(decision));
        }
        self.set_known(Field::Policy, facts.policy.clone());
        self.set_known(Field::Verdict, words::verdict(decision.verdict));
        self.set_known(Field::Rule, facts.rule.clone());
        self.set(
            Field::Outcome,
            words::outcome(flow.state, decision, counted),
        );
    }

    fn set_new(&mut self, new: Option<&Counters>) {
        self.set_known(Field::BytesNew, new.map(|new| new.bytes_out));
        self.set_known(Field::PacketsNew, new.map(|new| new.packets_out));
    }

    fn set_counters(&mut self, counted: &Counters) {
        self.set(Field::BytesOut, counted.bytes_out);
        self.set(Field::PacketsOut, counted.packets_out);
        self.set(Field::BytesIn, counted.bytes_in);
        self.set(Field::PacketsIn, counted.packets_in);
        if counted.blocked_packets > 0 {
            self.set(Field::BlockedBytes, counted.blocked_bytes);
            self.set(Field::BlockedPackets, counted.blocked_packets);
        }
        if counted.refused > 0 {
            self.set(Field::Refused, counted.refused);
        }
    }

    pub(super) fn set_owner(&mut self, owner: &Owner, facts: &FlowFacts, clock: &BootClock) {
        let somebody = |id: u32| Some(id).filter(|id| *id != NOBODY_LOGGED_IN);
        if owner.pid != 0 {
            self.set(Field::Pid, owner.pid);
            if owner.start_ns != 0 {
                self.set_time(Field::StartTime, clock, owner.start_ns);
            }
            self.set(Field::Comm, comm(owner));
            self.set_known(Field::Ppid, Some(owner.ppid).filter(|pid| *pid != 0));
            self.set_known(Field::Loginuid, somebody(owner.loginuid));
            let session = somebody(owner.session).filter(|session| *session != 0);
            self.set_known(Field::Session, session);
            self.set_session(facts.session.as_ref());
        }
        self.set_known(Field::Exe, facts.exe.clone());
        self.set_known(Field::ExeNote, facts.exe_note);
        self.set_known(Field::ExeSha256, facts.exe_sha256.clone());
        // Without a process the uid is that of the socket, which the kernel may
        // have opened for anybody.
        if quality::names_a_process(owner.quality) {
            self.set_known(Field::Uid, somebody(owner.uid));
            self.set_known(Field::Gid, somebody(owner.gid));
        }
        self.set_known(Field::User, facts.user.clone());
        self.set_known(Field::Login, facts.login.clone());
        self.set_known(Field::Unit, facts.unit.clone());
        self.set_known(Field::UserUnit, facts.user_unit.clone());
        self.set_known(Field::Container, facts.container.clone());
        self.set_known(Field::Cgroup, facts.cgroup.clone());
        self.set_known(Field::ParentExe, facts.parent_exe.clone());
        self.set(Field::Attribution, words::attribution(owner.quality));
    }
}

fn begin(kind: ReportKind, decision: &Decision, time_us: u64, message: String) -> Record {
    let (kind, priority) = match kind {
        ReportKind::Flow => (Kind::Flow, Priority::Info),
        ReportKind::Violation if decision.verdict == verdict::DENIED => {
            (Kind::Violation, Priority::Error)
        }
        ReportKind::Violation => (Kind::Violation, Priority::Warning),
    };
    Record::new(kind, priority, time_us, message)
}

/// Names a flow within the boot: socket cookie, start, and a mark of the peer,
/// since one socket may begin flows to two peers at the same moment.
fn flow_name(tracked: &Tracked) -> String {
    let flow = &tracked.flow;
    let Peer {
        address,
        port,
        protocol,
        ..
    } = flow.peer;
    let mut hash = Sha1::new();
    hash.update(address.0);
    hash.update(port.to_be_bytes());
    hash.update([protocol]);
    let mark = hash.finalize();
    format!(
        "{:x}-{:x}-{:02x}{:02x}",
        flow.cookie, flow.started_ns, mark[0], mark[1]
    )
}

fn comm(owner: &Owner) -> String {
    let end = owner
        .comm
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(owner.comm.len());
    String::from_utf8_lossy(&owner.comm[..end]).into_owned()
}

fn rollup_sum(rollup: &Rollup) -> Counters {
    crate::flow::plus(&rollup.counted, &rollup.open_counted)
}

/// `curl (pid 4711, nginx.service, user www-data)`.
pub(super) fn who(owner: &Owner, facts: &FlowFacts) -> String {
    match owner.quality {
        quality::KERNEL => return "the kernel".to_owned(),
        quality::FORWARDED => return "somebody whom this host forwards for".to_owned(),
        _ => {}
    }
    let name = match &facts.exe {
        Some(exe) => exe.rsplit('/').next().unwrap_or(exe).to_owned(),
        None if owner.pid != 0 => comm(owner),
        None => String::new(),
    };
    let name = if name.is_empty() {
        "unknown process"
    } else {
        name.as_str()
    };
    let mut details = Vec::new();
    if owner.pid != 0 {
        details.push(format!("pid {}", owner.pid));
    }
    if let Some(container) = &facts.container {
        details.push(format!("container {}", short(container)));
    }
    if let Some(unit) = facts.user_unit.as_ref().or(facts.unit.as_ref()) {
        details.push(unit.to_string());
    }
    match &facts.user {
        Some(user) => details.push(format!("user {user}")),
        None if quality::names_a_process(owner.quality) && owner.uid != u32::MAX => {
            details.push(format!("uid {}", owner.uid));
        }
        None => {}
    }
    match (&facts.login, &facts.user) {
        (Some(login), user) if user.as_ref() != Some(login) => {
            details.push(format!("logged in as {login}"));
        }
        _ => {}
    }
    details.extend(facts.session.as_ref().map(SessionFacts::words));
    let details = details.join(", ");
    let text = if details.is_empty() {
        name.to_owned()
    } else {
        format!("{name} ({details})")
    };
    words::clean(&text).into_owned()
}

/// Ids of containers are 64 digits long, and the first 12 are what their tools show.
fn short(container: &str) -> &str {
    let is_id = container.len() == 64 && container.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &container[..12] } else { container }
}

/// `denied by rule "never there", would be dropped`.
fn judgement(flow: &Flow, counted: &Counters, facts: &FlowFacts) -> String {
    let decision = &flow.decision;
    let rule = facts.rule.as_ref().map(|rule| words::clean(rule));
    let named = |text: &str| match &rule {
        Some(rule) => format!("{text} (rule \"{rule}\")"),
        None => text.to_owned(),
    };
    let judged = match (decision.verdict, &rule) {
        (verdict::LOCAL, _) => "local".to_owned(),
        (verdict::GATEWAY, _) => named("through an approved gateway"),
        (verdict::APPROVED, Some(rule)) => format!("approved by rule \"{rule}\""),
        (verdict::EXCEPTION, _) => named("approved by an exception"),
        (verdict::OVER_BUDGET, _) => named("over budget"),
        (verdict::DENIED, Some(rule)) => format!("denied by rule \"{rule}\""),
        (verdict::UNDETERMINED, _) => "undetermined, since the country is not known".to_owned(),
        (other, _) => words::verdict(other).unwrap_or("not judged yet").to_owned(),
    };
    let outcome = match words::outcome(flow.state, decision, counted) {
        "cut" => ", connection cut",
        "would-drop" => ", would be dropped",
        "dropped" => ", dropped",
        "refused" => ", refused",
        _ if verdict::is_approved(decision.verdict) || decision.verdict == verdict::NONE => "",
        _ => ", passed",
    };
    format!("{judged}{outcome}")
}

fn flow_message(report: &FlowReport, facts: &FlowFacts) -> String {
    let Tracked { owner, flow } = &report.tracked;
    let peer = words::destination(&flow.peer);
    let country = facts
        .country
        .map_or(String::new(), |country| format!(" {country}"));
    let way = if direction::is_answer(flow.direction) {
        format!("answers {peer}{country} on port {}", flow.local_port)
    } else {
        format!("→ {peer}{country}")
    };
    let sender = match owner.quality {
        quality::FORWARDED => format!("{}, forwarded,", ip_address(&flow.local)),
        _ => who(owner, facts),
    };
    let mut message = format!(
        "{sender} {way}: {}",
        judgement(flow, &report.counted, facts)
    );
    let counted = &report.counted;
    if counted.refused > 1 {
        message += &format!("; {}", words::count(counted.refused, "call"));
    }
    if counted.blocked_packets > 0 {
        let packets = words::count(counted.blocked_packets, "packet");
        message += &format!(
            "; {packets} dropped ({})",
            words::bytes(counted.blocked_bytes)
        );
    }
    match report.ending {
        Some(ending) if counted.packets_out > 0 || counted.packets_in > 0 => {
            let lasted_ns = ending.time_ns.saturating_sub(flow.started_ns);
            message += &format!(
                "; over after {}, {} out, {} in{}",
                words::duration(lasted_ns),
                words::bytes(counted.bytes_out),
                words::bytes(counted.bytes_in),
                if ending.inferred {
                    ", end not seen"
                } else {
                    ""
                }
            );
        }
        None if counted.bytes_out > 0 => {
            message += &format!("; {} so far", words::bytes(counted.bytes_out));
        }
        _ => {}
    }
    if owner.quality == quality::INFERRED {
        message += " (process inferred)";
    }
    message
}

fn rollup_message(rollup: &Rollup, country: Option<Country>, facts: &FlowFacts) -> String {
    let Tracked { owner, flow } = &rollup.sample;
    let (who, to) = match &rollup.key.group {
        None => (
            "several processes".to_owned(),
            "several destinations".to_owned(),
        ),
        Some(group) => {
            let place = country.map_or("unknown country", |country| country.as_str());
            let protocol = words::protocol(group.protocol);
            let service = match (group.protocol, group.port) {
                (NO_IP, kind) => words::ethertype(kind),
                (_, 0) => protocol,
                (_, port) => format!("{port}/{protocol}"),
            };
            (who(owner, facts), format!("{place} {service}"))
        }
    };
    let arrow = if direction::is_answer(flow.direction) {
        "answers"
    } else {
        "→"
    };
    let judgement = judgement(flow, &rollup_sum(rollup), facts);
    let counted = &rollup.counted;
    let mut message = format!(
        "{who} {arrow} {to}: {judgement}; {} over in {}, {} out",
        words::count(rollup.closed, "flow"),
        words::duration(rollup.ended_ns.saturating_sub(rollup.began_ns)),
        words::bytes(counted.bytes_out),
    );
    if counted.refused > 0 {
        message += &format!("; {} refused", words::count(counted.refused, "call"));
    }
    if counted.blocked_packets > 0 {
        let packets = words::count(counted.blocked_packets, "packet");
        message += &format!(
            "; {packets} dropped ({})",
            words::bytes(counted.blocked_bytes)
        );
    }
    if rollup.open > 0 {
        let open = words::bytes(rollup.open_counted.bytes_out);
        message += &format!(
            "; {} open, {open} so far",
            words::count(rollup.open, "flow")
        );
    }
    message
}

#[cfg(test)]
#[path = "flow_record_tests.rs"]
mod tests;
