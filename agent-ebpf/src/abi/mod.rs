//! The layout of everything that crosses the line between kernel and agent.
//!
//! Rules of this folder: `repr(C)`, fixed-width integers, explicit padding that
//! is written as zero; no `bool`, `usize`, `Option` or enum with data inside a
//! struct. A number that names something is never used twice. A change of
//! layout or of meaning bumps [`ABI_VERSION`], which is part of the pin
//! directory's name, so that an agent never reads another version's tables.

pub mod deed;
pub mod flow;
pub mod loss;
pub mod owner;
pub mod policy;
pub mod refusals;
pub mod room;
pub mod session;
pub mod trace;
pub mod tree;
pub mod uplink;

pub use deed::*;
pub use flow::*;
pub use loss::*;
pub use owner::*;
pub use policy::*;
pub use refusals::*;
pub use room::*;
pub use session::*;
pub use tree::*;
pub use uplink::*;

/// Version of everything in this folder. Pins live in `<pin-dir>/v<ABI_VERSION>`.
pub const ABI_VERSION: u32 = match cfg!(feature = "other-layout") {
    false => 7,
    true => 907,
};

/// An IPv6 address in network byte order; IPv4 addresses are mapped into
/// `::ffff:0:0/96`, so that one comparison serves both families.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// The IPv4 address with this value in host byte order.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self::from_halves(0, 0xffff << 32 | address as u64)
    }

    /// The two halves as numbers in host byte order, the more significant first.
    ///
    /// Eight bytes at a time: taken apart one by one, they would stay 16 loads in programs
    /// for BPF.
    #[inline(always)]
    pub const fn halves(&self) -> (u64, u64) {
        let [Some(high), Some(low)] = [self.0.first_chunk(), self.0.last_chunk()] else {
            unreachable!()
        };
        (u64::from_be_bytes(*high), u64::from_be_bytes(*low))
    }

    /// The address with these halves, see [`halves`](Self::halves).
    #[inline(always)]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self(((high as u128) << u64::BITS | low as u128).to_be_bytes())
    }

    /// The IPv4 address in host byte order, if this is one.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<u32> {
        let (high, low) = self.halves();
        if high == 0 && low >> 32 == 0xffff {
            Some(low as u32)
        } else {
            None
        }
    }

    /// The IPv4 address in host byte order that is embedded by one of the [`layout`]s. Packets
    /// are meant for it, beyond whatever translates them or takes them out of their tunnel.
    #[inline(always)]
    pub const fn embedded_v4(&self, layout: u16) -> u32 {
        let (high, low) = self.halves();
        // The bits from 64 to 71 are in no address, see RFC 6052.
        match layout {
            layout::PREFIX_32 => high as u32,
            layout::PREFIX_40 => (high as u32) << 8 | (low >> 48) as u32 & 0xff,
            layout::PREFIX_48 => (high as u32) << 16 | (low >> 40) as u32 & 0xffff,
            layout::PREFIX_56 => (high as u32) << 24 | (low >> 32) as u32 & 0xff_ffff,
            layout::PREFIX_64 => (low >> 24) as u32,
            layout::SIX_TO_FOUR => (high >> 16) as u32,
            layout::TEREDO => !(low as u32),
            _ => low as u32,
        }
    }

    /// True for the unspecified address (all bytes zero), which stands for "not known".
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let (high, low) = self.halves();
        high == 0 && low == 0
    }
}

/// The only entry of map `CONTROL`: what user space may change while the programs
/// run, each in one store.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlPage {
    /// Policy generation and programs in force.
    pub control: Control,
    /// For each slot, until when its policy blocks what it does not approve, in
    /// nanoseconds since boot; or [`ENFORCE_NEVER`], or [`ENFORCE_ALWAYS`]. From
    /// then on it only reports: this is how enforcement that nobody has confirmed
    /// ends by itself.
    pub enforce_until_ns: [u64; 2],
    /// For each slot, since when its policy is in force, in nanoseconds since boot.
    pub since_ns: [u64; 2],
}

/// [`ControlPage::enforce_until_ns`] of a policy that only reports.
pub const ENFORCE_NEVER: u64 = 0;
/// [`ControlPage::enforce_until_ns`] of a policy that blocks without an end.
pub const ENFORCE_ALWAYS: u64 = u64::MAX;

/// Which policy and which programs are in force.
///
/// Read as one 8-byte word, so that a decision sees one generation and one
/// instance and no mix.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The policy in force; its tables are in slot `generation & 1`. Zero while
    /// no policy was loaded yet.
    pub generation: u32,
    /// The set of programs that counts and judges. Programs of another instance
    /// let everything pass untouched, except those that the kernel has put in the place
    /// of this one's: this is how one agent takes over from another without counting a
    /// packet twice or not at all.
    pub instance: u32,
}

