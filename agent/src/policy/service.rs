//! Services: protocols and ports.
//!
//! Owns their names, which protocols have ports, and the number under which the
//! kernel tables know a service.

use std::fmt;

use trefoil_ebpf::abi::near;

use super::problem::{Fault, nearest};

/// Names that a policy may use, as in /etc/protocols.
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// Protocols whose packets begin with two ports.
pub const PROTOCOLS_WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// An IP protocol by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// Reads a name or a number.
    ///
    /// # Errors
    ///
    /// Neither.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if let Some(&(_, number)) = PROTOCOLS.iter().find(|&&(name, _)| name == text) {
            return Ok(Self(number));
        }
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let names: Vec<&str> = PROTOCOLS.iter().map(|&(name, _)| name).collect();
        let fault = Fault::new(format!("`{text}` is not a protocol"));
        Err(match nearest(text, &names) {
            Some(name) => fault.help(format!("did you mean `{name}`?")),
            None => fault.help(format!(
                "known are {} and numbers from 0 to 255",
                names.join(", ")
            )),
        })
    }

    /// True when packets of this protocol name a port.
    #[must_use]
    pub fn has_ports(&self) -> bool {
        PROTOCOLS_WITH_PORTS.contains(&self.0)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|&&(_, number)| number == self.0) {
            Some((name, _)) => formatter.pad(name),
            None => write!(formatter, "{}", self.0),
        }
    }
}

/// The number under which the tables know a service.
#[must_use]
pub const fn key(protocol: u8, port: u16) -> u32 {
    (protocol as u32) << 16 | port as u32
}

/// The number under which the tables know this host's port; `None` for a socket that has none yet.
#[must_use]
pub const fn near_key(protocol: u8, port: Option<u16>) -> u32 {
    match port {
        Some(port) => key(protocol, port),
        None => near::NO_PORT,
    }
}

/// Ports from `first` to `last`, of one protocol or of every one that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Smallest port.
    pub first: u16,
    /// Largest port.
    pub last: u16,
    /// `None`: TCP, UDP, DCCP, SCTP and UDP-Lite.
    pub protocol: Option<Protocol>,
}

impl Ports {
    /// Reads `443/tcp`, `8000-8010/tcp`, or without a protocol `53`.
    ///
    /// # Errors
    ///
    /// Not of this form, a protocol without ports, port 0, or a range whose end
    /// comes before its beginning.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, name)) => {
                let protocol = Protocol::parse(name)?;
                if !protocol.has_ports() {
                    return Err(Fault::new(format!("protocol {protocol} has no ports"))
                        .help(format!("write `protocols = [\"{protocol}\"]` instead")));
                }
                (ports, Some(protocol))
            }
            None => (text, None),
        };
        let (first, last) = match ports.split_once('-') {
            Some((first, last)) => (parse_port(first, text)?, parse_port(last, text)?),
            None => {
                let port = parse_port(ports, text)?;
                (port, port)
            }
        };
        if first > last {
            return Err(
                Fault::new(format!("the range `{text}` ends before it begins"))
                    .help(format!("write `{last}-{first}`")),
            );
        }
        Ok(Self {
            first,
            last,
            protocol,
        })
    }

    /// True when these ports include `port` of `protocol`.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let of_protocol = match self.protocol {
            Some(own) => own == protocol,
            None => protocol.has_ports(),
        };
        of_protocol && self.first <= port && port <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.first)?;
        if self.last != self.first {
            write!(formatter, "-{}", self.last)?;
        }
        match self.protocol {
            Some(protocol) => write!(formatter, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// Reads a port out of `whole`, which is what the policy says.
pub(super) fn parse_port(text: &str, whole: &str) -> Result<u16, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ if digits => Err(Fault::new(format!("`{whole}` is out of range"))
            .help("ports are numbers from 1 to 65535")),
        _ => Err(Fault::new(format!("`{whole}` is not a port"))
            .help("write it as in `443/tcp`, `8000-8010/tcp`, or `53` for any protocol")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let ports = |text| Ports::parse(text).unwrap();
        assert!(ports("443/tcp").contains(Protocol(6), 443));
        assert!(!ports("443/tcp").contains(Protocol(17), 443));
        assert!(ports("8000-8010/tcp").contains(Protocol(6), 8010));
        assert!(!ports("8000-8010/tcp").contains(Protocol(6), 8011));
        assert!(ports("53").contains(Protocol(132), 53));
        assert!(!ports("53").contains(Protocol(47), 53));
        assert_eq!(ports("8000-8010/17").to_string(), "8000-8010/udp");
    }

    #[test]
    fn refusals_say_what_is_right() {
        let help = |text| Ports::parse(text).unwrap_err().help.unwrap();
        assert!(help("1/icmp").contains("protocols = [\"icmp\"]"));
        assert!(help("2-1/tcp").contains("1-2"));
        assert!(help("0").contains("1 to 65535"));
        assert!(help("65536/tcp").contains("1 to 65535"));
        assert!(help("https").contains("443/tcp"));
        assert!(help("443/tpc").contains("`tcp`"));
        assert!(help("+1/tcp").contains("443/tcp"));
        assert!(Protocol::parse("256").is_err());
    }

    #[test]
    fn protocols_have_one_name() {
        for &(name, number) in PROTOCOLS {
            assert_eq!(Protocol::parse(name).unwrap().to_string(), name);
            assert_eq!(Protocol(number).to_string(), name);
        }
        assert_eq!(Protocol::parse("200").unwrap().to_string(), "200");
    }
}
