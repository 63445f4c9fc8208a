//! The serial console of a guest: kept in a file, and watched for the words
//! with which a kernel says that nothing after them can be trusted.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// How many of the last lines a failure shows.
const TAIL: usize = 40;

/// How many lines a failed kernel may add, and how long it may be silent.
const MORE: u32 = 60;
const MORE_TIME: Duration = Duration::from_secs(2);

/// Words that a kernel writes when it has failed, or has found that something is not as it must be:
/// all of its warnings about itself begin with a line to cut along. The kernel is not told to
/// reboot then, so these are its last words.
const FATAL: [&str; 9] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "[ cut here ]",
    "general protection fault",
    "soft lockup",
    "detected stalls",
    "detected expedited stalls",
    "self-detected stall",
];

/// Copies the console to `log` until it ends or tells of a failed kernel. The
/// result is then the line that told.
pub fn watch(console: UnixStream, log: &Path) -> Result<Option<String>> {
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut console = BufReader::new(console);
    let mut fatal = None;
    let mut n_more = MORE;
    let mut line = Vec::new();
    while n_more > 0 {
        match console.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => file.write_all(&line)?,
            // Only a failed kernel is given a time to finish what it says.
            Err(_) if fatal.is_some() => break,
            Err(error) => return Err(error).context("read the console"),
        }
        let text = String::from_utf8_lossy(&line);
        if fatal.is_none() && is_fatal(&text) {
            fatal = Some(text.trim().to_owned());
            console.get_ref().set_read_timeout(Some(MORE_TIME))?;
        }
        if fatal.is_some() {
            n_more -= 1;
        }
        line.clear();
    }
    Ok(fatal)
}

fn is_fatal(line: &str) -> bool {
    FATAL.iter().any(|words| line.contains(words))
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_kernel_is_told_from_a_talkative_one() {
        assert!(is_fatal(
            "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs"
        ));
        assert!(is_fatal(
            "[   99.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!"
        ));
        assert!(is_fatal(
            "[   99.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"
        ));
        assert!(is_fatal("[   99.0] ------------[ cut here ]------------"));
        assert!(!is_fatal(
            "[    0.1] x86/fpu: Supporting XSAVE feature 0x001"
        ));
        assert!(!is_fatal("Debian GNU/Linux 12 dc-host ttyS0"));
    }
}
