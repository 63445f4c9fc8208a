//! JSON lines, to a file or to standard output.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use super::{Sealed, Sink, sink::Lines};

/// A record a line, written at once and in whole.
#[derive(Debug)]
pub struct Json {
    lines: Lines,
    text: String,
}

impl Json {
    /// Appends to a file, which is made if it is not there.
    ///
    /// A last line that a killed agent did not finish is removed: the sequence
    /// file still has that record, and it is written again.
    ///
    /// # Errors
    ///
    /// Those of opening and reading the file.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        if file.metadata()?.is_file() {
            mend(&mut file)?;
        }
        Self::new(file)
    }

    /// Writes to standard output.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn stdout() -> io::Result<Self> {
        Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    fn new(file: File) -> io::Result<Self> {
        Ok(Self {
            lines: Lines::new(file)?,
            text: String::new(),
        })
    }
}

impl Sink for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        self.text.clear();
        self.text.push_str(sealed.line());
        self.text.push('\n');
        self.lines.write(sealed.seq(), &self.text)
    }

    fn is_partway(&self) -> bool {
        self.lines.is_partway()
    }
}

/// Ends the file with a whole line.
fn mend(file: &mut File) -> io::Result<()> {
    /// More than any record has.
    const TAIL: u64 = 1 << 20;
    let len = file.metadata()?.len();
    let start = len.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let line_start = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |index| index + 1);
    let rest = &tail[line_start..];
    if rest.is_empty() {
        return Ok(());
    }
    if b"{\"event\":".starts_with(&rest[..rest.len().min(9)]) {
        return file.set_len(start + line_start as u64);
    }
    // Not ours to remove.
    io::Write::write_all(file, b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::{Kind, Priority, Record};

    fn sealed(seq: u64) -> Sealed {
        Sealed::new(Record::new(Kind::Heartbeat, Priority::Info, 0, "a\nb"), seq)
    }

    #[test]
    fn every_record_is_one_line_and_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        Json::file(&path).unwrap().hand_over(&sealed(1)).unwrap();
        Json::file(&path).unwrap().hand_over(&sealed(2)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let records: Vec<_> = text
            .lines()
            .map(|line| Record::from_json(line).unwrap())
            .collect();
        assert_eq!(
            records,
            [sealed(1).record().clone(), sealed(2).record().clone()]
        );
    }

    #[test]
    fn an_unfinished_line_of_ours_is_removed_and_anything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        let whole = format!("{}\n", sealed(1).line());
        let cases = [
            (String::new(), String::new()),
            (whole.clone(), whole.clone()),
            (format!("{whole}{{\"ev"), whole.clone()),
            (format!("{whole}{}", sealed(2).line()), whole.clone()),
            ("{\"event\":\"fl".to_owned(), String::new()),
            (format!("{whole}notes"), format!("{whole}notes\n")),
        ];
        for (before, after) in cases {
            fs::write(&path, &before).unwrap();
            Json::file(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after, "{before}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut json = Json::file(Path::new("/dev/full")).unwrap();
        let error = json.hand_over(&sealed(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
