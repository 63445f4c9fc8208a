//! Flows that are open now, from the kernel's tables, agent alive or dead, as the records
//! that an agent would make of them.

use std::{path::Path, sync::Arc};

use trefoil_ebpf::abi::{FLOW_EMBRYONIC, FLOW_ENDED, Tracked, verdict};

use super::{Failure, sources};
use crate::{
    clock::{self, BootClock},
    flow::{FlowReport, ReportKind, Stage, counted},
    geo::Geo,
    kernel::{KernelError, Reader},
    names::Names,
    owner::users::Logins,
    report::{Context, Field, Record},
    state::State,
};

/// The tables, and names for what is in them.
pub struct Live {
    reader: Reader,
    names: Names,
    /// Boot and host; with them a flow's name is one for good.
    context: Context,
}

impl Live {
    /// Opens the tables of a pin directory.
    pub fn open(pin_dir: &Path, geo: Geo) -> Result<Self, Failure> {
        let reader = Reader::open(&sources::pins(pin_dir)?)?;
        let logins = Logins::start().map_err(|error| {
            Failure::Other(format!("start the look-up of login names: {error}"))
        })?;
        let mut names = Names::new(logins, None, Arc::new(geo));
        if let Some(state) = State::read(pin_dir) {
            names.add_policy(state.rule_names());
        }
        let context = Context::of_this_host()
            .map_err(|error| Failure::Other(format!("read boot and name of the host: {error}")))?;
        Ok(Self {
            reader,
            names,
            context,
        })
    }

    /// Everything that something happened on and that is not over, oldest first.
    pub fn open_flows(&self) -> Result<Vec<Tracked>, KernelError> {
        let mut open = self.reader.socket_flows()?;
        open.extend(
            self.reader
                .many_peer_flows()?
                .into_iter()
                .map(|(_, tracked)| tracked),
        );
        open.extend(
            self.reader
                .uplink_flows()?
                .into_iter()
                .map(|(_, tracked)| tracked),
        );
        open.retain(|tracked| {
            let counted = counted(&tracked.flow);
            tracked.flow.state & (FLOW_ENDED | FLOW_EMBRYONIC) == 0
                && tracked.flow.decision.verdict != verdict::LOCAL
                && counted.packets_out + counted.packets_in + counted.blocked_packets > 0
        });
        open.sort_by_key(|tracked| tracked.flow.started_ns);
        Ok(open)
    }

    /// The record of an open flow, as of now.
    pub fn record(&mut self, tracked: &Tracked, stage: Stage) -> Result<Record, KernelError> {
        let facts = self.names.facts(&self.reader, tracked)?;
        let report = FlowReport {
            kind: ReportKind::Flow,
            stage,
            time_ns: clock::since_boot_ns(),
            tracked: *tracked,
            counted: counted(&tracked.flow),
            since_last: counted(&tracked.flow),
            // It tells again what records have told.
            is_since_known: false,
            ending: None,
        };
        let mut record = Record::flow(&report, &facts, &BootClock::read());
        let Context {
            boot_id,
            host,
            instance,
            machine_id,
            ..
        } = &self.context;
        record.set(Field::BootId, Arc::clone(boot_id));
        record.set_known(Field::Instance, instance.clone());
        record.set_known(Field::MachineId, machine_id.clone());
        record.set(Field::Host, Arc::clone(host));
        Ok(record)
    }
}
