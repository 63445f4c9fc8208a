//! `trefoil-verify`: checks records of Trefoil against the checkpoints among them, without root, network
//! or anything of the host that they are from.
//!
//! Exit codes: 0 all is there and whole; 1 findings; 2 usage; 78 a file or a key that cannot be read.

use std::{fmt::Write as _, io, path::Path, process::ExitCode};

use serde_json::json;
use trefoil_bounded as bounded;
use trefoil_evidence::{
    entry::{Entries, Entry},
    note::VerifyingKey,
    verify::{Finding, LogVerdict, Verdict, Verifier},
};

use self::arguments::{Arguments, Records, Verb};

pub mod arguments;
mod statement;

const FINDINGS: u8 = 1;
const BAD_FILE: u8 = 78;

/// Does what the command line asks for, prints what there is to say, and returns the exit code.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let outcome = match (&arguments.command, &arguments.records) {
        (Some(Verb::Statement(period)), _) => statement::state(period),
        (None, Some(records)) => verify(records, |_| {}).map(|(verdict, unreadable)| {
            let text = match records.json {
                true => format!("{}\n", as_json(&verdict, &unreadable)),
                false => as_text(&verdict, &unreadable),
            };
            (text, verdict.is_clean() && unreadable.is_empty())
        }),
        // Without a command, clap asks for records.
        (None, None) => Err("no records".to_owned()),
    };
    match outcome {
        Ok((text, is_clean)) => {
            print!("{text}");
            match is_clean {
                true => ExitCode::SUCCESS,
                false => FINDINGS.into(),
            }
        }
        Err(error) => {
            eprintln!("trefoil-verify: {error}");
            BAD_FILE.into()
        }
    }
}

impl Records {
    pub(crate) fn keys(&self) -> Result<Vec<VerifyingKey>, String> {
        self.keys.iter().map(|text| key(text)).collect()
    }

    /// Names of the logs that there are keys of.
    pub(crate) fn names(&self) -> Result<Vec<String>, String> {
        let name = |key: &VerifyingKey| key.name().to_owned();
        Ok(self.keys()?.iter().map(name).collect())
    }
}

/// Verifies all files, and shows each record to `look`. Returns the lines that are no records, too.
fn verify(
    arguments: &Records,
    mut look: impl FnMut(&Entry),
) -> Result<(Verdict, Vec<String>), String> {
    let (keys, names) = (arguments.keys()?, arguments.names()?);
    let mut verifier = Verifier::new(keys);
    for (log, index) in &arguments.begins {
        match log {
            Some(log) if !names.contains(log) => {
                return Err(format!(
                    "--from: no key is of `{log}`; keys are of {}",
                    names.join(", ")
                ));
            }
            Some(log) => verifier.begin_log_at(log.clone(), *index),
            None => names
                .iter()
                .for_each(|log| verifier.begin_log_at(log.clone(), *index)),
        }
    }
    for file in &arguments.checkpoints {
        let note = text(file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let expected = verifier.expect(&note);
        expected.map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let mut unreadable = Vec::new();
    for file in &arguments.files {
        verifier.begin_source();
        let source = bounded::lines(file);
        let source = source.map_err(|error| format!("open {}: {error}", file.display()))?;
        let mut entries = Entries::new(source);
        loop {
            match entries.read() {
                Ok(Some(entry)) => {
                    verifier.add(&entry);
                    look(&entry);
                }
                Ok(None) => break,
                Err(error) if error.is_final() => {
                    return Err(format!("read {}: {error}", file.display()));
                }
                Err(error) => {
                    unreadable.push(format!("{}:{}: {error}", file.display(), entries.line()));
                }
            }
        }
    }
    Ok((verifier.finish(), unreadable))
}

/// Reads a key, or the file that it is in.
fn key(text: &str) -> Result<VerifyingKey, String> {
    if let Ok(key) = VerifyingKey::parse(text) {
        return Ok(key);
    }
    let contents = self::text(Path::new(text))
        .map_err(|error| format!("{text} is no key, and no file with one: {error}"))?;
    VerifyingKey::parse(&contents).map_err(|error| format!("{text}: {error}"))
}

/// Reads a file with a key or a checkpoint.
fn text(file: &Path) -> io::Result<String> {
    let content = bounded::read_once(file, bounded::MAX_KEY)?;
    String::from_utf8(content)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// Findings that are shown of each log. All of them are in JSON.
const MOST_SHOWN: usize = 50;

fn as_text(verdict: &Verdict, unreadable: &[String]) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    for log in &verdict.logs {
        let LogVerdict {
            origin,
            first,
            size,
            n_checkpoints,
            n_records,
            n_unanchored,
            ..
        } = log;
        line(format!(
            "{origin}: index {first} to {}",
            size.saturating_sub(1)
        ));
        line(format!(
            "  {n_records} records are whole and in their places"
        ));
        line(format!(
            "  {n_checkpoints} checkpoints are signed and go on from each other"
        ));
        if *n_unanchored > 0 {
            line(format!(
                "  {n_unanchored} records are covered by no checkpoint"
            ));
        }
        for finding in log.findings.iter().take(MOST_SHOWN) {
            line(format!("  {finding}"));
        }
        if log.findings.len() > MOST_SHOWN {
            line(format!(
                "  and {} findings more: see --json",
                log.findings.len() - MOST_SHOWN
            ));
        }
        line(format!("  to go on from here: --from {origin}={size}"));
    }
    for finding in &verdict.findings {
        line(finding.to_string());
    }
    for place in unreadable {
        line(place.clone());
    }
    let n_others = [
        (
            verdict.n_without_evidence,
            "records were made without evidence",
        ),
        (
            verdict.n_without_log,
            "records are of hosts without a valid checkpoint",
        ),
    ];
    for (n, words) in n_others.into_iter().filter(|(n, _)| *n > 0) {
        line(format!("{n} {words}"));
    }
    let n_findings: usize = verdict.logs.iter().map(|log| log.findings.len()).sum();
    line(match verdict.is_clean() && unreadable.is_empty() {
        true => "nothing is changed or missing".to_owned(),
        false => format!(
            "{} findings",
            n_findings + verdict.findings.len() + unreadable.len()
        ),
    });
    text
}

fn as_json(verdict: &Verdict, unreadable: &[String]) -> serde_json::Value {
    let texts = |findings: &[Finding]| -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    };
    let log = |log: &LogVerdict| {
        json!({
            "log": log.origin,
            "first": log.first,
            "size": log.size,
            "checkpoints": log.n_checkpoints,
            "records": log.n_records,
            "unanchored": log.n_unanchored,
            "findings": texts(&log.findings),
        })
    };
    json!({
        "logs": verdict.logs.iter().map(log).collect::<Vec<_>>(),
        "findings": texts(&verdict.findings),
        "unreadable": unreadable,
        "without_evidence": verdict.n_without_evidence,
        "without_log": verdict.n_without_log,
        "clean": verdict.is_clean() && unreadable.is_empty(),
    })
}
