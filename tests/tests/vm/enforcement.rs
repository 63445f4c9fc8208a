//! Enforcement on a host, and everything that could interrupt it.

use anyhow::{Result, ensure};
use trefoil_lab::vm::{NEXT_PACKAGE, Vm};

use crate::world::{
    REFUSED, TRAFFIC, UPLINK_SCRIPT, arrived, enforce, enforcing, foreign, insist, installed,
    property, send_as, wait_for_another_agent, wait_for_attempts, wait_for_violation,
};

#[test]
fn one_edited_word_and_a_reload_enforce() -> Result<()> {
    let mut vm = installed("enforce")?;
    assert_eq!(send_as(&mut vm, "before")?, 0);
    enforce(&mut vm)?;
    let before = arrived(&mut vm)?;
    assert_eq!(send_as(&mut vm, "exporter")?, REFUSED);
    assert_eq!(arrived(&mut vm)?, before);
    wait_for_violation(&mut vm, "exporter", "refused")?;
    ensure!(property(&mut vm, "StatusText")?.contains("nforc"));

    // A policy with a mistake is refused where it is put in force, and the one
    // before stays.
    vm.ok("sed -i 's/^verdict = \"approve\"/verdict = \"aprove\"/' /etc/trefoil/policy.toml")?;
    assert_ne!(vm.run("systemctl reload trefoil")?.code, 0);
    assert_eq!(send_as(&mut vm, "exporter-again")?, REFUSED);

    // Out of trouble by one command: the service ends, and is not started again.
    vm.ok("trefoil detach")?;
    assert_eq!(send_as(&mut vm, "detached")?, 0);
    vm.wait_until("the service has ended", |vm| {
        Ok((property(vm, "ActiveState")? == "inactive").then_some(()))
    })?;
    assert_eq!(property(&mut vm, "NRestarts")?, "0");
    assert_eq!(send_as(&mut vm, "detached-still")?, 0);
    Ok(())
}

/// Does something to the agent while a service tries to send all the time, and
/// fails if anything arrives.
fn nothing_arrives(vm: &mut Vm, mut act: impl FnMut(&mut Vm) -> Result<()>) -> Result<()> {
    insist(vm)?;
    let before = arrived(vm)?;
    act(vm)?;
    wait_for_attempts(vm)?;
    let leaked = arrived(vm)? - before;
    ensure!(leaked == 0, "{leaked} packets arrived");
    Ok(())
}

#[test]
fn an_agent_that_is_restarted_stuck_or_killed_leaks_nothing() -> Result<()> {
    let mut vm = enforcing("restarts")?;
    nothing_arrives(&mut vm, |vm| {
        vm.ok("systemctl restart trefoil")?;
        wait_for_attempts(vm)?;
        // Its loop stands still, so that systemd's watchdog kills it.
        let pid = property(vm, "MainPID")?;
        vm.ok("systemctl kill --signal=STOP --kill-who=main trefoil")?;
        wait_for_another_agent(vm, &pid)?;
        let told = vm.ok("journalctl -u trefoil")?;
        ensure!(told.contains("Watchdog timeout"), "{told}");
        ensure!(told.contains("code=killed, status=9/KILL"), "{told}");
        Ok(())
    })
}

/// Until Linux 6.13 what the kernel sends for such a connection is of a socket of its own,
/// in the control group of the root, which is watched here.
#[test]
fn the_kernel_may_end_a_connection_whose_socket_is_gone() -> Result<()> {
    const RULE: &str = "\n[[rules]]\nname = \"closing\"\nfrom = { unit = \"closing.service\" }\n\
                        to = { networks = [\"203.0.113.0/24\"] }\nverdict = \"approve\"\n";
    let mut vm = enforcing("closing")?;
    let policy = vm.read("/etc/trefoil/policy.toml")?;
    vm.write("/etc/trefoil/policy.toml", &(policy + RULE))?;
    vm.ok("systemctl reload trefoil")?;
    let to = foreign(443);
    vm.ok(&format!(
        "(ip netns exec far {TRAFFIC} serve 443 --wait >/run/server 2>&1 </dev/null &) && \
         until grep -q port /run/server; do sleep 0.1; done && \
         systemd-run --quiet --wait --unit=closing --collect \
             {TRAFFIC} tcp {to} --bytes 100 --abandon"
    ))?;
    vm.wait_until("no end of it waits for the other", |vm| {
        // The server has ended, and the kernel has nothing left to send for it.
        let open = "ip netns exec far cat /proc/net/tcp /proc/net/tcp6 | grep -c '^ *[0-9]*:'";
        Ok((vm.run(open)?.stdout.trim() == "0").then_some(()))
    })?;
    let violations = vm.journal("-u trefoil TREFOIL_EVENT=violation TREFOIL_DST_PORT=443")?;
    ensure!(violations.is_empty(), "{violations:?}");
    Ok(())
}

