//! The package on a host for the first time, in report mode.

use anyhow::{Context, Result, ensure};
use trefoil_lab::places::FOREIGN;

use crate::world::{
    EVERYTHING, EVERYTHING_BEFORE, LOOK_ALIKES, LOOK_ALIKES_GO, OBJECTS, OBJECTS_BEFORE, TRAFFIC,
    arrived, detach, enforce, enforcing, healthy, installed, same_files, send_as,
    wait_for_violation,
};

/// Command that shows what the agent puts on the uplink of a kernel that has no links for it.
const FILTERS: &str = "tc filter show dev uplink egress";
/// See [`FILTERS`].
const CLSACT: &str = "tc qdisc show dev uplink clsact";

#[test]
fn an_installed_agent_is_ready_and_says_so_in_one_line() -> Result<()> {
    let mut vm = installed("install")?;
    assert_eq!(vm.ok("systemctl is-enabled trefoil")?, "enabled\n");
    let status = vm.ok("systemctl status trefoil")?;
    ensure!(status.contains("Active: active (running)"), "{status}");
    let said: Vec<&str> = status
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Status: "))
        .collect();
    ensure!(said.len() == 1 && said[0].contains("eport"), "{status}");
    healthy(&mut vm)?;
    let reports = vm.journal("TREFOIL_EVENT=coverage TREFOIL_STATE=covered")?;
    ensure!(!reports.is_empty(), "no report that the host is covered");
    Ok(())
}

#[test]
fn traffic_of_a_service_is_a_violation_wherever_one_looks() -> Result<()> {
    let mut vm = installed("violation")?;
    let before = arrived(&mut vm)?;
    assert_eq!(send_as(&mut vm, "exporter")?, 0);
    // Report mode changes nothing.
    assert_eq!(arrived(&mut vm)?, before + 1);
    // Nor options that are longer than programs are shown: before Linux 6.4 the kernel
    // refuses what a program has seen in part, and has not let go.
    for bytes in ["4", "4096", "4097", "65536"] {
        vm.ok(&format!("{TRAFFIC} option {bytes}"))?;
    }

    let violation = wait_for_violation(&mut vm, "exporter", "would-drop")?;
    for (name, expected) in [
        ("TREFOIL_VERDICT", "undetermined".to_owned()),
        ("TREFOIL_DST_ADDR", FOREIGN.to_string()),
        ("TREFOIL_DST_PORT", "9".to_owned()),
        ("TREFOIL_EXE", "/guest/traffic".to_owned()),
        ("TREFOIL_UID", "0".to_owned()),
        ("TREFOIL_ATTRIBUTION", "direct".to_owned()),
    ] {
        ensure!(
            violation.is(name, &expected),
            "{name} is not {expected}: {violation}"
        );
    }
    let message = violation.text("MESSAGE");
    for view in ["-u trefoil", "-u exporter", "TREFOIL_EVENT=violation"] {
        let shown = vm.ok(&format!("journalctl {view}"))?;
        ensure!(shown.contains(&message), "journalctl {view}: {shown}");
    }
    let explained = vm.ok("journalctl -x -u exporter")?;
    for words in ["Traffic that the policy does not approve", "Action:"] {
        ensure!(explained.contains(words), "{explained}");
    }
    ensure!(!explained.contains("@TREFOIL_"), "{explained}");
    Ok(())
}

/// The unit may write there, and nothing has to be made first.
#[test]
fn records_are_written_where_the_example_of_the_manual_has_them() -> Result<()> {
    const PAGE: &str = include_str!("../../../docs/man/trefoil.toml.5.in");
    let example = PAGE.split_once("@example settings\n");
    let (_, example) = example.context("the page has no example of settings")?;
    let (example, _) = example.split_once("@end").context("it does not end")?;
    let file = example
        .lines()
        .find_map(|line| line.strip_prefix("json = "));
    let file = file.context("the example has no file of records")?;

    let mut vm = installed("example")?;
    vm.write("/etc/trefoil/trefoil.toml", example)?;
    vm.ok("trefoil check && systemctl restart trefoil")?;
    healthy(&mut vm)?;
    assert_eq!(send_as(&mut vm, "exporter")?, 0);
    let told = wait_for_violation(&mut vm, "exporter", "would-drop")?;
    let id = told.text("TREFOIL_FLOW");
    vm.wait_until("the record is in the file, too", |vm| {
        let found = vm.run(&format!("grep -F {id} {file}"))?;
        Ok(found.stdout.contains("\"violation\"").then_some(()))
    })?;
    // Records have names of people in them.
    assert_eq!(vm.ok(&format!("stat -c %a {file}"))?, "600\n");
    Ok(())
}

