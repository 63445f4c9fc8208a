//! Where cases are gone: a host that forwards, a container with devices of its own, a router, and the places
//! abroad.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, mknod};
use trefoil_lab::link::LinkCounters;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::router::{LINK, Router};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tap::Tap;
use trefoil_lab::ways::{Case, TRANSLATED, TRANSLATED6};
use trefoil_lab::wiring::{Guest, container, forward};
use trefoil_lab::{Lab, places, wait_for};

use crate::may_arrive;
use crate::world::TRAFFIC;

const USER: u32 = 65534;
/// How often a case is tried alone that may need luck.
const TRIES: u64 = 20;

/// A number from the environment.
pub fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    Ok(Some(
        text.parse().with_context(|| format!("{name}={text}"))?,
    ))
}

/// Node of tun devices in the lab's directory, which anybody may open, as on most hosts.
const TUN_NODE: &str = "tun";

/// Gives the user a tun device whose packets the host forwards.
fn give_tun_device(lab: &Lab) -> Result<()> {
    let node = lab.file(TUN_NODE);
    let numbers = nix::sys::stat::makedev(10, 200);
    let (kind, mode) = (SFlag::S_IFCHR, Mode::from_bits_truncate(0o666));
    mknod(&node, kind, mode, numbers).context("make a node of tun devices")?;
    std::fs::set_permissions(&node, Permissions::from_mode(0o666))?;
    lab.host.ip(&format!(
        "tuntap add own-tun mode tun user {USER} multi_queue\n\
         link set own-tun addrgenmode none\nlink set own-tun up\n"
    ))
}

/// Devices that root of the container has made: a pair of which one end is in a bridge, one on the
/// container's link, and a tunnel abroad; and it forwards what comes in by them.
fn own_devices(place: &Namespace) -> Result<()> {
    forward(place)?;
    place.enter(|| {
        for (name, value) in [
            ("accept_local", "1"),
            ("route_localnet", "1"),
            ("rp_filter", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/all/{name}"), value)?;
        }
        Ok(())
    })?;
    place.ip("mptcp limits set subflows 4 add_addr_accepted 4\n")?;
    let mut commands = format!(
        "link add own-bridge address 02:00:00:00:05:02 type bridge\n\
         link add own-a address 02:00:00:00:05:01 type veth peer name own-b\n\
         link set own-b master own-bridge\n\
         link add link to-host name own-macvlan type macvlan mode bridge\n\
         link add own-vxlan type vxlan id 13 remote {} dstport 443\n",
        places::FOREIGN
    );
    for (device, next) in [
        ("own-bridge", "02:00:00:00:05:01"),
        ("own-a", "02:00:00:00:05:02"),
        ("own-b", "02:00:00:00:05:01"),
        ("own-macvlan", "02:00:00:00:03:15"),
        ("own-vxlan", "02:00:00:00:05:03"),
    ] {
        commands.push_str(&format!(
            "link set {device} addrgenmode none\nlink set {device} up\n"
        ));
        for host in [places::HOST, places::HOST6] {
            commands.push_str(&format!(
                "neighbour add {host} lladdr {next} dev {device} nud permanent\n\
                 route append default via {host} dev {device} onlink metric 2000\n"
            ));
        }
    }
    place.ip(&commands)
}

/// Root of the container has what it has marked, and what comes in by its own pair, go to the
/// foreign place.
fn own_translation(place: &Namespace) -> Result<()> {
    let table = |family: &str, to: IpAddr| {
        format!(
            "table {family} own {{\n\
             chain output {{\ntype nat hook output priority -100; policy accept;\n\
             meta mark 7 dnat to {to}\n}}\n\
             chain prerouting {{\ntype nat hook prerouting priority -100; policy accept;\n\
             iifname {{ \"own-a\", \"own-tun\" }} dnat to {to}\n}}\n}}\n"
        )
    };
    place.nft(&[table("ip", places::FOREIGN), table("ip6", places::FOREIGN6)].concat())
}

/// The host has what goes to one address of the approved network go to the foreign place.
fn translation(host: &Namespace) -> Result<()> {
    let table = |family: &str, named: IpAddr, to: IpAddr| {
        let rule = format!("{family} daddr {named} dnat to {to}");
        format!(
            "table {family} translation {{\n\
             chain output {{\ntype nat hook output priority -100; policy accept;\n{rule}\n}}\n\
             chain prerouting {{\ntype nat hook prerouting priority -100; policy accept;\n{rule}\n}}\n\
             }}\n"
        )
    };
    let v4 = table("ip", TRANSLATED, places::FOREIGN);
    host.nft(&[v4, table("ip6", TRANSLATED6, places::FOREIGN6)].concat())
}

/// Addresses abroad of the neighbour's peer.
pub const NEIGHBOURS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));
pub const NEIGHBOURS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x77));

