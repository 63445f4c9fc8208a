//! Where the running kernel keeps the fields that the programs read.
//!
//! Rust has no CO-RE relocations, so offsets are resolved here from BTF and given
//! to the programs as constants.

use trefoil_ebpf::abi::Offsets;

use super::{KernelError, btf::Types};

/// The kernel's own type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Resolves all fields.
pub fn resolve() -> Result<Offsets, KernelError> {
    let types = open()?;
    let bits = |name: &str, field: &str| bit_offset(&types, name, field);
    let of = |name: &str, field: &str| Ok::<_, KernelError>(bits(name, field)? / 8);
    let summed = bits("sk_buff", "ip_summed")?;
    let kernels = bits("sock", "sk_kern_sock")?;
    Ok(Offsets {
        task_tgid: of("task_struct", "tgid")?,
        task_pid: of("task_struct", "pid")?,
        task_comm: of("task_struct", "comm")?,
        task_group_leader: of("task_struct", "group_leader")?,
        task_real_parent: of("task_struct", "real_parent")?,
        // Named `real_start_time` before 5.5.
        task_start_boottime: of("task_struct", "start_boottime")?,
        task_loginuid: of("task_struct", "loginuid")?,
        task_sessionid: of("task_struct", "sessionid")?,
        task_signal: of("task_struct", "signal")?,
        task_mm: of("task_struct", "mm")?,
        task_fs: of("task_struct", "fs")?,
        task_cred: of("task_struct", "cred")?,
        task_flags: of("task_struct", "flags")?,
        task_cgroups: of("task_struct", "cgroups")?,
        css_set_dfl_cgrp: of("css_set", "dfl_cgrp")?,
        cgroup_kn: of("cgroup", "kn")?,
        cgroup_root: of("cgroup", "root")?,
        cgroup_root_hierarchy_id: of("cgroup_root", "hierarchy_id")?,
        kernfs_node_id: of("kernfs_node", "id")?,
        cred_uid: of("cred", "uid")?,
        cred_gid: of("cred", "gid")?,
        cred_euid: of("cred", "euid")?,
        signal_live: of("signal_struct", "live")?,
        task_files: of("task_struct", "files")?,
        files_fdt: of("files_struct", "fdt")?,
        fdtable_max_fds: of("fdtable", "max_fds")?,
        fdtable_fd: of("fdtable", "fd")?,
        file_mode: of("file", "f_mode")?,
        file_private_data: of("file", "private_data")?,
        bpf_map_id: of("bpf_map", "id")?,
        bpf_link_id: of("bpf_link", "id")?,
        mm_exe_file: of("mm_struct", "exe_file")?,
        file_path: of("file", "f_path")?,
        file_inode: of("file", "f_inode")?,
        path_mnt: of("path", "mnt")?,
        path_dentry: of("path", "dentry")?,
        dentry_parent: of("dentry", "d_parent")?,
        dentry_inode: of("dentry", "d_inode")?,
        dentry_name: of("dentry", "d_name")? + of("qstr", "name")?,
        dentry_name_len: of("dentry", "d_name")? + of("qstr", "len")?,
        mount_mnt: of("mount", "mnt")?,
        mount_mnt_ns: of("mount", "mnt_ns")?,
        mount_parent: of("mount", "mnt_parent")?,
        mount_mountpoint: of("mount", "mnt_mountpoint")?,
        vfsmount_root: of("vfsmount", "mnt_root")?,
        inode_mode: of("inode", "i_mode")?,
        inode_rdev: of("inode", "i_rdev")?,
        inode_ino: of("inode", "i_ino")?,
        inode_sb: of("inode", "i_sb")?,
        inode_nlink: of("inode", "i_nlink")?,
        super_block_dev: of("super_block", "s_dev")?,
        mnt_namespace_number: mount_namespace_number(&types),
        cred_user_ns: of("cred", "user_ns")?,
        mnt_namespace_user_ns: of("mnt_namespace", "user_ns")?,
        user_namespace_level: of("user_namespace", "level")?,
        user_namespace_parent: of("user_namespace", "parent")?,
        user_namespace_owner: of("user_namespace", "owner")?,
        user_namespace_uids: of("user_namespace", "uid_map")? + of("uid_gid_map", "extent")?,
        user_namespace_n_uids: of("user_namespace", "uid_map")? + of("uid_gid_map", "nr_extents")?,
        fs_root: of("fs_struct", "root")?,
        socket_sk: of("socket", "sk")?,
        sock_family: of("sock", "__sk_common")? + of("sock_common", "skc_family")?,
        sock_state: of("sock", "__sk_common")? + of("sock_common", "skc_state")?,
        sock_protocol: of("sock", "sk_protocol")?,
        sock_type: of("sock", "sk_type")?,
        sock_uid: of("sock", "sk_uid")?,
        sock_write_queue_len: of("sock", "sk_write_queue")? + of("sk_buff_head", "qlen")?,
        sock_wmem_queued: of("sock", "sk_wmem_queued")?,
        sock_prot: of("sock", "__sk_common")? + of("sock_common", "skc_prot")?,
        sock_kern_sock: kernels / 8,
        sock_kern_sock_shift: kernels % 8,
        proto_name: of("proto", "name")?,
        sk_buff_skb_iif: of("sk_buff", "skb_iif")?,
        sock_net: of("sock", "__sk_common")? + of("sock_common", "skc_net")?,
        sk_buff_dev: of("sk_buff", "dev")?,
        sk_buff_sk: of("sk_buff", "sk")?,
        sk_buff_len: of("sk_buff", "len")?,
        sk_buff_data_len: of("sk_buff", "data_len")?,
        sk_buff_data: of("sk_buff", "data")?,
        sk_buff_head: of("sk_buff", "head")?,
        sk_buff_csum_start: of("sk_buff", "csum_start")?,
        sk_buff_csum_offset: of("sk_buff", "csum_offset")?,
        sk_buff_ip_summed: summed / 8,
        sk_buff_ip_summed_shift: summed % 8,
        net_device_ifindex: of("net_device", "ifindex")?,
        net_device_nd_net: of("net_device", "nd_net")?,
        net_ns_inum: of("net", "ns")? + of("ns_common", "inum")?,
        ..netfilter(&types)?
    })
}

