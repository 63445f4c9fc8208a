//! The policy: its text, what becomes of it, and that all ways to ask it agree.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use trefoil::policy::explain::{decide, explain};
use trefoil::policy::testing::{OwnedQuestion, Random, Scene};
use trefoil::policy::{Image, Policy, compile};

use crate::problems;

/// Questions for each policy; every one costs as much as it has rules.
const N_QUESTIONS: usize = 24;
/// Those of them that are answered with reasons, which takes longer.
const N_EXPLAINED: usize = 4;

/// Panics if a promise is broken.
pub fn check(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // The world around the policy follows from its text, so that an input is all
    // that there is to a finding.
    let mut random = Random::new(hasher.finish());
    let scene = match Scene::around(text, &mut random) {
        Ok(scene) => scene,
        Err(found) => {
            problems::check(text, &found);
            return;
        }
    };
    let compiled = match compile(&scene.policy, &scene.surroundings(), 7) {
        Ok(compiled) => compiled,
        Err(found) => {
            problems::check(text, &found);
            return;
        }
    };
    if let Ok(image) = Image::new(&compiled) {
        assert_eq!(image.policy.generation, 7);
    }
    assert_eq!(compiled.rules.len(), scene.policy.rules.len());
    for asked in 0..N_QUESTIONS {
        let question = question(&scene, &mut random);
        let by_table = compiled.judge(&question.question());
        let (surroundings, policy) = (scene.surroundings(), &scene.policy);
        let by_reading = decide(policy, &surroundings, &question.question());
        assert_eq!(by_table.verdict, by_reading.verdict, "{question:?}");
        let rule = (by_table.rule != trefoil_ebpf::abi::NO_RULE).then_some(by_table.rule as usize);
        assert_eq!(rule, by_reading.rule, "{question:?}");
        if asked < N_EXPLAINED {
            let explained = explain(policy, &surroundings, &question.question());
            assert_eq!(explained.rule, rule, "{question:?}");
            assert!(!explained.reason.is_empty());
        }
    }
    let again = Policy::parse(text, "random.toml");
    assert!(again.is_ok_and(|policy| policy == scene.policy));
}

/// A flow of the scene, often with a path, a user or a port of the policy's own.
fn question(scene: &Scene, random: &mut Random) -> OwnedQuestion {
    let mut question = scene.question(random);
    if scene.policy.rules.is_empty() {
        return question;
    }
    let rule = random.pick(&scene.policy.rules);
    if let Some(patterns) = &rule.executables
        && random.one_in(2)
    {
        question.executable = Some(filled_in(&random.pick(patterns).to_string(), random));
    }
    if let Some(patterns) = &rule.units
        && random.one_in(2)
    {
        let mut path = random
            .pick(&["/", "/system.slice/", "/a.slice/a-b.slice/", ""])
            .as_bytes()
            .to_vec();
        path.extend(filled_in(&random.pick(patterns).to_string(), random));
        path.extend(random.pick(&["", "", "/x", "/x.service"]).as_bytes());
        question.cgroup = Some(path);
    }
    if let Some(ports) = &rule.ports
        && random.one_in(2)
    {
        let ports = random.pick(ports);
        let beside = [
            ports.first.wrapping_sub(1),
            ports.first,
            ports.last,
            ports.last.wrapping_add(1),
        ];
        question.port = *random.pick(&beside);
        question.protocol = ports.protocol.map_or(17, |protocol| protocol.0);
    }
    if let Some(protocols) = &rule.protocols
        && random.one_in(2)
    {
        question.protocol = random.pick(protocols).0;
    }
    if let Some(users) = &rule.users
        && random.one_in(2)
        && let trefoil::policy::source::User::Id(uid) = random.pick(users).value
    {
        question.uid = *random.pick(&[uid.wrapping_sub(1), uid, uid.wrapping_add(1)]);
    }
    question
}

/// The pattern with something in place of what is open in it, mostly.
fn filled_in(pattern: &str, random: &mut Random) -> Vec<u8> {
    let mut path = Vec::new();
    for &byte in pattern.as_bytes() {
        match byte {
            b'*' => {
                path.extend_from_slice(random.pick(&["", "x", "a-b", "a/b", "\\x2d"]).as_bytes())
            }
            b'?' => {
                let characters: [&[u8]; 8] = [
                    b"x",
                    b"z",
                    b"/",
                    b"\xff",
                    b"\xc3",
                    "\u{e4}".as_bytes(),
                    "\u{20ac}".as_bytes(),
                    "\u{1f98a}".as_bytes(),
                ];
                path.extend(*random.pick(&characters));
            }
            _ if random.one_in(40) => path.push(byte ^ 1),
            _ => path.push(byte),
        }
    }
    path
}
