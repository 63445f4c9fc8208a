//! Senders that look like another one, or that were another one when they connected.

use std::fs;

use anyhow::{Context, Result};
use trefoil_lab::Lab;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::Program;

use crate::lists::a_router_and_a_container;
use crate::round::go;
use crate::stage::{Furniture, Stage, USER, way};
use crate::world::{TRAFFIC, other_root, told};

/// A program that may send where nobody else may, below the lab's directory.
const MAY: &str = "good/program";
/// A name that a user has given the same file.
const LINKED: &str = "home/program";
/// A root directory in which another program is where that one is.
const ROOT: &str = "root";

/// A container that the far end has a route to.
fn a_container_with_answers(lab: &Lab) -> Result<Furniture> {
    let furniture = a_router_and_a_container(lab)?;
    lab.foreign
        .ip("route add 192.0.2.121 via 192.0.2.1 dev to-host onlink\n")?;
    Ok(furniture)
}

fn a_program_that_may(lab: &Lab) -> Result<Furniture> {
    let mut furniture = a_container_with_answers(lab)?;
    let program = lab.copy_program(TRAFFIC, MAY)?;
    other_root(lab, ROOT, &program)?;
    fs::create_dir(lab.file("home"))?;
    fs::hard_link(&program, lab.file(LINKED))?;
    furniture.policy = format!(
        "[[rules]]\n\
         name = \"one program may, and no other\"\n\
         from = {{ exe = {program:?} }}\n\
         to = {{ networks = [\"203.0.113.0/24\", \"2001:db8:3::/48\"] }}\n\
         verdict = \"approve\"\n"
    );
    Ok(furniture)
}

/// Owner of the program that sends.
#[derive(Clone, Copy)]
enum By {
    User,
    Container,
    Root,
}

fn program(stage: &Stage<'_>, by: By, path: &str) -> Result<Program> {
    let in_unit = |place: &Namespace, uid| {
        let unit = stage.lab.unit("sending.service")?;
        Program::new(path, place, Some(&unit), uid)
    };
    match by {
        By::User => in_unit(&stage.lab.host, Some(USER)),
        By::Container => in_unit(stage.place.context("no container")?, None),
        By::Root => in_unit(&stage.lab.host, None),
    }
}

/// The one that may sends, and it arrives.
fn the_one_that_may_sends(stage: &mut Stage<'_>, by: By) -> Result<()> {
    let path = stage.lab.file(MAY);
    let to = stage.udp();
    let sent = program(stage, by, &path.to_string_lossy())?
        .args(["udp", &to])
        .run()?;
    let sent = told(&sent.success()?)?.pop().context("it said nothing")?;
    stage.bystanders.insert(sent.number("pid")? as u32);
    stage.let_by(sent.number("bytes")?)
}

fn forged(stage: &mut Stage<'_>, by: By, how: &str) -> Result<()> {
    the_one_that_may_sends(stage, by)?;
    let (path, root) = (stage.lab.file(MAY), stage.lab.file(ROOT));
    let (path, root, to) = (path.to_string_lossy(), root.to_string_lossy(), stage.tcp());
    let program = program(stage, by, TRAFFIC)?;
    let arguments = ["forge", how, &path, &root, &to, "--bytes", "500"];
    stage.run_program(program, &arguments)
}

#[test]
fn row_34_programs_at_the_path_of_another() -> Result<()> {
    let ways = [
        way("34a", |stage| forged(stage, By::User, "bound")),
        way("34b", |stage| forged(stage, By::User, "bound-gone")),
        way("34c", |stage| forged(stage, By::User, "bound-inside")),
        way("34d", |stage| forged(stage, By::User, "tree")),
        way("34e", |stage| forged(stage, By::User, "pivoted")),
        way("34f", |stage| forged(stage, By::User, "root")),
        way("34g", |stage| forged(stage, By::User, "memory")),
        way("34h", |stage| {
            the_one_that_may_sends(stage, By::User)?;
            let (path, to) = (stage.lab.file(LINKED), stage.udp());
            let program = program(stage, By::User, &path.to_string_lossy())?;
            stage.run_program(program, &["udp", &to])
        }),
        way("34i", |stage| {
            the_one_that_may_sends(stage, By::User)?;
            let (path, to) = (stage.lab.file(MAY), stage.udp());
            let program = program(stage, By::User, LOADER)?;
            stage.run_program(program, &[&path.to_string_lossy(), "udp", &to])
        }),
        way("34j", |stage| forged(stage, By::Container, "bound")),
        way("34k", |stage| forged(stage, By::Container, "pivoted")),
        way("34l", |stage| forged(stage, By::Container, "tree")),
    ];
    go(&ways, "", a_program_that_may)
}

