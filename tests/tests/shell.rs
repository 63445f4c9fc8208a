//! `trefoil-lab`: a visitor's program runs on the watched host, and is told what
//! it did.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

fn visit(arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_trefoil-lab"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    Ok((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

#[test]
fn a_violation_is_shown_to_whoever_made_it() -> Result<()> {
    let (code, told) = visit(&["--run", "traffic", "udp", "203.0.113.10:9"])?;
    assert_eq!(code, 0, "{told}");
    ensure!(told.contains("203.0.113.10"), "no report: {told}");
    ensure!(told.contains("never there"), "no rule: {told}");
    Ok(())
}

#[test]
fn the_exit_code_is_that_of_the_program() -> Result<()> {
    let (code, told) = visit(&["--quiet", "--run", "sh", "-c", "exit 7"])?;
    assert_eq!((code, told.as_str()), (7, ""));
    Ok(())
}

#[test]
fn the_verbs_find_the_agent_by_the_settings_that_are_in_the_environment() -> Result<()> {
    // Where the kernel lacks what a promise needs, that is a finding.
    let script = "set -e
        trefoil check --config $SETTINGS || test $? = 1
        trefoil status --config $SETTINGS --acknowledge
        trefoil status --config $SETTINGS
        trefoil flows --config $SETTINGS
        trefoil explain --config $SETTINGS --to 203.0.113.10:443
        sed -i 's/\"report\"/\"enforce\"/' $POLICY
        kill -HUP $AGENT
        until ! traffic udp 203.0.113.10:9; do :; done";
    let (code, told) = visit(&["--run", "sh", "-c", script])?;
    assert_eq!(code, 0, "{told}");
    for fact in [
        "policy.toml: fine",
        "verything is as it should be",
        "denied",
        "never there",
        "EPERM",
        "refused",
    ] {
        ensure!(told.contains(fact), "nothing about {fact}: {told}");
    }
    Ok(())
}
