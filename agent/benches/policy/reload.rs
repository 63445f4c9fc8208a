//! From SIGHUP to another policy in force, as an agent in the lab does it; and whether
//! anything in the kernel holds up who sends meanwhile.
//!
//! There is a sender on each processor, of real-time priority: whatever else runs has to
//! make way for it, except for the kernel where it does not let itself be interrupted or
//! holds what a sender needs.

use std::{
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use trefoil::kernel::{PinDir, Reader};
use trefoil_lab::{Lab, places, program::Running};

/// The argument by which this program is the one that sends.
pub const SENDER: &str = "--sender";

const N_RELOADS: usize = 10;
/// How often it is looked whether the policy is in force.
const LOOK: Duration = Duration::from_micros(200);
/// Time between two datagrams.
const PAUSE: Duration = Duration::from_micros(500);

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
    thread::sleep(Duration::from_secs(8));
    let quiet = longest_delay(senders);
    let senders = self::senders(&lab);
    let mut took: Vec<Duration> = (0..N_RELOADS)
        .map(|number| {
            let before = generation();
            let began = Instant::now();
            // Another text each time, though it says the same.
            agent.reload(&format!("{policy}# {number}\n")).unwrap();
            while generation() == before {
                thread::sleep(LOOK);
            }
            let took = began.elapsed();
            // What is left to do afterwards belongs to no reload.
            thread::sleep(Duration::from_millis(500));
            took
        })
        .collect();
    let busy = longest_delay(senders);
    took.sort_unstable();
    println!(
        "  SIGHUP, in force  {:.0?} median, {:.0?} slowest of {N_RELOADS}",
        took[N_RELOADS / 2],
        took[N_RELOADS - 1]
    );
    println!("  longest delay     {busy:.1?} of a sender meanwhile, {quiet:.1?} without a reload");
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

fn longest_delay(senders: Vec<Running>) -> Duration {
    let delay = |sender: Running| {
        let told = sender.finish().unwrap().success().unwrap().stdout;
        Duration::from_nanos(told.trim().parse().unwrap())
    };
    senders.into_iter().map(delay).max().unwrap()
}

/// Sends until its input ends, and tells the longest time between when a datagram was due
/// and when it had been sent.
pub fn send() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let peer = SocketAddr::new(places::PEER, 9);
    let (mut longest, ends) = (Duration::ZERO, input_ends());
    while !ends.is_finished() {
        let due = Instant::now() + PAUSE;
        thread::sleep(PAUSE);
        // Nobody listens, and the far end may say so.
        let _ = socket.send_to(b"x", peer);
        longest = longest.max(due.elapsed());
    }
    println!("{}", longest.as_nanos());
}

/// A thread that ends with this program's input.
fn input_ends() -> thread::JoinHandle<()> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    })
}
