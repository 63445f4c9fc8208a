//! From a policy to the tables that decide.
//!
//! Owns the compiled form, see `trefoil_ebpf::abi::Policy` for its layout and the
//! idea behind it. Decides nothing: [`super::evaluate`] and the kernel programs do.

mod clauses;
mod destinations;
mod embedding;
pub mod image;
mod limits;
mod logins;
mod near_ends;
mod order;
mod services;
mod tree;

use trefoil_ebpf::abi::{
    MAX_BUDGETS, MAX_CLAUSES, MAX_RANGES, MAX_TIMED_CLAUSES, Row, class, dimension, layout, login,
    near,
};

use self::clauses::{Clauses, NumberedClause, Test, row_of_path};
pub use self::limits::{Budget, Clause, Period};
pub use self::logins::Origins;
use super::automaton::{self, PathPatterns, State, Table};
use super::geography::Surroundings;
use super::intervals::{Cells, Intervals, is_in};
use super::network::Network;
use super::problem::{Fault, Place, Problem, Problems};
use super::source::{Mode, Policy, RuleVerdict};

/// A policy as tables, with what reports say about it. See the ABI for what the
/// tables mean; how they lie in memory is the matter of [`image`].
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Sizes and beginnings.
    pub header: Header,
    /// IPv4 destinations.
    pub v4: Vec<Range32>,
    /// IPv6 destinations.
    pub v6: Vec<Range128>,
    /// Services.
    pub services: Vec<Range32>,
    /// Users.
    pub users: Vec<Range32>,
    /// Groups, for each case of [`login`].
    pub groups: [Vec<Range32>; login::N],
    /// Where sessions come from, if a rule asks for it.
    pub origins: Option<Origins>,
    /// Near ends, for each direction; see [`near`].
    pub near_ends: [Vec<Range32>; near::N],
    /// Combinations of layouts by which destinations embed others, by the index that their
    /// marks have; each as in [`abi::Header::layouts`](trefoil_ebpf::abi::Header::layouts).
    pub layouts: [u16; layout::N_SETS],
    /// The clauses that each class satisfies.
    pub rows: Vec<Row>,
    /// The automata for paths.
    pub states: Vec<State>,
    /// For each class of executables, that of those that show such a path and say nothing
    /// about the host's files, see [`abi::StateClass::foreign`](trefoil_ebpf::abi::StateClass).
    pub foreign: Vec<u16>,
    /// Outcomes of the clauses.
    pub clauses: Vec<Clause>,
    /// Budgets, by rule.
    pub budgets: Vec<Budget>,
    /// The rules, in the order of the file.
    pub rules: Vec<RuleSummary>,
    /// Networks from which gateways open sessions to hosts, with the gateway's name.
    pub clients: Vec<(Network, String)>,
    mode: Mode,
    fingerprint: String,
    geo_build_id: String,
}

/// All keys from `first` up to the next entry's. The tables cover every key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range32 {
    /// Smallest key.
    pub first: u32,
    /// Class within the dimension.
    pub class: u16,
    /// Destinations only: the verdict when no clause matches; if it is
    /// [`verdict::LOCAL`](trefoil_ebpf::abi::verdict::LOCAL), no clause is asked.
    pub fallback: u8,
    /// Destinations only: marks as in [`Branch::of`](trefoil_ebpf::abi::Branch::of).
    pub marks: u8,
}

/// [`Range32::marks`]: times an index of [`Compiled::layouts`].
pub const EMBEDS: u8 = 1 << 1;
/// [`Range32::marks`]: see [`Branch::OWN`](trefoil_ebpf::abi::Branch::OWN).
pub const OWN: u8 = (trefoil_ebpf::abi::Branch::OWN >> 24) as u8;

/// All IPv6 addresses from `first` up to the next entry's, as [`Range32`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range128 {
    /// Smallest key.
    pub first: u128,
    /// As in [`Range32`].
    pub class: u16,
    /// As in [`Range32`].
    pub fallback: u8,
    /// As in [`Range32`].
    pub marks: u8,
}

