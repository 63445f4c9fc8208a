//! A look at every frame of a place, on a thread of its own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use crate::frames;
use crate::namespace::Namespace;

/// Bytes of the link's header.
pub const ETHERNET_HEADER: usize = 14;
const LOOK_ROUND_MS: u16 = 20;
const RECEIVE_BUFFER: usize = 128 << 20;
/// Most bytes of a frame that are looked at.
const BEGINNING: usize = 128;

/// Takes in the beginning of each frame that a place sends or receives, and the frame's length.
#[derive(Debug)]
pub struct Watch<T> {
    socket: Arc<OwnedFd>,
    seen: Arc<Mutex<T>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Default + Send + 'static> Watch<T> {
    /// Begins to look.
    pub fn new(place: &Namespace, take: fn(&mut T, &[u8], usize)) -> Result<Self> {
        let socket = place.enter(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .context("open a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(Arc::new(socket))
        })?;
        let seen = Arc::new(Mutex::new(T::default()));
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, seen, end) = (socket.clone(), seen.clone(), end.clone());
            move || look(&socket, &seen, take, &end)
        });
        Ok(Self {
            socket,
            seen,
            end,
            thread: Some(thread),
        })
    }
}

impl<T> Watch<T> {
    /// Reads the state of all frames that were taken in so far.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of frames that there was no room for, since this was last asked.
    pub fn lost(&self) -> Result<u32> {
        frames::lost(&self.socket).context("ask a packet socket")
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look<T>(socket: &OwnedFd, seen: &Mutex<T>, take: fn(&mut T, &[u8], usize), end: &AtomicBool) {
    let mut frame = [0; BEGINNING];
    while !end.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK_ROUND_MS)).is_err() {
            continue;
        }
        while let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
            let start = frame.get(..length.min(BEGINNING)).unwrap_or_default();
            take(
                &mut seen.lock().unwrap_or_else(PoisonError::into_inner),
                start,
                length,
            );
        }
    }
}
