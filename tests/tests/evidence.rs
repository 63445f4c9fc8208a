//! Records that were reported over kills, in a file and in the journal, and what `trefoil-verify` says of
//! them, of changed ones, and of parts.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Lab, places};
use world::{TRAFFIC, at, reporting};

/// An auditor, with the public key and the program.
struct Auditor {
    program: PathBuf,
    key: PathBuf,
}

impl Auditor {
    fn new(lab: &Lab) -> Result<Self> {
        let program = trefoil_lab::agent::trefoil()?.with_file_name("trefoil-verify");
        Ok(Self {
            program,
            key: lab.file("evidence/key.pub"),
        })
    }

    /// Exit code, and what it prints.
    fn asked(&self, more: &[&str], files: &[&Path]) -> Result<(i32, String)> {
        let mut command = Command::new(&self.program);
        command.arg("--key").arg(&self.key).args(more).args(files);
        let output = command
            .output()
            .with_context(|| format!("run {command:?}"))?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().context("killed")?, text.into_owned()))
    }

    fn verdict(&self, file: &Path) -> Result<Value> {
        let (_, text) = self.asked(&["--json"], &[file])?;
        serde_json::from_str(&text).with_context(|| text)
    }
}

/// Traffic over agents of which all but the last are killed. Returns the lines of all of them.
fn day(lab: &Lab) -> Result<String> {
    let settings = format!(
        "evidence = \"{}\"\nheartbeat_interval = \"1s\"\n",
        lab.file("evidence").display()
    );
    let mut lines = String::new();
    for number in 0..4 {
        let mut agent = lab
            .agent()
            .policy(&reporting())
            .settings(&settings)
            .start()?;
        for place in [places::PEER, places::FOREIGN] {
            let program = lab.program(TRAFFIC)?;
            program
                .args(["udp", &at(place, 9), "--count", "3"])
                .run()?
                .success()?;
        }
        agent.wait_for("a checkpoint", |records| {
            let is_checkpoint = records
                .iter()
                .any(|record| record.is("event", "checkpoint"));
            is_checkpoint.then_some(())
        })?;
        let signal = if number < 3 {
            Signal::SIGKILL
        } else {
            Signal::SIGINT
        };
        for record in agent.stop(signal)?.1 {
            lines.push_str(&record.to_string());
            lines.push('\n');
        }
    }
    Ok(lines)
}

