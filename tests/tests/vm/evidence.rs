//! An auditor, with the verifier's package alone, about a host on which much has happened.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use trefoil_lab::vm::{VERIFIER_PACKAGE, Vm};

use crate::world::{TRAFFIC, UPLINK_SCRIPT, detach, foreign, installed};

const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "far"
to      = { networks = ["203.0.113.0/24"] }
verdict = "approve"
"#;

/// Bytes of IP that have arrived at the far end since its interface was made.
fn arrived(vm: &mut Vm) -> Result<u64> {
    const ETHERNET: u64 = 14;
    let links = vm.ok("ip -n far -s -j link show dev far")?;
    let links: Value = serde_json::from_str(&links)?;
    let received = &links[0]["stats64"]["rx"];
    let number = |name| received[name].as_u64().context("no such count");
    Ok(number("bytes")? - ETHERNET * number("packets")?)
}

/// Sends some datagrams, and returns their bytes.
fn send(vm: &mut Vm) -> Result<u64> {
    let before = arrived(vm)?;
    vm.ok(&format!("{TRAFFIC} udp {} --count 7", foreign(9)))?;
    Ok(arrived(vm)? - before)
}

fn now(vm: &mut Vm) -> Result<String> {
    let time = vm.ok("sleep 1 && date --utc +%Y-%m-%dT%H:%M:%SZ && sleep 1")?;
    Ok(time.trim().to_owned())
}

/// Statement of the verifier, without root, a network or any part of the agent.
fn statement(vm: &mut Vm, since: &str, until: &str) -> Result<(i32, Value)> {
    vm.ok(
        "journalctl --unit trefoil --since @$(cat /var/lib/begun) --output export >/run/records",
    )?;
    vm.ok("install -m 644 /var/lib/trefoil/evidence/key.pub /run/key.pub")?;
    vm.ok("dpkg --purge trefoil")?;
    vm.ok(&format!("dpkg --install {VERIFIER_PACKAGE}"))?;
    let auditor = "unshare --net setpriv --reuid=65534 --clear-groups trefoil-verify";
    let ended = vm.run(&format!("{auditor} --key /run/key.pub /run/records"))?;
    ensure!(ended.code == 0, "{ended:?}");
    let ended = vm.run(&format!(
        "{auditor} statement --json --since {since} --until {until} --key /run/key.pub /run/records"
    ))?;
    let said = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    Ok((ended.code, said))
}

#[test]
fn a_statement_has_the_bytes_that_arrived_over_a_boot_and_names_the_gaps() -> Result<()> {
    let mut vm = installed("evidence")?;
    vm.ok(
        "sed -i 's|^#evidence = .*|evidence = \"/var/lib/trefoil/evidence\"|' \
         /etc/trefoil/trefoil.toml",
    )?;
    vm.write("/etc/trefoil/policy.toml", POLICY)?;
    // Records before the first one with evidence prove nothing.
    vm.ok(
        "systemctl stop trefoil && sleep 1 && date +%s >/var/lib/begun && systemctl start trefoil",
    )?;
    // The period begins when the host is watched by its own word, and that is proven.
    for event in ["heartbeat", "checkpoint"] {
        vm.ok(&format!(
            "for _ in $(seq 300); do journalctl --quiet --unit trefoil --since @$(cat /var/lib/begun) \
             TREFOIL_EVENT={event} | grep --quiet . && exit; sleep 0.2; done; exit 1"
        ))?;
    }
    let since = now(&mut vm)?;
    let mut sent = send(&mut vm)?;
    vm.ok("systemctl restart trefoil")?;
    sent += send(&mut vm)?;
    vm.write(
        "/etc/trefoil/policy.toml",
        &POLICY.replace("far", "over there"),
    )?;
    vm.ok("systemctl reload trefoil")?;
    sent += send(&mut vm)?;
    vm.reboot()?;
    vm.ok(&format!("sh {UPLINK_SCRIPT}"))?;
    // The host has another address now, where the far end's errors go.
    vm.ok("systemctl reload trefoil")?;
    sent += send(&mut vm)?;
    detach(&mut vm)?;
    ensure!(send(&mut vm)? > 0, "nothing left unwatched");
    vm.ok("systemctl start trefoil")?;
    sent += send(&mut vm)?;
    vm.ok("systemctl stop trefoil")?;
    let until = now(&mut vm)?;

    let (code, said) = statement(&mut vm, &since, &until)?;
    ensure!(
        said["bytes"] == json!({"approved": sent}),
        "{sent} in {said:#}"
    );
    ensure!(said["findings"] == 0, "{said:#}");
    let host = &said["hosts"][0];
    let gaps = host["gaps"].as_array().context("no gaps")?;
    let mut causes: Vec<&str> = gaps
        .iter()
        .filter_map(|gap| gap["cause"].as_str())
        .collect();
    causes.sort_unstable();
    causes.dedup();
    ensure!(
        causes == ["boot", "detached"] && code == 1,
        "{code}: {said:#}"
    );
    ensure!(
        host["policies"]
            .as_array()
            .is_some_and(|all| all.len() == 2),
        "{said:#}"
    );
    Ok(())
}
