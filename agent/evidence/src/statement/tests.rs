//! Statements about made-up days of hosts.

use super::*;
use crate::time::rfc3339;

const S: u64 = 1_000_000;
/// The period begins then.
const BEGIN_US: u64 = 1_790_000_000 * S;

fn period(seconds: u64) -> Period {
    Period {
        since_us: BEGIN_US,
        until_us: BEGIN_US + seconds * S,
    }
}

/// Records of a host, each at a second of the period.
struct Day {
    statement: Statement,
    seq: u64,
    boot: &'static str,
}

impl Day {
    fn new(seconds: u64) -> Self {
        Self {
            statement: Statement::new(period(seconds)),
            seq: 0,
            boot: "b1",
        }
    }

    fn add(&mut self, second: i64, event: &str, facts: serde_json::Value) {
        self.seq += 1;
        let mut line = serde_json::json!({
            "event": event,
            "seq": self.seq,
            "time": rfc3339(BEGIN_US.wrapping_add_signed(second * S as i64)),
            "boot_id": self.boot,
            "machine_id": "m",
            "policy": "f00d",
            "mode": "report",
        });
        line.as_object_mut()
            .unwrap()
            .extend(facts.as_object().unwrap().clone());
        self.again(&line);
    }

    fn again(&mut self, line: &serde_json::Value) {
        self.statement
            .add(&Entry::of_json(line.as_object().unwrap()).unwrap());
    }

    /// Heartbeats, one a minute.
    fn beats(&mut self, from: i64, to: i64, approved: u64) {
        for second in (from..=to).step_by(60) {
            let sums = serde_json::json!({"interval_s": 60, "bytes_approved": approved});
            self.add(second, "heartbeat", sums);
        }
    }

    fn gaps(self) -> (HostStatement, Vec<(u64, u64, Cause)>) {
        let host = self.statement.finish();
        let after = |time_us: u64| (time_us - BEGIN_US) / S;
        let gaps = host
            .gaps
            .iter()
            .map(|(gap, cause)| (after(gap.since_us), after(gap.until_us), *cause))
            .collect();
        (host, gaps)
    }
}

#[test]
fn a_host_that_reports_all_the_time_has_no_gap() {
    let mut day = Day::new(600);
    day.beats(-60, 600, 0);
    let (host, gaps) = day.gaps();
    assert_eq!(gaps, []);
    assert_eq!(host.reported_us, 600 * S);
    assert!(host.is_clean());
}

/// Also in a period in which nobody says so again.
#[test]
fn a_subject_that_was_not_watched_before_the_period_is_not_watched_in_it() {
    let told = |subject: &str, state: &str| serde_json::json!({"subject": subject, "state": state});
    let host = |told_before: &[(i64, &str, &str)]| {
        let mut day = Day::new(600);
        for (second, subject, state) in told_before {
            day.add(*second, "coverage", told(subject, state));
        }
        day.beats(-60, 600, 0);
        let host = day.statement.finish();
        (Vec::from_iter(host.partly), Vec::from_iter(host.uncovered))
    };
    let (hook, uplink) = ("hook x", "uplink eth1");
    let one = |subject: &str| vec![subject.to_owned()];
    let told_at_start = (-600, "this host", "covered");
    assert_eq!(
        host(&[
            (-600, hook, "partly"),
            told_at_start,
            (-500, uplink, "uncovered")
        ]),
        (one(hook), one(uplink))
    );
    assert_eq!(
        host(&[(-500, uplink, "uncovered"), (-400, uplink, "covered")]),
        (vec![], vec![])
    );
    // Another agent has begun since, and it lacks nothing.
    assert_eq!(
        host(&[
            (-900, hook, "partly"),
            (-800, uplink, "uncovered"),
            told_at_start
        ]),
        (vec![], vec![])
    );
}

#[test]
fn a_gap_has_its_cause() {
    for (boot, event, facts, cause) in [
        ("b1", "", serde_json::json!({}), Cause::Away),
        ("b2", "", serde_json::json!({}), Cause::Boot),
        (
            "b1",
            "coverage",
            serde_json::json!({"subject": "this host", "state": "uncovered",
                "reason": "somebody ran `trefoil detach`"}),
            Cause::Detached,
        ),
    ] {
        let mut day = Day::new(1200);
        day.beats(-30, 270, 0);
        if !event.is_empty() {
            day.add(280, event, facts);
        }
        day.boot = boot;
        day.beats(690, 1190, 0);
        let (host, gaps) = day.gaps();
        assert_eq!(gaps, [(270, 690, cause)]);
        assert_eq!(host.reported_us, (1200 - 420) * S);
        assert!(!host.is_clean());
    }
}