fn findings(verdict: &Value) -> Vec<String> {
    let list = verdict["logs"][0]["findings"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

#[test]
fn records_prove_that_they_are_whole_and_all_there() -> Result<()> {
    let lab = Lab::new()?;
    let journal = lab.journal()?;
    let lines = day(&lab)?;
    let auditor = Auditor::new(&lab)?;
    let file = lab.file("all.json");
    fs::write(&file, &lines)?;
    let (code, text) = auditor.asked(&[], &[&file])?;
    ensure!(
        code == 0 && text.contains("nothing is changed or missing"),
        "{text}"
    );
    let of_file = auditor.verdict(&file)?;

    // The same from the journal, in both of its formats.
    for (format, name) in [("export", "all.export"), ("json", "all.journal")] {
        let copy = lab.file(name);
        let said = journal
            .command()
            .args(["-q", "--all", "-o", format])
            .output()?;
        fs::write(&copy, said.stdout)?;
        let of_journal = auditor.verdict(&copy)?;
        // An agent that was killed may have handed a record to the journal that the next one hands
        // over once more.
        let others: Vec<String> = findings(&of_journal)
            .into_iter()
            .filter(|finding| !finding.starts_with("repeated"))
            .collect();
        let sizes = |verdict: &Value| {
            let log = &verdict["logs"][0];
            ["size", "records", "checkpoints", "unanchored"].map(|name| log[name].clone())
        };
        ensure!(
            others.is_empty() && sizes(&of_journal) == sizes(&of_file),
            "{format}: {of_journal} {of_file}"
        );
    }

    // Any part, from an index on.
    let n_lines = lines.lines().count();
    for from in [1, 5, n_lines / 2] {
        let part: Vec<&str> = lines.lines().skip(from).collect();
        fs::write(&file, part.join("\n"))?;
        let (code, text) = auditor.asked(&["--from", &from.to_string()], &[&file])?;
        ensure!(code == 0, "from {from}: {text}");
        let (code, text) = auditor.asked(&[], &[&file])?;
        ensure!(code == 1, "from {from}, and all is asked for: {text}");
    }
    lab.close()
}

#[test]
fn whatever_is_done_to_a_record_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let lines = day(&lab)?;
    let all: Vec<&str> = lines.lines().collect();
    let auditor = Auditor::new(&lab)?;
    let file = lab.file("changed.json");
    let said = |changed: &[String]| -> Result<Vec<String>> {
        fs::write(&file, changed.join("\n"))?;
        Ok(findings(&auditor.verdict(&file)?))
    };
    let whole: Vec<String> = all.iter().map(|line| (*line).to_owned()).collect();
    ensure!(said(&whole)?.is_empty());
    // The last one is a checkpoint, which none covers.
    for index in 0..all.len() - 1 {
        let mut altered = whole.clone();
        altered[index] = altered[index].replacen("\"host\":\"", "\"host\":\"x", 1);
        let named = said(&altered)?;
        let name = format!("index {index}");
        let names = |named: &[String]| {
            named.iter().any(|it| {
                let mut words = it.split(&name).skip(1);
                words.any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            })
        };
        ensure!(names(&named), "altered {index}: {named:?}");
        let mut without = whole.clone();
        without.remove(index);
        let named = said(&without)?;
        ensure!(
            names(&named) || named.iter().any(|it| it.starts_with("gap")),
            "{index}: {named:?}"
        );
    }
    lab.close()
}

/// Bytes that a statement has, by verdict, are those that the far ends have received, over kills.
#[test]
fn a_statement_has_the_bytes_that_arrived() -> Result<()> {
    const HEADERS: u64 = 28;
    let lab = Lab::new()?;
    let sinks = [UdpSink::new(&lab.peer, 9)?, UdpSink::new(&lab.foreign, 9)?];
    let lines = day(&lab)?;
    let auditor = Auditor::new(&lab)?;
    let file = lab.file("all.json");
    fs::write(&file, &lines)?;
    let mut arrived = Vec::new();
    for sink in &sinks {
        let sum = sink.wait_for_packets(12)?;
        arrived.push(sum.bytes + HEADERS * sum.packets);
    }
    let records: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let is_beat = |record: &&Value| record["event"] == "heartbeat";
    let mut beats = records.iter().filter(is_beat);
    let time = |record: Option<&Value>| -> Result<String> {
        let time = record.and_then(|it| it["time"].as_str());
        Ok(time.context("no heartbeat")?.to_owned())
    };
    let (first, last) = (time(beats.next())?, time(beats.next_back())?);
    // On a busy machine something was sent before the first heartbeat.
    let begun = time(records.first())?;
    let stated = |files: &[&Path], since: &str, until: &str| -> Result<(i32, Value)> {
        let mut command = Command::new(&auditor.program);
        command.args(["statement", "--json", "--since", since, "--until", until]);
        let output = command
            .arg("--key")
            .arg(&auditor.key)
            .args(files)
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let value = serde_json::from_str(&text).with_context(|| format!("{text} {command:?}"))?;
        Ok((output.status.code().context("killed")?, value))
    };
    let (code, said) = stated(&[&file], &begun, &last)?;
    let host = &said["hosts"][0];
    ensure!(code == 1 && said["findings"] == 0, "{said:#}");
    // Of all these agents only the last has ended what it watched by.
    let gaps = host["gaps"].as_array().into_iter().flatten();
    let causes: Vec<&Value> = gaps.map(|gap| &gap["cause"]).collect();
    ensure!(
        causes.first().is_some_and(|it| *it == "no record before")
            && causes[1..].iter().all(|it| *it == "detached")
            && causes.len() <= 2,
        "{said:#}"
    );
    ensure!(
        said["bytes"]["approved"] == arrived[0] && said["bytes"]["denied"] == arrived[1],
        "{arrived:?}: {said:#}"
    );
    ensure!(host["bytes_residual"] == arrived[1], "{said:#}");
    // Of what comes after nothing is known.
    let (code, said) = stated(&[&file], &begun, "2999-01-01T00:00:00Z")?;
    let gaps = said["hosts"][0]["gaps"].as_array().context("no gaps")?;
    let last_cause = gaps.last().context("no gap")?["cause"].as_str();
    ensure!(
        code == 1 && last_cause == Some("no record after"),
        "{said:#}"
    );
    // Until the next moment nothing had been sent.
    let (whole, fraction) = first.split_once('.').context("no fraction")?;
    let micros: u64 = fraction.trim_end_matches('Z').parse()?;
    let (code, said) = stated(
        &[&file],
        &first,
        &format!("{whole}.{:06}Z", (micros + 1).min(999_999)),
    )?;
    ensure!(code == 1 && lacks_uplinks_alone(&said), "{said:#}");

    // A record that somebody has taken out is missing in both.
    let copy = lab.file("less.json");
    fs::write(&copy, without_a_flow(&lines)?)?;
    let (code, said) = stated(&[&copy], &begun, &last)?;
    ensure!(code == 1 && said["findings"] != 0, "{said:#}");
    lab.close()
}

/// True if a statement finds no fault but that no uplink was watched, which was told before its period.
fn lacks_uplinks_alone(said: &Value) -> bool {
    let host = &said["hosts"][0];
    host["bytes_residual"] == 0
        && host["gaps"].as_array().is_some_and(Vec::is_empty)
        && host["uncovered"] == json!(["traffic past sockets"])
}

/// The same lines without the first about a flow.
fn without_a_flow(lines: &str) -> Result<String> {
    let mut all = lines.lines();
    let flow = all.find(|line| line.contains("\"event\":\"flow\""));
    Ok(lines.replace(&format!("{}\n", flow.context("no flow")?), ""))
}

/// A copy without persons verifies, from each format, and whoever changes it is found out.
#[test]
fn a_copy_without_persons_proves_as_much() -> Result<()> {
    let lab = Lab::new()?;
    let journal = lab.journal()?;
    let lines = day(&lab)?;
    let auditor = Auditor::new(&lab)?;
    let (own, export, copy) = (
        lab.file("all.json"),
        lab.file("all.export"),
        lab.file("copy.json"),
    );
    fs::write(&own, &lines)?;
    let said = journal
        .command()
        .args(["-q", "--all", "-o", "export"])
        .output()?;
    fs::write(&export, said.stdout)?;
    let key = lab.file("pseudonyms.key");
    fs::write(&key, [7; 32])?;
    let key = key.display().to_string();
    let redact = |file: &Path, more: &[&str]| -> Result<String> {
        let mut command = Command::new(trefoil_lab::agent::trefoil()?);
        let output = command.arg("redact").arg(file).args(more).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let sizes = |verdict: &Value| {
        let log = &verdict["logs"][0];
        ["size", "records", "checkpoints", "unanchored"].map(|name| log[name].clone())
    };
    for file in [&own, &export] {
        let whole = auditor.verdict(file)?;
        for more in [
            &[][..],
            &["--show", "dst_addr"],
            &["--pseudonyms", &key, "--show", "user", "--show", "exe"],
        ] {
            fs::write(&copy, redact(file, more)?)?;
            let of_copy = auditor.verdict(&copy)?;
            ensure!(
                sizes(&of_copy) == sizes(&whole) && findings(&of_copy) == findings(&whole),
                "{more:?}: {of_copy} {whole}"
            );
        }
    }
    let hidden = redact(&own, &[])?;
    for value in ["198.51.100", "203.0.113", "traffic", "\"root\""] {
        let shows = hidden.lines().filter(|line| {
            let record: BTreeMap<String, Value> = serde_json::from_str(line).unwrap_or_default();
            let is_flow = record.get("event").is_some_and(|it| it == "flow");
            is_flow && line.contains(value)
        });
        ensure!(shows.count() == 0, "{value} is in the copy");
    }
    let shown = redact(&own, &["--show", "dst_addr"])?;
    for (from, to) in [
        ("198.51.100.10", "198.51.100.11"),
        ("\"bytes_out\":", "\"bytes_out\":1"),
    ] {
        fs::write(&copy, shown.replacen(from, to, 1))?;
        let (code, text) = auditor.asked(&[], &[&copy])?;
        ensure!(code == 1 && text.contains("altered"), "{from}: {text}");
    }
    lab.close()
}

#[test]
fn redact_says_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let (file, key) = (lab.file("records.json"), lab.file("key"));
    fs::write(
        &file,
        "{\"event\":\"flow\",\"seq\":1,\"user\":\"bob\"}\n{\n",
    )?;
    fs::write(&key, "short")?;
    let said = |words: &[&str]| -> Result<(i32, String)> {
        let mut command = Command::new(trefoil_lab::agent::trefoil()?);
        let output = command.arg("redact").arg(&file).args(words).output()?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().context("killed")?, text.into_owned()))
    };
    let (code, text) = said(&[])?;
    ensure!(
        code == 1
            && text.contains("{\"event\":\"flow\",\"seq\":1}")
            && text.contains("1 record made without evidence")
            && text.contains("records.json:2:"),
        "{code}: {text}"
    );
    let (code, text) = said(&["--show", "rule"])?;
    ensure!(code == 2 && text.contains("session_addr"), "{code}: {text}");
    let (code, text) = said(&["--pseudonyms", &key.display().to_string()])?;
    ensure!(
        code == 78 && text.contains("/dev/urandom"),
        "{code}: {text}"
    );
    lab.close()
}