/// Runs a program that is named to it.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// In one call.
const BYTES: u64 = 20_000;

/// A connection of the one that may, which is another sender when it sends, once it has said
/// hello or before it has said anything.
fn turned(stage: &mut Stage<'_>, program: Program, how: &[&str]) -> Result<()> {
    let (is_datagram, is_silent) = (how.contains(&"--datagrams"), how.contains(&"--silent"));
    let to = if is_datagram {
        stage.udp()
    } else {
        stage.tcp()
    };
    let bytes = if is_datagram { 1000 } else { BYTES };
    stage.privilege = program.privilege();
    let mut sender = program
        .args(["become", &to, "--hold", "--bytes", &bytes.to_string()])
        .args(how)
        .start()?;
    sender.line()?;
    // All that was sent so far is approved: by TCP two packets for the connection, the first of
    // which is shorter than this, and the one with hello.
    let connected = if is_datagram { 0 } else { 88 };
    let hello = if is_silent { 0 } else { 32 };
    stage.let_by(connected + hello)?;
    sender.proceed()?;
    let outcome = sender.finish()?;
    stage.note(outcome)
}

fn executes(stage: &mut Stage<'_>, by: By, how: &[&str]) -> Result<()> {
    let path = stage.lab.file(MAY).to_string_lossy().into_owned();
    let program = program(stage, by, &path)?;
    stage.was = Some(("exe", path));
    turned(stage, program, &[&["--program", TRAFFIC], how].concat())
}

#[test]
fn row_37_another_program_sends_the_first_bytes() -> Result<()> {
    let ways = [
        way("37a", |stage| executes(stage, By::User, &[])),
        way("37b", |stage| executes(stage, By::User, &["--silent"])),
        way("37c", |stage| executes(stage, By::User, &["--datagrams"])),
        way("37d", |stage| {
            executes(stage, By::User, &["--datagrams", "--silent"])
        }),
        way("37e", |stage| executes(stage, By::Container, &[])),
        way("37f", |stage| executes(stage, By::Container, &["--silent"])),
        way("37g", |stage| {
            executes(stage, By::Container, &["--datagrams", "--silent"])
        }),
        way("37h", |stage| executes(stage, By::Root, &["--silent"])),
    ];
    go(&ways, "", a_program_that_may)
}

/// Root of the host and root of a container may send, in one unit.
fn root_may(lab: &Lab) -> Result<Furniture> {
    let mut furniture = a_container_with_answers(lab)?;
    for user in [0, 200_000] {
        furniture.policy += &format!(
            "[[rules]]\n\
             name = \"user {user} may in one service, and no other\"\n\
             from = {{ unit = \"sending.service\", user = {user}, group = {user} }}\n\
             to = {{ networks = [\"203.0.113.0/24\", \"2001:db8:3::/48\"] }}\n\
             verdict = \"approve\"\n"
        );
    }
    Ok(furniture)
}

fn changes(stage: &mut Stage<'_>, by: By, how: &[&str]) -> Result<()> {
    let program = program(stage, by, TRAFFIC)?;
    let root = match by {
        By::Container => "200000",
        By::User | By::Root => "0",
    };
    let was = match how.first() {
        Some(&"--uid") => ("uid", root),
        Some(&"--gid") => ("gid", root),
        _ => ("unit", "sending.service"),
    };
    stage.was = Some((was.0, was.1.to_owned()));
    turned(stage, program, how)
}

fn moves(stage: &mut Stage<'_>, how: &[&str]) -> Result<()> {
    let unit = stage.lab.unit("other.service")?;
    changes(
        stage,
        By::Root,
        &[&["--cgroup", &unit.to_string_lossy()], how].concat(),
    )
}

#[test]
fn row_37_who_has_connected_is_another_when_it_sends() -> Result<()> {
    let ways = [
        way("37i", |stage| changes(stage, By::Root, &["--uid", "65534"])),
        way("37j", |stage| changes(stage, By::Root, &["--gid", "65534"])),
        way("37k", |stage| moves(stage, &[])),
        way("37l", |stage| {
            changes(stage, By::Root, &["--uid", "65534", "--silent"])
        }),
        way("37m", |stage| moves(stage, &["--silent"])),
        way("37n", |stage| {
            changes(stage, By::Root, &["--uid", "65534", "--datagrams"])
        }),
        way("37o", |stage| moves(stage, &["--datagrams"])),
        way("37p", |stage| {
            changes(stage, By::Container, &["--uid", "65534"])
        }),
        way("37q", |stage| {
            changes(stage, By::Container, &["--uid", "65534", "--datagrams"])
        }),
    ];
    go(&ways, "", root_may)
}