/// A helper of the kernel takes them for connections of TCP, and reads behind the end of what
/// they are. The kernel itself has such sockets, to send resets by.
#[test]
fn sockets_that_look_like_those_of_tcp_do_no_harm() -> Result<()> {
    let mut vm = installed("look-alikes")?;
    let before = arrived(&mut vm)?;
    vm.ok(&format!("echo >{LOOK_ALIKES_GO}"))?;
    vm.wait_until("each of them has sent", |vm| {
        Ok((arrived(vm)? >= before + LOOK_ALIKES).then_some(()))
    })?;
    Ok(())
}

/// The service may do what that takes: look into the process, and into its socket.
#[test]
fn ways_out_that_are_older_than_the_service_are_told_and_judged() -> Result<()> {
    const GO: &str = "/run/older.go";
    let mut vm = installed("older")?;
    detach(&mut vm)?;
    for (service, way) in [("queue", "--bypass-qdisc"), ("xdp", "--xdp")] {
        vm.ok(&format!(
            "mkfifo {GO}.{service} && systemd-run --quiet --unit=older-{service} --collect sh -c \
             '{TRAFFIC} packet uplink 02:00:00:00:00:02 203.0.113.61:9 --from 192.0.2.1:4000 \
             {way} --wait <>{GO}.{service}'"
        ))?;
        vm.wait_until("the socket is open", |vm| {
            let said = vm.ok(&format!("journalctl -u older-{service}"))?;
            Ok(said.contains("packets").then_some(()))
        })?;
    }
    vm.ok(
        "modprobe vfio && systemd-run --quiet --unit=older-device --collect sh -c \
         'exec 3<>/dev/vfio/vfio && echo is open && exec sleep infinity'",
    )?;
    vm.wait_until("the device is open", |vm| {
        let said = vm.ok("journalctl -u older-device")?;
        Ok(said.contains("is open").then_some(()))
    })?;
    vm.ok("systemctl start trefoil")?;
    let told = vm.wait_until("the device is told of", |vm| {
        let of_unit = "TREFOIL_EVENT=coverage TREFOIL_UNIT=older-device.service";
        Ok(vm.journal(of_unit)?.first().cloned())
    })?;
    ensure!(
        told.text("TREFOIL_SUBJECT")
            .contains("driven past the kernel")
            && told.is("TREFOIL_STATE", "uncovered")
            && told.is("TREFOIL_COMM", "sleep"),
        "{told}"
    );
    enforce(&mut vm)?;
    for (service, subject, state, outcome, packets) in [
        ("queue", "skipped the queue", "covered", "dropped", 0),
        ("xdp", "AF_XDP", "partly", "would-drop", 1),
    ] {
        let unit = format!("older-{service}.service");
        let told = vm.wait_until("the socket is told of", |vm| {
            let records = vm.journal(&format!("TREFOIL_EVENT=coverage TREFOIL_UNIT={unit}"))?;
            Ok(records.first().cloned())
        })?;
        ensure!(
            told.text("TREFOIL_SUBJECT").contains(subject)
                && told.is("TREFOIL_STATE", state)
                && told.is("TREFOIL_EXE", TRAFFIC),
            "{told}"
        );
        let before = arrived(&mut vm)?;
        vm.ok(&format!("echo >{GO}.{service}"))?;
        let violation = vm.wait_until("its frame is judged", |vm| {
            let records = vm.journal(&format!("TREFOIL_EVENT=violation TREFOIL_UNIT={unit}"))?;
            Ok(records.first().cloned())
        })?;
        ensure!(
            violation.is("TREFOIL_OUTCOME", outcome)
                && violation.is("TREFOIL_ATTRIBUTION", "direct")
                && violation.is("TREFOIL_DST_ADDR", "203.0.113.61"),
            "{violation}"
        );
        assert_eq!(arrived(&mut vm)? - before, packets, "{violation}");
    }
    Ok(())
}

