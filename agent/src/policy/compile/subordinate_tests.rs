//! Rules about users and groups that may give ids to others.

use crate::policy::geography::{Nowhere, Surroundings, Users};
use crate::policy::{LinkLocal, Question, load};

/// A host where user 7 may give ids to others, or where that cannot be known.
struct Subordinate(Option<(u32, u32)>);

impl Users for Subordinate {
    fn uid(&self, name: &str) -> Option<u32> {
        (name == "bob").then_some(7)
    }

    fn gid(&self, name: &str) -> Option<u32> {
        (name == "staff").then_some(50)
    }

    fn subordinate_uids(&self, uid: u32, _: Option<&str>) -> Option<Vec<(u32, u32)>> {
        let ids = self.0?;
        Some(if uid == 7 { vec![ids] } else { Vec::new() })
    }

    fn subordinate_gids(&self) -> Option<Vec<(u32, u32)>> {
        Some(vec![self.0?])
    }
}

#[test]
fn a_deny_means_subordinate_ids_too_and_an_approval_does_not() {
    let compiled_for = |from: &str, verdict: &str, users: &Subordinate| {
        let text = format!(
            "mode = \"report\"\n[[rules]]\nname = \"x\"\nfrom = {{ {from} }}\n\
             verdict = \"{verdict}\"\nto = {{ networks = [\"198.51.100.0/24\"] }}\n"
        );
        let surroundings = Surroundings {
            geography: &Nowhere,
            users,
            own_addresses: &[],
            link_local: LinkLocal::default(),
        };
        load(&text, "policy.toml", &surroundings, 1)
    };
    let users = Subordinate(Some((1000, 1009)));
    for (from, own) in [
        ("user = \"bob\"", 7),
        ("user = 7", 7),
        ("group = \"staff\"", 50),
    ] {
        for (verdict, others) in [("deny", true), ("approve", false)] {
            let compiled = compiled_for(from, verdict, &users).unwrap();
            let is_user = from.starts_with("user");
            for (id, holds) in [
                (own, true),
                (own + 1, false),
                (999, false),
                (1000, others),
                (1009, others),
                (1010, false),
            ] {
                let decision = compiled.judge(&Question {
                    cgroup: None,
                    executable: None,
                    is_foreign: false,
                    uid: if is_user { id } else { 0 },
                    gid: Some(if is_user { 0 } else { id }),
                    interactive: None,
                    origin: None,
                    direction: None,
                    near_port: None,
                    destination: "198.51.100.1".parse().unwrap(),
                    may_stay: true,
                    protocol: 17,
                    port: 9,
                    time_us: 0,
                });
                assert_eq!(decision.rule == 0, holds, "{from} {verdict} {id}");
            }
        }
    }
    let unknown = Subordinate(None);
    for from in ["user = \"bob\"", "group = \"staff\""] {
        let problems = compiled_for(from, "deny", &unknown).err().unwrap();
        assert!(
            problems.to_string().contains("subordinate ids"),
            "{problems}"
        );
        assert!(compiled_for(from, "approve", &unknown).is_ok());
    }
}
