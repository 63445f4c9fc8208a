//! The thread that cuts connections.
//!
//! It takes a right that the loop has given up, and the kernel goes through all sockets
//! for it, which on a busy host takes a while. Knows cookies, and nothing about why.

use std::{collections::HashSet, io, sync::mpsc, thread};

use crate::{
    kernel::{KernelError, SockDiag},
    privileges::{self, Duty},
};

/// Cuts connections on request, one request at a time.
pub struct Cutter {
    requests: mpsc::Sender<HashSet<u64>>,
    results: mpsc::Receiver<Cut>,
    is_busy: bool,
}

/// What came of a request.
#[derive(Default)]
pub struct Cut {
    /// Cookies of the connections that are cut.
    pub cookies: HashSet<u64>,
    /// What kept it from going on.
    pub failure: Option<KernelError>,
}

impl Cutter {
    /// Starts the thread, which sees the network namespace of the one that calls.
    pub fn start() -> io::Result<Self> {
        let (requests, asked) = mpsc::channel::<HashSet<u64>>();
        let (done, results) = mpsc::channel();
        thread::Builder::new()
            .name("cutter".to_owned())
            .spawn(move || {
                privileges::keep_only(Duty::Cutter);
                for cookies in asked {
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
        // The thread ends only if it panics, which is said on standard error. What the
        // policy does not approve is dropped all the same.
        self.is_busy = self.requests.send(cookies).is_ok();
    }

    /// What came of the request, once that is known.
    pub fn done(&mut self) -> Option<Cut> {
        let cut = self.results.try_recv().ok()?;
        self.is_busy = false;
        Some(cut)
    }
}
