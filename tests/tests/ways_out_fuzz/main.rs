//! Ways out, drawn at random: nothing arrives abroad in enforce mode, and in report mode
//! all that arrives is in records about where it arrived.
//!
//! Meanwhile a neighbour sends abroad, who may; and so may others that are not there, so that who is taken for
//! one of them gets out. The seed says, too, whether the host and the container translate destinations.
//!
//! `TREFOIL_WAYS_OUT_SEED` and `TREFOIL_WAYS_OUT_CASES` say which cases, and how many.

#[path = "../world/mod.rs"]
mod world;

mod stage;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail, ensure};
use stage::{NEIGHBOURS, NEIGHBOURS6, World, number};
use trefoil_lab::link::leave_checksums_to_the_kernel;
use trefoil_lab::places;
use trefoil_lab::router::{LINK, ROUTER, ROUTER6};
use trefoil_lab::ways::{Case, Extra, Place};
use world::books::books;
use world::{all_of, is_final};

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

/// Senders that may send abroad, beside the neighbour.
const OTHERS: [&str; 4] = [
    "unit = \"neighbour.service\"",
    "unit = \"absent.service\"",
    "user = 12345",
    "exe = \"/usr/bin/absent\"",
];
/// Not of a container's, whose programs are root's in this lab.
const ROOT: &str = "user = 0";

/// The policy, in this mode.
fn policy(mode: &str, in_container: bool) -> String {
    const ABROAD: &str = "\"203.0.113.0/24\", \"2001:db8:3::/48\", \"64:ff9b::/96\", \"2002::/16\", \
                          \"239.0.0.0/8\", \"ff00::/8\", \"169.254.0.0/16\", \"fe80::/10\"";
    let mut policy = format!("mode = \"{mode}\"\n{RULES}");
    let root = (!in_container).then_some(ROOT);
    for from in OTHERS.into_iter().chain(root) {
        policy.push_str(&format!(
            "\n[[rules]]\nname = '{from}'\nfrom = {{ {from} }}\n\
             to = {{ networks = [{ABROAD}] }}\nverdict = \"approve\"\n"
        ));
    }
    policy
}

const CASES: u64 = 1500;
const BATCH: u64 = 50;

/// True for what the policy approves, and for what no router forwards.
fn may_arrive(address: IpAddr) -> bool {
    match address {
        _ if [places::GATEWAY, places::GATEWAY6, ROUTER, ROUTER6].contains(&address) => true,
        NEIGHBOURS | NEIGHBOURS6 => true,
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
    let policy = policy("enforce", in_container);
    let agent = world.lab.agent().policy(&policy).uplink("auto").start()?;
    let neighbour = world.neighbour()?;
    // The container's tunnel reports its groups when it is made.
    world.settle()?;
    let before = world.escaped();
    let cases = number("TREFOIL_WAYS_OUT_CASES")?.unwrap_or(CASES);
    let mut first = 0;
    while first < cases {
        let count = BATCH.min(cases - first);
        // Sockets and decisions of one policy live on under the next.
        agent.reload(&policy)?;
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
    neighbour.finish()?.success()?;
    world.has_approved(cases / 4)?;
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
    let policy = policy("report", in_container);
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
    let (mut untold, mut wrong, mut abroad) = (0, Vec::new(), 0);
    for (to, arrived) in arrived {
        if may_arrive(to) {
            continue;
        }
        let told = told.get(&to).copied().unwrap_or_default();
        let older = before.get(&to).map_or(0, |older| older.bytes);
        let arrived = arrived.bytes - older;
        abroad += arrived;
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
    // Else the cases are worth nothing.
    ensure!(abroad > cases * 16, "{abroad} bytes arrived abroad");
    world.has_approved(cases / 4)?;
    ensure!(
        wrong.is_empty() && untold <= kernels,
        "seed {}: {untold} bytes are not told, {kernels} of them are the kernel's own; {wrong:?}",
        world.seed
    );
    world.close()
}

/// The kernel cuts a datagram itself, and no device, whose route led to one that writes no checksums, and which
/// is translated to another one: the way that this case goes.
#[test]
fn a_datagram_that_the_kernel_cuts_is_in_the_books() -> Result<()> {
    const SEED: u64 = 20;
    const NUMBER: u64 = 2984;
    const ETHERNET: u64 = 14;
    let case = Case::draw(SEED, NUMBER, false);
    ensure!(
        case.extras.contains(&Extra::Segments) && case.then == Place::Translated,
        "another case has this number: {case}"
    );
    let world = World::of(SEED, false)?;
    let policy = policy("report", false);
    let agent = world.lab.agent().policy(&policy).settings(EACH);
    let mut agent = agent.uplink("auto").start()?;
    world.go(NUMBER, 1, &[])?;
    let book = books(&mut agent, &world.lab, "to-foreign")?;
    let mut whole = 0;
    for record in all_of(agent, &world.lab)?.iter().filter(|it| is_final(it)) {
        whole += record.number("bytes_out")? + ETHERNET * record.number("packets_out")?;
    }
    ensure!(
        book.number("bytes_sent")? > whole,
        "nothing was cut: {book}"
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
