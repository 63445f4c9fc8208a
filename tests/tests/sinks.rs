//! Files that records go to: rotated, full, missing.

mod world;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::{acknowledge, detach, kernel_verb, verb};
use trefoil_lab::cover::{Cover, fill};
use trefoil_lab::program::Running;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Lab, Record, places, wait_for};
use world::told::{arrived, told_by_verdict};
use world::{approving, at, enforcing, gapless, is_final, reporting, traffic};

fn read(file: &Path) -> Result<Vec<Record>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(Record::parse).collect()
}

fn send(lab: &Lab) -> Result<()> {
    let outcome = traffic(lab)?.args(["udp", &at(places::PEER, 9)]).run()?;
    outcome.success().map(drop)
}

#[test]
fn records_follow_a_file_that_is_rotated() -> Result<()> {
    let mut lab = Lab::new()?;
    let disk = lab.small_disk()?;
    let agent = lab.agent().policy(&approving()).records_in(&disk).start()?;
    let file = fs::read_dir(&disk)?.next().context("no file")??.path();
    let last = |file: &Path| read(file)?.last().map(|it| it.number("seq")).transpose();
    let mut pieces = Vec::new();
    let mut rotate = |how: &str| -> Result<()> {
        send(&lab)?;
        let old = disk.join(how);
        match how {
            "renamed" => fs::rename(&file, &old)?,
            "copied" => {
                // No record comes in between: the agent reports each flow once a minute.
                fs::copy(&file, &old)?;
                File::options().write(true).open(&file)?.set_len(0)?;
            }
            _ => {
                fs::copy(&file, &old)?;
                fs::remove_file(&file)?;
            }
        }
        pieces.push(old);
        send(&lab)?;
        wait_for("records in the new file", || last(&file)).map(drop)
    };
    rotate("renamed")?;
    rotate("copied")?;
    rotate("deleted")?;

    // The signal makes the file at once.
    fs::rename(&file, disk.join("signalled"))?;
    pieces.push(disk.join("signalled"));
    agent.signal(Signal::SIGHUP)?;
    wait_for("the file", || Ok(file.exists().then_some(())))?;
    agent.stop(Signal::SIGINT)?;
    pieces.push(file);
    let mut records = Vec::new();
    for piece in &pieces {
        records.extend(read(piece)?);
    }
    records.sort_by_key(|record| record.number("seq").unwrap_or(0));
    gapless(&records)?;
    lab.close()
}

#[test]
fn a_sink_that_misses_records_is_told_and_status_says_so() -> Result<()> {
    let mut lab = Lab::new()?;
    let disk = lab.small_disk()?;
    let agent = lab.agent().policy(&approving()).records_in(&disk).start()?;
    let file = fs::read_dir(&disk)?.next().context("no file")??.path();
    let ballast = disk.join("ballast");
    fill(&ballast, 0)?;
    let status = || -> Result<String> { Ok(kernel_verb(&lab, "status", &[])?.stdout) };
    wait_for("status says so", || {
        send(&lab)?;
        let said = status()?;
        Ok((said.contains("misses records") && said.contains("json")).then_some(()))
    })?;
    // The journal has it while it lasts.
    let losses = || -> Result<Vec<Record>> {
        let all = lab.journal()?.entries(&["TREFOIL_EVENT=loss"])?;
        Ok(all
            .into_iter()
            .filter(|it| it.is("TREFOIL_SUBJECT", "records-json"))
            .collect())
    };
    wait_for("the journal says so", || {
        Ok((!losses()?.is_empty()).then_some(()))
    })?;
    fs::remove_file(&ballast)?;
    wait_for("status is content", || {
        send(&lab)?;
        Ok((!status()?.contains("misses records")).then_some(()))
    })?;
    agent.stop(Signal::SIGINT)?;
    let told: u64 = losses()?
        .iter()
        .map(|it| it.number("TREFOIL_COUNT"))
        .sum::<Result<u64>>()?;
    let numbers: Vec<u64> = read(&file)?
        .iter()
        .map(|it| it.number("seq"))
        .collect::<Result<_>>()?;
    let last = numbers.last().context("no records")?;
    assert_eq!(told, last - numbers.len() as u64, "{numbers:?}");
    lab.close()
}

