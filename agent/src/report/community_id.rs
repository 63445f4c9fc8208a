//! Community ID version 1, the name that many network tools give to a flow.
//!
//! The specification is at <https://github.com/corelight/community-id-spec>.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TCP, UDP and SCTP: for these the two ports belong to the name.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// The id with seed 0 of a flow between two ends, whichever of them began.
///
/// `None` for ICMP: its id needs type and code of the first packet, which are
/// not recorded; and for ends of different families.
#[must_use]
pub fn community_id(protocol: u8, one: (IpAddr, u16), other: (IpAddr, u16)) -> Option<String> {
    if matches!(protocol, ICMP | ICMPV6) || one.0.is_ipv4() != other.0.is_ipv4() {
        return None;
    }
    let has_ports = WITH_PORTS.contains(&protocol);
    // Addresses of one family compare as their bytes do.
    let (low, high) = if one <= other {
        (one, other)
    } else {
        (other, one)
    };
    let mut hash = Sha1::new();
    hash.update([0, 0]);
    for (address, _) in [low, high] {
        match address {
            IpAddr::V4(address) => hash.update(address.octets()),
            IpAddr::V6(address) => hash.update(address.octets()),
        }
    }
    hash.update([protocol, 0]);
    if has_ports {
        hash.update(low.1.to_be_bytes());
        hash.update(high.1.to_be_bytes());
    }
    Some(format!("1:{}", STANDARD.encode(hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's baseline of default ids, without ICMP.
    const BASELINE: &[(u8, &str, u16, &str, u16, &str)] = &[
        (
            6,
            "2001:470:e5bf:dead:4957:2174:e82c:4887",
            63943,
            "2607:f8b0:400c:c03::1a",
            25,
            "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
        ),
        (
            132,
            "192.168.170.8",
            7,
            "192.168.170.56",
            7,
            "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=",
        ),
        (
            6,
            "128.232.110.120",
            34855,
            "66.35.250.204",
            80,
            "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        ),
        (
            17,
            "192.168.1.52",
            54585,
            "8.8.8.8",
            53,
            "1:d/FP5EW3wiY1vCndhwleRRKHowQ=",
        ),
        (
            46,
            "10.1.12.1",
            0,
            "10.1.12.2",
            0,
            "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw=",
        ),
    ];

    #[test]
    fn the_baseline_of_the_specification_in_both_directions() {
        for &(protocol, one, one_port, other, other_port, id) in BASELINE {
            let one = (one.parse().unwrap(), one_port);
            let other = (other.parse().unwrap(), other_port);
            assert_eq!(community_id(protocol, one, other).as_deref(), Some(id));
            assert_eq!(community_id(protocol, other, one).as_deref(), Some(id));
        }
    }

    #[test]
    fn the_ports_decide_between_equal_addresses() {
        let address = "192.0.2.1".parse().unwrap();
        let id = community_id(6, (address, 80), (address, 1234));
        assert!(id.is_some());
        assert_eq!(id, community_id(6, (address, 1234), (address, 80)));
    }

    #[test]
    fn what_cannot_be_named_has_no_id() {
        let v4 = ("192.0.2.1".parse().unwrap(), 0);
        let v6 = ("2001:db8::1".parse().unwrap(), 0);
        assert_eq!(community_id(1, v4, v4), None);
        assert_eq!(community_id(58, v6, v6), None);
        assert_eq!(community_id(6, v4, v6), None);
    }
}
