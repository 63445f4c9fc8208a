//! Sockets that a user has made and connected, and that another sends by: the user has chosen where it
//! goes, and may have bytes of his own in it.

mod world;

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::wiring::{container, forward};
use trefoil_lab::{Lab, places};
use world::{TRAFFIC, all_of, at, mapped_at};

const USER: u32 = 12_345;

/// Approves of whoever is `from`, to all places.
fn approving(from: &str) -> String {
    format!(
        "mode = \"enforce\"\n[[rules]]\nname = \"one\"\nfrom = {{ {from} }}\n\
         to = {{ networks = [\"198.51.100.0/24\"] }}\nverdict = \"approve\"\n"
    )
}

/// Packets that leave for the peer when a user lends a socket.
fn sent(lab: &Lab, user: u32, how: &[&str]) -> Result<u64> {
    sent_to(lab, &at(places::PEER, 53), user, how)
}

fn sent_to(lab: &Lab, peer: &str, user: u32, how: &[&str]) -> Result<u64> {
    let before = lab.link_to(&lab.peer)?;
    let words = ["lend", peer, &user.to_string()];
    // A refused call is an error of its own.
    lab.program(TRAFFIC)?.args(words).args(how).run()?;
    Ok(lab.link_to(&lab.peer)?.since(before).tx_packets)
}

/// Nobody judges whom a socket of UDP-Lite is connected to, and bytes that are queued there leave with
/// another's: a program that is set to root writes to where its caller wants it.
#[test]
fn a_user_sends_nothing_by_a_socket_that_he_lends_to_root() -> Result<()> {
    let lab = Lab::new()?;
    let other = lab.unit("other.service")?;
    let other = other.to_str().context("a path that is not UTF-8")?;
    for (from, how) in [
        ("user = 0", &[][..]),
        ("unit = \"other.service\"", &["--cgroup", other]),
    ] {
        let agent = lab
            .agent()
            .policy(&approving(from))
            .uplink("auto")
            .start()?;
        ensure!(sent(&lab, 0, how)? != 0, "{from}: root may");
        // Of the mapped one the kernel names the peer in each call.
        for peer in [at(places::PEER, 53), mapped_at(places::PEER, 53)] {
            for more in [&["--more"][..], &[]] {
                let packets = sent_to(&lab, &peer, USER, &[how, more].concat())?;
                ensure!(packets == 0, "{from}, {peer} {more:?}: {packets} left");
            }
        }
        all_of(agent, &lab)?;
    }
    lab.close()
}

/// Where the host may translate addresses, a call that names a peer is not refused.
#[test]
fn nor_by_one_whose_peer_the_host_may_translate() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving("user = 0")).uplink("auto");
    let agent = agent.start()?;
    ensure!(sent(&lab, 0, &["--by", "udp"])? != 0, "root may");
    for rules in [
        "",
        "table ip lab {\nchain output {\ntype nat hook output priority -100\n}\n}\n",
    ] {
        lab.host.nft(rules)?;
        let packets = sent(&lab, USER, &["--by", "udp"])?;
        ensure!(packets == 0, "with {rules:?}, {packets} packets left");
    }
    all_of(agent, &lab)?;
    lab.close()
}

/// Where it does, he may be approved of for the peer that he names, and not for the one behind it.
#[test]
fn nor_by_one_whose_named_peer_is_approved_of_for_him() -> Result<()> {
    const SERVICE: &str = "203.0.113.101";
    let lab = Lab::new()?;
    lab.host.nft(&format!(
        "table ip lab {{\nchain output {{\ntype nat hook output priority -100\n\
         ip daddr {SERVICE} dnat to {}\n}}\n}}\n",
        places::PEER
    ))?;
    let _sink = TcpSink::new(&lab.peer, 53)?;
    let policy = format!(
        "{}[[rules]]\nname = \"two\"\nfrom = {{ user = {USER} }}\n\
         to = {{ networks = [\"{SERVICE}/32\"] }}\nverdict = \"approve\"\n",
        approving("user = 0")
    );
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let service = format!("{SERVICE}:53");
    // Root last: connections end after whoever has made them.
    for user in [USER, 0] {
        for protocol in ["udp", "tcp", "mptcp"] {
            let packets = sent_to(&lab, &service, user, &["--by", protocol])?;
            ensure!(
                (packets != 0) == (user == 0),
                "{packets} packets of {user} left by {protocol}"
            );
        }
    }
    all_of(agent, &lab)?;
    lab.close()
}

