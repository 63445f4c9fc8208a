//! Origin of a login session, as fields and in words.

use std::{net::IpAddr, sync::Arc};

use super::{Field, Record, words};

/// Facts about the connection by which somebody logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Address of its far end.
    pub address: IpAddr,
    /// Port of its far end.
    pub port: u16,
    /// Gateway of the policy in force that opens sessions from that address.
    pub gateway: Option<Arc<str>>,
    /// Its community id, as in the record of the accepted flow.
    pub community_id: Option<String>,
    /// One of [`quality`](trefoil_ebpf::abi::quality).
    pub attribution: u8,
}

impl SessionFacts {
    /// Words for a message: `from 198.51.100.7 by gateway dublin-1`.
    pub(super) fn words(&self) -> String {
        let address = self.address;
        match &self.gateway {
            Some(gateway) => format!("from {address} by gateway {gateway}"),
            None => format!("from {address}"),
        }
    }
}

impl Record {
    pub(super) fn set_session(&mut self, session: Option<&SessionFacts>) {
        let Some(session) = session else { return };
        self.set(Field::SessionAddr, session.address.to_string());
        self.set(Field::SessionPort, session.port);
        self.set_known(Field::SessionGateway, session.gateway.clone());
        self.set_known(Field::SessionCommunityId, session.community_id.clone());
        self.set(
            Field::SessionAttribution,
            words::attribution(session.attribution),
        );
    }
}
