//! Workloads that run under each contender, and the programs that generate them: a sender,
//! which is this benchmark's executable once more, and a server at the far end.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trefoil::clock::since_boot_ns;
use trefoil_lab::program::fork_once;

use crate::held::{HOLD, Held, SOME, sockets};

/// The arguments by which this program is one of them.
pub const SENDER: &str = "--sender";
/// See [`SENDER`].
pub const SERVER: &str = "--server";
/// The line that a server says when it listens.
pub const READY: &str = "ready";

/// Sender of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A process of the control group that is watched.
    Watched,
    /// A process beside it.
    Unwatched,
    /// A process behind the host, which forwards.
    Guest,
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// In the results.
    pub name: &'static str,
    /// For people; `ns` are a whole of these.
    pub title: &'static str,
    /// Sender of the workload.
    pub from: From,
    /// Measured in one round of so many.
    pub every: usize,
    /// Controls that differ here disprove a run. The tail of a distribution is nobody's
    /// control.
    pub is_control: bool,
}

const fn workload(name: &'static str, title: &'static str, from: From) -> Workload {
    Workload {
        name,
        title,
        from,
        every: 1,
        is_control: true,
    }
}

/// All of them.
pub const WORKLOADS: &[Workload] = &[
    workload("udp-connected", "UDP, connected, a datagram", From::Watched),
    workload("udp-1", "UDP, one destination, a datagram", From::Watched),
    workload("udp-64", "UDP, 64 destinations, a datagram", From::Watched),
    workload(
        "udp-16384",
        "UDP, 16,384 destinations, a datagram",
        From::Watched,
    ),
    workload("tcp-short", "short TCP connection", From::Watched),
    workload("tcp-median", "request and response, median", From::Watched),
    Workload {
        is_control: false,
        ..workload("tcp-p99", "request and response, p99", From::Watched)
    },
    workload("tcp-bulk", "bulk TCP, a MiB", From::Watched),
    workload("forwarded", "forwarded UDP, a datagram", From::Guest),
    workload("exec", "exec, a process", From::Watched),
    workload("fork", "fork, a process", From::Watched),
    workload("sockets-1", "1 socket, a datagram", From::Watched),
    workload(
        "sockets-1024",
        "1,024 sockets in turn, a datagram",
        From::Watched,
    ),
    Workload {
        every: 3,
        ..workload(
            "sockets-65536",
            "65,536 sockets in turn, a datagram",
            From::Watched,
        )
    },
    workload(
        "unwatched-udp",
        "unwatched processes: UDP, a datagram",
        From::Unwatched,
    ),
    workload(
        "unwatched-tcp",
        "unwatched processes: short TCP connection",
        From::Unwatched,
    ),
    workload(
        "unwatched-exec",
        "unwatched processes: exec, a process",
        From::Unwatched,
    ),
];

/// Of datagrams, requests and responses.
pub const PAYLOAD: [u8; 64] = [b'x'; 64];
/// Addresses of the peer that take nothing, once its prefix is not local there.
const FAR: [u8; 3] = [198, 51, 100];
/// Port of datagrams; from here on, where there are many destinations.
const PORT: u16 = 9000;
pub const N_FAR: usize = 256;
/// Addresses of the host that many sockets are bound to, and sockets at each.
pub const NEAR: &str = "192.0.2.128/25";
pub const NEAR_FIRST: u8 = 128;
pub const N_NEAR: usize = 128;
pub const FIRST_PORT: usize = 2_000;

/// The server's ports: one connection for each request, many requests, and a sink.
const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const SHORT: u16 = 7001;
const ECHO: u16 = 7002;
const SINK: u16 = 7003;
/// Never approved by the benchmark's policies.
pub const REFUSED: &str = "203.0.113.10:9";
/// The word by which the sender is asked to try it; it answers when it was refused, in
/// nanoseconds since boot, by the port it came from.
pub const REFUSE: &str = "refuse";
/// The word by which it is asked for so many short connections.
pub const CONNECT: &str = "connect";

