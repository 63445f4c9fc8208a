//! One file per hook, in the order in which data passes them.
//!
//! Hooks that count or judge do so only in the active instance. At a place in a control
//! group or at an uplink the kernel puts the program of one instance in the place of
//! another's ([`in_place`](crate::maps::in_place)); on a tracepoint it cannot, and
//! there both stand beside each other ([`active`](crate::maps::active)). Those that learn who is there (processes,
//! control groups, new sockets) always run: two agents that learn the same do no
//! harm, and one that takes over knows everybody before it becomes active.

mod cgroup_mkdir;
mod cgroup_rmdir;
mod connect;
mod dev_direct_xmit;
mod device_open;
mod egress;
mod inet_sock_set_state;
mod ingress;
mod iter_socket_files;
mod iter_sockets;
mod iter_task;
mod iter_task_file;
mod judge_packet;
mod judge_question;
mod netif_receive_skb_entry;
mod sched_process_exec;
mod sched_process_exit;
mod sched_process_fork;
mod security_bpf;
mod security_inode_unlink;
mod security_socket_post_create;
mod security_socket_sendmsg;
mod sendmsg;
mod setsockopt;
mod signal_generate;
mod sock_addr;
mod sock_create;
mod sock_release;
mod sock_send_length;
mod tcp_destroy_sock;
mod tcp_sendmsg_locked;
mod uplink_egress;
