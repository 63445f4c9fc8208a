//! Telling the service manager how it goes: sd_notify(3) without a library.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

/// Sends a message such as `READY=1`; does nothing when nobody listens.
///
/// A manager that cannot be told is no reason to stop watching, so failures are
/// only logged.
pub fn notify(message: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("tell the service manager {message:?}: {error}");
    }
}

/// Tells the service manager that the event loop lives, as often as it wants to
/// know: half of `WATCHDOG_USEC`, as sd_watchdog_enabled(3) advises.
pub struct Watchdog {
    every: Duration,
    last: Option<Instant>,
}

impl Watchdog {
    /// The watchdog that the service manager asks for, if it does.
    pub fn of_manager() -> Option<Self> {
        let timeout_us: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        let is_for_us = env::var("WATCHDOG_PID")
            .ok()
            .and_then(|pid| pid.parse().ok())
            .is_none_or(|pid: u32| pid == std::process::id());
        (is_for_us && timeout_us > 0).then(|| Self {
            every: Duration::from_micros(timeout_us / 2),
            last: None,
        })
    }

    /// To be called on each turn of the loop, from nowhere else.
    pub fn alive(&mut self) {
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last >= self.every) {
            notify("WATCHDOG=1");
            self.last = Some(now);
        }
    }
}
