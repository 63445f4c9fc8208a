//! Options of sockets that are longer than they need be.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::{Answer, Named, Sent};

/// `traffic option`
pub fn set(arguments: &mut Arguments) -> Answer {
    let bytes: usize = arguments.value("a number of bytes")?;
    arguments.done()?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).named("socket")?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &vec![1; bytes])?;
    Sent::default().tell();
    Ok(())
}
