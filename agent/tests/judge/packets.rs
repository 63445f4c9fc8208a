//! Random packets whose headers list where they go: the judge in the kernel reads each as it was
//! made here.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use trefoil::{
    kernel::Unattached,
    policy::{
        evaluate::Question,
        testing::{NOW_US, Random, Scene},
    },
};
use trefoil_ebpf::abi::DECISION_LIMITED;

use super::{Accounts, packed, put_in_force};

const N_SCENES: u64 = 40;
const N_PACKETS: usize = 500;

/// A packet, and what it means.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    /// All addresses that it names to go to, that in its IP header first.
    stops: Vec<IpAddr>,
    /// It leads on, or may.
    is_listed: bool,
    /// It names no other address, as far as can be told.
    is_read: bool,
    protocol: u8,
    port: u16,
}

const UDP: u8 = 17;
const PORT: u16 = 443;
/// Where they come from.
const NEAR_PORT: u16 = 22;

/// The header of UDP, as far as it is read.
fn datagram() -> Vec<u8> {
    let mut bytes = NEAR_PORT.to_be_bytes().to_vec();
    bytes.extend(PORT.to_be_bytes());
    bytes.extend([0; 28]);
    bytes
}

/// Makes up addresses by asking about them.
type Address<'a, T> = &'a mut dyn FnMut(&mut Random) -> T;

mod v4 {
    use super::*;

    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const RECORD_ROUTE: u8 = 7;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
    const MOST: usize = 40;
    /// Of so many all are read.
    const MAX_ROUTES: usize = 2;

    /// Options and their meaning.
    struct Options {
        bytes: Vec<u8>,
        stops: Vec<IpAddr>,
        n_routes: usize,
        is_read: bool,
    }

    impl Options {
        fn random(random: &mut Random, address: Address<'_, Ipv4Addr>) -> Self {
            let mut options = Self {
                bytes: Vec::new(),
                stops: Vec::new(),
                n_routes: 0,
                is_read: true,
            };
            for _ in 0..random.below(5) {
                let room = MOST - options.bytes.len();
                if room == 0 {
                    break;
                }
                match random.below(8) {
                    0 => options.bytes.push(NO_OPERATION),
                    1 if room >= 4 => options.bytes.extend(ROUTER_ALERT),
                    2 if room >= 7 => options.bytes.extend([RECORD_ROUTE, 7, 4, 1, 2, 3, 4]),
                    // Nothing behind it counts.
                    3 if random.one_in(4) => {
                        options.bytes.push(END);
                        let rest = MOST - options.bytes.len();
                        options
                            .bytes
                            .extend(&[LOOSE_ROUTE, 7, 4, 192, 0, 2, 1][..rest.min(7)]);
                        break;
                    }
                    // Longer than the header, or too short to be one.
                    4 if random.one_in(3) && room >= 2 => {
                        let length = *random.pick(&[0, 1, 200]);
                        options.bytes.extend([ROUTER_ALERT[0], length]);
                        options.is_read = false;
                        break;
                    }
                    _ if room >= 7 => options.add_route(random, address, (room - 3) / 4),
                    _ => {}
                }
            }
            while !options.bytes.len().is_multiple_of(4) {
                options.bytes.push(END);
            }
            options
        }

        fn add_route(&mut self, random: &mut Random, address: Address<'_, Ipv4Addr>, most: usize) {
            let hops: Vec<Ipv4Addr> = (0..1 + random.below(most))
                .map(|_| address(random))
                .collect();
            let gone = random.below(hops.len() + 1);
            self.bytes.push(*random.pick(&[LOOSE_ROUTE, STRICT_ROUTE]));
            self.bytes
                .extend([3 + 4 * hops.len() as u8, 4 + 4 * gone as u8]);
            hops.iter().for_each(|hop| self.bytes.extend(hop.octets()));
            if gone == hops.len() {
                return; // It is finished.
            }
            self.n_routes += 1;
            if self.n_routes > MAX_ROUTES {
                self.is_read = false;
            } else {
                let left = hops.into_iter().skip(gone);
                self.stops.extend(left.map(IpAddr::V4));
            }
        }
    }

    pub fn random(random: &mut Random, address: Address<'_, Ipv4Addr>) -> Packet {
        let first = address(random);
        let options = Options::random(random, address);
        let words = 5 + options.bytes.len() / 4;
        let content = datagram();
        let mut bytes = vec![0x40 | words as u8, 0];
        bytes.extend(((4 * words + content.len()) as u16).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        bytes.extend([192, 0, 2, 1]);
        bytes.extend(first.octets());
        bytes.extend(options.bytes);
        bytes.extend(content);
        let mut stops = vec![IpAddr::V4(first)];
        stops.extend(options.stops);
        Packet {
            bytes,
            is_listed: stops.len() > 1 || !options.is_read,
            stops,
            is_read: options.is_read,
            protocol: UDP,
            port: PORT,
        }
    }
}

mod v6 {
    use super::*;

    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION_OPTIONS: u8 = 60;
    /// Of so many all are read, and so many addresses are judged.
    const MAX_HEADERS: usize = 8;
    const MAX_STOPS: usize = 17;

