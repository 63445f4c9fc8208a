//! Meaning of a policy's text, and the messages about mistakes in it.

use proptest::prelude::*;

use super::*;

/// The example of the design, without the keys that are not supported yet.
const EXAMPLE: &str = r#"
mode = "report"                    # "report": pass and report; "enforce": drop and report

[zones]                            # names for sets of places
home   = ["EEA", "GB", "CH"]
office = ["198.51.100.0/24", "2001:db8:10::/48"]
mixed  = "IE"

[[gateways]]
name      = "dublin-1"
endpoints = ["192.0.2.10:443/tcp", "[2001:db8:1::10]:443/tcp", "192.0.2.11/esp"]

[[rules]]
name    = "exports go through the gateway"
from    = { unit = "export@*.service" }
to      = { gateway = "dublin-1" }
verdict = "approve"

[[rules]]
name    = "database replication"
from    = { unit = ["postgresql@*.service"], exe = "/usr/lib/postgresql/*/bin/postgres", user = [26, "postgres"] }
to      = { networks = ["198.51.100.0/24"], ports = ["5432/tcp", 53, "8000-8010/udp"] }
verdict = "approve"

[[rules]]
name    = "never there"
verdict = "deny"
[rules.to]
countries = ["CN", "RU"]
zones = "office"
protocols = ["tcp", 47]
"#;

fn problems(text: &str) -> Vec<Problem> {
    Policy::parse(text, "policy.toml").unwrap_err().list
}

fn lines(text: &str) -> Vec<u32> {
    problems(text)
        .iter()
        .map(|problem| problem.place.line)
        .collect()
}

/// The only problem of a rule with these lines, beside a name and a verdict.
fn rule_problem(lines: &str) -> String {
    let text = format!(
        "mode = \"report\"\n[zones]\nhome = \"EEA\"\n[[gateways]]\nname = \"out\"\n\
         endpoints = \"192.0.2.1:1/tcp\"\n[[rules]]\nname = \"x\"\nverdict = \"deny\"\n{lines}"
    );
    let problems = problems(&text);
    assert_eq!(problems.len(), 1, "{lines}: {problems:?}");
    problems[0].to_string()
}

#[test]
fn the_example_is_read_whole() {
    let policy = Policy::parse(EXAMPLE, "policy.toml").unwrap();
    assert_eq!(policy.mode, Mode::Report);
    let zone = |name: &str| {
        policy
            .zones
            .iter()
            .position(|zone| zone.name == name)
            .unwrap()
    };
    assert_eq!(policy.zones[zone("home")].areas.len(), 3);
    assert_eq!(policy.zones[zone("mixed")].areas.len(), 1);
    let endpoints: Vec<String> = policy.gateways[0]
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        endpoints,
        [
            "192.0.2.10:443/tcp",
            "[2001:db8:1::10]:443/tcp",
            "192.0.2.11/esp"
        ]
    );
    let [exports, database, never] = &policy.rules[..] else {
        panic!("{} rules", policy.rules.len())
    };
    assert_eq!(exports.gateways, Some(vec![0]));
    assert_eq!(exports.networks, None);
    assert_eq!(exports.verdict, RuleVerdict::Approve);
    assert_eq!(
        exports.place,
        Place {
            line: 13,
            column: 1
        }
    );
    assert_eq!(
        exports.name.place,
        Place {
            line: 14,
            column: 11
        }
    );
    let users = database.users.as_ref().unwrap();
    assert_eq!(users[0].value, User::Id(26));
    assert_eq!(users[1].value, User::Name("postgres".to_owned()));
    assert_eq!(database.ports.as_ref().unwrap().len(), 3);
    assert_eq!(never.zones, Some(vec![zone("office")]));
    assert_eq!(never.protocols, Some(vec![Protocol(6), Protocol(47)]));
    assert_eq!(policy.fingerprint.len(), 64);
}

