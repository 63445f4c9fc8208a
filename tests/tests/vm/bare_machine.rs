//! The machine itself, without Trefoil: what the other scenarios rely on.

use anyhow::Result;
use trefoil_lab::vm::Vm;

#[test]
fn a_machine_runs_commands() -> Result<()> {
    let mut vm = Vm::booted("machine")?;
    assert_eq!(vm.ok("systemctl is-system-running")?, "running\n");
    let ended = vm.run("echo out; echo err >&2; exit 3")?;
    assert_eq!(
        (ended.code, &*ended.stdout, &*ended.stderr),
        (3, "out\n", "err\n")
    );
    vm.write("/var/lib/kept", "two\nlines\n")?;
    assert_eq!(vm.read("/var/lib/kept")?, "two\nlines\n");
    Ok(())
}

#[test]
fn machines_do_not_see_each_other() -> Result<()> {
    let mut one = Vm::booted("one")?;
    one.ok("touch /var/lib/one /dev/shm/one")?;
    let mut other = Vm::booted("other")?;
    assert_eq!(other.run("ls /var/lib/one /dev/shm/one")?.stdout, "");
    // No way out: loopback is all there is.
    assert_eq!(other.ok("ls /sys/class/net")?, "lo\n");
    Ok(())
}

#[test]
fn a_kernel_that_panics_ends_the_scenario() -> Result<()> {
    let mut vm = Vm::booted("panic")?;
    let error = vm
        .run("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
        .expect_err("the machine has no kernel any more");
    assert!(
        format!("{error:#}").contains("the guest's kernel failed"),
        "{error:#}"
    );
    Ok(())
}
