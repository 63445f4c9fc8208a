//! World that the scenarios share: a host with an uplink, the package installed
//! on it, and a far end that counts what arrives.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use trefoil_lab::Record;
use trefoil_lab::places::FOREIGN;
use trefoil_lab::vm::{Moment, PACKAGE, Vm};

/// The program that sends.
pub const TRAFFIC: &str = "/guest/traffic";

/// The program that does what the tests ask for, to BPF objects too.
pub const GUEST: &str = "/guest/trefoil-guest";

/// Exit code of [`TRAFFIC`] when the kernel said EPERM.
pub const REFUSED: i32 = 13;

/// Where [`uplink`] puts the script that makes it.
pub const UPLINK_SCRIPT: &str = "/var/lib/uplink";

/// An uplink that leads to a network namespace in which every foreign address is
/// at home. It carries nothing by itself, IPv6's search for neighbours and
/// routers included, so that whatever arrives was sent by somebody.
const UPLINK: &str = r"#!/bin/sh
set -eu
ip netns add far
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
ip netns exec far sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'
ip link add uplink address 02:00:00:00:00:01 type veth \
    peer name far address 02:00:00:00:00:02 netns far
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
ip neighbour add 192.0.2.10 lladdr 02:00:00:00:00:02 dev uplink nud permanent
ip -n far address add 192.0.2.10/24 dev far
ip -n far link set far up
ip -n far link set lo up
ip -n far neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev far nud permanent
ip -n far route add local 203.0.113.0/24 dev lo
ip route add default via 192.0.2.10
";

/// The host's address on its uplink, once that has IPv6.
pub const HOST6: &str = "2001:db8:1::1";

/// Gives the uplink IPv6, and the far end these addresses.
pub fn add_ipv6(vm: &mut Vm, far: &[&str]) -> Result<()> {
    const SCRIPT: &str = r"set -eu
echo 0 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6
ip netns exec far sh -c 'echo 0 > /proc/sys/net/ipv6/conf/far/disable_ipv6'
ip address add 2001:db8:1::1/64 dev uplink nodad
ip -6 neighbour replace 2001:db8:1::10 lladdr 02:00:00:00:00:02 dev uplink nud permanent
ip -6 route add default via 2001:db8:1::10
ip -n far address add 2001:db8:1::10/64 dev far nodad
ip -n far -6 neighbour replace 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev far nud permanent
";
    vm.write("/run/ipv6", SCRIPT)?;
    vm.ok("sh /run/ipv6")?;
    for address in far {
        vm.ok(&format!(
            "ip -n far address add {address}/128 dev far nodad"
        ))?;
    }
    // Its own addresses, which the agent looks at now and then.
    vm.ok("systemctl reload trefoil").map(drop)
}

/// The BPF objects in the kernel, except those of systemd. No pipe: what fails is to be seen.
pub const OBJECTS: &str = "/guest/trefoil-guest objects";

/// Every file, user and group, and what Trefoil could have in the file systems that
/// live in memory. Journals and the package manager's own books grow by themselves.
pub const EVERYTHING: &str = "find / -xdev \\( -path /var/log/journal -o -path /var/log/dpkg.log \
     -o -path /var/lib/dpkg -o -path /var/cache -o -path /tmp -o -path /var/tmp \\) \
     -prune -o -print; \
     cat /etc/passwd /etc/group; \
     find /run /sys/fs/bpf -xdev \\( -path /run/systemd -o -path /run/udev \\) -prune \
     -o -name '*trefoil*' -print";

/// Fails if [`EVERYTHING`] was not the same before and after.
pub fn same_files(before: &str, after: &str) {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) =
        (before.lines().collect(), after.lines().collect());
    let difference: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(difference.is_empty(), "{difference:?}");
}

/// Where [`installed`] keeps what [`OBJECTS`] and [`EVERYTHING`] said before.
pub const OBJECTS_BEFORE: &str = "/dev/shm/objects-before";
/// See [`OBJECTS_BEFORE`].
pub const EVERYTHING_BEFORE: &str = "/dev/shm/everything-before";

/// Raw sockets of TCP's protocol that are older than the agent, and that it cannot find:
/// they are on their way from a process to itself.
pub const LOOK_ALIKES: u64 = 100;
/// They send when something is written to this.
pub const LOOK_ALIKES_GO: &str = "/run/look-alikes.go";

/// The package is installed, and nothing was done with it.
static INSTALLED: Moment = Moment::new();

/// The policy is enforced, and nothing else was done.
static ENFORCING: Moment = Moment::new();

/// A host with an uplink, on which the package has just been installed.
pub fn installed(name: &str) -> Result<Vm> {
    Vm::at(&INSTALLED, name, || {
        let mut vm = Vm::booted("installed")?;
        connect(&mut vm)?;
        vm.ok(&format!("({OBJECTS}) > {OBJECTS_BEFORE}"))?;
        vm.ok(&format!("({EVERYTHING}) > {EVERYTHING_BEFORE}"))?;
        vm.ok(&format!(
            "mkfifo {LOOK_ALIKES_GO} && ({TRAFFIC} raw {FOREIGN} --protocol 6 \
             --sockets {LOOK_ALIKES} <>{LOOK_ALIKES_GO} >/run/look-alikes 2>&1 &) && \
             until [ -s /run/look-alikes ]; do sleep 0.1; done"
        ))?;
        install(&mut vm)?;
        Ok(vm)
    })
}