/// Frames on the ways abroad.
#[derive(Debug)]
struct Frames {
    /// Frames that the router has read.
    read: u64,
    /// Frames that the tap has seen.
    seen: u64,
    /// Counters of the host's link to the router.
    to_router: LinkCounters,
    /// Of the router's link to the foreign place.
    routed: LinkCounters,
    /// Of the host's own link there.
    direct: LinkCounters,
}

impl Frames {
    fn have_arrived(&self) -> bool {
        self.read >= self.to_router.tx_packets
            && self.seen >= self.routed.tx_packets + self.direct.tx_packets
    }
}

/// Where the cases are gone.
pub struct World {
    pub lab: Lab,
    router: Router,
    container: Guest,
    pub tap: Tap,
    in_container: bool,
    pub seed: u64,
    /// Takes connections by MPTCP, and offers a foreign address.
    server: Running,
    _sinks: (Vec<TcpSink>, Vec<UdpSink>),
}

impl World {
    /// Of a seed that nobody knows, unless the environment says one.
    pub fn new(in_container: bool) -> Result<Self> {
        let seed = match number("TREFOIL_WAYS_OUT_SEED")? {
            Some(seed) => seed,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        Self::of(seed, in_container)
    }

    /// Of this seed.
    pub fn of(seed: u64, in_container: bool) -> Result<Self> {
        println!("TREFOIL_WAYS_OUT_SEED={seed}");
        // Before the first frame: the kernel reports multicast groups while the links are new, and
        // what is on its way when one begins to count is in one count and not in the other.
        let (lab, tap) = Lab::with_tap()?;
        forward(&lab.host)?;
        let container = container(&lab.host, "container", 21)?;
        give_tun_device(&lab)?;
        own_devices(&container.place)?;
        if seed & 1 != 0 {
            own_translation(&container.place)?;
        }
        if seed & 2 != 0 {
            // Fragments are put together for it.
            lab.host.nft(
                "table inet watched {\nchain forward {\n\
                 type filter hook forward priority 0; ct state new counter\n}\n}\n",
            )?;
        }
        if seed & 4 != 0 {
            translation(&lab.host)?;
        }
        let router = Router::new(&lab)?;
        // Multicast beyond the link, and prefixes that embed addresses, lead abroad.
        lab.host.ip(&format!(
            "route add multicast 239.1.1.1 dev to-foreign src {}\n\
             route add 64:ff9b::/96 via {far} dev to-foreign onlink\n\
             route add 2002::/16 via {far} dev to-foreign onlink\n",
            places::HOST,
            far = places::FOREIGN6
        ))?;
        lab.host
            .ip("mptcp limits set subflows 4 add_addr_accepted 4\n")?;
        lab.foreign.ip(&format!(
            "address add {NEIGHBOURS}/32 dev lo\naddress add {NEIGHBOURS6}/128 dev lo\n"
        ))?;
        lab.peer.ip(&format!(
            "mptcp limits set subflows 4\nmptcp endpoint add {} dev lo signal\n",
            places::FOREIGN
        ))?;
        let mut server = Program::new(TRAFFIC, &lab.peer, None, None)?
            .args(["serve", "445", "--again", "--transport", "mptcp"])
            .start()?;
        server.line()?;
        let mut streams = Vec::new();
        let mut datagrams = Vec::new();
        for (place, ports) in [
            (&lab.gateway, [443, 444]),
            (&lab.peer, [9, 443]),
            (&lab.foreign, [9, 443]),
        ] {
            for port in ports {
                streams.push(TcpSink::new(place, port)?);
                datagrams.push(UdpSink::new(place, port)?);
            }
        }
        Ok(Self {
            lab,
            router,
            container,
            tap,
            in_container,
            seed,
            server,
            _sinks: (streams, datagrams),
        })
    }

    /// Starts the neighbour.
    pub fn neighbour(&self) -> Result<Running> {
        let to = [NEIGHBOURS, NEIGHBOURS6].map(|address| ["--to".into(), address.to_string()]);
        let program = self.lab.program_in("neighbour.service", TRAFFIC)?;
        program
            .args(["rounds", "9", "443"])
            .args(to.as_flattened())
            .start()
    }

    /// Frames to where the policy lets everybody send: so many at least go there, or the cases are
    /// worth nothing.
    pub fn has_approved(&self, least: u64) -> Result<()> {
        let links = [&self.lab.gateway, &self.lab.peer];
        let sent = links.map(|place| Ok(self.lab.link_to(place)?.tx_packets));
        let sent = sent.into_iter().sum::<Result<u64>>()?;
        ensure!(sent >= least, "{sent} frames went to approved places");
        Ok(())
    }

    pub fn close(self) -> Result<()> {
        drop(self.server);
        self.lab.close()
    }

    /// Frames of which both ends are counted. Arrivals are read first, so that nothing was on its
    /// way if as much has arrived as was sent.
    fn frames(&self) -> Result<Frames> {
        Ok(Frames {
            read: self.router.received(),
            seen: self.tap.frames(),
            to_router: LinkCounters::read(&self.lab.host, LINK)?,
            routed: LinkCounters::read(&self.router.place, "to-foreign")?,
            direct: self.lab.link_to(&self.lab.foreign)?,
        })
    }

    /// Waits until all that was sent has arrived.
    pub fn settle(&self) -> Result<()> {
        let settled = wait_for("all that was sent arrives", || {
            Ok(self.frames()?.have_arrived().then_some(()))
        });
        let Err(error) = settled else {
            return Ok(());
        };
        let (frames, router, tap) = (self.frames()?, self.router.lost()?, self.tap.lost()?);
        Err(error.context(format!(
            "{frames:?}; no room: {router} to read, {tap} to see"
        )))
    }

    pub fn go(&self, first: u64, count: u64, without: &[usize]) -> Result<()> {
        let unit = self.lab.unit("ways.service")?;
        let program = match self.in_container {
            true => Program::new(TRAFFIC, &self.container.place, Some(&unit), None)?,
            false => self.lab.program_as(USER, TRAFFIC)?,
        };
        let mut arguments = vec!["ways".to_owned(), self.seed.to_string()];
        arguments.extend(["--from".to_owned(), first.to_string()]);
        arguments.extend(["--count".to_owned(), count.to_string()]);
        let node = self.lab.file(TUN_NODE).display().to_string();
        arguments.extend(["--tun".to_owned(), node]);
        if self.in_container {
            arguments.push("--container".to_owned());
        }
        for part in without {
            arguments.extend(["--without".to_owned(), part.to_string()]);
        }
        program.args(arguments).run()?.success()?;
        self.settle()
    }

    /// Packets that have arrived abroad, and for where.
    pub fn escaped(&self) -> BTreeMap<IpAddr, u64> {
        let all = self.tap.destinations().into_iter();
        let abroad = all.filter(|(address, _)| !may_arrive(*address));
        abroad.map(|(to, arrived)| (to, arrived.packets)).collect()
    }

    /// True if this case, alone, lets something out.
    fn lets_out(&self, number: u64, without: &[usize]) -> Result<bool> {
        let before = self.escaped();
        for _ in 0..TRIES {
            self.go(number, 1, without)?;
            if self.escaped() != before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The least of the first case of these that lets something out.
    pub fn least(&self, first: u64, count: u64) -> Result<String> {
        for number in first..first + count {
            if !self.lets_out(number, &[])? {
                continue;
            }
            let case = Case::draw(self.seed, number, self.in_container);
            let mut without = Vec::new();
            for part in 0..=case.extras.len() {
                let mut less = without.clone();
                less.push(part);
                if self.lets_out(number, &less)? {
                    without = less;
                }
            }
            return Ok(format!("case {number}: {}", case.without_all(&without)));
        }
        Ok("no case alone".to_owned())
    }
}
