//! The table of destinations: networks, zones, gateways and countries folded into
//! ranges of one class.
//!
//! The cost is linear in the number of country ranges, whatever the policy: within
//! a cell between two borders of the policy's networks, the class of a range
//! depends only on which of the policy's countries it is in, and is computed once.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use trefoil_ebpf::abi::{Row, class, layout, verdict};

use super::clauses::{Addresses, Clauses, DestinationTest, Test, countries, networks};
use super::embedding::{self, Embedding};
use super::{Classes, EMBEDS, OWN, Range32, Range128, check_size, set_bit};
use crate::geo::{Countries, Country};
use crate::policy::geography::Surroundings;
use crate::policy::intervals::{Cells, Intervals, Key, is_in};
use crate::policy::local;
use crate::policy::network::Network;
use crate::policy::problem::Fault;
use crate::policy::source::Policy;

/// Outcome of the policy for a destination: its class, the verdict if no clause matches, and
/// its marks.
type Outcome = (u16, u8, u8);

/// The tables for IPv4 and IPv6, and the combinations of layouts that marks speak of.
type Tables = (Vec<Range32>, Vec<Range128>, [u16; layout::N_SETS]);

/// The tables for IPv4 and IPv6.
pub(super) fn ranges(
    policy: &Policy,
    clauses: &Clauses<'_>,
    surroundings: &Surroundings<'_>,
    classes: &mut Classes<'_>,
) -> Result<Tables, Fault> {
    let world = World::new(policy, clauses, surroundings, Ends::Destinations);
    let (v4, v6) = tables(&world, surroundings, classes)?;
    let layouts = world.layouts.into_inner().0;
    Ok((v4, v6, layouts))
}

/// The tables for the addresses that sessions come from, by IPv4 and IPv6.
///
/// An address of this host says nothing of where somebody came from before, and one that embeds
/// another may mean either: both are of class [`class::UNKNOWN`], as is what never leaves a link.
pub(super) fn origins(
    policy: &Policy,
    clauses: &Clauses<'_>,
    surroundings: &Surroundings<'_>,
    classes: &mut Classes<'_>,
) -> Result<(Vec<Range32>, Vec<Range128>), Fault> {
    let world = World::new(policy, clauses, surroundings, Ends::Origins);
    let (mut v4, mut v6) = tables(&world, surroundings, classes)?;
    let plain = |class, marks, fallback| match marks != 0 || fallback == verdict::LOCAL {
        true => class::UNKNOWN,
        false => class,
    };
    for range in &mut v4 {
        range.class = plain(range.class, range.marks, range.fallback);
        (range.marks, range.fallback) = (0, 0);
    }
    for range in &mut v6 {
        range.class = plain(range.class, range.marks, range.fallback);
        (range.marks, range.fallback) = (0, 0);
    }
    Ok((v4, v6))
}

/// Which addresses of flows the clauses are asked about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Where flows go.
    Destinations,
    /// Where somebody logged in from who sends.
    Origins,
}

impl Ends {
    /// The test of these.
    fn asked<'t, 'p>(self, test: &'t Test<'p>) -> Option<&'t DestinationTest<'p>> {
        match self {
            Self::Destinations => test.destination.as_ref(),
            Self::Origins => test.origin.as_ref(),
        }
    }
}

fn tables(
    world: &World,
    surroundings: &Surroundings<'_>,
    classes: &mut Classes<'_>,
) -> Result<(Vec<Range32>, Vec<Range128>), Fault> {
    let sets: Vec<Intervals<u32>> = world.sets.iter().map(|set| set.v4.clone()).collect();
    let geography = surroundings.geography;
    let places = world.numbered(geography.v4(), geography.several_v4());
    let v4 = fold(world, &sets, places, classes)?;
    let sets: Vec<Intervals<u128>> = world.sets.iter().map(|set| set.v6.clone()).collect();
    let places = world.numbered(geography.v6(), geography.several_v6());
    let v6 = fold(world, &sets, places, classes)?;
    check_size(v4.len(), "IPv4 destinations")?;
    check_size(v6.len(), "IPv6 destinations")?;
    let v4 = v4
        .into_iter()
        .map(|(first, (class, fallback, marks))| Range32 {
            first,
            class,
            fallback,
            marks,
        });
    let v6 = v6
        .into_iter()
        .map(|(first, (class, fallback, marks))| Range128 {
            first,
            class,
            fallback,
            marks,
        });
    Ok((v4.collect(), v6.collect()))
}

