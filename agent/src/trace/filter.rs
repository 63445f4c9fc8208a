//! Filter of a trace, as somebody types it.

use std::net::{IpAddr, SocketAddr};

use trefoil_ebpf::abi::{
    Address,
    trace::{TRACE_UNIT, TraceFilter},
};

use crate::policy::{network::Network, problem::Fault};

/// The filter for a process, a unit and a destination, each if it is given.
///
/// # Errors
///
/// One of them is not of its form, with the flag that it was given by.
pub fn filter(
    pid: Option<u32>,
    unit: Option<&str>,
    to: Option<&str>,
) -> Result<TraceFilter, (&'static str, Fault)> {
    let mut filter = TraceFilter {
        pid: pid.unwrap_or_default(),
        ..TraceFilter::default()
    };
    if let Some(unit) = unit {
        set_unit(&mut filter, unit).map_err(|fault| ("--unit", fault))?;
    }
    if let Some(to) = to {
        set_destination(&mut filter, to).map_err(|fault| ("--to", fault))?;
    }
    Ok(filter)
}

fn set_unit(filter: &mut TraceFilter, unit: &str) -> Result<(), Fault> {
    // `/` is the root, below which everything is.
    let unit = unit.trim_end_matches('/');
    let is_path = unit.starts_with('/');
    let fault = if unit.is_empty() {
        Some(Fault::new("an empty unit is in no path"))
    } else if unit.len() >= TRACE_UNIT {
        Some(Fault::new(format!(
            "a unit of {} bytes is longer than {}",
            unit.len(),
            TRACE_UNIT - 1
        )))
    } else if !is_path && unit.contains('/') {
        Some(Fault::new(format!(
            "`{unit}` is neither a unit nor the path of a control group"
        )))
    } else if !is_path && !unit.contains('.') {
        Some(Fault::new(format!("`{unit}` is not a unit's full name")))
    } else {
        None
    };
    if let Some(fault) = fault {
        return Err(fault.help("write it as in ssh.service, or /system.slice/ssh.service"));
    }
    filter.unit[..unit.len()].copy_from_slice(unit.as_bytes());
    filter.unit_len = unit.len() as u16;
    Ok(())
}

fn set_destination(filter: &mut TraceFilter, to: &str) -> Result<(), Fault> {
    const HELP: &str = "write it as in 192.0.2.1, 192.0.2.0/24, 192.0.2.1:443, \
                        [2001:db8::1]:443, 2001:db8::/32 or :53";
    let wrong = || Fault::new(format!("`{to}` is not a destination")).help(HELP);
    let port_of = |port: &str| match port.parse() {
        Ok(0) | Err(_) => Err(wrong()),
        Ok(port) => Ok(port),
    };
    if let Some(port) = to.strip_prefix(':').filter(|port| !port.contains(':')) {
        filter.port = port_of(port)?;
        return Ok(());
    }
    let network = if let Ok(socket) = to.parse::<SocketAddr>() {
        filter.port = port_of(&socket.port().to_string())?;
        Network::host(socket.ip())
    } else {
        let bare = to.strip_prefix('[').and_then(|to| to.strip_suffix(']'));
        let (network, port) = match to.rsplit_once(':') {
            Some((network, port)) if network.contains('/') => (network, Some(port)),
            _ => (bare.unwrap_or(to), None),
        };
        if let Some(port) = port {
            filter.port = port_of(port)?;
        }
        Network::parse(network).map_err(|fault| match network.contains('/') {
            true => fault,
            false => wrong(),
        })?
    };
    let (address, prefix) = match network.address() {
        IpAddr::V4(v4) => (Address::v4(v4.to_bits()), network.prefix() + 96),
        IpAddr::V6(v6) => (Address(v6.octets()), network.prefix()),
    };
    let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    filter.network = address;
    filter.mask = Address(bits.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Result<(Address, u32, u16), String> {
        filter(None, None, Some(text))
            .map(|filter| {
                let bits = u128::from_be_bytes(filter.mask.0).leading_ones();
                (filter.network, bits, filter.port)
            })
            .map_err(|(flag, fault)| format!("{flag}: {}", fault.message))
    }

    #[test]
    fn destinations_as_they_are_typed() {
        let v4 = |a: [u8; 4]| Address::v4(u32::from_be_bytes(a));
        let v6 = |text: &str| Address(text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let cases = [
            ("192.0.2.1", v4([192, 0, 2, 1]), 128, 0),
            ("192.0.2.1:443", v4([192, 0, 2, 1]), 128, 443),
            ("192.0.2.0/24", v4([192, 0, 2, 0]), 120, 0),
            ("192.0.2.0/24:53", v4([192, 0, 2, 0]), 120, 53),
            ("0.0.0.0/0", v4([0; 4]), 96, 0),
            ("2001:db8::1", v6("2001:db8::1"), 128, 0),
            ("[2001:db8::1]", v6("2001:db8::1"), 128, 0),
            ("[2001:db8::1]:53", v6("2001:db8::1"), 128, 53),
            ("2001:db8::/32", v6("2001:db8::"), 32, 0),
            ("2001:db8::/32:53", v6("2001:db8::"), 32, 53),
            (":53", Address::default(), 0, 53),
        ];
        for (text, network, bits, port) in cases {
            assert_eq!(to(text), Ok((network, bits, port)), "{text}");
        }
        for text in [
            "",
            ":",
            ":0",
            ":70000",
            "192.0.2.1:0",
            "host",
            "192.0.2.1/24",
            "::/0:x",
        ] {
            assert!(to(text).is_err(), "{text}");
        }
    }

    #[test]
    fn units_are_named_in_full() {
        let unit = |text: &str| filter(None, Some(text), None).map(|filter| filter.unit_len);
        assert_eq!(unit("ssh.service"), Ok(11));
        assert_eq!(unit("/system.slice/"), Ok(13));
        for wrong in ["", "/", "ssh", "a/b.service", &"x.".repeat(TRACE_UNIT)] {
            assert!(unit(wrong).is_err(), "{wrong}");
        }
    }
}
