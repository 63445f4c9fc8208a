//! Traffic that was seen and that a policy would have dropped, had it been enforced then.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    commands::{
        Failure,
        groups::{self, Group, Opinion, groups},
        observations::Observations,
        sources::PolicyText,
    },
    geo::Geo,
    observed::{Judge, Reading},
    owner::users::OfHostOnce,
    policy::{self, Geography, LinkLocal, Policy, Surroundings, geography::Nowhere},
};

/// Outcome for the flows that were seen, had the policy been enforced.
#[derive(Debug, Serialize)]
pub struct Against {
    /// Flows that were seen.
    flows: u64,
    /// Bytes that they sent.
    bytes_out: u64,
    reading: Reading,
    /// Flows that would have been dropped.
    would_drop: Vec<Group<Opinion>>,
    /// Flows of which the records do not say whether they would have been dropped.
    may_drop: Vec<Group<Opinion>>,
    #[serde(skip)]
    observations: Observations,
    #[serde(skip)]
    limits: &'static str,
}

impl Against {
    /// Reads the records and asks the policy about each flow. `None` if the policy
    /// cannot be used, which is said elsewhere.
    ///
    /// # Errors
    ///
    /// The records cannot be read.
    pub fn find(
        files: &[PathBuf],
        text: &PolicyText,
        geo: Option<&Geo>,
        link_local: LinkLocal,
    ) -> Result<Option<Self>, Failure> {
        let observations = Observations::read(files)?;
        let users = OfHostOnce::default();
        let surroundings = Surroundings {
            geography: geo.map_or(&Nowhere as &dyn Geography, |geo| geo),
            users: &users,
            // Traffic that was seen to leave was not local then, whatever is today.
            own_addresses: &[],
            link_local,
        };
        let Ok(policy) = Policy::parse(&text.text, &text.source) else {
            return Ok(None);
        };
        let Ok(compiled) = policy::compile(&policy, &surroundings, 1) else {
            return Ok(None);
        };
        let judge = Judge {
            policy: &policy,
            compiled: &compiled,
            surroundings: &surroundings,
        };
        let (mut would, mut may) = (Vec::new(), Vec::new());
        for observed in &observations.seen {
            let judgement = judge.judge(observed);
            let list = match judgement.approves() {
                Some(true) => continue,
                Some(false) => &mut would,
                None => &mut may,
            };
            list.push((observed, Opinion::of(&judge, &judgement)));
        }
        let amounts = observations.seen.iter().map(|one| &one.amount);
        Ok(Some(Self {
            flows: amounts.clone().fold(0, |sum, one| sum + one.flows),
            bytes_out: amounts.fold(0, |sum, one| sum.saturating_add(one.bytes_out)),
            reading: observations.reading.clone(),
            would_drop: groups(would.into_iter()),
            may_drop: groups(may.into_iter()),
            observations,
            limits: groups::about_budgets(&[&policy]),
        }))
    }

    /// True if nothing would have been dropped, and everything could be read.
    pub fn is_fine(&self) -> bool {
        self.would_drop.is_empty() && self.may_drop.is_empty() && !self.reading.is_faulty()
    }

    /// All of it for a person.
    pub fn text(&self) -> String {
        let seen = groups::sum([(self.flows, self.bytes_out)].into_iter());
        let mut text = format!(
            "of what was seen ({seen}{}), enforcing it ",
            groups::span(&self.reading)
        );
        if self.would_drop.is_empty() && self.may_drop.is_empty() {
            return text + "would have dropped nothing\n" + self.limits;
        }
        text += "would have dropped what follows\n";
        text += &groups::text("would have been dropped", &self.would_drop, Opinion::words);
        text += &groups::text("may have been dropped", &self.may_drop, Opinion::words);
        text + self.limits
    }

    /// Tells on standard error what was not there to be read.
    pub fn say_faults(&self) {
        self.observations.say_faults();
    }
}
