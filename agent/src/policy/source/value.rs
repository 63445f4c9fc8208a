//! Single values of a policy: from a string to what it means.

use std::net::IpAddr;

use crate::geo::{Country, groups};
use crate::policy::local::nameless;
use crate::policy::network::{Network, parse_address};
use crate::policy::problem::Fault;
use crate::policy::service::{Protocol, parse_port};
use crate::policy::source::{Area, Endpoint, Group, User};

/// A network in a rule or a zone.
pub(super) fn network(text: &str) -> Result<Network, Fault> {
    let network = Network::parse(text)?;
    match nameless().find(|local| local.covers(&network)) {
        None => Ok(network),
        Some(local) => Err(
            Fault::new(format!("`{text}` never leaves the host or the link")).help(format!(
                "take it out: what goes to {local} as it should is `local`, whatever a policy says"
            )),
        ),
    }
}

/// The prefix of a translator, see RFC 6052.
pub(super) fn nat64(text: &str) -> Result<Network, Fault> {
    const HELP: &str = "a prefix has 32, 40, 48, 56, 64 or 96 bits, as in `2001:db8:64::/96`, and \
                        those from 64 to 71 are zero (RFC 6052)";
    let network = Network::parse(text)?;
    let is_one = match network.address() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => {
            matches!(network.prefix(), 32 | 40 | 48 | 56 | 64 | 96) && v6.octets()[8] == 0
        }
    };
    match is_one {
        true => Ok(network),
        false => Err(Fault::new(format!("`{text}` is no prefix of NAT64")).help(HELP)),
    }
}

/// A country or a group of countries.
pub(super) fn countries(text: &str) -> Result<Area, Fault> {
    if let Some(country) = Country::parse(text) {
        return Ok(Area::Country(country));
    }
    if let Some(&name) = groups::GROUPS.iter().find(|&&name| name == text)
        && let Some(members) = groups::members(name)
    {
        return Ok(Area::Group(name, members));
    }
    let fault = Fault::new(format!("`{text}` is not a country"));
    let upper = text.to_uppercase();
    let meant = match upper.as_str() {
        "UK" => Some("GB"),
        "EL" => Some("GR"),
        code if Country::parse(code).is_some() || groups::members(code).is_some() => Some(code),
        _ => Country::all()
            .find(|country| country.name().to_uppercase() == upper)
            .map(|country| country.as_str()),
    };
    Err(match meant {
        Some(code) => fault.help(format!("write `{code}`")),
        None => fault.help(format!(
            "countries are two capital letters as in ISO 3166-1 (`IE`); groups are {}",
            groups::GROUPS.join(", ")
        )),
    })
}

/// Reads a part of a zone: a network, or countries.
pub(super) fn area(text: &str) -> Result<Area, Fault> {
    if text.contains(['.', ':', '/']) {
        network(text).map(Area::Network)
    } else {
        countries(text)
    }
}

/// `192.0.2.1:443/tcp`, `[2001:db8::1]:443/tcp`, or `192.0.2.1/esp`.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Fault> {
    const FORM: &str = "write it as in `192.0.2.10:443/tcp` or `[2001:db8::10]:443/tcp`";
    let Some((host, protocol)) = text.rsplit_once('/') else {
        return Err(Fault::new(format!("`{text}` has no protocol")).help(FORM));
    };
    let protocol = Protocol::parse(protocol)?;
    if !protocol.has_ports() {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let address = parse_address(bare.unwrap_or(host)).map_err(|fault| {
            Fault::new(fault.message).help(format!(
                "protocol {protocol} has no ports: write `ADDRESS/{protocol}`"
            ))
        })?;
        return check_endpoint(text, address).map(|address| Endpoint {
            address,
            protocol,
            port: None,
        });
    }
    let (address, port) = match host.rsplit_once(':') {
        Some((address, port)) if address.starts_with('[') && address.ends_with(']') => {
            (&address[1..address.len() - 1], port)
        }
        Some((address, port)) if !address.contains(':') => (address, port),
        Some(_) => {
            return Err(
                Fault::new(format!("`{text}` has no brackets around its IPv6 address")).help(FORM),
            );
        }
        None => return Err(Fault::new(format!("`{text}` has no port")).help(FORM)),
    };
    let port = parse_port(port, text)?;
    let address = parse_address(address).map_err(|fault| match fault.help {
        Some(help) if fault.message.contains("inside") => Fault::new(fault.message).help(help),
        _ => Fault::new(fault.message)
            .help("an endpoint is an address: a name could mean another host tomorrow"),
    })?;
    check_endpoint(text, address).map(|address| Endpoint {
        address,
        protocol,
        port: Some(port),
    })
}

fn check_endpoint(text: &str, address: IpAddr) -> Result<IpAddr, Fault> {
    let host = Network::host(address);
    match nameless().find(|local| local.covers(&host)) {
        None => Ok(address),
        Some(local) => Err(Fault::new(format!("`{text}` is no way out"))
            .help(format!("{local} is always `local`, whatever a policy says"))),
    }
}

/// A login name or a number.
pub(super) fn user(text: &str) -> Result<User, Fault> {
    Ok(match name_or_id(text, "user")? {
        Ok(uid) => User::Id(uid),
        Err(name) => User::Name(name),
    })
}

/// The name of a group or its number.
pub(super) fn group(text: &str) -> Result<Group, Fault> {
    Ok(match name_or_id(text, "group")? {
        Ok(gid) => Group::Id(gid),
        Err(name) => Group::Name(name),
    })
}

/// An id, or else a name.
fn name_or_id(text: &str, what: &str) -> Result<Result<u32, String>, Fault> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
        return Err(Fault::new(format!("`{text}` is not the name of a {what}")));
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Err(text.to_owned()));
    }
    match text.parse() {
        // The last number means "nobody" to the kernel.
        Ok(id) if id < u32::MAX => Ok(Ok(id)),
        _ => Err(Fault::new(format!("`{text}` is not a {what} id"))
            .help(format!("{what} ids are numbers from 0 to 4294967294"))),
    }
}

/// The number of an autonomous system: `64500` or `AS64500`.
pub(super) fn asn(text: &str) -> Result<u32, Fault> {
    let digits = match text.get(..2) {
        Some(prefix) if prefix.eq_ignore_ascii_case("AS") => &text[2..],
        _ => text,
    };
    let number = digits.parse().ok().filter(|_| !digits.starts_with('+'));
    number.filter(|&number| number > 0).ok_or_else(|| {
        Fault::new(format!(
            "`{text}` is not the number of an autonomous system"
        ))
        .help("write it as in `64500` or `\"AS64500\"`; numbers are from 1 to 4294967295")
    })
}

/// Names of rules, zones and gateways, which appear in reports.
pub(super) fn name(text: &str) -> Result<String, Fault> {
    const LONGEST: usize = 128;
    if text.trim().is_empty() {
        return Err(Fault::new("the name is empty").help("reports say the name: give it one"));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("the name has a control character in it"));
    }
    if text.chars().count() > LONGEST {
        return Err(Fault::new(format!(
            "the name is longer than {LONGEST} characters"
        )));
    }
    Ok(text.to_owned())
}
