//! A program that a user executes so that it looks like another: from mounts of his own.

use std::fs::File;
use std::io::{IoSlice, Read, stdin};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, pivot_root};

use crate::arguments::Arguments;
use crate::handed::received;
use crate::{Answer, Failure, Named};

/// `traffic forge`: becomes this program once more, executed in such a way.
pub fn forge(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    let approved: PathBuf = arguments.word("a path")?.into();
    let root: PathBuf = arguments.word("a directory")?.into();
    let peer = arguments.word("ADDR:PORT")?;
    let bytes: u64 = arguments.option("--bytes")?.unwrap_or(0);
    arguments.done()?;
    let bytes = bytes.to_string();
    let become_path = |path: &Path| -> Answer {
        let mut command = Command::new(path);
        Err(command.args(["tcp", &peer, "--bytes", &bytes]).exec()).named("execve")
    };
    let become_file = |file: &OwnedFd| become_path(&descriptor_path(file));
    match how.as_str() {
        "not" => become_path(&approved),
        "memory" => {
            let memory = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).named("memfd_create")?;
            let mut own = File::open("/proc/self/exe").named("open")?;
            let mut copy = File::from(memory);
            std::io::copy(&mut own, &mut copy).named("write")?;
            // Open for writing, it could not be executed.
            let path = descriptor_path(&copy);
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let file = open(&path, flags, Mode::empty()).named("open")?;
            drop(copy);
            become_file(&file)
        }
        // As a child would, and without anybody outside.
        "root" => {
            unshare(CloneFlags::CLONE_NEWUSER).named("unshare")?;
            chroot(&root).named("chroot")?;
            chdir("/").named("chdir")?;
            become_path(&approved)
        }
        "pivoted" => {
            shape("pivoted", &approved, &root)?;
            become_path(&approved)
        }
        "bound-inside" => {
            shape("bound", &approved, &root)?;
            become_path(&approved)
        }
        "bound" | "bound-gone" | "tree" => {
            let (near, far) = UnixStream::pair().named("socketpair")?;
            let own = std::env::current_exe().named("readlink")?;
            let inside = if how == "tree" { "tree" } else { "bound" };
            let mut child = Command::new(own)
                .args(["forge-inside", inside])
                .args([&approved, &root])
                .stdin(Stdio::from(OwnedFd::from(far)))
                .stdout(Stdio::null())
                .spawn()
                .named("spawn")?;
            // Kept open by what this becomes, as long as the other is to live.
            let flags = FcntlArg::F_SETFD(FdFlag::empty());
            fcntl(&near, flags).named("fcntl")?;
            let file = received(&near.as_fd().try_clone_to_owned().named("dup")?)?;
            let _ = near.into_raw_fd();
            if how == "bound-gone" {
                let _ = child.kill();
                child.wait().named("wait")?;
            }
            become_file(&file)
        }
        other => Err(Failure::Usage(format!("no way {other:?}"))),
    }
}

/// `traffic forge-inside`: in namespaces of its own, passes a file out of them through
/// standard input, and lives as long as that is open.
pub fn inside(arguments: &mut Arguments) -> Answer {
    let how = arguments.word("a way")?;
    let approved: PathBuf = arguments.word("a path")?.into();
    let root: PathBuf = arguments.word("a directory")?.into();
    arguments.done()?;
    let file = shape(&how, &approved, &root)?;
    let out = stdin();
    let descriptors = [file.as_raw_fd()];
    sendmsg::<()>(
        out.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    )
    .named("sendmsg")?;
    // Until who has started this ends.
    let _ = out.lock().read(&mut [0]);
    Ok(())
}

/// Makes a mount of a user's own by which this program is found at `approved`, and opens it.
fn shape(how: &str, approved: &Path, root: &Path) -> Result<OwnedFd, Failure> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).named("unshare")?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let below = approved.strip_prefix("/").unwrap_or(approved);
    match how {
        "bound" => {
            let own = std::env::current_exe().named("readlink")?;
            mount(Some(&own), approved, NOTHING, MsFlags::MS_BIND, NOTHING).named("mount")?;
            open(approved, flags, Mode::empty()).named("open")
        }
        "tree" => {
            let path = std::ffi::CString::new(root.as_os_str().as_encoded_bytes())
                .map_err(|_| Failure::Usage("a path with a zero".into()))?;
            // SAFETY: a path that lives as long as the call.
            let tree = unsafe {
                libc::syscall(
                    libc::SYS_open_tree,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
                )
            };
            Errno::result(tree).named("open_tree")?;
            // SAFETY: the kernel has just made it for this process.
            let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
            nix::fcntl::openat(&tree, below, flags, Mode::empty()).named("openat")
        }
        "pivoted" => {
            let recursive = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(root), root, NOTHING, recursive, NOTHING).named("mount")?;
            chdir(root).named("chdir")?;
            pivot_root(".", ".").named("pivot_root")?;
            nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).named("umount2")?;
            open(approved, flags, Mode::empty()).named("open")
        }
        other => Err(Failure::Usage(format!("no way {other:?}"))),
    }
}

fn descriptor_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