#[test]
fn the_smallest_policy_says_its_mode() {
    assert!(
        Policy::parse("mode = \"enforce\"", "policy.toml")
            .unwrap()
            .rules
            .is_empty()
    );
    let problems = problems("");
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].message, "`mode` is missing");
}

#[test]
fn ten_mistakes_on_ten_lines_are_ten_problems() {
    let text = r#"mode = "enforced"
[zones]
home = ["EEA", "UK"]
office = ["198.51.100.7/24"]
[[gateways]]
name = "dublin"
endpoints = ["192.0.2.10:443"]
[[rules]]
name = "a"
from = { unit = "nginx" }
to = { zones = "hom" }
verdict = "allow"
[[rules]]
name = "a"
from = { exe = "curl", }
too = { ports = "1/tcp" }
to = { ports = "1/icmp" }
verdict = "deny"
budget = { bytes = "50 GiB" }
"#;
    assert_eq!(
        lines(text),
        [1, 3, 4, 7, 10, 11, 12, 14, 15, 16, 17, 19, 19]
    );
}

#[test]
fn mistakes_of_syntax_end_with_their_statement() {
    let text = r#"mode = "report
[zones]
home = ["EEA", "GB" "CH"]
office = [ "192.0.2.0/24",
[[gateways]]
name = dublin
endpoints = ["192.0.2.10:443/tcp"]
[[rules]]
name = "x"
from = { unit = "a.service" exe = "/bin/x" }
to = { networks = ["192.0.2.1/24" }
verdict "approve"
[[rules]]
name = "y"
from = {
  unit = "nginx",
  exe = "/bin/x"
  user = "root",
}
to = { zones = ["home"], gateway = "dublin" }
verdict = "permit"
[[rules]]
name = "x"
verdict = "deny"
verdict = "deny"
to = { networks = "192.0.2.1/24" }
"#;
    assert_eq!(lines(text), [1, 3, 4, 6, 10, 11, 12, 18, 21, 23, 25, 26]);
}

#[test]
fn values_over_several_lines_stay_one_statement() {
    let text = "mode = \"report\"\n[zones]\na = [\n  \"IE\", # ]\n  \"DE\",\n]\nb = [\n  \"IE\"\n  \"DE\",\n]\nc = 'x\n";
    assert_eq!(lines(text), [9, 11]);
}

#[test]
fn a_broken_header_hides_no_other_mistake_and_makes_none_up() {
    let text = "mode = \"report\"\n[[rules]\nname = \"a\"\nverdict = \"deny\"\n[[rules]]\nname = \"b\"\n\
                verdict = \"maybe\"\nto = { zones = \"home\" }\n";
    assert_eq!(lines(text), [2, 7]);
}

#[test]
fn text_of_any_kind_is_survived() {
    for text in [
        "[",
        "]",
        "\"",
        "'''",
        "[[rules]]\n[[rules]]",
        "rules = 1",
        "[zones]\n[zones]",
        "= = =",
        "mode.x = 1",
        "[rules.from]",
        "[[rules.from]]",
        "zones = []",
        "rules = [1, {}]",
        "\u{feff}",
        "\r\n\r",
        "a = [[[[",
        "x = {{{{",
        "mode = \"report\"\nä = 1",
    ] {
        assert!(Policy::parse(text, "policy.toml").is_err(), "{text:?}");
    }
}

#[test]
fn keys_of_later_versions_are_refused_by_name() {
    let problem = rule_problem("to = { domains = [\"x\"] }");
    assert!(
        problem.contains("`domains` is not supported by this version yet"),
        "{problem}"
    );
}

#[test]
fn what_would_be_right_is_said() {
    for (line, help) in [
        (
            "to = { netwroks = \"192.0.2.1\" }",
            "did you mean `networks`?",
        ),
        (
            "ports = \"1/tcp\"\nto = { ports = 1 }",
            "`to = { ports = ... }`",
        ),
        ("to = { unit = \"x.service\" }", "`from = { unit = ... }`"),
        ("from = { units = \"x.service\" }", "did you mean `unit`?"),
        ("to = { asns = \"AS0\" }", "`64500` or `\"AS64500\"`"),
        ("to = { asns = \"AS\" }", "from 1 to 4294967295"),
        ("from = { interactive = \"yes\" }", "without quotes"),
        ("from = { group = 4294967295 }", "0 to 4294967294"),
        ("to = { countries = \"UK\" }", "write `GB`"),
        ("to = { countries = \"EL\" }", "write `GR`"),
        ("to = { countries = \"de\" }", "write `DE`"),
        ("to = { countries = \"Ireland\" }", "write `IE`"),
        (
            "to = { countries = \"home\" }",
            "write `zones = [\"home\"]`",
        ),
        ("to = { countries = \"eea\" }", "write `EEA`"),
        ("to = { zones = \"hme\" }", "did you mean `home`?"),
        ("to = { zones = \"DE\" }", "`countries = [\"DE\"]`"),
        ("to = { gateway = \"in\" }", "the policy has: out"),
        (
            "to = { networks = \"198.51.100.7/24\" }",
            "write `198.51.100.0/24`",
        ),
        (
            "to = { networks = \"127.0.0.53\" }",
            "what goes to 127.0.0.0/8 as it should is `local`",
        ),
        ("to = { networks = [] }", "leave the key out"),
        ("to = { networks = [true] }", "put the value in quotes"),
        ("to = {}", "leave out `to`"),
        ("to = \"DE\"", "`to = { ... }`"),
        ("", "0.0.0.0/0"),
        ("to = { protocols = \"tpc\" }", "did you mean `tcp`?"),
        ("to = { ports = \"1/gre\" }", "protocols = [\"gre\"]"),
        ("from = { user = 4294967295 }", "user ids"),
        ("from = { exe = \"curl\" }", "`/**/curl`"),
        ("from = { service = \"x.service\" }", "did you mean `unit`?"),
        ("from = { uid = 3 }", "did you mean `user`?"),
        ("from = { gid = 3 }", "did you mean `group`?"),
        ("from = { executable = \"/x\" }", "did you mean `exe`?"),
        ("to = { ip = \"192.0.2.1\" }", "did you mean `networks`?"),
        (
            "to = { cidr = \"192.0.2.0/24\" }",
            "did you mean `networks`?",
        ),
        ("to = { proto = \"tcp\" }", "did you mean `protocols`?"),
    ] {
        let problem = rule_problem(line);
        let said = problem.split_once("help: ").map(|(_, help)| help);
        assert!(
            said.is_some_and(|said| said.contains(help)),
            "{line}: {problem}"
        );
    }
}

#[test]
fn a_network_without_quotes_is_told_as_that() {
    for network in ["192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "2001:db8::1"] {
        for list in [format!("[{network}]"), network.to_owned()] {
            let problem = rule_problem(&format!("to = {{ networks = {list} }}"));
            assert!(
                problem.contains(&format!("`{network}` is not in quotes")),
                "{problem}"
            );
        }
    }
    let problem = rule_problem("to = { networks = [1.5.] }");
    assert!(!problem.contains("is not in quotes"), "{problem}");
}

#[test]
fn words_of_other_tools_for_verdicts_are_understood() {
    for (word, verdict) in [("allow", "approve"), ("block", "deny"), ("drop", "deny")] {
        let text = format!(
            "mode = \"report\"\n[[rules]]\nname = \"x\"\nto = {{ ports = \"1/tcp\" }}\n\
             verdict = \"{word}\"\n"
        );
        let problems = Policy::parse(&text, "policy.toml").unwrap_err().to_string();
        let help = format!("help: write `verdict = \"{verdict}\"`");
        assert!(problems.contains(&help), "{problems}");
    }
}

#[test]
fn endpoints() {
    for (wrong, help) in [
        ("192.0.2.1:443", "192.0.2.10:443/tcp"),
        ("192.0.2.1/tcp", "192.0.2.10:443/tcp"),
        ("2001:db8::1:443/tcp", "[2001:db8::10]:443/tcp"),
        ("gw.example.org:443/tcp", "tomorrow"),
        ("192.0.2.1:0/tcp", "1 to 65535"),
        ("192.0.2.1:443/esp", "has no ports"),
        ("127.0.0.1:443/tcp", "always `local`"),
        ("[::ffff:192.0.2.1]:443/tcp", "192.0.2.1"),
    ] {
        let fault = value::endpoint(wrong).unwrap_err();
        assert!(
            fault.help.as_ref().is_some_and(|text| text.contains(help)),
            "{wrong}: {fault:?}"
        );
    }
    assert_eq!(
        value::endpoint("[2001:db8::1]/esp").unwrap().to_string(),
        "2001:db8::1/esp"
    );
}

#[test]
fn names_are_used_once() {
    let text = "mode = \"report\"\n[[gateways]]\nname = \"g\"\nendpoints = \"192.0.2.1/esp\"\n\
                [[gateways]]\nname = \"g\"\nendpoints = \"192.0.2.1/esp\"\n";
    let problems = problems(text);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place, Place { line: 6, column: 8 });
    assert_eq!(problems[0].key, "gateways[1].name");
}

#[test]
fn a_line_that_is_broken_is_the_only_one_to_blame() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let mut n_broken = 0;
    for index in 0..lines.len() {
        let statement = lines[index].split(" #").next().unwrap().trim_end();
        for broken in [
            statement.get(..statement.len().saturating_sub(1)),
            statement.get(1..),
            Some(&*statement.replacen('=', "", 1)),
            Some(&*statement.replacen('"', "", 1)),
            Some(&*statement.replacen('[', "", 1)),
            Some(&*statement.replacen(',', "", 1)),
        ] {
            let Some(broken) = broken.filter(|broken| *broken != statement) else {
                continue;
            };
            let mut lines = lines.clone();
            lines[index] = broken;
            let Err(problems) = Policy::parse(&lines.join("\n"), "policy.toml") else {
                continue;
            };
            n_broken += 1;
            // A name that is defined under another is missed where it is used.
            let is_reference = |problem: &&Problem| problem.message.starts_with("there is no");
            let blamed: Vec<usize> = problems
                .list
                .iter()
                .filter(|problem| !is_reference(problem))
                .map(|problem| problem.place.line as usize - 1)
                .collect();
            assert!(
                blamed.iter().all(|&line| line == index),
                "{index} {broken:?}\n{problems}"
            );
        }
    }
    assert!(n_broken > 80, "{n_broken}");
}

