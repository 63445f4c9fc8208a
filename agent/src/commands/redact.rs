//! `trefoil redact`: a copy of records without persons, which still verifies.

use std::{
    io::{self, BufWriter},
    path::Path,
};

use trefoil_evidence::{entry::Entries, redact::Redaction};

use super::{Ending, Failure};
use crate::{bounded, cli::RedactArgs, report::words};

/// Entries of a file that are named when they cannot be read; the rest are counted.
const MOST_FAULTS: u64 = 10;

/// Records and entries that could not be taken over as they are.
#[derive(Default)]
struct Left {
    unreadable: u64,
    without_evidence: u64,
}

pub fn redact(args: &RedactArgs) -> Result<Ending, Failure> {
    let mut redaction = Redaction::showing(&args.show)
        .map_err(|error| Failure::Usage(format!("--show: {error}")))?;
    if let Some(file) = &args.pseudonyms {
        let named = |error: &dyn std::fmt::Display| {
            Failure::Configuration(format!("the key in {}: {error}", file.display()))
        };
        let key = bounded::read_once(file, bounded::MAX_KEY).map_err(|error| named(&error))?;
        redaction = redaction
            .with_pseudonyms(key)
            .map_err(|error| named(&error))?;
    }
    let mut left = Left::default();
    let mut copy = BufWriter::new(io::stdout().lock());
    for file in &args.files {
        let copied = copy_of(file, &redaction, &mut copy, &mut left)?;
        match copied {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ending::Fine),
            copied => copied
                .map_err(|error| Failure::Other(format!("write to standard output: {error}")))?,
        }
    }
    if left.without_evidence > 0 {
        eprintln!(
            "trefoil: {} made without evidence: {} without persons, and nothing proves that",
            words::count(left.without_evidence, "record"),
            if left.without_evidence == 1 {
                "it is"
            } else {
                "they are"
            },
        );
    }
    if left.unreadable > 0 {
        eprintln!(
            "trefoil: {} left out",
            words::count(left.unreadable, "unreadable record")
        );
    }
    Ok(match left.unreadable {
        0 => Ending::Fine,
        _ => Ending::Findings,
    })
}

/// Copies the records of a file. The inner result is of writing.
fn copy_of(
    file: &Path,
    redaction: &Redaction,
    copy: &mut impl io::Write,
    left: &mut Left,
) -> Result<io::Result<()>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Configuration(format!("read records in {}: {error}", file.display()))
    };
    let mut entries = Entries::new(bounded::lines(file).map_err(|error| failed(&error))?);
    loop {
        let entry = match entries.read() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(copy.flush()),
            Err(error) if error.is_final() => return Err(failed(&error)),
            Err(error) => {
                left.unreadable += 1;
                if left.unreadable <= MOST_FAULTS {
                    eprintln!("trefoil: {}:{}: {error}", file.display(), entries.line());
                }
                continue;
            }
        };
        left.without_evidence += u64::from(entry.digest().is_none());
        let line = serde_json::Value::Object(redaction.apply(&entry));
        if let Err(error) = writeln!(copy, "{line}") {
            return Ok(Err(error));
        }
    }
}
