//! Findings of `status`: faults, and those of them that somebody has acknowledged.

use std::collections::BTreeMap;

use crate::{
    acknowledged::{Acknowledged, Covered},
    clock,
    kernel::{HOOKS, KernelError, Reader},
    losses::{MEANINGS, is_harmless},
    state::State,
};

/// Findings of all that was looked at.
pub struct Health {
    /// Findings.
    pub findings: Vec<String>,
    /// Facts good to know: parts that are not covered on this kernel, losses that were
    /// acknowledged.
    pub notes: Vec<String>,
    /// Of the findings, what an operator may acknowledge: nobody can mend it any more.
    pub open: Vec<Covered>,
    acknowledged: Acknowledged,
}

impl Health {
    pub fn new(acknowledged: Acknowledged) -> Self {
        Self {
            findings: Vec::new(),
            notes: Vec::new(),
            open: Vec::new(),
            acknowledged,
        }
    }

    pub fn find(&mut self, finding: impl Into<String>) {
        self.findings.push(finding.into());
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A finding, unless somebody has acknowledged as much or more. `counted_by` is as in
    /// [`Covered`].
    pub fn lost(&mut self, subject: &str, amount: u64, counted_by: u64, says: &str) {
        match self.acknowledged.of(subject, counted_by) {
            Some((by, known)) => {
                let at = clock::rfc3339(by.at_us);
                let note = format!("{says}; acknowledged by {} at {at}", by.by);
                if known >= amount {
                    return self.notes.push(note);
                }
                self.findings.push(format!("{note}, when it was {known}"));
            }
            None => self.findings.push(says.to_owned()),
        }
        self.open.push(Covered {
            subject: subject.to_owned(),
            amount,
            counted_by,
        });
    }

    /// Which hooks are attached, by their pins; those at uplinks have one for each.
    pub fn look_at_hooks(
        &mut self,
        reader: &Reader,
        state: Option<&State>,
    ) -> BTreeMap<&'static str, bool> {
        let (instance, links) = (reader.instance(), reader.links());
        let is_attached = |hook| {
            let mut links = links.iter();
            links.any(|(of, name)| *of == instance && name == hook)
        };
        let pinned = HOOKS.iter().filter(|hook| hook.is_pinned());
        let hooks: BTreeMap<_, _> = pinned
            .map(|hook| (hook.name, is_attached(hook.name)))
            .collect();
        if hooks.values().all(|is_attached| !is_attached) {
            self.find(
                "no hook is attached: nothing is watched; an agent is starting, or its links were \
                 removed",
            );
            return hooks;
        }
        let uncovered = state.map_or(&[][..], |state| &state.uncovered);
        for (hook, _) in hooks.iter().filter(|(_, is_attached)| !**is_attached) {
            if !uncovered.iter().any(|(name, _)| name == hook) {
                self.find(format!(
                    "hook {hook} is not attached: it was, and is not any more"
                ));
            }
        }
        for (hook, without) in uncovered {
            let is_promised = state.is_some_and(|state| state.promised.contains(hook));
            // Of one that is attached, a fallback may cover less. Those at uplinks have no pin that
            // shows whether the kernel has them.
            match hooks.get(hook.as_str()) {
                _ if is_promised => self.lost(
                    &format!("hook {hook}"),
                    0,
                    0,
                    &format!("no hook {hook} on this kernel, and a promise needs it: {without}"),
                ),
                Some(false) => self.note(format!("no hook {hook} on this kernel: {without}")),
                _ => self.note(format!(
                    "hook {hook} on this kernel does not cover {without}"
                )),
            }
        }
        hooks
    }

    /// All counters of losses.
    pub fn look_at_losses(
        &mut self,
        reader: &Reader,
        state: Option<&State>,
    ) -> Result<BTreeMap<&'static str, u64>, KernelError> {
        let losses = reader.losses()?;
        let counted_by = reader.counted_by()?;
        for (name, count) in losses
            .iter()
            .filter(|(name, count)| **count > 0 && !is_harmless(name))
        {
            let meaning = MEANINGS.iter().find(|(counter, _)| counter == name);
            let meaning = meaning.map_or("", |(_, meaning)| meaning);
            let span = state.and_then(|state| state.spans.get(*name));
            let seen = span.map_or("not seen by an agent yet".to_owned(), |span| {
                let [first, last] = [span.first_us, span.last_us].map(clock::rfc3339);
                match first == last {
                    true => format!("seen at {first}"),
                    false => format!("seen from {first} to {last}"),
                }
            });
            self.lost(
                name,
                *count,
                counted_by,
                &format!("{name}: {count}, {seen}; {meaning}"),
            );
        }
        Ok(losses)
    }
}
