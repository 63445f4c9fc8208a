//! The hooks: which program goes where, and what is not covered without it.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, links::FdLink},
};

use super::{KernelError, bpf_syscall, btf::Types};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a tracepoint of the kernel, or to a function in its stead, for the whole host.
    Tracepoint,
    /// To the entry of a function of the kernel, for the whole host.
    Function,
    /// To the control group that is watched.
    Cgroup,
    /// To the exit of each uplink, see [`super::UplinkHook`].
    Uplink,
    /// Nowhere: it runs when it is read.
    Iterator(&'static str),
}

/// One kernel program.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program; of the tracepoint too, if it is one.
    pub name: &'static str,
    /// Where it is attached.
    pub place: Place,
    /// What is not known where the kernel lacks it; `None` if Trefoil does not
    /// run without it.
    pub without: Option<&'static str>,
    /// The program that is used instead where the kernel has all that it needs.
    pub better: Option<&'static Better>,
    /// What is used where the kernel lacks it.
    pub fallback: Option<Fallback>,
    /// A function of the kernel that the program calls, if it is younger than the place.
    pub calls: Option<&'static str>,
}

/// A program at the entry of a function of the kernel that does all that several hooks do.
#[derive(Debug)]
pub struct Better {
    /// Name of the program, and of the function.
    pub function: &'static str,
    /// Functions of the kernel without which it would not see everything.
    needs: &'static [&'static str],
}

/// A program in the place of a hook: at the entry of a function of the kernel, or an iterator over
/// open files.
#[derive(Clone, Copy, Debug)]
pub struct Fallback {
    /// Name of the program, and of the function if it is at one.
    pub function: &'static str,
    /// What the hook covers and this does not.
    pub without: &'static str,
    /// See [`Hook`].
    pub calls: Option<&'static str>,
}

/// Socket storage for programs at tracepoints and functions, 5.11.
const SOCKET_STORAGE: &str = "bpf_sk_storage_get_tracing";

/// The sender that is about to send, by any protocol: known before the first byte, and for less than it costs
/// to ask before and after. What is spliced comes this way since 6.5.
const SENDMSG: Better = Better {
    function: "security_socket_sendmsg",
    needs: &[SOCKET_STORAGE, "splice_to_socket"],
};

impl Hook {
    /// True if there is a pin that shows whether it is in the kernel.
    pub fn is_pinned(&self) -> bool {
        match self.place {
            Place::Iterator(_) => self.name == SOCKETS,
            // One pin for each interface, which come and go.
            Place::Uplink => false,
            Place::Tracepoint | Place::Function | Place::Cgroup => true,
        }
    }

    /// Its program and those that may be in its place, of which one at most is loaded.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> + use<> {
        let better = self.better.map(|it| it.function);
        let fallback = self.fallback.map(|it| it.function);
        [better, Some(self.name), fallback].into_iter().flatten()
    }
}