#[test]
fn the_unit_has_few_privileges() -> Result<()> {
    let mut vm = installed("security")?;
    let rating = vm.ok("systemd-analyze security --no-pager trefoil")?;
    let exposure: f64 = rating
        .lines()
        .find_map(|line| line.split_once("exposure level for trefoil.service: "))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| rating.clone())?;
    ensure!(exposure <= 2.2, "{exposure}: {rating}");
    Ok(())
}

#[test]
fn completions_complete() -> Result<()> {
    let mut vm = installed("completions")?;
    let complete = r#". /usr/share/bash-completion/bash_completion
        _completion_loader trefoil
        COMP_WORDS=(trefoil det) COMP_CWORD=1 COMP_LINE='trefoil det' COMP_POINT=11
        $(complete -p trefoil | sed 's/.*-F \([^ ]*\).*/\1/') trefoil det trefoil
        echo "${COMPREPLY[@]}""#;
    vm.write("/var/lib/complete", complete)?;
    assert_eq!(vm.ok("bash /var/lib/complete")?.trim(), "detach");
    Ok(())
}

#[test]
fn purged_it_leaves_nothing() -> Result<()> {
    let mut vm = enforcing("purge")?;
    healthy(&mut vm)?;
    let objects = vm.read(OBJECTS_BEFORE)?;
    assert_ne!(vm.ok(OBJECTS)?, objects);
    assert_ne!(vm.ok(FILTERS)?, "");

    vm.ok("dpkg --remove trefoil")?;
    vm.wait_until("the kernel has freed everything", |vm| {
        Ok((vm.ok(OBJECTS)? == objects).then_some(()))
    })
    .with_context(|| format!("{objects}\nbut now\n{}", vm.ok(OBJECTS).unwrap_or_default()))?;
    assert_eq!(send_as(&mut vm, "after")?, 0);
    let left = "grep -lx trefoil /proc/[0-9]*/comm; ls -d /sys/fs/bpf/trefoil /run/trefoil";
    assert_eq!(vm.run(&format!("{left}; {FILTERS}; {CLSACT}"))?.stdout, "");
    let policy = vm.read("/etc/trefoil/policy.toml")?;
    ensure!(policy.contains("mode = \"enforce\""), "{policy}");

    vm.ok("dpkg --purge trefoil")?;
    let before = vm.read(EVERYTHING_BEFORE)?;
    same_files(&before, &vm.ok(EVERYTHING)?);
    assert_eq!(vm.run("ls /var/lib/dpkg/info/trefoil*")?.stdout, "");
    Ok(())
}

#[test]
fn an_uplink_has_books_that_go_on_and_is_free_at_the_end() -> Result<()> {
    let mut vm = installed("uplink")?;
    for starts in 1..=2 {
        if starts == 2 {
            vm.ok("systemctl restart trefoil")?;
        }
        for _ in 0..3 {
            assert_eq!(send_as(&mut vm, "exporter")?, 0);
        }
        let status = vm.ok("trefoil status --json")?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let books = &status["uplinks"]["uplink"];
        let bytes = |name: &str| books[name].as_u64();
        ensure!(books["attached"] == true, "{status}");
        ensure!(bytes("bytes_unaccounted") == Some(0), "{status}");
        ensure!(bytes("bytes_unsent") == Some(0), "{status}");
        // Bytes that services sent, and nobody else.
        ensure!(
            bytes("bytes_socket") == bytes("bytes_sent")
                && bytes("bytes_sent") == bytes("bytes_undetermined")
                && bytes("bytes_sent") == Some(starts * 3 * (64 + 42)),
            "{status}"
        );
        let filters = vm.ok(FILTERS)?;
        ensure!(
            filters.matches("handle 0x").count() == 1 && filters.contains("uplink_egress"),
            "{filters}"
        );
    }
    vm.ok("systemctl stop trefoil && trefoil detach")?;
    assert_eq!(vm.ok(&format!("{FILTERS}; {CLSACT}"))?, "");
    Ok(())
}
