//! Tests of the flow table: kernel states and a clock go in, reports come out.

use std::collections::BTreeSet;

use proptest::prelude::*;
use trefoil_ebpf::abi::{
    Address, Counters, DECISION_ENFORCED, Decision, Event, FLOW_EMBRYONIC, FLOW_ENDED, Flow,
    NO_RULE, Owner, Peer, Tracked, direction, quality, reason, verdict,
};

use super::*;
use crate::geo::Country;

const SECOND_NS: u64 = 1_000_000_000;
const START_NS: u64 = 1_000 * SECOND_NS;
const NO_STATES: [Tracked; 0] = [];

fn country(address: IpAddr) -> Option<Country> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    Country::parse(if address.octets()[3] % 2 == 0 {
        "IE"
    } else {
        "CN"
    })
}

fn table(settings: FlowSettings) -> FlowTable {
    FlowTable::new(settings, country)
}

fn settings() -> FlowSettings {
    FlowSettings {
        flows_rate: 1_000_000,
        violations_rate: 1_000_000,
        ..FlowSettings::default()
    }
}

/// The state of a flow after some packets of 100 bytes.
fn state(cookie: u64, verdict: u8, packets_out: u64) -> Tracked {
    Tracked {
        owner: Owner {
            pid: 4711,
            exe_id: 7,
            cgroup_id: 8,
            uid: 33,
            quality: quality::DIRECT,
            ..Owner::default()
        },
        flow: Flow {
            cookie,
            started_ns: START_NS + cookie,
            peer: Peer {
                address: Address::v4(0xcb00_7100 | cookie as u32 & 0xff),
                port: 443,
                protocol: 6,
                ..Peer::default()
            },
            direction: direction::OUTBOUND,
            decision: Decision {
                generation: 1,
                rule: NO_RULE,
                verdict,
                flags: 0,
            },
            counters: Counters {
                bytes_out: 100 * packets_out,
                packets_out,
                ..Counters::default()
            },
            ..Flow::default()
        },
    }
}

fn event(reason: u32, time_ns: u64, tracked: Tracked) -> Event {
    Event {
        time_ns,
        reason,
        pad: 0,
        tracked,
    }
}

fn observe(table: &mut FlowTable, reason: u32, time_ns: u64, tracked: Tracked) -> Vec<Report> {
    let mut out = Vec::new();
    table.observe(&event(reason, time_ns, tracked), &mut out);
    out
}

fn sweep(table: &mut FlowTable, began_ns: u64, states: &[Tracked]) -> Vec<Report> {
    let mut out = Vec::new();
    table.sweep(
        &Sweep {
            began_ns,
            complete: true,
            room: usize::MAX,
        },
        states,
        &mut out,
    );
    out
}

/// Kind, stage and bytes out of reports of single flows.
fn singles(reports: &[Report]) -> Vec<(ReportKind, Stage, u64)> {
    reports
        .iter()
        .filter_map(|report| match report {
            Report::Flow(report) => Some((report.kind, report.stage, report.counted.bytes_out)),
            Report::Rollup(_) => None,
        })
        .collect()
}

fn rollups(reports: Vec<Report>) -> Vec<Rollup> {
    reports
        .into_iter()
        .filter_map(|report| match report {
            Report::Rollup(rollup) => Some(rollup),
            Report::Flow(_) => None,
        })
        .collect()
}

#[test]
fn a_flow_is_reported_when_it_opens_and_when_it_is_over() {
    let mut table = table(settings());
    let opened = observe(
        &mut table,
        reason::OPENED,
        START_NS + 1,
        state(1, verdict::APPROVED, 1),
    );
    assert_eq!(singles(&opened), [(ReportKind::Flow, Stage::Opened, 100)]);
    let again = observe(
        &mut table,
        reason::OPENED,
        START_NS + 1,
        state(1, verdict::APPROVED, 1),
    );
    assert_eq!(again, []);
    let closed = observe(
        &mut table,
        reason::CLOSED,
        START_NS + 9,
        state(1, verdict::APPROVED, 12),
    );
    assert_eq!(singles(&closed), [(ReportKind::Flow, Stage::Closed, 1_200)]);
    let Report::Flow(report) = &closed[0] else {
        panic!()
    };
    assert_eq!(report.since_last.bytes_out, 1_100);
    assert_eq!(
        report.ending,
        Some(Ending {
            time_ns: START_NS + 9,
            inferred: false
        })
    );
    for late in [reason::OPENED, reason::OWNER, reason::CLOSED] {
        let reports = observe(
            &mut table,
            late,
            START_NS + 2,
            state(1, verdict::APPROVED, 12),
        );
        assert_eq!(reports, [], "a state that comes late reopens nothing");
    }
    assert_eq!(
        sweep(&mut table, START_NS + 8, &[state(1, verdict::APPROVED, 10)]),
        []
    );
    assert_eq!(table.stats().open, 0);
}

