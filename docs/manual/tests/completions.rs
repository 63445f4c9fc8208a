//! The completions complete, in the shells themselves.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| {
        format!(
            "start {:?}; `cargo xtask setup` installs it",
            command.get_program()
        )
    })?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && errors.is_empty(),
        "{command:?}: {errors}"
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn completions() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    trefoil_manual::completions(directory.path())?;
    Ok(directory)
}

/// Returns the words that bash would offer at the end of a line, as readline asks for them.
fn bash(script: &Path, line: &str) -> Result<Vec<String>> {
    let words: Vec<&str> = line.split(' ').collect();
    let at = words.len() - 1;
    let ask = format!(
        "source {script:?}; COMP_WORDS=({line:?}); COMP_WORDS=(${{COMP_WORDS[0]}}); \
         COMP_CWORD={at}; $(complete -p trefoil | sed 's/.*-F \\([^ ]*\\) .*/\\1/') \
         {} {:?} {:?}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words[0],
        words[at],
        words[at.saturating_sub(1)],
    );
    Ok(output(Command::new("bash").args(["--norc", "-c", &ask]))?
        .lines()
        .map(|line| line.trim().to_owned())
        .collect())
}

#[test]
fn bash_completes() -> Result<()> {
    let directory = completions()?;
    let script = directory.path().join("trefoil.bash");
    assert_eq!(bash(&script, "trefoil de")?, ["detach"]);
    assert_eq!(bash(&script, "trefoil run --js")?, ["--json"]);
    assert_eq!(bash(&script, "trefoil run --flows r")?, ["rollup"]);
    Ok(())
}

#[test]
fn fish_completes() -> Result<()> {
    let directory = completions()?;
    let script = directory.path().join("trefoil.fish");
    for (line, expected) in [
        ("trefoil de", "detach"),
        ("trefoil run --js", "--json"),
        ("trefoil run --flows r", "rollup"),
    ] {
        let ask = format!("source {script:?}; complete -C {line:?}");
        let offered = output(Command::new("fish").args(["--no-config", "-c", &ask]))?;
        let words: Vec<_> = offered
            .lines()
            .filter_map(|line| line.split('\t').next())
            .collect();
        assert_eq!(words, [expected], "{line}");
    }
    Ok(())
}

/// zsh completes only where somebody types, so it is given a terminal of its own.
#[test]
fn zsh_completes() -> Result<()> {
    let directory = completions()?;
    let functions = directory.path();
    // zpty is zsh's own pseudo-terminal. Each key is sent, and what the inner shell
    // has on its line then is printed by a widget.
    let ask = format!(
        r#"zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner 'PROMPT= RPROMPT=; fpath=({functions:?} $fpath); autoload -Uz compinit; compinit -u -D'
zpty -w inner 'line() {{ print -r -- "[$BUFFER]"; zle .kill-whole-line }}; zle -N line; bindkey "^X" line; print ready-$((1+1))'
zpty -r -m inner got '*ready-2*'
for text in "$@"; do
    zpty -w -n inner "$text"$'\t\C-x'
    zpty -r -m inner got '*\]*'
    print -r -- "$got"
done
zpty -d inner"#
    );
    let shown = output(
        Command::new("zsh")
            .args([
                "-f",
                "-c",
                &ask,
                "zsh",
                "trefoil de",
                "trefoil run --js",
                "trefoil run --flows r",
            ])
            .env("TERM", "dumb"),
    )?;
    for expected in [
        "[trefoil detach ]",
        "[trefoil run --json",
        "[trefoil run --flows rollup ]",
    ] {
        ensure!(shown.contains(expected), "no {expected} in {shown:?}");
    }
    Ok(())
}
