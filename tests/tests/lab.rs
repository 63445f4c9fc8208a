//! The lab and the traffic programs themselves, with no agent around: what the
//! other tests take for granted.

mod world;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, lab, link::LinkCounters, places, wait_for};
use world::{TRAFFIC, at, traffic, traffic_in};

/// Bytes of IPv4 and UDP headers, of IPv6 and UDP headers.
const HEADERS: u64 = 28;
const HEADERS6: u64 = 48;

#[test]
fn datagrams_arrive_at_every_place_and_links_count_them_to_the_byte() -> Result<()> {
    let lab = Lab::new()?;
    for (place, address, headers) in [
        (&lab.gateway, places::GATEWAY, HEADERS),
        (&lab.gateway, places::GATEWAY6, HEADERS6),
        (&lab.peer, places::PEER, HEADERS),
        (&lab.peer, places::PEER6, HEADERS6),
        (&lab.foreign, places::FOREIGN, HEADERS),
        (&lab.foreign, places::FOREIGN6, HEADERS6),
        (&lab.foreign, places::UNPLACED, HEADERS),
        (&lab.foreign, places::UNPLACED6, HEADERS6),
    ] {
        let sink = UdpSink::new(place, 9)?;
        let before = lab.link_to(place)?;
        let far_before = LinkCounters::read(place, "to-host")?;
        traffic(&lab)?
            .args(["udp", &at(address, 9), "--size", "100", "--count", "7"])
            .run()?
            .success()?;
        let arrived = sink.wait_for_packets(7)?;
        assert_eq!((arrived.packets, arrived.bytes), (7, 700), "{address}");
        assert_eq!(sink.by_destination().keys().collect::<Vec<_>>(), [&address]);
        let sent = lab.link_to(place)?.since(before);
        assert_eq!(
            (sent.tx_packets, sent.ip_bytes_out()),
            (7, 7 * (100 + headers))
        );
        let received = LinkCounters::read(place, "to-host")?.since(far_before);
        assert_eq!(
            (received.rx_packets, received.ip_bytes_in()),
            (7, sent.ip_bytes_out())
        );
    }
    lab.close()
}

#[test]
fn nothing_passes_by_itself() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.foreign, 443)?;
    traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN6, 443)])
        .run()?
        .success()?;
    wait_for("the connection ends", || {
        Ok((sink.ended() == 1).then_some(()))
    })?;
    for place in [&lab.gateway, &lab.peer] {
        assert_eq!(
            lab.link_to(place)?,
            LinkCounters::default(),
            "towards {}",
            place.name
        );
    }
    drop(sink);
    lab.close()
}

#[test]
fn connections_carry_what_they_were_told_to() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.peer, 5432)?;
    for (number, address) in [
        at(places::PEER, 5432),
        at(places::PEER6, 5432),
        "[::ffff:198.51.100.77]:5432".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let told = traffic(&lab)?
            .args(["tcp", address, "--bytes", "300000"])
            .run()?
            .success()?;
        assert_eq!(Record::parse(&told.stdout)?.number("bytes")?, 300_000);
        wait_for("the connection ends", || {
            Ok((sink.ended() == number as u64 + 1).then_some(()))
        })?;
    }
    assert_eq!(sink.bytes(), 900_000);
    drop(sink);
    lab.close()
}

#[test]
fn packets_without_a_transport_leave() -> Result<()> {
    let lab = Lab::new()?;
    for arguments in [
        &["raw", "203.0.113.10"][..],
        &["raw", "203.0.113.10", "--own-header"],
        &["raw", "2001:db8:3::10"],
        &["ping", "203.0.113.10"],
        &["ping", "203.0.113.10", "--raw"],
        &["ping", "2001:db8:3::10"],
        &["ping", "2001:db8:3::10", "--raw"],
    ] {
        let before = lab.link_to(&lab.foreign)?;
        traffic(&lab)?.args(arguments).run()?.success()?;
        wait_for(&format!("{arguments:?} leaves"), || {
            Ok((lab.link_to(&lab.foreign)?.since(before).tx_packets == 1).then_some(()))
        })?;
    }
    lab.close()
}

#[test]
fn a_burst_sends_once_from_each_process() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let programs = [
        lab.copy_program(TRAFFIC, "x0")?,
        lab.copy_program(TRAFFIC, "x1")?,
    ];
    let told = traffic(&lab)?
        .args([
            "burst",
            &at(places::FOREIGN, 9),
            "--count",
            "20",
            "--from",
            "20000",
        ])
        .args(
            programs
                .iter()
                .flat_map(|path| ["--program".as_ref(), path.as_os_str()]),
        )
        .run()?
        .success()?;
    let children: Vec<Record> = told
        .stdout
        .lines()
        .map(Record::parse)
        .collect::<Result<_>>()?;
    assert_eq!(children.len(), 20);
    for child in &children {
        assert!(child.is("code", 0), "{child}");
    }
    sink.wait_for_packets(20)?;
    let ports: Vec<u16> = sink.by_source_port().into_keys().collect();
    assert_eq!(ports, (20000..20020).collect::<Vec<u16>>());
    lab.close()
}

