//! Random flows that have something to do with a policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{GROUPS, Random, Scene, USERS, policies};
use crate::policy::evaluate::Question;
use crate::policy::network::Extent;
use crate::policy::source::{Direction, Endpoint};

/// A [`Question`] that owns its paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedQuestion {
    /// As in [`Question`].
    pub cgroup: Option<Vec<u8>>,
    /// As in [`Question`].
    pub executable: Option<Vec<u8>>,
    /// As in [`Question`].
    pub is_foreign: bool,
    /// As in [`Question`].
    pub uid: u32,
    /// As in [`Question`].
    pub gid: Option<u32>,
    /// As in [`Question`].
    pub interactive: Option<bool>,
    /// As in [`Question`].
    pub origin: Option<IpAddr>,
    /// As in [`Question`].
    pub direction: Option<Direction>,
    /// As in [`Question`].
    pub near_port: Option<u16>,
    /// As in [`Question`].
    pub destination: IpAddr,
    /// As in [`Question`].
    pub may_stay: bool,
    /// As in [`Question`].
    pub protocol: u8,
    /// As in [`Question`].
    pub port: u16,
}

impl OwnedQuestion {
    /// The question itself.
    #[must_use]
    pub fn question(&self) -> Question<'_> {
        Question {
            cgroup: self.cgroup.as_deref(),
            executable: self.executable.as_deref(),
            is_foreign: self.is_foreign,
            uid: self.uid,
            gid: self.gid,
            interactive: self.interactive,
            origin: self.origin,
            direction: self.direction,
            near_port: self.near_port,
            destination: self.destination,
            may_stay: self.may_stay,
            protocol: self.protocol,
            port: self.port,
            time_us: NOW_US,
        }
    }
}

/// When random flows happen, microseconds since 1970: 2027-01-15T08:00:00Z.
pub const NOW_US: u64 = 1_800_000_000_000_000;

/// Control groups that match some patterns, and others that nearly do.
const CGROUPS: &[&str] = &[
    "/",
    "/system.slice/nginx.service",
    "/system.slice/nginx-1.service/worker",
    "/system.slice/system-export.slice/export@de.service",
    "/system.slice/export@1.socket",
    "/system.slice/mail-worker.service",
    "/system.slice/_cpu.service",
    "/user.slice/user-1000.slice/session-3.scope",
    "/user.slice/user-1000.slice/session-33.scope",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/backup.service",
    "/user.slice/user-1000.slice/user@1000.service/nginx.service",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope",
    "/user.slice/user-1001.slice/user@1001.service/backup.service/x",
    "/user-1000.slice/x.service",
    "/a.slice/a-b.slice/x.service",
    "/a-b.slice/x.service",
    "/docker/0123456789abcdef/system.slice/nginx.service",
    "/system.slice/docker-0123.scope/nginx.service",
    "/nginx.service.d",
    "/system.slice/docker-4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042.scope",
    "/system.slice/docker-4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042.scope/system.slice/nginx.service",
    "/docker/4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042",
    "/docker/4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042/x.service",
    "/machine.slice/libpod-4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042.scope/container",
    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042.scope",
    "/kubepods/burstable/pod1/4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042",
    "/kubepods.slice/kubepods-pod1.slice/cri-containerd-002a9c01b7de002a9c01b7de002a9c01b7de002a9c01b7de002a9c01b7de0042.scope",
    "/machine.slice/machine-web\\x2d1.scope/payload",
    "/machine.slice/machine-web\\x2d1.scope/supervisor",
    "/lxc.payload.web",
    "/lxc/web/x.service",
    "/system.slice/\u{e4}-worker.service",
];

const CGROUP_PARTS: &[&str] = &[
    "/docker",
    "/lxc",
    "/4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042",
    "/docker-4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042.scope",
    "/lxc.payload.web",
    "/system.slice",
    "/user.slice",
    "/user-1000.slice",
    "/user@1000.service",
    "/app.slice",
    "/nginx.service",
    "/export@1.service",
    "/_cpu.service",
    "/a.slice",
    "/a-b.slice",
    "/x.scope",
    "/_",
    "/",
    "nginx",
    ".service",
    ".slice",
    "/session-1.scope",
    "-worker.service",
];

