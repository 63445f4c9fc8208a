//! The journalctl commands of the manual and the README find what they are said to, and the sums
//! among them are those of what has left.
//!
//! Each is run as it stands, against a journald of its own to which an agent reports.
//! Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::journal::Journal;
use trefoil_lab::{Agent, Lab, Record, places, wait_for};
use trefoil_manual::examples::{Example, ExampleKind, all};

/// Denies where the lab's foreign host is, and approves nothing.
const POLICY: &str = r#"mode = "report"

[[rules]]
name    = "never there"
to      = { countries = ["CN"] }
verdict = "deny"
"#;

/// Datagrams, each of a flow of its own: the service that sends it, its destination and its text.
const SENT: [(&str, std::net::IpAddr, &str); 5] = [
    ("nginx.service", places::FOREIGN, "one"),
    ("nginx.service", places::FOREIGN, "twenty-two"),
    ("nginx.service", places::PEER, "four"),
    ("backup.service", places::PEER, "333"),
    ("backup.service", places::PEER, "55555"),
];

/// Every journalctl command of the manual, with its place.
fn commands() -> Result<Vec<(String, String)>> {
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
    Ok(commands)
}

/// An agent that reports to the lab's journald as its service would: journald takes the unit from
/// its control group.
fn start(lab: &Lab) -> Result<Agent<'_>> {
    let agent = lab.agent().policy(POLICY);
    let agent = agent.settings("heartbeat_interval = \"1s\"\n").start()?;
    let service = lab.cgroup.join("trefoil.service");
    fs::create_dir(&service).context("make the agent's control group")?;
    fs::write(service.join("cgroup.procs"), agent.pid().to_string())
        .context("move the agent into its control group")?;
    // It looks at a process's control group now and then.
    wait_for("journald knows the unit", || {
        let entries = lab.journal()?.entries(&["_SYSTEMD_UNIT=trefoil.service"])?;
        Ok((!entries.is_empty()).then_some(()))
    })?;
    Ok(agent)
}

/// Sends [`SENT`], and returns a record of the first of them when the journal has the last of all
/// these flows.
fn send(lab: &Lab, agent: &mut Agent<'_>) -> Result<Record> {
    for (unit, to, text) in SENT {
        let script = format!("printf {text} > /dev/udp/{to}/9");
        let sender = lab.program_in(unit, "/bin/bash")?;
        sender.args(["-c", script.as_str()]).run()?.success()?;
    }
    let over = agent.wait_for("the end of the flows", |records| {
        let over = records.iter().filter(|record| record.is("state", "closed"));
        let over: Vec<Record> = over.cloned().collect();
        (over.len() == SENT.len()).then_some(over)
    })?;
    let last = over.last().context("no flow")?.number("seq")?;
    wait_for("the journal has the last of them", || {
        let entries = lab.journal()?.entries(&[&format!("TREFOIL_SEQ={last}")])?;
        Ok((!entries.is_empty()).then_some(()))
    })?;
    let mut denied = over.into_iter().filter(|it| it.is("verdict", "denied"));
    denied.next().context("nothing was denied")
}

/// Sums that the manual's commands print, as lines without the blanks between.
struct Sums {
    total: BTreeSet<String>,
    by_country: BTreeSet<String>,
    n_by_country: BTreeSet<String>,
    n_by_unit: BTreeSet<String>,
    n_by_both: BTreeSet<String>,
}

impl Sums {
    /// By what went over the lab's links, and by [`SENT`], each of which is a violation.
    fn of(lab: &Lab) -> Result<Self> {
        let places = [("CN", &lab.foreign), ("DE", &lab.peer)];
        let mut by_country = BTreeSet::new();
        let mut total = 0;
        for (country, place) in places {
            let bytes = lab.link_to(place)?.ip_bytes_out();
            by_country.insert(format!("{bytes} {country}"));
            total += bytes;
        }
        let country = |to| match to == places::FOREIGN {
            true => "CN",
            false => "DE",
        };
        Ok(Self {
            total: BTreeSet::from([total.to_string()]),
            by_country,
            n_by_country: counted(|_, to| country(to).to_owned()),
            n_by_unit: counted(|unit, _| unit.to_owned()),
            n_by_both: counted(|unit, to| format!("{unit} {}", country(to))),
        })
    }

    /// The lines of a command; `None` for one that prints no sums.
    fn of_command(&self, command: &str) -> Option<&BTreeSet<String>> {
        let has = |text| command.contains(text);
        Some(match () {
            () if has("map(.TREFOIL_BYTES_NEW") => &self.total,
            () if has("sent[country] +=") => &self.by_country,
            () if has("awk") && has("uniq -c") => &self.n_by_both,
            () if has("=TREFOIL_DST_COUNTRY") && has("uniq -c") => &self.n_by_country,
            () if has("=TREFOIL_UNIT") && has("uniq -c") => &self.n_by_unit,
            () => return None,
        })
    }
}

/// How often each name is among those of [`SENT`].
fn counted(name: impl Fn(&str, std::net::IpAddr) -> String) -> BTreeSet<String> {
    let names: Vec<String> = SENT.iter().map(|(unit, to, _)| name(unit, *to)).collect();
    let count = |one: &String| names.iter().filter(|name| *name == one).count();
    names
        .iter()
        .map(|one| format!("{} {one}", count(one)))
        .collect()
}

/// The command as it is run here: about this process and flow, with an end.
fn as_run(command: &str, closed: &Record) -> String {
    let command = command
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
    match command.rsplit_once(" > ") {
        Some((command, file)) if file.ends_with(".json") => command.to_owned(),
        _ => command,
    }
}

/// Output of a command, with this journal in the place of the host's.
fn output_of(journal: &Journal, command: &str) -> Result<String> {
    let script = format!(
        "set -eu\njournalctl() {{ command journalctl -q --no-pager --namespace={} \"$@\"; }}\n{command}\n",
        journal.name()
    );
    let output = Command::new("sh").args(["-c", &script]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && errors.is_empty(), "{errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn commands_that_read_the_journal_find_what_has_left() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = start(&lab)?;
    let closed = send(&lab, &mut agent)?;
    let bytes = closed.text("bytes_out");
    let facts = [
        ("TREFOIL_UNIT", "nginx.service"),
        ("TREFOIL_DST_COUNTRY", "CN"),
        ("TREFOIL_BYTES_OUT", bytes.as_str()),
        ("-u nginx", "nginx.service"),
        ("-u trefoil", "trefoil"),
    ];
    let (journal, sums) = (lab.journal()?, Sums::of(&lab)?);
    let mut n_sums = 0;
    for (place, command) in commands()? {
        let command = as_run(&command, &closed);
        let expected = sums.of_command(&command);
        n_sums += usize::from(expected.is_some());
        let is_sum = ["awk", "jq", "uniq"]
            .iter()
            .any(|word| command.contains(word));
        ensure!(
            is_sum == expected.is_some(),
            "{place}: {command}: a sum of what?"
        );
        let found = output_of(journal, &command);
        let found = found.with_context(|| format!("{place}: {command}"))?;
        let is_there = match expected {
            Some(expected) => {
                let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
                found.lines().map(words).collect::<BTreeSet<_>>() == *expected
            }
            None => {
                let mut asked = facts.iter().filter(|(asked, _)| command.contains(asked));
                !found.trim().is_empty() && asked.all(|(_, fact)| found.contains(fact))
            }
        };
        ensure!(is_there, "{place}: {command}: {expected:?} is not {found}");
    }
    ensure!(n_sums >= 5, "{n_sums}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}
