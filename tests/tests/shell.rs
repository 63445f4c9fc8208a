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
