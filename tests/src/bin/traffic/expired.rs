//! Connections that a timer of the kernel ends.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockaddrStorage, connect, listen, send, setsockopt,
    shutdown, sockopt,
};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::{Answer, Named, Sent, tcp};

fn on_processor(number: usize) -> Answer {
    let mut set = nix::sched::CpuSet::new();
    set.set(number).named("set")?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).named("sched_setaffinity")
}

/// `traffic expire`: connections that the kernel ends by a timer, since the far end does not read; unless it is
/// --quiet, threads on the same processor have sockets listen and not listen meanwhile.
pub fn expire(arguments: &mut Arguments) -> Answer {
    let peer: SocketAddr = arguments.value("ADDR:PORT")?;
    let count: usize = arguments.option("--count")?.unwrap_or(50);
    let rounds: usize = arguments.option("--rounds")?.unwrap_or(1);
    let quiet = arguments.flag("--quiet");
    arguments.done()?;
    on_processor(0)?;
    if !quiet {
        for _ in 0..4 {
            let spinner = tcp::open(AddressFamily::Inet, None)?;
            thread::spawn(move || {
                // Without a name, who listens is learned anew each time.
                // SAFETY: a call that reads an empty string.
                unsafe { libc::prctl(libc::PR_SET_NAME, c"".as_ptr()) };
                loop {
                    let _ = listen(&spinner, Backlog::MAXCONN);
                    let _ = shutdown(spinner.as_raw_fd(), Shutdown::Both);
                }
            });
        }
    }
    for _ in 0..rounds {
        one_round(peer, count)?;
    }
    std::process::exit(0);
}

fn one_round(peer: SocketAddr, count: usize) -> Answer {
    const TCP_USER_TIMEOUT: i32 = 18;
    let block = vec![7_u8; 1 << 14];
    let mut all = Vec::new();
    let (mut bytes, mut ports) = (0, 0);
    for _ in 0..count {
        let one = tcp::open(AddressFamily::Inet, None)?;
        set_option(
            &one,
            libc::IPPROTO_TCP,
            TCP_USER_TIMEOUT,
            &150_i32.to_ne_bytes(),
        )?;
        // On a busy machine the far end may be late.
        if connect(one.as_raw_fd(), &SockaddrStorage::from(peer)).is_err() {
            continue;
        }
        setsockopt(&one, sockopt::SndBuf, &(1 << 18)).named("setsockopt")?;
        while let Ok(sent) = send(
            one.as_raw_fd(),
            &block,
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        ) {
            bytes += sent as u64;
        }
        ports += 1;
        all.push(one);
    }
    // The kernel ends them meanwhile.
    let until = Instant::now() + Duration::from_secs(5);
    for one in &all {
        let mut polled = [PollFd::new(one.as_fd(), PollFlags::empty())];
        let left = until.saturating_duration_since(Instant::now()).as_millis() as u16;
        poll(&mut polled, PollTimeout::from(left)).named("poll")?;
    }
    Sent {
        port: 0,
        packets: ports,
        bytes,
    }
    .tell();
    Ok(())
}