/// Nor where root names the destination, and he the way there.
#[test]
fn nor_by_one_that_he_has_given_a_way() -> Result<()> {
    const WAY: &str = "2001:db8:2::77";
    let lab = Lab::new()?;
    let policy = approving("user = 0").replace("198.51.100.0/24", "2001:db8:2::/48");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let how = ["--by", "udp", "--by-name"];
    for (user, more, may) in [
        (USER, &["--via", WAY][..], false),
        (0, &["--via", WAY], true),
        (USER, &[], true),
    ] {
        let packets = sent_to(&lab, &at(places::PEER6, 53), user, &[&how, more].concat())?;
        ensure!((packets != 0) == may, "{user} {more:?}: {packets} left");
    }
    all_of(agent, &lab)?;
    lab.close()
}

/// A program that is set to a user makes its sockets as that one, and they are its own.
#[test]
fn a_program_that_is_set_to_a_user_sends_by_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let policy = approving(&format!("user = {USER}"));
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let before = lab.link_to(&lab.peer)?;
    let peer = at(places::PEER, 53);
    let words = ["own", &peer, &USER.to_string(), "54321"];
    lab.program(TRAFFIC)?.args(words).run()?.success()?;
    ensure!(lab.link_to(&lab.peer)?.since(before).tx_packets == 2);
    all_of(agent, &lab)?;
    lab.close()
}

/// Root of a container may have it made, whatever the map of its user namespace looks like. `lend-inside`
/// says who sends.
#[test]
fn and_so_does_a_user_of_a_container_by_its_roots() -> Result<()> {
    const ROOT: u32 = 100_000;
    let lab = Lab::new()?;
    let policy = approving(&format!("user = [{USER}, {ROOT}]"));
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let user = format!("1 {USER} 1");
    let root = format!("0 {ROOT} 1");
    let others = (2..6).map(|id| format!("{id} {} 1", ROOT + id));
    let many = [user.clone(), root.clone()].into_iter().chain(others);
    for map in [
        vec![root.clone(), user.clone()],
        vec![user.clone(), root.clone()],
        many.collect(),
    ] {
        let before = lab.link_to(&lab.peer)?;
        let map = map.iter().flat_map(|line| ["--map", line]);
        let words = ["lend-inside", &at(places::PEER, 53)];
        let program = lab.program(TRAFFIC)?.args(words).args(map.clone());
        let outcome = program.run()?.success();
        let packets = lab.link_to(&lab.peer)?.since(before).tx_packets;
        let map: Vec<_> = map.collect();
        ensure!(
            outcome.is_ok() && packets == 2,
            "{map:?}: {packets} left, {outcome:?}"
        );
    }
    all_of(agent, &lab)?;
    lab.close()
}

/// Nor does he accept by one on which root has tried to send.
#[test]
fn who_accepts_is_who_listens() -> Result<()> {
    const PORT: u16 = 8443;
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&approving("user = 0")).uplink("auto");
    let agent = agent.start()?;
    let host = SocketAddr::from((places::HOST, PORT));
    for (user, is_answered) in [(0, true), (USER, false)] {
        let words = ["listen-lent", &PORT.to_string(), &user.to_string()];
        let mut listener = lab.program(TRAFFIC)?.args(words).start()?;
        listener.line()?;
        let connected = lab
            .peer
            .enter(|| Ok(TcpStream::connect_timeout(&host, Duration::from_secs(2)).is_ok()))?;
        ensure!(connected == is_answered, "{user} answers: {connected}");
        listener.proceed()?;
        listener.finish()?;
    }
    all_of(agent, &lab)?;
    lab.close()
}