#[test]
fn what_a_flow_has_sent_is_counted_from_its_base() {
    let mut table = table(settings());
    let mut tracked = state(1, verdict::APPROVED, 50);
    tracked.flow.base = Counters {
        bytes_out: 4_000,
        packets_out: 40,
        ..Counters::default()
    };
    let closed = observe(&mut table, reason::CLOSED, START_NS, tracked);
    assert_eq!(singles(&closed), [(ReportKind::Flow, Stage::Closed, 1_000)]);
}

#[test]
fn an_open_flow_is_updated_once_an_interval_and_only_if_it_changed() {
    let mut table = table(settings());
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::APPROVED, 1),
    );
    let mut updates = 0;
    for second in 1..=300 {
        let packets = if second < 120 { second } else { 120 };
        let now_ns = START_NS + second * SECOND_NS;
        updates += sweep(&mut table, now_ns, &[state(1, verdict::APPROVED, packets)]).len();
    }
    assert_eq!(updates, 2, "at 60 s and at 120 s");
}

#[test]
fn a_violation_is_reported_once_and_its_end_has_the_exact_bytes() {
    let mut table = table(settings());
    let mut reports = observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::DENIED, 1),
    );
    let now_ns = START_NS + SECOND_NS;
    reports.extend(sweep(&mut table, now_ns, &[state(1, verdict::DENIED, 2)]));
    reports.extend(observe(
        &mut table,
        reason::CLOSED,
        now_ns,
        state(1, verdict::DENIED, 3),
    ));
    assert_eq!(
        singles(&reports),
        [
            (ReportKind::Violation, Stage::Opened, 100),
            (ReportKind::Flow, Stage::Closed, 300),
        ]
    );
}

#[test]
fn a_violation_whose_opening_was_lost_is_reported_at_its_end() {
    let mut table = table(settings());
    let reports = observe(
        &mut table,
        reason::CLOSED,
        START_NS,
        state(1, verdict::UNAPPROVED, 3),
    );
    assert_eq!(
        singles(&reports),
        [
            (ReportKind::Violation, Stage::Opened, 300),
            (ReportKind::Flow, Stage::Closed, 300),
        ]
    );
}

fn refusal(cookie: u64) -> Tracked {
    let mut tracked = state(cookie, verdict::UNAPPROVED, 0);
    tracked.flow.state = FLOW_ENDED;
    tracked.flow.decision.flags = DECISION_ENFORCED;
    tracked.flow.counters.refused = 1;
    tracked
}

#[test]
fn a_refusal_is_one_violation_and_nothing_else() {
    let mut table = table(settings());
    let reports = observe(&mut table, reason::REFUSED, START_NS, refusal(1));
    assert_eq!(
        singles(&reports),
        [(ReportKind::Violation, Stage::Closed, 0)]
    );
    assert_eq!(
        observe(&mut table, reason::CLOSED, START_NS, refusal(1)),
        [],
        "came twice"
    );
    assert_eq!(table.stats().open, 0);
    let next = observe(&mut table, reason::REFUSED, START_NS, refusal(2));
    assert_eq!(singles(&next), [(ReportKind::Violation, Stage::Closed, 0)]);
}

#[test]
fn refusals_beyond_the_rate_are_counted_exactly() {
    let mut table = table(FlowSettings {
        violations_rate: 10,
        ..settings()
    });
    let mut reports = Vec::new();
    for cookie in 0..1_000 {
        reports.extend(observe(
            &mut table,
            reason::REFUSED,
            START_NS,
            refusal(cookie),
        ));
    }
    assert_eq!(reports.len(), 10);
    table.flush(START_NS + SECOND_NS, &mut reports);
    let rolled: u64 = rollups(reports)
        .iter()
        .map(|rollup| rollup.counted.refused)
        .sum();
    assert_eq!(rolled, 990);
}

#[test]
fn local_flows_are_nobodys_business() {
    let mut silent = table(settings());
    assert_eq!(
        observe(
            &mut silent,
            reason::CLOSED,
            START_NS,
            state(1, verdict::LOCAL, 9)
        ),
        []
    );
    let mut talkative = table(FlowSettings {
        local: true,
        ..settings()
    });
    let reports = observe(
        &mut talkative,
        reason::CLOSED,
        START_NS,
        state(1, verdict::LOCAL, 9),
    );
    assert_eq!(singles(&reports), [(ReportKind::Flow, Stage::Closed, 900)]);
}

