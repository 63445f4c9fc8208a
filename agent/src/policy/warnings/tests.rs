//! Warnings are about what is so, and there is none without a reason.

use super::*;
use crate::policy::{
    Surroundings, compile,
    explain::explain,
    geography::Nowhere,
    testing::{Random, Scene},
};

fn warned(rules: &str) -> Vec<String> {
    let text = format!("mode = \"report\"\n{rules}");
    let policy = Policy::parse(&text, "policy").unwrap();
    let surroundings = Surroundings {
        geography: &Nowhere,
        users: &|_: &str| Some(1000),
        own_addresses: &[],
        link_local: crate::policy::LinkLocal::default(),
    };
    let compiled = compile(&policy, &surroundings, 1).unwrap();
    let warnings = warnings(&policy, &compiled);
    warnings
        .iter()
        .map(|warning| warning.as_warning("p").to_string())
        .collect()
}

/// A rule by what its two tables say.
fn rule(name: &str, from: &str, to: &str, verdict: &str) -> String {
    let table = |key: &str, text: &str| match text {
        "" => String::new(),
        text => format!("{key} = {{ {text} }}\n"),
    };
    format!(
        "[[rules]]\nname = \"{name}\"\n{}{}verdict = \"{verdict}\"\n",
        table("from", from),
        table("to", to)
    )
}

