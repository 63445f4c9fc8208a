//! Several countries at once: what a file says of an address that it does not place in one.

use std::fmt;

use super::Country;

/// Most countries that a file gives for one address: it has so many fields.
const MOST: usize = 4;

/// All countries that a file gives for an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Countries {
    /// In order; the last one again in what is left.
    codes: [Country; MOST],
    /// It gives something besides that is no country, so they may not be all.
    pub and_others: bool,
}

impl Countries {
    /// These, of which four are the most; `None` if there are none.
    #[must_use]
    pub fn new(countries: impl IntoIterator<Item = Country>, and_others: bool) -> Option<Self> {
        let mut sorted: Vec<Country> = countries.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        let last = *sorted.last()?;
        let and_others = and_others || sorted.len() > MOST;
        sorted.resize(MOST, last);
        Some(Self {
            codes: std::array::from_fn(|at| sorted[at]),
            and_others,
        })
    }

    /// Each of them, once.
    pub fn iter(&self) -> impl Iterator<Item = Country> {
        let codes = self.codes.into_iter().enumerate();
        let is_new = move |&(at, code): &(usize, Country)| at == 0 || self.codes[at - 1] != code;
        codes.filter(is_new).map(|(_, code)| code)
    }

    /// True if this is so of one of them: then it counts against the destination.
    pub fn any(&self, is_so: impl FnMut(Country) -> bool) -> bool {
        self.iter().any(is_so)
    }

    /// True if this is so of all, and there are no others.
    pub fn all(&self, is_so: impl FnMut(Country) -> bool) -> bool {
        !self.and_others && self.iter().all(is_so)
    }
}

impl fmt::Display for Countries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, country) in self.iter().enumerate() {
            if at > 0 {
                formatter.write_str(", ")?;
            }
            country.fmt(formatter)?;
        }
        match self.and_others {
            true => formatter.write_str(" and elsewhere"),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Countries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_in_order() {
        let of = |codes: &[&str], others| {
            let countries = codes.iter().map(|code| Country::parse(code).unwrap());
            Countries::new(countries, others)
        };
        assert_eq!(of(&[], false), None);
        let two = of(&["US", "IE", "US"], false).unwrap();
        assert_eq!(two.to_string(), "IE, US");
        assert!(two.any(|country| country.as_str() == "US"));
        assert!(!two.all(|country| country.as_str() == "US"));
        assert!(two.all(|country| country.as_str() != "CN"));
        let others = of(&["US"], true).unwrap();
        assert_eq!(others.to_string(), "US and elsewhere");
        assert!(!others.all(|_| true));
        let many = of(&["US", "IE", "DE", "CN", "FR"], false).unwrap();
        assert_eq!((many.iter().count(), many.and_others), (4, true));
    }
}