#[test]
fn a_socket_that_was_only_connected_is_no_flow() {
    let mut table = table(settings());
    let mut tracked = state(1, verdict::APPROVED, 0);
    tracked.flow.counters.bytes_in = 80;
    tracked.flow.counters.packets_in = 2;
    assert_eq!(sweep(&mut table, START_NS, &[tracked]), []);
    assert_eq!(table.stats().opened, 0);
}

#[test]
fn answers_of_a_listener_are_no_flow_until_the_kernel_gives_them_up() {
    let mut table = table(settings());
    let mut tracked = state(1, verdict::UNAPPROVED, 2);
    tracked.flow.state = FLOW_EMBRYONIC;
    assert_eq!(sweep(&mut table, START_NS, &[tracked]), []);
    let reports = observe(&mut table, reason::CLOSED, START_NS, tracked);
    assert_eq!(singles(&reports).len(), 2);
}

#[test]
fn an_answer_of_a_listener_that_is_blocked_is_told_at_once() {
    let mut table = table(settings());
    let mut tracked = state(1, verdict::UNAPPROVED, 0);
    tracked.flow.state = FLOW_EMBRYONIC;
    tracked.flow.counters.blocked_packets = 1;
    tracked.flow.counters.blocked_bytes = 60;
    let reports = observe(&mut table, reason::OPENED, START_NS, tracked);
    assert_eq!(singles(&reports).len(), 1);
}

#[test]
fn an_owner_that_becomes_known_is_reported_at_once() {
    let mut table = table(settings());
    let mut nobody = state(1, verdict::APPROVED, 1);
    nobody.owner = Owner {
        uid: 33,
        ..Owner::default()
    };
    observe(&mut table, reason::OPENED, START_NS, nobody);
    let known = state(1, verdict::APPROVED, 1);
    let reports = observe(&mut table, reason::OWNER, START_NS + 5, known);
    assert_eq!(singles(&reports), [(ReportKind::Flow, Stage::Update, 100)]);
    let Report::Flow(report) = &reports[0] else {
        panic!()
    };
    assert_eq!(report.tracked.owner.pid, 4711);
    // A state from before it was known changes nothing.
    let reports = observe(&mut table, reason::CLOSED, START_NS + 6, nobody);
    let Report::Flow(report) = &reports[0] else {
        panic!()
    };
    assert_eq!(report.tracked.owner.pid, 4711);
}

#[test]
fn a_flow_that_sweeps_no_longer_show_is_over_and_its_end_is_inferred() {
    let mut table = table(settings());
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::APPROVED, 1),
    );
    sweep(
        &mut table,
        START_NS + SECOND_NS,
        &[state(1, verdict::APPROVED, 7)],
    );
    let mut reports = Vec::new();
    for second in 2..=5 {
        reports.extend(sweep(&mut table, START_NS + second * SECOND_NS, &[]));
    }
    assert_eq!(reports, [], "not yet: the event may be on its way");
    let mut out = Vec::new();
    table.sweep(
        &Sweep {
            began_ns: START_NS + 6 * SECOND_NS,
            complete: false,
            room: usize::MAX,
        },
        NO_STATES,
        &mut out,
    );
    assert_eq!(
        out,
        [],
        "a sweep that did not reach everything misses nothing"
    );
    let reports = sweep(&mut table, START_NS + 7 * SECOND_NS, &[]);
    assert_eq!(singles(&reports), [(ReportKind::Flow, Stage::Closed, 700)]);
    let Report::Flow(report) = &reports[0] else {
        panic!()
    };
    assert_eq!(
        report.ending,
        Some(Ending {
            time_ns: START_NS + SECOND_NS,
            inferred: true
        })
    );

    // It was not over after all: the rest is in a rollup, with no flow counted.
    let time_ns = START_NS + 8 * SECOND_NS;
    assert_eq!(
        observe(
            &mut table,
            reason::CLOSED,
            time_ns,
            state(1, verdict::APPROVED, 9)
        ),
        []
    );
    let mut out = Vec::new();
    table.flush(time_ns, &mut out);
    let rollups = rollups(out);
    assert_eq!((rollups[0].closed, rollups[0].counted.bytes_out), (0, 200));
    assert_eq!(table.stats().late, 1);
}

