//! The programs that do what is measured, and the one at the far end.

use std::thread;

use trefoil_lab::Lab;
use trefoil_lab::program::{Program, Running};
use trefoil_lab::wiring::Guest;

use crate::workload::{From, READY, SENDER, SERVER, Workload};

/// Senders and server, each with a processor of its own.
pub struct Senders {
    watched: Running,
    unwatched: Running,
    guest: Running,
    _server: Running,
    slice_ms: u64,
}

impl Senders {
    /// Starts them; they are to be there before any agent.
    pub fn start(lab: &Lab, guest: &Guest, slice_ms: u64) -> Self {
        let last = thread::available_parallelism().unwrap().get() - 1;
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let start = |program: Program, cpu: usize, role: &str| {
            let pinned = ["--nofile=20000:", "taskset", "--cpu-list"];
            let program = program.args(pinned).args([&cpu.to_string(), own, role]);
            program.start().unwrap()
        };
        let prlimit = |place, cgroup| Program::new("prlimit", place, cgroup, None).unwrap();
        let mut server = start(prlimit(&lab.gateway, None), 0, SERVER);
        assert_eq!(server.line().unwrap().trim(), READY);
        let unit = lab.unit("lab.service").unwrap();
        Self {
            watched: start(prlimit(&lab.host, Some(&unit)), last, SENDER),
            unwatched: start(prlimit(&lab.host, None), last, SENDER),
            guest: start(prlimit(&guest.place, None), last, SENDER),
            _server: server,
            slice_ms,
        }
    }

    /// Has one slice done; nanoseconds that one takes, and how many there were. Sockets are
    /// kept by `key`.
    pub fn slice(&mut self, workload: &Workload, key: &str) -> (f64, u64) {
        let sender = match workload.from {
            From::Watched => &mut self.watched,
            From::Unwatched => &mut self.unwatched,
            From::Guest => &mut self.guest,
        };
        ask(
            sender,
            &format!("{} {key} {}", workload.name, self.slice_ms),
        )
    }

    /// Asks the watched sender for something else.
    pub fn ask(&mut self, line: &str) -> (f64, u64) {
        ask(&mut self.watched, line)
    }
}

fn ask(sender: &mut Running, line: &str) -> (f64, u64) {
    sender.tell(line).unwrap();
    let answer = sender.line().unwrap();
    let (ns, count) = answer.trim().split_once(' ').unwrap();
    (ns.parse().unwrap(), count.parse().unwrap())
}
