//! Senders where the kernel has no tracepoint that tells them (before 6.3), and another program
//! stands in for it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::vm::Vm;

use crate::world::{TRAFFIC, arrived, detach, installed};

const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "leases"
from    = { unit = "leases.service" }
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;

const N_WORKERS: u8 = 5;

/// Returns the reports of a program, one for each time that it sent.
fn told(said: &str) -> Result<Vec<Record>> {
    let lines = said.lines().map(Record::parse);
    let told: Vec<_> = lines.collect::<Result<_>>()?;
    let has_sent = |record: &Record| record.number("bytes").is_ok_and(|bytes| bytes > 0);
    Ok(told.into_iter().filter(has_sent).collect())
}

/// Starts a server with one client for each worker; returns what the workers said.
fn serve(vm: &mut Vm, port: u16, accept: &str) -> Result<Vec<Record>> {
    vm.ok(&format!(
        "rm -f /run/workers && ({TRAFFIC} workers {port} --count {N_WORKERS} --bytes 3000 \
         --accept {accept} >/run/workers 2>&1 </dev/null &) && \
         until grep -q port /run/workers; do sleep 0.1; done"
    ))?;
    for number in 0..N_WORKERS {
        let source = format!("203.0.113.{}", 40 + number);
        vm.ok(&format!(
            "ip netns exec far {TRAFFIC} tcp 192.0.2.1:{port} --source {source}"
        ))?;
    }
    let all = vm.wait_until("every worker has answered", |vm| {
        let told = told(&vm.read("/run/workers")?)?;
        Ok((told.len() == usize::from(N_WORKERS)).then_some(told))
    })?;
    Ok(all)
}

/// Two processes, or one as two users, send what leaves as one.
fn send_by_two(vm: &mut Vm) -> Result<()> {
    // The first sends in the call that connects, and a child of it after that.
    vm.ok(&format!(
        "rm -f /run/served && (ip netns exec far {TRAFFIC} serve 8154 >/run/served 2>&1 </dev/null &) \
         && until grep -q port /run/served; do sleep 0.1; done && \
         {TRAFFIC} replace {TRAFFIC} 203.0.113.60:8154 --fast-open --child"
    ))?;
    // The first begins a datagram, and is another user when it goes on.
    vm.ok(&format!("{TRAFFIC} append 203.0.113.62:9 65534"))
        .map(drop)
}

/// Fails unless the records about that are not certain of who sent it.
fn of_two(records: &[Record]) -> Result<()> {
    for (field, value) in [("DST_PORT", "8154"), ("DST_ADDR", "203.0.113.62")] {
        let mut of_two = records
            .iter()
            .filter(|record| record.is(&format!("TREFOIL_{field}"), value));
        let of_two = of_two.next_back().context("no record of two senders")?;
        ensure!(of_two.is("TREFOIL_ATTRIBUTION", "inferred"), "{of_two}");
    }
    Ok(())
}

#[test]
fn senders_are_named_where_the_kernel_has_no_tracepoint_for_them() -> Result<()> {
    let mut vm = installed("senders")?;
    vm.write("/etc/trefoil/policy.toml", POLICY)?;
    vm.ok("systemctl reload trefoil")?;
    let status = vm.ok("trefoil status")?;
    let note = "hook sock_send_length on this kernel does not cover processes that splice";
    ensure!(status.contains(note), "{status}");

    // The port of a client and who has answered it.
    let mut answered = BTreeSet::new();
    for (port, accept) in [(8152, "worker"), (8153, "parent")] {
        for worker in serve(&mut vm, port, accept)? {
            answered.insert((worker.number("port")?, worker.number("pid")?));
        }
    }
    let to = "203.0.113.60:9";
    let mut handed_on = BTreeSet::new();
    for way in ["passed", "inherited"] {
        let said = vm.ok(&format!("{TRAFFIC} hand-on {way} {to}"))?;
        for sender in told(&said)? {
            handed_on.insert((9, sender.number("pid")?));
        }
    }
    send_by_two(&mut vm)?;
    vm.ok(&format!(
        "systemd-run --quiet --wait --unit=leases --collect {TRAFFIC} packet uplink \
         02:00:00:00:00:02 203.0.113.61:9 --from 192.0.2.1:4000 --count 3"
    ))?;

    // Removal of the programs from the kernel ends their flows.
    detach(&mut vm)?;
    let records = vm.journal("-u trefoil TREFOIL_STATE=closed")?;
    let about = |is_wanted: &dyn Fn(&Record) -> bool| -> Result<BTreeSet<(u64, u64)>> {
        let certain =
            |record: &&Record| is_wanted(record) && record.is("TREFOIL_ATTRIBUTION", "direct");
        let named = |record: &Record| {
            Ok((
                record.number("TREFOIL_DST_PORT")?,
                record.number("TREFOIL_PID")?,
            ))
        };
        records.iter().filter(certain).map(named).collect()
    };
    let accepted = about(&|record| record.is("TREFOIL_DIRECTION", "accepted"))?;
    ensure!(
        answered.len() == 2 * usize::from(N_WORKERS) && handed_on.len() == 2,
        "{answered:?} {handed_on:?}"
    );
    ensure!(accepted == answered, "{accepted:?} for {answered:?}");
    let sent = about(&|record| record.is("TREFOIL_DST_ADDR", "203.0.113.60"))?;
    ensure!(sent == handed_on, "{sent:?} for {handed_on:?}");
    of_two(&records)?;

    // The first frame as well: who is about to send is known before it is on its way.
    let frames: Vec<_> = records
        .iter()
        .filter(|record| record.is("TREFOIL_DST_ADDR", "203.0.113.61"))
        .collect();
    let frames: [&Record; 1] = frames.try_into().ok().context("not one record of frames")?;
    for (field, expected) in [
        ("TREFOIL_ATTRIBUTION", "direct"),
        ("TREFOIL_UNIT", "leases.service"),
        ("TREFOIL_VERDICT", "approved"),
        ("TREFOIL_PACKETS_OUT", "3"),
    ] {
        ensure!(frames[0].is(field, expected), "{field}: {}", frames[0]);
    }
    Ok(())
}

