//! Named groups of countries that a policy may use in place of a list.
//!
//! Each group is a table with the date at which it was true and its source. Law
//! changes: a policy that must not change with a new version of the agent lists
//! the codes itself. Tables only; what a group is good for is the policy's.
//!
//! Territories that have a code of their own are not covered by their state's
//! code. The Åland Islands (`AX`), French Guiana (`GF`), Guadeloupe (`GP`),
//! Martinique (`MQ`), Mayotte (`YT`), Réunion (`RE`) and Saint Martin (`MF`) are
//! part of the Union, but in no group here: a policy that means them names them,
//! so that "EU" never covers more than its reader thinks of.

/// The groups, in the order in which documents list them.
pub const GROUPS: &[&str] = &["EU", "EEA", "ADEQUATE"];

/// The month in which every group here was as in law.
pub const AS_OF: &str = "2026-11";

/// Codes of the group's members, sorted; `None` for a name that is no group.
#[must_use]
pub fn members(group: &str) -> Option<&'static [&'static str]> {
    match group {
        "EU" => Some(EU),
        "EEA" => Some(EEA),
        "ADEQUATE" => Some(ADEQUATE),
        _ => None,
    }
}

/// Member states of the European Union, as of 2026-11 (27 since 2020-02-01).
///
/// Source: Article 52 of the Treaty on European Union. Greece is `GR` in ISO
/// 3166-1 (not `EL`).
const EU: &[&str] = &[
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT",
    "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];

/// The European Economic Area, as of 2026-11: the Union, Iceland, Liechtenstein
/// and Norway.
///
/// Source: the EEA Agreement; the GDPR is part of it since 2018-07-20 (Joint
/// Committee Decision 154/2018). Not in it: Switzerland, Svalbard (`SJ`,
/// Protocol 40), Greenland and the Faroe Islands.
const EEA: &[&str] = &[
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS",
    "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
];

/// Countries outside the EEA for which a decision of the European Commission
/// under Article 45 GDPR (or its predecessor) was in force as of 2026-11, and
/// covers whoever receives the data there.
///
/// | code | decision | note |
/// |---|---|---|
/// | AD | 2010/625/EU | |
/// | AR | 2003/490/EC | |
/// | BR | (EU) 2026/179 | since 2026-01-26 |
/// | CH | 2000/518/EC | |
/// | FO | 2010/146/EU | |
/// | GB | (EU) 2021/1772 | renewed 2025-12-19; ends 2031-12-27; not `GI`, nor the Crown dependencies, which have their own |
/// | GG | 2003/821/EC | |
/// | IL | 2011/61/EU | automated processing; the State of Israel as in international law |
/// | IM | 2004/411/EC | |
/// | JE | 2008/393/EC | |
/// | KR | (EU) 2022/254 | not missionary work, candidates' nomination, credit data under the Financial Services Commission |
/// | NZ | 2013/65/EU | not Tokelau (`TK`) |
/// | UY | 2012/484/EU | |
///
/// Left out, because the decision depends on who receives the data and an
/// address cannot show that: the United States (`US`, (EU) 2023/1795: only
/// participants of the Data Privacy Framework), Canada (`CA`, 2002/2/EC: only
/// commercial organisations under PIPEDA), Japan (`JP`, (EU) 2019/419: only
/// business operators under its privacy act). A rule approves such a receiver by
/// its networks.
const ADEQUATE: &[&str] = &[
    "AD", "AR", "BR", "CH", "FO", "GB", "GG", "IL", "IM", "JE", "KR", "NZ", "UY",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::Country;

    #[test]
    fn members_are_countries_in_order() {
        for group in GROUPS {
            let codes = members(group).unwrap();
            assert!(codes.is_sorted_by(|a, b| a < b), "{group}");
            for code in codes {
                assert!(Country::parse(code).is_some(), "{group}: {code}");
            }
        }
    }

    #[test]
    fn a_group_is_not_a_country() {
        for group in GROUPS {
            assert_eq!(Country::parse(group), None);
        }
        for name in ["", "eu", "EFTA", "IE", "WORLD"] {
            assert_eq!(members(name), None, "{name}");
        }
    }

    #[test]
    fn the_groups_relate_as_in_law() {
        assert_eq!(EU.len(), 27);
        let mut eea = [EU, &["IS", "LI", "NO"]].concat();
        eea.sort_unstable();
        assert_eq!(eea, EEA);
        assert!(ADEQUATE.iter().all(|code| !EEA.contains(code)));
        for conditional in ["US", "CA", "JP"] {
            assert!(!ADEQUATE.contains(&conditional), "{conditional}");
        }
    }
}
