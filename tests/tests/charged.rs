//! Room in tables is charged to the user who causes an entry, whatever his programs become.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::{Agent, Lab, fill};

const USER: u32 = 65534;
/// An eighth of it is for one user.
const SETTINGS: &str = "[tables]\nprocesses = 1024\n";
const ROOM: u64 = 128;

fn n_processes(agent: &Agent<'_>) -> Result<u64> {
    let entries = fill::entries(agent.objects())?;
    entries.get("PROCESSES").copied().context("no such table")
}

/// One with the set-user-ID bit acts as root, and is still its user's: his delegated group may have
/// processes of root's without end otherwise.
#[test]
fn setuid_programs_take_the_room_of_who_starts_them() -> Result<()> {
    /// More than his room, and less than the table.
    const N_PROCESSES: u64 = 4 * ROOM;
    let lab = Lab::new()?;
    let agent = lab.agent().settings(SETTINGS).start()?;
    let sleep = lab.copy_program("/bin/sleep", "setuid/sleep")?;
    fs::set_permissions(&sleep, Permissions::from_mode(0o4755))?;
    let before = n_processes(&agent)?;
    let script = format!(
        "for i in $(seq {N_PROCESSES}); do {} 120 & done\n\
         until grep -q '^Uid:[[:space:]]{USER}[[:space:]]0' /proc/$!/status; do :; done\n\
         echo; read line; kill $(jobs -p)",
        sleep.display()
    );
    let shell = lab.program_as(USER, "/bin/bash")?;
    let mut shell = shell.args(["-c", script.as_str()]).start()?;
    shell.line()?;
    let more = n_processes(&agent)?.saturating_sub(before);
    // Others on this machine begin processes meanwhile.
    ensure!((1..2 * ROOM).contains(&more), "{more} entries more");
    shell.finish()?;
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