/// Facts that are needed to read the tables.
#[derive(Clone, Debug)]
pub struct Header {
    /// Generation that decisions under the policy carry.
    pub generation: u32,
    /// Words of a row that are in use.
    pub n_words: u32,
    /// Index of the row of class 0 of each [`dimension`].
    pub rows: [u32; dimension::N],
    /// State in which the automaton for control group paths begins.
    pub cgroup_start: u32,
    /// State in which the automaton for executable paths begins.
    pub executable_start: u32,
    /// Maps a byte of a path to its letter.
    pub letters: [u8; 256],
}

/// Summary of a rule, for reports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleSummary {
    /// Its name.
    pub name: String,
    /// The line on which it begins.
    pub line: u32,
    /// Verdict of the rule.
    pub verdict: RuleVerdict,
}

impl Compiled {
    /// Names the policy: the beginning of its text's SHA-256, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.fingerprint[..16]
    }

    /// SHA-256 of the policy's text, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The policy's mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Names the country data that the tables were made with.
    #[must_use]
    pub fn geo_build_id(&self) -> &str {
        &self.geo_build_id
    }

    /// Ranges of addresses that it tells apart.
    #[must_use]
    pub fn n_destinations(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// Reads and compiles a policy. `file` is its name, for problems.
///
/// # Errors
///
/// Everything that is wrong with the policy, on this host.
pub fn load(
    text: &str,
    file: &str,
    surroundings: &Surroundings<'_>,
    generation: u32,
) -> Result<Compiled, Problems> {
    let (policy, mut problems) = Policy::read(text, file);
    if problems.is_empty() {
        return compile(&policy, surroundings, generation);
    }
    problems.extend(clauses::unknown_here(&policy, surroundings));
    Err(Problems::new(file, problems))
}

/// Compiles a policy. `generation` is what decisions under it will say.
///
/// # Errors
///
/// Mistakes of the policy on this host: unknown users, rules that nothing can
/// match, limits.
pub fn compile(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    generation: u32,
) -> Result<Compiled, Problems> {
    tables(policy, surroundings, generation)
        .map_err(|problems| Problems::new(&policy.file, problems))
}

fn tables(
    policy: &Policy,
    surroundings: &Surroundings<'_>,
    generation: u32,
) -> Result<Compiled, Vec<Problem>> {
    let clauses = Clauses::new(policy, surroundings)?;
    if clauses.list.len() > MAX_CLAUSES {
        let place = policy.rules[clauses.list[MAX_CLAUSES].rule].place;
        let fault = Fault::new(format!("the policy has more than {MAX_CLAUSES} rules"))
            .help("list alternatives in one rule; a gateway counts once for each of its services");
        return Err(vec![fault.at(place, "rules")]);
    }
    let budgets = limits::budgets(policy);
    // Half of the table, since two policies can be there at a time.
    if let Some(budget) = budgets.get(MAX_BUDGETS / 2) {
        let place = policy.rules[usize::from(budget.rule)].place;
        let fault = Fault::new(format!(
            "the policy has more than {} budgets and exceptions",
            MAX_BUDGETS / 2
        ))
        .help("list alternatives in one rule, and take out exceptions that have expired");
        return Err(vec![fault.at(place, "rules")]);
    }
    let mut timed = clauses
        .list
        .iter()
        .map(|clause| &policy.rules[clause.rule])
        .filter(|rule| rule.exception.is_some());
    if let Some(rule) = timed.nth(MAX_TIMED_CLAUSES) {
        let fault = Fault::new(format!(
            "the policy has more than {MAX_TIMED_CLAUSES} exceptions"
        ))
        .help("take out those that have expired; a gateway counts once for each of its services");
        return Err(vec![fault.at(rule.place, "rules")]);
    }
    // The remaining mistakes are of size alone, for which no single line is to blame.
    let as_a_whole = |fault: Fault| vec![fault.at(Place::START, "")];

    let mut rows = Rows::default();

    // Units, groups and containers are all read from one path.
    let (units, unit_use) = clauses.patterns(|test| test.units.as_deref());
    let (groups, group_use) = clauses.patterns(|test| test.cgroups.as_deref());
    let (containers, container_use) = clauses.patterns(|test| test.containers.as_deref());
    let mut cgroups = rows.of_source(&clauses, |test| {
        test.units.is_some() || test.cgroups.is_some() || test.containers.is_some()
    });
    let patterns = PathPatterns {
        units,
        cgroups: groups,
        containers,
    };
    let keys = [&unit_use, &group_use, &container_use];
    let paths = automaton::of_cgroups(&patterns, |matched| {
        cgroups.class_of(row_of_path(&keys, matched))
    })
    .map_err(as_a_whole)?;
    let cgroup_rows = cgroups.finish();

    let (patterns, executable_use) = clauses.patterns(|test| test.executables.as_deref());
    let mut executables = rows.of_source(&clauses, |test| test.executables.is_some());
    let programs = automaton::of_executables(&patterns, |matched| {
        executables.class_of(row_of_path(&[&executable_use], matched))
    })
    .map_err(as_a_whole)?;
    let foreign = executables.denied_alone().map_err(as_a_whole)?;
    let executable_rows = executables.finish();
    let Table {
        letters,
        states,
        starts,
    } = Table::new(&paths, &programs).map_err(as_a_whole)?;

    let mut users = rows.of_source(&clauses, |test| test.users.is_some());
    let sets: Vec<_> = clauses.list.iter().map(NumberedClause::users).collect();
    let user_ranges = users
        .of_numbers(sets.iter().map(Option::as_ref))
        .map_err(as_a_whole)?;
    let user_rows = users.finish();

    let logins = logins::tables(policy, &clauses, surroundings, &mut rows).map_err(as_a_whole)?;
    let (near_ends, near_rows) = near_ends::tables(&clauses, &mut rows).map_err(as_a_whole)?;

    let mut destinations = rows.dimension(&clauses, |test| test.destination.is_some());
    let (v4, v6, layouts) = destinations::ranges(policy, &clauses, surroundings, &mut destinations)
        .map_err(as_a_whole)?;
    let destination_rows = destinations.finish();

    let mut services = rows.dimension(&clauses, |test| test.services.is_some());
    let service_ranges = services
        .of_numbers(
            clauses
                .list
                .iter()
                .map(|clause| clause.test.services.as_ref()),
        )
        .map_err(as_a_whole)?;
    let service_rows = services.finish();

    let mut first_rows = [0; dimension::N];
    first_rows[dimension::CGROUP] = cgroup_rows;
    first_rows[dimension::EXECUTABLE] = executable_rows;
    first_rows[dimension::USER] = user_rows;
    first_rows[dimension::GROUP] = logins.first_row;
    first_rows[dimension::NEAR_END] = near_rows;
    first_rows[dimension::DESTINATION] = destination_rows;
    first_rows[dimension::SERVICE] = service_rows;

    let header = Header {
        generation,
        n_words: clauses.list.len().div_ceil(64) as u32,
        rows: first_rows,
        cgroup_start: starts[0],
        executable_start: starts[1],
        letters,
    };
    let summary = |rule: &super::source::Rule| RuleSummary {
        name: rule.name.value.clone(),
        line: rule.place.line,
        verdict: rule.verdict,
    };
    Ok(Compiled {
        header,
        v4,
        v6,
        services: service_ranges,
        users: user_ranges,
        groups: logins.groups,
        origins: logins.origins,
        near_ends,
        layouts,
        rows: rows.rows,
        states,
        foreign,
        clauses: clauses
            .list
            .iter()
            .map(|clause| clause.decides(policy, &budgets))
            .collect(),
        budgets,
        rules: policy.rules.iter().map(summary).collect(),
        clients: policy
            .gateways
            .iter()
            .flat_map(|gateway| {
                let networks = gateway.clients.iter();
                networks.map(|network| (*network, gateway.name.value.clone()))
            })
            .collect(),
        mode: policy.mode,
        fingerprint: policy.fingerprint.clone(),
        geo_build_id: surroundings.geography.build_id().to_owned(),
    })
}

/// All rows, one dimension after the other.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
}

