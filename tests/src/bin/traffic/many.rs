//! Many processes, each of which sends once and is gone.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, connect};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdout, execv};

use crate::arguments::Arguments;
use crate::tcp;
use crate::udp::family;
use crate::{Answer, Failure, Named, exit_code};

/// clone3(2): the child begins its life in the control group of `cgroup`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn from_port(first: u16, number: u32) -> Result<u16, Failure> {
    u16::try_from(u32::from(first) + number)
        .map_err(|_| Failure::Usage("too many for the ports above --from".into()))
}

/// `traffic burst`
pub fn burst(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let count: u32 = arguments.option("--count")?.unwrap_or(1);
    let from: u16 = arguments.option("--from")?.unwrap_or(10000);
    let parallel: usize = arguments.option("--parallel")?.unwrap_or(4);
    let size: u32 = arguments.option("--size")?.unwrap_or(64);
    let programs = arguments.options("--program")?;
    arguments.done()?;
    if programs.is_empty() {
        return Err(Failure::Usage("--program is missing".into()));
    }
    let mut running: VecDeque<(Child, u16, &str)> = VecDeque::new();
    for (number, program) in (0..count).zip(programs.iter().cycle()) {
        if running.len() >= parallel {
            reap(&mut running)?;
        }
        let port = from_port(from, number)?;
        let child = Command::new(program)
            .args(["udp", &peer.to_string(), "--from", &port.to_string()])
            .args(["--size", &size.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .named("spawn")?;
        running.push_back((child, port, program));
    }
    while !running.is_empty() {
        reap(&mut running)?;
    }
    Ok(())
}

fn reap(running: &mut VecDeque<(Child, u16, &str)>) -> Answer {
    let Some((mut child, port, program)) = running.pop_front() else {
        return Ok(());
    };
    let status = child.wait().named("wait")?;
    tell(child.id(), port, program, "", status.code().unwrap_or(-1));
    Ok(())
}

fn tell(pid: u32, port: u16, program: &str, unit: &str, code: i32) {
    println!(
        "{{\"pid\":{pid},\"port\":{port},\"exe\":\"{program}\",\"unit\":\"{unit}\",\"code\":{code}}}"
    );
}

/// `traffic units`
pub fn units(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let count: u32 = arguments.option("--count")?.unwrap_or(1);
    let from: u16 = arguments.option("--from")?.unwrap_or(10000);
    let root: Option<PathBuf> = arguments.option("--root")?;
    let templates = arguments.options("--unit")?;
    let programs = arguments.options("--program")?;
    arguments.done()?;
    let (Some(root), false) = (root, templates.is_empty()) else {
        return Err(Failure::Usage("--root and --unit are needed".into()));
    };
    let silence = File::options()
        .write(true)
        .open("/dev/null")
        .named("open")?;
    for (number, template) in (0..count).zip(templates.iter().cycle()) {
        let unit = template.replace('%', &number.to_string());
        let program = programs.get(number as usize % programs.len().max(1));
        let port = from_port(from, number)?;
        let directory = root.join(&unit);
        // Everything that can be done before the control group exists is.
        let exec = match program {
            Some(program) => Some(command_line(program, peer, port)?),
            None => None,
        };
        std::fs::create_dir(&directory).named("mkdir")?;
        let cgroup = File::open(&directory).named("open")?;
        let pid = match clone_into(&cgroup)? {
            Some(child) => child,
            None => first_act(peer, port, exec.as_deref(), &silence),
        };
        let code = match waitpid(pid, None).named("wait")? {
            WaitStatus::Exited(_, code) => code,
            _ => -1,
        };
        std::fs::remove_dir(&directory).named("rmdir")?;
        let own = std::env::current_exe().unwrap_or_default();
        let own = own.to_string_lossy();
        let exe = program.map_or(own.as_ref(), String::as_str);
        tell(pid.as_raw() as u32, port, exe, &unit, code);
    }
    Ok(())
}

fn command_line(program: &str, peer: SocketAddr, port: u16) -> Result<Vec<CString>, Failure> {
    [
        program,
        "tcp",
        &peer.to_string(),
        "--from",
        &port.to_string(),
    ]
    .iter()
    .map(|word| CString::new(*word).map_err(|_| Failure::Usage("a word has a NUL".into())))
    .collect()
}

/// fork(2) into a control group. `None` in the child.
fn clone_into(cgroup: &File) -> Result<Option<Pid>, Failure> {
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: as fork(2): memory is copied, and this program has one thread.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = Errno::result(pid).named("clone3")?;
    Ok((pid != 0).then(|| Pid::from_raw(pid as i32)))
}

/// Acts as the first process of a control group: connects, or becomes a program
/// that connects.
fn first_act(peer: SocketAddr, port: u16, exec: Option<&[CString]>, silence: &File) -> ! {
    // Its parent tells what became of it.
    let _ = dup2_stdout(silence);
    let code = match exec {
        Some(words) => match words.first().map(|program| execv(program, words)) {
            Some(Err(errno)) => exit_code(errno),
            _ => exit_code(Errno::EINVAL),
        },
        None => match connect_once(peer, port) {
            Ok(()) => 0,
            Err(Failure::Call(_, errno)) => exit_code(errno),
            Err(Failure::Usage(_)) => 2,
        },
    };
    // SAFETY: ends the process; nothing of the parent's is run or flushed twice.
    unsafe { libc::_exit(code.into()) }
}

fn connect_once(peer: SocketAddr, port: u16) -> Answer {
    let socket = tcp::open(family(peer.ip()), Some(port))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)).named("connect")
}
