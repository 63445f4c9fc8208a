//! Which policy judged a flow, and by which rule: by the generation of its decision.
//!
//! A flow that says nothing keeps the decision that it had, and each new address of the
//! host makes another generation of the same policy. So generations are remembered for
//! long, and what they have in common is there once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use trefoil_ebpf::abi::{Decision, NO_RULE};

/// Different policies that are remembered.
const POLICIES: usize = 64;
/// Generations that are.
const GENERATIONS: usize = 1 << 16;

/// Name of a policy that is not remembered any more: a flow that it judged must not be said
/// to have been judged by the one in force.
const UNKNOWN: &str = "unknown";

/// The rules of one policy, by the generation under which it was in force.
#[derive(Clone, Debug)]
pub struct RuleNames {
    /// Generation of the policy.
    pub generation: u32,
    /// Identifier of the policy in records.
    pub policy: Arc<str>,
    /// Names of its rules, in order.
    pub rules: Arc<[Arc<str>]>,
}

/// Policies that were in force, the newest last.
#[derive(Default)]
pub(super) struct Policies(BTreeMap<u32, RuleNames>);

impl Policies {
    /// Adds one that comes into force.
    pub(super) fn add(&mut self, mut names: RuleNames) {
        if let Some(same) = self.0.values().find(|known| known.policy == names.policy) {
            // The id is made from the text, so it has the same rules.
            names.policy = Arc::clone(&same.policy);
            names.rules = Arc::clone(&same.rules);
        }
        self.0.insert(names.generation, names);
        while self.0.len() > GENERATIONS || self.n_different() > POLICIES {
            self.0.pop_first();
        }
    }

    fn n_different(&self) -> usize {
        let ids: HashSet<*const u8> = self.0.values().map(|one| one.policy.as_ptr()).collect();
        ids.len()
    }

    /// The rule that decided, and the policy if it is not the one in force.
    pub(super) fn names(&self, decision: &Decision) -> (Option<Arc<str>>, Option<Arc<str>>) {
        let Some(judged) = self.0.get(&decision.generation) else {
            // Generation 0 is that of flows that nobody has judged yet.
            return (None, (decision.generation != 0).then(|| UNKNOWN.into()));
        };
        let rule = match decision.rule {
            NO_RULE => None,
            rule => judged.rules.get(usize::from(rule)).cloned(),
        };
        let newest = self.0.last_key_value();
        let is_former = newest.is_some_and(|(_, newest)| newest.policy != judged.policy);
        (rule, is_former.then(|| Arc::clone(&judged.policy)))
    }
}

#[cfg(test)]
mod tests {
    use trefoil_ebpf::abi::verdict;

    use super::*;

    fn named(generation: u32, policy: &str) -> RuleNames {
        RuleNames {
            generation,
            policy: policy.into(),
            rules: Arc::new([format!("rule of {policy}").into()]),
        }
    }

    fn names(policies: &Policies, generation: u32) -> (Option<String>, Option<String>) {
        let (rule, policy) = policies.names(&Decision {
            generation,
            rule: 0,
            verdict: verdict::DENIED,
            flags: 0,
        });
        (
            rule.map(|rule| rule.to_string()),
            policy.map(|id| id.to_string()),
        )
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_flow_is_named_by_what_judged_it_however_often_the_policy_changed_since() {
        let mut policies = Policies::default();
        policies.add(named(1, "old"));
        for generation in 2..5_000 {
            policies.add(named(generation, ["a", "b"][generation as usize % 2]));
        }
        assert_eq!(names(&policies, 1), (some("rule of old"), some("old")));
        assert_eq!(names(&policies, 4_998), (some("rule of a"), some("a")));
        // The one in force goes without saying.
        assert_eq!(names(&policies, 4_999), (some("rule of b"), None));
        assert_eq!(names(&policies, 3), (some("rule of b"), None));
        assert_eq!(policies.n_different(), 3);
    }

    #[test]
    fn what_is_forgotten_is_not_called_what_is_in_force() {
        let mut policies = Policies::default();
        for generation in 1..=(POLICIES as u32 + 1) {
            policies.add(named(generation, &generation.to_string()));
        }
        assert_eq!(names(&policies, 1), (None, some("unknown")));
        assert_eq!(names(&policies, 2), (some("rule of 2"), some("2")));
        assert_eq!(names(&policies, 0), (None, None));
    }
}
