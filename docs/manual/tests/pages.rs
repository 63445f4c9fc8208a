//! The pages are what their templates make, and leave nothing out.

use std::fs;

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use trefoil::cli::Cli;
use trefoil::policy::Policy;
use trefoil_bounded as bounded;
use trefoil_manual::{PAGES, command, directory, render, settings, template_of};

#[test]
fn pages_are_up_to_date() -> Result<()> {
    for page in PAGES {
        let path = directory().join(page);
        let kept = fs::read_to_string(&path).with_context(|| format!("read {page}"))?;
        ensure!(
            kept == render(page)?,
            "docs/man/{page} is not what its template makes: run `cargo xtask docs`"
        );
    }
    Ok(())
}

#[test]
fn there_is_no_page_without_a_template_and_no_template_without_a_page() -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        found.push(name.trim_end_matches(".in").to_owned());
    }
    found.sort();
    let mut expected: Vec<&str> = PAGES.iter().flat_map(|page| [*page, *page]).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    Ok(())
}

/// The lines of a template between one that is `from` and the next verb or section.
fn prose_behind<'t>(template: &'t str, from: &str) -> Option<Vec<&'t str>> {
    let mut lines = template.lines();
    lines.find(|line| *line == from)?;
    Some(
        lines
            .take_while(|line| !line.starts_with("@verb") && !line.starts_with(".Sh"))
            .filter(|line| !line.starts_with('.'))
            .collect(),
    )
}

#[test]
fn every_verb_has_prose_and_every_flag_has_help() -> Result<()> {
    let template = template_of("trefoil.8")?;
    let mut cli = Cli::command();
    cli.build();
    for verb in command::verbs(&cli) {
        let name = verb.get_name();
        let prose = prose_behind(&template, &format!("@verb {name}"))
            .with_context(|| format!("trefoil.8 does not tell of {name}"))?;
        ensure!(!prose.is_empty(), "trefoil.8 says nothing about {name}");
        ensure!(verb.get_about().is_some(), "{name} has no help");
        for argument in command::arguments(verb) {
            ensure!(
                argument.get_help().is_some(),
                "{name}: {} has no help",
                argument.get_id()
            );
            for value in argument.get_possible_values() {
                ensure!(
                    value.get_help().is_some(),
                    "{name}: {} {} has no help",
                    argument.get_id(),
                    value.get_name()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_exit_status_is_told() -> Result<()> {
    let page = render("trefoil.8")?;
    let help = Cli::command()
        .get_after_help()
        .context("no help")?
        .to_string();
    let statuses = help
        .split([' ', ','])
        .filter(|word| word.parse::<u8>().is_ok());
    let mut n_statuses = 0;
    for status in statuses {
        n_statuses += 1;
        ensure!(page.contains(&format!(".It {status}\n")), "{status}");
    }
    ensure!(n_statuses >= 5, "{help}");
    Ok(())
}

#[test]
fn every_setting_is_in_the_shipped_file_and_no_other() -> Result<()> {
    let (mut shown, mut known) = (settings::shown()?, settings::known()?);
    shown.sort();
    known.sort();
    assert_eq!(shown, known);
    Ok(())
}

/// The keys that a table of a policy may have, as the reader of policies says when
/// it finds another.
fn keys_of(policy: &str) -> Result<Vec<String>> {
    let problems = Policy::parse(policy, "").err().context("no problem")?;
    let help = problems
        .list
        .iter()
        .filter_map(|problem| problem.help.as_deref())
        .find_map(|help| help.strip_prefix("known keys here: "))
        .with_context(|| format!("{problems}"))?;
    Ok(help.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_key_of_a_policy_is_told() -> Result<()> {
    let page = render("trefoil-policy.5")?;
    let none_such = "there_is_no_key_that_is_called_so";
    let rule = "mode = \"report\"\n[[rules]]\nname = \"x\"\nverdict = \"deny\"\n";
    for (policy, must_be) in [
        (format!("mode = \"report\"\n{none_such} = 1\n"), "mode"),
        (
            format!("mode = \"report\"\n[[gateways]]\nname = \"x\"\n{none_such} = 1\n"),
            "endpoints",
        ),
        (format!("{rule}{none_such} = 1\n"), "verdict"),
        (format!("{rule}from = {{ {none_such} = 1 }}\n"), "unit"),
        (format!("{rule}to = {{ {none_such} = 1 }}\n"), "networks"),
        (
            format!("{rule}from = {{ session = {{ {none_such} = 1 }} }}\n"),
            "gateway",
        ),
    ] {
        let keys = keys_of(&policy)?;
        ensure!(keys.iter().any(|key| key == must_be), "{keys:?}");
        for key in keys {
            let told = [
                format!(".It Ic {key}\n"),
                format!(".Ic {key}\n"),
                format!(".Ic {key} :\n"),
            ];
            ensure!(
                told.iter().any(|line| page.contains(line)),
                "trefoil-policy.5 does not tell of {key}"
            );
        }
    }
    Ok(())
}

/// A size in the unit that pages use.
fn size(bytes: u64) -> String {
    match bytes >= 1 << 20 {
        true => format!("{} MiB", bytes >> 20),
        false => format!("{} KiB", bytes >> 10),
    }
}

/// A number with a comma between each three digits.
fn number(of: usize) -> String {
    let digits = of.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn every_limit_is_told() -> Result<()> {
    let line = format!("a line has at most {}", size(bounded::MAX_LINE as u64));
    let stretch = size(bounded::MAX_STRETCH as u64);
    let key = size(bounded::MAX_KEY);
    let record = format!(
        "record has at most {}",
        size(trefoil_evidence::entry::MOST_BYTES as u64)
    );
    for (page, limit) in [
        (
            "trefoil-policy.5",
            format!("A policy has at most {}", size(bounded::MAX_POLICY)),
        ),
        (
            "trefoil.toml.5",
            format!("has at most {}.", size(bounded::MAX_SETTINGS)),
        ),
        (
            "trefoil.toml.5",
            format!("country data has at most {}", size(bounded::MAX_GEO)),
        ),
        (
            "trefoil.toml.5",
            format!("at most {} ranges", number(bounded::MAX_RANGES)),
        ),
        ("trefoil.8", line),
        ("trefoil.8", format!("{stretch} without an end of line")),
        ("trefoil.8", format!("a key at most {key}")),
        ("trefoil.8", record.clone()),
        (
            "trefoil.8",
            format!("At most {} flows", number(trefoil::observed::MAX_FLOWS)),
        ),
        (
            "trefoil.8",
            format!("up to {} flows", number(trefoil::gateway_log::MAX_FLOWS)),
        ),
        ("trefoil-verify.1", record),
        (
            "trefoil-verify.1",
            format!("a key or a checkpoint at most {key}"),
        ),
        (
            "trefoil-verify.1",
            format!("{stretch} without an end of line"),
        ),
    ] {
        let text = render(page)?.replace('\n', " ");
        ensure!(text.contains(&limit), "{page} does not say: {limit}");
    }
    Ok(())
}