/// Properties that clauses can ask of a destination, with indexes instead of values.
struct World {
    ends: Ends,
    /// Sets of addresses. The first is what is local, the second the host's own.
    sets: Vec<Addresses>,
    /// Indexes of the sets whose addresses embed others, and how.
    embedding: Vec<(usize, Embedding)>,
    layouts: RefCell<Layouts>,
    /// For each clause, whether it denies, and what it asks for.
    tests: Vec<(bool, Option<Questions>)>,
    /// Places that every clause treats alike have the same number. Countries
    /// that none names have [`OTHER`].
    number_of_country: HashMap<Country, usize>,
    /// Where the data gives several countries; their numbers come behind all others.
    number_of_several: HashMap<Countries, usize>,
    first_of_several: usize,
    /// For each number, its part in each set of countries.
    memberships: Vec<Vec<Part>>,
}

/// How much of a place is in a set of countries.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    None,
    /// One of the countries that the data gives, and not all.
    Some,
    All,
}

const LOCAL_SET: usize = 0;
const OWN_SET: usize = 1;
/// Number of an unknown country.
const UNKNOWN: usize = 0;
/// Number of a country that the policy does not name.
const OTHER: usize = 1;

/// The test of one clause: all of these must hold, each by one of its alternatives.
#[derive(Default)]
struct Questions(Vec<Vec<Alternative>>);

#[derive(Clone, Copy)]
enum Alternative {
    AddressSet(usize),
    CountrySet(usize),
}

impl World {
    fn new(
        policy: &Policy,
        clauses: &Clauses<'_>,
        surroundings: &Surroundings<'_>,
        ends: Ends,
    ) -> Self {
        let own = surroundings.own_addresses.iter().map(IpAddr::to_canonical);
        let own = local::own().chain(own.map(Network::host));
        let local = surroundings.link_local.local();
        let mut sets = vec![Addresses::new(local), Addresses::new(own)];
        let mut embedding = Vec::new();
        for form in embedding::forms(policy) {
            sets.push(Addresses::new([form.network]));
            embedding.push((sets.len() - 1, form));
        }
        let mut members_of_sets: Vec<Vec<Country>> = Vec::new();
        // Countries of zones that are named together: an address may be in several.
        let mut sets_of_zones: HashMap<&[usize], usize> = HashMap::new();
        let mut zones: Vec<Alternative> = Vec::new();
        for zone in &policy.zones {
            sets.push(Addresses::new(networks(&zone.areas)));
            zones.push(Alternative::AddressSet(sets.len() - 1));
        }
        let mut tests = Vec::new();
        let mut sets_of_asn: HashMap<u32, Vec<usize>> = HashMap::new();
        for clause in &clauses.list {
            let test = ends.asked(&clause.test).map(|test| {
                let mut questions = Questions::default();
                for addresses in test.networks.iter().chain(&test.gateway) {
                    sets.push(addresses.clone());
                    questions
                        .0
                        .push(vec![Alternative::AddressSet(sets.len() - 1)]);
                }
                if let Some(asns) = test.asns {
                    // Filled below, in one go through the data.
                    sets.push(Addresses::default());
                    for asn in asns {
                        let sets_of_it = sets_of_asn.entry(asn.value).or_default();
                        sets_of_it.push(sets.len() - 1);
                    }
                    questions
                        .0
                        .push(vec![Alternative::AddressSet(sets.len() - 1)]);
                }
                if let Some(areas) = test.countries {
                    members_of_sets.push(countries(areas));
                    questions
                        .0
                        .push(vec![Alternative::CountrySet(members_of_sets.len() - 1)]);
                }
                if let Some(indexes) = test.zones {
                    let set = *sets_of_zones.entry(indexes).or_insert_with(|| {
                        let areas = indexes.iter().map(|&zone| &*policy.zones[zone].areas);
                        members_of_sets.push(areas.flat_map(countries).collect());
                        members_of_sets.len() - 1
                    });
                    let networks = indexes.iter().map(|&zone| zones[zone]);
                    let any = networks.chain([Alternative::CountrySet(set)]);
                    questions.0.push(any.collect());
                }
                questions
            });
            tests.push((clause.denies, test));
        }

        if !sets_of_asn.is_empty() {
            let geography = surroundings.geography;
            for (set, v4) in by_set(&sets_of_asn, geography.asns_v4()) {
                sets[set].v4 = v4;
            }
            for (set, v6) in by_set(&sets_of_asn, geography.asns_v6()) {
                sets[set].v6 = v6;
            }
        }

        let mut number_of_country = HashMap::new();
        let mut numbers: HashMap<Vec<Part>, usize> = HashMap::new();
        let nowhere = vec![Part::None; members_of_sets.len()];
        let mut memberships = vec![nowhere.clone(), nowhere.clone()];
        numbers.insert(nowhere, OTHER);
        for country in Country::all() {
            let membership: Vec<Part> = members_of_sets
                .iter()
                .map(|members| match members.contains(&country) {
                    true => Part::All,
                    false => Part::None,
                })
                .collect();
            let number = *numbers.entry(membership.clone()).or_insert_with(|| {
                memberships.push(membership);
                memberships.len() - 1
            });
            number_of_country.insert(country, number);
        }
        let first_of_several = memberships.len();
        let mut numbers: HashMap<Vec<Part>, usize> = HashMap::new();
        let geography = surroundings.geography;
        let several_v4 = geography.several_v4().map(|(_, _, several)| several);
        let several_v6 = geography.several_v6().map(|(_, _, several)| several);
        let several: HashSet<Countries> = several_v4.chain(several_v6).collect();
        let mut number_of_several = HashMap::new();
        for several in several {
            let part = |members: &Vec<Country>| {
                let is_member = |country| members.contains(&country);
                match (several.all(is_member), several.any(is_member)) {
                    (true, _) => Part::All,
                    (false, true) => Part::Some,
                    (false, false) => Part::None,
                }
            };
            let membership: Vec<Part> = members_of_sets.iter().map(part).collect();
            let number = *numbers.entry(membership.clone()).or_insert_with(|| {
                memberships.push(membership);
                memberships.len() - 1
            });
            number_of_several.insert(several, number);
        }
        Self {
            ends,
            sets,
            embedding,
            layouts: RefCell::default(),
            tests,
            number_of_country,
            number_of_several,
            first_of_several,
            memberships,
        }
    }

