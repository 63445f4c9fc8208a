//! Whatever is done to records is found, at its index.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::{checkpoint::to_text, entry::salt_text, note::SigningKey};

const ORIGIN: &str = "trefoil/0123";

fn key() -> SigningKey {
    key_of(ORIGIN)
}

fn key_of(origin: &str) -> SigningKey {
    SigningKey::from_seed(origin, &[7; 32]).unwrap()
}

/// An agent that makes records of one boot, and a checkpoint of every few.
struct Log {
    /// Its instance, if the machine has more than one.
    instance: &'static str,
    lines: Vec<Map<String, Value>>,
    tree: Frontier,
    before: Frontier,
    digests: Vec<Hash>,
}

impl Log {
    fn new() -> Self {
        Self {
            instance: "",
            lines: Vec::new(),
            tree: Frontier::default(),
            before: Frontier::default(),
            digests: Vec::new(),
        }
    }

    fn push(&mut self, boot: &str, seq: u64, more: Value) {
        let mut line = json!({
            "event": "flow", "seq": seq, "boot_id": boot, "machine_id": "0123", "priority": 6,
            "salt": salt_text(&u128::to_be_bytes((u128::from(seq) + 1) << 60 | boot.len() as u128)),
            "message": format!("flow {seq}\nof a person"), "bytes_out": seq * 10,
        });
        let line = line.as_object_mut().unwrap();
        line.extend(more.as_object().unwrap().clone());
        if !self.instance.is_empty() {
            line.insert("instance".to_owned(), json!(self.instance));
        }
        let digest = Entry::of_json(line).unwrap().digest().unwrap();
        self.tree.push(leaf(&digest));
        self.digests.push(digest);
        self.lines.push(line.clone());
    }

    fn checkpoint(&mut self, boot: &str, seq: u64) {
        let origin = format!("{ORIGIN}{}", self.instance);
        let note = Checkpoint::of(&origin, &self.tree).sign(&key_of(&origin));
        let digests = std::mem::take(&mut self.digests);
        let frontier = to_text(self.before.peaks());
        self.before = self.tree.clone();
        let mut more = json!({ "event": "checkpoint", "note": note, "digests": to_text(&digests) });
        if !frontier.is_empty() {
            more["frontier"] = json!(frontier);
        }
        self.push(boot, seq, more);
    }
}

#[test]
fn two_agents_of_one_machine_have_a_log_each() {
    let mut logs = ["", "/second"].map(|instance| Log {
        instance,
        ..Log::new()
    });
    for seq in 1..=3 {
        logs.iter_mut()
            .for_each(|log| log.push("a", seq, json!({})));
    }
    logs.iter_mut().for_each(|log| log.checkpoint("a", 4));
    let keys = [ORIGIN, "trefoil/0123/second"].map(|origin| key_of(origin).public().clone());
    let verdict = |without: Option<usize>| {
        let mut verifier = Verifier::new(keys.to_vec());
        let lines = logs.iter().flat_map(|log| &log.lines).enumerate();
        for (_, line) in lines.filter(|(index, _)| Some(*index) != without) {
            verifier.add(&Entry::of_json(line).unwrap());
        }
        verifier.finish()
    };
    let whole = verdict(None);
    assert!(whole.is_clean(), "{whole:?}");
    assert_eq!(whole.logs.len(), 2);
    // A record of the second is missing in its log, and in no other.
    let less = verdict(Some(5));
    let findings: Vec<usize> = less.logs.iter().map(|log| log.findings.len()).collect();
    assert_eq!(findings, [0, 1], "{less:?}");
}

/// Two boots, with a checkpoint of every `every` records, and a last one.
fn log(n: u64, every: u64) -> Vec<Map<String, Value>> {
    let mut log = Log::new();
    for (boot, n) in [("a", n), ("bb", n / 2)] {
        let mut seq = 1;
        for number in 0..n {
            log.push(boot, seq, json!({}));
            seq += 1;
            if number % every == every - 1 {
                log.checkpoint(boot, seq);
                seq += 1;
            }
        }
        log.checkpoint(boot, seq);
    }
    log.lines
}

fn verdict(lines: &[Map<String, Value>]) -> Verdict {
    let mut verifier = Verifier::new(vec![key().public().clone()]);
    for line in lines {
        if let Some(entry) = Entry::of_json(line) {
            verifier.add(&entry);
        }
    }
    verifier.finish()
}

fn indices(verdict: &Verdict) -> Vec<u64> {
    let mut indices = Vec::new();
    for finding in verdict.logs.iter().flat_map(|log| &log.findings) {
        match finding {
            Finding::Altered { index, .. }
            | Finding::Missing { index, .. }
            | Finding::Inserted { index, .. }
            | Finding::Repeated { index }
            | Finding::OutOfOrder { index, .. } => indices.push(*index),
            Finding::Gap { first, last } => indices.extend(*first..=*last),
            _ => {}
        }
    }
    indices.sort_unstable();
    indices
}

#[test]
fn what_nobody_has_touched_is_clean() {
    let lines = log(40, 7);
    let verdict = verdict(&lines);
    assert!(verdict.is_clean(), "{verdict:#?}");
    let [log] = verdict.logs.as_slice() else {
        panic!("{verdict:#?}");
    };
    // The last checkpoint is covered by none.
    assert_eq!(
        (log.first, log.size, log.n_unanchored),
        (0, lines.len() as u64 - 1, 1)
    );
    assert_eq!(log.n_records, log.size);
}

