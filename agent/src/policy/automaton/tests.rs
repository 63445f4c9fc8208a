//! Paths that an automaton accepts, compared with a matcher that tries everything.

use std::collections::HashMap;

use super::*;

/// Answers of the table about a path: sets of the patterns that match it.
struct Classes {
    sets: Vec<Vec<usize>>,
    known: HashMap<Vec<usize>, u16>,
}

impl Classes {
    fn new() -> Self {
        let mut new = Self {
            sets: Vec::new(),
            known: HashMap::new(),
        };
        new.class_of(&[]).unwrap();
        new
    }

    fn class_of(&mut self, matched: &[usize]) -> Result<u16, Fault> {
        let new = u16::try_from(self.sets.len()).unwrap();
        Ok(*self.known.entry(matched.to_vec()).or_insert_with(|| {
            self.sets.push(matched.to_vec());
            new
        }))
    }
}

fn walk(table: &Table, start: u32, path: &[u8]) -> u16 {
    let mut state = usize::try_from(start).unwrap();
    for &byte in path {
        let letter = table.letters[usize::from(byte)];
        state = usize::from(table.states[state].next[usize::from(letter)]);
    }
    table.states[state].class
}

const UNITS: &[&str] = &[
    "nginx.service",
    "nginx*.service",
    "*x.service",
    "export@*",
    "cpu.service",
    "*.scope",
    "user.slice",
    "user-*.slice",
    "user-1000.slice",
    "a-b.slice",
    "*.slice",
    "-.slice",
    "user@1000.service",
    "user@1000.service/nginx.service",
    "user@*.service/app.slice",
    "user@*.service/*.scope",
    "user@1000.service/app-*.slice",
    "_x.service",
    "?.service",
    "??.service",
    "[!n]*.service",
    "x?*.service",
    "*a*.service",
    "*b*.service",
];
const EXECUTABLES: &[&str] = &[
    "/usr/bin/curl",
    "/usr/bin/*",
    "/usr/**",
    "/**/curl",
    "/opt/*/bin/x",
    "/opt/**/bin/[a-c]?",
    "/opt/?",
    "/opt/??x",
    "/opt/[!a]*x",
    "/opt/?*?/??",
    "/opt/\u{e4}?",
    "/*",
    "/u[!s]r/x",
    "/usr/lib/postgresql/*/bin/postgres",
];

const CGROUPS: &[&str] = &[
    "/",
    "/system.slice/nginx.service",
    "/user.slice/**",
    "/*/x.scope",
    "/**/nginx*.service",
    "/docker/*",
    "/kubepods/**/d*[0-9]",
];
const CONTAINERS: &[&str] = &[
    "docker:*",
    "docker:4f2a*",
    "*",
    "0*2",
    "podman:????*",
    "kubernetes:4f*",
    "containerd:[04]*",
    "systemd-nspawn:web-1",
    "systemd-nspawn:*",
    "systemd-nspawn:qemu-*",
    "lxc:*",
    "lxc:?",
    "web*",
    "cri-o:*2",
];

/// An id of a container that begins and ends so.
const ID: &str = "4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042";

/// Parts that patterns are made of, put together at random, make paths that are
/// often a match or nearly one.
fn paths(seed: u64, parts: &[&str]) -> Vec<Vec<u8>> {
    let mut state = seed;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % n
    };
    (0..5_000)
        .map(|_| {
            let n_parts = below(7);
            (0..n_parts)
                .flat_map(|_| parts[below(parts.len())].bytes())
                .collect()
        })
        .collect()
}

fn all<T, F>(texts: &[&str], parse: impl Fn(&str) -> Result<T, F>) -> Vec<T>
where
    F: std::fmt::Debug,
{
    texts.iter().map(|text| parse(text).unwrap()).collect()
}

