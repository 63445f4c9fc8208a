//! JSON lines, to a file or to standard output.
//!
//! A file is one by its name: if another one has the name, or none, the next record
//! goes into a file of that name, as those expect who rotate logs.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{Sealed, Sink, sink::Lines};

/// A record a line, written at once and in whole.
#[derive(Debug)]
pub struct Json {
    lines: Lines,
    /// Path to open again; `None` for standard output.
    path: Option<PathBuf>,
    text: String,
}

impl Json {
    /// Appends to a file, which is made if it is not there.
    ///
    /// A last line that a killed agent did not finish is removed: the spool
    /// still has that record, and it is written again.
    ///
    /// # Errors
    ///
    /// Those of opening and reading the file.
    pub fn file(path: &Path) -> io::Result<Self> {
        Ok(Self {
            lines: Lines::new(open(path)?)?,
            path: Some(path.to_owned()),
            text: String::new(),
        })
    }

    /// Writes to standard output.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self {
            lines: Lines::new(file)?,
            path: None,
            text: String::new(),
        })
    }

    #[cfg(test)]
    pub(super) fn of(lines: Lines) -> Self {
        Self {
            lines,
            path: None,
            text: String::new(),
        }
    }

    /// Goes where the name leads by now, which costs a look at it for each record.
    fn follow(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let held = self.lines.file().metadata()?;
        let is_held = match fs::metadata(path) {
            Ok(named) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !is_held {
            return self.reopen();
        }
        // The text that it appended is at the end as long as nobody has truncated the file.
        if self.lines.is_partway() && held.is_file() && held.len() < self.lines.n_written() {
            self.lines.begin_anew();
        }
        Ok(())
    }
}

impl Sink for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        self.follow()?;
        self.text.clear();
        self.text.push_str(sealed.line());
        self.text.push('\n');
        self.lines.write(sealed.seq(), &self.text)
    }

    fn is_partway(&self, seq: u64) -> bool {
        self.lines.is_at(seq)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let file = open(path)?;
        if self.lines.is_partway() {
            // It comes again, in whole, and half a line is of no use.
            let _ = mend(self.lines.file());
        }
        self.lines.go_on_in(file)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)?;
    // A pipe has no end that could be looked at.
    if file.metadata()?.is_file() {
        mend(&file)?;
    }
    Ok(file)
}

/// Ends the file with a whole line.
fn mend(mut file: &File) -> io::Result<()> {
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
    io::Write::write_all(&mut file, b"\n")
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

    /// The numbers of the records in a file.
    fn seqs(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        let records = text.lines().map(|line| Record::from_json(line).unwrap());
        records
            .map(|record| record.number(crate::report::Field::Seq).unwrap())
            .collect()
    }

    #[test]
    fn a_file_that_was_rotated_is_left_for_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("r.json"), dir.path().join("r.json.1"));
        let mut json = Json::file(&path).unwrap();
        json.hand_over(&sealed(1)).unwrap();
        fs::rename(&path, &old).unwrap();
        json.hand_over(&sealed(2)).unwrap();
        assert_eq!((seqs(&old), seqs(&path)), (vec![1], vec![2]), "renamed");

        fs::rename(&path, &old).unwrap();
        fs::write(&path, "").unwrap();
        json.hand_over(&sealed(3)).unwrap();
        assert_eq!((seqs(&old), seqs(&path)), (vec![2], vec![3]), "replaced");

        fs::remove_file(&path).unwrap();
        json.hand_over(&sealed(4)).unwrap();
        assert_eq!(seqs(&path), [4], "deleted");

        fs::copy(&path, &old).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        json.hand_over(&sealed(5)).unwrap();
        assert_eq!((seqs(&old), seqs(&path)), (vec![4], vec![5]), "truncated");

        fs::remove_dir_all(dir.path()).unwrap();
        json.hand_over(&sealed(6)).unwrap_err();
        fs::create_dir(dir.path()).unwrap();
        json.hand_over(&sealed(6)).unwrap();
        assert_eq!(seqs(&path), [6], "with its directory");
    }

    #[test]
    fn a_signal_opens_the_file_before_there_is_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        let mut json = Json::file(&path).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        json.reopen().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut json = Json::file(Path::new("/dev/full")).unwrap();
        let error = json.hand_over(&sealed(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