/// All programs, in the order in which they are attached: who a process is
/// before what it opens, what it opens before what it sends.
pub const HOOKS: &[Hook] = &[
    hook(
        "iter_task",
        Place::Iterator("task"),
        Some("executables of processes older than the agent"),
    ),
    Hook {
        // 5.11
        calls: Some("bpf_sock_from_file"),
        ..hook(
            "iter_task_file",
            Place::Iterator("task_file"),
            Some("owners of sockets older than the agent"),
        )
    },
    Hook {
        fallback: Some(Fallback {
            function: SOCKET_FILES,
            without: "numbers of long flows before they end, of sockets that no process holds any \
                      more",
            // 5.11
            calls: Some("bpf_sock_from_file"),
        }),
        ..hook(
            SOCKETS,
            Place::Iterator("bpf_sk_storage_map"),
            Some("numbers of long flows before they end"),
        )
    },
    hook("sched_process_fork", Place::Tracepoint, None),
    hook("sched_process_exec", Place::Tracepoint, None),
    hook("sched_process_exit", Place::Tracepoint, None),
    hook("cgroup_mkdir", Place::Tracepoint, None),
    hook("cgroup_rmdir", Place::Tracepoint, None),
    Hook {
        calls: Some(SOCKET_STORAGE),
        ..hook(
            INET_SOCK_SET_STATE,
            Place::Tracepoint,
            Some("ends of TCP flows after close()"),
        )
    },
    Hook {
        better: Some(&SENDMSG),
        fallback: Some(Fallback {
            function: SENDMSG.function,
            without: "processes that splice into sockets which others opened",
            calls: Some(SOCKET_STORAGE),
        }),
        ..hook(
            "sock_send_length",
            Place::Tracepoint,
            Some("processes that send on sockets which others opened"),
        )
    },
    Hook {
        better: Some(&SENDMSG),
        calls: Some(SOCKET_STORAGE),
        ..hook(
            "tcp_sendmsg_locked",
            Place::Tracepoint,
            Some("users, groups and control groups that processes changed to, in their first call"),
        )
    },
    hook(
        "netif_receive_skb_entry",
        Place::Tracepoint,
        Some("processes that write forwarded packets into tun devices"),
    ),
    hook(
        "signal_generate",
        Place::Tracepoint,
        Some("who stops or kills the agent"),
    ),
    hook(
        "security_bpf",
        Place::Function,
        Some("who detaches hooks or writes to their tables"),
    ),
    hook(
        "security_inode_unlink",
        Place::Function,
        Some("who removes pins"),
    ),
    hook(
        "security_socket_post_create",
        Place::Function,
        Some(
            "sockets of families that no hook judges, such as AF_VSOCK, that are closed before \
             the next heartbeat",
        ),
    ),
    hook("sock_create", Place::Cgroup, None),
    hook(
        "sock_release",
        Place::Cgroup,
        Some("ends of flows when their socket is closed"),
    ),
    hook(
        "setsockopt",
        Place::Cgroup,
        Some("packet sockets that ask to skip the queue, and AF_XDP"),
    ),
    hook(
        "device_open",
        Place::Cgroup,
        Some("devices that send past the kernel"),
    ),
    hook("ingress", Place::Cgroup, None),
    hook("egress", Place::Cgroup, None),
    hook("sendmsg4", Place::Cgroup, None),
    hook("sendmsg6", Place::Cgroup, None),
    hook("connect4", Place::Cgroup, None),
    hook("connect6", Place::Cgroup, None),
    Hook {
        // 5.12, and 5.11 for the storage of sockets.
        calls: Some("bpf_get_socket_ptr_cookie"),
        ..hook(
            DEV_DIRECT_XMIT,
            Place::Function,
            Some("frames of AF_XDP, even those that the kernel copies"),
        )
    },
    hook(
        UPLINK_EGRESS,
        Place::Uplink,
        Some("forwarded traffic, kernel tunnels and packet sockets"),
    ),
];

/// The iterator over the tags of sockets.
pub const SOCKETS: &str = "iter_sockets";

/// Its fallback, an iterator over open files.
pub const SOCKET_FILES: &str = "iter_socket_files";

/// The program for uplinks.
pub const UPLINK_EGRESS: &str = "uplink_egress";

/// The program that sees frames which pass traffic control by.
pub const DEV_DIRECT_XMIT: &str = "__dev_direct_xmit";

/// The program that ends flows of TCP. Another does where the kernel lacks it.
pub const INET_SOCK_SET_STATE: &str = "inet_sock_set_state";

/// The program that is asked questions; never attached.
pub const JUDGE_QUESTION: &str = "judge_question";

/// The program that is given packets; never attached.
pub const JUDGE_PACKET: &str = "judge_packet";

const fn hook(name: &'static str, place: Place, without: Option<&'static str>) -> Hook {
    Hook {
        name,
        place,
        without,
        better: None,
        fallback: None,
        calls: None,
    }
}

/// State of one hook, for `status` and `coverage` records.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// As in [`Hook`].
    pub name: &'static str,
    /// True if its program is in the kernel and, where it has a place, attached.
    pub attached: bool,
    /// What is not covered if it is not attached.
    pub without: Option<&'static str>,
    /// What is not covered though it is: a fallback stands in its place.
    pub partly: Option<&'static str>,
    /// Why it is not, where that is known.
    pub why: Option<String>,
}

