//! Past the sockets of IP: straight to a link, from other namespaces, through the host,
//! through tunnels.

use anyhow::{Context, Result, ensure};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::Program;
use trefoil_lab::wiring::{far_link_address, forward};
use trefoil_lab::{Lab, places};

use crate::round::go;
use crate::stage::{Furniture, LINK, Stage, UDP_PORT, Way, nothing, way};
use crate::world::books::FOREIGN_LINK;
use crate::world::{TRAFFIC, at, traffic, traffic_in};

/// Frames of a packet socket.
pub fn frame(stage: &mut Stage<'_>, more: &[&str]) -> Result<()> {
    let (from, to) = (at(places::HOST, 4000), stage.udp());
    let far = far_link_address(FOREIGN_LINK);
    let mut arguments = vec!["packet", LINK, &far, &to, "--from", &from];
    arguments.extend(more);
    stage.run(&arguments)
}

#[test]
fn row_8_packet_socket() -> Result<()> {
    go(&[way("8a", |stage| frame(stage, &[]))], "", nothing)
}

#[test]
fn row_9_packet_socket_past_the_queue() -> Result<()> {
    let send = |stage: &mut Stage<'_>| frame(stage, &["--bypass-qdisc"]);
    go(&[way("9a", send)], "", nothing)
}

/// A container that is routed through the host.
pub fn container(lab: &Lab) -> Result<Furniture> {
    let container = Namespace::new("container")?;
    forward(&lab.host)?;
    lab.host.ip(&format!(
        "link add to-container address 02:00:00:00:01:20 type veth \
             peer name eth0 address 02:00:00:00:02:20 netns {}\n\
         address add 192.0.2.129/30 dev to-container\n\
         link set to-container up\n\
         neighbour add 192.0.2.130 lladdr 02:00:00:00:02:20 dev to-container nud permanent\n",
        container.path()
    ))?;
    container.ip("link set lo up\n\
         address add 192.0.2.130/30 dev eth0\n\
         link set eth0 up\n\
         neighbour add 192.0.2.129 lladdr 02:00:00:00:01:20 dev eth0 nud permanent\n\
         route add default via 192.0.2.129\n")?;
    Ok(container.into())
}

/// A guest that is bridged to the foreign host.
fn guest(lab: &Lab) -> Result<Furniture> {
    let guest = Namespace::new("guest")?;
    lab.host.ip(&format!(
        "link add bridge0 type bridge\n\
         link add to-guest type veth peer name eth0 address 02:00:00:00:01:30 netns {}\n\
         link add to-far type veth peer name eth1 address 02:00:00:00:02:30 netns {}\n\
         link set to-guest master bridge0\n\
         link set to-far master bridge0\n\
         link set bridge0 up\n\
         link set to-guest up\n\
         link set to-far up\n",
        guest.path(),
        lab.foreign.path()
    ))?;
    lab.foreign.ip("link set eth1 up\n")?;
    guest.ip(&format!(
        "link set lo up\n\
         address add 192.0.2.140/32 dev eth0\n\
         link set eth0 up\n\
         neighbour add {far} lladdr 02:00:00:00:02:30 dev eth0 nud permanent\n\
         route add 203.0.113.0/24 via {far} dev eth0 onlink\n",
        far = places::FOREIGN
    ))?;
    Ok(guest.into())
}

/// A program in the place that the row has furnished; in a control group of the host's,
/// or as in a virtual machine, whose processes the host does not see.
fn elsewhere(stage: &Stage<'_>, unit: Option<&str>) -> Result<Program> {
    let place = stage.place.context("no place")?;
    let cgroup = unit.map(|unit| stage.lab.unit(unit)).transpose()?;
    Program::new(TRAFFIC, place, cgroup.as_deref(), None)
}

#[test]
fn row_19_elsewhere_on_the_host() -> Result<()> {
    let ways = [
        way("19a", |stage| {
            let program = elsewhere(stage, Some("container.service"))?;
            let to = stage.udp();
            stage.run_program(program, &["udp", &to])
        }),
        way("19b", |stage| {
            let unit = if stage.enforced { "b" } else { "a" };
            let program = traffic_in(stage.lab, &format!("new-{unit}.service"))?;
            let to = stage.udp();
            stage.run_program(program, &["udp", &to])
        }),
        way("19c", |stage| {
            let unit = if stage.enforced { "b" } else { "a" };
            let program = traffic_in(stage.lab, &format!("deep-{unit}.service/x/y"))?;
            let to = stage.udp();
            stage.run_program(program, &["udp", &to])
        }),
    ];
    go(&ways, "", container)
}

#[test]
fn row_20_routed_through_the_host() -> Result<()> {
    go(&[way("20a", send_one)], "", container)
}

#[test]
fn row_20_bridged_through_the_host() -> Result<()> {
    let way = Way {
        uplink: "to-far",
        ..way("20b", send_one)
    };
    go(&[way], "", guest)
}

fn send_one(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp();
    send_as_a_guest(stage, &["udp", &to])
}

