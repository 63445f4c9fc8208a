//! Real files and real processes: which hash a process has, and when none.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::*;
use crate::clock;

const MAX_BYTES: u64 = 1 << 30;
/// Beyond the largest process id that Linux hands out.
const NO_PROCESS: u32 = (4 << 20) + 1;

/// `printf program | sha256sum`
const PROGRAM_SHA256: &str = "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8";

/// A process that has ended, and ran this file.
fn ended(path: &Path) -> Running {
    let metadata = fs::metadata(path).unwrap();
    Running {
        pid: NO_PROCESS,
        start_ns: clock::since_boot_ns(),
        device: kernel_device(metadata.dev()),
        inode: metadata.ino(),
        path: path.to_str().unwrap().to_owned(),
    }
}

/// A child that lives until it is dropped.
struct Alive {
    child: Child,
    running: Running,
}

impl Alive {
    fn new(path: &Path) -> Self {
        let child = Command::new(path).arg("600").spawn().unwrap();
        let running = Running {
            pid: child.id(),
            start_ns: start_ticks(child.id()).unwrap() * NS_PER_TICK,
            ..ended(path)
        };
        Self { child, running }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn sha256(running: &Running) -> Option<String> {
    sha256_of(running, &mut Files::default(), MAX_BYTES).map(|hash| hash.to_string())
}

fn sha256_of_file(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory with one program, which is older than any process started from now.
fn program() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    fs::write(&path, "program").unwrap();
    thread::sleep(Duration::from_millis(40));
    (directory, path)
}

/// A copy of `sleep` that can be replaced.
fn sleep() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sleep");
    // Another process copies: a child that another test forks meanwhile would
    // inherit our file descriptor, and the file would be busy.
    assert!(
        Command::new("cp")
            .arg("/bin/sleep")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    (directory, path)
}

#[test]
fn a_process_that_lives_has_the_hash_of_what_it_runs() {
    let (_directory, path) = sleep();
    let expected = sha256_of_file(&path);
    let alive = Alive::new(&path);
    assert_eq!(sha256(&alive.running).as_deref(), Some(expected.as_str()));

    let replacement = path.with_extension("new");
    fs::write(&replacement, "something else").unwrap();
    fs::rename(&replacement, &path).unwrap();
    assert_eq!(
        sha256(&alive.running).as_deref(),
        Some(expected.as_str()),
        "replaced"
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        sha256(&alive.running).as_deref(),
        Some(expected.as_str()),
        "deleted"
    );
}

#[test]
fn another_process_of_the_same_id_is_not_asked() {
    let (_directory, path) = sleep();
    let alive = Alive::new(&path);
    fs::remove_file(&path).unwrap();
    let earlier = Running {
        start_ns: alive.running.start_ns - NS_PER_TICK,
        ..alive.running.clone()
    };
    assert_eq!(sha256(&earlier), None);
    let other_program = Running {
        inode: alive.running.inode + 1,
        ..alive.running.clone()
    };
    assert_eq!(sha256(&other_program), None);
}

#[test]
fn a_process_that_ended_has_the_hash_of_its_path() {
    let (_directory, path) = program();
    assert_eq!(
        sha256(&ended(&path)).as_deref(),
        Some(sha256_of_file(&path).as_str())
    );
}

#[test]
fn a_path_that_leads_to_another_file_has_no_hash() {
    let (_directory, path) = program();
    let running = ended(&path);
    let replacement = path.with_extension("new");
    fs::write(&replacement, "program").unwrap();
    fs::rename(&replacement, &path).unwrap();
    assert_eq!(sha256(&running), None, "same content, but who knows");
    fs::remove_file(&path).unwrap();
    assert_eq!(sha256(&running), None);
    let on_another_device = Running {
        device: running.device + 1,
        ..running
    };
    assert_eq!(sha256(&on_another_device), None);
}

#[test]
fn a_file_that_changed_after_the_start_has_no_hash() {
    let (_directory, path) = program();
    let running = ended(&path);
    thread::sleep(Duration::from_millis(40));
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    (&file).write_all(b"PROGRAM").unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(
        sha256(&running),
        None,
        "although its time of modification says nothing"
    );

    let later = Running {
        start_ns: running.start_ns + 1_000_000_000,
        ..running
    };
    assert_eq!(sha256(&later), Some(sha256_of_file(&path)));
}

#[test]
fn a_file_is_read_once_as_long_as_it_does_not_change() {
    let (_directory, path) = program();
    let running = ended(&path);
    let state = FileState::of(&fs::metadata(&path).unwrap());
    let mut files = Files::default();
    files.insert(state, "from memory".into());
    let hash = |files: &mut Files| sha256_of(&running, files, MAX_BYTES);
    assert_eq!(hash(&mut files).as_deref(), Some("from memory"));
    assert_eq!(hash(&mut Files::default()).unwrap().len(), 64);
}

#[test]
fn a_file_that_is_too_large_has_no_hash() {
    let (_directory, path) = program();
    let running = ended(&path);
    let hash = |max_bytes| sha256_of(&running, &mut Files::default(), max_bytes);
    assert_eq!(hash(6), None);
    assert!(hash(7).is_some());
    assert_eq!(hash(0), None, "switched off");
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    thread::sleep(Duration::from_millis(40));
    for path in [&pipe, Path::new("/dev/zero"), directory.path()] {
        assert_eq!(sha256(&ended(path)), None, "{}", path.display());
    }
    let relative = Running {
        path: ".../bin/true".into(),
        ..ended(Path::new("/bin/true"))
    };
    assert_eq!(sha256(&relative), None);
}

#[test]
fn the_mount_knows_the_device_too() {
    let (_directory, path) = program();
    let file = File::open(&path).unwrap();
    let number = mount_device(&file).unwrap();
    // On the file systems where these differ, the mount is the one that is right.
    let metadata = file.metadata().unwrap();
    assert!(is_on_device(&file, &metadata, number));
    assert!(is_on_device(
        &file,
        &metadata,
        kernel_device(metadata.dev())
    ));
    assert!(!is_on_device(&file, &metadata, u32::MAX));
}

#[test]
fn device_numbers_as_the_kernel_writes_them() {
    assert_eq!(kernel_device(nix::sys::stat::makedev(254, 0)), 254 << 20);
    assert_eq!(kernel_device(nix::sys::stat::makedev(8, 1)), 8 << 20 | 1);
    assert_eq!(kernel_device(nix::sys::stat::makedev(0, 300)), 300);
    assert_eq!(
        kernel_device(nix::sys::stat::makedev(4095, 0xf_ffff)),
        u32::MAX
    );
}

#[test]
fn nobody_waits_and_the_answer_comes() {
    let (_directory, path) = program();
    let running = ended(&path);
    let hashes = Hashes::start(MAX_BYTES).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let hash = loop {
        if let Some(hash) = hashes.hash(&running) {
            break hash;
        }
        assert!(Instant::now() < deadline, "the answer never came");
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(hash, PROGRAM_SHA256);
    assert_eq!(hashes.n_dropped(), 0);
}

#[test]
fn a_full_queue_is_counted_and_may_be_asked_again() {
    let (release, released) = mpsc::channel::<()>();
    let hashes = Hashes::start_with(move |_, _| {
        released.recv().ok();
        Some("hash".into())
    })
    .unwrap();
    let running = |pid| Running {
        pid,
        start_ns: 1,
        device: 1,
        inode: 1,
        path: "/x".into(),
    };
    // The thread holds one question, or will take it from the queue.
    let n_asked = MOST_WAITING as u32 + 10;
    for pid in 0..n_asked {
        assert_eq!(hashes.hash(&running(pid)), None);
        assert_eq!(hashes.hash(&running(0)), None, "asked once");
    }
    assert!(
        (9..=10).contains(&hashes.n_dropped()),
        "{}",
        hashes.n_dropped()
    );
    drop(release);
    let deadline = Instant::now() + Duration::from_secs(60);
    while hashes.hash(&running(n_asked - 1)).as_deref() != Some("hash") {
        assert!(Instant::now() < deadline, "the answer never came");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_not_asked_for_is_forgotten() {
    let mut remembered = Remembered::default();
    for key in 0..REMEMBERED * 3 {
        remembered.insert(key, key);
        assert_eq!(remembered.get(&0), Some(0), "asked for all the time");
        assert!(remembered.recent.len() + remembered.older.len() <= REMEMBERED * 2);
    }
    assert_eq!(remembered.get(&1), None);
    assert_eq!(
        remembered.get(&(REMEMBERED * 3 - 1)),
        Some(REMEMBERED * 3 - 1)
    );
}