impl HookStatus {
    /// What is not covered by this hook on this kernel.
    #[must_use]
    pub fn uncovered(&self) -> Option<&'static str> {
        if self.attached {
            self.partly
        } else {
            Some(self.without.unwrap_or_default())
        }
    }
}

/// Loads the program of a hook into the kernel, or one in its place; the verifier sees it here.
/// Returns the fallback if it is that.
pub fn load(
    ebpf: &mut Ebpf,
    hook: &Hook,
    btf: &Btf,
    types: &Types,
) -> Result<Option<Fallback>, KernelError> {
    if load_better(ebpf, hook, btf, types) {
        return Ok(None);
    }
    let error = match load_itself(ebpf, hook, btf) {
        Ok(()) => return Ok(None),
        Err(error) => error,
    };
    let program = hook.fallback.and_then(|fallback| {
        let program = ebpf.program_mut(fallback.function)?;
        Some((fallback, program))
    });
    match program {
        Some((fallback, Program::FEntry(program))) => program
            .load(fallback.function, btf)
            .map(|()| Some(fallback))
            .map_err(|_| error),
        Some((fallback, Program::Iter(program))) => program
            .load("task_file", btf)
            .map(|()| Some(fallback))
            .map_err(|_| error),
        _ => Err(error),
    }
}

/// True if what is better than a hook is in the kernel, maybe for the sake of another hook.
fn load_better(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf, types: &Types) -> bool {
    let has_all = |better: &&Better| better.needs.iter().all(|name| types.has_function(name));
    let Some(better) = hook.better.filter(has_all) else {
        return false;
    };
    let Some(Program::FEntry(program)) = ebpf.program_mut(better.function) else {
        return false;
    };
    if program.fd().is_ok() {
        return true;
    }
    // Some kernels load it and cannot attach it, which is better known before it is relied on.
    let is_of_use = program.load(better.function, btf).is_ok()
        && program.attach().is_ok_and(|id| program.detach(id).is_ok());
    if !is_of_use && program.fd().is_ok() {
        drop(program.unload());
    }
    is_of_use
}

fn load_itself(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Result<(), KernelError> {
    let program = ebpf.program_mut(hook.name).ok_or_else(|| missing(hook))?;
    match (program, hook.place) {
        (Program::BtfTracePoint(program), _) => program.load(hook.name, btf),
        (Program::FEntry(program), Place::Function) => program.load(hook.name, btf),
        (Program::Iter(program), Place::Iterator(kind)) => program.load(kind, btf),
        (Program::CgroupSkb(program), _) => program.load(),
        (Program::CgroupSock(program), _) => program.load(),
        (Program::CgroupSockAddr(program), _) => program.load(),
        (Program::CgroupSockopt(program), _) => program.load(),
        (Program::CgroupDevice(program), _) => program.load(),
        (Program::SchedClassifier(program), Place::Uplink) => program.load(),
        _ => return Err(missing(hook)),
    }
    .map_err(|error| KernelError::failed(format!("load program {}", hook.name), error))
}

/// A program that was loaded.
pub fn program<'a>(ebpf: &'a Ebpf, hook: &Hook) -> Result<BorrowedFd<'a>, KernelError> {
    let program = ebpf.program(hook.name).ok_or_else(|| missing(hook))?;
    let fd = program
        .fd()
        .map_err(|error| KernelError::failed(format!("use program {}", hook.name), error))?;
    Ok(fd.as_fd())
}

/// Attaches one program and pins its link, so that it stays when this agent ends. False
/// if it is not attached by a link, or not here: uplinks are attached one by one, as they
/// come. `link` is where the link of a hook is pinned.
pub fn attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    cgroup: BorrowedFd<'_>,
    link: impl Fn(&Hook) -> PathBuf,
) -> Result<bool, KernelError> {
    let pin = &link(hook);
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::failed(format!("attach program {}", hook.name), error)
    };
    let unpinned = |error: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::failed(format!("pin link {}", pin.display()), error)
    };
    match hook.place {
        Place::Iterator(_) | Place::Uplink => return Ok(false),
        Place::Cgroup => {
            let program = program(ebpf, hook)?;
            let link = bpf_syscall::attach_to_cgroup(program, cgroup, attach_type(hook.name))
                .map_err(|error| failed(error.into()))?;
            bpf_syscall::pin(link.as_fd(), pin).map_err(|error| unpinned(error.into()))?;
        }
        Place::Tracepoint | Place::Function => match attached_before(ebpf, hook) {
            Some(other) => {
                let link =
                    bpf_syscall::open_pin(&link(other)).map_err(|error| failed(error.into()))?;
                bpf_syscall::pin(link.as_fd(), pin).map_err(|error| unpinned(error.into()))?;
            }
            None => {
                let link = attach_to_kernel(ebpf, hook).map_err(failed)?;
                link.pin(pin).map_err(|error| unpinned(error.into()))?;
            }
        },
    }
    Ok(true)
}

