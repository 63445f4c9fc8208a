//! A gateway's own log of flows, in Zeek's format: a line for each pair of ends, from the packets
//! that pass a place.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::watch::{ETHERNET_HEADER, Watch};

const TCP: u8 = 6;
const UDP: u8 = 17;

const HEADER: &str = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n\
    #unset_field\t-\n#path\tconn\n\
    #fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\t\
    orig_ip_bytes\tresp_ip_bytes\n\
    #types\ttime\tstring\taddr\tport\taddr\tport\tenum\tinterval\tcount\tcount\n";

type End = (IpAddr, u16);

/// A flow: who sent first, when, and bytes of IP packets both ways.
#[derive(Clone, Copy, Debug)]
struct Conn {
    orig: End,
    resp: End,
    protocol: u8,
    first_us: u64,
    last_us: u64,
    orig_bytes: u64,
    resp_bytes: u64,
}

#[derive(Debug, Default)]
struct Conns {
    at: HashMap<(u8, End, End), usize>,
    list: Vec<Conn>,
}

/// Writes down what it sees at a place, to it and from it.
#[derive(Debug)]
pub struct ConnLog(Watch<Conns>);

impl ConnLog {
    /// Begins to look.
    pub fn new(place: &Namespace) -> Result<Self> {
        Watch::new(place, |conns: &mut Conns, frame, _| {
            let start = frame.get(ETHERNET_HEADER..).unwrap_or_default();
            if let Some((protocol, from, to, bytes)) = packet(start) {
                conns.add(protocol, from, to, bytes);
            }
        })
        .map(Self)
    }

    /// Flows so far.
    pub fn len(&self) -> usize {
        self.0.read(|conns| conns.list.len())
    }

    /// True before the first.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the log of what was seen so far, but for flows from these ports.
    pub fn write(&self, file: &Path, without: &[u16]) -> Result<()> {
        let lost = self.0.lost()?;
        ensure!(lost == 0, "{lost} packets are missing in the log");
        let text = self.0.read(|conns| {
            let mut text = HEADER.to_owned();
            for (number, conn) in conns.list.iter().enumerate() {
                if !without.contains(&conn.orig.1) {
                    conn.write(number, &mut text);
                }
            }
            text
        });
        std::fs::write(file, text + "#close\t2026-01-01-00-00-00\n").context("write a log")
    }
}

impl Conn {
    fn write(&self, number: usize, text: &mut String) {
        let Self { orig, resp, .. } = self;
        let seconds = |us: u64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
        let protocol = if self.protocol == TCP { "tcp" } else { "udp" };
        let _ = writeln!(
            text,
            "{}\tC{number}\t{}\t{}\t{}\t{}\t{protocol}\t{}\t{}\t{}",
            seconds(self.first_us),
            orig.0,
            orig.1,
            resp.0,
            resp.1,
            seconds(self.last_us - self.first_us),
            self.orig_bytes,
            self.resp_bytes
        );
    }
}

impl Conns {
    fn add(&mut self, protocol: u8, from: End, to: End, bytes: u64) {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = now_us.map_or(0, |now| now.as_micros() as u64);
        let key = (protocol, from.min(to), from.max(to));
        let at = *self.at.entry(key).or_insert_with(|| {
            self.list.push(Conn {
                orig: from,
                resp: to,
                protocol,
                first_us: now_us,
                last_us: now_us,
                orig_bytes: 0,
                resp_bytes: 0,
            });
            self.list.len() - 1
        });
        let conn = &mut self.list[at];
        conn.last_us = now_us;
        match conn.orig == from {
            true => conn.orig_bytes += bytes,
            false => conn.resp_bytes += bytes,
        }
    }
}

/// Protocol, ends and length of an IP packet of TCP or UDP without options.
fn packet(packet: &[u8]) -> Option<(u8, End, End, u64)> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let (protocol, from, to, transport, bytes): (u8, IpAddr, IpAddr, usize, u64) =
        match packet.first()? >> 4 {
            4 => {
                let address =
                    |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
                let header = usize::from(packet.first()? & 15) * 4;
                (
                    *packet.get(9)?,
                    address(12)?.into(),
                    address(16)?.into(),
                    header,
                    word(2)?.into(),
                )
            }
            6 => {
                let address =
                    |at: usize| -> Option<[u8; 16]> { packet.get(at..at + 16)?.try_into().ok() };
                (
                    *packet.get(6)?,
                    address(8)?.into(),
                    address(24)?.into(),
                    40,
                    u64::from(word(4)?) + 40,
                )
            }
            _ => return None,
        };
    let ports = matches!(protocol, TCP | UDP)
        .then_some(())
        .and_then(|()| Some((word(transport)?, word(transport + 2)?)))?;
    Some((protocol, (from, ports.0), (to, ports.1), bytes))
}