#[test]
fn the_sweep_after_a_socket_is_gone_has_the_last_numbers_of_its_flows() {
    let mut table = table(settings());
    let [first, second] = [1, 2].map(|packets| {
        let mut tracked = state(9, verdict::APPROVED, packets);
        tracked.flow.peer.address = Address::v4(0xcb00_7100 + packets as u32);
        tracked
    });
    sweep(&mut table, START_NS, &[first, second]);
    let gone = Tracked {
        flow: Flow {
            cookie: 9,
            ..Flow::default()
        },
        ..Tracked::default()
    };
    observe(&mut table, reason::SOCKET_GONE, START_NS + 10, gone);
    let early = sweep(&mut table, START_NS + 5, &[first, second]);
    assert_eq!(early, [], "that sweep began before");
    let mut last = first;
    last.flow.counters.packets_out = 5;
    last.flow.counters.bytes_out = 500;
    let reports = sweep(&mut table, START_NS + 20, &[last]);
    let mut singles = singles(&reports);
    singles.sort_by_key(|(_, _, bytes)| *bytes);
    assert_eq!(
        singles,
        [
            (ReportKind::Flow, Stage::Closed, 200),
            (ReportKind::Flow, Stage::Closed, 500)
        ]
    );
}

#[test]
fn the_end_that_only_a_sweep_shows_is_history_unless_the_flow_is_open() {
    let mut table = table(settings());
    let mut ended = state(1, verdict::APPROVED, 4);
    ended.flow.state = FLOW_ENDED;
    assert_eq!(sweep(&mut table, START_NS, &[ended]), []);
    let mut open = state(2, verdict::APPROVED, 4);
    observe(&mut table, reason::OPENED, START_NS, open);
    open.flow.state = FLOW_ENDED;
    let reports = sweep(&mut table, START_NS + 1, &[open]);
    assert_eq!(singles(&reports), [(ReportKind::Flow, Stage::Closed, 400)]);
}

#[test]
fn a_state_that_was_read_while_the_slot_changed_hands_is_set_aside() {
    let mut table = table(settings());
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::APPROVED, 4),
    );
    let mut torn = state(1, verdict::APPROVED, 9);
    torn.flow.base = Counters {
        bytes_out: 500,
        packets_out: 5,
        ..Counters::default()
    };
    sweep(&mut table, START_NS + 1, &[torn]);
    assert_eq!(table.stats().torn, 1);
    let reports = observe(
        &mut table,
        reason::CLOSED,
        START_NS + 2,
        state(1, verdict::APPROVED, 5),
    );
    assert_eq!(singles(&reports), [(ReportKind::Flow, Stage::Closed, 500)]);
}

#[test]
fn beyond_the_rate_flows_are_rolled_up_by_what_they_have_in_common() {
    let mut table = table(FlowSettings {
        flows_rate: 10,
        ..settings()
    });
    let mut reports = Vec::new();
    for cookie in 0..1_000 {
        let tracked = state(cookie, verdict::APPROVED, 1 + cookie % 3);
        reports.extend(observe(&mut table, reason::OPENED, START_NS, tracked));
        reports.extend(observe(&mut table, reason::CLOSED, START_NS, tracked));
    }
    assert_eq!(singles(&reports).len(), 20);
    table.flush(START_NS + SECOND_NS, &mut reports);
    let total: u64 = (0..1_000).map(|cookie| 100 * (1 + cookie % 3)).sum();
    let by_themselves: u64 = singles(&reports)
        .iter()
        .filter(|(_, stage, _)| *stage == Stage::Closed)
        .map(|(_, _, bytes)| bytes)
        .sum();
    let rollups = rollups(reports);
    let countries: Vec<_> = rollups
        .iter()
        .map(|rollup| rollup.key.group.unwrap().country.unwrap().as_str())
        .collect();
    assert_eq!(rollups.len(), 2, "one for each country: {countries:?}");
    assert_eq!(rollups.iter().map(|rollup| rollup.closed).sum::<u64>(), 990);
    let rolled: u64 = rollups.iter().map(|rollup| rollup.counted.bytes_out).sum();
    assert_eq!(by_themselves + rolled, total);
    let sample = &rollups[0].sample;
    assert_eq!(
        (sample.owner.pid, sample.owner.exe_id, sample.owner.uid),
        (0, 7, 33)
    );
    assert_eq!(
        (sample.flow.peer.port, sample.flow.peer.address),
        (443, Address::default())
    );
}

#[test]
fn accepted_flows_are_rolled_up_by_the_port_of_the_service() {
    let mut table = table(FlowSettings {
        mode: FlowMode::Rollup,
        ..settings()
    });
    for cookie in 0..10 {
        let mut tracked = state(2 * cookie, verdict::APPROVED, 1);
        tracked.flow.direction = direction::ACCEPTED;
        tracked.flow.peer.port = 40_000 + cookie as u16;
        tracked.flow.local_port = 22;
        observe(&mut table, reason::CLOSED, START_NS, tracked);
    }
    let mut out = Vec::new();
    table.flush(START_NS + SECOND_NS, &mut out);
    let rollups = rollups(out);
    assert_eq!(rollups.len(), 1);
    assert_eq!(rollups[0].sample.flow.local_port, 22);
}

