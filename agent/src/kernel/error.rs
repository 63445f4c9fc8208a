//! Errors between the agent and the kernel.

use std::{io, path::PathBuf};

use aya::programs::ProgramError;

/// An operation on the kernel that failed: what, on which object, and what to
/// do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The caller may not use BPF.
    #[error(
        "{operation}: not permitted; run as root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN)"
    )]
    NotPermitted {
        /// Operation that was tried.
        operation: String,
    },
    /// A system call or library call failed.
    #[error("{operation}: {source}")]
    Failed {
        /// Operation that was tried, and its object.
        operation: String,
        /// Why it did not work.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel has no type information.
    #[error("read type information {path}: {source}; Trefoil needs a kernel with CONFIG_DEBUG_INFO_BTF=y", path = path.display())]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be read.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's structs have no such field.
    #[error("the kernel's type information has no {field}; this kernel is not supported yet")]
    NoField {
        /// `struct.field`
        field: String,
    },
    /// A pinned map of another agent has another layout.
    #[error(
        "pinned map {path} is {found}, this agent needs {wanted}; \
         `trefoil detach --pin-dir {pin_dir}` removes it (enforcement ends until the next start)",
        path = path.display(), pin_dir = pin_dir.display()
    )]
    PinMismatch {
        /// The pin.
        path: PathBuf,
        /// The `--pin-dir` it belongs to.
        pin_dir: PathBuf,
        /// Layout of the pinned map.
        found: String,
        /// Layout that the agent expects.
        wanted: String,
    },
    /// The pin directory is not on a BPF file system.
    #[error("{path} is not on a BPF file system; mount one there (mount -t bpf bpf DIR) or give another --pin-dir", path = path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// There is nothing to look at.
    #[error("nothing of Trefoil is pinned in {path}: `trefoil run` is not (and was not) running with this --pin-dir", path = path.display())]
    NothingPinned {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent uses the pin directory.
    #[error("another trefoil is running with pin directory {path}; stop it first, or give another --pin-dir", path = path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

/// A program that the kernel does not take: why, and the end of what the verifier says, if it says
/// anything.
#[derive(Debug, thiserror::Error)]
#[error("{source}{said}")]
struct Refused {
    source: io::Error,
    said: String,
}

impl Refused {
    /// Longest end of what the verifier says, in bytes.
    const MAX_SAID: usize = 600;

    fn new(source: io::Error, log: &str) -> Self {
        let log = log.trim();
        let mut begin = log.len().saturating_sub(Self::MAX_SAID);
        while !log.is_char_boundary(begin) {
            begin += 1;
        }
        let said = match &log[begin..] {
            "" => String::new(),
            end => format!("; the verifier says: {end}"),
        };
        Self { source, said }
    }
}

impl KernelError {
    /// As [`failed`](Self::failed), of a program that the kernel does not take.
    pub(super) fn refused(operation: String, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => Self::failed(operation, Refused::new(io_error, &verifier_log.to_string())),
            error => Self::failed(operation, error),
        }
    }

    /// Wraps any error with the operation that failed.
    pub fn failed(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let (operation, source) = (operation.into(), source.into());
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && error.raw_os_error() == Some(libc::EPERM)
                && !nix::unistd::geteuid().is_root()
            {
                return Self::NotPermitted { operation };
            }
            cause = error.source();
        }
        Self::Failed { operation, source }
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::with_causes;

    fn said(log: &str) -> String {
        let error = ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(libc::EINVAL),
            verifier_log: aya_obj::VerifierLog::new(log.to_owned()),
        };
        with_causes(&KernelError::refused("load program x".to_owned(), error))
    }

    #[test]
    fn a_program_that_is_not_taken_is_told_without_an_empty_log() {
        let without = "load program x: Invalid argument (os error 22)";
        assert_eq!(said(" \n"), without);
        let long = format!("{}ä\nthe end\n", "0: (b7) r0 = 0\n".repeat(1000));
        let said = said(&long);
        assert!(
            said.starts_with(&format!("{without}; the verifier says: ")),
            "{said}"
        );
        assert!(said.ends_with("ä\nthe end") && said.len() < 800, "{said}");
    }
}