/// Where a call that sends is seen before anything leaves: a user chooses nothing for another by a
/// socket that he made, not by what the host translates either.
#[test]
fn nothing_leaves_by_a_socket_that_a_user_lends() -> Result<()> {
    const USER: u32 = 65_534;
    const SERVICE: &str = "203.0.113.70";
    const RULES: &str = "\
table ip lent {
chain output {
type nat hook output priority -100
ip daddr 203.0.113.70 dnat to 203.0.113.60
}
}
";
    let mut vm = installed("lent")?;
    let policy = format!(
        "mode = \"enforce\"\n\
         [[rules]]\nname = \"root\"\nfrom = {{ user = 0 }}\n\
         to = {{ networks = [\"203.0.113.0/24\"] }}\nverdict = \"approve\"\n\
         [[rules]]\nname = \"named\"\nfrom = {{ user = {USER} }}\n\
         to = {{ networks = [\"{SERVICE}/32\"] }}\nverdict = \"approve\"\n"
    );
    vm.write("/etc/trefoil/policy.toml", &policy)?;
    vm.ok("systemctl reload trefoil")?;
    vm.write("/run/lent.nft", RULES)?;
    vm.ok("nft -f /run/lent.nft")?;
    for (number, protocol) in ["tcp", "mptcp", "udp"].into_iter().enumerate() {
        let port = 8160 + number;
        vm.ok(&format!(
            "rm -f /run/served && (ip netns exec far {TRAFFIC} serve {port} --wait >/run/served \
             2>&1 </dev/null &) && until grep -q port /run/served; do sleep 0.1; done"
        ))?;
        for (user, may) in [(USER, false), (0, true)] {
            let before = arrived(&mut vm)?;
            let words = format!("lend {SERVICE}:{port} {user} --by {protocol}");
            let ended = vm.run(&format!("{TRAFFIC} {words}"))?;
            let packets = arrived(&mut vm)? - before;
            ensure!(
                (packets > 0) == may,
                "{words}: {packets} packets arrived, {ended:?}"
            );
        }
    }
    vm.ok("nft delete table ip lent")?;

    vm.ok("mkfifo /run/waits")?;
    vm.ok("ip -n far route replace 192.0.2.1 dev far src 203.0.113.40")?;
    // Nor is he answered on a port on which root has tried to send.
    for (port, user, is_answered) in [(8170, 0, true), (8171, USER, false)] {
        vm.ok(&format!(
            "rm -f /run/listens && ({TRAFFIC} listen-lent {port} {user} <>/run/waits \
             >/run/listens 2>&1 &) && until grep -q pid /run/listens; do sleep 0.1; done"
        ))?;
        let ended = vm.run(&format!(
            "timeout 5 ip netns exec far bash -c 'exec 3<>/dev/tcp/192.0.2.1/{port}'"
        ))?;
        ensure!((ended.code == 0) == is_answered, "{user}: {ended:?}");
    }
    Ok(())
}
