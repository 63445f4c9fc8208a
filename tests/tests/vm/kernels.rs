//! Debian's kernels, oldest to newest: on each the package is installed, and what it lacks,
//! what is recorded of traffic, what is blocked and what the books say is held against what
//! is expected of it. A kernel that warns about itself ends its scenario.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trefoil_lab::Record;
use trefoil_lab::books::balanced;
use trefoil_lab::places::{FOREIGN, PEER, PEER6};
use trefoil_lab::vm::Vm;

use crate::flows::{
    Flow, all_is_recorded, counters, last_records, left_since, right_record, send_all, sum,
};
use crate::world::{OBJECTS, REFUSED, TRAFFIC, connect, install};

/// Every program, as on a kernel that has all that Trefoil uses.
const PROGRAMS: [&str; 30] = [
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
    "tcp_destroy_sock",
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

/// Expectations of a kernel: its version, and its features.
struct Kernel {
    /// The beginning of its release.
    release: &'static str,
    /// The hooks that it lacks, and what is therefore not covered.
    lacks: &'static [(&'static str, &'static str)],
    /// Of them, those without which a promise does not hold.
    broken: &'static [&'static str],
    /// The programs that do the work of hooks which are not in the kernel themselves.
    instead: &'static [&'static str],
    /// Those hooks, apart from what is lacking.
    replaced: &'static [&'static str],
    /// A trace shows frames at uplinks (6.6).
    traces_uplinks: bool,
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
                    "tcp_destroy_sock",
                    "ends of TCP flows that a timer ends while another socket begins to listen",
                ),
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
            broken: &["sock_send_length", "__dev_direct_xmit"],
            instead: &[],
            replaced: &[],
            traces_uplinks: false,
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
            broken: &[],
            instead: &["security_socket_sendmsg"],
            replaced: &[],
            traces_uplinks: false,
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
        broken: &[],
        instead: &["security_socket_sendmsg"],
        replaced: &["sock_send_length", "tcp_sendmsg_locked"],
        traces_uplinks: true,
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
    a_trace_tells_what_is_refused_and_what_passes(vm, kernel)?;
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

/// One process is refused and another is not, while somebody traces.
fn a_trace_tells_what_is_refused_and_what_passes(vm: &mut Vm, kernel: &Kernel) -> Result<()> {
    let (refused, passed) = (SocketAddr::new(FOREIGN, 9), SocketAddr::new(PEER6, 9));
    vm.ok(
        "(trefoil trace --json --for 10min --to :9 >/run/trace 2>/run/trace-errors </dev/null & \
         echo $! >/run/trace-pid) && \
         until grep -q 'tracing for' /run/trace-errors || ! kill -0 $(cat /run/trace-pid); do \
         sleep 0.2; done; cat /run/trace-errors; kill -0 $(cat /run/trace-pid)",
    )?;
    vm.ok(&format!(
        "systemd-run --quiet --wait --pipe --unit=traced sh -c '{TRAFFIC} udp {refused}; \
         test $? = {REFUSED} && {TRAFFIC} udp {passed}'"
    ))?;
    vm.ok("kill -INT $(cat /run/trace-pid); while kill -0 $(cat /run/trace-pid); do sleep 0.2; done 2>/dev/null")?;
    let errors = vm.ok("cat /run/trace-errors")?;
    println!("{errors}");
    let lines: Vec<_> = vm
        .ok("cat /run/trace")?
        .lines()
        .map(Record::parse)
        .collect::<Result<_>>()?;
    let mut expected = vec![
        ("sendmsg4", "refused", ""),
        ("sendmsg6", "passed", "the peer"),
        ("egress", "passed", "the peer"),
    ];
    ensure!(
        errors.contains("frames at uplink uplink") != kernel.traces_uplinks,
        "{errors}"
    );
    if kernel.traces_uplinks {
        expected.push(("uplink_egress", "passed", "the peer"));
    }
    for (hook, outcome, rule) in expected {
        let is_told = |line: &Record| {
            line.is("hook", hook)
                && line.is("outcome", outcome)
                && line.is("unit", "traced.service")
                && line.is("rule", rule)
        };
        ensure!(lines.iter().any(is_told), "{hook} {outcome}: {lines:?}");
    }
    Ok(())
}

fn put_in_force(vm: &mut Vm, policy: &str) -> Result<()> {
    vm.write("/etc/trefoil/policy.toml", policy)?;
    vm.ok("systemctl reload trefoil").map(drop)
}

/// Checks the output of `check` and `status`, and the objects in the kernel.
fn has_what_is_expected(vm: &mut Vm, kernel: &Kernel, objects_before: &str) -> Result<()> {
    let checked: Value = serde_json::from_str(&vm.run("trefoil check --json")?.stdout)?;
    ensure!(checked["kernel_tried"] == true, "{checked:#}");
    let hooks = checked["kernel"].as_array().context("no hooks")?;
    let lacks: Vec<_> = hooks
        .iter()
        .filter(|hook| hook["supported"] != true)
        .filter_map(|hook| Some((hook["name"].as_str()?, hook["without"].as_str()?)))
        .collect();
    ensure!(lacks == kernel.lacks, "check: it lacks {lacks:?}");

    let broken = |hook: &&Value| hook["breaks_promise"] == true;
    let broken: Vec<_> = hooks
        .iter()
        .filter(broken)
        .map(|hook| &hook["name"])
        .collect();
    ensure!(broken == kernel.broken, "check: {broken:?}");

    let findings = status(vm)?["findings"].clone();
    let findings = findings.as_array().context("no findings")?;
    let is_found = |hook: &&str| {
        let finding = format!("no hook {hook} on this kernel, and a promise needs it: ");
        let mut findings = findings.iter().filter_map(Value::as_str);
        findings.any(|it| it.starts_with(&finding))
    };
    ensure!(
        findings.len() == kernel.broken.len() && kernel.broken.iter().all(is_found),
        "status: {findings:?}"
    );
    vm.ok("trefoil status --acknowledge")?;
    let status = status(vm)?;
    ensure!(status["healthy"] == true, "{status:#}");
    let notes = status["notes"].as_array().context("no notes")?;
    let is_said = |(hook, what): &(&str, &str)| {
        notes.iter().filter_map(Value::as_str).any(|note| {
            note.contains(&format!("hook {hook} on this kernel")) && note.contains(what)
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

/// Packets that the kernel still sends for a program that has ended are in records, too: in
/// that of the connection or, where its end is not seen, in others.
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