/// Holds the table against the patterns. Returns how many times each matched.
fn check(patterns: &PathPatterns<'_>, paths: Vec<Vec<u8>>) -> Vec<usize> {
    let mut classes = Classes::new();
    let automaton = of_cgroups(patterns, |matched| classes.class_of(matched)).unwrap();
    let nothing = of_executables(&[], |_| Ok(0)).unwrap();
    let table = Table::new(&automaton, &nothing).unwrap();
    let mut n_matches = vec![0; patterns.len()];
    for path in paths {
        let path = &*path;
        let by_unit = patterns.units.iter().map(|unit| unit.matches(path));
        let by_cgroup = patterns.cgroups.iter().map(|group| group.matches(path));
        let by_container = patterns.containers.iter().map(|one| one.matches(path));
        let all: Vec<bool> = by_unit.chain(by_cgroup).chain(by_container).collect();
        let expected: Vec<usize> = (0..all.len()).filter(|&index| all[index]).collect();
        for &index in &expected {
            n_matches[index] += 1;
        }
        let class = walk(&table, table.starts[0], path);
        assert_eq!(
            classes.sets[usize::from(class)],
            expected,
            "{}",
            String::from_utf8_lossy(path)
        );
    }
    n_matches
}

#[test]
fn containers_and_groups_are_those_that_the_patterns_match() {
    let cgroups = all(CGROUPS, CgroupPattern::parse);
    let containers = all(CONTAINERS, ContainerPattern::parse);
    let units = all(&["nginx.service", "user.slice"], UnitPattern::parse);
    let patterns = PathPatterns {
        units: units.iter().collect(),
        cgroups: cgroups.iter().collect(),
        containers: containers.iter().collect(),
    };
    let scope = format!("/docker-{ID}.scope");
    let bare = format!("/{ID}");
    let podman = format!("/libpod-{ID}");
    let cri_o = format!("/crio-{}.scope", ID.replace("4f", "00"));
    let containerd = format!("/cri-containerd-{ID}.scope");
    let parts = [
        &scope,
        &bare,
        &bare,
        &podman,
        &cri_o,
        &containerd,
        "/d-1",
        "/docker",
        "/lxc",
        "/libpod_parent",
        "/kubepods",
        "/burstable",
        "/pod1",
        "/pod",
        "/machine-web\\x2d1.scope",
        "/machine-web-1.scope",
        "/machine-qemu\\x2d1.scope",
        "/machine-qem\\x75.scope",
        "/machine-qemu.scope",
        "/machine-qemu",
        "/machine-\\X2d.scope",
        "/machine-\\x+d.scope",
        "/systemd-nspawn@web.service",
        "/supervisor",
        "/supervise",
        "/lxc.payload.web",
        "/system.slice",
        "/user.slice",
        "/nginx.service",
        "/x.scope",
        "/",
        "x",
        "0",
        ".scope",
        "\u{e4}",
    ];
    let mut asked = paths(3, &parts);
    // Paths that chance rarely makes.
    asked.extend(paths(4, &parts).into_iter().map(|path| {
        let above: &[&str] = &[
            "/kubepods/pod1",
            "/kubepods/burstable/pod2",
            "/lxc",
            "/a.slice",
        ];
        let mut whole = above[path.len() % above.len()].as_bytes().to_vec();
        whole.extend(path);
        whole
    }));
    let n_matches = check(&patterns, asked);
    let n_qemu = CONTAINERS.iter().position(|text| text.contains("qemu"));
    for (index, n) in n_matches.iter().enumerate() {
        let is_of_qemu = n_qemu.is_some_and(|at| index == units.len() + cgroups.len() + at);
        assert!((*n > 0) != is_of_qemu, "pattern {index}: {n} matches");
    }
}

