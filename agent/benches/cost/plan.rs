//! Plan of a run, as the command line asks for it.

use crate::contender::{self, EMPTY, WHOLE};
use crate::workload::WORKLOADS;

/// Rounds, how often as many more, and milliseconds of a slice.
const THOROUGH: (usize, usize, u64) = (31, 4, 30);
const QUICK: (usize, usize, u64) = (2, 0, 10);

/// Parts that follow the comparison.
const PARTS: [&str; 2] = [PROGRAMS, AGENT];
/// The kernel programs one by one.
pub const PROGRAMS: &str = "programs";
/// An agent that runs.
pub const AGENT: &str = "agent";

/// Plan of a run.
pub struct Plan {
    /// A look whether it works.
    pub quick: bool,
    /// Rounds of the comparison.
    pub rounds: usize,
    /// So often as many rounds more, at the most, of workloads whose controls differ.
    pub more: usize,
    /// Milliseconds of one slice.
    pub slice_ms: u64,
    /// Filters; empty for everything.
    pub only: Vec<String>,
}

impl Plan {
    /// From the command line.
    pub fn read(arguments: &[String]) -> Self {
        let mut plan = Self {
            quick: arguments.iter().any(|it| it == "--quick"),
            rounds: 0,
            more: 0,
            slice_ms: 0,
            only: Vec::new(),
        };
        (plan.rounds, plan.more, plan.slice_ms) = if plan.quick { QUICK } else { THOROUGH };
        for pair in arguments.windows(2) {
            match pair[0].as_str() {
                "--only" => plan.only.push(pair[1].clone()),
                "--rounds" => plan.rounds = pair[1].parse().unwrap(),
                _ => {}
            }
        }
        let workloads = WORKLOADS.iter().map(|it| it.name.to_owned());
        let parts = PARTS.map(str::to_owned);
        let known: Vec<_> = workloads.chain(contender::names()).chain(parts).collect();
        for filter in &plan.only {
            assert!(
                known.iter().any(|name| name.contains(filter.as_str())),
                "nothing is called {filter}; there are: {}",
                known.join(", ")
            );
        }
        plan
    }

    /// True if what is asked for is in the parts after the comparison.
    fn is_without_comparison(&self) -> bool {
        let is_part = |filter: &String| PARTS.contains(&filter.as_str());
        !self.only.is_empty() && self.only.iter().all(is_part)
    }

    /// True if a filter names it, or none names any of its kind.
    fn wants<'k>(&self, name: &str, mut kind: impl Iterator<Item = &'k str>) -> bool {
        let is_named = |name: &str| {
            self.only
                .iter()
                .any(|filter| name.contains(filter.as_str()))
        };
        is_named(name) || !kind.any(is_named)
    }

    /// True if it is among those that are compared.
    pub fn wants_workload(&self, name: &str) -> bool {
        !self.is_without_comparison() && self.wants(name, WORKLOADS.iter().map(|it| it.name))
    }

    /// See [`Self::wants_workload`].
    pub fn wants_contender(&self, name: &str) -> bool {
        if self.is_without_comparison() {
            return self.wants_part(PROGRAMS) && [EMPTY, WHOLE].contains(&name);
        }
        let kind = contender::names();
        self.wants(name, kind.iter().map(String::as_str))
    }

    /// The parts after the comparison: wanted by name, or in a run of everything.
    pub fn wants_part(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|filter| filter == name)
    }
}
