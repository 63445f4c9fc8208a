//! Somebody makes more of something than there may be room for.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Uid, fork, pause, setuid};

use crate::arguments::Arguments;
use crate::{Answer, Failure, Named, Sent, told_to_proceed};

/// `traffic storm`
pub fn storm(arguments: &mut Arguments) -> Answer {
    match arguments.word("what of")?.as_str() {
        "groups" => groups(arguments),
        "executables" => executables(arguments),
        "processes" => processes(arguments),
        other => Err(Failure::Usage(format!("no storm of {other:?}"))),
    }
}

/// Control groups, each removed at once.
fn groups(arguments: &mut Arguments) -> Answer {
    let parent = PathBuf::from(arguments.word("a control group")?);
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    arguments.done()?;
    for number in 0..count {
        let group = parent.join(format!("storm-{number}"));
        fs::create_dir(&group).named("mkdir")?;
        fs::remove_dir(&group).named("rmdir")?;
    }
    Ok(())
}

/// Names of one program, each executed once and removed.
fn executables(arguments: &mut Arguments) -> Answer {
    let program = PathBuf::from(arguments.word("a program")?);
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    arguments.done()?;
    for number in 0..count {
        let name = program.with_file_name(format!("storm-{number}"));
        fs::hard_link(&program, &name).named("link")?;
        Command::new(&name).status().named("execute")?;
        fs::remove_file(&name).named("unlink")?;
    }
    Ok(())
}

/// Processes, all alive until its input has a line; in turn of so many users, where it may be any.
fn processes(arguments: &mut Arguments) -> Answer {
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    let users: usize = arguments.option("--users")?.unwrap_or(0);
    arguments.done()?;
    if users != 0 {
        // Whoever reads the line may give this one more users.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).named("unshare")?;
        Sent::default().tell();
        told_to_proceed();
    }
    let (mut ready, mut tells) = std::io::pipe().named("pipe")?;
    let mut children = Vec::new();
    for number in 0..count {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.named("fork")? {
            ForkResult::Parent { child } => children.push(child),
            ForkResult::Child => {
                if users != 0 {
                    let user = Uid::from_raw(1 + (number % users) as u32);
                    let is_another = setuid(user).is_ok();
                    // What it has forked is that user's from the start.
                    // SAFETY: as above.
                    if !matches!(is_another.then(|| unsafe { fork() }), Some(Ok(_))) {
                        std::process::exit(1);
                    }
                }
                // After a change of the user, which would undo it.
                // SAFETY: takes numbers alone.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                tells.write_all(b".").named("write")?;
                loop {
                    pause();
                }
            }
        }
    }
    let n_alive = if users == 0 { count } else { 2 * count };
    ready.read_exact(&mut vec![0; n_alive]).named("read")?;
    Sent::default().tell();
    told_to_proceed();
    for child in children {
        kill(child, Signal::SIGKILL).named("kill")?;
        waitpid(child, None).named("wait")?;
    }
    Ok(())
}
