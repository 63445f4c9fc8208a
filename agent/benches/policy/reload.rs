//! From SIGHUP to another policy in force, as an agent in the lab does it; and whether
//! anything in the kernel holds up who sends meanwhile.
//!
//! There is a sender on each processor, of real-time priority: whatever else runs has to
//! make way for it, except for the kernel where it does not let itself be interrupted or
//! holds what a sender needs.

use std::{
    fmt::Write as _,
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use trefoil::{
    clock::since_boot_ns,
    kernel::{PinDir, Reader},
};
use trefoil_lab::{Lab, places, program::Running};

/// The argument by which this program is the one that sends.
pub const SENDER: &str = "--sender";

const N_RELOADS: usize = 30;
/// Time after a reload that counts as part of it, since work is left to do then. Delays
/// without a reload are measured for as long as the reload and this time together.
const AFTERWARDS: Duration = Duration::from_millis(500);
/// How often it is looked whether the policy is in force.
const LOOK: Duration = Duration::from_micros(200);
/// Time between two datagrams.
const PAUSE: Duration = Duration::from_micros(500);
/// Delays that are longer than this are counted.
const LONG_NS: u64 = 1_000_000;

/// When a datagram was due, in nanoseconds since boot, and for how long it then was not
/// sent.
#[derive(Clone, Copy)]
struct Delay {
    due_ns: u64,
    ns: u64,
}

/// Measures reloads with this country table and policy.
pub fn measure(table: &Path, policy: &str) {
    let lab = Lab::new().unwrap();
    let table: &'static str = Box::leak(table.to_str().unwrap().to_owned().into_boxed_str());
    // The lab's own files come first, and so know where the lab's addresses are.
    let agent = lab
        .agent()
        .policy(policy)
        .argument("--geo")
        .argument(table)
        .start()
        .unwrap();
    let reader = Reader::open(&PinDir::new(lab.pins())).unwrap();
    let generation = || reader.policy().unwrap().unwrap().generation;

    let senders = senders(&lab);
    let (mut took, mut reloads) = (Vec::new(), Vec::new());
    for number in 0..N_RELOADS {
        let before = generation();
        let (began, began_ns) = (Instant::now(), since_boot_ns());
        // Another text each time, though it says the same.
        agent.reload(&format!("{policy}# {number}\n")).unwrap();
        while generation() == before {
            thread::sleep(LOOK);
        }
        took.push(began.elapsed());
        thread::sleep(AFTERWARDS);
        reloads.push(began_ns..since_boot_ns());
        thread::sleep(began.elapsed());
    }
    let delays: Vec<_> = senders.into_iter().flat_map(delays).collect();
    took.sort_unstable();
    println!(
        "  SIGHUP, in force  {:.0?} median, {:.0?} slowest of {N_RELOADS}",
        took[N_RELOADS / 2],
        took[N_RELOADS - 1]
    );
    let is_meanwhile = |delay: &Delay| reloads.iter().any(|reload| reload.contains(&delay.due_ns));
    let (busy, quiet): (Vec<_>, Vec<_>) = delays.into_iter().partition(is_meanwhile);
    for (when, delays) in [("in reloads", busy), ("without", quiet)] {
        println!(
            "  delay {when:11} {:.1?} the longest of {} sends, {} beyond {:?}",
            Duration::from_nanos(delays.iter().map(|delay| delay.ns).max().unwrap()),
            delays.len(),
            delays.iter().filter(|delay| delay.ns > LONG_NS).count(),
            Duration::from_nanos(LONG_NS),
        );
    }
    drop(agent);
    lab.close().unwrap();
}

/// One for each processor.
fn senders(lab: &Lab) -> Vec<Running> {
    let own = std::env::current_exe().unwrap();
    let n_cpus = thread::available_parallelism().unwrap().get();
    let sender = |cpu: usize| {
        lab.program("/usr/bin/chrt")
            .unwrap()
            .args(["--fifo", "1", "taskset", "--cpu-list", &cpu.to_string()])
            .args([own.to_str().unwrap(), SENDER])
            .start()
            .unwrap()
    };
    (0..n_cpus).map(sender).collect()
}

fn delays(sender: Running) -> Vec<Delay> {
    let told = sender.finish().unwrap().success().unwrap().stdout;
    let number = |text: &str| text.parse().unwrap();
    told.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(due, ns)| Delay {
            due_ns: number(due),
            ns: number(ns),
        })
        .collect()
}

/// Sends until its input ends, and tells of each datagram when it was due and how much
/// later it had been sent.
pub fn send() {
    const PAUSE_NS: u64 = PAUSE.as_nanos() as u64;
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let peer = SocketAddr::new(places::PEER, 9);
    let (mut told, ends) = (String::new(), input_ends());
    while !ends.is_finished() {
        let due_ns = since_boot_ns() + PAUSE_NS;
        thread::sleep(PAUSE);
        // Nobody listens, and the far end may say so.
        let _ = socket.send_to(b"x", peer);
        writeln!(told, "{due_ns} {}", since_boot_ns() - due_ns).unwrap();
    }
    print!("{told}");
}

/// A thread that ends with this program's input.
fn input_ends() -> thread::JoinHandle<()> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    })
}
