//! Debian's kernels, oldest to newest: on each the package is installed, and what it lacks,
//! what is recorded of traffic, what is blocked and what the books say is held against what
//! is expected of it. A kernel that warns about itself ends its scenario.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trefoil_lab::Record;
use trefoil_lab::books::balanced;
use trefoil_lab::link::LinkCounters;
use trefoil_lab::places::{FOREIGN, FOREIGN6, PEER, PEER6};
use trefoil_lab::vm::Vm;

use crate::world::{OBJECTS, REFUSED, TRAFFIC, connect, install};

/// Every program, as on a kernel that has all that Trefoil uses.
const PROGRAMS: [&str; 29] = [
    "__dev_direct_xmit",
    "cgroup_mkdir",
    "cgroup_rmdir",
    "connect4",
    "connect6",
    "device_open",
    "egress",
    "inet_sock_set_state",
    "ingress",
    "iter_sockets",
    "iter_task",
    "iter_task_file",
    "judge_question",
    "netif_receive_skb_entry",
    "sched_process_exec",
    "sched_process_exit",
    "sched_process_fork",
    "security_bpf",
    "security_inode_unlink",
    "security_socket_post_create",
    "sendmsg4",
    "sendmsg6",
    "setsockopt",
    "signal_generate",
    "sock_create",
    "sock_release",
    "sock_send_length",
    "tcp_sendmsg_locked",
    "uplink_egress",
];

/// As much of a program's name as the kernel keeps.
const KEPT_NAME: usize = 15;

/// Where IPv6 goes. Nothing is sent by itself, as on the rest of the uplink.
const UPLINK6: &str = r#"set -eu
settings='accept_ra=0 router_solicitations=0 accept_dad=0
          mldv2_unsolicited_report_interval=1 disable_ipv6=0'
for setting in $settings; do
    echo ${setting#*=} >/proc/sys/net/ipv6/conf/uplink/${setting%=*}
done
ip netns exec far sh -c "for setting in $(echo $settings); do
    echo \${setting#*=} >/proc/sys/net/ipv6/conf/far/\${setting%=*}
done"
ip address add 2001:db8:1::1/64 dev uplink nodad
ip neighbour add 2001:db8:1::10 lladdr 02:00:00:00:00:02 dev uplink nud permanent
ip -n far address add 2001:db8:1::10/64 dev far nodad
ip -n far neighbour add 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev far nud permanent
for network in 198.51.100.0/24 2001:db8:2::/48 2001:db8:3::/48; do
    ip -n far route add local $network dev lo
done
ip route add default via 2001:db8:1::10
"#;

const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24", "2001:db8:2::/48"] }
verdict = "approve"
"#;

/// What a connection and a datagram carry, and how many of the latter there are.
const CONNECTION_BYTES: u64 = 100_000;
const DATAGRAM_BYTES: u64 = 500;
const DATAGRAMS: u64 = 3;

/// What a kernel is expected to be and to have.
struct Kernel {
    /// The beginning of its release.
    release: &'static str,
    /// The hooks that it lacks, and what is therefore not covered.
    lacks: &'static [(&'static str, &'static str)],
    /// The programs that do the work of hooks which are not in the kernel themselves.
    instead: &'static [&'static str],
    /// Those hooks, apart from what is lacking.
    replaced: &'static [&'static str],
}

#[test]
fn linux_5_10() -> Result<()> {
    let mut vm = Vm::booted_with("5.10", "linux-5.10")?;
    watches_and_enforces(
        &mut vm,
        &Kernel {
            release: "5.10.",
            lacks: &[
                ("iter_task_file", "owners of sockets older than the agent"),
                ("inet_sock_set_state", "ends of TCP flows after close()"),
                (
                    "sock_send_length",
                    "processes that send on sockets which others opened",
                ),
                (
                    "tcp_sendmsg_locked",
                    "users, groups and control groups that processes changed to, in their first call",
                ),
                (
                    "__dev_direct_xmit",
                    "frames of AF_XDP, even those that the kernel copies",
                ),
            ],
            instead: &[],
            replaced: &[],
        },
    )
}

