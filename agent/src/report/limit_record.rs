//! Records of budgets and exceptions.

use super::{Field, Kind, Priority, Record, words};
use crate::{
    clock,
    limits::{Stage, Used},
    policy::{Budget, source::Exception},
};

impl Record {
    /// Makes the record of a budget or an exception that has come to this stage.
    #[must_use]
    pub fn limit(budget: &Budget, stage: Stage, used: Used, time_us: u64) -> Self {
        let (kind, subject) = match &budget.exception {
            Some(exception) => (Kind::Exception, exception.id.as_str()),
            None => (Kind::Budget, budget.name.as_str()),
        };
        let priority = match stage {
            Stage::UsedUp => Priority::Warning,
            _ => Priority::Notice,
        };
        let message = match &budget.exception {
            Some(exception) => exception_message(budget, exception, stage, used),
            None => budget_message(budget, stage, used),
        };
        let mut record = Self::new(kind, priority, time_us, message);
        record.set(Field::State, stage.as_str());
        record.set(Field::Subject, subject);
        record.set(Field::Rule, budget.name.as_str());
        record.set(Field::BytesOut, used.window_bytes);
        record.set_known(Field::BytesLimit, limit(budget));
        if let Some(exception) = &budget.exception {
            record.set(Field::PacketsOut, used.packets);
            record.set(Field::Basis, exception.basis.as_str());
            record.set(Field::Reason, exception.reason.as_str());
            record.set(Field::ApprovedBy, exception.approved_by.join(", "));
            record.set_known(Field::Starts, exception.starts_us.map(clock::rfc3339));
            record.set(Field::Expires, clock::rfc3339(exception.expires_us));
        } else {
            record.set(Field::WindowS, budget.per_ns / 1_000_000_000);
        }
        record
    }
}

fn limit(budget: &Budget) -> Option<u64> {
    Some(budget.bytes).filter(|bytes| *bytes < u64::MAX)
}

fn budget_message(budget: &Budget, stage: Stage, used: Used) -> String {
    let subject = format!("The budget of rule `{}` ({})", budget.name, budget.written);
    let used = words::bytes(used.window_bytes);
    match stage {
        Stage::UsedUp => format!("{subject} is used up by {used}; more is over-budget"),
        Stage::Renewed => format!("{subject} has room again, with {used} used"),
        _ => format!("{subject} is nearly used up, with {used} used"),
    }
}

fn exception_message(budget: &Budget, exception: &Exception, stage: Stage, used: Used) -> String {
    let subject = format!("Exception {} (rule `{}`)", exception.id, budget.name);
    let until = clock::rfc3339(exception.expires_us);
    let so_far = match used.packets {
        0 => "nothing has left by it".to_owned(),
        _ => format!("{} have left by it", words::bytes(used.window_bytes)),
    };
    let of = limit(budget).map_or(String::new(), |bytes| {
        format!(" of {}", words::bytes(bytes))
    });
    match stage {
        Stage::InForce => format!(
            "{subject} holds until {until}: {}, {}; approved by {}",
            exception.basis,
            exception.reason,
            exception.approved_by.join(", ")
        ),
        Stage::Used => format!("{subject} is used: {so_far}"),
        Stage::EndsSoon => format!("{subject} ends at {until}: {so_far}"),
        Stage::Expired => format!("{subject} has expired at {until}: {so_far}"),
        Stage::UsedUp => {
            format!("{subject} is used up: {so_far}{of}; more is over-budget")
        }
        Stage::Near => format!("{subject} is nearly used up: {so_far}{of}"),
        Stage::Renewed => format!("{subject} has room again: {so_far}{of}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_says_how_much_of_what() {
        let budget = Budget {
            id: 1,
            rule: 0,
            name: "replication".to_owned(),
            bytes: 50_000,
            per_ns: 3_600_000_000_000,
            written: "50 kB per 1h".to_owned(),
            exception: None,
        };
        let used = Used {
            window_bytes: 50_000,
            packets: 40,
        };
        let record = Record::limit(&budget, Stage::UsedUp, used, 0);
        assert_eq!(record.kind(), Kind::Budget);
        assert_eq!(record.priority(), Priority::Warning);
        assert_eq!(record.number(Field::BytesLimit), Some(50_000));
        assert_eq!(record.number(Field::WindowS), Some(3_600));
        assert_eq!(
            record.message(),
            "The budget of rule `replication` (50 kB per 1h) is used up by 50 kB; more is \
             over-budget"
        );
    }

    #[test]
    fn an_exception_names_who_approved_it_and_why() {
        let exception = Exception {
            id: "EX-12".to_owned(),
            basis: "Art. 49(1)(e)".to_owned(),
            reason: "disk array failure".to_owned(),
            approved_by: vec!["dpo".to_owned(), "auditor".to_owned()],
            starts_us: None,
            expires_us: 0,
            bytes: None,
        };
        let budget = Budget {
            id: 1,
            rule: 0,
            name: "vendor support".to_owned(),
            bytes: u64::MAX,
            per_ns: 0,
            written: String::new(),
            exception: Some(exception),
        };
        let record = Record::limit(&budget, Stage::InForce, Used::default(), 0);
        assert_eq!(
            record.message(),
            "Exception EX-12 (rule `vendor support`) holds until 1970-01-01T00:00:00.000000Z: \
             Art. 49(1)(e), disk array failure; approved by dpo, auditor"
        );
        assert_eq!(record.text(Field::ApprovedBy), Some("dpo, auditor"));
        assert_eq!(record.number(Field::BytesLimit), None);
    }
}
