//! The compiled form says what the policy says.

use trefoil_ebpf::abi::{Decision, NO_RULE, verdict};

use super::*;
use crate::policy::compile::compile;
use crate::policy::explain::{Ruling, decide};

/// Returns a decision of the compiled form as the reader of a policy would say it.
fn ruling(decision: Decision) -> Ruling {
    Ruling {
        verdict: decision.verdict,
        rule: (decision.rule != NO_RULE).then_some(usize::from(decision.rule)),
    }
}

#[test]
fn a_hundred_thousand_flows_are_judged_as_the_policy_reads() {
    const SCENES: u64 = 500;
    const QUESTIONS: usize = 200;
    let mut n_verdicts = [0_usize; verdict::N as usize];
    let mut n_late_rules = 0;
    for seed in 0..SCENES {
        let scene = Scene::new(seed);
        let compiled = compile(&scene.policy, &scene.surroundings(), 3)
            .unwrap_or_else(|problems| panic!("seed {seed}: {problems}\n{}", scene.text));
        let mut random = Random::new(!seed);
        for _ in 0..QUESTIONS {
            let asked = scene.question(&mut random);
            let expected = decide(&scene.policy, &scene.surroundings(), &asked.question());
            let decision = compiled.judge(&asked.question());
            assert_eq!(
                ruling(decision),
                expected,
                "seed {seed}: {asked:?}\n{}",
                scene.text
            );
            n_verdicts[usize::from(decision.verdict)] += 1;
            n_late_rules += usize::from(expected.rule.is_some_and(|rule| rule >= 64));
        }
    }
    for seen in [
        verdict::LOCAL,
        verdict::GATEWAY,
        verdict::APPROVED,
        verdict::EXCEPTION,
        verdict::DENIED,
        verdict::UNAPPROVED,
        verdict::UNDETERMINED,
    ] {
        let n = n_verdicts[usize::from(seen)];
        assert!(
            n > 100,
            "verdict {seen} was seen {n} times only: {n_verdicts:?}"
        );
    }
    assert!(
        n_late_rules > 100,
        "{n_late_rules} times did a rule behind the first word of a row decide"
    );
}

#[test]
fn every_border_is_where_the_policy_has_it() {
    for seed in 1_000_000..1_000_150 {
        let scene = Scene::new(seed);
        let compiled = compile(&scene.policy, &scene.surroundings(), 3)
            .unwrap_or_else(|problems| panic!("seed {seed}: {problems}\n{}", scene.text));
        let mut random = Random::new(!seed);
        let mut asked = scene.question(&mut random);
        // The service and source that most rules accept, so that addresses decide.
        (asked.protocol, asked.port) = (6, 443);
        for &destination in &scene.landmarks {
            asked.destination = destination;
            let expected = decide(&scene.policy, &scene.surroundings(), &asked.question());
            let decision = compiled.judge(&asked.question());
            assert_eq!(
                ruling(decision),
                expected,
                "seed {seed}: {asked:?}\n{}",
                scene.text
            );
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_scene() {
    let (a, b) = (Scene::new(7), Scene::new(7));
    assert_eq!(a.text, b.text);
    assert_eq!(a.landmarks, b.landmarks);
    let ask = |scene: &Scene| scene.question(&mut Random::new(1));
    assert_eq!(ask(&a), ask(&b));
    assert_ne!(Scene::new(8).text, a.text);
}

#[test]
fn compiled_tables_are_well_formed() {
    for seed in 0..200 {
        let scene = Scene::new(seed);
        let compiled = compile(&scene.policy, &scene.surroundings(), 3).unwrap();
        let header = &compiled.header;
        let tables = [&compiled.v4, &compiled.services, &compiled.users];
        for table in tables.into_iter().chain(&compiled.groups) {
            assert_eq!(table[0].first, 0);
            assert!(table.windows(2).all(|pair| pair[0].first < pair[1].first));
        }
        let key = |at: usize| compiled.v6[at].first;
        assert_eq!(key(0), 0);
        assert!((1..compiled.v6.len()).all(|at| key(at - 1) < key(at)));
        let n_states = compiled.states.len();
        for state in &compiled.states {
            assert!(state.next.iter().all(|&next| usize::from(next) < n_states));
        }
        assert_eq!(header.n_words as usize, compiled.clauses.len().div_ceil(64));
        for row in &compiled.rows {
            let used = compiled.clauses.len();
            let is_clear = |bit: usize| row.words[bit / 64] >> (bit % 64) & 1 == 0;
            assert!((used..row.words.len() * 64).all(is_clear));
        }
    }
}
