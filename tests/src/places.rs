//! Addresses of the lab and the country file that places them.
//!
//! Only documentation ranges are used, so that nothing can reach a real host
//! even if a lab were wired up wrongly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn v6(site: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, host))
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// The host under test.
pub const HOST: IpAddr = v4(192, 0, 2, 1);
/// The host under test.
pub const HOST6: IpAddr = v6(1, 1);
/// The gateway, in IE like the host.
pub const GATEWAY: IpAddr = v4(192, 0, 2, 10);
/// The gateway, in IE like the host.
pub const GATEWAY6: IpAddr = v6(1, 0x10);
/// An address of the peer, in DE.
pub const PEER: IpAddr = v4(198, 51, 100, 10);
/// An address of the peer, in DE.
pub const PEER6: IpAddr = v6(2, 0x10);
/// An address of the foreign host, in CN.
pub const FOREIGN: IpAddr = v4(203, 0, 113, 10);
/// An address of the foreign host, in CN.
pub const FOREIGN6: IpAddr = v6(3, 0x10);
/// An address of the foreign host that is in no country file.
pub const UNPLACED: IpAddr = v4(203, 0, 113, 200);
/// An address of the foreign host that is in no country file.
pub const UNPLACED6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0xffff, 0, 0, 0, 0x10));

/// IPv4 country file in the text form of `tor-geoipdb`: first and last address
/// as numbers.
pub fn country_file_v4() -> String {
    let line = |first: [u8; 4], last: [u8; 4], country: &str| {
        format!(
            "{},{},{country}\n",
            u32::from_be_bytes(first),
            u32::from_be_bytes(last)
        )
    };
    [
        "# The lab's addresses; 203.0.113.192/26 is left out on purpose.\n".to_owned(),
        line([192, 0, 2, 0], [192, 0, 2, 255], "IE"),
        line([198, 51, 100, 0], [198, 51, 100, 255], "DE"),
        line([203, 0, 113, 0], [203, 0, 113, 191], "CN"),
    ]
    .concat()
}

/// IPv6 country file in the text form of `tor-geoipdb`.
pub fn country_file_v6() -> String {
    "# The lab's addresses; 2001:db8:3:ffff::/64 is left out on purpose.\n\
     2001:db8:1::,2001:db8:1:ffff:ffff:ffff:ffff:ffff,IE\n\
     2001:db8:2::,2001:db8:2:ffff:ffff:ffff:ffff:ffff,DE\n\
     2001:db8:3::,2001:db8:3:fffe:ffff:ffff:ffff:ffff,CN\n"
        .to_owned()
}

/// The policy that `trefoil-lab` starts with, and that shows most of what a
/// policy can say.
pub const EXAMPLE_POLICY: &str = r#"mode = "report"

[zones]
home   = ["EEA", "GB", "CH"]
office = ["198.51.100.0/24", "2001:db8:2::/48"]

[[gateways]]
name      = "dublin-1"
endpoints = ["192.0.2.10:443/tcp", "[2001:db8:1::10]:443/tcp"]

[[rules]]
name    = "exports go through the gateway"
to      = { gateway = "dublin-1" }
verdict = "approve"

[[rules]]
name    = "database replication"
to      = { zones = ["office"], ports = ["5432/tcp"] }
verdict = "approve"

[[rules]]
name    = "never there"
to      = { countries = ["CN"] }
verdict = "deny"
"#;
