//! The agent's network namespace, for verbs that are run in another: numbers of interfaces mean
//! something there alone.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::KernelError;

const OWN: &str = "/proc/thread-self/ns/net";

/// Inode number of the caller's network namespace, which names it as long as it is there.
pub fn network_namespace() -> Result<u64, KernelError> {
    inode(Path::new(OWN)).map_err(|error| KernelError::failed(format!("look at {OWN}"), error))
}

/// The calling thread is in another network namespace until this is dropped.
#[must_use = "it is left when this is dropped"]
#[derive(Debug)]
pub struct InNamespace {
    /// `None` if it was there before.
    own: Option<File>,
}

impl InNamespace {
    /// Enters the namespace with this number. Takes CAP_SYS_ADMIN, unless it is the caller's.
    /// `pid` is a process that is probably in it.
    ///
    /// # Errors
    ///
    /// When it may not be entered, or no process is in it and it has no name in /run/netns.
    pub fn enter(namespace: u64, pid: u32) -> Result<Self, KernelError> {
        if network_namespace()? == namespace {
            return Ok(Self { own: None });
        }
        let operation = || format!("enter the agent's network namespace (net:[{namespace}])");
        let failed = |error: io::Error| KernelError::failed(operation(), error);
        let own = File::open(OWN).map_err(failed)?;
        let likely = [PathBuf::from(format!("/proc/{pid}/ns/net"))];
        let named = entries("/run/netns");
        let processes = entries("/proc").map(|process| process.join("ns/net"));
        let place = likely
            .into_iter()
            .chain(named)
            .chain(processes)
            .find(|place| inode(place).is_ok_and(|inode| inode == namespace));
        let Some(place) = place else {
            let reason = "no process is in it any more; what its interfaces are called and have \
                          counted cannot be known";
            return Err(KernelError::failed(operation(), reason));
        };
        let place = File::open(place).map_err(failed)?;
        setns(place.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
        Ok(Self { own: Some(own) })
    }
}

impl Drop for InNamespace {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            setns(own.as_fd(), CloneFlags::CLONE_NEWNET)
                .expect("who may enter a namespace may go back to its own");
        }
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|namespace| namespace.ino())
}

fn entries(dir: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
