//! One file per hook, in the order in which data passes them.

mod cgroup_mkdir;
mod cgroup_rmdir;
mod connect;
mod egress;
mod inet_sock_set_state;
mod ingress;
mod iter_sockets;
mod iter_task;
mod iter_task_file;
mod judge_question;
mod sched_process_exec;
mod sched_process_exit;
mod sched_process_fork;
mod sendmsg;
mod sock_addr;
mod sock_create;
mod sock_release;
mod sock_send_length;
