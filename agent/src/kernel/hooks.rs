//! The hooks: which program goes where, and what is not covered without it.
//!
//! A table and nothing else: `attach` loads and attaches.

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
    /// Facts that stay unknown where the kernel lacks it; `None` if Trefoil
    /// does not run without it.
    pub without: Option<&'static str>,
    /// The program that is used instead where the kernel has all that it needs.
    pub better: Option<&'static Better>,
    /// Hook that is used where the kernel lacks it.
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
    /// Part that the hook covers and the fallback does not.
    pub without: &'static str,
    /// See [`Hook`].
    pub calls: Option<&'static str>,
}

/// Socket storage for programs at tracepoints and functions, 5.11.
const SOCKET_STORAGE: &str = "bpf_sk_storage_get_tracing";

/// The sender that is about to send, by any protocol: known before the first byte, and for less
/// than it costs to ask before and after. Spliced data comes this way since 6.5.
const SENDMSG: Better = Better {
    function: "security_socket_sendmsg",
    needs: &[SOCKET_STORAGE, "splice_to_socket"],
};

impl Better {
    /// Functions of the kernel that it takes.
    pub(super) fn all_needed(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.function).chain(self.needs.iter().copied())
    }
}

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

    /// True if a promise does not hold without it: something leaves and nobody is told, or is told
    /// of in another's name. Without others that a kernel may lack less is known, and records say so.
    pub fn is_promised(&self, watches_uplinks: bool) -> bool {
        self.without.is_none()
            || PROMISED.contains(&self.name)
            || watches_uplinks && PROMISED_AT_UPLINKS.contains(&self.name)
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
        calls: Some(SOCKET_STORAGE),
        ..hook(
            "tcp_destroy_sock",
            Place::Tracepoint,
            Some("ends of TCP flows that a timer ends while another socket begins to listen"),
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
        Some("processes that stop or kill the agent"),
    ),
    hook(
        "security_bpf",
        Place::Function,
        Some("processes that detach hooks or write to their tables"),
    ),
    hook(
        "security_inode_unlink",
        Place::Function,
        Some("processes that remove pins"),
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

/// Of those that a kernel may lack, see [`Hook::is_promised`].
const PROMISED: [&str; 4] = [
    "sock_send_length",
    "setsockopt",
    "device_open",
    "security_socket_post_create",
];

/// The same, where uplinks are watched.
const PROMISED_AT_UPLINKS: [&str; 2] = [DEV_DIRECT_XMIT, UPLINK_EGRESS];

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
    /// Part that is not covered if it is not attached.
    pub without: Option<&'static str>,
    /// Part that is not covered though it is attached: a fallback stands in its place.
    pub partly: Option<&'static str>,
    /// Why it is not, where that is known.
    pub why: Option<String>,
}

impl HookStatus {
    /// True if a promise does not hold, since nothing stands in the place of this hook.
    #[must_use]
    pub fn breaks_promise(&self, watches_uplinks: bool) -> bool {
        let mut hooks = HOOKS.iter();
        !self.attached
            && hooks.any(|hook| hook.name == self.name && hook.is_promised(watches_uplinks))
    }

    /// Returns the part that this hook does not cover on this kernel.
    #[must_use]
    pub fn uncovered(&self) -> Option<&'static str> {
        if self.attached {
            self.partly
        } else {
            Some(self.without.unwrap_or_default())
        }
    }
}
