//! Keys of a rule about where somebody logged in from, against one flow.

use std::fmt::Display;
use std::net::IpAddr;

use super::Condition;
use super::embedded::forms;
use super::reader::{Reader, counts, in_area, list};
use crate::policy::local;
use crate::policy::network::Network;
use crate::policy::source::{Area, Gateway, Origin, Rule};

const GATEWAY: &str = "from.session.gateway";
const NETWORKS: &str = "from.session.networks";
const COUNTRIES: &str = "from.session.countries";

impl Reader<'_> {
    /// Lists the conditions on where somebody logged in from.
    pub(super) fn session(&self, rule: &Rule) -> Vec<Condition> {
        let Some(asked) = &rule.session else {
            return Vec::new();
        };
        let keys = [
            (GATEWAY, asked.gateways.is_some()),
            (NETWORKS, asked.networks.is_some()),
            (COUNTRIES, asked.countries.is_some()),
        ];
        let of_all = |condition: &dyn Fn(&'static str) -> Condition| {
            let keys = keys.iter().filter(|(_, is_there)| *is_there);
            keys.map(|(key, _)| condition(key)).collect()
        };
        let unknown = |what: &str| of_all(&|key| self.unknown_sender(key, what, rule));
        match (self.question.interactive, self.question.origin) {
            (None, _) => unknown("whether there is a login session"),
            (Some(false), _) => {
                of_all(&|key| self.condition(key, false, || "there is no login session".to_owned()))
            }
            (Some(true), None) => unknown("where the login session came from"),
            (Some(true), Some(origin)) => match self.hides(origin.to_canonical()) {
                Some(why) => unknown(&format!(
                    "the session came from {origin}, {why}: where somebody is who did that"
                )),
                None => self.origin(asked, origin.to_canonical(), rule),
            },
        }
    }

    /// Why an address says nothing of where somebody is who logs in from it, if so.
    fn hides(&self, origin: IpAddr) -> Option<&'static str> {
        let own = self.surroundings.own_addresses;
        let is_own = local::own().any(|network| network.contains(origin))
            || own.iter().any(|own| own.to_canonical() == origin);
        let mut local = self.surroundings.link_local.local();
        if is_own {
            Some("an address of this host")
        } else if local.any(|network| network.contains(origin)) {
            Some("which is local")
        } else if !forms(self.policy, origin).is_empty() {
            Some("which embeds another address")
        } else {
            None
        }
    }

    fn origin(&self, asked: &Origin, origin: IpAddr, rule: &Rule) -> Vec<Condition> {
        let mut conditions = Vec::new();
        let from = |what: &dyn Display| format!("the session came from {origin}, {what}");
        if let Some(gateways) = &asked.gateways {
            let gateways = gateways.iter().map(|&at| &self.policy.gateways[at]);
            let clients: Vec<(&Network, &Gateway)> = gateways
                .flat_map(|gateway| gateway.clients.iter().map(move |one| (one, gateway)))
                .collect();
            let found = clients.iter().find(|(network, _)| network.contains(origin));
            conditions.push(self.condition(GATEWAY, found.is_some(), || match found {
                Some((network, gateway)) => {
                    let name = &gateway.name.value;
                    from(&format!("in {network}, from where `{name}` opens sessions"))
                }
                None => from(&format!(
                    "in no network of the gateway's clients: {}",
                    list(clients.iter().map(|(network, _)| network))
                )),
            }));
        }
        if let Some(networks) = &asked.networks {
            conditions.push(self.one_of(
                NETWORKS,
                networks,
                |network| network.contains(origin),
                |network| from(&format!("in {network}")),
                || from(&"in no network"),
            ));
        }
        if let Some(areas) = &asked.countries {
            conditions.push(self.country_of_origin(areas, origin, rule));
        }
        conditions
    }

    fn country_of_origin(&self, areas: &[Area], origin: IpAddr, rule: &Rule) -> Condition {
        let geography = self.surroundings.geography;
        let is_named = |country| areas.iter().any(|area| area.has_country(country));
        match (geography.several(origin), geography.country(origin)) {
            (Some(several), _) => {
                let holds = counts(several, rule, is_named);
                self.condition(COUNTRIES, holds, || {
                    self.of_several(origin, several, rule, is_named)
                })
            }
            (None, None) => {
                let what = format!("the country of {origin}, where the session came from,");
                self.unknown_sender(COUNTRIES, &what, rule)
            }
            (None, Some(country)) => self.one_of(
                COUNTRIES,
                areas,
                |area| area.has_country(country),
                |area| {
                    format!(
                        "the session came from {origin}, in {}",
                        in_area(country, area)
                    )
                },
                || format!("the session came from {origin}, in {country}, not in one"),
            ),
        }
    }
}
