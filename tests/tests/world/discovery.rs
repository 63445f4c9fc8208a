//! Neighbour discovery by hand: a container that asks its own kernel in somebody else's name.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use trefoil_lab::Lab;
use trefoil_lab::frames::{PacketSocket, ethernet};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::packets::{self, ipv6};

/// A question of neighbour discovery: who has `target`? Whoever answers is to do so by the link
/// address of a router, to an address that is far away.
fn question(from: IpAddr, target: IpAddr, router: &str) -> Result<Vec<u8>> {
    const ICMPV6: u8 = 58;
    let octets = |address| match address {
        IpAddr::V6(address) => Ok(Ipv6Addr::octets(&address)),
        IpAddr::V4(address) => Err(anyhow::anyhow!("{address} is no address of IPv6")),
    };
    let option: Vec<u8> = router
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()?;
    let mut message = [
        &[135, 0, 0, 0, 0, 0, 0, 0][..],
        &octets(target)?,
        &[1, 1],
        &option,
    ]
    .concat();
    let pseudo = [
        &octets(from)?[..],
        &octets(target)?,
        &(message.len() as u32).to_be_bytes(),
        &u32::from(ICMPV6).to_be_bytes(),
        &message,
    ]
    .concat();
    let sum = packets::checksum(&pseudo).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let mut packet = ipv6(from, target, ICMPV6, &message);
    // As neighbours have it.
    packet[7] = 255;
    Ok(packet)
}

/// An address abroad of which the last bytes are data.
fn abroad(data: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 3, 0x5345, 0x4352, 0x4554, 0x2121, data).into()
}

/// Gives a container two devices on the link abroad, [`OWN`] and one on that, [`OTHER`].
pub fn on_link_abroad(lab: &Lab, place: &Namespace) -> Result<()> {
    lab.host.ip(&format!(
        "link add link to-foreign name own address {OWN} netns {} type macvlan mode bridge\n",
        place.path()
    ))?;
    place.ip(&format!(
        "link set own addrgenmode none\nlink set own up\n\
         link add link own name other address {OTHER} type macvlan mode bridge\n\
         link set other addrgenmode none\nlink set other up\n"
    ))
}

/// Link address of the container's device on the link abroad.
const OWN: &str = "02:00:00:00:01:64";
/// Link address of its second one.
const OTHER: &str = "02:00:00:00:01:65";

/// Has a container take addresses abroad and ask its own kernel for each of them, as if `far` did by way of
/// this router.
pub fn ask_as_a_neighbour(place: &Namespace, far: IpAddr, router: &str, count: u16) -> Result<()> {
    const IPV6: u16 = 0x86dd;
    for data in 0..count {
        let address = abroad(data);
        place.ip(&format!("address add {address}/128 dev own nodad\n"))?;
    }
    place.enter(|| {
        let socket = PacketSocket::open("other", IPV6)?;
        for data in 0..count {
            let question = question(far, abroad(data), router)?;
            socket.send(&ethernet(OWN, OTHER, IPV6, &question)?)?;
        }
        Ok(())
    })
}
