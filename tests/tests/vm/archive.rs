//! The tarball, for hosts without Debian's package manager.

use anyhow::Result;
use trefoil_lab::vm::{TARBALL, Vm};

use crate::world::{EVERYTHING, OBJECTS, healthy, same_files};

#[test]
fn the_tarball_installs_the_same_and_leaves_nothing() -> Result<()> {
    let mut vm = Vm::booted("tarball")?;
    let (files, objects) = (vm.ok(EVERYTHING)?, vm.ok(OBJECTS)?);
    vm.ok(&format!(
        "tar -C /tmp -xzf {TARBALL} && mv /tmp/trefoil-* /tmp/trefoil"
    ))?;
    vm.ok("/tmp/trefoil/install.sh")?;
    healthy(&mut vm)?;
    assert_eq!(vm.ok("systemctl is-enabled trefoil")?, "enabled\n");
    vm.ok("echo '# edited' >> /etc/trefoil/policy.toml")?;

    vm.ok("/tmp/trefoil/install.sh --remove")?;
    vm.wait_until("the kernel has freed everything", |vm| {
        Ok((vm.ok(OBJECTS)? == objects).then_some(()))
    })?;
    assert!(vm.read("/etc/trefoil/policy.toml")?.ends_with("# edited\n"));

    vm.ok("/tmp/trefoil/install.sh --purge")?;
    same_files(&files, &vm.ok(EVERYTHING)?);
    Ok(())
}