const CHUNK: usize = 256 * 1024;
const MIB: f64 = 1_048_576.0;

/// Between two looks at the clock.
pub const BATCH: usize = 64;

/// Answers lines of its input: `NAME KEY MILLISECONDS` is a workload, whose sockets are kept by
/// the key where a contender has to know them from their first packet on. An answer is the
/// nanoseconds that one took, and how many there were, those to warm up included.
pub fn send() {
    let mut sender = Sender::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let (value, count) = match words[0] {
            REFUSE => (refused() as f64, 1),
            CONNECT => {
                let began = Instant::now();
                let count = number(1);
                (0..count).for_each(|_| short());
                (began.elapsed().as_nanos() as f64 / count as f64, count)
            }
            HOLD => {
                sender.held = Some(Held::open(number(1) as usize, number(2) as usize));
                (0.0, number(2))
            }
            SOME => {
                let held = sender.held.as_mut().unwrap();
                let began = Instant::now();
                (0..number(1)).for_each(|_| held.send());
                (began.elapsed().as_nanos() as f64, number(1))
            }
            name => sender.measure(name, words[1], Duration::from_millis(number(2))),
        };
        println!("{value:.1} {count}");
        std::io::stdout().flush().unwrap();
    }
}

#[derive(Default)]
struct Sender {
    /// By workload and key.
    sockets: HashMap<String, UdpSocket>,
    held: Option<Held>,
}

impl Sender {
    fn measure(&mut self, name: &str, key: &str, slice: Duration) -> (f64, u64) {
        match name {
            "udp-connected" | "forwarded" | "unwatched-udp" => {
                let socket = self.socket(name, key);
                if socket.peer_addr().is_err() {
                    socket.connect(far(0)).unwrap();
                }
                timed(slice, BATCH, || {
                    socket.send(&PAYLOAD).unwrap();
                })
            }
            "udp-1" => self.destinations(name, key, slice, 1),
            "udp-64" => self.destinations(name, key, slice, 64),
            "udp-16384" => self.destinations(name, key, slice, 16_384),
            "tcp-short" | "unwatched-tcp" => timed(slice, 1, short),
            "tcp-median" => latency(slice, 0.5),
            "tcp-p99" => latency(slice, 0.99),
            "tcp-bulk" => bulk(slice),
            "exec" | "unwatched-exec" => timed(slice, 1, exec),
            "fork" => timed(slice, 1, || fork_once().unwrap()),
            "sockets-1" => sockets(slice, 1),
            "sockets-1024" => sockets(slice, 1_024),
            "sockets-65536" => sockets(slice, 65_536),
            _ => panic!("no workload is called {name}"),
        }
    }

    fn socket(&mut self, name: &str, key: &str) -> &UdpSocket {
        self.sockets
            .entry(format!("{name} {key}"))
            .or_insert_with(|| UdpSocket::bind("0.0.0.0:0").unwrap())
    }

    /// One socket that sends to so many in turn.
    fn destinations(&mut self, name: &str, key: &str, slice: Duration, n: usize) -> (f64, u64) {
        let all: Vec<_> = (0..n).map(far).collect();
        let socket = self.socket(name, key);
        for to in &all {
            socket.send_to(&PAYLOAD, to).unwrap();
        }
        let mut turn = Turn::new(n);
        let (ns, count) = timed(slice, BATCH, || {
            socket.send_to(&PAYLOAD, all[turn.next()]).unwrap();
        });
        (ns, count + n as u64)
    }
}

/// Destination of a number.
pub fn far(number: usize) -> SocketAddrV4 {
    let [a, b, c] = FAR;
    SocketAddrV4::new(
        Ipv4Addr::new(a, b, c, (number % N_FAR) as u8),
        PORT + (number / N_FAR) as u16,
    )
}

/// Numbers below a power of two, each once, in an order that no cache foresees.
pub struct Turn {
    n: usize,
    at: usize,
}

impl Turn {
    pub fn new(n: usize) -> Self {
        Self { n, at: 0 }
    }