    pub fn random(random: &mut Random, address: Address<'_, Ipv6Addr>) -> Packet {
        let first = address(random);
        let mut stops = vec![IpAddr::V6(first)];
        let (mut is_read, mut is_listed) = (true, false);
        // Each with its own kind, and a place for that of the next.
        let mut headers: Vec<(u8, Vec<u8>)> = Vec::new();
        let most = if random.one_in(6) { MAX_HEADERS + 3 } else { 4 };
        for number in 0..random.below(most) {
            let header = match random.below(6) {
                0 => (HOP_BY_HOP, vec![0, 0, 1, 4, 0, 0, 0, 0]),
                1 => (DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]),
                // Not cut into pieces, though it says that it could be.
                2 => (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 0, 7]),
                3 => (
                    AUTHENTICATION,
                    vec![
                        0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
                    ],
                ),
                _ => {
                    let hops: Vec<Ipv6Addr> =
                        (0..random.below(4)).map(|_| address(random)).collect();
                    let kind = *random.pick(&[0, 2, 3, 4, 4]);
                    let left = *random.pick(&[0, 1, hops.len() as u8]);
                    let mut header = vec![0, 2 * hops.len() as u8, kind, left, 0, 0, 0, 0];
                    hops.iter().for_each(|hop| header.extend(hop.octets()));
                    if left != 0 && number < MAX_HEADERS {
                        is_listed = true;
                        // Of other types nobody knows what they say.
                        is_read &= kind != 3 && !hops.is_empty();
                        stops.extend(hops.into_iter().map(IpAddr::V6));
                    }
                    (ROUTING, header)
                }
            };
            headers.push(header);
        }
        // Nobody looks behind so many.
        let is_followed = headers.len() <= MAX_HEADERS;
        is_read &= is_followed && stops.len() <= MAX_STOPS;
        stops.truncate(MAX_STOPS);
        let (protocol, port) = match headers.get(MAX_HEADERS) {
            Some((kind, _)) => (*kind, 0),
            None => (UDP, PORT),
        };
        let mut bytes = Vec::new();
        let mut next = UDP;
        for (kind, mut header) in headers.into_iter().rev() {
            header[0] = next;
            header.extend(bytes);
            (bytes, next) = (header, kind);
        }
        bytes.extend(datagram());
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((bytes.len() as u16).to_be_bytes());
        packet.extend([next, 64]);
        packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(first.octets());
        packet.extend(bytes);
        Packet {
            bytes: packet,
            stops,
            is_listed: is_listed || !is_followed,
            is_read,
            protocol,
            port,
        }
    }
}

#[test]
fn packets_that_list_where_they_go_are_read_as_they_were_made() {
    let mut kernel = Unattached::load(1).unwrap();
    let accounts = Accounts::default();
    let mut by_verdict: HashMap<(bool, u8), usize> = HashMap::new();
    let mut n_unread = 0;
    for seed in 0..N_SCENES {
        let scene = Scene::new(seed);
        let compiled = put_in_force(&mut kernel, &scene);
        let mut random = Random::new(!seed);
        for _ in 0..N_PACKETS {
            let packet = match random.one_in(2) {
                true => v4::random(&mut random, &mut |random| loop {
                    if let IpAddr::V4(v4) = scene.question(random).destination {
                        return v4;
                    }
                }),
                false => v6::random(&mut random, &mut |random| loop {
                    if let IpAddr::V6(v6) = scene.question(random).destination {
                        return v6;
                    }
                }),
            };
            let question = Question {
                cgroup: None,
                executable: None,
                is_foreign: false,
                uid: u32::MAX,
                gid: None,
                interactive: None,
                origin: None,
                direction: None,
                near_port: Some(match packet.port {
                    0 => 0,
                    _ => NEAR_PORT,
                }),
                destination: packet.stops[0],
                may_stay: false,
                protocol: packet.protocol,
                port: packet.port,
                time_us: NOW_US,
            };
            let frame = 14 + packet.bytes.len() as u64;
            let expected = match packet.is_listed {
                false => accounts.judge(&compiled, &question, frame),
                true => compiled.judge_listed(&question, &packet.stops, packet.is_read, |budget| {
                    accounts.lasts(&compiled, budget, frame)
                }),
            };
            let answer = kernel.judge_packet(&packet.bytes).unwrap();
            let answer = answer & !(u32::from(DECISION_LIMITED) << 8);
            assert_eq!(
                answer,
                packed(&expected),
                "seed {seed}: the kernel says verdict {} rule {}, the evaluator {expected:?} of \
                 {packet:02x?} under\n{}",
                answer & 0xff,
                answer >> 16,
                scene.text,
            );
            n_unread += usize::from(!packet.is_read);
            *by_verdict
                .entry((packet.is_listed, expected.verdict))
                .or_default() += 1;
        }
    }
    println!("{n_unread} packets not read to the end; by verdict, listed or not: {by_verdict:?}");
    let n_listed: Vec<usize> = by_verdict
        .iter()
        .filter(|((listed, _), _)| *listed)
        .map(|(_, n)| *n)
        .collect();
    // A generator of one kind of packet only would prove nothing.
    assert!(
        n_listed.len() >= 4 && n_listed.iter().sum::<usize>() > 5_000,
        "{by_verdict:?}"
    );
    assert!(n_unread > 1_000, "{n_unread}");
}
