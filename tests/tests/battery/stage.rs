//! A way out, the place where it is gone once, and what is seen of it there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use trefoil_lab::battery::{Found, Grade, Privilege, Told, seen_and_owned};
use trefoil_lab::link::LinkCounters;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::places::HOST;
use trefoil_lab::program::{Outcome, Program, Running};
use trefoil_lab::router::{self, Router};
use trefoil_lab::sink::Arrived;
use trefoil_lab::tap::Tap;
use trefoil_lab::{Lab, Record, wait_for};

use crate::world::{self, at, is_about_a_flow, is_final, told};

/// Port at which the far end takes datagrams.
pub const UDP_PORT: u16 = 9;
/// Port at which it takes connections.
pub const TCP_PORT: u16 = 443;

/// The far addresses of ways begin here.
const FIRST: u8 = 8;

/// A user without privileges.
pub const USER: u32 = 65534;

/// Exit code of `traffic` when it was called wrongly.
const USAGE: i32 = 2;

/// An address of the foreign host that the policy approves.
pub const APPROVED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// Before what all tests have: an approved address abroad, and approval of addresses
/// that embed others, so that only what they embed can be what is not approved.
const RULES: &str = r#"
[[rules]]
name    = "a way abroad"
to      = { networks = ["203.0.113.1/32"] }
verdict = "approve"

[[rules]]
name    = "a router that forwards more than it should"
to      = { networks = ["192.0.2.20/32", "2001:db8:1::20/128"] }
verdict = "approve"

[[rules]]
name    = "one service may, and no other"
from    = { unit = "first.service" }
to      = { networks = ["203.0.113.0/24", "2001:db8:3::/48"] }
verdict = "approve"

[[rules]]
name    = "addresses that embed another"
to      = { networks = ["2002::/16", "2001::/32", "64:ff9b::/96"] }
verdict = "approve"
"#;

/// State of the agent while a way is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    Runs,
    /// Stopped by a signal, until everything was sent.
    Stopped,
    /// Killed; another is started when everything was sent.
    Killed,
}

/// The host's link to the far place.
pub const LINK: &str = "to-foreign";

/// A way out.
pub struct Way {
    /// Its line in the table.
    pub id: &'static str,
    /// State of the agent meanwhile.
    pub agent: Meanwhile,
    /// Prepares the way before the agent starts.
    pub prepare: fn(&mut Stage<'_>) -> Result<()>,
    /// Sends.
    pub send: fn(&mut Stage<'_>) -> Result<()>,
    /// The interface that is watched; else all that lead out.
    pub uplink: &'static str,
    /// The interface that it leaves by, if all are watched.
    pub link: &'static str,
}

/// A way that begins when the agent runs.
pub const fn way(id: &'static str, send: fn(&mut Stage<'_>) -> Result<()>) -> Way {
    Way {
        id,
        agent: Meanwhile::Runs,
        prepare: |_| Ok(()),
        send,
        uplink: "auto",
        link: LINK,
    }
}

/// Where one way is gone once.
#[derive(Debug)]
pub struct Stage<'lab> {
    pub lab: &'lab Lab,
    /// A place that the row has furnished.
    pub place: Option<&'lab Namespace>,
    /// Another one.
    pub other: Option<&'lab Namespace>,
    /// In enforce mode senders may fail.
    pub enforced: bool,
    /// Its far addresses; the three after each are its own, too.
    pub v4: IpAddr,
    pub v6: IpAddr,
    /// Addresses by which its records and packets are found.
    pub to: Vec<IpAddr>,
    /// Processes that sent to the same addresses before, whose records are not graded.
    pub bystanders: BTreeSet<u32>,
    /// Processes that answer it. Their packets, which do not come about where it is blocked, are not
    /// compared.
    pub answering: BTreeSet<u32>,
    /// Identity of the sender as long as it was approved, if it has changed since: a field of
    /// records, and its value.
    pub was: Option<(&'static str, String)>,
    /// Bytes that had arrived before.
    before: u64,
    /// Looks at what arrives.
    pub tap: Option<Arc<Tap>>,
    /// Processes that sent, as records should name them.
    pub senders: BTreeSet<u32>,
    /// Bytes of payload that were sent.
    pub bytes: u64,
    /// Privilege of the processes that sent.
    pub privilege: Privilege,
    /// Calls that they have made, if they say so: those that go on though one is refused.
    pub calls: u64,
    /// False for packets of which the ports cannot be read.
    pub has_ports: bool,
    /// A sender was told that it must not.
    pub refused: bool,
    /// Programs that go on.
    pub running: Vec<Running>,
    /// Socket that the far end listens with, for a way that begins before the agent.
    pub listener: Option<TcpListener>,
}

impl<'lab> Stage<'lab> {
    pub fn new(lab: &'lab Lab, furniture: &'lab Furniture, enforced: bool, number: usize) -> Self {
        let first = FIRST + 4 * number as u8;
        let addresses = (first..first + 4).flat_map(|host| [v4(host), v6(host)]);
        Self {
            lab,
            place: furniture.place.as_ref(),
            other: furniture.other.as_ref(),
            enforced,
            v4: v4(first),
            v6: v6(first),
            to: addresses.collect(),
            bystanders: BTreeSet::new(),
            answering: BTreeSet::new(),
            was: None,
            before: 0,
            tap: None,
            senders: BTreeSet::new(),
            bytes: 0,
            privilege: Privilege::Root,
            calls: 0,
            has_ports: true,
            refused: false,
            running: Vec::new(),
            listener: None,
        }
    }

