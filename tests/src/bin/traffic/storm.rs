//! Somebody makes more of something than there may be room for.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
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
        "forks" => forks(arguments),
        "sockets" => sockets(arguments),
        "namespaces" => namespaces(arguments),
        other => Err(Failure::Usage(format!("no storm of {other:?}"))),
    }
}

/// Numbers of rounds: `--count` of them, or with `--until-end` as many as there are until standard
/// input ends.
struct Rounds {
    next: usize,
    end: Option<usize>,
}

impl Rounds {
    fn new(arguments: &mut Arguments) -> Result<Self, Failure> {
        let count: usize = arguments.option("--count")?.unwrap_or(1);
        let end = (!arguments.flag("--until-end")).then_some(count);
        arguments.done()?;
        Ok(Self { next: 0, end })
    }

    /// Tells how many there were.
    fn tell(&self) {
        Sent {
            packets: self.next as u64,
            ..Sent::default()
        }
        .tell();
    }
}

impl Iterator for Rounds {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let input = std::io::stdin();
        let mut input = [PollFd::new(
            std::os::fd::AsFd::as_fd(&input),
            PollFlags::POLLIN,
        )];
        let is_over = match self.end {
            Some(end) => self.next >= end,
            None => poll(&mut input, PollTimeout::ZERO) != Ok(0),
        };
        let number = self.next;
        self.next += usize::from(!is_over);
        (!is_over).then_some(number)
    }
}

/// Runs `act` in a process of its own, and waits for its end.
fn in_a_fork(act: impl FnOnce()) -> Answer {
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        // A user may have as many as his limit says.
        Err(nix::errno::Errno::EAGAIN) => Ok(()),
        Err(error) => Err(error).named("fork"),
        Ok(ForkResult::Parent { child }) => waitpid(child, None).named("wait").map(drop),
        Ok(ForkResult::Child) => {
            act();
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Processes, each gone at once.
fn forks(arguments: &mut Arguments) -> Answer {
    let mut rounds = Rounds::new(arguments)?;
    for _ in &mut rounds {
        in_a_fork(|| {})?;
    }
    rounds.tell();
    Ok(())
}

/// Sockets that send one datagram each, from a port in turn, whatever the kernel says to it.
fn sockets(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let mut rounds = Rounds::new(arguments)?;
    for number in &mut rounds {
        let socket = UdpSocket::bind("0.0.0.0:0").named("bind")?;
        let port = peer.port().wrapping_add((number % 4) as u16);
        let _ = socket.send_to(b"x", (peer.ip(), port));
    }
    rounds.tell();
    Ok(())
}

/// Namespaces of users, networks and mounts, each gone with its process.
fn namespaces(arguments: &mut Arguments) -> Answer {
    let mut rounds = Rounds::new(arguments)?;
    for _ in &mut rounds {
        in_a_fork(|| {
            // As many as the kernel allows at a time.
            let _ = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS);
            let _ = unshare(CloneFlags::CLONE_NEWNET);
        })?;
    }
    rounds.tell();
    Ok(())
}

/// Control groups, each removed at once.
fn groups(arguments: &mut Arguments) -> Answer {
    let parent = PathBuf::from(arguments.word("a control group")?);
    let mut rounds = Rounds::new(arguments)?;
    for number in &mut rounds {
        let group = parent.join(format!("storm-{number}"));
        fs::create_dir(&group).named("mkdir")?;
        fs::remove_dir(&group).named("rmdir")?;
    }
    rounds.tell();
    Ok(())
}

/// Names of one program, each executed once and removed.
fn executables(arguments: &mut Arguments) -> Answer {
    let program = PathBuf::from(arguments.word("a program")?);
    let mut rounds = Rounds::new(arguments)?;
    for number in &mut rounds {
        let name = program.with_file_name(format!("storm-{number}"));
        fs::hard_link(&program, &name).named("link")?;
        Command::new(&name).status().named("execute")?;
        fs::remove_file(&name).named("unlink")?;
    }
    rounds.tell();
    Ok(())
}

/// Processes, all alive until its input has a line; in turn of so many users, where it may be any.
fn processes(arguments: &mut Arguments) -> Answer {
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    let users: usize = arguments.option("--users")?.unwrap_or(0);
    arguments.done()?;
    if users != 0 {
        // Whoever reads the line may give this one more users.
        unshare(CloneFlags::CLONE_NEWUSER).named("unshare")?;
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
                    // The process that it forks is that user's from the start.
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
