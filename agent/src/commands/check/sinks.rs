//! Places that `run` would write to, tried without changing them.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt as _, net::UnixDatagram},
    path::Path,
};

use nix::unistd::{AccessFlags, Uid, access};

use crate::{
    commands::sources,
    evidence::{self, EvidenceError},
    kernel::PinDir,
    settings::{DEFAULT_JOURNAL, Settings},
    state::State,
};

/// Returns the problems of places that could not be opened or made. A place that only root
/// may use is left to root to try.
pub fn problems(settings: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    let is_telling = |error: &io::Error| {
        error.kind() != io::ErrorKind::PermissionDenied || Uid::effective().is_root()
    };
    if let Some(file) = settings
        .json
        .as_deref()
        .filter(|file| *file != Path::new("-"))
        && let Err(error) = try_append(file)
        && is_telling(&error)
    {
        problems.push(sources::no_records(file, &error));
    }
    if let Some(directory) = &settings.evidence {
        if let Err(error) = try_make(directory)
            && is_telling(&error)
        {
            problems.push(format!(
                "keep evidence in {}: {error}; name a directory that can be made and written with \
                 `evidence`",
                directory.display()
            ));
        }
        match evidence::check(directory) {
            Err(EvidenceError::Io { source, .. }) if !is_telling(&source) => {}
            checked => problems.extend(checked.err().map(|error| error.to_string())),
        }
    }
    // Where there is none at the usual place, the agent does without.
    if let Some(socket) = &settings.journal
        && (socket != Path::new(DEFAULT_JOURNAL) || socket.exists())
        && let Err(error) = UnixDatagram::unbound().and_then(|it| it.connect(socket))
        && is_telling(&error)
    {
        problems.push(format!(
            "connect to the journal at {}: {error}; name journald's socket with `journal`, or \
             \"none\"",
            socket.display()
        ));
    }
    let dir = State::dir(&settings.pin_dir);
    if let Err(error) = try_make(&dir)
        && is_telling(&error)
    {
        problems.push(format!(
            "write the numbers of records in {}: {error}; mount /run writable",
            dir.display()
        ));
    }
    if let Err(error) = PinDir::new(&settings.pin_dir).check_place() {
        problems.push(error.to_string());
    }
    problems
}

/// Opens a file as `run` does, and does not make it.
fn try_append(file: &Path) -> io::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file);
    match (opened, file.parent()) {
        (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound => try_write_in(dir),
        (opened, _) => opened.map(drop),
    }
}

/// Looks whether a directory could be made and written in.
fn try_make(dir: &Path) -> io::Result<()> {
    let existing = dir.ancestors().find(|dir| dir.exists());
    try_write_in(existing.unwrap_or(Path::new("/")))
}

fn try_write_in(dir: &Path) -> io::Result<()> {
    if !fs::metadata(dir)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    access(dir, AccessFlags::W_OK | AccessFlags::X_OK)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_json(file: &Path) -> Settings {
        Settings {
            json: Some(file.to_owned()),
            journal: None,
            ..Settings::default()
        }
    }

    #[test]
    fn what_run_will_open_is_tried_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("records.json");
        let of_file = |file: &Path| -> Vec<String> {
            let name = file.display().to_string();
            let all = problems(&with_json(file)).into_iter();
            all.filter(|problem| problem.contains(&name)).collect()
        };
        assert!(of_file(&file).is_empty());
        assert!(!file.exists());
        fs::write(&file, "kept\n").unwrap();
        assert!(of_file(&file).is_empty());
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
        let without_dir = dir.path().join("missing/records.json");
        assert!(of_file(&without_dir)[0].contains("make its directory"));
        assert_eq!(of_file(dir.path()).len(), 1, "a directory");
        assert_eq!(of_file(&file.join("records.json")).len(), 1, "below a file");
    }

    #[test]
    fn a_log_that_no_agent_could_go_on_with_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = dir.path().join("evidence");
        let of_log = |directory: &Path| -> Vec<String> {
            let settings = Settings {
                evidence: Some(directory.to_owned()),
                journal: None,
                ..Settings::default()
            };
            let name = directory.display().to_string();
            let all = problems(&settings).into_iter();
            all.filter(|problem| problem.contains(&name)).collect()
        };
        assert!(of_log(&evidence).is_empty());
        assert!(!evidence.exists());
        fs::create_dir(&evidence).unwrap();
        fs::write(evidence.join("key"), [7; 32]).unwrap();
        assert!(of_log(&evidence).is_empty());
        for (name, contents, told) in [
            ("key", "short", "a key has 32 bytes"),
            ("state", "{", "it is no state"),
            (
                "state",
                r#"{"note":"n","first":0,"before":"","size":1,"behind":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
                "digests that a checkpoint covers are not there",
            ),
        ] {
            let file = evidence.join(name);
            let kept = fs::read(&file).ok();
            fs::write(&file, contents).unwrap();
            let all = of_log(&evidence);
            assert!(all.len() == 1 && all[0].contains(told), "{all:?}");
            match kept {
                Some(kept) => fs::write(&file, kept).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
        }
        let below_a_file = evidence.join("key/evidence");
        assert!(!of_log(&below_a_file).is_empty());
    }

    #[test]
    fn a_journal_that_nobody_serves_is_a_problem_if_it_was_named() {
        let settings = Settings {
            journal: Some("/nowhere/journal".into()),
            ..Settings::default()
        };
        let all = problems(&settings);
        assert!(
            all.iter().any(|it| it.contains("/nowhere/journal")),
            "{all:?}"
        );
    }
}
