//! Files that records go to: rotated, full, missing.

mod world;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{detach, kernel_verb, verb};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{approving, at, enforcing, gapless, reporting, traffic};

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
    let mut filler = File::create(&ballast)?;
    let full = (0..).find_map(|_| filler.write_all(&[0; 4096]).err());
    ensure!(full.context("endless")?.kind() == ErrorKind::StorageFull);
    // Only then does it give its room back when it is removed.
    drop(filler);
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
