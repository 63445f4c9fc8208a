//! The thread that cuts connections.
//!
//! It takes a right that the loop has given up, and the kernel goes through all sockets
//! for it, which on a busy host takes a while. Knows cookies, and nothing about why.

use std::{collections::HashSet, io, sync::mpsc, thread};

use crate::{
    kernel::{KernelError, PinDir, SockDiag},
    privileges::{self, Duty},
};

/// Cuts connections on request, one request at a time.
pub struct Cutter {
    requests: mpsc::Sender<Request>,
    results: mpsc::Receiver<Cut>,
    is_busy: bool,
}

/// Request to the thread.
enum Request {
    /// To cut the connections with these cookies.
    Cut(HashSet<u64>),
    /// To take what holds the hooks of uplinks out of the kernel, where it is not links.
    RemoveFilters(PinDir, mpsc::Sender<Result<(), KernelError>>),
}

/// Result of a request.
#[derive(Default)]
pub struct Cut {
    /// Cookies of the connections that are cut.
    pub cookies: HashSet<u64>,
    /// Error that kept it from going on.
    pub failure: Option<KernelError>,
}

impl Cutter {
    /// Starts the thread, which sees the network namespace of the one that calls.
    pub fn start() -> io::Result<Self> {
        let (requests, asked) = mpsc::channel();
        let (done, results) = mpsc::channel();
        thread::Builder::new()
            .name("cutter".to_owned())
            .spawn(move || {
                privileges::keep_only(Duty::Cutter);
                for request in asked {
                    let cookies = match request {
                        Request::Cut(cookies) => cookies,
                        Request::RemoveFilters(pins, done) => {
                            // Nobody waits for it any more if this fails.
                            let _ = done.send(pins.remove_filters().map(drop));
                            continue;
                        }
                    };
                    let mut cut = Cut::default();
                    // Opened anew, so that nothing of an earlier request is in it.
                    cut.failure = SockDiag::open()
                        .and_then(|mut diag| diag.destroy(&cookies, &mut cut.cookies))
                        .err();
                    if done.send(cut).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            requests,
            results,
            is_busy: false,
        })
    }

    /// True while connections are being cut.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Asks for the connections with these cookies to be cut. Not while it is busy.
    pub fn cut(&mut self, cookies: HashSet<u64>) {
        // The thread ends only if it panics, which is written to standard error. Packets
        // that the policy does not approve are dropped all the same.
        self.is_busy = self.requests.send(Request::Cut(cookies)).is_ok();
    }

    /// Takes filters that hold hooks of uplinks out of the kernel, and waits for that: it
    /// takes a right that the loop has given up.
    pub fn remove_filters(&self, pins: &PinDir) -> Result<(), KernelError> {
        let (done, answer) = mpsc::channel();
        let request = Request::RemoveFilters(pins.clone(), done);
        // A thread that is gone has panicked; then what is to be removed stays.
        let asked = self.requests.send(request);
        match asked.ok().and_then(|()| answer.recv().ok()) {
            Some(answer) => answer,
            None => Err(KernelError::failed(
                "remove the filters of uplinks",
                "the thread that may do so is gone; run `trefoil detach`",
            )),
        }
    }

    /// Returns the result of the request, once it is known.
    pub fn done(&mut self) -> Option<Cut> {
        let cut = self.results.try_recv().ok()?;
        self.is_busy = false;
        Some(cut)
    }
}
