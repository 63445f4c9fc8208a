//! Ways out, drawn at random: nothing arrives abroad in enforce mode, and in report mode
//! all that arrives is in records about where it arrived.
//!
//! `TREFOIL_WAYS_OUT_SEED` and `TREFOIL_WAYS_OUT_CASES` say which cases, and how many.

mod world;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{Mode, SFlag, mknod};
use trefoil_lab::link::{LinkCounters, leave_checksums_to_the_kernel};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::router::{LINK, ROUTER, ROUTER6, Router};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::tap::Tap;
use trefoil_lab::ways::Case;
use trefoil_lab::wiring::{Guest, container, forward};
use trefoil_lab::{Lab, places, wait_for};
use world::books::books;
use world::{TRAFFIC, all_of, is_final};

/// Approves one port of a gateway, the same of a gateway that is a router, and one network.
const RULES: &str = r#"
[[gateways]]
name      = "the gateway"
endpoints = ["192.0.2.10:443/tcp", "192.0.2.10:443/udp", "192.0.2.20:443/tcp", "192.0.2.20:443/udp",
             "[2001:db8:1::10]:443/tcp", "[2001:db8:1::10]:443/udp",
             "[2001:db8:1::20]:443/tcp", "[2001:db8:1::20]:443/udp"]

[[rules]]
name    = "the gateway"
to      = { gateway = "the gateway" }
verdict = "approve"

[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24", "2001:db8:2::/48"] }
verdict = "approve"
"#;

const CASES: u64 = 1500;
const BATCH: u64 = 50;
const USER: u32 = 65534;
/// How often a case is tried alone that may need luck.
const TRIES: u64 = 20;

fn number(name: &str) -> Result<Option<u64>> {
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
struct World {
    lab: Lab,
    router: Router,
    container: Guest,
    tap: Tap,
    in_container: bool,
    seed: u64,
    /// Takes connections by MPTCP, and offers a foreign address.
    server: Running,
    _sinks: (Vec<TcpSink>, Vec<UdpSink>),
}

impl World {
    fn new(in_container: bool) -> Result<Self> {
        let seed = match number("TREFOIL_WAYS_OUT_SEED")? {
            Some(seed) => seed,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
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

    fn close(self) -> Result<()> {
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
    fn settle(&self) -> Result<()> {
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

    fn go(&self, first: u64, count: u64, without: &[usize]) -> Result<()> {
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
    fn escaped(&self) -> BTreeMap<IpAddr, u64> {
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
    fn least(&self, first: u64, count: u64) -> Result<String> {
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

/// True for what the policy approves, and for what no router forwards.
fn may_arrive(address: IpAddr) -> bool {
    match address {
        _ if [places::GATEWAY, places::GATEWAY6, ROUTER, ROUTER6].contains(&address) => true,
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            [a, b, c] == [198, 51, 100]
                || [a, b, c] == [224, 0, 0]
                || address == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            segments[..3] == [0x2001, 0xdb8, 2]
                || segments[0] & 0xff0f <= 0xff02 && segments[0] >> 8 == 0xff
        }
    }
}

fn nothing_leaves(in_container: bool) -> Result<()> {
    let world = World::new(in_container)?;
    for link in ["to-foreign", LINK, "to-peer", "to-gateway"] {
        leave_checksums_to_the_kernel(&world.lab.host, link)?;
    }
    let policy = format!("mode = \"enforce\"\n{RULES}");
    let agent = world.lab.agent().policy(&policy).uplink("auto").start()?;
    // The container's tunnel reports its groups when it is made.
    world.settle()?;
    let before = world.escaped();
    let cases = number("TREFOIL_WAYS_OUT_CASES")?.unwrap_or(CASES);
    let mut first = 0;
    while first < cases {
        let count = BATCH.min(cases - first);
        world.go(first, count, &[])?;
        let escaped = world.escaped();
        if escaped != before {
            let least = world.least(first, count)?;
            bail!(
                "seed {}, cases {first} to {}: packets abroad: {escaped:?}\n{least}",
                world.seed,
                first + count - 1
            );
        }
        first += count;
    }
    drop(agent);
    world.close()
}

#[test]
fn nothing_leaves_by_any_way_of_a_user() -> Result<()> {
    nothing_leaves(false)
}

#[test]
fn nothing_leaves_by_any_way_of_a_container() -> Result<()> {
    nothing_leaves(true)
}

/// Each violation has a record of its own, so that records can be summed up by address.
const EACH: &str = "heartbeat_interval = \"1s\"\nviolations_rate = 1000000\n";

fn all_is_told(in_container: bool) -> Result<()> {
    let world = World::new(in_container)?;
    let policy = format!("mode = \"report\"\n{RULES}");
    let agent = world.lab.agent().policy(&policy).settings(EACH);
    let mut agent = agent.uplink("auto").start()?;
    // Packets that have arrived by now may be older than the agent.
    world.settle()?;
    let before = world.tap.as_sent();
    let cases = number("TREFOIL_WAYS_OUT_CASES")?.unwrap_or(CASES / 3);
    // A packet that lists destinations arrives at several, and is told once: by the address that
    // its verdict is about (battery, row 31).
    let is_wanted =
        |number: &u64| Case::draw(world.seed, *number, in_container).is_told_by_address();
    let mut first = 0;
    while first < cases {
        let Some(next) = (first..cases).find(is_wanted) else {
            break;
        };
        let most = BATCH.min(cases - next);
        let count = (next..next + most).take_while(is_wanted).count() as u64;
        world.go(next, count, &[])?;
        first = next + count;
    }
    // Records and books are about all of what is looked at here, and may be about more.
    world.settle()?;
    let (arrived, acknowledged) = (world.tap.as_sent(), world.tap.acknowledgements());
    let mut kernels = 0;
    for uplink in ["to-foreign", LINK] {
        kernels += books(&mut agent, &world.lab, uplink)?.number("bytes_kernel")?;
    }
    let mut told: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for record in all_of(agent, &world.lab)?
        .iter()
        .filter(|record| is_final(record))
    {
        let to = record.address("dst_addr")?.to_canonical();
        *told.entry(to).or_default() += record.number("bytes_out")?;
    }
    let (mut untold, mut wrong) = (0, Vec::new());
    for (to, arrived) in arrived {
        if may_arrive(to) {
            continue;
        }
        let told = told.get(&to).copied().unwrap_or_default();
        let older = before.get(&to).map_or(0, |older| older.bytes);
        let arrived = arrived.bytes - older;
        println!("{to}: {arrived} bytes arrived, {told} are told");
        // More may be told: what was handed over and then found no neighbour.
        let missing = arrived.saturating_sub(told);
        untold += missing;
        if missing > acknowledged.get(&to).map_or(0, |some| some.bytes) {
            wrong.push(to);
        }
    }
    // In the name of a connection that is over, the kernel acknowledges what still comes; that is
    // in the books alone.
    println!("{kernels} bytes are the kernel's own");
    ensure!(
        wrong.is_empty() && untold <= kernels,
        "seed {}: {untold} bytes are not told, {kernels} of them are the kernel's own; {wrong:?}",
        world.seed
    );
    world.close()
}

#[test]
fn all_that_leaves_by_any_way_of_a_user_is_told() -> Result<()> {
    all_is_told(false)
}

#[test]
fn all_that_leaves_by_any_way_of_a_container_is_told() -> Result<()> {
    all_is_told(true)
}