    /// Merges the ranges of the country data in order, with numbers instead of countries.
    fn numbered<K: Key>(
        &self,
        countries: impl Iterator<Item = (K, K, Country)>,
        several: impl Iterator<Item = (K, K, Countries)>,
    ) -> impl Iterator<Item = (K, K, usize)> {
        let number = |known: Option<&usize>| known.copied().unwrap_or(UNKNOWN);
        let mut countries = countries
            .map(move |(first, last, country)| {
                (first, last, number(self.number_of_country.get(&country)))
            })
            .peekable();
        let mut several = several
            .map(move |(first, last, several)| {
                (first, last, number(self.number_of_several.get(&several)))
            })
            .peekable();
        std::iter::from_fn(move || match several.peek() {
            None => countries.next(),
            Some(&(first, ..)) => match countries.next_if(|before| before.0 < first) {
                None => several.next(),
                before => before,
            },
        })
    }

    /// Returns the outcome for addresses that are in the sets of `signature` and in a country
    /// of this number.
    fn outcome(
        &self,
        signature: &[u64],
        country: usize,
        classes: &mut Classes<'_>,
    ) -> Result<Outcome, Fault> {
        if is_in(signature, LOCAL_SET) {
            return Ok((0, verdict::LOCAL, 0));
        }
        let mut row = Row::default();
        for (clause, (denies, test)) in self.tests.iter().enumerate() {
            // Where the data gives several countries, one is enough to deny, and all have
            // to be approved.
            let holds = |alternative: &Alternative| match *alternative {
                Alternative::AddressSet(set) => is_in(signature, set),
                // Of a sender nothing counts for him that is not known.
                Alternative::CountrySet(_) if country == UNKNOWN && self.ends == Ends::Origins => {
                    *denies
                }
                Alternative::CountrySet(set) => match self.memberships[country][set] {
                    Part::None => false,
                    Part::Some => *denies,
                    Part::All => true,
                },
            };
            let is_satisfied = test.as_ref().is_none_or(|Questions(questions)| {
                questions.iter().all(|any| any.iter().any(holds))
            });
            if is_satisfied {
                set_bit(&mut row, clause);
            }
        }
        let fallback = match country {
            UNKNOWN => verdict::UNDETERMINED,
            several if several >= self.first_of_several => verdict::UNDETERMINED,
            _ => verdict::UNAPPROVED,
        };
        let own = if is_in(signature, OWN_SET) { OWN } else { 0 };
        let marks = own | self.marks_of_layouts(signature)?;
        Ok((classes.class_of(row)?, fallback, marks))
    }
}

