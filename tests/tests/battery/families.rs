//! Sockets of families that no hook judges.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::battery::{Grade, Grades, Table};
use trefoil_lab::program::Program;
use trefoil_lab::wiring::container;
use trefoil_lab::{Lab, Record};

use crate::stage::{USER, policy};
use crate::world::{TRAFFIC, lacks_hook};

/// Attribution where [`OPENING`] is not seen.
const INFERRED: &str = "inferred";

const AF_VSOCK: &str = "40";

/// Sees who opens a socket, where the kernel lets programs watch its functions. Elsewhere it is
/// looked for with each heartbeat.
const OPENING: &str = "security_socket_post_create";

#[test]
fn row_43_sockets_to_the_hypervisor() -> Result<()> {
    let table = Table::of_the_project()?;
    let of_a_user = opened(|lab| {
        let unit = lab.unit("sending.service")?;
        Program::new(TRAFFIC, &lab.host, Some(&unit), Some(USER))
    })?;
    table.hold("43a", &of_a_user)?;
    let of_a_container = opened(|lab| {
        let place = container(&lab.host, "container", 21)?.place;
        let unit = lab.unit("sending.service")?;
        Program::new(TRAFFIC, &place, Some(&unit), None)
    })?;
    table.hold("43b", &of_a_container)?;
    let of_root = opened(|lab| {
        let unit = lab.unit("sending.service")?;
        Program::new(TRAFFIC, &lab.host, Some(&unit), None)
    })?;
    table.hold("43e", &of_root)
}

/// Opens a socket, in enforce mode. It counts as seen if its opening is told, and as blocked if
/// it could not be opened.
fn opened(program: impl FnOnce(&Lab) -> Result<Program>) -> Result<Grades> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&policy(true));
    let agent = agent.settings("heartbeat_interval = \"1s\"\n");
    let mut agent = agent.uplink("auto").start()?;
    let program = program(&lab)?;
    let privilege = program.privilege();
    let mut opener = program.args(["family", AF_VSOCK, "--wait"]).start()?;
    let said = Record::parse(&opener.line()?)?;
    let record = agent.wait_for("the socket is told", |records| {
        let is_it = |record: &&Record| record.is("subject", "a socket of AF_VSOCK");
        records.iter().find(is_it).cloned()
    });
    let told = record.as_ref().ok();
    // The table is about kernels of the first kind.
    let known = match lacks_hook(&mut agent, OPENING)? {
        true => INFERRED,
        false => "direct",
    };
    let is_named = told.is_some_and(|record| {
        record.is("pid", opener.pid())
            && record.is("exe", TRAFFIC)
            && record.is("unit", "sending.service")
            && record.is("attribution", known)
    });
    let is_refused = said.text("error") == "EPERM";
    println!("{said} {record:?}");
    agent.stop(Signal::SIGTERM)?;
    drop(opener);
    detach(&lab)?;
    lab.close().context("close the lab")?;
    let yes_if = |is: bool| if is { Grade::Yes } else { Grade::No };
    Ok(Grades {
        privilege,
        seen: yes_if(told.is_some()),
        owned: if is_named { Grade::Part } else { Grade::No },
        attribution: INFERRED.to_owned(),
        blocked: yes_if(is_refused),
        foretold: Grade::Without,
    })
}
