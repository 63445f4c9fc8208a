//! Keys of a rule about a session's opener, this host's port and the gateway, against one flow.

use super::Condition;
use super::reader::{Reader, list};
use crate::policy::service::{Ports, Protocol};
use crate::policy::source::{Direction, Gateway, Rule, RuleVerdict};

impl Reader<'_> {
    /// Lists the conditions on the session's opener, and on this host's port.
    pub(super) fn near_end(&self, rule: &Rule) -> Vec<Condition> {
        let mut conditions = Vec::new();
        if let Some(asked) = rule.direction {
            conditions.push(match self.question.direction {
                None => self.unknown_sender("direction", "who opened the session", rule),
                Some(known) => self.condition("direction", asked == known, || match known {
                    Direction::Accepted => "the far end opened the session".to_owned(),
                    Direction::Outbound => "this host named the destination".to_owned(),
                }),
            });
        }
        if let Some(ports) = &rule.near_ports {
            conditions.push(self.near_port(ports, rule));
        }
        conditions
    }

    /// A port that is only shown, by whoever it may be, matches what denies it alone.
    fn near_port(&self, ports: &[Ports], rule: &Rule) -> Condition {
        const KEY: &str = "from.ports";
        let protocol = Protocol(self.question.protocol);
        let Some(port) = self.question.near_port else {
            return self.condition(KEY, false, || {
                "the socket has no port yet: its packets are judged by the one that it gets"
                    .to_owned()
            });
        };
        let is_of_these = |ports: &Ports| ports.protocol.is_none_or(|own| own == protocol);
        if port == 0 && protocol.has_ports() && ports.iter().any(is_of_these) {
            return self.unknown_sender(KEY, "this host's port", rule);
        }
        let own = || match port {
            0 => format!("{protocol} without a port"),
            port => format!("{port}/{protocol}"),
        };
        let by_port = self.one_of(
            KEY,
            ports,
            |ports| ports.contains(protocol, port),
            |ports| format!("{} of this host is in `{ports}`", own()),
            || format!("{} of this host is none", own()),
        );
        match (by_port.holds, self.question.direction, rule.verdict) {
            (true, None, RuleVerdict::Approve) => self.condition(KEY, false, || {
                format!(
                    "{} is what the packet shows, and who wrote that is not known",
                    own()
                )
            }),
            _ => by_port,
        }
    }

    pub(super) fn endpoint_of(&self, gateways: &[&Gateway]) -> Condition {
        let (destination, question) = (self.destination, self.question);
        let endpoints: Vec<_> = gateways
            .iter()
            .flat_map(|gateway| {
                let endpoints = gateway.endpoints.iter();
                endpoints.map(|endpoint| (endpoint, &gateway.name.value))
            })
            .collect();
        let found = endpoints.iter().find(|(endpoint, _)| {
            endpoint.address == destination
                && endpoint.protocol == Protocol(question.protocol)
                && endpoint.port.is_none_or(|port| port == question.port)
        });
        self.condition("to.gateway", found.is_some(), || match found {
            Some((endpoint, name)) => format!("{endpoint} is an endpoint of `{name}`"),
            None => format!(
                "{} is no endpoint: {}",
                self.service_at(destination),
                list(endpoints.iter().map(|(endpoint, _)| endpoint))
            ),
        })
    }

    pub(super) fn client_of(&self, gateways: &[&Gateway]) -> Condition {
        let destination = self.destination;
        let clients: Vec<_> = gateways
            .iter()
            .flat_map(|gateway| {
                let clients = gateway.clients.iter();
                clients.map(|network| (network, &gateway.name.value))
            })
            .collect();
        let found = clients
            .iter()
            .find(|(network, _)| network.contains(destination));
        self.condition("to.gateway", found.is_some(), || match found {
            Some((network, name)) => {
                format!("{destination} is in {network}, from where `{name}` opens sessions")
            }
            None => format!(
                "{destination} is in no network of the gateway's clients: {}",
                list(clients.iter().map(|(network, _)| network))
            ),
        })
    }
}