#[test]
fn the_table_matches_what_the_patterns_match() {
    let units: Vec<UnitPattern> = UNITS
        .iter()
        .map(|text| UnitPattern::parse(text).unwrap())
        .collect();
    let patterns = PathPatterns {
        units: units.iter().collect(),
        ..PathPatterns::default()
    };
    let executables: Vec<ExecutablePattern> = EXECUTABLES
        .iter()
        .map(|text| ExecutablePattern::parse(text).unwrap())
        .collect();
    let executables: Vec<&ExecutablePattern> = executables.iter().collect();
    let (mut unit_classes, mut executable_classes) = (Classes::new(), Classes::new());
    let first = of_cgroups(&patterns, |matched| unit_classes.class_of(matched)).unwrap();
    let second =
        of_executables(&executables, |matched| executable_classes.class_of(matched)).unwrap();
    let table = Table::new(&first, &second).unwrap();

    let mut n_matches = 0;
    for path in paths(
        1,
        &[
            "/system.slice",
            "/user.slice",
            "/user-1000.slice",
            "/user@1000.service",
            "/app.slice",
            "/nginx.service",
            "/nginx-1.service",
            "/export@1.service",
            "/_cpu.service",
            "/a.slice",
            "/a-b.slice",
            "/app-x.slice",
            "/x.scope",
            "/_",
            "/",
            "x",
            "n",
            ".service",
            ".slice",
            "/export@1.mount",
            "/__x.service",
            "/y.service",
            "/nagb.service",
            "\u{e4}",
        ],
    ) {
        let expected: Vec<usize> = (0..units.len())
            .filter(|&index| units[index].matches(&path))
            .collect();
        let class = walk(&table, table.starts[0], &path);
        n_matches += expected.len();
        assert_eq!(
            unit_classes.sets[usize::from(class)],
            expected,
            "{}",
            String::from_utf8_lossy(&path)
        );
    }
    for path in paths(
        2,
        &[
            "/usr",
            "/usr/bin",
            "/curl",
            "/opt",
            "/bin",
            "/ax",
            "/x",
            "/",
            "c",
            "curl",
            "/usr/lib",
            "/postgresql",
            "/15",
            "/bin/postgres",
            "\n",
            "/uxr",
        ],
    ) {
        let expected: Vec<usize> = (0..executables.len())
            .filter(|&index| executables[index].glob().matches(&path))
            .collect();
        let class = walk(&table, table.starts[1], &path);
        n_matches += expected.len();
        assert_eq!(
            executable_classes.sets[usize::from(class)],
            expected,
            "{}",
            String::from_utf8_lossy(&path)
        );
    }
    assert!(n_matches > 5_000, "too few matches for a test: {n_matches}");
}

#[test]
fn characters_are_as_the_globs_have_them() {
    let patterns: Vec<ExecutablePattern> = all(
        &[
            "/?",
            "/??",
            "/x?y",
            "/?*?",
            "/*?",
            "/*??x",
            "/**?",
            "/?**\u{e4}",
            "/[!x]",
            "/[!x]?*y",
            "/[x-z]?",
            "/\u{e4}?",
            "/?\u{20ac}",
            "/?/*/?",
            "/????",
        ],
        ExecutablePattern::parse,
    );
    let patterns: Vec<&ExecutablePattern> = patterns.iter().collect();
    let mut classes = Classes::new();
    let nothing = of_cgroups(&PathPatterns::default(), |_| Ok(0)).unwrap();
    let automaton = of_executables(&patterns, |matched| classes.class_of(matched)).unwrap();
    let table = Table::new(&nothing, &automaton).unwrap();
    let parts = [
        "/",
        "/",
        "x",
        "y",
        "\u{e4}",
        "\u{20ac}",
        "\u{1f98a}",
        "\u{80}",
    ];
    let mut n_matches = vec![0; patterns.len()];
    for (index, mut path) in paths(5, &parts).into_iter().enumerate() {
        path.insert(0, b'/');
        // Some are no UTF-8: a byte is gone, or is what a byte never is.
        let at = index % path.len();
        match index % 4 {
            0 if at > 0 => drop(path.remove(at)),
            1 => path.insert(at + 1, [0x80, 0xc0, 0xe2, 0xf0, 0xff][index % 5]),
            _ => {}
        }
        let matched = |pattern: &usize| patterns[*pattern].glob().matches(&path);
        let expected: Vec<usize> = (0..patterns.len()).filter(matched).collect();
        expected.iter().for_each(|&pattern| n_matches[pattern] += 1);
        let class = walk(&table, table.starts[1], &path);
        assert_eq!(
            classes.sets[usize::from(class)],
            expected,
            "{}",
            path.escape_ascii()
        );
    }
    assert!(n_matches.iter().all(|n| *n > 0), "{n_matches:?}");
}

