//! Records of the past, and the policy that is learned from them.

use trefoil::learn::learn;
use trefoil::observed::{Amount, Collector, Judge, Observed, Reading};
use trefoil::policy::geography::Nowhere;
use trefoil::policy::{Policy, Surroundings, compile};

/// Panics if a promise is broken.
pub fn check(input: &[u8]) {
    let (observed, reading) = read(&[input]);
    let n_lines = input.split(|byte| *byte == b'\n').count() as u64;
    assert!(reading.records + reading.other_entries + reading.not_trusted <= n_lines);
    assert!(reading.unreadable <= n_lines);
    for text in reading.faults.iter().map(ToString::to_string) {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    // A record that is read twice counts once.
    let (twice, _) = read(&[input, input]);
    assert_eq!(sum(&observed), sum(&twice));
    check_learned(&observed, &reading);
}

fn read(texts: &[&[u8]]) -> (Vec<Observed>, Reading) {
    let mut collector = Collector::default();
    for text in texts {
        collector.add_text("input", text);
    }
    collector.finish()
}

fn sum(observed: &[Observed]) -> Amount {
    let mut sum = Amount::default();
    for one in observed {
        sum.add(&one.amount);
    }
    sum
}

/// Whatever names are in the records, what is learned is a policy, and it approves of
/// all that it does not say it leaves out.
fn check_learned(observed: &[Observed], reading: &Reading) {
    let users = |name: &str| (name == "www-data").then_some(33);
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &users,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let learned = learn(observed, reading, &users);
    let policy = Policy::parse(&learned.text, "learned.toml")
        .unwrap_or_else(|problems| panic!("{problems}\n{}", learned.text));
    assert_eq!(policy.rules.len(), learned.rules, "{}", learned.text);
    let compiled = compile(&policy, &surroundings, 1)
        .unwrap_or_else(|problems| panic!("{problems}\n{}", learned.text));
    let judge = Judge {
        policy: &policy,
        compiled: &compiled,
        surroundings: &surroundings,
    };
    let mut not_approved = 0_u64;
    for one in observed {
        if judge.judge(one).approves() != Some(true) {
            not_approved = not_approved.saturating_add(one.amount.flows);
        }
    }
    assert!(not_approved <= learned.left_out, "{}", learned.text);
}
