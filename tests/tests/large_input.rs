//! Files of any size end quickly: they are taken within the stated memory, or refused with what to
//! do.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Lab;
use trefoil_lab::program::Outcome;

/// Memory that reading a file may take.
const MEMORY: &str = "--data=536870912";

/// Runs a verb within that memory.
fn bounded(lab: &Lab, words: &[&str]) -> Result<Outcome> {
    let program = lab.program("/usr/bin/prlimit")?;
    let trefoil = trefoil_lab::agent::trefoil()?;
    program
        .args([MEMORY.as_ref(), trefoil.as_os_str()])
        .args(words)
        .run()
}

fn explained(lab: &Lab, policy: &str) -> Result<Outcome> {
    let file = lab.file("large.toml");
    fs::write(&file, policy)?;
    let file = path(&file)?;
    bounded(
        lab,
        &["explain", "--policy", file, "--to", "203.0.113.7:443"],
    )
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

#[test]
fn a_hundred_thousand_networks_in_a_rule_are_taken() -> Result<()> {
    let lab = Lab::new()?;
    let mut policy =
        "mode = \"report\"\n[[rules]]\nname = \"all of them\"\nverdict = \"approve\"\n\
                      to = { networks = [\"203.0.113.7/32\""
            .to_owned();
    for number in 0..100_000_u32 {
        // Far apart: they cannot be put together.
        let [a, b, c, _] = (number << 8).to_be_bytes();
        write!(policy, ",\"1{a}.{b}.{c}.7/32\"")?;
    }
    policy.push_str("] }\n");
    let said = explained(&lab, &policy)?;
    ensure!(
        said.code == 0 && said.stdout.contains("all of them"),
        "{said:?}"
    );
    lab.close()
}

#[test]
fn patterns_that_need_too_much_are_refused_with_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let mut policy = "mode = \"report\"\n[[rules]]\nname = \"all of them\"\nverdict = \"deny\"\n\
                      from = { exe = ["
        .to_owned();
    for number in 0..50 {
        let stars: Vec<String> = (0..20)
            .map(|part| format!("{}*", number * part % 7))
            .collect();
        write!(policy, "\"/{}\",", stars.concat())?;
    }
    policy.push_str("] }\n");
    let said = explained(&lab, &policy)?;
    ensure!(
        said.code == 78
            && said.stderr.contains("large.toml:")
            && said.stderr.contains("use fewer `*`"),
        "{said:?}"
    );
    lab.close()
}

#[test]
fn more_flows_than_are_read_at_a_time_are_refused_with_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let (records, policy) = (lab.file("flows.json"), lab.file("policy.toml"));
    fs::write(&policy, "mode = \"report\"\n")?;
    let mut lines = String::new();
    for number in 0..300_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(
            lines,
            "{{\"event\":\"flow\",\"seq\":{},\"time\":\"2026-01-01T00:00:01.000000Z\",\
             \"boot_id\":\"b\",\"host\":\"h\",\"state\":\"closed\",\"flow\":\"1-1-{number}\",\
             \"direction\":\"outbound\",\"protocol\":\"tcp\",\"dst_addr\":\"203.{a}.{b}.{c}\",\
             \"dst_port\":443,\"verdict\":\"unapproved\",\"outcome\":\"passed\",\"bytes_out\":100,\
             \"packets_out\":2,\"pid\":7,\"exe\":\"/x\",\"uid\":0,\"attribution\":\"direct\",\
             \"priority\":6,\"message\":\"m\"}}",
            number + 1
        )?;
    }
    fs::write(&records, lines)?;
    let (records, policy) = (path(&records)?, path(&policy)?);
    for verb in [
        vec!["learn", records],
        vec!["check", policy, "--against", records],
        vec!["diff", policy, policy, records],
    ] {
        let said = bounded(&lab, &verb)?;
        let line = "flows.json:100001: there are more than 100000 flows";
        ensure!(
            said.code == 1 && said.stderr.contains(line),
            "{verb:?}: {said:?}"
        );
    }
    lab.close()
}