#[test]
fn who_is_denied_is_denied_under_his_subordinate_ids_too() -> Result<()> {
    const RULES: &str = "\n[[rules]]\nname = \"not bob\"\nfrom = { user = \"bob\" }\n\
                         verdict = \"deny\"\n\n[[rules]]\nname = \"others\"\n\
                         to = { networks = [\"203.0.113.0/24\"] }\nverdict = \"approve\"\n";
    let mut vm = enforcing("subordinate")?;
    let policy = vm.read("/etc/trefoil/policy.toml")?;
    vm.ok("useradd --create-home bob")?;
    vm.write("/etc/trefoil/policy.toml", &(policy + RULES))?;
    vm.ok("systemctl reload trefoil")?;
    let first = vm.ok("awk -F: '$1 == \"bob\" { print $2 }' /etc/subuid")?;
    let first: u32 = first.trim().parse()?;
    let to = foreign(9);
    for (uid, code) in [
        ("bob".to_owned(), REFUSED),
        (first.to_string(), REFUSED),
        ((first + 65_535).to_string(), REFUSED),
        ((first + 65_536).to_string(), 0),
    ] {
        let send = format!("setpriv --reuid={uid} --clear-groups {TRAFFIC} udp {to}");
        assert_eq!(vm.run(&send)?.code, code, "{uid}");
    }
    Ok(())
}

#[test]
fn an_upgrade_keeps_files_and_enforcement() -> Result<()> {
    let mut vm = enforcing("upgrade")?;
    vm.ok("echo '# edited' >> /etc/trefoil/trefoil.toml")?;
    let policy = vm.read("/etc/trefoil/policy.toml")?;
    let refused = refused_so_far(&mut vm)?;
    nothing_arrives(&mut vm, |vm| {
        let pid = property(vm, "MainPID")?;
        vm.ok(&format!("dpkg --install {NEXT_PACKAGE} < /dev/null"))?;
        wait_for_another_agent(vm, &pid)
    })?;
    assert_eq!(vm.read("/etc/trefoil/policy.toml")?, policy);
    ensure!(
        vm.read("/etc/trefoil/trefoil.toml")?
            .ends_with("# edited\n")
    );
    // Counters go on from where they were.
    let after = refused_so_far(&mut vm)?;
    ensure!(
        after > refused,
        "{after} calls were refused, and {refused} before the upgrade"
    );
    Ok(())
}

/// Calls that were refused since the programs were loaded, after one more.
fn refused_so_far(vm: &mut Vm) -> Result<u64> {
    assert_eq!(send_as(vm, "counted")?, REFUSED);
    let status: serde_json::Value = serde_json::from_str(&vm.run("trefoil status --json")?.stdout)?;
    Ok(status["refused"]["undetermined"]
        .as_u64()
        .unwrap_or_default())
}

/// A service that makes the uplink when the network may come up, and the first
/// that sends.
const FIRST_SENDER: &str = "[Unit]
DefaultDependencies=no
RequiresMountsFor=/guest /var/lib
After=network-pre.target
Before=network.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=/bin/sh /var/lib/uplink
ExecStart=-/guest/traffic udp 203.0.113.10:9
ExecStart=-/guest/traffic tcp 203.0.113.10:9
[Install]
WantedBy=multi-user.target
";

#[test]
fn after_a_reboot_the_first_packet_is_refused() -> Result<()> {
    let mut vm = enforcing("reboot")?;
    ensure!(FIRST_SENDER.contains(UPLINK_SCRIPT));
    vm.write("/etc/systemd/system/first-sender.service", FIRST_SENDER)?;
    vm.ok("systemctl enable first-sender")?;
    vm.reboot()?;

    let codes = vm.ok("systemctl show --property=ExecStart first-sender")?;
    assert_eq!(codes.matches("status=13").count(), 2, "{codes}");
    assert_eq!(arrived(&mut vm)?, 0);
    wait_for_violation(&mut vm, "first-sender", "refused")?;
    let ready = property(&mut vm, "ActiveEnterTimestampMonotonic")?.parse::<u64>()?;
    let network = vm
        .ok("systemctl show --value --property=ActiveEnterTimestampMonotonic network-pre.target")?;
    ensure!(
        ready <= network.trim().parse()?,
        "ready at {ready} us, network-pre at {network}"
    );
    Ok(())
}

/// Long enough to do something in it here.
const TRIAL_SECONDS: u32 = 30;

#[test]
fn a_trial_that_nobody_confirms_ends_by_itself() -> Result<()> {
    let mut vm = installed("confirmation")?;
    vm.ok(&format!(
        "sed -i 's/^#confirm_within = .*/confirm_within = \"{TRIAL_SECONDS}s\"/' \
         /etc/trefoil/trefoil.toml && systemctl restart trefoil"
    ))?;

    // Somebody confirms: the time is over, and nothing changes.
    enforce(&mut vm)?;
    assert_eq!(send_as(&mut vm, "on-trial")?, REFUSED);
    vm.ok("trefoil confirm")?;
    vm.ok(&format!("sleep {TRIAL_SECONDS}"))?;
    assert_eq!(send_as(&mut vm, "confirmed")?, REFUSED);

    // Another text is on trial anew. Nobody confirms, and nobody is there who
    // could end it but the kernel.
    vm.ok("echo '# another' >> /etc/trefoil/policy.toml && systemctl reload trefoil")?;
    vm.ok("systemctl mask --runtime trefoil; systemctl kill --signal=KILL trefoil")?;
    vm.wait_until("the agent is gone", |vm| {
        Ok((property(vm, "MainPID")? == "0").then_some(()))
    })?;
    assert_eq!(send_as(&mut vm, "on-trial-again")?, REFUSED);
    vm.wait_until("traffic passes again", |vm| {
        Ok((send_as(vm, "unconfirmed")? == 0).then_some(()))
    })?;
    assert_eq!(property(&mut vm, "MainPID")?, "0");
    Ok(())
}