const EXECUTABLES: &[&str] = &[
    "/usr/bin/curl",
    "/usr/bin/curl2",
    "/usr/local/bin/curl",
    "/curl",
    "/usr/lib/postgresql/15/bin/postgres",
    "/usr/lib/postgresql/15/x/bin/postgres",
    "/opt/aa/x",
    "/opt/ad/x",
    "/opt/\u{e4}a/x",
    "/opt/\u{20ac}/x",
    "/opt/x/y/bin/tool",
    "/opt/x/bin/a",
    "/usr/sbin/nginx",
    "/usr/sbin/nginx (deleted)",
    "/memfd:x",
    "/bin/\u{e4}",
];

const DIRECTIONS: [Option<Direction>; 5] = [
    None,
    Some(Direction::Outbound),
    Some(Direction::Outbound),
    Some(Direction::Accepted),
    Some(Direction::Accepted),
];

const EXECUTABLE_PARTS: &[&str] = &[
    "/usr",
    "/bin",
    "/opt",
    "/curl",
    "/x",
    "/",
    "a",
    "b",
    "/lib/postgresql",
    "/postgres",
];

impl Scene {
    /// A flow that has something to do with this scene.
    pub fn question(&self, random: &mut Random) -> OwnedQuestion {
        let destination = match random.below(8) {
            0 => IpAddr::V4(Ipv4Addr::from_bits(random.next_u64() as u32)),
            1 => {
                let high = u128::from(random.next_u64());
                IpAddr::V6(Ipv6Addr::from_bits(
                    high << 64 | u128::from(random.next_u64()),
                ))
            }
            2 => policies::address(random),
            _ => *random.pick(&self.landmarks),
        };
        let destination = match destination {
            IpAddr::V4(v4) if random.one_in(8) => IpAddr::V6(v4.to_ipv6_mapped()),
            IpAddr::V4(v4) if random.one_in(8) => IpAddr::V6(self.embedding(random, v4)),
            destination => destination,
        };
        let protocol = match random.below(4) {
            0 => random.next_u64() as u8,
            _ => *random.pick(&[6, 6, 17, 1, 58, 47, 50, 132, 136, 255]),
        };
        let port = match random.below(4) {
            0 => random.next_u64() as u16,
            _ => *random.pick(&[
                0, 1, 2, 53, 443, 444, 1023, 1024, 1194, 7999, 8000, 8010, 8011, 51820, 65535,
            ]),
        };
        let uid = match random.below(8) {
            0 => random.next_u64() as u32,
            1 => *random.pick(&[0, 1, 2, 25, 27, 28, 99_999, 231_072, u32::MAX - 1]),
            3 => *random.pick(&[100_000, 165_535, 165_536, 231_071]),
            2 => u32::MAX,
            _ => random.pick(USERS).1,
        };
        let gid = match random.below(8) {
            0 => None,
            1 => Some(random.next_u64() as u32),
            2 => Some(*random.pick(&[0, 1, 2, 5, 6, 50, 51, 52, 99_999, 231_072, u32::MAX - 1])),
            3 => Some(*random.pick(&[100_000, 165_536, 231_071])),
            _ => Some(random.pick(GROUPS).1),
        };
        let (interactive, origin) = self.login(random);
        let direction = *random.pick(&DIRECTIONS);
        let near_port = match random.below(8) {
            0 => None,
            1 => Some(random.next_u64() as u16),
            _ => Some(*random.pick(&[
                0, 1, 9, 21, 22, 22, 23, 53, 443, 444, 1024, 7999, 8000, 8011, 65535,
            ])),
        };
        // Address and service of an endpoint rarely meet by chance.
        let (destination, protocol, port) = match self.endpoint(random) {
            Some(Endpoint {
                address,
                protocol: own,
                port: own_port,
            }) => {
                let address = if random.one_in(6) {
                    destination
                } else {
                    address
                };
                let own = if random.one_in(6) { protocol } else { own.0 };
                (
                    address,
                    own,
                    own_port.filter(|_| !random.one_in(6)).unwrap_or(port),
                )
            }
            None => (destination, protocol, port),
        };
        OwnedQuestion {
            cgroup: path(random, CGROUPS, CGROUP_PARTS),
            executable: path(random, EXECUTABLES, EXECUTABLE_PARTS),
            is_foreign: random.one_in(4),
            uid,
            gid,
            interactive,
            origin,
            direction,
            near_port,
            destination,
            may_stay: random.one_in(2),
            protocol,
            port,
        }
    }