/// Offsets of kernel struct fields in bytes, resolved by the agent from the
/// running kernel's BTF and constant for the verifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.start_boottime`, nanoseconds
    pub task_start_boottime: u32,
    /// `task_struct.loginuid`
    pub task_loginuid: u32,
    /// `task_struct.sessionid`
    pub task_sessionid: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.fs`
    pub task_fs: u32,
    /// `task_struct.cred`
    pub task_cred: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`; 0 is cgroup v2
    pub cgroup_root_hierarchy_id: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `cred.uid`
    pub cred_uid: u32,
    /// `cred.gid`
    pub cred_gid: u32,
    /// `cred.euid`
    pub cred_euid: u32,
    /// `signal_struct.live.counter`
    pub signal_live: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.max_fds`
    pub fdtable_max_fds: u32,
    /// `fdtable.fd`
    pub fdtable_fd: u32,
    /// `file.f_mode`
    pub file_mode: u32,
    /// `file.private_data`
    pub file_private_data: u32,
    /// `bpf_map.id`
    pub bpf_map_id: u32,
    /// `bpf_link.id`
    pub bpf_link_id: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `file.f_path`
    pub file_path: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `path.mnt`
    pub path_mnt: u32,
    /// `path.dentry`
    pub path_dentry: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_inode`
    pub dentry_inode: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    /// `dentry.d_name.len`
    pub dentry_name_len: u32,
    /// `mount.mnt`; what a `vfsmount` pointer is embedded in
    pub mount_mnt: u32,
    /// `mount.mnt_ns`
    pub mount_mnt_ns: u32,
    /// `mount.mnt_parent`
    pub mount_parent: u32,
    /// `mount.mnt_mountpoint`
    pub mount_mountpoint: u32,
    /// `vfsmount.mnt_root`
    pub vfsmount_root: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_rdev`, as [`Self::super_block_dev`]
    pub inode_rdev: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.__i_nlink`
    pub inode_nlink: u32,
    /// `super_block.s_dev`, in the kernel's own encoding (major << 20 | minor)
    pub super_block_dev: u32,
    /// `mnt_namespace.user_ns`
    pub mnt_namespace_user_ns: u32,
    /// A number that every mount namespace has which processes can be in: `mnt_namespace.seq`,
    /// or the `ns_id` in its `ns_common`; 0 if this kernel has neither
    pub mnt_namespace_number: u32,
    /// `cred.user_ns`
    pub cred_user_ns: u32,
    /// `user_namespace.level`
    pub user_namespace_level: u32,
    /// `user_namespace.parent`
    pub user_namespace_parent: u32,
    /// `user_namespace.owner`
    pub user_namespace_owner: u32,
    /// `user_namespace.uid_map.extent`; where there are many, a pointer to them
    pub user_namespace_uids: u32,
    /// `user_namespace.uid_map.nr_extents`
    pub user_namespace_n_uids: u32,
    /// `fs_struct.root`
    pub fs_root: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `sock.__sk_common.skc_family`
    pub sock_family: u32,
    /// `sock.__sk_common.skc_state`
    pub sock_state: u32,
    /// `sock.sk_protocol`
    pub sock_protocol: u32,
    /// `sock.sk_type`
    pub sock_type: u32,
    /// `sock.sk_uid`
    pub sock_uid: u32,
    /// `sock.sk_write_queue.qlen`
    pub sock_write_queue_len: u32,
    /// `sock.sk_wmem_queued`
    pub sock_wmem_queued: u32,
    /// `sock.__sk_common.skc_prot`
    pub sock_prot: u32,
    /// The byte that `sock.sk_kern_sock` is in
    pub sock_kern_sock: u32,
    /// Bits of that byte below it
    pub sock_kern_sock_shift: u32,
    /// `proto.name`
    pub proto_name: u32,
    /// `sk_buff.skb_iif`
    pub sk_buff_skb_iif: u32,
    /// `sk_buff.dev`
    pub sk_buff_dev: u32,
    /// `sk_buff.sk`
    pub sk_buff_sk: u32,
    /// `sk_buff.len`
    pub sk_buff_len: u32,
    /// `sk_buff.data_len`
    pub sk_buff_data_len: u32,
    /// `sk_buff.data`
    pub sk_buff_data: u32,
    /// `sk_buff.head`
    pub sk_buff_head: u32,
    /// `sk_buff.csum_start`
    pub sk_buff_csum_start: u32,
    /// `sk_buff.csum_offset`
    pub sk_buff_csum_offset: u32,
    /// The byte that `sk_buff.ip_summed` is in
    pub sk_buff_ip_summed: u32,
    /// Bits of that byte below it
    pub sk_buff_ip_summed_shift: u32,
    /// `net_device.ifindex`
    pub net_device_ifindex: u32,
    /// `net_device.nd_net.net`
    pub net_device_nd_net: u32,
    /// `sock.__sk_common.skc_net`
    pub sock_net: u32,
    /// `net.ns.inum`
    pub net_ns_inum: u32,
    /// `net.nf.hooks_ipv4`
    pub net_hooks_ipv4: u32,
    /// `net.nf.hooks_ipv6`
    pub net_hooks_ipv6: u32,
    /// `nf_hook_ops.priority`
    pub nf_hook_ops_priority: u32,
    /// `sk_buff._nfct`; 0 if this kernel tracks no connections, as far as its types say.
    pub sk_buff_nfct: u32,
    /// `nf_conn.ct_net`; 0 likewise.
    pub nf_conn_net: u32,
    /// `nf_conn.tuplehash[0].tuple`: the ends that the first packet had; 0 likewise.
    pub nf_conn_original: u32,
}

/// The host's root directory, in map `HOST_ROOT`: an executable whose path does not begin
/// there is [`EXECUTABLE_FOREIGN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRoot {
    /// Address of its `dentry`, which stays while the first process has it; 0 while not known,
    /// and then all are foreign. Inode numbers would not do: all subvolumes of Btrfs have the
    /// same for their roots.
    pub dentry: u64,
}

#[cfg(not(target_arch = "bpf"))]
const _: () = {
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<Control>() == 8);
    assert!(size_of::<ControlPage>() == 40);
    assert!(size_of::<Offsets>().is_multiple_of(4));
};
