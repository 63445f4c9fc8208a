//! The journalctl commands of the manual and the README find what they are said to.
//!
//! Each is run as it stands, against a journald of its own to which an agent reports.
//! Needs root.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::{Lab, places, wait_for};
use trefoil_manual::examples::{Example, ExampleKind, all};

/// Denies where the lab's foreign host is.
const POLICY: &str = r#"mode = "report"

[[rules]]
name    = "never there"
to      = { countries = ["CN"] }
verdict = "deny"
"#;

#[test]
fn commands_that_read_the_journal_find_something() -> Result<()> {
    let commands: Vec<(String, String)> = all()?
        .iter()
        .filter(|example| example.kind == ExampleKind::Commands)
        .flat_map(|example: &Example| {
            let commands = example.commands().into_iter();
            commands.map(|command| (example.place.clone(), command))
        })
        .filter(|(_, command)| command.starts_with("journalctl"))
        .collect();
    ensure!(
        commands.len() >= 10,
        "only {} commands were found",
        commands.len()
    );

    let lab = Lab::new()?;
    let mut agent = lab
        .agent()
        .policy(POLICY)
        .settings("heartbeat_interval = \"1s\"\n")
        .start()?;
    // Where the service would be: journald takes the unit from there.
    let service = lab.cgroup.join("trefoil.service");
    fs::create_dir(&service).context("make the agent's control group")?;
    fs::write(service.join("cgroup.procs"), agent.pid().to_string())
        .context("move the agent into its control group")?;
    let destination = format!("echo > /dev/udp/{}/9", places::FOREIGN);
    lab.program_in("nginx.service", "/bin/bash")?
        .args(["-c", destination.as_str()])
        .run()?
        .success()?;
    let closed = agent.wait_for("the end of the violation", |records| {
        records
            .iter()
            .find(|record| record.is("verdict", "denied") && record.is("state", "closed"))
            .cloned()
    })?;
    let bytes = closed.text("bytes_out");
    let facts = [
        ("TREFOIL_UNIT", "nginx.service"),
        ("TREFOIL_DST_COUNTRY", "CN"),
        ("TREFOIL_BYTES_OUT", bytes.as_str()),
        ("-u nginx", "nginx.service"),
        ("-u trefoil", "trefoil"),
    ];
    let journal = lab.journal()?;
    for (place, command) in commands {
        let command = command
            // Commands about one process and one flow ask about those that there are.
            .replace(
                "TREFOIL_PID=4711",
                &format!("TREFOIL_PID={}", closed.text("pid")),
            )
            .replace(
                "TREFOIL_FLOW=2a-61c8864680b5-3f0c",
                &format!("TREFOIL_FLOW={}", closed.text("flow")),
            )
            // It would never end.
            .replace(" -f", "");
        // Output that goes into a file is looked at here.
        let command = match command.rsplit_once(" > ") {
            Some((command, file)) if file.ends_with(".json") => command.to_owned(),
            _ => command,
        };
        let script = format!(
            "set -eu\njournalctl() {{ command journalctl -q --no-pager --namespace={} \"$@\"; }}\n{command}\n",
            journal.name()
        );
        wait_for(&format!("{place}: {command}: something is found"), || {
            let output = Command::new("sh").args(["-c", &script]).output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success() && errors.is_empty(),
                "{place}: {command}: {errors}"
            );
            let found = String::from_utf8_lossy(&output.stdout);
            // A sum says of nothing what it is of.
            let is_sum = command.contains("| add");
            let is_there = facts
                .iter()
                .all(|(asked, fact)| is_sum || !command.contains(asked) || found.contains(fact));
            Ok((is_there && !found.trim().is_empty()).then_some(()))
        })?;
    }
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