/// The example with a few pieces taken out and others put in.
fn mutilated() -> impl Strategy<Value = String> {
    const PIECES: [&str; 20] = [
        "",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'''",
        "=",
        "\n",
        "\r",
        ".",
        ",",
        "#",
        "\u{e4}",
        "\0",
        "[[rules]]\n",
        "[rules.from]\n",
        "zones = 1\n",
        "1979-05-27",
        "0x1",
    ];
    let edit = (
        0..EXAMPLE.len(),
        0..12_usize,
        prop::sample::select(&PIECES[..]),
    );
    prop::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut text = EXAMPLE.to_owned();
        for (at, n_removed, piece) in edits {
            let start = at.min(text.len());
            let end = (start + n_removed).min(text.len());
            if text.is_char_boundary(start) && text.is_char_boundary(end) {
                text.replace_range(start..end, piece);
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_has_problems_in_it(text in mutilated()) {
        let is_toml = toml::de::DeTable::parse(&text).is_ok();
        match Policy::parse(&text, "policy.toml") {
            Ok(_) => prop_assert!(is_toml, "{}", text),
            Err(problems) => {
                prop_assert!(!problems.list.is_empty());
                let n_lines = text.matches('\n').count() as u32 + 1;
                for problem in &problems.list {
                    prop_assert!((1..=n_lines).contains(&problem.place.line), "{}", problem);
                }
            }
        }
    }
}

/// A rule that approves, with this line.
fn approving(line: &str) -> Result<Policy, Problems> {
    let text = format!(
        "mode = \"report\"\n[[rules]]\nname = \"a\"\nto = {{ ports = \"22/tcp\" }}\n\
         verdict = \"approve\"\n{line}\n"
    );
    Policy::parse(&text, "policy.toml")
}

const EXCEPTION: &str = "id = \"EX-1\", basis = \"b\", reason = \"r\", \
                         approved_by = [\"dpo\", \"auditor\"], expires = 2027-01-31T01:00:00+01:00";

#[test]
fn limits_are_read_with_their_units() {
    let policy = approving("budget = { bytes = \"50 GiB\", per = \"24h\" }").unwrap();
    let budget = policy.rules[0].budget.as_ref().unwrap();
    assert_eq!(budget.bytes, 50 << 30);
    assert_eq!(budget.per.as_secs(), 86_400);
    assert_eq!(budget.written, "50 GiB per 24h");

    let line = format!("exception = {{ {EXCEPTION}, bytes = \"2 TiB\" }}");
    let policy = approving(&line).unwrap();
    let exception = policy.rules[0].exception.as_ref().unwrap();
    assert_eq!(exception.expires_us, 1_801_353_600_000_000);
    assert_eq!(exception.bytes, Some(2 << 40));
    assert!(exception.holds_at(exception.expires_us - 1));
    assert!(!exception.holds_at(exception.expires_us));
}

#[test]
fn limits_that_cannot_be_meant_are_refused() {
    let without = |part: &str| format!("exception = {{ {} }}", EXCEPTION.replacen(part, "", 1));
    for (line, problem) in [
        (
            "budget = { bytes = \"50 GiB\" }".to_owned(),
            "`per` is missing",
        ),
        (
            "budget = { bytes = \"0 B\", per = \"1h\" }".to_owned(),
            "nothing could ever leave",
        ),
        (
            "budget = { bytes = \"1 GB\", per = \"1h\" }".to_owned(),
            "is not a size",
        ),
        (
            "budget = { bytes = \"1 B\", per = \"10ms\" }".to_owned(),
            "no length for a window",
        ),
        (
            "budget = { bytes = \"1 B\", per = \"1h\", of = 1 }".to_owned(),
            "not a known key",
        ),
        (without("id = \"EX-1\", "), "`id` is missing"),
        (without("basis = \"b\", "), "`basis` is missing"),
        (without("reason = \"r\", "), "`reason` is missing"),
        (
            without("approved_by = [\"dpo\", \"auditor\"], "),
            "`approved_by` is missing",
        ),
        (
            without(", expires = 2027-01-31T01:00:00+01:00"),
            "`expires` is missing",
        ),
        (
            without(", \"auditor\""),
            "nobody approves of an exception alone",
        ),
        (without("+01:00"), "in every time zone"),
        (
            format!("exception = {{ {EXCEPTION}, starts = 2027-02-01T00:00:00Z }}"),
            "expires before it starts",
        ),
        (
            format!("exception = {{ {EXCEPTION} }}\nbudget = {{ bytes = \"1 B\", per = \"1h\" }}"),
            "has a budget as well",
        ),
        (
            format!(
                "exception = {{ {} }}",
                EXCEPTION.replace("\"auditor\"", "\"DPO\"")
            ),
            "nobody approves of an exception alone",
        ),
    ] {
        let problems = approving(&line).unwrap_err().to_string();
        assert!(problems.contains(problem), "{line}: {problems}");
        assert_eq!(problems.matches("error:").count(), 1, "{line}: {problems}");
    }
    let twice = format!(
        "exception = {{ {EXCEPTION} }}\n[[rules]]\nname = \"b\"\nto = {{ ports = \"23/tcp\" }}\n\
         verdict = \"approve\"\nexception = {{ {EXCEPTION} }}"
    );
    let problems = approving(&twice).unwrap_err().to_string();
    assert!(
        problems.contains("the one of rule `a` as well"),
        "{problems}"
    );
}
