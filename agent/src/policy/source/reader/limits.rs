//! Reading `budget` and `exception` of a rule.

use toml::de::DeValue;

use super::tables::{At, Keys, Reader, a};
use crate::policy::problem::Fault;
use crate::policy::source::{Budget, Exception, Rule, RuleVerdict, limit};

const BUDGET_KEYS: Keys = Keys {
    known: &["bytes", "per"],
    later: &[],
    elsewhere: &[],
};
const EXCEPTION_KEYS: Keys = Keys {
    known: &[
        "id",
        "basis",
        "reason",
        "approved_by",
        "starts",
        "expires",
        "bytes",
    ],
    later: &[],
    elsewhere: &[],
};

impl Reader<'_> {
    /// Reads both into `rule`, whose verdict is known.
    pub(super) fn limits(&mut self, at: At<'_>, rule: &mut Rule) {
        let path = format!("{}.budget", at.path);
        if let Some(budget) = self.sub_table(at, "budget", &path) {
            rule.budget = self.budget(budget);
            self.only_of_approval(at, budget, rule.verdict, "budget");
        }
        let path = format!("{}.exception", at.path);
        if let Some(exception) = self.sub_table(at, "exception", &path) {
            rule.exception = self.exception(exception);
            self.only_of_approval(at, exception, rule.verdict, "exception");
            if at.table.contains_key("budget") {
                let fault = Fault::new("the rule has a budget as well")
                    .help("leave out `budget`: an exception has `bytes` of its own");
                self.problem(fault, exception.offset, exception.path);
            }
        }
    }

    fn only_of_approval(&mut self, rule: At<'_>, at: At<'_>, verdict: RuleVerdict, what: &str) {
        // A verdict that is not understood is taken for a denial, and a problem already.
        let denies = matches!(
            rule.table.get("verdict").map(|verdict| verdict.get_ref()),
            Some(DeValue::String(text)) if text.as_ref() == RuleVerdict::Deny.as_str()
        );
        if verdict == RuleVerdict::Deny && denies {
            let fault = Fault::new(format!("a rule that denies has no {what}"))
                .help(format!("leave it out, or approve with {what}"));
            self.problem(fault, at.offset, at.path);
        }
    }

    fn budget(&mut self, at: At<'_>) -> Option<Budget> {
        self.check_keys(at, &BUDGET_KEYS);
        let bytes = self.value(at, "bytes", "write `bytes = \"50 GiB\"`", |text| {
            limit::bytes(text).map(|bytes| (bytes, text.to_owned()))
        });
        let per = self.value(at, "per", "write `per = \"24h\"`", |text| {
            limit::window(text).map(|per| (per, text.to_owned()))
        });
        let ((bytes, bytes_text), (per, per_text)) = (bytes?, per?);
        Some(Budget {
            bytes,
            per,
            written: format!("{bytes_text} per {per_text}"),
        })
    }

    fn exception(&mut self, at: At<'_>) -> Option<Exception> {
        self.check_keys(at, &EXCEPTION_KEYS);
        let id = self.value(
            at,
            "id",
            "write what it is called, as in `id = \"EX-12\"`",
            limit::line,
        );
        let basis = self.value(
            at,
            "basis",
            "write the legal basis, as in `basis = \"Art. 49(1)(e)\"`",
            limit::line,
        );
        let reason = self.value(at, "reason", "write why", limit::line);
        let approved_by = self.approved_by(at);
        let starts_us = self.moment(at, "starts");
        let expires_us = self.moment(at, "expires");
        if !at.table.contains_key("expires") {
            let help = "an exception ends: write `expires = 2027-01-31T00:00:00Z`";
            self.missing(at, "expires", help);
        }
        let is_backwards = starts_us
            .zip(expires_us)
            .is_some_and(|(starts_us, expires_us)| expires_us <= starts_us);
        if is_backwards {
            let fault = Fault::new("it expires before it starts")
                .help("give `expires` a later moment than `starts`");
            self.problem(fault, at.offset, at.path);
        }
        let bytes = at
            .table
            .contains_key("bytes")
            .then(|| self.value(at, "bytes", "write `bytes = \"2 GiB\"`", limit::bytes));
        Some(Exception {
            id: id?,
            basis: basis?,
            reason: reason?,
            approved_by: approved_by?,
            starts_us,
            expires_us: expires_us?,
            bytes: match bytes {
                Some(bytes) => Some(bytes?),
                None => None,
            },
        })
    }

    fn approved_by(&mut self, at: At<'_>) -> Option<Vec<String>> {
        const KEY: &str = "approved_by";
        let Some(value) = at.table.get(KEY) else {
            let help = "name two who did: `approved_by = [\"dpo\", \"auditor\"]`";
            self.missing(at, KEY, help);
            return None;
        };
        let names = self.values(at, KEY, limit::line)?;
        // A name that was not understood is a problem of its own.
        let n_written = match value.get_ref() {
            DeValue::Array(written) => written.len(),
            _ => 1,
        };
        if names.len() == n_written
            && !names.is_empty()
            && let Err(fault) = limit::approved_by(&names)
        {
            self.problem(fault, value.span().start, format!("{}.{KEY}", at.path));
        }
        Some(names)
    }

    /// The moment in `key`, if it is there.
    fn moment(&mut self, at: At<'_>, key: &str) -> Option<u64> {
        let value = at.table.get(key)?;
        let moment = match value.get_ref() {
            DeValue::Datetime(datetime) => limit::moment(datetime),
            other => Err(Fault::new(format!("is {}, not a date", a(other)))
                .help("write it without quotes, as in `2027-01-31T00:00:00Z`")),
        };
        match moment {
            Ok(moment) => Some(moment),
            Err(fault) => {
                let path = format!("{}.{key}", at.path);
                self.problem(fault, value.span().start, path);
                None
            }
        }
    }

    /// The value of a string that must be there.
    fn value<T>(
        &mut self,
        at: At<'_>,
        key: &str,
        help: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let (text, offset) = self.required_string(at, key, help)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.problem(fault, offset, format!("{}.{key}", at.path));
                None
            }
        }
    }

    /// An exception is one rule's: its bytes and its uses are counted once.
    pub(super) fn check_exceptions(&mut self, rules: &[Rule]) {
        for (index, rule) in rules.iter().enumerate() {
            let Some(exception) = &rule.exception else {
                continue;
            };
            let id = |rule: &Rule| rule.exception.as_ref().map(|own| own.id.clone());
            let first = rules[..index]
                .iter()
                .find(|before| id(before).as_ref() == Some(&exception.id));
            if let Some(first) = first {
                let fault = Fault::new(format!(
                    "exception `{}` is the one of rule `{}` as well",
                    exception.id, first.name.value
                ))
                .help("list alternatives in one rule, or give each exception its own id");
                let path = format!("rules[{index}].exception.id");
                self.problem_at(fault, rule.place, path);
            }
        }
    }
}
