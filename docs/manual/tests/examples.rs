//! Examples of the manual and the README work: policies and settings are read,
//! command lines are understood, fields are those that records have.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use trefoil::cli::Cli;
use trefoil::policy::Policy;
use trefoil::report::{Field, Kind};
use trefoil::settings::Settings;
use trefoil_manual::examples::{Example, ExampleKind, all};

#[test]
fn policies_and_settings_are_read() -> Result<()> {
    let mut n_examples = 0;
    for Example { place, kind, text } in all()? {
        match kind {
            ExampleKind::Policy => {
                // Rules alone are an example, too.
                let mode = if text.contains("mode") {
                    ""
                } else {
                    "mode = \"report\"\n"
                };
                let read = Policy::parse(&format!("{mode}{text}"), &place);
                // The README shows how a mistake is found.
                match read {
                    Err(problems) if text.contains("aprove") => {
                        ensure!(problems.list.len() == 1, "{problems}");
                    }
                    read => drop(read.with_context(|| place.clone())?),
                }
            }
            ExampleKind::Settings => drop(Settings::parse(&text, &place)?),
            ExampleKind::Commands | ExampleKind::Text => continue,
        }
        n_examples += 1;
    }
    ensure!(n_examples >= 5, "only {n_examples} examples were found");
    Ok(())
}

#[test]
fn commands_are_understood() -> Result<()> {
    let mut n_own = 0;
    for example in all()? {
        if example.kind != ExampleKind::Commands {
            continue;
        }
        let (place, commands) = (&example.place, example.commands());
        ensure!(
            !commands.is_empty(),
            "{place}: no line begins with a prompt"
        );
        for command in commands {
            for words in parts(&command).with_context(|| format!("{place}: {command}"))? {
                match words.first().map(String::as_str) {
                    Some("trefoil") => {
                        Cli::try_parse_from(&words)
                            .with_context(|| format!("{place}: {command}"))?;
                        n_own += 1;
                    }
                    Some("journalctl") => {
                        for word in &words[1..] {
                            check_fields(word).with_context(|| format!("{place}: {command}"))?;
                        }
                    }
                    Some(_) => {}
                    None => bail!("{place}: an empty command: {command}"),
                }
            }
        }
    }
    ensure!(n_own >= 10, "only {n_own} commands of trefoil were found");
    Ok(())
}

/// Fields of ours in a word of a journalctl command, and the kinds of records.
fn check_fields(word: &str) -> Result<()> {
    for name in word
        .split(['=', ','])
        .filter_map(|name| name.strip_prefix("TREFOIL_"))
    {
        Field::parse(&name.to_lowercase())
            .with_context(|| format!("no record has a field TREFOIL_{name}"))?;
    }
    if let Some(kind) = word.strip_prefix("TREFOIL_EVENT=") {
        Kind::parse(kind).with_context(|| format!("there are no records of kind {kind}"))?;
    }
    Ok(())
}

/// The words of each part of a command line, as a shell would take them apart that
/// knows quotes, pipes and lists; where output goes is left out.
fn parts(line: &str) -> Result<Vec<Vec<String>>> {
    let mut parts = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ' | '|' | '&' | ';', None) => {
                let part = parts
                    .last_mut()
                    .context("there is one from the beginning")?;
                part.extend(word.take());
                // Both characters of `&&` end a part, and one that is empty is none.
                if c != ' ' && !part.is_empty() {
                    parts.push(Vec::new());
                }
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    ensure!(quote.is_none(), "a quote is not closed");
    let part = parts
        .last_mut()
        .context("there is one from the beginning")?;
    part.extend(word);
    for part in &mut parts {
        if let Some(end) = part.iter().position(|word| word.starts_with('>')) {
            part.truncate(end);
        }
    }
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}
