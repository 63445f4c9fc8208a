//! The judge in the kernel, the evaluator in user space and the reader of a policy as it
//! is written decide the same.
//!
//! Random policies and flows; each flow is asked of all three. The kernel side is the
//! program `judge_question`, which calls the judge that the hooks call, run with
//! `BPF_PROG_RUN`; nothing is attached. Needs root.

#![allow(clippy::unwrap_used, reason = "a test")]

mod packets;
mod sessions;

use std::{cell::RefCell, collections::HashMap, net::IpAddr};

use sessions::Sessions;

use trefoil::{
    clock::{self, BootClock},
    kernel::{Unattached, peer},
    policy::{
        Compiled, Mode, compile,
        evaluate::Question as Flow,
        explain::{decide, explain},
        source::Direction,
        testing::{NOW_US, OwnedQuestion, Random, Scene},
    },
};
use trefoil_ebpf::abi::{
    ClassCache, DECISION_LIMITED, Decision, EXECUTABLE_FOREIGN, EXECUTABLE_PATH,
    EXECUTABLE_TRUNCATED, Executable, NO_RULE, NOBODY_LOGGED_IN, QUESTION_MAY_STAY, Question,
    direction, near, verdict,
};

/// How many pairs of a flow and a policy there are, if not [`N_PAIRS`].
const DECISIONS: &str = "TREFOIL_DECISIONS";
/// So many take half a minute at the most where tests run.
const N_PAIRS: usize = 100_000;
/// Flows that are asked under one policy.
const N_QUESTIONS: usize = 1_000;
/// Of so many flows, one is explained in full.
const N_UNEXPLAINED: usize = 50;
/// More executables, and more control groups, than a test by itself has.
const N_NAMES: u32 = 1 << 10;

/// Gives every path an id in the kernel's table, once.
#[derive(Default)]
struct Ids(HashMap<Vec<u8>, u64>);

impl Ids {
    /// The id of a path, and whether it is new.
    fn of(&mut self, path: &[u8]) -> (u64, bool) {
        let next = self.0.len() as u64 + 1;
        let id = *self.0.entry(path.to_vec()).or_insert(next);
        (id, id == next)
    }
}

fn executable(path: &[u8], flags: u16) -> Executable {
    let mut bytes = [0; EXECUTABLE_PATH];
    bytes[..path.len()].copy_from_slice(path);
    Executable {
        used_ns: 0,
        charged: 0,
        pad: 0,
        class: ClassCache::default(),
        inode: 1,
        device: 1,
        path_len: path.len() as u16,
        flags,
        path: bytes,
    }
}

/// Bytes that have left by each budget, by its id: as the kernel counts, which remembers
/// them from policy to policy.
#[derive(Default)]
struct Accounts(RefCell<HashMap<u64, u64>>);

impl Accounts {
    /// Judges a packet of this many bytes, or before there is one.
    fn judge(&self, policy: &Compiled, flow: &Flow<'_>, bytes: u64) -> Decision {
        policy.judge_within(flow, |budget| self.lasts(policy, budget, bytes))
    }

    /// Takes so many bytes from a budget; whether there was room.
    fn lasts(&self, policy: &Compiled, budget: usize, bytes: u64) -> bool {
        let budget = &policy.budgets[budget];
        let mut accounts = self.0.borrow_mut();
        let used = accounts.entry(budget.id).or_default();
        if bytes == 0 {
            return *used < budget.bytes;
        }
        let after = *used + bytes;
        let is_within = after <= budget.bytes;
        *used = match policy.mode() {
            // A packet that does not fit into the rest takes the rest.
            Mode::Enforce if !is_within => budget.bytes.max(*used),
            _ => after,
        };
        is_within
    }
}

/// Returns the program's result for this decision.
fn packed(decision: &Decision) -> u32 {
    u32::from(decision.verdict) | u32::from(decision.flags) << 8 | u32::from(decision.rule) << 16
}

/// Has the kernel judge by the policy of a scene.
fn put_in_force(kernel: &mut Unattached, scene: &Scene) -> Compiled {
    let generation = kernel.next_generation();
    let compiled = compile(&scene.policy, &scene.surroundings(), generation).unwrap();
    // The flows happen now, whatever they think of the time.
    let since_boot_us = clock::since_boot_ns() / 1_000;
    let clock = BootClock::booted_at(NOW_US - since_boot_us);
    kernel.judge_by(&compiled, &clock).unwrap();
    compiled
}

/// The near end as the hooks say it.
fn near_of(question: &OwnedQuestion) -> u32 {
    let known = match question.direction {
        None => direction::UNKNOWN,
        Some(Direction::Outbound) => direction::OUTBOUND,
        Some(Direction::Accepted) => direction::ACCEPTED,
    };
    match question.near_port {
        Some(port) => near::of(known, question.protocol, port),
        None => u32::from(known) << near::SHIFT | near::NO_PORT,
    }
}