    /// Runs `traffic` to its end.
    pub fn run(&mut self, arguments: &[&str]) -> Result<()> {
        self.run_program(world::traffic(self.lab)?, arguments)
    }

    /// As [`run`](Self::run), as a user without privileges.
    pub fn run_as_user(&mut self, arguments: &[&str]) -> Result<()> {
        self.run_program(self.lab.program_as(USER, world::TRAFFIC)?, arguments)
    }

    /// As [`run`](Self::run), in the container that the row has furnished, in a control group
    /// of its own.
    pub fn run_in_container(&mut self, arguments: &[&str]) -> Result<()> {
        let place = self.place.context("no container")?;
        let unit = self.lab.unit("container.service")?;
        let program = Program::new(world::TRAFFIC, place, Some(&unit), None)?;
        self.run_program(program, arguments)
    }

    /// Runs a program that tells what `traffic` tells to its end.
    pub fn run_program(&mut self, program: Program, arguments: &[&str]) -> Result<()> {
        self.privilege = program.privilege();
        let outcome = program.args(arguments).run()?;
        self.note(outcome)
            .with_context(|| format!("traffic {arguments:?}"))
    }

    /// Takes in how a sender ended.
    pub fn note(&mut self, outcome: Outcome) -> Result<()> {
        ensure!(outcome.code != USAGE, "{}", outcome.stderr);
        self.refused |= outcome.code == world::REFUSED;
        let outcome = match self.enforced {
            true => outcome,
            false => outcome.success()?,
        };
        let told = told(&outcome)?.pop().context("it said nothing")?;
        self.senders.insert(told.number("pid")? as u32);
        self.bytes += told.number("bytes").unwrap_or_default();
        self.calls += told.number("calls").unwrap_or_default();
        Ok(())
    }

    /// A sender was told that it must not.
    pub fn is_refused(&mut self) {
        self.refused = true;
    }

    /// Starts `traffic`, which goes on until the way is graded, and waits for its first
    /// line.
    pub fn start(&mut self, arguments: &[&str]) -> Result<&mut Running> {
        let program = world::traffic(self.lab)?;
        self.privilege = program.privilege();
        let mut running = program.args(arguments).start()?;
        running.line()?;
        self.running.push(running);
        self.running.last_mut().context("no program")
    }

    /// A program at the far end that pulls what a server here has, from this way's
    /// address, and is there until the way is graded.
    pub fn pull(&mut self, port: u16) -> Result<()> {
        let client = Program::new(world::TRAFFIC, &self.lab.foreign, None, None)?;
        let (server, source) = (at(HOST, port), self.v4.to_string());
        let client = client.args(["tcp", &server, "--source", &source]).start()?;
        self.running.push(client);
        Ok(())
    }

    /// Waits for the end of the program that was started first.
    pub fn finish_first(&mut self) -> Result<()> {
        let outcome = self.running.remove(0).finish()?;
        self.note(outcome)
    }

    /// IPv4 address and port for datagrams.
    pub fn udp(&self) -> String {
        at(self.v4, UDP_PORT)
    }

    /// IPv4 address and port for connections.
    pub fn tcp(&self) -> String {
        at(self.v4, TCP_PORT)
    }

    /// Bytes that have arrived and are its own.
    pub fn arrived(&self, tap: &Tap) -> u64 {
        let all: u64 = self.to.iter().map(|address| tap.to(*address).bytes).sum();
        all.saturating_sub(self.before)
    }

    /// Everything that has arrived at its far addresses, by address.
    pub fn arrived_at(&self, tap: &Tap) -> BTreeMap<IpAddr, Arrived> {
        let all = self.to.iter().map(|address| (*address, tap.to(*address)));
        all.collect()
    }