#[test]
fn a_start_that_fails_leaves_nothing_pinned() -> Result<()> {
    for policy in [reporting(), enforcing()] {
        let lab = Lab::new()?;
        let file = lab.file("no/such/directory/records.json");
        let outcome = lab.agent().policy(&policy).records_at(&file).run_to_end()?;
        assert_eq!(outcome.code, 78, "{}", outcome.stderr);
        ensure!(
            outcome.stderr.contains("make its directory"),
            "{}",
            outcome.stderr
        );
        assert!(lab.pinned().is_empty(), "{:?}", lab.pinned());
        lab.close()?;
    }
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_what_another_agent_has_pinned() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&enforcing()).start()?;
    agent.stop(Signal::SIGKILL)?;
    let before = lab.pinned();
    let file = lab.file("no/such/directory/records.json");
    let outcome = lab
        .agent()
        .policy(&enforcing())
        .records_at(&file)
        .run_to_end()?;
    assert_eq!(outcome.code, 78, "{}", outcome.stderr);
    assert_eq!(lab.pinned(), before);
    detach(&lab)?;
    lab.close()
}

#[test]
fn check_tries_what_run_will_open() -> Result<()> {
    let lab = Lab::new()?;
    let settings = lab.file("settings.toml");
    let file = lab.file("no/such/directory/records.json");
    let check = |json: &Path| -> Result<_> {
        fs::write(&settings, format!("json = {json:?}\njournal = \"none\"\n"))?;
        let settings = settings.to_str().context("path")?;
        verb(&lab, &["check", "--config", settings])
    };
    let outcome = check(&file)?;
    assert_eq!(outcome.code, 78, "{}", outcome.stderr);
    ensure!(
        outcome.stderr.contains("no/such/directory"),
        "{}",
        outcome.stderr
    );
    let file = lab.file("records.json");
    let outcome = check(&file)?;
    ensure!(
        !outcome.stderr.contains("records.json"),
        "{}",
        outcome.stderr
    );
    ensure!(!file.exists(), "check has made it");
    lab.close()
}

/// The directory on /run in which the lab's agent has its state and its spool.
fn state_directory(lab: &Lab) -> Result<PathBuf> {
    let directories = lab.agent_state().into_iter();
    let mut on_run = directories.filter(|path| path.starts_with("/run"));
    on_run.next().context("the agent has no directory on /run")
}

/// Findings of `trefoil status`, which is content if there are none.
fn findings(lab: &Lab) -> Result<Vec<String>> {
    let said = kernel_verb(lab, "status", &["--json"])?;
    let status: Value = serde_json::from_str(&said.stdout).with_context(|| said.stdout.clone())?;
    let findings = status["findings"].as_array().context("no findings")?.iter();
    let findings: Vec<String> = findings
        .filter_map(|finding| Some(finding.as_str()?.to_owned()))
        .collect();
    ensure!(status["healthy"] == findings.is_empty(), "{status}");
    ensure!(said.code == i32::from(!findings.is_empty()), "{said:?}");
    Ok(findings)
}