/// How an explanation says it.
fn named(verdict: u8) -> &'static str {
    trefoil::report::words::verdict(verdict).unwrap_or("none")
}

#[test]
fn kernel_evaluator_and_reader_decide_the_same() {
    let n_pairs = std::env::var(DECISIONS).map_or(N_PAIRS, |number| number.parse().unwrap());
    // Fewer flows than that have a path that no other has.
    let mut kernel = Unattached::load(n_pairs as u32 / 2).unwrap();
    let (mut executables, mut cgroups) = (Ids::default(), Ids::default());
    let accounts = Accounts::default();
    let mut sessions = Sessions::new(&kernel);
    let mut by_verdict: HashMap<u8, usize> = HashMap::new();
    let (mut n_embedded, mut n_could) = (0, 0);
    for seed in 0..(n_pairs / N_QUESTIONS) as u64 {
        let scene = Scene::new(seed);
        let compiled = put_in_force(&mut kernel, &scene);
        let mut random = Random::new(!seed);
        let asked: Vec<OwnedQuestion> = (0..N_QUESTIONS)
            .map(|_| scene.question(&mut random))
            .collect();
        let sizes: Vec<u32> = asked.iter().map(|_| random.below(90) as u32).collect();
        let questions: Vec<Question> = asked
            .iter()
            .zip(&sizes)
            .map(|(question, &bytes)| {
                // A rest that is smaller than a packet is none.
                let bytes = bytes.saturating_sub(30);
                let mut exe_id = 0;
                if let Some(path) = &question.executable {
                    let is_new;
                    let flags = match question.is_foreign {
                        true => EXECUTABLE_FOREIGN,
                        false => 0,
                    };
                    (exe_id, is_new) = executables.of(&[&flags.to_le_bytes(), &**path].concat());
                    if is_new {
                        let executable = executable(path, flags);
                        kernel.add_executable(exe_id, &executable).unwrap();
                    }
                }
                let mut cgroup_id = 0;
                if let Some(path) = &question.cgroup {
                    let is_new;
                    (cgroup_id, is_new) = cgroups.of(path);
                    if is_new {
                        kernel
                            .add_cgroup(cgroup_id, std::str::from_utf8(path).unwrap())
                            .unwrap();
                    }
                }
                Question {
                    exe_id,
                    cgroup_id,
                    peer: peer(question.destination, question.port, question.protocol),
                    uid: question.uid,
                    bytes,
                    gid: question.gid.unwrap_or(u32::MAX),
                    session: sessions.of(question, &mut random),
                    flags: QUESTION_MAY_STAY * u32::from(question.may_stay),
                    near: near_of(question),
                }
            })
            .collect();

        let (answers, _) = kernel.ask(&questions).unwrap();
        let surroundings = scene.surroundings();
        for (number, ((question, sent), answer)) in
            asked.iter().zip(&questions).zip(answers).enumerate()
        {
            // The reader knows no accounts: as long as every budget lasts.
            let read = decide(&scene.policy, &surroundings, &question.question());
            let lasting = compiled.judge(&question.question());
            let rule = (lasting.rule != NO_RULE).then_some(usize::from(lasting.rule));
            assert_eq!(
                (read.verdict, read.rule),
                (lasting.verdict, rule),
                "seed {seed}: the reader and the evaluator of {question:?} under\n{}",
                scene.text,
            );
            if number % N_UNEXPLAINED == 0 {
                let explained = explain(&scene.policy, &surroundings, &question.question());
                assert_eq!(explained.verdict, named(read.verdict), "seed {seed}");
                assert_eq!(explained.rule, read.rule, "seed {seed}");
            }
            n_embedded += usize::from(compiled.embedded(question.destination).next().is_some());
            let expected = accounts.judge(&compiled, &question.question(), sent.bytes.into());
            let answer = answer & !(u32::from(DECISION_LIMITED) << 8);
            assert_eq!(
                answer,
                packed(&expected),
                "seed {seed}: the kernel says verdict {} rule {}, the evaluator {expected:?} \
                 of {question:?} under\n{}",
                answer & 0xff,
                answer >> 16,
                scene.text,
            );
            *by_verdict.entry(expected.verdict).or_default() += 1;
            // Whether a deny counts that could not be checked.
            let is_known = question.cgroup.is_some()
                && question.executable.is_some()
                && question.uid < u32::MAX
                && question.gid.is_some()
                && question.interactive.is_some()
                && (question.interactive == Some(false) || question.origin.is_some())
                && question.direction.is_some()
                && question.near_port != Some(0);
            n_could += usize::from(!is_known && expected.verdict == verdict::DENIED);
        }
    }
    println!(
        "{n_pairs} decisions, {n_embedded} about two addresses, {n_could} by what a rule could \
         match, by verdict: {by_verdict:?}"
    );
    assert!(n_could > n_pairs / 200, "{n_could}");
    assert!(n_embedded > n_pairs / 100, "{n_embedded}");
    // A generator that asks about one kind of flow only would prove nothing.
    assert!(by_verdict.len() >= 8, "{by_verdict:?}");
}