#[test]
fn nothing_is_said_of_a_plain_policy() {
    let rules = rule("a", r#"unit = "a.service""#, r#"networks = ["192.0.2.0/24"]"#, "approve")
        + &rule("b", r#"unit = "a.service""#, r#"networks = ["198.51.100.0/24"]"#, "approve")
        + &rule("c", "", r#"networks = ["192.0.2.0/24"], ports = ["443/tcp"]"#, "approve")
        // The rest of what `a` and `c` made exceptions to.
        + &rule("d", "", r#"networks = ["192.0.2.0/23"]"#, "deny");
    assert_eq!(warned(&rules), Vec::<String>::new());
}

#[test]
fn a_rule_behind_one_that_takes_everything_never_matches() {
    let rules = rule("wide", "", r#"networks = ["192.0.2.0/24"]"#, "deny")
        + &rule(
            "narrow",
            r#"unit = "a.service""#,
            r#"networks = ["192.0.2.7"], ports = ["1"]"#,
            "approve",
        )
        + &rule(
            "other",
            r#"unit = "a.service""#,
            r#"networks = ["192.0.3.7"]"#,
            "approve",
        );
    let warnings = warned(&rules);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in [
        "p:6:1: warning: rules[1]: ",
        "`wide` (line 2) takes all of it",
        "decides otherwise",
        "help",
    ] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
    // Patterns are compared by what they match.
    let by = |first: &str, second: &str| {
        let to = r#"networks = ["192.0.2.0/24"]"#;
        warned(&(rule("1", first, to, "approve") + &rule("2", second, to, "approve"))).len()
    };
    assert_eq!(by(r#"exe = "/opt/**""#, r#"exe = "/opt/*/bin/x""#), 1);
    assert_eq!(by(r#"exe = "/opt/*/bin/x""#, r#"exe = "/opt/**""#), 0);
    assert_eq!(by(r#"unit = "a*.service""#, r#"unit = "ab?.service""#), 1);
    assert_eq!(by(r#"user = ["1", "2"]"#, r#"user = "2""#), 1);
    assert_eq!(by(r#"user = "2""#, r#"user = ["1", "2"]"#), 0);
}

#[test]
fn what_an_exception_takes_is_there_for_others_when_it_has_expired() {
    let to = r#"networks = ["192.0.2.0/24"]"#;
    let exception = "exception = { id = \"EX-1\", basis = \"b\", reason = \"r\", \
                     approved_by = [\"a\", \"c\"], expires = 2027-01-31T00:00:00Z }\n";
    let rules = rule("ex", "", to, "approve") + exception + &rule("rest", "", to, "approve");
    assert_eq!(warned(&rules), Vec::<String>::new());
    let swapped = rule("rest", "", to, "approve") + &rule("ex", "", to, "approve") + exception;
    assert_eq!(warned(&swapped).len(), 1);
}

#[test]
fn several_rules_may_take_everything_together() {
    let half = |name: &str, network: &str| {
        rule(name, "", &format!("networks = [\"{network}\"]"), "approve")
    };
    let rules = half("low", "192.0.2.0/25")
        + &half("unrelated", "192.0.2.0/30")
        + &half("high", "192.0.2.128/25");
    let whole = half("whole", "192.0.2.0/24");
    let warnings = warned(&(rules.clone() + &whole));
    assert!(
        warnings
            .iter()
            .any(|one| one.contains("`low` (line 2) and rule `high`")
                && one.contains("together take")
                && !one.contains("`unrelated`")),
        "{warnings:?}"
    );
    // `unrelated` is behind `low`.
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let wider = half("whole", "192.0.2.0/23");
    assert_eq!(warned(&(rules + &wider)).len(), 1);
}

#[test]
fn rules_that_contradict_each_other_in_part_are_named_with_what_they_share() {
    let rules = rule(
        "office",
        r#"unit = "a.service""#,
        r#"networks = ["192.0.2.0/24"]"#,
        "approve",
    ) + &rule(
        "no mail",
        "",
        r#"networks = ["192.0.0.0/16"], ports = ["25/tcp"]"#,
        "deny",
    );
    let warnings = warned(&rules);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in [
        "rules[1]: overlaps with rule `office` (line 2), which comes first and says `approve`",
        "both match unit `a.service`, to 192.0.2.0/24, by 25/tcp",
    ] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
    // Flows that an earlier rule takes are not shared.
    let before = rule(
        "first",
        "",
        r#"networks = ["192.0.2.0/24"], ports = ["25/tcp"]"#,
        "deny",
    );
    let warnings = warned(&(before + &rules));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("overlaps with rule `first`"),
        "{warnings:?}"
    );
}

#[test]
fn approving_of_very_much_is_told() {
    let cases = [
        (
            r#"countries = ["IE", "EU"]"#,
            Some("whole countries: `IE`, `EU`"),
        ),
        (r#"zones = ["home"]"#, Some("zone `home` (EEA)")),
        (
            r#"networks = ["0.0.0.0/0"]"#,
            Some("every destination there is"),
        ),
        (
            r#"ports = ["443/tcp"]"#,
            Some("on these ports or protocols"),
        ),
        (r#"networks = ["192.0.2.0/24"], countries = ["IE"]"#, None),
        (r#"zones = ["office"]"#, None),
        (r#"asns = [64500]"#, None),
        (r#"gateway = "g""#, None),
    ];
    for (to, expected) in cases {
        let places = "[zones]\nhome = [\"EEA\"]\noffice = [\"192.0.2.0/24\"]\n[[gateways]]\nname = \"g\"\n\
                      endpoints = [\"192.0.2.1:1/tcp\"]\n";
        let about = |verdict: &str| {
            let text = format!("mode = \"report\"\n{places}{}", rule("r", "", to, verdict));
            let policy = Policy::parse(&text, "policy").unwrap();
            approves_much(&policy, &policy.rules[0]).map(|fault| fault.message)
        };
        let said = about("approve");
        assert_eq!(said.is_some(), expected.is_some(), "{to}: {said:?}");
        assert!(
            said.unwrap_or_default()
                .contains(expected.unwrap_or_default()),
            "{to}"
        );
        assert_eq!(about("deny"), None, "{to}");
    }
    let warnings = warned(&rule(
        "r",
        "",
        r#"networks = ["192.0.2.0/24"], countries = ["IE"]"#,
        "deny",
    ));
    assert!(
        warnings[0].contains("rules[0].to: the rule can never match: no address is all"),
        "{warnings:?}"
    );
    let both = r#"unit = "a.service", cgroup = "/b""#;
    let warnings = warned(&rule("r", both, r#"networks = ["192.0.2.0/24"]"#, "deny"));
    assert!(
        warnings[0].contains("rules[0].from: the rule can never match: no control group is all"),
        "{warnings:?}"
    );
}

/// A rule that is said never to match matches no random flow.
#[test]
fn random_flows_match_no_rule_that_is_said_never_to_match() {
    let mut n_dead = 0;
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let scene = Scene::new(seed);
        let surroundings = scene.surroundings();
        let compiled = compile(&scene.policy, &surroundings, 1).unwrap();
        let warnings = warnings(&scene.policy, &compiled);
        let dead: Vec<usize> = warnings
            .iter()
            .filter(|warning| warning.message.contains("can never match"))
            .map(|warning| {
                let index = warning.key.trim_start_matches("rules[");
                index.split(']').next().unwrap().parse().unwrap()
            })
            .collect();
        n_dead += dead.len();
        for _ in 0..300 {
            let asked = scene.question(&mut random);
            let is_known = asked.cgroup.is_some()
                && asked.executable.is_some()
                && !asked.is_foreign
                && asked.uid < u32::MAX
                && asked.gid.is_some()
                && asked.interactive.is_some()
                && (asked.interactive == Some(false) || asked.origin.is_some())
                && asked.direction.is_some()
                && asked.near_port != Some(0);
            // Of anybody else every rule that denies takes some.
            if !is_known {
                continue;
            }
            let rule = usize::from(compiled.judge(&asked.question()).rule);
            // An address that says nothing of where somebody is makes a session unknown, too.
            let could = || {
                let read = explain(&scene.policy, &surroundings, &asked.question());
                read.rules[rule].could()
            };
            assert!(!dead.contains(&rule) || could(), "{seed}: {}", scene.text);
        }
    }
    assert!(n_dead > 50, "{n_dead}");
}

const GATEWAY: &str = "[[gateways]]\nname = \"dublin-1\"\nclients = [\"192.0.2.16/28\"]\n";

/// [`rule`] of sessions that others open.
fn accepted(name: &str, from: &str, to: &str) -> String {
    rule(name, from, to, "approve").replacen("]]\n", "]]\ndirection = \"accepted\"\n", 1)
}

#[test]
fn sessions_from_everywhere_are_warned_of() {
    let web = r#"unit = "nginx.service", ports = ["443/tcp"]"#;
    let everywhere = "sessions that anybody may open, from everywhere";
    for to in ["", r#"networks = ["0.0.0.0/0"]"#, r#"networks = ["::/0"]"#] {
        let warnings = warned(&accepted("web", web, to));
        assert_eq!(warnings.len(), 1, "{to}: {warnings:?}");
        assert!(warnings[0].contains(everywhere), "{warnings:?}");
    }
    for to in [
        r#"networks = ["198.51.100.0/24"]"#,
        r#"gateway = "dublin-1""#,
    ] {
        let warnings = warned(&(GATEWAY.to_owned() + &accepted("web", web, to)));
        assert_eq!(warnings, Vec::<String>::new(), "{to}");
    }
}

#[test]
fn a_service_to_log_in_by_that_others_than_a_gateway_reach_is_warned_of() {
    let login = "a service to log in by";
    let office = r#"networks = ["198.51.100.0/24"]"#;
    let is_told = |rules: &str| {
        let warnings = warned(&(GATEWAY.to_owned() + rules));
        warnings.iter().filter(|one| one.contains(login)).count()
    };
    let ssh = r#"ports = ["22/tcp"]"#;
    let by_gateway = accepted("ssh", ssh, r#"gateway = "dublin-1""#);
    assert_eq!(is_told(&by_gateway), 0);
    assert_eq!(
        is_told(&accepted("ssh", ssh, r#"networks = ["192.0.2.17"]"#)),
        0
    );
    for from in [
        ssh,
        r#"ports = ["1-1023/tcp"]"#,
        r#"exe = "/usr/sbin/sshd", ports = ["2222/tcp"]"#,
        r#"exe = "/usr/sbin/*""#,
        r#"unit = "ssh.service""#,
    ] {
        assert_eq!(is_told(&accepted("ssh", from, office)), 1, "{from}");
    }
    for from in [
        r#"ports = ["443/tcp"]"#,
        r#"exe = "/usr/sbin/nginx""#,
        r#"unit = "nginx.service""#,
        r#"container = "docker:*""#,
    ] {
        assert_eq!(is_told(&accepted("web", from, office)), 0, "{from}");
    }
    // A rule that does not say who opens them, unless one before it denies.
    let wide = rule("office", "", office, "approve");
    assert_eq!(is_told(&wide), 1);
    assert_eq!(is_told(&(rule("no ssh", ssh, "", "deny") + &wide)), 0);
    let outbound = wide.replacen("]]\n", "]]\ndirection = \"outbound\"\n", 1);
    assert_eq!(is_told(&outbound), 0);
    assert_eq!(
        is_told(&rule(
            "web",
            "",
            &format!("{office}, ports = [\"443/tcp\"]"),
            "approve"
        )),
        0
    );
}
