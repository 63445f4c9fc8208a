//! Many sockets that send in turn.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::workload::{
    BATCH, FIRST_PORT, N_FAR, N_NEAR, NEAR_FIRST, PAYLOAD, SENDER, Turn, far, timed,
};

/// Sockets that one process holds: without CAP_SYS_RESOURCE it may not be allowed more than
/// some more.
const HELD: usize = 16_384;
/// Datagrams of one process before it is the next one's turn.
const TURN: usize = 128;
/// The words by which a sender holds sockets for another: from this number on so many; and
/// sends by some of them.
pub const HOLD: &str = "hold";
/// See [`HOLD`].
pub const SOME: &str = "some";

/// So many connected sockets, in turn. Of processes that hold them together only the time
/// counts in which one sends.
pub fn sockets(slice: Duration, n: usize) -> (f64, u64) {
    if n <= HELD {
        let mut held = Held::open(0, n);
        let (ns, count) = timed(slice, BATCH, || held.send());
        return (ns, count + n as u64);
    }
    let mut holders: Vec<_> = (0..n)
        .step_by(HELD)
        .map(|first| Holder::start(first, HELD))
        .collect();
    let mut turns = |slice: Duration| {
        let (mut ns, mut count) = (0, 0);
        while u128::from(ns) < slice.as_nanos() {
            for holder in &mut holders {
                ns += holder.ask(&format!("{SOME} {TURN}"));
                count += TURN as u64;
            }
        }
        (ns as f64 / count as f64, count)
    };
    let (_, warm) = turns(slice / 5);
    let (ns, count) = turns(slice);
    (ns, warm + count + n as u64)
}

/// Sockets, and whose turn it is.
pub struct Held {
    sockets: Vec<UdpSocket>,
    turn: Turn,
}

impl Held {
    /// Each has sent once.
    pub fn open(first: usize, n: usize) -> Self {
        let open = |number: usize| {
            let [address, port] = [number % N_NEAR, number / N_NEAR];
            let near = Ipv4Addr::new(192, 0, 2, NEAR_FIRST + address as u8);
            let socket = UdpSocket::bind((near, (FIRST_PORT + port) as u16)).unwrap();
            socket.connect(far(number % N_FAR)).unwrap();
            socket.send(&PAYLOAD).unwrap();
            socket
        };
        Self {
            sockets: (first..first + n).map(open).collect(),
            turn: Turn::new(n),
        }
    }

    /// By the next one.
    pub fn send(&mut self) {
        self.sockets[self.turn.next()].send(&PAYLOAD).unwrap();
    }
}

/// A process that holds sockets for this one.
struct Holder {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    fn start(first: usize, n: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(SENDER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, answers };
        holder.ask(&format!("{HOLD} {first} {n}"));
        holder
    }

    fn ask(&mut self, line: &str) -> u64 {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let (ns, _) = answer.split_once('.').unwrap();
        ns.parse().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
