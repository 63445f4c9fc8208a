//! Where the verbs get what was seen: files, standard input, or what is open now.

use std::{
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use super::{Failure, live::Live};
use crate::{
    bounded::{self, Unreadable},
    flow::Stage,
    observed::{Collector, MAX_FLOWS, Observed, Reading},
};

/// Flows that were seen, and how much of the input could not be read.
#[derive(Debug)]
pub struct Observations {
    /// Flows.
    pub seen: Vec<Observed>,
    /// How reading went.
    pub reading: Reading,
}

impl Observations {
    /// Reads files of records, `-` being standard input.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or has not one record in it.
    pub fn read(files: &[PathBuf]) -> Result<Self, Failure> {
        let is_stdin = |file: &&PathBuf| file.as_os_str() == "-";
        if files.iter().filter(is_stdin).count() > 1 {
            let twice = "`-` is there twice: standard input can be read once";
            return Err(Failure::Usage(twice.to_owned()));
        }
        let mut collector = Collector::default();
        for file in files {
            let name = match is_stdin(&file) {
                true => "standard input".to_owned(),
                false => file.display().to_string(),
            };
            let lines = bounded::lines(file).map_err(|error| cannot_read(&name, &error))?;
            add_lines(&mut collector, &name, lines)?;
        }
        let (seen, reading) = collector.finish();
        let observations = Self { seen, reading };
        if observations.reading.records == 0 {
            observations.say_faults();
            let names: Vec<_> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            return Err(Failure::Other(format!(
                "there is no record of Trefoil in {}; records are what `trefoil run --json FILE` \
                 writes, and `journalctl -u trefoil -o json`, as root",
                names.join(", ")
            )));
        }
        Ok(observations)
    }

    /// Reads the flows that are open now.
    pub fn of_now(live: &mut Live) -> Result<Self, Failure> {
        let mut collector = Collector::default();
        for tracked in live.open_flows()? {
            let record = live.record(&tracked, Stage::Opened)?;
            collector
                .add(&record)
                .map_err(|error| Failure::Other(format!("read an open flow: {error}")))?;
        }
        let (seen, reading) = collector.finish();
        Ok(Self { seen, reading })
    }

    /// Tells on standard error what was not there to be read.
    pub fn say_faults(&self) {
        let Reading {
            faults, unreadable, ..
        } = &self.reading;
        for fault in faults {
            eprintln!("{fault}");
        }
        let n_more = unreadable - faults.len() as u64;
        if n_more > 0 {
            eprintln!("... and {n_more} more");
        }
        for complaint in self.reading.complaints() {
            eprintln!("trefoil: {complaint}");
        }
    }
}

/// One line at a time: a journal of a month need not fit into memory.
fn add_lines(collector: &mut Collector, name: &str, mut file: impl BufRead) -> Result<(), Failure> {
    let (mut line, mut unreadable) = (Vec::new(), Unreadable::default());
    for number in 1.. {
        let read = bounded::read_line(&mut file, &mut line);
        let is_read = match read.map_err(|error| cannot_read(name, &error))? {
            None => break,
            Some(true) => collector.add_line(name, number, &line),
            Some(false) => collector.add_long_line(name, number),
        };
        if !is_read {
            let counted = unreadable.add(line.len());
            counted.map_err(|error| cannot_read(name, &error))?;
        }
        if collector.is_full() {
            return Err(Failure::Other(format!(
                "{name}:{number}: there are more than {MAX_FLOWS} flows and owners, which is the \
                 most that is read at a time; take less time, as `journalctl --since` does, or \
                 one unit at a time"
            )));
        }
    }
    Ok(())
}

fn cannot_read(name: impl AsRef<Path>, error: &io::Error) -> Failure {
    let text = format!("read {}: {error}", name.as_ref().display());
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::NotPermitted(text),
        _ => Failure::Other(text),
    }
}