#[test]
fn an_executable_that_a_user_could_have_put_there_is_approved_by_no_path() {
    let mut kernel = Unattached::load(N_NAMES).unwrap();
    let text = r#"
        mode = "enforce"
        [[rules]]
        name = "backups"
        from = { exe = "/usr/bin/backup" }
        to = { networks = ["203.0.113.0/24"] }
        verdict = "approve"
    "#;
    let policy = trefoil::policy::Policy::parse(text, "policy.toml").unwrap();
    let nobody = |_: &str| None;
    let surroundings = trefoil::policy::Surroundings {
        geography: &trefoil::policy::geography::Nowhere,
        users: &nobody,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let compiled = compile(&policy, &surroundings, kernel.next_generation()).unwrap();
    kernel.judge_by(&compiled, &BootClock::read()).unwrap();
    kernel
        .add_executable(1, &executable(b"/usr/bin/backup", 0))
        .unwrap();
    kernel
        .add_executable(2, &executable(b"/usr/bin/backup", EXECUTABLE_FOREIGN))
        .unwrap();
    let ask = |exe_id| Question {
        exe_id,
        peer: peer("203.0.113.9".parse().unwrap(), 443, 6),
        ..Question::default()
    };
    let (answers, _) = kernel.ask(&[ask(1), ask(2), ask(3)]).unwrap();
    let verdicts: Vec<u8> = answers.iter().map(|answer| *answer as u8).collect();
    assert_eq!(
        verdicts,
        [
            verdict::APPROVED,
            verdict::UNDETERMINED,
            verdict::UNDETERMINED
        ]
    );
}

/// A fact that a `deny` with `from` asks for and nobody knows counts against the sender;
/// one that is known and does not match still excludes the sender.
#[test]
fn what_is_not_known_of_a_sender_does_not_undo_a_deny() {
    let mut kernel = Unattached::load(N_NAMES).unwrap();
    let to = r#"to = { networks = ["203.0.113.0/24"] }"#;
    let from = [
        r#"{ exe = "/usr/bin/curl", user = 1000 }"#,
        r#"{ unit = "batch.service", user = 1001 }"#,
        r#"{ group = 50, user = 1002 }"#,
        r#"{ interactive = true, user = 1003 }"#,
        r#"{ user = 1004, exe = "/usr/bin/backup" }"#,
    ];
    let mut text = "mode = \"enforce\"\n".to_owned();
    for (number, from) in from.iter().enumerate() {
        text +=
            &format!("[[rules]]\nname = \"{number}\"\nfrom = {from}\n{to}\nverdict = \"deny\"\n");
    }
    text += &format!("[[rules]]\nname = \"all\"\n{to}\nverdict = \"approve\"\n");
    let policy = trefoil::policy::Policy::parse(&text, "policy.toml").unwrap();
    let surroundings = trefoil::policy::Surroundings {
        geography: &trefoil::policy::geography::Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let compiled = compile(&policy, &surroundings, kernel.next_generation()).unwrap();
    kernel.judge_by(&compiled, &BootClock::read()).unwrap();
    const OTHER: u64 = 1;
    const FOREIGN: u64 = 2;
    const FOREIGN_OTHER: u64 = 3;
    const CUT: u64 = 4;
    const NOT_IN_THE_TABLE: u64 = 99;
    for (id, path, flags) in [
        (OTHER, &b"/usr/bin/other"[..], 0),
        (FOREIGN, b"/usr/bin/curl", EXECUTABLE_FOREIGN),
        (FOREIGN_OTHER, b"/usr/bin/other", EXECUTABLE_FOREIGN),
        (CUT, b"bin/other", EXECUTABLE_TRUNCATED),
    ] {
        kernel.add_executable(id, &executable(path, flags)).unwrap();
    }
    kernel
        .add_cgroup(OTHER, "/system.slice/other.service")
        .unwrap();
    let known = Question {
        exe_id: OTHER,
        cgroup_id: OTHER,
        gid: 4,
        session: NOBODY_LOGGED_IN,
        peer: peer("203.0.113.9".parse().unwrap(), 443, 6),
        ..Question::default()
    };
    let by = |uid| Question { uid, ..known };
    let all_unknown = Question {
        exe_id: 0,
        cgroup_id: 0,
        uid: u32::MAX,
        gid: u32::MAX,
        session: 0,
        ..known
    };
    let approved = (verdict::APPROVED, 5);
    let denied = |rule| (verdict::DENIED, rule);
    let asked = [
        (by(1000), approved),
        (
            Question {
                exe_id: 0,
                ..by(1000)
            },
            denied(0),
        ),
        (
            Question {
                exe_id: NOT_IN_THE_TABLE,
                ..by(1000)
            },
            denied(0),
        ),
        (
            Question {
                exe_id: CUT,
                ..by(1000)
            },
            denied(0),
        ),
        (
            Question {
                exe_id: FOREIGN,
                ..by(1000)
            },
            denied(0),
        ),
        (
            Question {
                exe_id: FOREIGN_OTHER,
                ..by(1000)
            },
            approved,
        ),
        (by(1001), approved),
        (
            Question {
                cgroup_id: 0,
                ..by(1001)
            },
            denied(1),
        ),
        (
            Question {
                cgroup_id: NOT_IN_THE_TABLE,
                ..by(1001)
            },
            denied(1),
        ),
        (by(1002), approved),
        (
            Question {
                gid: u32::MAX,
                ..by(1002)
            },
            denied(2),
        ),
        (by(1003), approved),
        (
            Question {
                session: 0,
                ..by(1003)
            },
            denied(3),
        ),
        // A sender known to be somebody else is excluded, whatever else is not known.
        (
            Question {
                uid: 7,
                ..all_unknown
            },
            approved,
        ),
        (by(u32::MAX), approved),
        (
            Question {
                exe_id: 0,
                ..by(u32::MAX)
            },
            denied(0),
        ),
        (all_unknown, denied(0)),
    ];
    let questions = asked.map(|(question, _)| question);
    let (answers, _) = kernel.ask(&questions).unwrap();
    for ((question, expected), answer) in asked.iter().zip(answers) {
        assert_eq!(
            (answer as u8, (answer >> 16) as u16),
            *expected,
            "{question:?}"
        );
    }
}

/// The tables that every decision reads are mostly in the first chunk, and here they are
/// not.
#[test]
fn rows_that_fill_more_than_a_chunk_are_found() {
    use std::fmt::Write as _;
    use trefoil_ebpf::abi::{CHUNK_BYTES, dimension};
    const N_RULES: u32 = 2_000;
    let network = |number: u32| format!("10.{}.{}", number / 250, number % 250);
    let shared_host =
        |number: u32, distance: u32| format!("11.{}.{}.{distance}", number / 250, number % 250);
    let mut text = "mode = \"report\"\n".to_owned();
    for number in 0..N_RULES {
        let verdict = if number % 3 == 0 { "deny" } else { "approve" };
        // Its own network, and hosts that it shares with rules before and behind it, which
        // makes a class of each.
        let mut networks = vec![format!("{}.0/24", network(number))];
        for distance in 1..=4 {
            let before = number.saturating_sub(distance);
            networks.push(shared_host(before, distance));
            networks.push(shared_host(number, distance));
        }
        writeln!(
            text,
            "[[rules]]\nname = \"r{number}\"\nverdict = \"{verdict}\"\n\
             to = {{ networks = {networks:?}, ports = [\"{}/tcp\", \"443/tcp\"] }}",
            1_000 + number
        )
        .unwrap();
    }
    let policy = trefoil::policy::Policy::parse(&text, "policy.toml").unwrap();
    let surroundings = trefoil::policy::Surroundings {
        geography: &trefoil::policy::geography::Nowhere,
        users: &|_: &str| None,
        own_addresses: &[],
        link_local: trefoil::policy::LinkLocal::default(),
    };
    let mut kernel = Unattached::load(N_NAMES).unwrap();
    let compiled = compile(&policy, &surroundings, kernel.next_generation()).unwrap();
    let image = trefoil::policy::Image::new(&compiled).unwrap();
    assert!(image.header.rows[dimension::SERVICE] as usize >= CHUNK_BYTES);
    kernel.judge_by(&compiled, &BootClock::read()).unwrap();
    let mut questions = Vec::new();
    let mut expected = Vec::new();
    for number in 0..N_RULES {
        let destination: IpAddr = format!("{}.7", network(number)).parse().unwrap();
        for port in [443, 1_000 + number as u16, 999] {
            questions.push(Question {
                peer: peer(destination, port, 6),
                ..Question::default()
            });
            let verdict = match number % 3 {
                _ if port == 999 => verdict::UNDETERMINED,
                0 => verdict::DENIED,
                _ => verdict::APPROVED,
            };
            let rule = if port == 999 { NO_RULE } else { number as u16 };
            expected.push((verdict, rule));
        }
    }
    let (answers, _) = kernel.ask(&questions).unwrap();
    let found: Vec<(u8, u16)> = answers
        .iter()
        .map(|answer| (*answer as u8, (answer >> 16) as u16))
        .collect();
    assert_eq!(found, expected);
}