/// Somebody stops the agent, detaches, sends, and starts another before a heartbeat is late.
#[test]
fn programs_that_are_loaded_anew_in_time_are_a_gap_too() {
    let mut day = Day::new(600);
    day.beats(0, 240, 0);
    let covered = serde_json::json!({"subject": "this host", "state": "covered"});
    // At the same moment as a heartbeat, too.
    day.add(300, "coverage", covered);
    day.beats(300, 600, 0);
    let (host, gaps) = day.gaps();
    assert_eq!(gaps, [(240, 300, Cause::LoadedAnew)]);
    assert!(!host.is_clean());
}

#[test]
fn what_the_next_agent_tells_is_told_later() {
    let mut day = Day::new(1200);
    day.beats(-30, 270, 0);
    let reason = "taken over without a gap; the programs went on counting and judging";
    let taken_over =
        serde_json::json!({"subject": "this host", "state": "covered", "reason": reason});
    day.add(680, "coverage", taken_over);
    day.beats(690, 1190, 0);
    let (host, gaps) = day.gaps();
    assert_eq!(gaps, []);
    assert_eq!((host.reported_us, host.told_later_us), (780 * S, 420 * S));
    assert!(host.is_clean());
}

#[test]
fn edges_without_records_are_gaps() {
    let mut day = Day::new(1200);
    day.beats(100, 400, 0);
    let (_, gaps) = day.gaps();
    assert_eq!(
        gaps,
        [(0, 100, Cause::NotBegun), (400, 1200, Cause::Silent)]
    );
    let (host, gaps) = Day::new(60).gaps();
    assert_eq!(gaps, [(0, 60, Cause::NotBegun)]);
    assert_eq!(host.reported_us, 0);
}

#[test]
fn bytes_of_the_period_are_added_up_once() {
    let mut day = Day::new(600);
    day.beats(0, 240, 100);
    day.beats(300, 600, 1100);
    let flow = |verdict: &str, new: u64| serde_json::json!({"verdict": verdict, "bytes_new": new, "bytes_out": 9999, "rule": "r"});
    day.add(-1, "flow", flow("approved", 7));
    day.add(0, "flow", flow("approved", 1000));
    let twice = day.seq;
    day.add(599, "flow", flow("exception", 20));
    day.add(600, "flow", flow("approved", 7));
    day.add(
        10,
        "violation",
        serde_json::json!({"verdict": "denied", "outcome": "refused", "bytes_new": 0}),
    );
    let again = serde_json::json!({
        "event": "flow", "seq": twice, "time": rfc3339(BEGIN_US), "boot_id": "b1",
        "machine_id": "m", "verdict": "approved", "bytes_new": 1000,
    });
    day.again(&again);
    let (host, _) = day.gaps();
    let sums = |list: &[(&str, u64)]| -> BTreeMap<String, u64> {
        list.iter()
            .map(|(name, sum)| ((*name).to_owned(), *sum))
            .collect()
    };
    assert_eq!(
        host.bytes,
        sums(&[("approved", 1000), ("denied", 0), ("exception", 20)])
    );
    assert_eq!(host.exceptions, sums(&[("r", 20)]));
    assert_eq!(host.violations, sums(&[("refused", 1)]));
    assert_eq!(host.counted_bytes, sums(&[("approved", 1000)]));
    assert!(host.is_clean(), "{host:?}");
}

#[test]
fn losses_and_what_nobody_approved_are_found() {
    let residual = |event: &str, facts: serde_json::Value| {
        let mut day = Day::new(600);
        day.beats(0, 600, 0);
        day.add(5, event, facts);
        let (host, _) = day.gaps();
        assert!(!host.is_clean(), "{host:?}");
        host.residual_bytes()
    };
    let loss = serde_json::json!({"verdict": "approved", "bytes_out": 5, "subject": "x"});
    assert_eq!(residual("loss", loss), 0);
    let flow = serde_json::json!({"verdict": "unapproved", "bytes_new": 30});
    assert_eq!(residual("flow", flow), 30);
    let loss = serde_json::json!({"subject": "ended-full", "count": 2});
    assert_eq!(residual("loss", loss), 0);
    let uncovered = serde_json::json!({"subject": "uplink eth0", "state": "uncovered"});
    assert_eq!(residual("coverage", uncovered), 0);
    let tamper = serde_json::json!({"subject": "hook egress"});
    assert_eq!(residual("tamper", tamper), 0);
}

#[test]
fn the_longest_way_to_a_checkpoint_is_found() {
    let mut day = Day::new(600);
    for (second, event) in [
        (0, "flow"),
        (8, "flow"),
        (10, "checkpoint"),
        (11, "flow"),
        (31, "checkpoint"),
        (40, "flow"),
    ] {
        day.add(second, event, serde_json::json!({}));
    }
    let (host, _) = day.gaps();
    assert_eq!(host.longest_unanchored_us, 20 * S);
}
