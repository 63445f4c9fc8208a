//! Cost of a packet at an uplink: one that its socket's hooks have judged, one that the host
//! forwards, one of a packet socket.
//!
//! Two labs stand beside each other, and in one of them the agent watches the uplinks. The
//! same senders send in both in turn, so that the differences hold where absolute figures do
//! not. The far end takes nothing. Needs root, and a `trefoil` that `cargo xtask bench` builds.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use trefoil_lab::frames::PacketSocket;
use trefoil_lab::kernel::{Runs, count_runs};
use trefoil_lab::program::{Program, Running};
use trefoil_lab::wiring::{far_link_address, guest};
use trefoil_lab::{Agent, Lab, places};

/// The argument by which this program is one that sends, in the way that is named next.
const SENDER: &str = "--sender";
/// Packets that are sent in one round.
const N_PACKETS: u64 = 20_000;
/// Rounds in each lab, by each way; odd, so that there is one in the middle.
const N_ROUNDS: usize = 21;
const PAYLOAD: [u8; 64] = [b'x'; 64];

/// An address of the peer's that takes nothing, once its prefix is not local there.
const TO: &str = "198.51.100.99:9";
/// The link that leads there, and its number.
const LINK: &str = "to-peer";
const LINK_NUMBER: u8 = 2;
/// The program that is measured.
const HOOK: &str = "uplink_egress";

const POLICY: &str = r#"
mode = "report"
[[rules]]
name    = "anywhere"
to      = { networks = ["0.0.0.0/0", "::/0"] }
verdict = "approve"
"#;

/// From a socket with one peer, and from one that may have many: its hooks have judged.
const CONNECTED: &str = "connected socket";
const UNCONNECTED: &str = "unconnected socket";
/// From a guest, through the host.
const FORWARDED: &str = "forwarded";
/// From a packet socket.
const FRAMES: &str = "packet socket";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != SENDER);
    if let Some(way) = arguments.nth(1) {
        return send(&way);
    }
    let labs = [Lab::new()?, Lab::new()?];
    for lab in &labs {
        lab.peer.ip("route del local 198.51.100.0/24 dev lo\n")?;
    }
    let [without, with] = &labs;
    let agents = [
        without.agent().policy(POLICY).start()?,
        with.agent().policy(POLICY).uplink("auto").start()?,
    ];
    let guests = [
        guest(&without.host, "machine", 1)?,
        guest(&with.host, "machine", 1)?,
    ];
    println!(
        "ns a packet         {:>8} {:>8} {:>8} {:>15}",
        "no hook", "hook", "added", "in the program"
    );
    for way in [CONNECTED, UNCONNECTED, FORWARDED, FRAMES] {
        let mut senders = Vec::new();
        for (lab, guest) in labs.iter().zip(&guests) {
            let unit = lab.unit("lab.service")?;
            let own = std::env::current_exe().context("find the running program")?;
            // All that a packet takes on this host is done by one processor.
            let cpu = std::thread::available_parallelism()?.get() - 1;
            let sender = match way {
                FORWARDED => Program::new("taskset", &guest.place, None, None)?,
                _ => Program::new("taskset", &lab.host, Some(&unit), None)?,
            };
            let sender = sender.args(["--cpu-list", &cpu.to_string()]);
            let sender = sender.args([own.as_os_str()]);
            senders.push(sender.args([SENDER, way]).start()?);
        }
        measure(way, &mut senders, &agents[1])?;
        for sender in senders {
            sender.finish()?.success()?;
        }
    }
    drop(agents);
    for lab in labs {
        lab.close()?;
    }
    Ok(())
}

/// Measures one way, by a sender where nothing is hooked and one where there is a hook.
fn measure(way: &str, senders: &mut [Running], hooked: &Agent<'_>) -> Result<()> {
    let [without, with] = senders else {
        bail!("two senders were expected");
    };
    let (mut unhooked_ns, mut hooked_ns, mut added_ns) = (vec![], vec![], vec![]);
    for number in 0..=N_ROUNDS {
        let (before, after) = (round(without)?, round(with)?);
        // The first round makes flows and fills caches.
        if number > 0 {
            unhooked_ns.push(before);
            hooked_ns.push(after);
            added_ns.push(after - before);
        }
    }
    // The kernel's own clock makes programs slower: so the times above are without.
    let counting = count_runs()?;
    let mut program_ns = vec![];
    for _ in 0..N_ROUNDS {
        let before = Runs::of(hooked.objects(), HOOK)?;
        round(with)?;
        let runs = Runs::of(hooked.objects(), HOOK)?.since(before);
        if runs.count < N_PACKETS {
            bail!("{} of {N_PACKETS} packets came to the hook", runs.count);
        }
        program_ns.push(runs.ns as f64 / runs.count as f64);
    }
    drop(counting);
    println!(
        "{way:19} {:8.0} {:8.0} {:8.0} {:15.0}",
        median(unhooked_ns),
        median(hooked_ns),
        median(added_ns),
        median(program_ns)
    );
    Ok(())
}

/// Has a sender send once; nanoseconds a packet.
fn round(sender: &mut Running) -> Result<f64> {
    sender.proceed()?;
    let ns: f64 = sender.line()?.trim().parse()?;
    Ok(ns / N_PACKETS as f64)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Sends for each line of its input, and tells the nanoseconds that it took.
fn send(way: &str) -> Result<()> {
    let one: Box<dyn Fn() -> Result<()>> = match way {
        FRAMES => {
            let (socket, frame) = (PacketSocket::open(LINK, 0)?, frame()?);
            Box::new(move || Ok(socket.send(&frame)?))
        }
        UNCONNECTED => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let to: SocketAddr = TO.parse()?;
            Box::new(move || Ok(socket.send_to(&PAYLOAD, to).map(drop)?))
        }
        _ => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(TO)?;
            Box::new(move || Ok(socket.send(&PAYLOAD).map(drop)?))
        }
    };
    for line in std::io::stdin().lines() {
        line?;
        let began = Instant::now();
        for _ in 0..N_PACKETS {
            one()?;
        }
        println!("{}", began.elapsed().as_nanos());
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// A datagram to [`TO`] with the headers before it.
fn frame() -> Result<Vec<u8>> {
    const UDP: u8 = 17;
    const HEADERS: u16 = 20 + 8;
    let to: SocketAddrV4 = TO.parse()?;
    let IpAddr::V4(from) = places::HOST else {
        bail!("no address");
    };
    let mut frame = Vec::new();
    for byte in far_link_address(LINK_NUMBER).split(':') {
        frame.push(u8::from_str_radix(byte, 16)?);
    }
    let len = HEADERS + PAYLOAD.len() as u16;
    frame.extend([2, 0, 0, 0, 1, 99, 0x08, 0x00]);
    // Without checksums, which nobody gets to see.
    frame.extend([0x45, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.ip().octets());
    frame.extend([0x23, 0x45]);
    frame.extend(to.port().to_be_bytes());
    frame.extend((len - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(PAYLOAD);
    Ok(frame)
}
