//! The tables for groups and login sessions: whether somebody logged in to start a process, and
//! where from.

use trefoil_ebpf::abi::{class, login};

use super::clauses::{Addresses, Clauses, DestinationTest, Login};
use super::{Classes, Range32, Range128, Rows, destinations};
use crate::policy::geography::Surroundings;
use crate::policy::problem::Fault;
use crate::policy::source::{Origin, Policy};

/// The groups, for each case of [`login`], and where somebody logged in from, if a clause asks.
pub(super) struct Logins {
    pub(super) groups: [Vec<Range32>; login::N],
    pub(super) origins: Option<Origins>,
    pub(super) first_row: u32,
}

/// Addresses that sessions come from. Those that every clause treats alike are one case, which is
/// the class of their ranges.
#[derive(Clone, Debug)]
pub struct Origins {
    /// IPv4 addresses.
    pub v4: Vec<Range32>,
    /// IPv6 addresses.
    pub v6: Vec<Range128>,
    /// Groups, for each case. [`class::UNKNOWN`] is the case of an origin that is not known.
    pub groups: Vec<Vec<Range32>>,
}

pub(super) fn tables(
    policy: &Policy,
    clauses: &Clauses<'_>,
    surroundings: &Surroundings<'_>,
    rows: &mut Rows,
) -> Result<Logins, Fault> {
    let mut classes = rows.of_source(clauses, |test| {
        test.groups.is_some() || test.interactive.is_some() || test.origin.is_some()
    });
    let unknown_origin = |clause: usize| clauses.list[clause].denies;
    let mut groups = <[Vec<Range32>; login::N]>::default();
    for (known, case) in [
        (login::UNKNOWN, Login::Unknown),
        (login::NONE, Login::None),
        (login::SESSION, Login::Session(&unknown_origin)),
    ] {
        groups[known] = of_case(clauses, case, &mut classes)?;
    }
    let names_origin = clauses
        .list
        .iter()
        .any(|clause| clause.test.origin.is_some());
    let origins = match names_origin {
        true => Some(origins(policy, clauses, surroundings, &mut classes)?),
        false => None,
    };
    Ok(Logins {
        groups,
        origins,
        first_row: classes.finish(),
    })
}

/// The test of where somebody logged in from.
pub(super) fn origin_of<'p>(policy: &Policy, origin: &'p Origin) -> DestinationTest<'p> {
    let networks = origin.networks.as_ref();
    DestinationTest {
        networks: networks.map(|networks| Addresses::new(networks.iter().copied())),
        countries: origin.countries.as_deref(),
        gateway: origin.gateways.as_ref().map(|gateways| {
            let gateways = gateways.iter().map(|&index| &policy.gateways[index]);
            Addresses::new(gateways.flat_map(|gateway| &gateway.clients).copied())
        }),
        ..DestinationTest::default()
    }
}

/// The classes of groups in a case.
fn of_case(
    clauses: &Clauses<'_>,
    case: Login<'_>,
    classes: &mut Classes<'_>,
) -> Result<Vec<Range32>, Fault> {
    let sets: Vec<_> = (0..clauses.list.len())
        .map(|clause| clauses.list[clause].groups_where(clause, case))
        .collect();
    classes.of_numbers(sets.iter().map(Option::as_ref))
}

fn origins(
    policy: &Policy,
    clauses: &Clauses<'_>,
    surroundings: &Surroundings<'_>,
    classes: &mut Classes<'_>,
) -> Result<Origins, Fault> {
    // Rows of these cases are no decision's.
    let mut rows = Rows::default();
    let mut cases = rows.of_source(clauses, |test| test.origin.is_some());
    let (mut v4, mut v6) = destinations::origins(policy, clauses, surroundings, &mut cases)?;
    let first = cases.finish() as usize;
    let groups = rows.rows[first..].iter().map(|row| {
        let is_met = |clause: usize| row.words[clause / 64] >> (clause % 64) & 1 == 1;
        of_case(clauses, Login::Session(&is_met), classes)
    });
    let groups = groups.collect::<Result<_, _>>()?;
    // Neighbours that became one case.
    v4.dedup_by_key(|range| range.class);
    v6.dedup_by_key(|range| range.class);
    const { assert!(class::UNKNOWN == 0) };
    Ok(Origins { v4, v6, groups })
}
