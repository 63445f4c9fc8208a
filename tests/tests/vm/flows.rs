//! Flows to both places and by both versions of IP, and their records: the same traffic for every
//! kernel, counted at both ends of the link.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::places::{FOREIGN, FOREIGN6, PEER, PEER6};
use trefoil_lab::vm::Vm;

use crate::world::TRAFFIC;

/// Bytes of a connection and of a datagram, and how many of the latter there are.
const CONNECTION_BYTES: u64 = 100_000;
const DATAGRAM_BYTES: u64 = 500;
const DATAGRAMS: u64 = 3;

/// One of the flows of a phase.
#[derive(Clone, Copy)]
pub struct Flow {
    pub is_tcp: bool,
    pub to: IpAddr,
    pub approved: bool,
}

impl Flow {
    /// By both protocols, to a place that the policy approves of and to one that it does not,
    /// with both versions of IP.
    fn all() -> impl Iterator<Item = Self> {
        let places = [
            (PEER, true),
            (PEER6, true),
            (FOREIGN, false),
            (FOREIGN6, false),
        ];
        places.into_iter().flat_map(|(to, approved)| {
            [true, false].map(|is_tcp| Self {
                is_tcp,
                to,
                approved,
            })
        })
    }

    fn command(self) -> String {
        let to = SocketAddr::new(self.to, if self.is_tcp { 443 } else { 9 });
        if self.is_tcp {
            format!("{TRAFFIC} tcp {to} --bytes {CONNECTION_BYTES}")
        } else {
            format!("{TRAFFIC} udp {to} --size {DATAGRAM_BYTES} --count {DATAGRAMS}")
        }
    }

    /// The bytes of so many packets that leave, headers included. A connection has more if the
    /// kernel sends something once again.
    pub fn bytes_out(self, packets: u64) -> u64 {
        let header = if self.to.is_ipv4() { 20 } else { 40 };
        if self.is_tcp {
            // The first packet has 20 B of options, and all others have 12 B.
            CONNECTION_BYTES + (header + 32) * packets + 8
        } else {
            (DATAGRAM_BYTES + header + 8) * packets
        }
    }

    pub fn is_about(self, record: &Record) -> bool {
        record.is("TREFOIL_DST_ADDR", self.to)
            && record.is("TREFOIL_PROTOCOL", if self.is_tcp { "tcp" } else { "udp" })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.command())
    }
}

/// Sends all flows, one after the other, as a service. Returns the exit code of each, and the
/// id of its process if it was not refused.
pub fn send_all(vm: &mut Vm, service: &str) -> Result<Vec<(Flow, i32, Option<u64>)>> {
    let script: Vec<_> = Flow::all()
        .map(|flow| format!("{flow}; echo \"exit $?\""))
        .collect();
    vm.write("/run/send", &script.join("\n"))?;
    let said = vm.ok(&format!(
        "systemd-run --quiet --wait --pipe --collect --unit={service} sh /run/send"
    ))?;
    let mut sent = Vec::new();
    let (mut flows, mut pid) = (Flow::all(), None);
    for line in said.lines() {
        match line.strip_prefix("exit ") {
            Some(code) => {
                let flow = flows.next().context("more were sent than there are")?;
                sent.push((flow, code.parse()?, pid.take()));
            }
            None => pid = Some(Record::parse(line)?.number("pid")?),
        }
    }
    ensure!(flows.next().is_none(), "not all were sent: {said}");
    Ok(sent)
}

/// Reads the counters of an interface, of this host or of the far end.
pub fn counters(vm: &mut Vm, enter: &str, interface: &str) -> Result<LinkCounters> {
    LinkCounters::parse(&vm.ok(&format!("{enter} cat /proc/net/dev"))?, interface)
}

/// Fails unless the far end has got all that has left since, and returns that.
pub fn left_since(vm: &mut Vm, before: LinkCounters) -> Result<LinkCounters> {
    let now = counters(vm, "", "uplink")?;
    let far = counters(vm, "ip netns exec far", "far")?;
    ensure!(
        (far.rx_bytes, far.rx_packets) == (now.tx_bytes, now.tx_packets),
        "{far:?} {now:?}"
    );
    Ok(now.since(before))
}

/// The last records of flows with these fields, once there are so many.
pub fn last_records(vm: &mut Vm, fields: &str, n_flows: usize) -> Result<Vec<Record>> {
    vm.wait_until(&format!("{n_flows} last records with {fields}"), |vm| {
        let records = vm.journal(&format!("-u trefoil TREFOIL_STATE=closed {fields}"))?;
        Ok((records.len() >= n_flows).then_some(records))
    })
}

/// Fails unless there is one record of a flow, with the right sender and the right bytes.
pub fn right_record(records: &[Record], flow: Flow, pid: Option<u64>) -> Result<&Record> {
    let of_flow: Vec<_> = records.iter().filter(|it| flow.is_about(it)).collect();
    let [record] = of_flow[..] else {
        anyhow::bail!("not one record of {flow}: {of_flow:?}");
    };
    let verdict = if flow.approved {
        "approved"
    } else {
        "undetermined"
    };
    let pid = pid.with_context(|| format!("{flow} has not left"))?;
    for (name, expected) in [
        ("TREFOIL_PID", &*pid.to_string()),
        ("TREFOIL_EXE", TRAFFIC),
        ("TREFOIL_ATTRIBUTION", "direct"),
        ("TREFOIL_VERDICT", verdict),
    ] {
        ensure!(
            record.is(name, expected),
            "{name} is not {expected}: {record}"
        );
    }
    let packets = record.number("TREFOIL_PACKETS_OUT")?;
    ensure!(flow.is_tcp || packets == DATAGRAMS, "{record}");
    let (bytes, expected) = (record.number("TREFOIL_BYTES_OUT")?, flow.bytes_out(packets));
    ensure!(
        bytes == expected || (flow.is_tcp && bytes > expected),
        "{packets} packets of {flow} are {expected} B: {record}"
    );
    Ok(record)
}

/// Fails unless what has left since is what these records say.
pub fn all_is_recorded(vm: &mut Vm, before: LinkCounters, records: &[Record]) -> Result<()> {
    let left = left_since(vm, before)?;
    let recorded = (
        sum(records, "TREFOIL_BYTES_OUT")?,
        sum(records, "TREFOIL_PACKETS_OUT")?,
    );
    // The kernel may ask for a neighbour at any time, by ARP or by neighbour discovery.
    const ASKED: [u64; 2] = [28, 72];
    let more = (
        left.ip_bytes_out().checked_sub(recorded.0),
        left.tx_packets.checked_sub(recorded.1),
    );
    let is_asked = |bytes: u64, packets: u64| {
        (0..=packets).any(|n| n * ASKED[0] + (packets - n) * ASKED[1] == bytes)
    };
    ensure!(
        matches!(more, (Some(bytes), Some(packets)) if packets <= 2 && is_asked(bytes, packets)),
        "{recorded:?} B and packets are recorded of {left:?}"
    );
    Ok(())
}

pub fn sum(records: &[Record], field: &str) -> Result<u64> {
    records.iter().map(|record| record.number(field)).sum()
}
