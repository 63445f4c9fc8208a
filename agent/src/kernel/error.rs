//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

/// An operation on the kernel that failed: what, on which object, and what to
/// do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The caller may not use BPF.
    #[error(
        "{operation}: not permitted; run as root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN)"
    )]
    NotPermitted {
        /// What was tried.
        operation: String,
    },
    /// A system call or library call failed.
    #[error("{operation}: {source}")]
    Failed {
        /// What was tried, on which object.
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

impl KernelError {
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
