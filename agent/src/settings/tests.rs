//! Settings files: what they may say, what they may not, and which source wins.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::flow::FlowSettings;
use crate::gateway_log::{Mapping, Translation};

const SHIPPED: &str = include_str!("../../../packaging/trefoil.toml");

fn parse(text: &str) -> Settings {
    Settings::parse(text, "trefoil.toml").unwrap()
}

/// The mistakes as `line: key: message (help)`.
fn problems(text: &str) -> Vec<String> {
    let problems = Settings::parse(text, "trefoil.toml").unwrap_err();
    let show = |problem: &crate::policy::Problem| {
        let help = problem
            .help
            .as_deref()
            .map(|help| format!(" ({help})"))
            .unwrap_or_default();
        format!(
            "{}: {}: {}{help}",
            problem.place.line, problem.key, problem.message
        )
    };
    problems.list.iter().map(show).collect()
}

/// The shipped file with every setting switched on.
fn uncommented() -> String {
    let is_setting = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let lines = SHIPPED
        .lines()
        .map(|line| if is_setting(line) { &line[1..] } else { line });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_shipped_file_changes_nothing() {
    assert_eq!(parse(SHIPPED), Settings::default());
    assert_eq!(parse(""), Settings::default());
}

#[test]
fn the_shipped_file_shows_the_defaults() {
    let mut shown = parse(&uncommented());
    assert!(
        shown.policy_is_named,
        "a policy that is named has to be there"
    );
    shown.policy_is_named = false;
    // The default interval of 60 s is written as such.
    assert_eq!(shown, Settings::default());
}

#[test]
fn the_shipped_file_shows_every_setting() {
    // Each setting, misspelt, is unknown, and the help lists those there are.
    let listed = |text: &str| -> Vec<String> {
        let [problem] = &problems(text)[..] else {
            panic!("{:?}", problems(text))
        };
        let (_, list) = problem.rsplit_once("there are: ").unwrap();
        list.trim_end_matches(')')
            .split(", ")
            .map(str::to_owned)
            .collect()
    };
    let shown = uncommented();
    let keys = [
        listed("nonsense-of-that-kind = 1"),
        listed("[tables]\nnonsense-of-that-kind = 1"),
        listed("[gateway_log]\nnonsense-of-that-kind = 1"),
    ];
    assert!(keys[0].len() > 15 && keys[1].len() > 5, "{keys:?}");
    for key in keys.iter().flatten() {
        let is_shown = shown
            .lines()
            .any(|line| line == format!("[{key}]") || line.starts_with(&format!("{key} = ")));
        assert!(is_shown, "{key} is not in the shipped file");
    }
}

#[test]
fn every_field_of_a_gateways_log_can_be_named() {
    let settings = parse(
        r#"
        [gateway_log]
        time = "start"
        duration = "lasted"
        src_addr = "a"
        src_port = "b"
        dst_addr = "c"
        dst_port = "d"
        protocol = "e"
        community_id = "f"
        src_bytes = "g"
        dst_bytes = "h"
        translations = ["203.0.113.50:443 -> 192.0.2.10:443"]
        clock_skew = "1s"
        delay = "2s"
        "#,
    );
    assert_eq!(
        settings.gateway_log,
        Mapping {
            time: "start".to_owned(),
            duration: "lasted".to_owned(),
            src_addr: "a".to_owned(),
            src_port: "b".to_owned(),
            dst_addr: "c".to_owned(),
            dst_port: "d".to_owned(),
            protocol: "e".to_owned(),
            community_id: "f".to_owned(),
            src_bytes: "g".to_owned(),
            dst_bytes: "h".to_owned(),
            translations: vec![Translation::parse("203.0.113.50:443 -> 192.0.2.10:443").unwrap()],
            clock_skew: Duration::from_secs(1),
            delay: Duration::from_secs(2),
        }
    );
}

#[test]
fn everything_can_be_set() {
    let settings = parse(
        r#"
        policy = "/srv/policy.toml"
        geo = ["/srv/a.mmdb", "/srv/geoip"]
        cgroup = "/sys/fs/cgroup/test"
        uplinks = ["eth0", "bond0.7"]
        pin_dir = "/sys/fs/bpf/test"
        journal = "/run/systemd/journal.test/socket"
        journal_object_pid = true
        json = "/srv/log.json"
        evidence = "/srv/evidence"
        flows = "each"
        flows_rate = 0
        violations_rate = 1_000_000
        local_flows = true
        link_local = "local"
        update_interval = "1s"
        rollup_interval = "5m"
        heartbeat_interval = "1d"
        sweep_interval = "250ms"
        confirm_within = "30s"
        sha256_max_bytes = 0
        [tables]
        events_bytes = 4096
        flows = 1
        uplink_flows = 9
        remembered = 10
        uplinks = 11
        ended = 2
        processes = 3
        executables = 4
        cgroups = 5
        followed = 6
        rollups = 7
        pending = 8
        spool_bytes = "9 MiB"
        "#,
    );
    assert_eq!(
        settings,
        Settings {
            policy: "/srv/policy.toml".into(),
            policy_is_named: true,
            geo: vec!["/srv/a.mmdb".into(), "/srv/geoip".into()],
            cgroup: Some("/sys/fs/cgroup/test".into()),
            uplinks: Uplinks::Named(vec!["eth0".into(), "bond0.7".into()]),
            pin_dir: "/sys/fs/bpf/test".into(),
            journal: Some("/run/systemd/journal.test/socket".into()),
            journal_object_pid: true,
            json: Some("/srv/log.json".into()),
            evidence: Some("/srv/evidence".into()),
            flows: FlowMode::Each,
            flows_rate: 0,
            violations_rate: 1_000_000,
            local_flows: true,
            link_local: LinkLocal::Local,
            update_interval: Duration::from_secs(1),
            rollup_interval: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(86_400),
            sweep_interval: Duration::from_millis(250),
            confirm_within: Duration::from_secs(30),
            sha256_max_bytes: 0,
            tables: Tables {
                events_bytes: 4096,
                flows: 1,
                uplink_flows: 9,
                remembered: 10,
                uplinks: 11,
                ended: 2,
                processes: 3,
                executables: 4,
                cgroups: 5,
                followed: 6,
                rollups: 7,
                pending: 8,
                spool_bytes: 9 << 20,
            },
            gateway_log: Mapping::default(),
        }
    );
}

#[test]
fn words_instead_of_paths() {
    assert_eq!(parse("uplinks = \"none\"").uplinks, Uplinks::None);
    assert_eq!(parse("uplinks = [\"none\"]").uplinks, Uplinks::None);
    assert_eq!(
        parse("uplinks = \"eth0\"").uplinks,
        Uplinks::Named(vec!["eth0".into()])
    );
    assert_eq!(parse("cgroup = \"auto\"").cgroup, None);
    assert_eq!(parse("journal = \"none\"").journal, None);
    assert_eq!(parse("json = \"none\"").json, None);
    assert_eq!(parse("json = \"-\"").json, Some("-".into()));
}

#[test]
fn every_mistake_is_told_in_one_run() {
    #[rustfmt::skip]
    let mistakes = [
        ("policy = 7", "policy: the value is of type integer (it should be a text in quotes)"),
        ("geo = \"/srv/x.mmdb\"", "geo: the value is of type string (it should be a list, as in `[\"one\", \"two\"]`)"),
        ("cgroup = \"system.slice\"", "cgroup: `system.slice` is not an absolute path (begin with `/`)"),
        ("uplinks = [\"eth0\", \"none\"]", "uplinks: `none` cannot be an interface here (name interfaces as `ip link` shows them, or write `none` or `auto` alone)"),
        ("flow_rate = 7", "flow_rate: there is no setting `flow_rate` (did you mean `flows_rate`?)"),
        ("flows = \"all\"", "flows: `all` is not a way to report flows (write `\"each\"`, `\"rollup\"` or `\"auto\"`)"),
        ("violations_rate = -1", "violations_rate: -1 is out of range (a whole number from 0 to 1000000)"),
        ("local_flows = \"yes\"", "local_flows: the value is of type string (it should be `true` or `false`, without quotes)"),
        ("link_local = \"yes\"", "link_local: `yes` is not what can be made of it (write `\"judged\"` or `\"local\"`)"),
        ("update_interval = 60", "update_interval: the value is of type integer (it should be a duration with its unit, as in `\"10s\"`)"),
        ("rollup_interval = \"60\"", "rollup_interval: `60` is not a duration (write a whole number and a unit: `500ms`, `10s`, `5m`, `2h`, `1d`)"),
        ("sweep_interval = \"2m\"", "sweep_interval: `2m` is out of range (write a duration from `100ms` to `1m`)"),
        ("sha256_max_bytes = \"1 MB\"", "sha256_max_bytes: `1 MB` is not a size (write a whole number and a unit: `512 KiB`, `8 MiB`, `1 GiB`, or bytes)"),
        ("heartbeat_interval = 10 s", ": "),
        ("json = \"log.json\"", "json: `log.json` is not an absolute path (begin with `/`)"),
        ("journal = \"\"", "journal: `` is not an absolute path (begin with `/`)"),
        ("[tables]", ""),
        ("events_bytes = \"3 MiB\"", "tables.events_bytes: 3145728 bytes cannot be the size of a ring buffer (write a power of two from `4 KiB` to `1 GiB`)"),
        ("flows = 0", "tables.flows: 0 is out of range (a whole number from 1 to 16777216)"),
        ("processes = 1.5", "tables.processes: the value is of type float (it should be a whole number from 1 to 16777216)"),
        ("cgroup = 7", "tables.cgroup: there is no setting `tables.cgroup` (did you mean `cgroups`?)"),
    ];
    let text: String = mistakes
        .iter()
        .map(|(line, _)| format!("{line}\n"))
        .collect();
    let expected: Vec<String> = mistakes
        .iter()
        .enumerate()
        .filter(|(_, (_, message))| !message.is_empty())
        .map(|(index, (_, message))| format!("{}: {message}", index + 1))
        .collect();
    let found = problems(&text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(&expected) {
        // A text that is no TOML is reported in the words of the TOML parser.
        let agree = found == expected || expected.ends_with(": : ") && found.starts_with(expected);
        assert!(agree, "{found}\n{expected}");
    }
}

#[test]
fn a_table_has_to_be_one() {
    assert_eq!(
        problems("tables = 7"),
        [
            "1: tables: the value is of type integer (it should be a table: write `[tables]`, and its keys below)"
        ]
    );
    assert_eq!(problems("geo = [\"/a\", 7]").len(), 1);
}

#[test]
fn a_value_that_is_there_twice_is_a_mistake() {
    let problems = problems("flows_rate = 1\nflows_rate = 2\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("2: "), "{problems:?}");
}

#[test]
fn flags_win_over_the_file() {
    let file = parse("flows = \"each\"\ngeo = [\"/srv/a\"]\njson = \"-\"");
    assert_eq!(file.clone().with(Flags::default()), Ok(file.clone()));
    let settings = file.clone().with(Flags {
        policy: Some("policy.toml".into()),
        geo: vec!["b".into()],
        cgroup: Some("/cg".into()),
        uplinks: vec!["none".into()],
        pin_dir: Some("/pins".into()),
        journal: Some("none".into()),
        json: Some("log.json".into()),
        flows: Some(FlowMode::Rollup),
        confirm_within: Some("10min".into()),
    });
    assert_eq!(
        settings,
        Ok(Settings {
            policy: "policy.toml".into(),
            policy_is_named: true,
            geo: vec!["b".into()],
            cgroup: Some("/cg".into()),
            uplinks: Uplinks::None,
            pin_dir: "/pins".into(),
            journal: None,
            json: Some("log.json".into()),
            flows: FlowMode::Rollup,
            confirm_within: Duration::from_secs(600),
            ..file.clone()
        })
    );
    let uplinks = vec!["none".into(), "eth0".into()];
    let error = file
        .with(Flags {
            uplinks,
            ..Flags::default()
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`none` cannot be an interface here; name interfaces as `ip link` shows them, or write `none` or `auto` alone"
    );
}

/// Each stage has defaults of its own, for its tests and its documentation.
#[test]
fn the_flow_table_has_the_same_defaults() {
    let ours = Settings::default();
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
    let theirs = FlowSettings {
        mode: ours.flows,
        flows_rate: ours.flows_rate,
        violations_rate: ours.violations_rate,
        local: ours.local_flows,
        update_interval_ns: ns(ours.update_interval),
        rollup_interval_ns: ns(ours.rollup_interval),
        max_flows: ours.tables.followed as usize,
        max_rollups: ours.tables.rollups as usize,
        ..FlowSettings::default()
    };
    assert_eq!(theirs, FlowSettings::default());
}

#[test]
fn a_file_that_is_named_has_to_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trefoil.toml");
    let message = Settings::load(Some(&path)).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "read settings {}: No such file or directory (os error 2); name a readable file with --config, or none at all",
            path.display()
        )
    );
    fs::write(&path, "flows_rate = 7\n").unwrap();
    assert_eq!(Settings::load(Some(&path)).unwrap().flows_rate, 7);
    fs::write(&path, "\nflows_rate = \"7\"\n").unwrap();
    let message = Settings::load(Some(&path)).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}:2:14: ", path.display())),
        "{message}"
    );
}

#[test]
fn names_of_interfaces() {
    let parse = |names: &[&str]| Uplinks::parse(names.iter().copied());
    assert_eq!(parse(&["auto"]), Ok(Uplinks::Auto));
    assert_eq!(parse(&["none"]), Ok(Uplinks::None));
    for names in [
        &[][..],
        &[""],
        &["eth0", "auto"],
        &["a/b"],
        &["."],
        &["a b"],
        &["0123456789abcdef"],
    ] {
        assert!(parse(names).is_err(), "{names:?}");
    }
}

proptest! {
    #[test]
    fn whatever_the_file_it_is_read_or_refused(text in "([a-z_]{1,8} ?= ?[\"\\[\\]0-9a-z, ]{0,8}\n|\\[?\\[tables\\]\n|.){0,6}") {
        let _ = Settings::parse(&text, "file");
    }
}
