//! Senders of whom something is not known, and tables that a user can fill so that nothing is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use trefoil_lab::Lab;
use trefoil_lab::namespace::Namespace;
use trefoil_lab::places::HOST;
use trefoil_lab::program::Program;
use trefoil_lab::wiring::far_link_address;

use crate::lists::{CONTAINERS, a_router_and_a_container};
use crate::round::go;
use crate::stage::{Furniture, LINK, Stage, USER, way};
use crate::world::books::FOREIGN_LINK;
use crate::world::{TRAFFIC, at, told};

/// The service that may not send, and what is below it.
const DENIED: &str = "denied.service";
/// Where the program is that may not send, below the lab's directory.
const PROGRAMS: &str = "denied";

/// Everybody may send but one service and one program.
fn one_is_denied(lab: &Lab) -> Result<Furniture> {
    let mut furniture = a_router_and_a_container(lab)?;
    let programs = lab.file(PROGRAMS).join("**");
    furniture.policy = format!(
        "[[rules]]\n\
         name = \"one service may not\"\n\
         from = {{ unit = {DENIED:?} }}\n\
         to = {{ networks = [\"203.0.113.0/24\"] }}\n\
         verdict = \"deny\"\n\
         [[rules]]\n\
         name = \"one program may not\"\n\
         from = {{ exe = {programs:?} }}\n\
         to = {{ networks = [\"203.0.113.0/24\"] }}\n\
         verdict = \"deny\"\n\
         [[rules]]\n\
         name = \"everybody else may\"\n\
         to = {{ networks = [\"203.0.113.0/24\"] }}\n\
         verdict = \"approve\"\n"
    );
    Ok(furniture)
}

/// The same, and a table gets full, as this counter tells.
fn with_a_full_table(lab: &Lab, counter: &'static str) -> Result<Furniture> {
    Ok(Furniture {
        fills: Some(counter),
        ..one_is_denied(lab)?
    })
}

/// A user of whom no test makes more than there is room for: rows run side by side, and what one
/// user makes anywhere takes his room in all of their tables.
const BYSTANDER: u32 = 65_533;

/// Somebody else sends, and it arrives.
fn another_sends(stage: &mut Stage<'_>) -> Result<()> {
    let unit = stage.lab.unit("other.service")?;
    let to = stage.udp();
    let sent = Program::new(TRAFFIC, &stage.lab.host, Some(&unit), Some(BYSTANDER))?
        .args(["udp", &to])
        .run()?;
    let sent = told(&sent.success()?)?.pop().context("it said nothing")?;
    stage.bystanders.insert(sent.number("pid")? as u32);
    stage.let_by(sent.number("bytes")?)
}

/// A name that no control group had before in this lab.
fn new_name(stage: &Stage<'_>, name: &str) -> String {
    let mode = if stage.enforced { "enforced" } else { "report" };
    format!("{name}-{mode}")
}

/// A control group below the service's whose path is longer than what is kept of one.
fn deep(stage: &Stage<'_>) -> Result<PathBuf> {
    let long = "x".repeat(200);
    stage.lab.unit(&format!("{DENIED}/{long}/{long}/{long}"))
}

fn send_from(stage: &mut Stage<'_>, unit: &str, by: By) -> Result<()> {
    let unit = stage.lab.unit(unit)?;
    let to = stage.udp();
    stage.run_program(by.program(stage, TRAFFIC, &unit)?, &["udp", &to])
}

/// Owner of the program that sends.
#[derive(Clone, Copy)]
enum By {
    User,
    Container,
    Root,
}

impl By {
    fn program(self, stage: &Stage<'_>, path: &str, unit: &Path) -> Result<Program> {
        let place: &Namespace = match self {
            Self::User | Self::Root => &stage.lab.host,
            Self::Container => stage.place.context("no container")?,
        };
        let user = matches!(self, Self::User).then_some(USER);
        Program::new(path, place, Some(unit), user)
    }
}

#[test]
fn row_35_control_groups_and_programs_whose_paths_are_too_long() -> Result<()> {
    let ways = [
        way("35a", |stage| {
            another_sends(stage)?;
            let (unit, to) = (deep(stage)?, stage.udp());
            let program = By::User.program(stage, TRAFFIC, &unit)?;
            stage.run_program(program, &["udp", &to])
        }),
        way("35b", |stage| {
            another_sends(stage)?;
            let (unit, to) = (deep(stage)?, stage.udp());
            let program = By::Container.program(stage, TRAFFIC, &unit)?;
            stage.run_program(program, &["udp", &to])
        }),
        way("35c", |stage| {
            another_sends(stage)?;
            let (unit, to, from) = (deep(stage)?, stage.udp(), at(HOST, 4000));
            let program = Program::new(TRAFFIC, &stage.lab.host, Some(&unit), None)?;
            let far = far_link_address(FOREIGN_LINK);
            stage.run_program(program, &["packet", LINK, &far, &to, "--from", &from])
        }),
        way("35d", |stage| {
            another_sends(stage)?;
            let (unit, to) = (deep(stage)?, stage.udp());
            let program = By::Container.program(stage, TRAFFIC, &unit)?;
            let from = "192.0.2.121:4000";
            let arguments = ["packet", "to-host", CONTAINERS, &to, "--from", from];
            stage.run_program(program, &arguments)
        }),
        way("35e", |stage| {
            another_sends(stage)?;
            let long = "x".repeat(200);
            let path = format!("{PROGRAMS}/{long}/{long}/program");
            let path = stage.lab.copy_program(TRAFFIC, &path)?;
            let (unit, to) = (stage.lab.unit("other.service")?, stage.udp());
            let program = By::User.program(stage, &path.to_string_lossy(), &unit)?;
            stage.run_program(program, &["udp", &to])
        }),
    ];
    go(&ways, "", one_is_denied)
}