/// `trefoil status` knows from the agent's state alone what sinks miss and what is not watched.
#[test]
fn a_state_that_cannot_be_written_is_a_finding() -> Result<()> {
    type Covers = fn(&Path) -> Result<Cover>;
    let covers: [(Covers, &str); 2] = [
        (Cover::full, "has left no readable state"),
        (Cover::read_only, "has not written its state since"),
    ];
    for (cover, says) in covers {
        let lab = Lab::new()?;
        let mut agent = lab.agent().policy(&approving()).start()?;
        acknowledge(&lab)?;
        assert_eq!(findings(&lab)?, Vec::<String>::new());
        let cover = cover(&state_directory(&lab)?)?;
        wait_for(says, || {
            let found = findings(&lab)?;
            let about_state = |it: &String| it.contains(says) && it.contains("/run");
            Ok(found.iter().any(about_state).then_some(()))
        })?;
        let is_about_state = |it: &&Record, state: &str| {
            it.text("subject").ends_with("/state.json") && it.is("state", state)
        };
        agent.wait_for("a record says so", |records| {
            records
                .iter()
                .find(|it| is_about_state(it, "partly"))
                .map(drop)
        })?;
        // The spool is another file, which has its room.
        send(&lab)?;
        agent.wait_for("it goes on telling", |records| {
            records.iter().find(|it| is_final(it)).map(drop)
        })?;
        drop(cover);
        wait_for("status is content", || {
            Ok(findings(&lab)?.is_empty().then_some(()))
        })?;
        agent.wait_for("a record says so", |records| {
            records
                .iter()
                .find(|it| is_about_state(it, "covered"))
                .map(drop)
        })?;
        agent.stop(Signal::SIGINT)?;
        lab.close()?;
    }
    Ok(())
}

/// Opens more flows than the spool has room for in advance.
fn open_many(lab: &Lab, sink: &UdpSink) -> Result<Running> {
    const FLOWS: u64 = 8_000;
    let (to, count) = (at(places::FOREIGN6, 9), FLOWS.to_string());
    let words = ["udp-many", &to, "--destinations", &count, "--count", &count];
    let mut sender = traffic(lab)?.args(words).args(["--hold"]).start()?;
    sender.line()?;
    sender.proceed()?;
    sender.line()?;
    sink.wait_for_packets(FLOWS)?;
    Ok(sender)
}

#[test]
fn a_spool_that_cannot_be_written_is_a_finding() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = || lab.agent().policy(&approving()).start();
    start()?.stop(Signal::SIGINT)?;
    let directory = state_directory(&lab)?;
    let cover = Cover::small(&directory, "32m")?;
    let agent = start()?;
    acknowledge(&lab)?;
    assert_eq!(findings(&lab)?, Vec::<String>::new());
    // Room for the state, which is written anew each time.
    let ballast = directory.join("ballast");
    fill(&ballast, 64 << 10)?;
    let mut sender = open_many(&lab, &sink)?;
    wait_for("status says so", || {
        let found = findings(&lab)?;
        // On a busy machine the spool may have taken the room of the state, too.
        let about_room = |it: &String| {
            it.contains("wait to be handed over: spool") || it.contains("has not written its state")
        };
        Ok(found.iter().any(about_room).then_some(()))
    })
    .with_context(|| format!("{:?}", findings(&lab)))?;
    fs::remove_file(&ballast)?;
    wait_for("status is content", || {
        Ok(findings(&lab)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}", findings(&lab)))?;
    sender.proceed()?;
    sender.finish()?.success()?;
    let records = agent.stop(Signal::SIGINT)?.1;
    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    assert_eq!(told_by_verdict(&records)?, left);
    gapless(&records)?;
    drop(cover);
    lab.close()
}

/// Records that its spool has no room for are handed over from memory.
#[test]
fn an_agent_without_room_for_its_spool_ends_and_tells_all() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let start = || lab.agent().policy(&approving()).flows("each").start();
    start()?.stop(Signal::SIGINT)?;
    let directory = state_directory(&lab)?;
    let _cover = Cover::small(&directory, "4m")?;
    let agent = start()?;
    fill(&directory.join("ballast"), 64 << 10)?;
    let sender = open_many(&lab, &sink)?;
    let (_, records) = agent.stop(Signal::SIGINT)?;
    sender.finish()?;
    let left = arrived(&lab, &[("approved", &lab.foreign)])?;
    assert_eq!(told_by_verdict(&records)?, left);
    lab.close()
}
