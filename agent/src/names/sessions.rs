//! Origins of login sessions: the far end that somebody logged in from, and the gateway that it is.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use trefoil_ebpf::abi::{NOBODY_LOGGED_IN, SessionOrigin};

use super::REMEMBERED;
use crate::{
    flow::ip_address,
    kernel::{KernelError, Reader},
    policy::network::Network,
    report::{SessionFacts, community_id},
};

/// Origins that were looked up, and the gateways of the policy in force.
#[derive(Default)]
pub(super) struct Sessions {
    /// By audit session. The kernel's table may forget what is remembered here.
    known: HashMap<u32, SessionOrigin>,
    clients: Vec<(Network, Arc<str>)>,
}

impl Sessions {
    /// Replaces the networks from which gateways open sessions.
    pub(super) fn set_gateways(&mut self, clients: &[(Network, String)]) {
        let named = |(network, name): &(Network, String)| (*network, name.as_str().into());
        self.clients = clients.iter().map(named).collect();
    }

    /// Facts about an audit session; none if nobody is known to have logged in by the network.
    pub(super) fn facts(
        &mut self,
        reader: &Reader,
        session: u32,
    ) -> Result<Option<SessionFacts>, KernelError> {
        if session == NOBODY_LOGGED_IN {
            return Ok(None);
        }
        let origin = match self.known.get(&session) {
            Some(origin) => *origin,
            None => {
                let Some(origin) = reader.session(session)? else {
                    return Ok(None);
                };
                if self.known.len() >= REMEMBERED {
                    self.known.clear();
                }
                self.known.insert(session, origin);
                origin
            }
        };
        let (far, near) = (ip_address(&origin.peer.address), ip_address(&origin.local));
        let port = origin.peer.port;
        Ok(Some(SessionFacts {
            address: far,
            port,
            gateway: self.gateway(far),
            community_id: community_id(
                origin.peer.protocol,
                (near, origin.local_port),
                (far, port),
            ),
            attribution: origin.quality,
        }))
    }

    /// The gateway that opens sessions from an address; the one with the smallest network if several
    /// do.
    fn gateway(&self, address: IpAddr) -> Option<Arc<str>> {
        let containing = self
            .clients
            .iter()
            .filter(|(network, _)| network.contains(address));
        let smallest = containing.max_by_key(|(network, _)| network.prefix());
        smallest.map(|(_, name)| Arc::clone(name))
    }
}