#[test]
fn a_part_of_a_log_is_verified_by_itself() {
    let lines = log(40, 7);
    let part = |first: usize, begin| {
        let mut verifier = Verifier::new(vec![key().public().clone()]);
        verifier.begin_log_at(ORIGIN.to_owned(), begin);
        let entries = lines[first..].iter().filter_map(Entry::of_json);
        entries.for_each(|entry| verifier.add(&entry));
        verifier.finish()
    };
    for first in [3, 7, 8, 20] {
        let verdict = part(first, first as u64);
        assert!(verdict.is_clean(), "{first}: {verdict:#?}");
        // Whoever asks for more is told what is not there.
        let more = part(first, first as u64 - 2);
        let (a, b) = (first as u64 - 2, first as u64 - 1);
        assert_eq!(indices(&more), [a, b], "{first}: {more:#?}");
    }
}

#[test]
fn a_fork_and_a_lie_about_the_root_are_found() {
    let (one, mut other) = (log(10, 5), Log::new());
    for seq in 1..=5 {
        other.push("a", seq, json!({ "bytes_out": 7 }));
    }
    other.checkpoint("a", 6);
    let verdict = verdict(&[one, other.lines].concat());
    let findings = &verdict.logs[0].findings;
    assert!(
        findings.contains(&Finding::Fork { size: 5 }),
        "{verdict:#?}"
    );
}

#[test]
fn a_record_that_nobody_has_made_is_unproven_whatever_it_says() {
    let lines = log(10, 5);
    for (name, value) in [("boot_id", json!("another")), ("seq", json!(1000))] {
        let mut forged = lines[2].clone();
        forged.insert(name.into(), value);
        let mut changed = lines.clone();
        changed.insert(3, forged);
        let verdict = verdict(&changed);
        let findings = &verdict.logs[0].findings;
        let is_named = |it: &Finding| matches!(it, Finding::Unproven { .. });
        assert!(findings.iter().any(is_named), "{name}: {verdict:#?}");
    }
}

#[test]
fn a_log_that_is_cut_off_or_silent_or_another_than_somebody_has_kept_is_found() {
    let lines = log(20, 5);
    let notes: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.get("note")?.as_str())
        .collect();
    let expecting = |note: &str, n_lines: usize| {
        let mut verifier = Verifier::new(vec![key().public().clone()]);
        verifier.expect(note).unwrap();
        let entries = lines[..n_lines].iter().filter_map(Entry::of_json);
        entries.for_each(|entry| verifier.add(&entry));
        verifier.finish()
    };
    for note in &notes {
        let verdict = expecting(note, lines.len());
        assert!(verdict.is_clean(), "{note}: {verdict:#?}");
    }
    let last = notes[notes.len() - 1];
    let findings = expecting(last, 12).logs[0].findings.clone();
    assert!(
        matches!(findings[..], [Finding::CutOff { .. }]),
        "{findings:#?}"
    );
    let nothing = expecting(last, 0);
    assert!(
        matches!(nothing.findings[..], [Finding::Silent { .. }]),
        "{nothing:#?}"
    );
    let mut other = Log::new();
    (1..=3).for_each(|seq| other.push("a", seq, json!({})));
    let kept = Checkpoint::of(ORIGIN, &Frontier::default()).sign(&key());
    assert!(expecting(&kept, lines.len()).is_clean());
    other.push("a", 4, json!({ "bytes_out": 7 }));
    let kept = Checkpoint::of(ORIGIN, &other.tree).sign(&key());
    let forked = expecting(&kept, lines.len());
    assert_eq!(forked.logs[0].findings, [Finding::Fork { size: 4 }]);
    assert!(Verifier::new(Vec::new()).expect(last).is_err());
}

#[test]
fn a_checkpoint_of_somebody_else_is_none() {
    let lines = log(10, 5);
    let keys = vec![
        SigningKey::from_seed(ORIGIN, &[9; 32])
            .unwrap()
            .public()
            .clone(),
    ];
    let mut verifier = Verifier::new(keys);
    lines
        .iter()
        .for_each(|line| verifier.add(&Entry::of_json(line).unwrap()));
    let verdict = verifier.finish();
    assert!(verdict.logs.is_empty() && !verdict.is_clean());
    assert_eq!(verdict.n_without_log, lines.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Of all records but the last, which is not covered yet.
    #[test]
    fn whatever_is_done_to_a_record_is_found(
        n in 4_u64..24, every in 2_u64..9, at in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(), what in 0..6,
    ) {
        let lines = log(n, every);
        let n_covered = lines.len() - 1;
        let (at, other) = (at.index(n_covered), other.index(n_covered));
        let mut changed = lines.clone();
        let is_checkpoint = lines[at]["event"] == "checkpoint";
        match what {
            0 => {
                changed[at].insert("bytes_out".into(), json!(5));
            }
            1 => {
                changed[at].insert("message".into(), json!("another"));
            }
            2 => {
                changed.remove(at);
            }
            3 => {
                let mut forged = lines[at].clone();
                forged.insert("bytes_out".into(), json!(5));
                changed.insert(at + 1, forged);
            }
            4 => changed.insert(other, lines[at].clone()),
            _ => changed.swap(at, other),
        }
        let verdict = verdict(&changed);
        if changed == lines {
            prop_assert!(verdict.is_clean());
        } else {
            prop_assert!(!verdict.is_clean());
            // A lie within a checkpoint's own digests leaves all that these cover unknown.
            let is_named = indices(&verdict).contains(&(at as u64))
                || what == 5 && indices(&verdict).contains(&(other as u64));
            prop_assert!(is_named, "{at} {is_checkpoint}: {verdict:#?}");
        }
    }
}
