//! Counters of an interface, to hold against what records say; and work that it does by itself.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::namespace::Namespace;

/// Has the kernel write the checksums of what leaves by an interface, as where the device cannot.
pub fn leave_checksums_to_the_kernel(namespace: &Namespace, interface: &str) -> Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    namespace.enter(|| {
        // struct ethtool_value: the command, and off.
        let mut value = [ETHTOOL_STXCSUM, 0];
        // SAFETY: a struct of which all bits may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // SAFETY: the kernel reads and writes the request and the value, which live.
        let set = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        Errno::result(set).with_context(|| format!("leave checksums of {interface}"))?;
        Ok(())
    })
}

/// Bytes of an Ethernet header, which interfaces count and records do not.
const ETHERNET_HEADER: u64 = 14;

/// Counters of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes received, link headers included.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent, link headers included.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that the interface did not get rid of.
    pub tx_dropped: u64,
}

impl LinkCounters {
    /// Reads the counters of `interface` as they are now.
    pub fn read(namespace: &Namespace, interface: &str) -> Result<Self> {
        let table = namespace.enter(|| {
            // The symbolic link /proc/net leads to the process's own first
            // thread, which is in another namespace.
            std::fs::read_to_string("/proc/thread-self/net/dev").context("read net/dev")
        })?;
        Self::parse(&table, interface).with_context(|| format!("in {}", namespace.name))
    }

    /// From the text of /proc/net/dev.
    pub fn parse(table: &str, interface: &str) -> Result<Self> {
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))
            .with_context(|| format!("no interface {interface}"))?;
        let numbers: Vec<u64> = line
            .split_ascii_whitespace()
            .map(|word| {
                word.parse()
                    .with_context(|| format!("counter {word:?} in net/dev"))
            })
            .collect::<Result<_>>()?;
        let number = |index: usize| numbers.get(index).copied().context("short line in net/dev");
        Ok(Self {
            rx_bytes: number(0)?,
            rx_packets: number(1)?,
            tx_bytes: number(8)?,
            tx_packets: number(9)?,
            tx_dropped: number(11)?,
        })
    }

    /// Returns the counts since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes - earlier.rx_bytes,
            rx_packets: self.rx_packets - earlier.rx_packets,
            tx_bytes: self.tx_bytes - earlier.tx_bytes,
            tx_packets: self.tx_packets - earlier.tx_packets,
            tx_dropped: self.tx_dropped - earlier.tx_dropped,
        }
    }

    /// Bytes sent as IP packets, headers included.
    pub fn ip_bytes_out(self) -> u64 {
        self.tx_bytes - self.tx_packets * ETHERNET_HEADER
    }

    /// Bytes received as IP packets, headers included.
    pub fn ip_bytes_in(self) -> u64 {
        self.rx_bytes - self.rx_packets * ETHERNET_HEADER
    }
}