impl World {
    /// How addresses that are in the sets of `signature` embed others.
    fn marks_of_layouts(&self, signature: &[u64]) -> Result<u8, Fault> {
        let here = self.embedding.iter();
        let here = here.filter(|(set, _)| is_in(signature, *set));
        let mut layouts = 0;
        let all = embedding::layouts(here.map(|(_, form)| form));
        for (nth, own) in all.iter().enumerate() {
            if nth == layout::MOST as usize {
                let most = layout::MOST;
                return Err(Fault::new(format!(
                    "more than {most} prefixes of `nat64` have an address in common"
                ))
                .help("list the prefixes that are in use"));
            }
            layouts |= own << (nth as u32 * layout::BITS);
        }
        self.layouts.borrow_mut().marks(layouts)
    }
}

/// Combinations of layouts, the first of which is none.
#[derive(Default)]
struct Layouts([u16; layout::N_SETS], usize);

impl Layouts {
    fn marks(&mut self, layouts: u16) -> Result<u8, Fault> {
        let Self(known, last) = self;
        let index = match known[..=*last].iter().position(|own| *own == layouts) {
            Some(index) => index,
            None if *last + 1 == layout::N_SETS => {
                return Err(
                    Fault::new("the prefixes of `nat64` overlap in too many ways")
                        .help("list the prefixes that are in use"),
                );
            }
            None => {
                *last += 1;
                known[*last] = layouts;
                *last
            }
        };
        Ok(EMBEDS * index as u8)
    }
}

/// The addresses of each set of autonomous systems.
fn by_set<K: Key>(
    sets_of_asn: &HashMap<u32, Vec<usize>>,
    ranges: impl Iterator<Item = (K, K, u32)>,
) -> HashMap<usize, Intervals<K>> {
    let mut of_sets: HashMap<usize, Vec<(K, K)>> = HashMap::new();
    for (first, last, asn) in ranges {
        for &set in sets_of_asn.get(&asn).into_iter().flatten() {
            of_sets.entry(set).or_default().push((first, last));
        }
    }
    let set = |(set, ranges)| (set, Intervals::union(ranges));
    of_sets.into_iter().map(set).collect()
}

/// Goes through cells and country ranges side by side. Returns the smallest address
/// of each range of one outcome, from 0 on.
fn fold<K: Key>(
    world: &World,
    sets: &[Intervals<K>],
    places: impl Iterator<Item = (K, K, usize)>,
    classes: &mut Classes<'_>,
) -> Result<Vec<(K, Outcome)>, Fault> {
    let Cells { cells, signatures } = Cells::new(sets);
    let n_numbers = world.memberships.len();
    let mut known: Vec<Option<Outcome>> = vec![None; signatures.len() * n_numbers];
    let mut folded: Vec<(K, Outcome)> = Vec::new();
    let mut cell = 0;
    // Takes a range that is all in one country, or in none that is known.
    let mut take = |first: K, last: K, country: usize| -> Result<(), Fault> {
        let mut first = first;
        loop {
            while cells.get(cell + 1).is_some_and(|&(next, _)| next <= first) {
                cell += 1;
            }
            let signature = cells[cell].1;
            let known = &mut known[signature * n_numbers + country];
            let outcome = match *known {
                Some(outcome) => outcome,
                None => *known.insert(world.outcome(&signatures[signature], country, classes)?),
            };
            if folded.last().is_none_or(|&(_, last)| last != outcome) {
                folded.push((first, outcome));
            }
            match cells.get(cell + 1) {
                Some(&(next, _)) if next <= last => first = next,
                _ => return Ok(()),
            }
        }
    };
    // The first address that is not taken yet; `None` behind the last.
    let mut behind = Some(K::MIN);
    for (first, last, number) in places {
        let Some(begin) = behind else { break };
        debug_assert!(begin <= first && first <= last, "country ranges are sorted");
        if begin < first
            && let Some(last) = first.predecessor()
        {
            take(begin, last, UNKNOWN)?;
        }
        let first = first.max(begin);
        if first <= last {
            take(first, last, number)?;
            behind = last.successor();
        }
    }
    if let Some(begin) = behind {
        take(begin, K::MAX, UNKNOWN)?;
    }
    Ok(folded)
}