#[test]
fn linux_6_1() -> Result<()> {
    let mut vm = Vm::booted("linux-6.1")?;
    watches_and_enforces(
        &mut vm,
        &Kernel {
            release: "6.1.",
            lacks: &[
                (
                    "sock_send_length",
                    "processes that splice into sockets which others opened",
                ),
                (
                    "tcp_sendmsg_locked",
                    "users, groups and control groups that processes changed to, in their first call",
                ),
            ],
            instead: &["security_socket_sendmsg"],
            replaced: &[],
        },
    )
}

#[test]
fn linux_6_12() -> Result<()> {
    let mut vm = Vm::booted_with("6.12", "linux-6.12")?;
    watches_and_enforces(&mut vm, &everything("6.12."))
}

/// Whatever Debian has; the release is in the scenario's output.
#[test]
fn the_newest_linux() -> Result<()> {
    let mut vm = Vm::booted_with("newest", "linux-newest")?;
    watches_and_enforces(&mut vm, &everything(""))
}

fn everything(release: &'static str) -> Kernel {
    Kernel {
        release,
        lacks: &[],
        instead: &["security_socket_sendmsg"],
        replaced: &["sock_send_length", "tcp_sendmsg_locked"],
    }
}

fn watches_and_enforces(vm: &mut Vm, kernel: &Kernel) -> Result<()> {
    let release = vm.ok("uname -r")?;
    println!("the kernel is {release}");
    ensure!(release.starts_with(kernel.release), "it is {release}");
    connect(vm)?;
    vm.ok(UPLINK6)?;
    vm.ok(&format!(
        "(ip netns exec far {TRAFFIC} serve 443 --wait --again >/run/server 2>&1 </dev/null &) && \
         until grep -q port /run/server; do sleep 0.1; done"
    ))?;
    let objects = vm.ok(OBJECTS)?;
    install(vm)?;
    has_what_is_expected(vm, kernel, &objects)?;
    put_in_force(vm, POLICY)?;
    records_are_right(vm)?;
    nothing_is_lost_after_the_end(vm)?;
    put_in_force(vm, &POLICY.replace("\"report\"", "\"enforce\""))?;
    only_what_is_approved_leaves(vm)?;
    books_are_right(vm)?;
    if !kernel.instead.is_empty() {
        let is_spliced_seen = !kernel.replaced.is_empty();
        senders_are_known_before_they_send(vm, is_spliced_seen)?;
    }

    vm.ok("trefoil detach")?;
    vm.wait_until("the kernel has freed everything", |vm| {
        Ok((vm.ok(OBJECTS)? == objects).then_some(()))
    })
}

fn put_in_force(vm: &mut Vm, policy: &str) -> Result<()> {
    vm.write("/etc/trefoil/policy.toml", policy)?;
    vm.ok("systemctl reload trefoil").map(drop)
}

/// What `check` says, what `status` says and what is in the kernel.
fn has_what_is_expected(vm: &mut Vm, kernel: &Kernel, objects_before: &str) -> Result<()> {
    let checked: Value = serde_json::from_str(&vm.run("trefoil check --json")?.stdout)?;
    let hooks = checked["kernel"].as_array().context("no hooks")?;
    let lacks: Vec<_> = hooks
        .iter()
        .filter(|hook| hook["supported"] != true)
        .filter_map(|hook| Some((hook["name"].as_str()?, hook["without"].as_str()?)))
        .collect();
    ensure!(lacks == kernel.lacks, "check: it lacks {lacks:?}");

    let status = status(vm)?;
    ensure!(status["healthy"] == true, "{status:#}");
    let notes = status["notes"].as_array().context("no notes")?;
    let is_said = |(hook, what): &(&str, &str)| {
        notes.iter().filter_map(Value::as_str).any(|note| {
            note.contains(&format!("hook {hook} on this kernel")) && note.ends_with(what)
        })
    };
    ensure!(
        notes.len() == kernel.lacks.len() && kernel.lacks.iter().all(is_said),
        "status: {notes:?}"
    );

    let mut before: Vec<_> = objects_before.lines().collect();
    let objects = vm.ok(OBJECTS)?;
    let mut programs: Vec<_> = objects
        .lines()
        .filter(|object| match before.iter().position(|it| it == object) {
            Some(at) => {
                before.remove(at);
                false
            }
            None => true,
        })
        .filter_map(|object| object.strip_prefix("program "))
        .collect();
    programs.sort_unstable();
    let mut expected: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|name| !kernel.lacks.iter().any(|(lacking, _)| lacking == name))
        .filter(|name| !kernel.replaced.contains(name))
        .chain(kernel.instead.iter().copied())
        .map(|name| &name[..name.len().min(KEPT_NAME)])
        .collect();
    expected.sort_unstable();
    ensure!(
        programs == expected,
        "in the kernel are {programs:?}, and not {expected:?}"
    );
    Ok(())
}