/// Bytes before the 32 of a key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_OF_ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Another program checks the signature, by the words of C2SP.
#[test]
fn openssl_agrees_on_the_signature() -> Result<()> {
    let lab = Lab::new()?;
    let lines = day(&lab)?;
    let notes: Vec<String> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<BTreeMap<String, Value>>(line).ok())
        .filter_map(|record| Some(record.get("note")?.as_str()?.to_owned()))
        .collect();
    ensure!(notes.len() >= 4, "{} checkpoints", notes.len());
    let key = fs::read_to_string(lab.file("evidence/key.pub"))?;
    let mut parts = key.trim().splitn(3, '+');
    let (name, public) = (
        parts.next().context("a name")?,
        parts.nth(1).context("a key")?,
    );
    let public = STANDARD.decode(public).ok().context("base64")?;
    let mut der = SPKI_OF_ED25519.to_vec();
    der.extend(&public[1..]);
    let files = ["der", "sig", "txt"].map(|ending| lab.file(&format!("openssl.{ending}")));
    fs::write(&files[0], der)?;
    let is_good = |note: &str| -> Result<bool> {
        let (text, signature) = note.rsplit_once("\n\n").context("a signature")?;
        let signature = signature.trim_start_matches('\u{2014}').trim();
        let (signer, signature) = signature.split_once(' ').context("a signature")?;
        ensure!(signer == name, "{signer} has signed, and not {name}");
        fs::write(
            &files[1],
            &STANDARD.decode(signature).ok().context("base64")?[4..],
        )?;
        fs::write(&files[2], format!("{text}\n"))?;
        let mut command = Command::new("openssl");
        command.args(["pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER"]);
        command
            .arg("-inkey")
            .arg(&files[0])
            .arg("-sigfile")
            .arg(&files[1]);
        Ok(command.arg("-in").arg(&files[2]).output()?.status.success())
    };
    for note in &notes {
        ensure!(is_good(note)?, "{note}");
        ensure!(!is_good(&note.replacen('\n', "\n1", 1))?, "changed: {note}");
    }
    lab.close()
}

#[test]
fn an_auditor_is_told_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let lines = day(&lab)?;
    let auditor = Auditor::new(&lab)?;
    let file = lab.file("all.json");
    fs::write(&file, lines + "{\"event\":\n")?;
    let (code, text) = auditor.asked(&[], &[&file])?;
    ensure!(
        code == 1 && text.contains("all.json:") && text.contains("neither JSON"),
        "{text}"
    );
    let (code, text) = auditor.asked(&[], &[Path::new("/nowhere")])?;
    ensure!(code == 78 && text.contains("/nowhere"), "{text}");
    let (code, text) = auditor.asked(&["--from", "trefoil/other=7"], &[&file])?;
    ensure!(
        code == 78 && text.contains("no key is of `trefoil/other`"),
        "{text}"
    );
    let (code, text) = auditor.asked(&["--from", "x"], &[&file])?;
    ensure!(code == 2 && text.contains("not an index"), "{text}");
    let (code, text) = auditor.asked(&["--key", "/etc/hostname"], &[&file])?;
    ensure!(code == 78 && text.contains("NAME+ID+KEY"), "{text}");
    lab.close()
}
