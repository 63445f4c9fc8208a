//! Reasons that `explain` gives, in words.

use std::net::IpAddr;

use super::*;
use crate::geo::Country;
use crate::policy::geography::{Geography, Users};

/// 192.0.2.0/24 is in Ireland.
struct Places;

impl Geography for Places {
    fn v4(&self) -> Box<dyn Iterator<Item = (u32, u32, Country)> + '_> {
        unimplemented!("explaining asks for single addresses only")
    }

    fn v6(&self) -> Box<dyn Iterator<Item = (u128, u128, Country)> + '_> {
        unimplemented!("explaining asks for single addresses only")
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        let irish = "192.0.2.";
        address
            .to_string()
            .starts_with(irish)
            .then(|| Country::parse("IE").unwrap())
    }

    fn build_id(&self) -> &str {
        "places 2026-01-01"
    }
}

fn users(name: &str) -> Option<u32> {
    (name == "postgres").then_some(26)
}

const POLICY: &str = r#"
mode = "report"
[zones]
home = ["EEA", "198.51.100.0/24"]
[[gateways]]
name = "dublin"
endpoints = ["192.0.2.10:443/tcp", "[2001:db8:1::10]:443/tcp"]
[[rules]]
name = "exports"
from = { unit = "export@*.service" }
to = { gateway = "dublin" }
verdict = "approve"
[[rules]]
name = "database"
from = { user = ["postgres", 27], exe = "/usr/bin/*" }
to = { zones = "home", ports = ["5432/tcp"] }
verdict = "approve"
[[rules]]
name = "never"
to = { countries = "EU", protocols = ["sctp", "gre"] }
verdict = "deny"
"#;

fn explained(inquiry: &Inquiry) -> Explanation {
    let policy = Policy::parse(POLICY, "policy.toml").unwrap();
    let surroundings = Surroundings {
        geography: &Places,
        users: &users,
        own_addresses: &["192.0.2.99".parse().unwrap()],
        link_local: crate::policy::LinkLocal::default(),
    };
    let explanation = explain(&policy, &surroundings, &inquiry.question());
    let ruling = decide(&policy, &surroundings, &inquiry.question());
    assert_eq!(ruling.name(), explanation.verdict);
    assert_eq!(ruling.rule, explanation.rule);
    explanation
}