/// The hook before this one for whose sake the program that does the work of both is attached.
fn attached_before(ebpf: &Ebpf, hook: &Hook) -> Option<&'static Hook> {
    let better = hook.better?.function;
    let is_loaded = matches!(
        ebpf.program(better), Some(Program::FEntry(program)) if program.fd().is_ok()
    );
    let has_it = |it: &&Hook| it.better.is_some_and(|it| it.function == better);
    let first = HOOKS.iter().find(has_it)?;
    (is_loaded && first.name != hook.name).then_some(first)
}

/// Attaches the program of a tracepoint or function, or what is in its place, whichever was
/// loaded.
fn attach_to_kernel(
    ebpf: &mut Ebpf,
    hook: &Hook,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    for name in hook.programs() {
        match ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) if program.fd().is_ok() => {
                let id = program.attach()?;
                return Ok(program.take_link(id)?.into());
            }
            Some(Program::FEntry(program)) if program.fd().is_ok() => {
                let id = program.attach()?;
                return Ok(program.take_link(id)?.into());
            }
            _ => {}
        }
    }
    Err(missing(hook).into())
}

/// The place in a control group of the program with this name: `enum bpf_attach_type`.
fn attach_type(name: &str) -> u32 {
    match name {
        "ingress" => 0,
        "egress" => 1,
        "sock_create" => 2,
        "device_open" => 6,
        "connect4" => 10,
        "connect6" => 11,
        "sendmsg4" => 14,
        "sendmsg6" => 15,
        "setsockopt" => 22,
        "sock_release" => 34,
        _ => unreachable!("{name} has no place in a control group"),
    }
}

fn missing(hook: &Hook) -> KernelError {
    KernelError::failed(
        format!("find program {} in the embedded object", hook.name),
        "the build is incomplete",
    )
}

/// Whether this kernel has what a hook needs, found out without loading anything.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HookSupport {
    /// As in [`Hook`].
    pub name: &'static str,
    /// True if the kernel's type information has what it is attached to, and what it calls.
    pub supported: bool,
    /// What is not covered without it, by its fallback neither.
    pub without: Option<&'static str>,
}

/// Looks up every hook in the kernel's type information. Without any, nothing is
/// supported.
pub fn support() -> Vec<HookSupport> {
    let types = super::offsets::open().ok();
    let has = |name: &str| types.as_ref().is_some_and(|types| types.has_function(name));
    let support = |hook: &Hook| {
        let supported = match hook.place {
            Place::Tracepoint => has(&format!("btf_trace_{}", hook.name)),
            Place::Function => has(hook.name),
            Place::Iterator(kind) => has(&format!("bpf_iter_{kind}")),
            Place::Cgroup => has("cgroup_bpf_attach") || has("cgroup_bpf_link_attach"),
            // clsact is older than any kernel with type information.
            Place::Uplink => types.is_some(),
        };
        let is_there =
            |better: &Better| has(better.function) && better.needs.iter().all(|it| has(it));
        let supported =
            supported && hook.calls.is_none_or(has) || hook.better.is_some_and(is_there);
        let fallback = hook.fallback.filter(|fallback| {
            let place = match hook.place {
                Place::Iterator(_) => "bpf_iter_task_file",
                _ => fallback.function,
            };
            has(place) && fallback.calls.is_none_or(has)
        });
        HookSupport {
            name: hook.name,
            supported,
            without: fallback.map_or(hook.without, |fallback| Some(fallback.without)),
        }
    };
    HOOKS.iter().map(support).collect()
}