    /// Whether there is a login session, and where it came from.
    fn login(&self, random: &mut Random) -> (Option<bool>, Option<IpAddr>) {
        let interactive = *random.pick(&[None, Some(false), Some(true), Some(true)]);
        let is_known = interactive == Some(true) && !random.one_in(8);
        (interactive, is_known.then(|| self.origin(random)))
    }

    /// An address to log in from.
    fn origin(&self, random: &mut Random) -> IpAddr {
        let clients = self.policy.gateways.iter().flat_map(|one| &one.clients);
        let clients: Vec<_> = clients.collect();
        match random.below(8) {
            0 | 1 if !clients.is_empty() => match random.pick(&clients).extent() {
                Extent::V4(first, _) => IpAddr::V4(Ipv4Addr::from_bits(first)),
                Extent::V6(first, _) => IpAddr::V6(Ipv6Addr::from_bits(first)),
            },
            2 => policies::address(random),
            3 => match policies::address(random) {
                IpAddr::V4(v4) => IpAddr::V6(self.embedding(random, v4)),
                IpAddr::V6(v6) => IpAddr::V6(v6),
            },
            4 => match random.pick(&self.landmarks) {
                IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
                v6 => *v6,
            },
            _ => *random.pick(&self.landmarks),
        }
    }

    /// An address that means `v4`, in one of the forms that there are.
    fn embedding(&self, random: &mut Random, v4: Ipv4Addr) -> Ipv6Addr {
        let own = &self.policy.nat64;
        if own.is_empty() || random.one_in(2) {
            return embedding(random, v4);
        }
        let own = random.pick(own);
        let Extent::V6(first, _) = own.extent() else {
            return embedding(random, v4);
        };
        let mut octets = Ipv6Addr::from_bits(first).octets();
        let places = (usize::from(own.prefix()) / 8..16).filter(|place| *place != 8);
        for (place, octet) in places.zip(v4.octets()) {
            octets[place] = octet;
        }
        if random.one_in(4) {
            octets[8 + random.below(8)] = random.next_u64() as u8;
        }
        Ipv6Addr::from(octets)
    }

    fn endpoint(&self, random: &mut Random) -> Option<Endpoint> {
        if self.policy.gateways.is_empty() {
            return None;
        }
        let gateway = random.pick(&self.policy.gateways);
        random.one_in(4).then(|| *random.pick(&gateway.endpoints))
    }
}

/// An address that means `v4`, in one of the forms there are.
fn embedding(random: &mut Random, v4: Ipv4Addr) -> Ipv6Addr {
    let bits = u128::from(v4.to_bits());
    let noise = u128::from(random.next_u64());
    Ipv6Addr::from_bits(match random.below(8) {
        0 => 0x0064_ff9b << 96 | bits,
        1 => 0x0064_ff9b_0001 << 80 | (noise & 0xffff) << 64 | bits,
        2 => 0x0064_ff9b_0001 << 80 | bits >> 16 << 64 | (bits & 0xffff) << 40,
        3 => 0x0064_ff9b_0001 << 80 | bits << 24,
        4 => 0x0064_ff9b_0001 << 80 | bits >> 24 << 64 | (bits & 0xff_ffff) << 32,
        5 => bits,
        6 => 0x2002 << 112 | bits << 80 | noise & 0xffff,
        _ => 0x2001_0000 << 96 | noise << 32 | !bits & 0xffff_ffff,
    })
}

/// Mostly one of `whole`, at times one made of `parts`, at times none.
fn path(random: &mut Random, whole: &[&str], parts: &[&str]) -> Option<Vec<u8>> {
    match random.below(8) {
        0 => None,
        1 => {
            let n_parts = 1 + random.below(6);
            let made: String = (0..n_parts).map(|_| *random.pick(parts)).collect();
            Some(made.into_bytes())
        }
        _ => Some(random.pick(whole).as_bytes().to_vec()),
    }
}