#[test]
fn a_rolled_up_flow_that_stays_open_is_told_of_and_then_reported_by_itself() {
    let mut table = table(FlowSettings {
        violations_rate: 1,
        ..settings()
    });
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::DENIED, 1),
    );
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(2, verdict::DENIED, 1),
    );
    let states = [state(1, verdict::DENIED, 1), state(2, verdict::DENIED, 1)];
    let mut reports = Vec::new();
    for second in 0..70 {
        reports.extend(sweep(&mut table, START_NS + second * SECOND_NS, &states));
    }
    let single = singles(&reports);
    assert_eq!(single, [(ReportKind::Violation, Stage::Opened, 100)]);
    let rollups = rollups(reports);
    assert_eq!(rollups.len(), 1, "told once, nothing changed after that");
    assert_eq!((rollups[0].open, rollups[0].closed), (1, 0));
    let end_ns = START_NS + 80 * SECOND_NS;
    let closed = observe(
        &mut table,
        reason::CLOSED,
        end_ns,
        state(2, verdict::DENIED, 5),
    );
    assert_eq!(singles(&closed), [(ReportKind::Flow, Stage::Closed, 500)]);
}

#[test]
fn a_full_table_counts_flows_when_they_are_over() {
    let mut table = table(FlowSettings {
        max_flows: 1,
        ..settings()
    });
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::APPROVED, 1),
    );
    let reports = observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(2, verdict::APPROVED, 1),
    );
    assert_eq!(reports, []);
    let violation = observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(3, verdict::DENIED, 1),
    );
    assert_eq!(
        singles(&violation),
        [(ReportKind::Violation, Stage::Opened, 100)]
    );
    assert_eq!(table.stats().untracked, 2);
    let closed = observe(
        &mut table,
        reason::CLOSED,
        START_NS,
        state(2, verdict::APPROVED, 6),
    );
    assert_eq!(singles(&closed), [(ReportKind::Flow, Stage::Closed, 600)]);
    assert_eq!(table.stats().open, 1);
}

#[test]
fn rollups_without_room_are_merged_by_verdict() {
    let mut table = table(FlowSettings {
        mode: FlowMode::Rollup,
        max_rollups: 3,
        ..settings()
    });
    for cookie in 0..100 {
        let mut tracked = state(cookie, verdict::APPROVED, 1);
        tracked.flow.peer.port = cookie as u16;
        observe(&mut table, reason::CLOSED, START_NS, tracked);
    }
    let mut out = Vec::new();
    table.flush(START_NS + SECOND_NS, &mut out);
    let rollups = rollups(out);
    assert_eq!(rollups.len(), 4);
    assert_eq!(rollups.iter().map(|rollup| rollup.closed).sum::<u64>(), 100);
    assert_eq!(table.stats().merged, 97);
}

#[test]
fn idle_flows_can_be_asked_for() {
    let mut table = table(settings());
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(1, verdict::APPROVED, 1),
    );
    observe(
        &mut table,
        reason::OPENED,
        START_NS,
        state(2, verdict::APPROVED, 1),
    );
    let later_ns = START_NS + SECOND_NS;
    let states = [
        state(1, verdict::APPROVED, 1),
        state(2, verdict::APPROVED, 2),
    ];
    sweep(&mut table, later_ns, &states);
    let idle: Vec<_> = table.idle(later_ns).map(|key| key.cookie).collect();
    assert_eq!(idle, [1]);
}

#[test]
fn unknown_events_are_counted() {
    let mut table = table(settings());
    assert_eq!(
        observe(&mut table, 77, START_NS, state(1, verdict::DENIED, 1)),
        []
    );
    assert_eq!(table.stats().unknown_events, 1);
}

/// Events of one flow in the model, in the order of its packets.
#[derive(Clone, Debug)]
struct Life {
    verdict: u8,
    /// Cumulative packets out at each moment at which a state was taken.
    states: Vec<u64>,
    /// Which of them arrive, by event or by sweep, in which order.
    arrivals: Vec<(usize, bool)>,
    /// The last state arrives as the end.
    end_arrives: bool,
    base: u64,
}