fn status(vm: &mut Vm) -> Result<Value> {
    let said = vm.run("trefoil status --json")?.stdout;
    serde_json::from_str(&said).with_context(|| format!("status is {said:?}"))
}

/// One of the flows of a phase.
#[derive(Clone, Copy)]
struct Flow {
    is_tcp: bool,
    to: IpAddr,
    approved: bool,
}

impl Flow {
    /// By both protocols, to a place that the policy approves of and to one that it does not,
    /// with both versions of IP.
    fn all() -> impl Iterator<Item = Self> {
        let places = [
            (PEER, true),
            (PEER6, true),
            (FOREIGN, false),
            (FOREIGN6, false),
        ];
        places.into_iter().flat_map(|(to, approved)| {
            [true, false].map(|is_tcp| Self {
                is_tcp,
                to,
                approved,
            })
        })
    }

    fn command(self) -> String {
        let to = SocketAddr::new(self.to, if self.is_tcp { 443 } else { 9 });
        if self.is_tcp {
            format!("{TRAFFIC} tcp {to} --bytes {CONNECTION_BYTES}")
        } else {
            format!("{TRAFFIC} udp {to} --size {DATAGRAM_BYTES} --count {DATAGRAMS}")
        }
    }

    /// The bytes of so many packets that leave, headers included. A connection has more if the
    /// kernel sends something once again.
    fn bytes_out(self, packets: u64) -> u64 {
        let header = if self.to.is_ipv4() { 20 } else { 40 };
        if self.is_tcp {
            // The first packet has 20 B of options, and all others have 12 B.
            CONNECTION_BYTES + (header + 32) * packets + 8
        } else {
            (DATAGRAM_BYTES + header + 8) * packets
        }
    }

    fn is_about(self, record: &Record) -> bool {
        record.is("TREFOIL_DST_ADDR", self.to)
            && record.is("TREFOIL_PROTOCOL", if self.is_tcp { "tcp" } else { "udp" })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.command())
    }
}

/// Sends all flows, one after the other, as a service. Returns the exit code of each, and the
/// id of its process if it was not refused.
fn send_all(vm: &mut Vm, service: &str) -> Result<Vec<(Flow, i32, Option<u64>)>> {
    let script: Vec<_> = Flow::all()
        .map(|flow| format!("{flow}; echo \"exit $?\""))
        .collect();
    vm.write("/run/send", &script.join("\n"))?;
    let said = vm.ok(&format!(
        "systemd-run --quiet --wait --pipe --collect --unit={service} sh /run/send"
    ))?;
    let mut sent = Vec::new();
    let (mut flows, mut pid) = (Flow::all(), None);
    for line in said.lines() {
        match line.strip_prefix("exit ") {
            Some(code) => {
                let flow = flows.next().context("more were sent than there are")?;
                sent.push((flow, code.parse()?, pid.take()));
            }
            None => pid = Some(Record::parse(line)?.number("pid")?),
        }
    }
    ensure!(flows.next().is_none(), "not all were sent: {said}");
    Ok(sent)
}

/// What an interface has counted, of this host or of the far end.
fn counters(vm: &mut Vm, enter: &str, interface: &str) -> Result<LinkCounters> {
    LinkCounters::parse(&vm.ok(&format!("{enter} cat /proc/net/dev"))?, interface)
}

/// Fails unless the far end has got all that has left since, and returns that.
fn left_since(vm: &mut Vm, before: LinkCounters) -> Result<LinkCounters> {
    let now = counters(vm, "", "uplink")?;
    let far = counters(vm, "ip netns exec far", "far")?;
    ensure!(
        (far.rx_bytes, far.rx_packets) == (now.tx_bytes, now.tx_packets),
        "{far:?} {now:?}"
    );
    Ok(now.since(before))
}

