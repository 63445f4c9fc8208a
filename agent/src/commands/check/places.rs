//! Country data that a policy is checked with, and how much it leaves open.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    geo::{Geo, Source, groups, special},
    policy::{LinkLocal, Place, Problem, local, problem::Fault},
    report::words,
};

/// Country data, and the tables of Trefoil's own that go with it.
#[derive(Debug, Serialize)]
pub struct Places {
    files: Vec<File>,
    /// The month in which the groups of countries were as they are here.
    groups_as_of: &'static str,
    /// The same for the addresses that are set aside.
    set_aside_as_of: &'static str,
}

#[derive(Debug, Serialize)]
struct File {
    file: String,
    name: String,
    date: Option<String>,
    networks: usize,
    unknown: usize,
    in_two_countries: usize,
    anywhere: usize,
}

impl Places {
    pub fn of(geo: &Geo) -> Self {
        Self {
            files: geo.sources().iter().map(File::of).collect(),
            groups_as_of: groups::AS_OF,
            set_aside_as_of: special::AS_OF,
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            let _ = writeln!(
                text,
                "country data {}: {}, {}; {}{}",
                file.file,
                file.name,
                file.date.as_deref().unwrap_or("undated"),
                words::count(file.networks as u64, "network"),
                file.left_open(),
            );
        }
        let _ = writeln!(
            text,
            "  groups of countries as of {}, addresses in no country as of {}",
            self.groups_as_of, self.set_aside_as_of
        );
        text
    }
}

impl File {
    fn of(source: &Source) -> Self {
        Self {
            file: source.path.display().to_string(),
            name: source.name.clone(),
            date: source.date.clone(),
            networks: source.n_networks,
            unknown: source.n_unknown,
            in_two_countries: source.n_contradictory,
            anywhere: source.n_anywhere,
        }
    }

    /// Those that it places in no country, by reason.
    fn left_open(&self) -> String {
        [
            (self.unknown, "in none that is known"),
            (self.in_two_countries, "in two countries"),
            (self.anywhere, "anywhere"),
        ]
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!(", {n} {what}"))
        .collect()
    }
}

/// Returns the problem of the setting that makes unicast to the link's scope local: the
/// traffic that it leaves open.
pub fn open_link(link_local: LinkLocal) -> Vec<Problem> {
    let networks: Vec<String> = match link_local {
        LinkLocal::Judged => return Vec::new(),
        LinkLocal::Local => local::link_local()
            .map(|network| network.to_string())
            .collect(),
    };
    let fault = Fault::new(format!(
        "`link_local = \"local\"` in trefoil.toml: no rule is asked about {}, and none of it is in a \
         record, be it a metadata service or a router that forwards it",
        networks.join(" and ")
    ))
    .help("take the setting out, and approve what has to go there by a rule");
    vec![fault.at(Place::START, "link_local")]
}
