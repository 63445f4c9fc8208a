//! The policy in force: putting another in its place, and what becomes of
//! enforcement that is on trial.

use std::sync::Arc;

use super::{Compilation, Monitor};
use crate::{
    clock::{self, BootClock},
    geo::Geo,
    kernel::{Enforcement, KernelError},
    names::RuleNames,
    policy::Mode,
    report::{PolicyNews, Record},
};

/// State of the policy in force, as the monitor remembers it.
pub(super) struct PolicyInForce {
    /// Where it is from, for people.
    source: String,
    /// Names it, as records do.
    id: Option<String>,
    pub(super) generation: u32,
    pub(super) enforcement: Enforcement,
    /// Mode that was last reported.
    mode: Mode,
    /// The policy of which it was said that its trial is over.
    reverted: Option<String>,
}

impl Default for PolicyInForce {
    fn default() -> Self {
        Self {
            source: String::new(),
            id: None,
            generation: 0,
            enforcement: Enforcement::Never,
            mode: Mode::Report,
            reverted: None,
        }
    }
}

impl PolicyInForce {
    /// Where it is from, for people.
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

impl Monitor {
    /// The generation that the next policy should have.
    pub fn next_generation(&self) -> u32 {
        self.kernel.next_generation()
    }

    /// Returns the mode: what happens now to traffic that the policy does not approve.
    pub fn mode(&self) -> Mode {
        self.policy.mode
    }

    /// Until when the policy in force is enforced.
    pub fn enforcement(&self) -> Enforcement {
        self.kernel.enforcement()
    }

    /// Puts another policy in force, in one piece. Returns whether it is: not if somebody has
    /// run `trefoil detach`, as the next look for tampering finds out.
    pub fn replace_policy(
        &mut self,
        policy: &Compilation,
        geo: &Arc<Geo>,
        enforcement: Enforcement,
    ) -> Result<bool, KernelError> {
        match self.write_and_put_in_force(policy, geo, enforcement) {
            // `trefoil detach` has taken out what it was to be written to.
            Err(KernelError::NothingPinned { .. }) if self.kernel.was_detached() => Ok(false),
            replaced => replaced,
        }
    }

    fn write_and_put_in_force(
        &mut self,
        policy: &Compilation,
        geo: &Arc<Geo>,
        enforcement: Enforcement,
    ) -> Result<bool, KernelError> {
        let clock = BootClock::read();
        let places = self.kernel.write_policy(&policy.image, &clock)?;
        // Events under the former policy first, so that they are named by it.
        self.drain_all()?;
        let generation = policy.compiled.header.generation;
        if !self.kernel.put_in_force(generation, enforcement) {
            return Ok(false);
        }
        self.names.set_geo(Arc::clone(geo));
        *self.places.borrow_mut() = Arc::clone(geo);
        self.in_force(policy, enforcement);
        self.limit(policy, places, clock)?;
        let sockets = self.kernel.socket_flows()?;
        self.cut_unapproved(&sockets)?;
        self.hand_over();
        Ok(true)
    }

    /// Says that a policy was not put in force, and what is wrong with it.
    pub fn refuse_policy(&mut self, source: &str, problems: &str) {
        let news = PolicyNews::Refused { source, problems };
        self.reporter.emit(Record::policy(&news, clock::unix_us()));
        self.hand_over();
    }

    /// Looks whether enforcement that was on trial was confirmed, or is over;
    /// `confirmed_by` tells who did. Returns true if something has changed.
    pub fn watch_trial(&mut self, confirmed_by: impl FnOnce() -> Option<String>) -> bool {
        let enforcement = self.kernel.enforcement();
        let holds = enforcement.holds_at(clock::since_boot_ns());
        let source = self.policy.source.clone();
        let by;
        let was_on_trial = matches!(self.policy.enforcement, Enforcement::Until(_));
        let news = if was_on_trial && enforcement == Enforcement::Always {
            by = confirmed_by().unwrap_or_else(|| "somebody".to_owned());
            PolicyNews::Confirmed {
                source: &source,
                by: &by,
            }
        } else if enforcement != self.policy.enforcement {
            // Neither of the two, and nobody else's to say.
            return false;
        } else if !holds && self.policy.mode == Mode::Enforce {
            self.policy.reverted = self.policy.id.clone();
            PolicyNews::Reverted { source: &source }
        } else {
            return false;
        };
        self.policy.enforcement = enforcement;
        self.set_mode(holds);
        self.reporter.emit(Record::policy(&news, clock::unix_us()));
        self.hand_over();
        true
    }

    pub(super) fn in_force(&mut self, policy: &Compilation, enforcement: Enforcement) {
        let compiled = &policy.compiled;
        self.policy.source.clone_from(&policy.source);
        let id = Some(compiled.id().to_owned());
        self.policy.id.clone_from(&id);
        self.policy.generation = compiled.header.generation;
        self.policy.enforcement = enforcement;
        self.names.add_policy(RuleNames {
            generation: compiled.header.generation,
            policy: compiled.id().into(),
            rules: compiled
                .rules
                .iter()
                .map(|rule| rule.name.as_str().into())
                .collect(),
        });
        self.names.set_gateways(&compiled.clients);
        let holds = enforcement.holds_at(clock::since_boot_ns());
        self.set_mode(holds);
        let context = self.reporter.context_mut();
        context.policy = Some(compiled.id().into());
        context.geo = Some(compiled.geo_build_id().into());
        let until_us = match enforcement {
            Enforcement::Until(until_ns) if holds => Some(BootClock::read().unix_us(until_ns)),
            _ => None,
        };
        let news = PolicyNews::InForce {
            n_rules: compiled.rules.len() as u64,
            source: &policy.source,
            until_us,
        };
        self.reporter.emit(Record::policy(&news, clock::unix_us()));
        if compiled.mode() != Mode::Enforce || holds {
            self.policy.reverted = None;
        } else if self.policy.reverted != id {
            // Once, and not whenever an address of the host comes or goes.
            self.policy.reverted = id;
            let news = PolicyNews::Reverted {
                source: &policy.source,
            };
            self.reporter.emit(Record::policy(&news, clock::unix_us()));
        }
    }

    fn set_mode(&mut self, holds: bool) {
        self.policy.mode = if holds { Mode::Enforce } else { Mode::Report };
        self.reporter.context_mut().mode = Some(self.policy.mode.as_str().into());
    }
}