/// The last records of flows with these fields, once there are so many.
fn last_records(vm: &mut Vm, fields: &str, n_flows: usize) -> Result<Vec<Record>> {
    vm.wait_until(&format!("{n_flows} last records with {fields}"), |vm| {
        let records = vm.journal(&format!("-u trefoil TREFOIL_STATE=closed {fields}"))?;
        Ok((records.len() >= n_flows).then_some(records))
    })
}

/// Fails unless there is one record of a flow, with the right sender and the right bytes.
fn right_record(records: &[Record], flow: Flow, pid: Option<u64>) -> Result<&Record> {
    let of_flow: Vec<_> = records.iter().filter(|it| flow.is_about(it)).collect();
    let [record] = of_flow[..] else {
        anyhow::bail!("not one record of {flow}: {of_flow:?}");
    };
    let verdict = if flow.approved {
        "approved"
    } else {
        "undetermined"
    };
    let pid = pid.with_context(|| format!("{flow} has not left"))?;
    for (name, expected) in [
        ("TREFOIL_PID", &*pid.to_string()),
        ("TREFOIL_EXE", TRAFFIC),
        ("TREFOIL_ATTRIBUTION", "direct"),
        ("TREFOIL_VERDICT", verdict),
    ] {
        ensure!(
            record.is(name, expected),
            "{name} is not {expected}: {record}"
        );
    }
    let packets = record.number("TREFOIL_PACKETS_OUT")?;
    ensure!(flow.is_tcp || packets == DATAGRAMS, "{record}");
    let (bytes, expected) = (record.number("TREFOIL_BYTES_OUT")?, flow.bytes_out(packets));
    ensure!(
        bytes == expected || (flow.is_tcp && bytes > expected),
        "{packets} packets of {flow} are {expected} B: {record}"
    );
    Ok(record)
}

/// In report mode everything leaves, and all of it is in records.
fn records_are_right(vm: &mut Vm) -> Result<()> {
    let before = counters(vm, "", "uplink")?;
    let sent = send_all(vm, "reported")?;
    let records = last_records(vm, "TREFOIL_UNIT=reported.service", sent.len())?;
    for (flow, code, pid) in sent {
        ensure!(code == 0, "{flow} ended with {code}");
        let record = right_record(&records, flow, pid)?;
        let outcome = if flow.approved {
            "passed"
        } else {
            "would-drop"
        };
        ensure!(record.is("TREFOIL_OUTCOME", outcome), "{record}");
    }
    all_is_recorded(vm, before, &records)
}

/// Fails unless what has left since is what these records say.
fn all_is_recorded(vm: &mut Vm, before: LinkCounters, records: &[Record]) -> Result<()> {
    let left = left_since(vm, before)?;
    let recorded = (
        sum(records, "TREFOIL_BYTES_OUT")?,
        sum(records, "TREFOIL_PACKETS_OUT")?,
    );
    ensure!(
        recorded == (left.ip_bytes_out(), left.tx_packets),
        "{recorded:?} B and packets are recorded of {left:?}"
    );
    Ok(())
}

fn sum(records: &[Record], field: &str) -> Result<u64> {
    records.iter().map(|record| record.number(field)).sum()
}

/// What the kernel still sends for a program that has ended is in records, too: in that of the
/// connection or, where its end is not seen, in others.
fn nothing_is_lost_after_the_end(vm: &mut Vm) -> Result<()> {
    let flow = Flow {
        is_tcp: true,
        to: PEER,
        approved: true,
    };
    // Little is sent at the very moment of the end.
    const CONNECTIONS: u64 = 10;
    vm.ok(&format!(
        "systemd-run --quiet --wait --collect --unit=abandoned \
         sh -c 'for i in $(seq {CONNECTIONS}); do {flow} --abandon; done'"
    ))?;
    let mut told = (0, 0);
    vm.wait_until("all of abandoned connections is in records", |vm| {
        let records = last_records(vm, "TREFOIL_UNIT=abandoned.service", 1)?;
        told = (
            sum(&records, "TREFOIL_BYTES_OUT")?,
            sum(&records, "TREFOIL_PACKETS_OUT")?,
        );
        let headers_once = flow.bytes_out(told.1) - flow.bytes_out(0);
        let expected = headers_once + CONNECTIONS * flow.bytes_out(0);
        Ok((told.0 >= expected).then_some(()))
    })
    .with_context(|| format!("{told:?} B and packets are told"))
}