/// Resolves the fields of netfilter, and no others.
fn netfilter(types: &Types) -> Result<Offsets, KernelError> {
    let of = |name: &str, field: &str| Ok::<_, KernelError>(bit_offset(types, name, field)? / 8);
    let tracking = connection_tracking(open()?);
    Ok(Offsets {
        net_hooks_ipv4: of("net", "nf")? + of("netns_nf", "hooks_ipv4")?,
        net_hooks_ipv6: of("net", "nf")? + of("netns_nf", "hooks_ipv6")?,
        nf_hook_ops_priority: of("nf_hook_ops", "priority")?,
        sk_buff_nfct: tracking.map_or(0, |it| it.0),
        nf_conn_net: tracking.map_or(0, |it| it.1),
        nf_conn_original: tracking.map_or(0, |it| it.2),
        ..Offsets::default()
    })
}

/// Offsets of `sk_buff._nfct`, `nf_conn.ct_net` and `nf_conn.tuplehash[0].tuple`. Connections are mostly tracked by
/// a module, which has types of its own.
fn connection_tracking(types: Types) -> Option<(u32, u32, u32)> {
    const MODULE: &str = "/sys/kernel/btf/nf_conntrack";
    let link = types.offset("sk_buff", "_nfct")?;
    let types = match types.offset("nf_conn", "ct_net") {
        Some(_) => types,
        None => types.with_module(&std::fs::read(MODULE).ok()?)?,
    };
    let original =
        types.offset("nf_conn", "tuplehash")? + types.offset("nf_conntrack_tuple_hash", "tuple")?;
    Some((link, types.offset("nf_conn", "ct_net")?, original))
}

fn bit_offset(types: &Types, name: &str, field: &str) -> Result<u32, KernelError> {
    let missing = || KernelError::NoField {
        field: format!("{name}.{field}"),
    };
    types.bit_offset(name, field).ok_or_else(missing)
}

/// See [`Offsets::mnt_namespace_number`].
fn mount_namespace_number(types: &Types) -> u32 {
    let own = || types.offset("mnt_namespace", "seq");
    // Since 6.18.
    let common =
        || Some(types.offset("mnt_namespace", "ns")? + types.offset("ns_common", "ns_id")?);
    own().or_else(common).unwrap_or(0)
}

/// Opens the kernel's type information.
pub fn open() -> Result<Types, KernelError> {
    let failed = |source| KernelError::NoBtf {
        path: VMLINUX.into(),
        source,
    };
    let data = std::fs::read(VMLINUX).map_err(|error| failed(error.into()))?;
    Types::parse(data).ok_or_else(|| failed("it is not of a known format".into()))
}