impl Rows {
    /// Begins a dimension that the clauses name for which `names` is true. Class 0 has
    /// those that do not.
    fn dimension(
        &mut self,
        clauses: &Clauses<'_>,
        names: impl Fn(&Test<'_>) -> bool,
    ) -> Classes<'_> {
        let unnamed = clauses.all(|clause| !names(&clause.test));
        self.begin(&[], unnamed)
    }

    /// As [`dimension`](Self::dimension), of a source. The one place that says what holds
    /// where nothing is known of it, and where there is nothing of this host: see [`class`].
    fn of_source(
        &mut self,
        clauses: &Clauses<'_>,
        names: impl Fn(&Test<'_>) -> bool,
    ) -> Classes<'_> {
        const { assert!(class::UNKNOWN == 0 && class::NONE == 1) };
        let unknown = clauses.all(|clause| clause.denies || !names(&clause.test));
        let none = clauses.all(|clause| !names(&clause.test));
        self.begin(&[unknown], none)
    }

    /// Begins a dimension. `before` are rows of classes that no value has which is known.
    fn begin(&mut self, before: &[Row], unnamed: Row) -> Classes<'_> {
        let first = self.rows.len();
        self.rows.extend(before);
        self.rows.push(unnamed);
        let known = std::collections::HashMap::from([(unnamed, before.len() as u16)]);
        Classes {
            rows: &mut self.rows,
            first,
            known,
            unnamed,
        }
    }
}