#[test]
fn characters_take_few_states() {
    for (pattern, most) in [
        ("/x?y", 20),
        ("/x/@", 400),
        ("/*@", 4_000),
        ("/**/a@b*@", 20_000),
    ] {
        let pattern = pattern.replace('@', &"?".repeat(64));
        let pattern = ExecutablePattern::parse(&pattern).unwrap();
        let automaton = of_executables(&[&pattern], |matched| Ok(matched.len() as u16)).unwrap();
        assert!(
            automaton.states.len() < most,
            "{pattern}: {}",
            automaton.states.len()
        );
    }
}

#[test]
fn no_pattern_needs_one_state() {
    let none = |_: &[usize]| Ok(0);
    let table = Table::new(
        &of_cgroups(&PathPatterns::default(), none).unwrap(),
        &of_executables(&[], none).unwrap(),
    )
    .unwrap();
    assert_eq!(table.states.len(), 1);
    assert_eq!(table.starts, [0, 0]);
    assert_eq!(table.states[0].next, [0; MAX_LETTERS]);
}

#[test]
fn a_thousand_literal_units_are_small() {
    let units: Vec<UnitPattern> = (0..1000)
        .map(|index| UnitPattern::parse(&format!("worker-{index}@*.service")).unwrap())
        .collect();
    let patterns = PathPatterns {
        units: units.iter().collect(),
        ..PathPatterns::default()
    };
    let mut classes = Classes::new();
    let first = of_cgroups(&patterns, |matched| classes.class_of(matched)).unwrap();
    let second = of_executables(&[], |_| Ok(0)).unwrap();
    let table = Table::new(&first, &second).unwrap();
    assert!(table.states.len() < 30_000, "{}", table.states.len());
}

#[test]
fn hundreds_of_containers_are_small() {
    // With engine and without, ids and names.
    let containers: Vec<ContainerPattern> = (0..300)
        .map(|index| match index % 3 {
            0 => format!("docker:{index:012x}*"),
            1 => format!("{index:012x}*"),
            _ => format!("systemd-nspawn:web-{index}-*"),
        })
        .map(|text| ContainerPattern::parse(&text).unwrap())
        .collect();
    let patterns = PathPatterns {
        containers: containers.iter().collect(),
        ..PathPatterns::default()
    };
    let mut classes = Classes::new();
    let first = of_cgroups(&patterns, |matched| classes.class_of(matched)).unwrap();
    let second = of_executables(&[], |_| Ok(0)).unwrap();
    let table = Table::new(&first, &second).unwrap();
    println!("{} states", table.states.len());
    assert!(table.states.len() < 60_000, "{}", table.states.len());
}

#[test]
fn too_many_states_are_a_fault() {
    // Each pattern remembers for itself whether its letter came.
    let units: Vec<UnitPattern> = ('a'..='z')
        .map(|letter| UnitPattern::parse(&format!("*{letter}*.service")).unwrap())
        .collect();
    let patterns = PathPatterns {
        units: units.iter().collect(),
        ..PathPatterns::default()
    };
    let mut classes = Classes::new();
    let nfa = Draft::cgroups(&patterns);
    let limit_bytes = 1 << 20;
    let found = search(units.len(), nfa, limit_bytes, |matched| {
        classes.class_of(matched)
    });
    assert!(found.err().unwrap().help.unwrap().contains("fewer `*`"));
}