/// More than there is room for, and fewer than make a test slow.
const ROOM: usize = 256;
const MORE: usize = ROOM + 100;

/// Makes more control groups than there is room for, and hands them to be removed.
fn many_groups(stage: &Stage<'_>) -> Result<Vec<PathBuf>> {
    let name = new_name(stage, "many");
    (0..MORE)
        .map(|number| stage.lab.unit(&format!("{name}-{number}.service")))
        .collect()
}

fn remove(groups: Vec<PathBuf>) -> Result<()> {
    groups.into_iter().try_for_each(|group| {
        fs::remove_dir(&group).with_context(|| format!("remove {}", group.display()))
    })
}

#[test]
fn row_35_control_groups_that_were_made_without_room() -> Result<()> {
    let ways = [
        way("35f", |stage| {
            another_sends(stage)?;
            let groups = many_groups(stage)?;
            let unit = format!("{DENIED}/{}", new_name(stage, "late"));
            send_from(stage, &unit, By::User)?;
            remove(groups)
        }),
        way("35g", |stage| {
            another_sends(stage)?;
            let groups = many_groups(stage)?;
            let unit = format!("{DENIED}/{}", new_name(stage, "later"));
            send_from(stage, &unit, By::Container)?;
            remove(groups)
        }),
    ];
    let settings = format!("[tables]\ncgroups = {ROOM}\n");
    go(&ways, &settings, |lab| {
        with_a_full_table(lab, "cgroups-full")
    })
}

#[test]
fn row_36_control_groups_that_are_gone_and_take_room() -> Result<()> {
    let ways = [
        way("36a", |stage| {
            another_sends(stage)?;
            remove(many_groups(stage)?)?;
            let unit = format!("{DENIED}/{}", new_name(stage, "late"));
            send_from(stage, &unit, By::User)
        }),
        way("36b", |stage| {
            another_sends(stage)?;
            remove(many_groups(stage)?)?;
            let unit = format!("{DENIED}/{}", new_name(stage, "later"));
            send_from(stage, &unit, By::Container)
        }),
        way("36g", |stage| {
            another_sends(stage)?;
            remove(many_groups(stage)?)?;
            let unit = format!("{DENIED}/{}", new_name(stage, "latest"));
            send_from(stage, &unit, By::Root)
        }),
    ];
    let settings = format!("[tables]\ncgroups = {ROOM}\n");
    go(&ways, &settings, |lab| {
        with_a_full_table(lab, "cgroups-full")
    })
}

/// A user executes more programs than there is room for, each for a moment.
fn execute_many(stage: &Stage<'_>, by: By) -> Result<()> {
    let directory = new_name(stage, "many");
    let unit = stage.lab.unit("other.service")?;
    for number in 0..MORE {
        let path = format!("{directory}/{number}");
        let path = stage.lab.copy_program("/bin/true", &path)?;
        let ended = by.program(stage, &path.to_string_lossy(), &unit)?.run()?;
        ensure!(ended.code == 0, "{ended:?}");
    }
    Ok(())
}

/// The program that may not send, executed for the first time.
fn send_by_new_program(stage: &mut Stage<'_>, by: By) -> Result<()> {
    another_sends(stage)?;
    execute_many(stage, by)?;
    let path = format!("{PROGRAMS}/{}", new_name(stage, "program"));
    let path = stage.lab.copy_program(TRAFFIC, &path)?;
    let (unit, to) = (stage.lab.unit("other.service")?, stage.udp());
    let program = by.program(stage, &path.to_string_lossy(), &unit)?;
    stage.run_program(program, &["udp", &to])
}

#[test]
fn row_36_executables_that_take_room() -> Result<()> {
    let ways = [way("36c", |stage| send_by_new_program(stage, By::User))];
    let settings = format!("[tables]\nexecutables = {ROOM}\n");
    go(&ways, &settings, |lab| {
        with_a_full_table(lab, "executables-full")
    })
}

#[test]
fn row_36_executables_of_a_container_that_take_room() -> Result<()> {
    let ways = [way("36d", |stage| {
        send_by_new_program(stage, By::Container)
    })];
    let settings = format!("[tables]\nexecutables = {ROOM}\n");
    go(&ways, &settings, |lab| {
        with_a_full_table(lab, "executables-full")
    })
}

/// Of a denied program while a user has more processes than there is room for.
fn send_among_many(stage: &mut Stage<'_>, by: By) -> Result<()> {
    another_sends(stage)?;
    let unit = stage.lab.unit("other.service")?;
    for _ in 0..MORE {
        let idle = by.program(stage, "/bin/sleep", &unit)?;
        stage.running.push(idle.args(["600"]).start()?);
    }
    let path = format!("{PROGRAMS}/{}", new_name(stage, "program"));
    let path = stage.lab.copy_program(TRAFFIC, &path)?;
    let to = stage.udp();
    let program = by.program(stage, &path.to_string_lossy(), &unit)?;
    stage.run_program(program, &["udp", &to])
}

#[test]
fn row_36_processes_that_take_room() -> Result<()> {
    let ways = [
        way("36e", |stage| send_among_many(stage, By::User)),
        way("36f", |stage| send_among_many(stage, By::Container)),
    ];
    let settings = format!("[tables]\nprocesses = {ROOM}\n");
    go(&ways, &settings, |lab| {
        with_a_full_table(lab, "processes-full")
    })
}
