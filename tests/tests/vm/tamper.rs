//! Where the kernel lets programs watch its functions, who tampers is named.

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::vm::Vm;

use crate::world::{GUEST, installed};

/// Pins of the agent, whatever the version of their layout.
const PINS: &str = "/sys/fs/bpf/trefoil/v*";

/// Runs a command as a service of this name, and returns the number of the shell that does.
fn meddle(vm: &mut Vm, service: &str, command: &str) -> Result<String> {
    vm.write("/run/meddle", &format!("echo $$ && exec {command}"))?;
    let said = vm.ok(&format!(
        "systemd-run --quiet --wait --pipe --collect --unit={service} sh /run/meddle"
    ))?;
    Ok(said.lines().next().context("no number")?.to_owned())
}

/// Fails unless the record about this names who it was.
fn is_told(vm: &mut Vm, subject: &str, service: &str, pid: &str) -> Result<()> {
    let unit = format!("{service}.service");
    let record: Record = vm.wait_until(&format!("tampering with {subject} is told"), |vm| {
        let records = vm.journal("TREFOIL_EVENT=tamper")?;
        let is_it = |record: &&Record| {
            record.is("TREFOIL_SUBJECT", subject) && record.is("TREFOIL_UNIT", &unit)
        };
        Ok(records.iter().find(is_it).cloned())
    })?;
    ensure!(
        record.is("TREFOIL_PID", pid)
            && record.is("TREFOIL_UID", 0)
            && record.is("TREFOIL_ATTRIBUTION", "inferred"),
        "{record}"
    );
    Ok(())
}

#[test]
fn who_detaches_writes_or_removes_is_named() -> Result<()> {
    let mut vm = installed("meddled")?;
    let write = format!("{GUEST} write {PINS}/maps/CONTROL");
    let pid = meddle(&mut vm, "writes", &write)?;
    is_told(&mut vm, "the control word", "writes", &pid)?;

    let egress = vm.ok(&format!("echo {PINS}/links/*-egress"))?;
    let pid = meddle(&mut vm, "removes", &format!("rm {}", egress.trim()))?;
    is_told(&mut vm, "hook egress", "removes", &pid)?;

    let pid = meddle(&mut vm, "removes-all", &format!("rm -r {PINS}"))?;
    let n_pins = vm.wait_until("all is pinned again", |vm| {
        let told = vm.journal("TREFOIL_EVENT=tamper TREFOIL_UNIT=removes-all.service")?;
        Ok(told.first().map(|record| record.text("TREFOIL_SUBJECT")))
    })?;
    ensure!(n_pins.ends_with(" pins"), "{n_pins}");
    is_told(&mut vm, &n_pins, "removes-all", &pid)?;

    let detach = format!("{GUEST} detach {}", egress.trim());
    let pid = meddle(&mut vm, "detaches", &detach)?;
    is_told(&mut vm, "hook egress", "detaches", &pid)?;

    // Also if there was no agent; the manager has started another one by now.
    let agent = "systemctl is-active trefoil";
    vm.wait_until("the next agent runs", |vm| {
        Ok((vm.run(agent)?.code == 0).then_some(()))
    })?;
    vm.ok("systemctl stop trefoil")?;
    let ingress = vm.ok(&format!("ls -d {PINS}/links/*-ingress"))?;
    let detach = format!("{GUEST} detach {}", ingress.trim());
    let pid = meddle(&mut vm, "detaches-unseen", &detach)?;
    vm.ok("systemctl start trefoil")?;
    is_told(&mut vm, "hook ingress", "detaches-unseen", &pid)
}