/// The classes of one dimension. The first are there from the beginning.
struct Classes<'r> {
    rows: &'r mut Vec<Row>,
    first: usize,
    known: std::collections::HashMap<Row, u16>,
    /// The clauses that do not name this dimension.
    unnamed: Row,
}

impl Classes<'_> {
    /// The class of values that satisfy exactly these clauses.
    fn class_of(&mut self, row: Row) -> Result<u16, Fault> {
        if let Some(&class) = self.known.get(&row) {
            return Ok(class);
        }
        let class = u16::try_from(self.rows.len() - self.first).map_err(|_| {
            Fault::new("the rules overlap in more than 65,536 ways")
                .help("use fewer rules, or networks, users, groups and ports that overlap less")
        })?;
        self.known.insert(row, class);
        self.rows.push(row);
        Ok(class)
    }

    /// For each class, that of what is known to be so and approved by nobody: the clauses
    /// that it satisfies and that match what is not known, too.
    fn denied_alone(&mut self) -> Result<Vec<u16>, Fault> {
        let n_classes = self.rows.len() - self.first;
        let row = |rows: &[Row], class: usize| rows[self.first + class];
        let unknown = row(self.rows, class::UNKNOWN.into());
        let rows: Vec<Row> = (0..n_classes).map(|class| row(self.rows, class)).collect();
        let of = |own: Row| Row {
            words: std::array::from_fn(|word| own.words[word] & unknown.words[word]),
        };
        rows.into_iter().map(|own| self.class_of(of(own))).collect()
    }

    /// The table for a dimension of numbers, of which each clause accepts a set, or
    /// all if it does not name the dimension.
    fn of_numbers<'s>(
        &mut self,
        sets_of_clauses: impl Iterator<Item = Option<&'s Intervals<u32>>>,
    ) -> Result<Vec<Range32>, Fault> {
        let mut sets = Vec::new();
        let mut clause_of_set = Vec::new();
        for (clause, set) in sets_of_clauses.enumerate() {
            if let Some(set) = set {
                sets.push(set.clone());
                clause_of_set.push(clause);
            }
        }
        let Cells { cells, signatures } = Cells::new(&sets);
        let mut classes = Vec::new();
        for signature in &signatures {
            let mut row = self.unnamed;
            for (set, &clause) in clause_of_set.iter().enumerate() {
                if is_in(signature, set) {
                    set_bit(&mut row, clause);
                }
            }
            classes.push(self.class_of(row)?);
        }
        let mut ranges: Vec<Range32> = Vec::new();
        for (first, signature) in cells {
            let class = classes[signature];
            if ranges.last().is_none_or(|last| last.class != class) {
                ranges.push(Range32 {
                    first,
                    class,
                    ..Range32::default()
                });
            }
        }
        check_size(ranges.len(), "users, groups or ports")?;
        Ok(ranges)
    }

    /// Index in the table of rows of this dimension's class 0.
    fn finish(self) -> u32 {
        self.first as u32
    }
}

fn check_size(n_ranges: usize, what: &str) -> Result<(), Fault> {
    if n_ranges <= MAX_RANGES {
        return Ok(());
    }
    Err(Fault::new(format!(
        "the table of {what} would have {n_ranges} ranges, of {MAX_RANGES}"
    ))
    .help("use fewer countries or larger networks"))
}

fn set_bit(row: &mut Row, clause: usize) {
    row.words[clause / 64] |= 1 << (clause % 64);
}

#[cfg(test)]
mod near_ends_tests;
#[cfg(test)]
mod subordinate_tests;
#[cfg(test)]
mod tests;