/// Makes the uplink and the far end.
pub fn connect(vm: &mut Vm) -> Result<()> {
    vm.write(UPLINK_SCRIPT, UPLINK)?;
    vm.ok(&format!("sh {UPLINK_SCRIPT}")).map(drop)
}

/// Installs the package, which starts the agent.
pub fn install(vm: &mut Vm) -> Result<()> {
    vm.ok(&format!("dpkg --install {PACKAGE}")).map(drop)
}

/// A host on which the policy that comes with the package is enforced.
pub fn enforcing(name: &str) -> Result<Vm> {
    Vm::at(&ENFORCING, name, || {
        let mut vm = installed("enforcing")?;
        enforce(&mut vm)?;
        Ok(vm)
    })
}

/// Edits one word, and reloads.
pub fn enforce(vm: &mut Vm) -> Result<()> {
    vm.ok("sed -i 's/^mode = \"report\"/mode = \"enforce\"/' /etc/trefoil/policy.toml")?;
    vm.ok("systemctl reload trefoil").map(drop)
}

/// Takes everything out of the kernel, and waits for the end of the service.
pub fn detach(vm: &mut Vm) -> Result<()> {
    vm.ok("trefoil detach")?;
    vm.wait_until("the service has ended", |vm| {
        Ok((vm.run("systemctl is-active trefoil")?.code != 0).then_some(()))
    })
}

/// An address of the foreign host, in the form that [`TRAFFIC`] reads.
pub fn foreign(port: u16) -> String {
    SocketAddr::new(FOREIGN, port).to_string()
}

/// Sends a datagram to the foreign host, as a service of this name, and returns
/// the exit code.
pub fn send_as(vm: &mut Vm, service: &str) -> Result<i32> {
    let to = foreign(9);
    let command =
        format!("systemd-run --quiet --wait --unit={service} --collect {TRAFFIC} udp {to}");
    Ok(vm.run(&command)?.code)
}

/// Packets that have arrived at the far end of the uplink.
pub fn arrived(vm: &mut Vm) -> Result<u64> {
    let links = vm.ok("ip -n far -s -j link show dev far")?;
    let links: Value = serde_json::from_str(&links)?;
    links[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .with_context(|| format!("no count of packets in {links}"))
}

/// Starts a service that tries to send to the foreign host all the time.
pub fn insist(vm: &mut Vm) -> Result<()> {
    let to = foreign(9);
    vm.ok(&format!(
        "systemd-run --quiet --unit=insistent -p StandardOutput=truncate:/run/insistent \
         {TRAFFIC} insist {to}"
    ))?;
    wait_for_attempts(vm)
}

/// Waits until the service of [`insist`] has tried again.
pub fn wait_for_attempts(vm: &mut Vm) -> Result<()> {
    let before = attempts(vm)?.map_or(0, |record| tried(&record));
    vm.wait_until("the service tries to send", |vm| {
        Ok(attempts(vm)?.filter(|record| tried(record) > before))
    })
    .map(drop)
}

/// Returns the last report of the service of [`insist`].
fn attempts(vm: &mut Vm) -> Result<Option<Record>> {
    let line = vm.run("tail -n1 /run/insistent")?.stdout;
    (!line.is_empty()).then(|| Record::parse(&line)).transpose()
}

fn tried(attempts: &Record) -> u64 {
    let number = |name| attempts.number(name).unwrap_or_default();
    number("passed") + number("refused")
}

/// A property of the unit.
pub fn property(vm: &mut Vm, name: &str) -> Result<String> {
    let value = vm.ok(&format!("systemctl show --value --property={name} trefoil"))?;
    Ok(value.trim().to_owned())
}

/// Waits until systemd has started another agent than `before`, and it is ready.
pub fn wait_for_another_agent(vm: &mut Vm, before: &str) -> Result<()> {
    vm.wait_until("another agent is ready", |vm| {
        let shown = vm.ok("systemctl show --property=ActiveState,MainPID trefoil")?;
        let has = |line: &str| shown.lines().any(|shown| shown == line);
        let is_another = !has(&format!("MainPID={before}"));
        Ok((has("ActiveState=active") && is_another).then_some(()))
    })
}

/// The violations of a service, once there is one with this outcome.
pub fn wait_for_violation(vm: &mut Vm, service: &str, outcome: &str) -> Result<Record> {
    let fields =
        format!("TREFOIL_EVENT=violation TREFOIL_UNIT={service}.service TREFOIL_OUTCOME={outcome}");
    let found = vm.wait_until(&format!("a violation with {fields}"), |vm| {
        Ok(vm.journal(&fields)?.pop())
    });
    found.with_context(|| vm.ok("journalctl -u trefoil -n 20").unwrap_or_default())
}

/// Fails if `trefoil status` has anything to complain about.
pub fn healthy(vm: &mut Vm) -> Result<()> {
    vm.ok("trefoil status").map(drop)
}