fn life() -> impl Strategy<Value = Life> {
    let verdicts = prop_oneof![
        Just(verdict::APPROVED),
        Just(verdict::GATEWAY),
        Just(verdict::DENIED),
        Just(verdict::UNAPPROVED),
        Just(verdict::UNDETERMINED),
    ];
    let grown = prop::collection::vec(1_u64..50, 1..6).prop_map(|steps| {
        steps
            .iter()
            .scan(0, |sum, step| {
                *sum += step;
                Some(*sum)
            })
            .collect::<Vec<_>>()
    });
    (
        verdicts,
        grown,
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..8),
    )
        .prop_flat_map(|(verdict, states, picks)| {
            let arrivals = picks
                .into_iter()
                .map(|(pick, by_event)| (pick.index(states.len()), by_event))
                .collect();
            (
                Just(verdict),
                Just(states),
                Just(arrivals),
                any::<bool>(),
                0_u64..3,
            )
        })
        .prop_map(|(verdict, states, arrivals, end_arrives, base)| Life {
            verdict,
            states,
            arrivals,
            end_arrives,
            base: 10 * base,
        })
}

fn model_state(cookie: u64, life: &Life, packets: u64) -> Tracked {
    let mut tracked = state(cookie, life.verdict, packets + life.base);
    tracked.flow.base = Counters {
        bytes_out: 100 * life.base,
        packets_out: life.base,
        ..Counters::default()
    };
    tracked
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// States get lost, come twice, late and in any order; rates, tables and
    /// rollups are too small. Still every byte that was ever seen is in exactly
    /// one final record, and every flow has exactly one.
    #[test]
    fn every_byte_that_was_seen_is_in_exactly_one_final_record(
        lives in prop::collection::vec(life(), 1..20),
        order in any::<u64>(),
        flows_rate in 0_u32..8,
        violations_rate in 0_u32..8,
        mode in prop_oneof![Just(FlowMode::Each), Just(FlowMode::Rollup), Just(FlowMode::Auto)],
        max_rollups in 1_usize..4,
        pause_s in 0_u64..20,
        max_flows in prop_oneof![Just(1_usize), Just(3), Just(1_000)],
    ) {
        let mut table = table(FlowSettings {
            mode,
            flows_rate,
            violations_rate,
            max_rollups,
            max_flows,
            // As long as the whole story, so that nothing comes later than that.
            closed_ns: 3_600 * SECOND_NS,
            ..FlowSettings::default()
        });
        // Deliveries of all flows, shuffled among each other.
        let mut deliveries = Vec::new();
        for (cookie, life) in lives.iter().enumerate() {
            for &(index, by_event) in &life.arrivals {
                deliveries.push((cookie, life.states[index], by_event, false));
            }
            // A flow that finds no room is counted when its end arrives.
            if life.end_arrives || max_flows < lives.len() {
                deliveries.push((cookie, *life.states.last().unwrap(), true, true));
            }
        }
        let mut chance = order;
        let mut random = move |below: usize| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (chance >> 33) as usize % below
        };
        for index in (1..deliveries.len()).rev() {
            deliveries.swap(index, random(index + 1));
        }

        let mut out = Vec::new();
        let mut now_ns = START_NS;
        let mut seen = vec![None; lives.len()];
        for (cookie, packets, by_event, is_end) in deliveries {
            let tracked = model_state(cookie as u64, &lives[cookie], packets);
            now_ns += random(1 + pause_s as usize) as u64 * SECOND_NS / 7;
            seen[cookie] = seen[cookie].max(Some(packets));
            if by_event {
                let reason = if is_end { reason::CLOSED } else { reason::OPENED };
                table.observe(&event(reason, now_ns, tracked), &mut out);
            } else {
                // It misses all other flows, which are not over in truth.
                let complete = random(2) == 0;
                table.sweep(&Sweep { began_ns: now_ns, complete, room: usize::MAX }, [tracked], &mut out);
            }
            table.tick(now_ns, usize::MAX, &mut out);
        }
        for _ in 0..4 {
            now_ns += 3 * SECOND_NS;
            table.sweep(&Sweep { began_ns: now_ns, complete: true, room: usize::MAX }, NO_STATES, &mut out);
        }
        table.flush(now_ns, &mut out);

        prop_assert_eq!(table.stats().open, 0);
        let mut finals = vec![0; lives.len()];
        let (mut bytes, mut packets, mut rolled) = (0, 0, 0);
        let mut new = 0;
        for report in &out {
            match report {
                Report::Flow(report) => {
                    new += report.since_last.bytes_out;
                    if report.stage == Stage::Closed {
                        finals[report.tracked.flow.cookie as usize] += 1;
                        bytes += report.counted.bytes_out;
                        packets += report.counted.packets_out;
                    }
                }
                Report::Rollup(rollup) => {
                    rolled += rollup.closed;
                    new += rollup.new.expect("this is the first agent").bytes_out;
                    bytes += rollup.counted.bytes_out;
                    packets += rollup.counted.packets_out;
                }
            }
        }
        let expected: u64 = seen.iter().flatten().sum();
        prop_assert_eq!(packets, expected);
        prop_assert_eq!(bytes, 100 * expected);
        prop_assert_eq!(new, 100 * expected);
        let n_seen = seen.iter().flatten().count() as u64;
        let n_single: u64 = finals.iter().sum();
        prop_assert!(finals.iter().all(|n| *n <= 1), "{:?}", finals);
        prop_assert_eq!(n_single + rolled, n_seen);
    }

    /// A flow that is told of by itself is opened, then perhaps updated, then
    /// closed; its numbers never fall, and what came since the last record adds up.
    #[test]
    fn the_records_of_one_flow_tell_one_story(life in life(), gap_s in 1_u64..90) {
        let mut table = table(settings());
        let mut out = Vec::new();
        let mut now_ns = START_NS;
        for &(index, by_event) in &life.arrivals {
            now_ns += gap_s * SECOND_NS;
            let tracked = model_state(1, &life, life.states[index]);
            if by_event {
                table.observe(&event(reason::OPENED, now_ns, tracked), &mut out);
            } else {
                table.sweep(&Sweep { began_ns: now_ns, complete: true, room: usize::MAX }, [tracked], &mut out);
            }
        }
        table.close_all(now_ns, &mut out);
        let reports: Vec<_> = out.iter().filter_map(|report| match report {
            Report::Flow(report) => Some(report),
            Report::Rollup(_) => None,
        }).collect();
        prop_assert_eq!(reports.len(), out.len());
        if let [first, .., last] = &reports[..] {
            prop_assert_eq!(first.stage, Stage::Opened);
            prop_assert_eq!(last.stage, Stage::Closed);
            prop_assert!(reports[1..reports.len() - 1].iter().all(|r| r.stage == Stage::Update));
        }
        let mut sum = 0;
        for report in reports {
            sum += report.since_last.bytes_out;
            prop_assert_eq!(sum, report.counted.bytes_out);
        }
    }
}

