//! The journal is the report: beside the service's own log, explained, and with
//! the same facts as JSON.

mod world;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{acknowledge, kernel_verb};
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use world::{TRAFFIC, at, reporting, traffic_in};

/// A violation by `shop.service`: its record, and the journal's entry of it.
fn violation(lab: &Lab) -> Result<(Record, Record)> {
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let outcome = traffic_in(lab, "shop.service")?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?
        .success()?;
    let record = agent.wait_for("the violation", |records| {
        records
            .iter()
            .find(|record| record.is("event", "violation") && record.is("pid", outcome.pid))
            .cloned()
    })?;
    let sequence = format!("TREFOIL_SEQ={}", record.text("seq"));
    let journal = lab.journal()?;
    let entry = wait_for("the journal's entry", || {
        Ok(journal.entries(&[&sequence])?.pop())
    })?;
    agent.stop(Signal::SIGINT)?;
    Ok((record, entry))
}

#[test]
fn a_violation_stands_beside_the_log_of_its_service() -> Result<()> {
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
    let (_, entry) = violation(&lab)?;
    let log = wait_for("the service's own log", || {
        let text = journal.text(&["-q", "-o", "cat", "-u", "shop.service"])?;
        Ok(text.contains("open for business").then_some(text))
    })?;
    let message = entry.text("MESSAGE");
    ensure!(
        log.contains(&message),
        "not in the log of shop.service: {message}\n{log}"
    );
    let other = journal.text(&["-q", "-o", "cat", "-u", "other.service"])?;
    ensure!(other.is_empty(), "in the log of other.service: {other}");
    service.finish()?.success()?;
    lab.close()
}

#[test]
fn the_journal_has_every_fact_that_json_has() -> Result<()> {
    let lab = Lab::new()?;
    let (record, entry) = violation(&lab)?;
    for (name, value) in record.facts() {
        if value.is_null() {
            continue;
        }
        let field = match name {
            // The journal has fields of its own for these.
            "message" | "priority" => name.to_uppercase(),
            _ => format!("TREFOIL_{}", name.to_uppercase()),
        };
        ensure!(
            entry.text(&field) == record.text(name),
            "{name} is {:?} and {field} is {:?}",
            record.text(name),
            entry.text(&field)
        );
    }
    for (field, expected) in [
        ("OBJECT_SYSTEMD_UNIT", "shop.service".to_owned()),
        ("SYSLOG_IDENTIFIER", "trefoil".to_owned()),
    ] {
        ensure!(
            entry.is(field, &expected),
            "{field} is not {expected}: {entry}"
        );
    }
    // journald would add the command line, secrets included, if it were told
    // the process id in a field of its own.
    ensure!(
        !entry.facts().any(|(name, _)| name == "OBJECT_CMDLINE"),
        "{entry}"
    );
    ensure!(entry.number("PRIORITY")? <= 5, "{entry}");
    ensure!(entry.text("MESSAGE_ID").len() == 32, "{entry}");
    let message = entry.text("MESSAGE");
    for fact in ["shop.service", "203.0.113.10"] {
        ensure!(
            message.contains(fact),
            "a message that does not name {fact}: {message}"
        );
    }
    lab.close()
}

#[test]
fn journalctl_explains_a_violation() -> Result<()> {
    let lab = Lab::new()?;
    let (_, entry) = violation(&lab)?;
    // journalctl reads the system's own database and knows no option for another
    // place: in a mount namespace of its own it finds ours there.
    let root = lab.file("catalog");
    let sources = root.join("usr/lib/systemd/catalog");
    std::fs::create_dir_all(&sources)?;
    std::fs::create_dir_all(root.join("var/lib/systemd/catalog"))?;
    let catalog = catalog()?;
    std::fs::copy(&catalog, sources.join("trefoil.catalog"))?;
    let update = Command::new("journalctl")
        .arg("--update-catalog")
        .arg(format!("--root={}", root.display()))
        .output()?;
    ensure!(
        update.status.success(),
        "{}",
        String::from_utf8_lossy(&update.stderr)
    );
    let shown = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mkdir -p /var/lib/systemd/catalog\nmount --bind \"$1\" /var/lib/systemd/catalog\nshift\nexec \"$@\"")
        .arg("sh")
        .arg(root.join("var/lib/systemd/catalog"))
        .arg("journalctl")
        .args([&format!("--namespace={}", lab.journal()?.name()), "--no-pager", "-q", "-x"])
        .arg(format!("MESSAGE_ID={}", entry.text("MESSAGE_ID")))
        .output()?;
    let text = String::from_utf8_lossy(&shown.stdout);
    ensure!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    ensure!(text.contains(&entry.text("MESSAGE")), "{text}");
    ensure!(
        text.contains("░░ Subject:") || text.contains("-- Subject:"),
        "{text}"
    );
    lab.close()
}

/// The catalog that is shipped.
fn catalog() -> Result<PathBuf> {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let mut directories = vec![packaging];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "catalog")
            {
                return Ok(path);
            }
        }
    }
    None.context("no file *.catalog in packaging/")
}

/// Violations come while the agent cannot hand over records; all are there afterwards, once
/// and in order, in the journal and in the file.
fn records_wait(
    lab: &Lab,
    mut agent: Agent<'_>,
    away: impl FnOnce() -> Result<()>,
    back: impl FnOnce() -> Result<()>,
) -> Result<()> {
    // More than the queue of a socket holds, which is 512 at most.
    const DATAGRAMS: usize = 400;
    acknowledge(lab)?;
    away()?;
    traffic_in(lab, "shop.service")?
        .args(["burst", &at(places::FOREIGN, 9), "--program", TRAFFIC])
        .args(["--count", &DATAGRAMS.to_string()])
        .run()?
        .success()?;
    wait_for("status says that records wait", || {
        let status = kernel_verb(lab, "status", &[])?;
        Ok((status.code == 1 && status.stdout.contains("records wait")).then_some(()))
    })?;
    back()?;
    agent.wait_for("violations", |records| {
        let violations = records
            .iter()
            .filter(|record| record.is("event", "violation"));
        (violations.count() == DATAGRAMS).then_some(())
    })?;
    wait_for("status says that all is well", || {
        Ok((kernel_verb(lab, "status", &[])?.code == 0).then_some(()))
    })?;
    let (_, records) = agent.stop(Signal::SIGINT)?;
    let entries = lab.journal()?.entries(&["SYSLOG_IDENTIFIER=trefoil"])?;
    let numbers = |records: &[Record]| -> Vec<String> {
        records
            .iter()
            .map(|record| format!("{}{}", record.text("seq"), record.text("TREFOIL_SEQ")))
            .collect()
    };
    assert_eq!(numbers(&entries), numbers(&records));
    Ok(())
}

#[test]
fn records_wait_for_a_journal_that_is_away() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).start()?;
    let journal = lab.journal()?;
    records_wait(&lab, agent, || journal.stop(), || journal.start_again())?;
    lab.close()
}

#[test]
fn records_wait_for_a_disk_that_is_full() -> Result<()> {
    let mut lab = Lab::new()?;
    let disk = lab.small_disk()?;
    let agent = lab.agent().policy(&reporting()).records_in(&disk).start()?;
    let ballast = disk.join("ballast");
    records_wait(
        &lab,
        agent,
        || {
            let mut file = File::create(&ballast)?;
            let full = (0..)
                .find_map(|_| file.write_all(&[0; 4096]).err())
                .context("endless")?;
            ensure!(full.kind() == ErrorKind::StorageFull, "{full}");
            Ok(())
        },
        || Ok(std::fs::remove_file(&ballast)?),
    )?;
    lab.close()
}
