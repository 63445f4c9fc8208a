//! Sockets of other families than IP.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::arguments::Arguments;
use crate::{Answer, Named, Sent};

/// `traffic family`
pub fn open(arguments: &mut Arguments) -> Answer {
    let family: i32 = arguments.value("the number of a family")?;
    let waits = arguments.flag("--wait");
    arguments.done()?;
    // SAFETY: socket(2) with numbers reads no memory.
    let socket = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = Errno::result(socket).named("socket")?;
    // SAFETY: the descriptor is new and nobody else's.
    let _socket = unsafe { OwnedFd::from_raw_fd(socket) };
    Sent::default().tell();
    if waits {
        let _ = std::io::stdin().read_line(&mut String::new());
    }
    Ok(())
}
