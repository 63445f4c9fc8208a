//! `from.session`: where somebody logged in from.

use super::tables::{At, Reader};
use super::{SESSION_KEYS, countries_of_rule, value};
use crate::policy::problem::Fault;
use crate::policy::source::{Gateway, Origin, Rule, Zone};

impl Reader<'_> {
    pub(super) fn session(
        &mut self,
        from: At<'_>,
        rule: &Rule,
        zones: &[Zone],
        gateways: &[Gateway],
    ) -> Option<Origin> {
        let path = format!("{}.session", from.path);
        let at = self.sub_table(from, "session", &path)?;
        self.check_keys(at, &SESSION_KEYS);
        if rule.interactive == Some(false) {
            let fault = Fault::new("the rule can match nothing: `interactive` is false")
                .help("take out one of both: what has an origin is a login session");
            self.problem(fault, at.offset, &path);
        }
        let names: Vec<&str> = gateways
            .iter()
            .map(|gateway| &*gateway.name.value)
            .collect();
        let origin = Origin {
            networks: self.values(at, "networks", value::network),
            countries: self.values(at, "countries", |text| countries_of_origin(text, zones)),
            gateways: self.references(at, "gateway", &names),
        };
        self.check_origins(at, &origin, gateways);
        Some(origin)
    }

    /// The gateways open sessions to hosts.
    fn check_origins(&mut self, at: At<'_>, origin: &Origin, gateways: &[Gateway]) {
        // A key that is missing may have been there, and been wrong.
        let Some(value) = at.table.get("gateway") else {
            return;
        };
        if self.has_problem_with("gateways") {
            return;
        }
        for &index in origin.gateways.iter().flatten() {
            let gateway = &gateways[index];
            if gateway.clients.is_empty() {
                let name = &gateway.name.value;
                let fault = Fault::new(format!("nobody logs in by gateway `{name}`"))
                    .help("give it `clients`, the networks from which it opens sessions to hosts");
                self.problem(fault, value.span().start, format!("{}.gateway", at.path));
            }
        }
    }
}

fn countries_of_origin(text: &str, zones: &[Zone]) -> Result<crate::policy::source::Area, Fault> {
    countries_of_rule(text, zones).map_err(|fault| {
        match zones.iter().find(|zone| zone.name == text) {
            Some(_) => Fault::new(format!("`{text}` is a zone"))
                .help("list its countries, and its networks in `networks`, here"),
            None => fault,
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::policy::source::Policy;

    #[test]
    fn what_would_be_right_is_said() {
        for (line, help) in [
            ("from = { session = \"out\" }", "`session = { ... }`"),
            ("from = { session = {} }", "leave out `session`"),
            (
                "from = { sesion = { countries = \"DE\" } }",
                "did you mean `session`?",
            ),
            (
                "from = { origin = { countries = \"DE\" } }",
                "did you mean `session`?",
            ),
            (
                "from = { session = { gatway = \"out\" } }",
                "did you mean `gateway`?",
            ),
            (
                "from = { session = { ip = \"192.0.2.1\" } }",
                "did you mean `networks`?",
            ),
            (
                "from = { session = { ports = 22 } }",
                "`to = { ports = ... }`",
            ),
            (
                "from = { session = { gateway = \"in\" } }",
                "the policy has: out",
            ),
            (
                "from = { session = { gateway = \"out\" } }",
                "give it `clients`",
            ),
            (
                "from = { session = { countries = \"home\" } }",
                "list its countries",
            ),
            (
                "from = { session = { networks = \"127.0.0.1\" } }",
                "what goes to 127.0.0.0/8",
            ),
            (
                "from = { session = { countries = \"DE\" }, interactive = false }",
                "take out one of both",
            ),
        ] {
            let text = format!(
                "mode = \"report\"\n[zones]\nhome = \"EEA\"\n[[gateways]]\nname = \"out\"\n\
                 endpoints = \"192.0.2.1:1/tcp\"\n[[rules]]\nname = \"x\"\nverdict = \"deny\"\n\
                 {line}"
            );
            let problems = Policy::parse(&text, "policy.toml").unwrap_err().list;
            assert_eq!(problems.len(), 1, "{line}: {problems:?}");
            assert_eq!(problems[0].place.line, 10, "{line}");
            let problem = problems[0].to_string();
            assert!(problem.contains(help), "{line}: {problem}");
        }
    }
}