    /// Waits until so many bytes have arrived that are somebody else's.
    pub fn let_by(&mut self, bytes: u64) -> Result<()> {
        let tap = self.tap.clone().context("nobody looks")?;
        wait_for("what somebody else may send arrives", || {
            Ok((self.arrived(&tap) >= bytes).then_some(()))
        })?;
        self.before += self.arrived(&tap);
        Ok(())
    }

    fn is_about_this(&self, record: &Record) -> bool {
        record
            .address("dst_addr")
            .is_ok_and(|address| self.to.contains(&address.to_canonical()))
    }

    /// Final records about it.
    fn finals<'r>(&self, records: &'r [Record]) -> impl Iterator<Item = &'r Record> {
        records.iter().filter(|record| {
            let pid = record.number("pid").unwrap_or_default() as u32;
            let is_anothers = self.bystanders.contains(&pid) || self.answering.contains(&pid);
            is_final(record) && self.is_about_this(record) && !is_anothers
        })
    }

    /// Final records about its far addresses that say that something left, also of who was to be
    /// seen before.
    pub fn left<'r>(&self, records: &'r [Record]) -> impl Iterator<Item = &'r Record> {
        let left = |record: &&Record| {
            let pid = record.number("pid").unwrap_or_default() as u32;
            record.number("bytes_out").is_ok_and(|bytes| bytes > 0)
                && !self.answering.contains(&pid)
        };
        records
            .iter()
            .filter(|record| is_final(record) && self.is_about_this(record))
            .filter(left)
    }

    /// Bytes and ownership as final records tell them.
    pub fn told_by(&self, records: &[Record]) -> Result<Found> {
        let mut all = Vec::new();
        for record in self.finals(records) {
            println!("{record}");
            all.push(Told::by(record, "", self.has_ports)?);
        }
        let mut found = seen_and_owned(&all, self.bytes, &self.senders);
        if found.owned == Grade::Yes && !self.is_told_as_it_was(records) {
            found.owned = Grade::Part;
        }
        Ok(found)
    }

    /// True unless final records about what was approved say that the sender was then what it
    /// is now.
    fn is_told_as_it_was(&self, records: &[Record]) -> bool {
        let approved = |record: &&Record| {
            is_final(record) && self.is_about_this(record) && record.is("verdict", "approved")
        };
        self.was.as_ref().is_none_or(|(field, value)| {
            let mut approved = records.iter().filter(approved);
            approved.all(|record| record.is(field, value))
        })
    }

    /// True if a record says that this way was blocked.
    pub fn is_blocked_by(&self, records: &[Record]) -> bool {
        records.iter().any(|record| {
            is_about_a_flow(record)
                && self.is_about_this(record)
                && ["refused", "dropped", "cut"].contains(&record.text("outcome").as_str())
        })
    }
}

const fn v4(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, host))
}

const fn v6(host: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, host as u16))
}

/// The rules of the battery in `report` or `enforce` mode.
pub fn policy(enforced: bool) -> String {
    policy_with(enforced, "")
}

/// The same, with `first` before them.
pub fn policy_with(enforced: bool, first: &str) -> String {
    let mode = if enforced { "enforce" } else { "report" };
    format!("mode = \"{mode}\"\n{first}{RULES}{}", world::RULES)
}

/// Places that a row needs beside the lab's.
#[derive(Debug, Default)]
pub struct Furniture {
    /// Stands in its policy before the battery's rules.
    pub policy: String,
    /// A counter of losses that its ways move, since they leave a table no room.
    pub fills: Option<&'static str>,
    /// Where its ways begin.
    pub place: Option<Namespace>,
    /// Where somebody else is.
    pub other: Option<Namespace>,
    /// Between the host and the foreign place, on a link of its own.
    pub router: Option<Router>,
}

impl Furniture {
    /// Frames that the host has sent to the router so far.
    pub fn routed(&self, lab: &Lab) -> Result<u64> {
        match &self.router {
            Some(_) => Ok(LinkCounters::read(&lab.host, router::LINK)?.tx_packets),
            None => Ok(0),
        }
    }
}

impl From<Namespace> for Furniture {
    fn from(place: Namespace) -> Self {
        Self {
            place: Some(place),
            ..Self::default()
        }
    }
}

/// Sets up what a row needs, and perhaps places of its own.
pub type Furnish = fn(&Lab) -> Result<Furniture>;

/// Sets up nothing.
pub fn nothing(_: &Lab) -> Result<Furniture> {
    Ok(Furniture::default())
}

/// Addresses of the far place from the first on that ways have.
pub fn from_first(count: u8) -> Vec<IpAddr> {
    (FIRST..FIRST + count).map(v4).collect()
}
