//! Parts that the tests of this folder share: traffic from the host under test,
//! the policies it is judged by, and how records are read.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod books;
pub mod chance;
pub mod discovery;
pub mod senders;
pub mod told;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use trefoil_lab::foretold::Foretold;
use trefoil_lab::program::{Outcome, Program};
use trefoil_lab::{Agent, Lab, Record, agent};

/// The program that sends.
pub const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");

/// Exit code of `traffic` when the kernel said EPERM.
pub const REFUSED: i32 = 13;

/// A user without privileges.
const NOBODY: u32 = 65534;

/// Bytes that `traffic` sends in a datagram unless told otherwise.
pub const PAYLOAD: u64 = 64;

/// Bytes before them.
pub const UDP_HEADER: u64 = 8;

/// Approves what goes to the peer, denies China by name, and says nothing about
/// the rest.
pub const RULES: &str = r#"
[[rules]]
name    = "the peer"
to      = { networks = ["198.51.100.0/24", "2001:db8:2::/48"] }
verdict = "approve"

[[rules]]
name    = "never there"
to      = { countries = ["CN"] }
verdict = "deny"
"#;

/// [`RULES`] in report mode.
pub fn reporting() -> String {
    format!("mode = \"report\"\n{RULES}")
}

/// [`RULES`] in enforce mode.
pub fn enforcing() -> String {
    format!("mode = \"enforce\"\n{RULES}")
}

/// A policy in report mode that approves every place of the lab, so that each
/// flow has records of kind `flow` only.
pub fn approving() -> String {
    r#"mode = "report"

[[rules]]
name    = "anywhere"
to      = { networks = ["0.0.0.0/0", "::/0"] }
verdict = "approve"
"#
    .to_owned()
}

/// True if the agent has said that this kernel does not have a hook, or not all of it.
pub fn lacks_hook(agent: &mut Agent<'_>, name: &str) -> Result<bool> {
    let subject = format!("hook {name}");
    let mut records = agent.records()?.iter();
    Ok(records.any(|record| record.is("event", "coverage") && record.is("subject", &subject)))
}

/// True if `trefoil check` ended as it does where it finds nothing but what this kernel lacks.
pub fn finds_only_the_kernel(checked: &Outcome) -> bool {
    let mut lines = checked.stdout.lines();
    let is_finding = |line: &str| line.starts_with("kernel: lacks") && line.contains("a promise");
    checked.code == i32::from(lines.any(is_finding))
}

/// Sees frames that go to a driver past traffic control.
pub const DIRECT_FRAMES: &str = "__dev_direct_xmit";

/// `traffic` on the host under test, in `lab.service`.
pub fn traffic(lab: &Lab) -> Result<Program> {
    lab.program(TRAFFIC)
}

/// `traffic` on the host under test, in another service.
pub fn traffic_in(lab: &Lab, unit: &str) -> Result<Program> {
    lab.program_in(unit, TRAFFIC)
}

/// Address and port as `traffic` wants them.
pub fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// As [`at`], through an IPv6 socket.
pub fn mapped_at(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => at(address.to_ipv6_mapped().into(), port),
        IpAddr::V6(_) => at(address, port),
    }
}

/// Parses the lines of JSON that `traffic` told.
pub fn told(outcome: &Outcome) -> Result<Vec<Record>> {
    outcome.stdout.lines().map(Record::parse).collect()
}

/// Copies of `traffic` under paths of their own.
pub fn copies(lab: &Lab, directory: &str, count: usize) -> Result<Vec<PathBuf>> {
    (0..count)
        .map(|number| lab.copy_program(TRAFFIC, &format!("{directory}/x{number}")))
        .collect()
}

/// Another root directory, with `traffic` at this path and what it needs to run.
pub fn other_root(lab: &Lab, name: &str, path: &Path) -> Result<PathBuf> {
    let below = |path: &Path| {
        let path = path.strip_prefix("/").unwrap_or(path);
        format!("{name}/{}", path.display())
    };
    lab.copy_program(TRAFFIC, &below(path))?;
    let needed = Command::new("ldd").arg(TRAFFIC).output().context("ldd")?;
    let needed = String::from_utf8(needed.stdout)?;
    for word in needed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        lab.copy_program(word, &below(Path::new(word)))?;
    }
    Ok(lab.file(name))
}

/// Bytes of a header of IP without options.
pub fn ip_header(address: IpAddr) -> u64 {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Outcomes foretold by each of these records of report mode, if `policy` were in enforce mode.
pub fn foretold(lab: &Lab, policy: &str, records: &[&Record]) -> Result<Vec<Foretold>> {
    trefoil_lab::foretold::foretold(records, "", |records| {
        let (file, policy_file) = (lab.file("records.json"), lab.file("foretelling.toml"));
        let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
        std::fs::write(&policy_file, policy)?;
        std::fs::write(&file, lines.join("\n"))?;
        let path = |path: &Path| path.to_str().map(str::to_owned).context("its path");
        let (file, policy_file) = (path(&file)?, path(&policy_file)?);
        let words = ["check", &policy_file, "--json", "--against", &file];
        // As root it would load every program, to see what the kernel lacks.
        let check = lab.program_as(NOBODY, agent::trefoil()?)?;
        Ok(check.args(words).run()?.stdout)
    })
}

/// All records of an agent; the programs are taken out of the kernel, with which all flows
/// end.
pub fn all_of(mut agent: Agent<'_>, lab: &Lab) -> Result<Vec<Record>> {
    agent::detach(lab)?;
    agent.wait_for("the agent ends", |records| {
        let last = records.last()?;
        // Not the one about uplinks that are not watched: that one comes first of all.
        (last.is("subject", "this host") && last.is("state", "uncovered")).then_some(())
    })?;
    let records = agent.records()?.to_vec();
    agent.ended()?;
    gapless(&records)?;
    Ok(records)
}

/// True for a record about one flow, whatever the verdict.
pub fn is_about_a_flow(record: &Record) -> bool {
    (record.is("event", "flow") || record.is("event", "violation"))
        && !record.text("flow").is_empty()
}

/// True for the last record about a flow.
pub fn is_final(record: &Record) -> bool {
    is_about_a_flow(record) && record.is("state", "closed")
}

/// Final records of flows to a port.
pub fn finals_to_port(records: &[Record], port: u16) -> Option<Vec<Record>> {
    let finals: Vec<Record> = records
        .iter()
        .filter(|record| is_final(record) && record.is("dst_port", port))
        .cloned()
        .collect();
    (!finals.is_empty()).then_some(finals)
}

/// As [`finals_to_port`], once there are `count` of them.
pub fn all_finals(records: &[Record], port: u16, count: usize) -> Option<Vec<Record>> {
    finals_to_port(records, port).filter(|finals| finals.len() >= count)
}

/// Finals by near port, of which each must have just one.
pub fn by_source_port(finals: &[Record]) -> Result<BTreeMap<u64, &Record>> {
    let mut found = BTreeMap::new();
    for record in finals {
        let twin = found.insert(record.number("src_port")?, record);
        ensure!(twin.is_none(), "two final records: {record} and {twin:?}");
    }
    Ok(found)
}

/// Fails unless the agent numbered its records without a gap.
pub fn gapless(records: &[Record]) -> Result<()> {
    let mut last = None;
    for record in records {
        let seq = record.number("seq")?;
        if let Some(last) = last {
            ensure!(seq == last + 1, "seq {last} is followed by {seq}: {record}");
        }
        last = Some(seq);
    }
    last.context("no records at all").map(|_| ())
}
