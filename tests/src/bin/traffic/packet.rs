//! Whole frames by a packet socket, by AF_XDP or through a macvtap device, past the kernel's
//! own network layer.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;

use nix::net::if_::if_nametoindex;
use trefoil_lab::frames::PacketSocket;
use trefoil_lab::packets::{ETHERTYPE_VLAN, echo, ethertype_of, wrapped};

use crate::arguments::Arguments;
use crate::copy::set_option;
use crate::route::Route;
use crate::udp::{pause_after, plus};
use crate::{Answer, Calls, Failure, Named, Sent, told_to_proceed, xdp};

type SendFrame = dyn Fn(&[u8]) -> Answer;

/// `traffic packet`
pub fn packet(arguments: &mut Arguments) -> Answer {
    let interface = arguments.word("INTERFACE")?;
    let mac = arguments.word("MAC")?;
    let to: SocketAddr = arguments.value("ADDR:PORT")?;
    let from: SocketAddr = arguments
        .option("--from")?
        .ok_or_else(|| Failure::Usage("--from is missing".to_owned()))?;
    let size: usize = arguments.option("--size")?.unwrap_or(64);
    let count: u64 = arguments.option("--count")?.unwrap_or(1);
    let destinations: u32 = arguments.option("--destinations")?.unwrap_or(1);
    let ethertype: Option<u16> = arguments.option("--ethertype")?;
    let vlan: Option<u16> = arguments.option("--vlan")?;
    let pretended: Option<u16> = arguments.option("--pretend")?;
    let wrap: Option<String> = arguments.option("--wrap")?;
    let route = Route::of(arguments)?;
    let bypass = arguments.flag("--bypass-qdisc");
    let by_xdp = arguments.flag("--xdp");
    let by_macvtap = arguments.flag("--macvtap");
    let is_echo = arguments.flag("--echo");
    let waits = arguments.flag("--wait");
    let goes_on = arguments.flag("--go-on");
    arguments.done()?;

    let mut header = Vec::new();
    for byte in mac.split(':') {
        let byte = u8::from_str_radix(byte, 16);
        header.push(byte.map_err(|_| Failure::Usage(format!("{mac} is no address of a link")))?);
    }
    // Begins as those of the host's own links do.
    header.extend([2, 0, 0, 0, 1, 99]);
    if let Some(vlan) = vlan {
        header.extend(ETHERTYPE_VLAN.to_be_bytes());
        header.extend(vlan.to_be_bytes());
    }
    let own_type = ethertype_of(to.ip());
    let frame = |offset| {
        let to = SocketAddr::new(plus(to.ip(), offset), to.port());
        let packet = match is_echo {
            true => echo(from.ip(), to.ip(), size),
            false => route.packet(from, to, size),
        };
        let rest = match &wrap {
            Some(how) => wrapped(how, &packet)
                .ok_or_else(|| Failure::Usage(format!("no frame is called {how:?}")))?,
            None => [&ethertype.unwrap_or(own_type).to_be_bytes(), &packet[..]].concat(),
        };
        Ok([header.clone(), rest].concat())
    };
    let frames: Vec<Vec<u8>> = (0..destinations).map(frame).collect::<Result<_, _>>()?;
    if from.is_ipv4() != to.is_ipv4() {
        return Err(Failure::Usage("--from is of another family".to_owned()));
    }

    let opened = move || {
        if waits {
            let nothing = Sent {
                port: from.port(),
                packets: 0,
                bytes: 0,
            };
            nothing.tell();
            told_to_proceed();
        }
    };
    let send: Box<SendFrame> = if by_xdp {
        Box::new(move |frame| xdp::send(&interface, frame, opened))
    } else if by_macvtap {
        let device = open_macvtap(&interface)?;
        opened();
        Box::new(move |frame| write_to_macvtap(&device, frame))
    } else {
        let ethertype = pretended.unwrap_or(own_type);
        let socket = PacketSocket::open(&interface, ethertype).named("open a packet socket")?;
        if bypass {
            let (level, name) = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
            set_option(socket.descriptor(), level, name, &1_i32.to_ne_bytes())?;
        }
        opened();
        Box::new(move |frame| socket.send(frame).named("sendto"))
    };
    let (mut calls, mut bytes) = (Calls::default(), 0);
    for (frame, number) in frames.iter().cycle().zip(1..=count) {
        bytes += calls.note(goes_on, send(frame).map(|()| size as u64))?;
        pause_after(number);
    }
    let sent = Sent {
        port: from.port(),
        packets: count,
        bytes,
    };
    if goes_on {
        return calls.tell(&sent);
    }
    sent.tell();
    Ok(())
}

fn open_macvtap(interface: &str) -> Result<File, Failure> {
    let index = if_nametoindex(interface).named("if_nametoindex")?;
    let path = format!("/dev/tap{index}");
    File::options().write(true).open(path).named("open")
}

fn write_to_macvtap(mut device: &File, frame: &[u8]) -> Answer {
    // Header of a virtual machine about the frame, which says nothing.
    const VIRTIO_NET_HEADER: [u8; 10] = [0; 10];
    device
        .write_all(&[&VIRTIO_NET_HEADER, frame].concat())
        .named("write")
}