/// In enforce mode what is approved leaves as before, and nothing else: no call to another
/// place succeeds, and no frame that is made past all sockets gets out.
fn only_what_is_approved_leaves(vm: &mut Vm) -> Result<()> {
    let before = counters(vm, "", "uplink")?;
    let sent = send_all(vm, "enforced")?;
    // The kernel may tell it that the frame was dropped.
    vm.run(&format!(
        "{TRAFFIC} packet uplink 02:00:00:00:00:02 {FOREIGN}:9 --from 192.0.2.1:4000"
    ))?;
    let n_approved = sent.iter().filter(|(flow, ..)| flow.approved).count();
    let records = last_records(
        vm,
        "TREFOIL_UNIT=enforced.service TREFOIL_VERDICT=approved",
        n_approved,
    )?;
    let violations = vm.wait_until("every violation is recorded", |vm| {
        let found = vm.journal("TREFOIL_EVENT=violation TREFOIL_UNIT=enforced.service")?;
        Ok((found.len() >= sent.len() - n_approved).then_some(found))
    })?;
    for (flow, code, pid) in sent {
        if flow.approved {
            ensure!(code == 0, "{flow} ended with {code}");
            right_record(&records, flow, pid)?;
            continue;
        }
        ensure!(code == REFUSED, "{flow} ended with {code}");
        let violation = violations.iter().find(|record| flow.is_about(record));
        let violation = violation.with_context(|| format!("no violation for {flow}"))?;
        ensure!(
            violation.is("TREFOIL_OUTCOME", "refused")
                && violation.is("TREFOIL_ATTRIBUTION", "direct"),
            "{violation}"
        );
    }
    all_is_recorded(vm, before, &records)
}

const ROOT_MAY: &str = r#"mode = "enforce"
[[rules]]
name    = "root may, and nobody else"
from    = { user = 0 }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;

/// A process that has connected as root and is another when it sends gets no byte out, of
/// datagrams neither.
fn senders_are_known_before_they_send(vm: &mut Vm, is_spliced_seen: bool) -> Result<()> {
    put_in_force(vm, ROOT_MAY)?;
    let to = SocketAddr::new(FOREIGN, 9);
    let stays = format!("{TRAFFIC} become {to} --datagrams --silent");
    let turns = format!("{stays} --uid 65534");
    let before = counters(vm, "", "uplink")?;
    vm.ok(&stays)?;
    let before = {
        let left = left_since(vm, before)?;
        ensure!(left.tx_packets == 1, "root has sent {left:?}");
        counters(vm, "", "uplink")?
    };
    let spliced = is_spliced_seen.then(|| format!("{turns} --spliced"));
    for turns in [Some(turns), spliced].into_iter().flatten() {
        let turned = vm.run(&turns)?;
        ensure!(turned.code == REFUSED, "{turns}: {turned:?}");
        let left = left_since(vm, before)?;
        ensure!(left.tx_packets == 0, "{left:?} has left by {turns}");
    }
    // By MPTCP what sends is another socket than the one that the process uses.
    const BYTES: u64 = 20_000;
    let to = SocketAddr::new(FOREIGN, 443);
    for protocol in ["", "--mptcp"] {
        let before = counters(vm, "", "uplink")?;
        vm.run(&format!(
            "{TRAFFIC} become {to} {protocol} --silent --uid 65534 --bytes {BYTES}"
        ))?;
        let left = counters(vm, "", "uplink")?.since(before);
        ensure!(
            (1..BYTES / 10).contains(&left.tx_bytes),
            "{left:?} has left by TCP {protocol}"
        );
    }
    Ok(())
}

/// They balance, are about all that the interface has counted, and know of the frame.
fn books_are_right(vm: &mut Vm) -> Result<()> {
    let sent = counters(vm, "", "uplink")?.tx_bytes;
    let book = Record::parse(&status(vm)?["uplinks"]["uplink"].to_string())?;
    let booked = balanced(&book)? + book.number("bytes_before")?;
    ensure!(booked == sent, "the interface has sent {sent} B: {book}");
    ensure!(book.number("bytes_dropped")? > 0, "{book}");
    Ok(())
}