#[test]
fn a_packet_without_room_is_a_flow_of_its_own_also_at_the_same_moment() {
    let mut table = table(settings());
    let packet = state(1, verdict::APPROVED, 1);
    let mut slot = packet;
    slot.flow.started_ns &= !1;
    let slot = observe(&mut table, reason::OPENED, START_NS + 1, slot);
    assert_eq!(singles(&slot), [(ReportKind::Flow, Stage::Opened, 100)]);
    let mut names = BTreeSet::new();
    for _ in 0..3 {
        let told = observe(&mut table, reason::ALONE, START_NS + 1, packet);
        assert_eq!(singles(&told), [(ReportKind::Flow, Stage::Closed, 100)]);
        let Report::Flow(report) = &told[0] else {
            panic!()
        };
        names.insert(report.id());
    }
    assert_eq!(names.len(), 3);
    let stats = table.stats();
    assert_eq!((stats.open, stats.opened, stats.closed), (1, 4, 3));
    assert_eq!(stats.late, 0);
}

#[test]
fn packets_without_room_beyond_the_rate_are_rolled_up_to_the_byte() {
    let mut table = table(FlowSettings {
        violations_rate: 5,
        ..settings()
    });
    let mut reports = Vec::new();
    for number in 0..1_000 {
        let mut packet = state(1, verdict::DENIED, 1);
        packet.flow.started_ns += 2 * number;
        table.observe(&event(reason::ALONE, START_NS, packet), &mut reports);
    }
    let of_its_own = singles(&reports)
        .iter()
        .filter(|(_, stage, _)| *stage == Stage::Closed)
        .count();
    assert_eq!(of_its_own, 5);
    table.flush(START_NS + 1, &mut reports);
    let rolled = rollups(reports);
    assert_eq!(rolled.len(), 1);
    assert_eq!((rolled[0].closed, rolled[0].open), (995, 0));
    assert_eq!(rolled[0].counted.bytes_out, 99_500);
}

/// Bytes that are new in these reports; `None` if one does not know.
fn new_bytes(reports: &[Report]) -> Option<u64> {
    let new = reports.iter().map(|report| match report {
        Report::Flow(it) => it.is_since_known.then_some(it.since_last.bytes_out),
        Report::Rollup(it) => it.new.map(|new| new.bytes_out),
    });
    new.sum()
}