/// Runs `traffic` as if in a virtual machine, in the place that the row has furnished.
pub fn send_as_a_guest(stage: &mut Stage<'_>, arguments: &[&str]) -> Result<()> {
    let program = elsewhere(stage, None)?;
    stage.run_program(program, arguments)?;
    // No process of the host's sent it.
    stage.senders.clear();
    Ok(())
}

#[test]
fn row_21_tunnels() -> Result<()> {
    let ways = [
        way("21a", vxlan),
        way("21b", carried_by_a_process),
        way("21c", out_of_a_tun_device),
    ];
    go(&ways, "", |lab| {
        forward(&lab.host)?;
        Ok(Furniture::default())
    })
}

/// An address of the peer, approved, which a tunnel leads to.
fn inner(stage: &Stage<'_>, number: u8) -> String {
    let number = number + u8::from(stage.enforced);
    format!("198.51.100.{number}")
}

fn vxlan(stage: &mut Stage<'_>) -> Result<()> {
    let inner = inner(stage, 70);
    let name = if stage.enforced { "vx1" } else { "vx0" };
    let id = if stage.enforced { 8 } else { 7 };
    stage.lab.host.ip(&format!(
        "link add {name} type vxlan id {id} remote {} dstport 4789 dev {LINK}\n\
         link set {name} addrgenmode none\n\
         link set {name} up\n\
         neighbour add {inner} lladdr 02:00:00:00:03:01 dev {name} nud permanent\n\
         route add {inner} dev {name} src {}\n",
        stage.v4,
        places::HOST
    ))?;
    stage.run(&["udp", &format!("{inner}:{UDP_PORT}")])
}

fn carried_by_a_process(stage: &mut Stage<'_>) -> Result<()> {
    let inner = inner(stage, 80);
    let to = stage.udp();
    let name = if stage.enforced { "tun1" } else { "tun0" };
    stage.start(&["tun", "carry", name, &to])?;
    stage.lab.host.ip(&format!(
        "link set {name} addrgenmode none\n\
         link set {name} up\n\
         route add {inner} dev {name} src {}\n",
        places::HOST
    ))?;
    let sent = traffic(stage.lab)?
        .args(["udp", &format!("{inner}:{UDP_PORT}")])
        .run()?;
    ensure!(sent.code == 0, "{sent:?}");
    stage.finish_first()
}

fn out_of_a_tun_device(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp();
    let name = if stage.enforced { "tun3" } else { "tun2" };
    let source = "192.0.2.150:4000";
    let injector = stage.start(&["tun", "inject", name, source, &to])?;
    let pid = injector.pid();
    stage.lab.host.ip(&format!(
        "link set {name} addrgenmode none\nlink set {name} up\n"
    ))?;
    let injector = stage.running.last_mut().context("no program")?;
    injector.proceed()?;
    ensure!(injector.pid() == pid, "another program");
    stage.finish_first()
}

#[test]
fn row_23_questions_to_a_resolver() -> Result<()> {
    let send = |stage: &mut Stage<'_>| {
        let to = stage.udp();
        let port = if stage.enforced { "5354" } else { "5353" };
        let resolver = stage.start(&["relay", port, &to])?.pid();
        stage.run(&["udp", &format!("127.0.0.1:{port}")])?;
        // The asker sends nothing outside.
        stage.senders = [resolver].into();
        Ok(())
    };
    go(&[way("23a", send)], "", nothing)
}

#[test]
fn row_24_another_way_to_the_network() -> Result<()> {
    go(&[way("24a", over_a_new_link)], "", nothing)
}

/// A link that did not exist when the agent started, under another name than it began
/// with, to which the route moves.
fn over_a_new_link(stage: &mut Stage<'_>) -> Result<()> {
    let (name, far) = match stage.enforced {
        true => ("new1", "far1"),
        false => ("new0", "far0"),
    };
    let lab = stage.lab;
    lab.host.ip(&format!(
        "link add first type veth peer name {far} address 02:00:00:00:02:40 netns {}\n\
         link set first address 02:00:00:00:01:40 addrgenmode none\n\
         link set first name {name}\n\
         link set {name} up\n\
         neighbour replace {to} lladdr 02:00:00:00:02:40 dev {name} nud permanent\n\
         route replace {to}/32 via {to} dev {name} onlink src {}\n",
        lab.foreign.path(),
        places::HOST,
        to = stage.v4,
    ))?;
    lab.foreign.ip(&format!(
        "link set {far} addrgenmode none\nlink set {far} up\n"
    ))?;
    let to = stage.udp();
    stage.run(&["udp", &to])
}

#[test]
fn row_28_to_another_network_namespace_and_back() -> Result<()> {
    let ways = [
        way("28c", |stage| {
            let container = stage.place.context("no place")?.path();
            let to = stage.udp();
            stage.run(&["move", &container, &to])
        }),
        way("28d", |stage| {
            let program = elsewhere(stage, Some("container.service"))?;
            let (host, to) = (stage.lab.host.path(), stage.udp());
            stage.run_program(program, &["move", &host, &to])
        }),
    ];
    go(&ways, "", container)
}