    pub fn next(&mut self) -> usize {
        const ODD: usize = 40_503;
        self.at = (self.at + ODD) % self.n;
        self.at
    }
}

/// Does it for a fifth of the time to warm up, and then for all of the time.
pub fn timed(slice: Duration, batch: usize, mut one: impl FnMut()) -> (f64, u64) {
    let mut during = |slice: Duration| {
        let (began, mut count) = (Instant::now(), 0);
        loop {
            (0..batch).for_each(|_| one());
            count += batch as u64;
            let elapsed = began.elapsed();
            if elapsed >= slice {
                return (elapsed.as_nanos() as f64 / count as f64, count);
            }
        }
    };
    let (_, warm) = during(slice / 5);
    let (ns, count) = during(slice);
    (ns, warm + count)
}

/// The server closes first, so that what waits afterwards is at its end.
fn short() {
    let mut stream = TcpStream::connect((SERVER_ADDRESS, SHORT)).unwrap();
    stream.write_all(&PAYLOAD).unwrap();
    let mut answer = [0; PAYLOAD.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(stream.read(&mut answer).unwrap(), 0);
}

fn latency(slice: Duration, quantile: f64) -> (f64, u64) {
    let mut stream = TcpStream::connect((SERVER_ADDRESS, ECHO)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut answer, mut all) = ([0; PAYLOAD.len()], Vec::new());
    timed(slice, 1, || {
        let began = Instant::now();
        stream.write_all(&PAYLOAD).unwrap();
        stream.read_exact(&mut answer).unwrap();
        all.push(began.elapsed().as_nanos() as u64);
    });
    let count = all.len();
    // The first sixth of the measurements is warm-up.
    let mut all = all.split_off(count / 6);
    all.sort_unstable();
    let at = (all.len() as f64 * quantile) as usize;
    (all[at.min(all.len() - 1)] as f64, count as u64)
}

/// Until the far end has all of it.
fn bulk(slice: Duration) -> (f64, u64) {
    let mut stream = TcpStream::connect((SERVER_ADDRESS, SINK)).unwrap();
    let chunk = vec![b'x'; CHUNK];
    let warm = Instant::now();
    while warm.elapsed() < slice / 5 {
        stream.write_all(&chunk).unwrap();
    }
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < slice {
        stream.write_all(&chunk).unwrap();
        sent += chunk.len();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let ns = began.elapsed().as_nanos() as f64;
    (ns / (sent as f64 / MIB), sent as u64)
}

fn exec() {
    let mut child = Command::new("/bin/true");
    let status = child.stdin(Stdio::null()).status().unwrap();
    assert!(black_box(status).success());
}

/// Tries to connect to where nothing may go; when that was refused.
fn refused() -> u64 {
    // A call that is repeated is counted, and has no record of its own.
    static PORT: AtomicU16 = AtomicU16::new(1);
    let mut to: SocketAddr = REFUSED.parse().unwrap();
    to.set_port(PORT.fetch_add(1, Ordering::Relaxed));
    let refused = TcpStream::connect(to);
    let now = since_boot_ns();
    let kind = refused.unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
    now
}

/// Serves until its input ends.
pub fn serve() {
    let listen = |port: u16| TcpListener::bind((SERVER_ADDRESS, port)).unwrap();
    let (short, echo, sink) = (listen(SHORT), listen(ECHO), listen(SINK));
    thread::spawn(move || {
        for stream in short.incoming() {
            // A client that is gone is none of the server's problems.
            if let Ok(mut stream) = stream
                && stream.read_exact(&mut [0; PAYLOAD.len()]).is_ok()
            {
                let _ = stream.write_all(&PAYLOAD);
            }
        }
    });
    thread::spawn(move || each(&echo, answer));
    thread::spawn(move || each(&sink, swallow));
    println!("{READY}");
    std::io::stdin().lines().for_each(drop);
}

fn each(listener: &TcpListener, serve: fn(TcpStream)) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; PAYLOAD.len()];
    while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
}

fn swallow(mut stream: TcpStream) {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
}