/// Takes in what changed of the facts that a table keeps.
fn keep(facts: &mut std::collections::BTreeMap<String, String>, table: &mut FlowTable) {
    for (name, value) in table.changes() {
        match value {
            Some(value) => facts.insert(name, value),
            None => facts.remove(&name),
        };
    }
}

#[test]
fn what_is_new_is_new_over_restarts_in_every_mode() {
    for mode in [FlowMode::Each, FlowMode::Rollup, FlowMode::Auto] {
        let settings = FlowSettings { mode, ..settings() };
        let mut facts = std::collections::BTreeMap::new();
        let mut sum = 0;
        let mut now_ns = START_NS;
        let begin = |facts: &std::collections::BTreeMap<String, String>, now_ns| {
            let mut table = table(settings);
            for (name, value) in facts {
                assert!(table.restore(name, value), "{name} {value}");
            }
            table.begin(now_ns != START_NS, now_ns);
            table
        };
        // A flow that is open for as long as five agents live one after the other, whose last
        // words nobody has waited for.
        for packets in [3, 3, 4, 10, 17] {
            let mut table = begin(&facts, now_ns);
            now_ns += 100 * SECOND_NS;
            let flow = state(1, verdict::APPROVED, packets);
            let mut out = observe(&mut table, reason::OPENED, now_ns, flow);
            table.flush(now_ns, &mut out);
            sum += new_bytes(&out).unwrap();
            assert_eq!(sum, 100 * packets, "{mode:?}");
            keep(&mut facts, &mut table);
        }
        // Of one that has kept nothing nobody knows what it has told.
        let mut table = begin(&std::collections::BTreeMap::new(), now_ns);
        let flow = state(1, verdict::APPROVED, 20);
        let mut out = observe(&mut table, reason::OPENED, now_ns + 1, flow);
        table.flush(now_ns + 1, &mut out);
        assert_eq!(new_bytes(&out), None, "{mode:?}");
        let mut later = Vec::new();
        let flow = state(1, verdict::APPROVED, 22);
        table.observe(&event(reason::CLOSED, now_ns + 2, flow), &mut later);
        table.flush(now_ns + 2, &mut later);
        assert_eq!(new_bytes(&later), Some(200), "{mode:?}");
    }
}

/// An agent that goes on with what another has kept tells the same as that one would have.
#[test]
fn what_was_kept_of_rollups_is_told_by_the_next_agent() {
    let settings = FlowSettings {
        mode: FlowMode::Rollup,
        max_rollups: 3,
        ..settings()
    };
    let (mut first, mut out) = (table(settings), Vec::new());
    let mut facts = std::collections::BTreeMap::new();
    let mut keep = |table: &mut FlowTable| {
        keep(&mut facts, table);
        facts.clone()
    };
    first.tick(START_NS, usize::MAX, &mut out);
    for cookie in 1..=9 {
        // More groups than there is room for, and violations.
        let verdict = match cookie % 3 {
            0 => verdict::UNDETERMINED,
            _ => verdict::APPROVED,
        };
        let mut tracked = state(cookie, verdict, cookie);
        tracked.owner.exe_id = cookie % 5;
        let now_ns = START_NS + cookie;
        out.extend(observe(&mut first, reason::CLOSED, now_ns, tracked));
        keep(&mut first);
    }
    let kept = keep(&mut first);
    let mut next = table(settings);
    for (name, value) in &kept {
        assert!(next.restore(name, value), "{name} {value}");
    }
    assert!(!next.restore("flow.nonsense", "1"));
    let end_ns = START_NS + SECOND_NS;
    let (mut of_first, mut of_next) = (Vec::new(), Vec::new());
    first.flush(end_ns, &mut of_first);
    next.flush(end_ns, &mut of_next);
    assert!(of_first.len() > 2);
    assert_eq!(of_first, of_next);
    assert!(
        keep(&mut first).keys().all(|name| name == "told.all"),
        "what was told is kept no longer"
    );
}

/// An agent before has told of its end.
#[test]
fn a_state_of_a_flow_that_has_ended_begins_no_flow() {
    let mut table = table(settings());
    let mut tracked = state(1, verdict::APPROVED, 3);
    tracked.flow.state = FLOW_ENDED;
    for late in [reason::OPENED, reason::OWNER] {
        assert_eq!(observe(&mut table, late, START_NS, tracked), []);
    }
    let taken_in = state(2, verdict::APPROVED, 3);
    table.remember_over(FlowId::of(&taken_in.flow), counted(&taken_in.flow));
    assert_eq!(observe(&mut table, reason::CLOSED, START_NS, taken_in), []);
    assert_eq!(table.stats().open, 0);
}