#[test]
fn a_destination_is_taken_as_reports_show_it() {
    let asked = |to: &str| Inquiry::to(to).map(|it| (it.destination, it.port, it.protocol.0));
    let (v4, v6) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
    assert_eq!(asked("192.0.2.7:53/udp"), Ok((v4, 53, 17)));
    assert_eq!(asked("192.0.2.7:443"), Ok((v4, 443, 6)));
    assert_eq!(asked("[2001:db8::7]:443/tcp"), Ok((v6, 443, 6)));
    assert_eq!(asked("192.0.2.7/icmp"), Ok((v4, 0, 1)));
    // A network is no destination, and its prefix no protocol.
    for wrong in [
        "192.0.2.0/24",
        "192.0.2.7:443/",
        "192.0.2.7:1/tpc",
        "192.0.2.7:1/icmp",
        "/tcp",
    ] {
        assert!(asked(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_flow_that_a_rule_approves() {
    let inquiry = Inquiry::to("192.0.2.7:5432")
        .and_then(|inquiry| inquiry.from_unit("postgresql@15-main.service"))
        .and_then(|inquiry| inquiry.from_executable("/usr/bin/postgres"))
        .and_then(|inquiry| inquiry.from_user("postgres", &users as &dyn Users))
        .unwrap();
    let text = explained(&inquiry).to_string();
    assert_eq!(
        text,
        "tcp to 192.0.2.7 port 5432 (IE) from user id 26, /usr/bin/postgres in \
         /system.slice/postgresql@15-main.service: approved, passed (report mode)\n  \
         rule `database` on line 13 matches first\n\
         \n\
         policy.toml:8: rule `exports` (approve) does not match\n  \
         no   from.unit   control group /system.slice/postgresql@15-main.service is in no unit of \
         `export@*.service`\n  \
         no   to.gateway  192.0.2.7:5432/tcp is no endpoint: 192.0.2.10:443/tcp, \
         [2001:db8:1::10]:443/tcp\n\
         \n\
         policy.toml:13: rule `database` (approve) matches\n  \
         yes  from.exe   /usr/bin/postgres matches `/usr/bin/*`\n  \
         yes  from.user  user id 26 is `postgres`\n  \
         yes  to.zones   192.0.2.7 is in zone `home`, in IE, which is in EEA\n  \
         yes  to.ports   5432/tcp is in `5432/tcp`\n"
    );
}

#[test]
fn what_leaves_is_not_local_by_what_it_embeds() {
    let explanation = explained(&Inquiry::to("[2002:7f00:1::1]:22").unwrap());
    assert_eq!(explanation.verdict, "undetermined");
    assert_eq!(explanation.flow.embedded_addr, "127.0.0.1".parse().ok());
}

#[test]
fn a_flow_that_no_rule_matches() {
    let explanation = explained(&Inquiry::to("203.0.113.1:22").unwrap());
    assert_eq!(explanation.verdict, "undetermined");
    assert_eq!(explanation.outcome, "would-drop");
    assert_eq!(
        explanation.reason,
        "no rule matches, and the country of 203.0.113.1 is not known"
    );
    let reasons: Vec<&str> = explanation
        .rules
        .iter()
        .flat_map(|rule| &rule.conditions)
        .map(|condition| &*condition.reason)
        .collect();
    assert_eq!(
        reasons,
        [
            "the unit is not known",
            "203.0.113.1:22/tcp is no endpoint: 192.0.2.10:443/tcp, [2001:db8:1::10]:443/tcp",
            "the executable is not known",
            "user id 0 is no user of `postgres`, `27`",
            "203.0.113.1, whose country is not known, is in no zone of `home`",
            "22/tcp is no port of `5432/tcp`",
            "the country of 203.0.113.1 is not known",
            "tcp is no protocol of `sctp`, `gre`",
        ]
    );
}

#[test]
fn a_flow_that_a_rule_denies() {
    let explanation = explained(
        &Inquiry::to("::ffff:192.0.2.1")
            .and_then(|inquiry| inquiry.by("gre"))
            .unwrap(),
    );
    assert_eq!((explanation.verdict, explanation.rule), ("denied", Some(2)));
    assert_eq!(explanation.flow.dst_addr.to_string(), "192.0.2.1");
    assert_eq!(
        explanation.rules[2].conditions[0].reason,
        "192.0.2.1 is in IE, which is in EU"
    );
}

#[test]
fn local_flows_ask_no_rule() {
    for (to, reason) in [
        (
            "127.0.0.1:80",
            "127.0.0.1 is an address of this host; what leaves for it nevertheless is judged by \
             the rules",
        ),
        (
            "192.0.2.99:80",
            "192.0.2.99 is an address of this host; what leaves for it nevertheless is judged by \
             the rules",
        ),
        ("224.0.0.251:80", "224.0.0.0/24 never leaves the link"),
    ] {
        let explanation = explained(&Inquiry::to(to).unwrap());
        assert_eq!(
            (explanation.verdict, explanation.outcome),
            ("local", "passed")
        );
        assert_eq!(explanation.reason, reason);
        assert!(explanation.rules.is_empty());
    }
}

#[test]
fn json_has_the_names_of_reports() {
    let explanation = explained(&Inquiry::to("192.0.2.10:443").unwrap());
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["flow"]["dst_country"], "IE");
    assert_eq!(json["flow"]["dst_port"], 443);
    assert_eq!(json["mode"], "report");
    assert_eq!(json["rule"], serde_json::Value::Null);
    assert_eq!(json["rules"][0]["verdict"], "approve");
    assert_eq!(json["rules"][0]["conditions"][1]["key"], "to.gateway");
    assert_eq!(json["rules"][0]["conditions"][1]["holds"], true);
}

#[test]
fn inquiries() {
    assert_eq!(Inquiry::to("[2001:db8::1]:53").unwrap().port, 53);
    assert_eq!(Inquiry::to("2001:db8::1").unwrap().port, 0);
    assert_eq!(Inquiry::to("[2001:db8::1]").unwrap().port, 0);
    let inquiry = || Inquiry::to("192.0.2.1").unwrap();
    assert_eq!(inquiry().from_user("4", &users).unwrap().uid, 4);
    assert_eq!(
        inquiry().from_unit("/x/y").unwrap().cgroup.as_deref(),
        Some("/x/y")
    );
    assert_eq!(inquiry().by("icmp").unwrap().protocol, Protocol(1));
    assert!(Inquiry::to("192.0.2.1:70000").is_err());
    assert!(inquiry().from_user("nobody-here", &users).is_err());
    assert!(inquiry().from_unit("nginx").is_err());
    assert!(inquiry().from_executable("curl").is_err());
    assert!(Inquiry::to("example.org:443").is_err());
    assert!(Inquiry::to("192.0.2.1:443").unwrap().by("icmp").is_err());
    assert!(Inquiry::to("192.0.2.1:443").unwrap().by("tpc").is_err());
}

#[test]
fn where_somebody_logged_in_from_is_asked_for_in_every_way() {
    const TEXT: &str = r#"
mode = "enforce"
[[gateways]]
name = "dublin"
clients = ["192.0.2.16/28"]
[[rules]]
name = "by dublin"
from = { session = { gateway = "dublin", networks = "192.0.2.0/24" } }
verdict = "approve"
"#;
    let own = ["192.0.2.20".parse().unwrap()];
    let surroundings = Surroundings {
        geography: &Places,
        users: &users,
        own_addresses: &own,
        link_local: crate::policy::LinkLocal::default(),
    };
    let asked = |verdict: &str, address: Option<&str>| -> (bool, Vec<String>, String) {
        let policy = Policy::parse(&TEXT.replace("approve", verdict), "policy.toml").unwrap();
        let inquiry = Inquiry::to("203.0.113.7:22").unwrap();
        let inquiry = match address {
            None => inquiry.logged_in(),
            Some("nobody") => inquiry,
            Some(address) => inquiry.logged_in_from(address).unwrap(),
        };
        let explanation = explain(&policy, &surroundings, &inquiry.question());
        let conditions = explanation.rules[0].conditions.iter();
        let reasons = conditions.map(|one| format!("{} {}", one.key, one.reason));
        let text = explanation.to_string();
        (explanation.rules[0].matches, reasons.collect(), text)
    };
    let (matches, reasons, text) = asked("approve", Some("192.0.2.17"));
    assert!(matches);
    assert_eq!(
        reasons,
        [
            "from.session.gateway the session came from 192.0.2.17, in 192.0.2.16/28, from where \
             `dublin` opens sessions",
            "from.session.networks the session came from 192.0.2.17, in 192.0.2.0/24",
        ]
    );
    assert!(text.contains("logged in from 192.0.2.17"), "{text}");
    let (matches, reasons, _) = asked("approve", Some("192.0.2.40"));
    assert!(!matches && reasons[0].contains("in no network of the gateway's clients"));
    let (matches, reasons, _) = asked("deny", Some("nobody"));
    assert!(!matches && reasons[0].ends_with("there is no login session"));
    // Not known: by the kernel, or since the address is this host's own or embeds another.
    for unknown in [
        None,
        Some("192.0.2.20"),
        Some("127.0.0.1"),
        Some("64:ff9b::192.0.2.17"),
    ] {
        let (approves, _, _) = asked("approve", unknown);
        let (denies, reasons, _) = asked("deny", unknown);
        assert!(!approves && denies, "{unknown:?}");
        assert!(reasons[0].contains("so it could match"), "{reasons:?}");
    }
    assert!(
        Inquiry::to("192.0.2.1:443")
            .unwrap()
            .logged_in_from("bob")
            .is_err()
    );
}

#[test]
fn who_is_asked_for_in_every_way() {
    const ID: &str = "4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042";
    let text = r#"
mode = "enforce"
[[rules]]
name = "all of it"
from = { cgroup = "/*.slice", container = "docker:4f2a*", group = 50, interactive = true }
verdict = "approve"
"#;
    let policy = Policy::parse(text, "policy.toml").unwrap();
    let surroundings = Surroundings {
        geography: &Places,
        users: &users,
        own_addresses: &[],
        link_local: crate::policy::LinkLocal::default(),
    };
    let reasons = |inquiry: &Inquiry| -> Vec<String> {
        let explanation = explain(&policy, &surroundings, &inquiry.question());
        let conditions = &explanation.rules[0].conditions;
        let of = |condition: &Condition| format!("{} {}", condition.holds, condition.reason);
        conditions.iter().map(of).collect()
    };
    let to = || Inquiry::to("192.0.2.7:22").unwrap();
    let whole = to()
        .from_container(&format!("docker:{ID}"))
        .and_then(|inquiry| inquiry.from_group("50", &users as &dyn Users))
        .unwrap()
        .logged_in();
    let path = format!("/system.slice/docker-{ID}.scope");
    assert_eq!(
        reasons(&whole),
        [
            format!("true control group {path} is in `/*.slice`"),
            format!("true control group {path} is in `docker:4f2a*`"),
            "true group id 50 is `50`".to_owned(),
            "true there is a login session".to_owned(),
        ]
    );
    let rootless = format!("/user.slice/user@1000.service/user.slice/docker-{ID}.scope");
    let other = to()
        .from_cgroup(&rootless)
        .and_then(|inquiry| inquiry.from_user("postgres", &users as &dyn Users))
        .unwrap();
    assert_eq!(
        reasons(&other),
        [
            format!("true control group {rootless} is in `/*.slice`"),
            format!(
                "false control group {rootless} may have been named docker:{ID} by a user or a \
                 service, so it is none of `docker:4f2a*`"
            ),
            "false the group is not known".to_owned(),
            "false there is no login session".to_owned(),
        ]
    );
    let denies = Policy::parse(&text.replace("approve", "deny"), "policy.toml").unwrap();
    let explanation = explain(&denies, &surroundings, &to().question());
    assert_eq!(explanation.verdict, "unapproved");
    let unknown = Inquiry {
        interactive: true,
        gid: None,
        ..to()
    };
    let explanation = explain(&denies, &surroundings, &unknown.question());
    assert_eq!(
        explanation.reason,
        "rule `all of it` on line 3 could match, and what is not known counts against the sender"
    );
    let text = explanation.to_string();
    for line in [
        "rule `all of it` (deny) could match",
        "may  from.cgroup       the control group is not known, so it could match",
        "yes  from.interactive  there is a login session",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(
        reasons(&to())[..2],
        [
            "false the control group is not known",
            "false the control group is not known"
        ]
    );
}