#[test]
fn fresh_control_groups_connect_and_are_gone() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.peer, 5432)?;
    let slice = lab.unit("")?;
    let copy = lab.copy_program(TRAFFIC, "x0")?;
    for program in [None, Some(&copy)] {
        let mut units = traffic(&lab)?.args(["units", &at(places::PEER, 5432), "--count", "10"]);
        units = units.args([
            "--unit",
            "good@%.service",
            "--unit",
            "bad@%.service",
            "--root",
        ]);
        units = units.args([&slice]);
        if let Some(program) = program {
            units = units.args(["--program"]).args([program]);
        }
        let told = units.run()?.success()?;
        let children: Vec<Record> = told
            .stdout
            .lines()
            .map(Record::parse)
            .collect::<Result<_>>()?;
        assert_eq!(children.len(), 10);
        assert!(
            children.iter().all(|child| child.is("code", 0)),
            "{}",
            told.stdout
        );
        assert!(
            children
                .iter()
                .any(|child| child.is("unit", "bad@9.service"))
        );
    }
    wait_for("all connections end", || {
        Ok((sink.ended() == 20).then_some(()))
    })?;
    drop(sink);
    lab.close()
}

#[test]
fn programs_that_are_left_running_end_with_the_lab() -> Result<()> {
    let lab = Lab::new()?;
    let mut held = traffic(&lab)?
        .args(["udp", &at(places::PEER, 9), "--hold"])
        .start()?;
    held.line()?;
    let left = lab.leftovers()?;
    let named = format!("process {}", held.pid());
    ensure!(left.iter().any(|line| line.contains(&named)), "{left:?}");
    lab.close()?;
    assert_eq!(held.finish()?.code, -1);
    Ok(())
}

/// Set in the child of the test below: it builds a lab and never ends.
const TO_BE_KILLED: &str = "TREFOIL_LAB_TO_BE_KILLED";

#[test]
fn what_a_killed_lab_left_is_swept_away() -> Result<()> {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let lab = Lab::new()?;
        lab.journal()?;
        lab.unit("shop.service")?;
        println!("\nlab {} {}", lab.directory.display(), lab.cgroup.display());
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "what_a_killed_lab_left_is_swept_away",
            "--nocapture",
        ])
        .env(TO_BE_KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("standard output")?);
    let told = output
        .lines()
        .map_while(std::result::Result::ok)
        .find(|line| line.starts_with("lab "))
        .context("the child built no lab")?;
    child.kill()?;
    child.wait()?;
    let places: Vec<&Path> = told.split(' ').skip(1).map(Path::new).collect();
    assert_eq!(places.len(), 2);
    assert!(places.iter().all(|path| path.exists()), "{told}");
    lab::sweep_abandoned();
    assert!(!places.iter().any(|path| path.exists()), "{told}");
    Ok(())
}

#[test]
fn labs_run_side_by_side() -> Result<()> {
    let (one, two) = (Lab::new()?, Lab::new()?);
    let (sink_one, sink_two) = (UdpSink::new(&one.peer, 9)?, UdpSink::new(&two.peer, 9)?);
    traffic(&one)?
        .args(["udp", &at(places::PEER, 9)])
        .run()?
        .success()?;
    sink_one.wait_for_packets(1)?;
    assert_eq!(sink_two.arrived().packets, 0);
    one.close()?;
    traffic(&two)?
        .args(["udp", &at(places::PEER, 9)])
        .run()?
        .success()?;
    sink_two.wait_for_packets(1)?;
    two.close()
}

#[test]
fn a_service_logs_into_the_journal_of_the_lab() -> Result<()> {
    let lab = Lab::new()?;
    let journal = lab.journal()?;
    let mut service = traffic_in(&lab, "shop.service")?
        .args([
            "log".as_ref(),
            journal.socket().as_os_str(),
            "open for business".as_ref(),
        ])
        .start()?;
    service.line()?;
    wait_for("journalctl -u shows it", || {
        let text = journal.text(&["-q", "-u", "shop.service"])?;
        Ok(text.contains("open for business").then_some(()))
    })?;
    service.finish()?.success()?;
    lab.close()
}