/// Root answers on a connection that a user has accepted: the far end has chosen to come.
#[test]
fn root_answers_by_one_that_a_user_has_accepted() -> Result<()> {
    const PORT: u16 = 8444;
    let lab = Lab::new()?;
    let policy = approving(&format!("user = [0, {USER}]"));
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let words = ["accept-lent", &PORT.to_string(), &USER.to_string()];
    let mut server = lab.program(TRAFFIC)?.args(words).start()?;
    server.line()?;
    let host = SocketAddr::from((places::HOST, PORT));
    let answer = lab.peer.enter(|| {
        let mut connection = TcpStream::connect(host)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.len() == 6, "{answer:?}");
    server.finish()?.success()?;
    all_of(agent, &lab)?;
    lab.close()
}

/// Of such a socket the agent finds root, who holds it.
#[test]
fn nor_by_one_that_is_older_than_the_agent() -> Result<()> {
    let lab = Lab::new()?;
    let _sink = UdpSink::new(&lab.peer, 53)?;
    let start = |user: u32, by: &[&str]| {
        let words = ["lend", &at(places::PEER, 53), &user.to_string(), "--hold"];
        let mut lender = lab.program(TRAFFIC)?.args(words).args(by).start()?;
        lender.line()?;
        anyhow::Ok(lender)
    };
    let lenders = [
        start(0, &[])?,
        start(USER, &[])?,
        start(0, &["--by", "udp"])?,
        start(USER, &["--by", "udp"])?,
    ];
    let agent = lab.agent().policy(&approving("user = 0")).uplink("auto");
    let agent = agent.start()?;
    let mut left = Vec::new();
    for mut lender in lenders {
        let before = lab.link_to(&lab.peer)?;
        lender.proceed()?;
        lender.finish()?;
        left.push(lab.link_to(&lab.peer)?.since(before).tx_packets);
    }
    // Where only what was sent tells who did, the first of his is judged as of who holds the socket.
    ensure!(
        left[0] == 2 && left[1] <= 1 && left[2] == 2 && left[3] <= 1,
        "{left:?} packets left"
    );
    all_of(agent, &lab)?;
    lab.close()
}

/// Root of a container makes up who has come to a listener of his, and a program that is set to root writes
/// there: nobody but he has chosen where it goes.
#[test]
fn a_user_sends_nothing_by_a_session_that_he_has_made_up_and_lends_to_root() -> Result<()> {
    let lab = Lab::new()?;
    let guest = container(&lab.host, "container", 21)?;
    let policy = approving("user = 0");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    // His own rules keep calls that name a peer from being refused.
    guest
        .place
        .nft("table ip lab {\nchain output {\ntype nat hook output priority -100\n}\n}\n")?;
    let mut left = Vec::new();
    for (port, how) in [
        (8080, &["--alone", "--first"][..]),
        (8081, &[]),
        (8082, &["--first"]),
    ] {
        let before = lab.link_to(&lab.peer)?;
        let peer = at(places::PEER, port + 1000);
        guest
            .place
            .ip(&format!("address add {}/32 dev lo\n", places::PEER))?;
        let net = format!("--net={}", guest.place.path());
        let near = at(guest.v4, port);
        let words = [&net, TRAFFIC, "claim-lent", &near, &peer];
        let mut program = lab
            .program("nsenter")?
            .args(words)
            .args([USER.to_string()])
            .args(how)
            .start()?;
        program.line()?;
        guest
            .place
            .ip(&format!("address del {}/32 dev lo\n", places::PEER))?;
        program.proceed()?;
        program.finish()?.success()?;
        let sent = lab.link_to(&lab.peer)?.since(before);
        left.push((sent.tx_packets, sent.tx_bytes));
    }
    all_of(agent, &lab)?;
    lab.close()?;
    ensure!(left == [(0, 0); 3], "{left:?} packets and bytes left");
    Ok(())
}

/// A user to whom a tun device was given has a program that is set to root write into it: what that
/// writes is a packet to where the user wants it.
#[test]
fn a_user_sends_nothing_by_a_tun_device_that_he_lends_to_root() -> Result<()> {
    const OWNER: &str = "12345";
    let lab = Lab::new()?;
    forward(&lab.host)?;
    lab.host.ip(&format!(
        "tuntap add dev tun0 mode tun user {OWNER} multi_queue\n\
         link set tun0 addrgenmode none\nlink set tun0 up\n"
    ))?;
    // As on most hosts, anybody may open it.
    let node = lab.file("node");
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&node, SFlag::S_IFCHR, mode, makedev(10, 200))?;
    fs::set_permissions(&node, Permissions::from_mode(0o666))?;
    let node = node.to_str().unwrap_or_default();
    let policy = approving("user = 0");
    let agent = lab.agent().policy(&policy).uplink("auto").start()?;
    let mut left = Vec::new();
    for how in [&["--alone"][..], &[]] {
        let before = lab.link_to(&lab.peer)?;
        let to = at(places::PEER, 9);
        let words = ["tun-lent", "tun0", "192.0.2.150:4001", &to, OWNER, node];
        let mut program = lab.program(TRAFFIC)?.args(words).args(how).start()?;
        program.line()?;
        program.proceed()?;
        program.finish()?.success()?;
        left.push(lab.link_to(&lab.peer)?.since(before).tx_packets);
    }
    all_of(agent, &lab)?;
    lab.close()?;
    ensure!(left == [0, 0], "{left:?} packets left");
    Ok(())
}
