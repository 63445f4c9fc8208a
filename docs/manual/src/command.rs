//! The command line of a program, as its sources define it.

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command};

use crate::roff;

/// The lines of the synopsis: one form for each verb, and before them one without, if that is a form.
pub fn synopsis(command: &Command) -> String {
    let mut out = String::new();
    if arguments(command).next().is_some() {
        out += &form(command, None);
    }
    for verb in verbs(command) {
        out += &form(verb, Some(verb.get_name()));
    }
    out
}

/// One verb: how it is typed, what it does, and each of its options.
pub fn verb(command: &Command, name: &str) -> Result<String> {
    let verb = verbs(command)
        .find(|verb| verb.get_name() == name)
        .with_context(|| format!("there is no verb {name}"))?;
    let about = verb
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut out = format!(".Ss {} {name}\n", command.get_name());
    out += &roff::prose(&format!("{about}."));
    Ok(out + &options(verb))
}

/// Each option of a verb, or of a program without one.
pub fn options(verb: &Command) -> String {
    let mut arguments = arguments(verb).peekable();
    if arguments.peek().is_none() {
        return String::new();
    }
    let mut out = String::from(".Bl -tag -width Ds\n");
    for argument in arguments {
        out += &format!(".It {}\n", typed(argument));
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        out += &roff::prose(&format!("{}.", help.trim_end_matches('.')));
        let values = argument.get_possible_values();
        if !values.is_empty() {
            out += ".Bl -tag -width rollup -compact\n";
            for value in values {
                let help = value
                    .get_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                out += &format!(
                    ".It Li {}\n{}",
                    roff::argument(value.get_name()),
                    roff::prose(&help)
                );
            }
            out += ".El\n";
        }
    }
    out + ".El\n"
}

/// The verbs, without `help`, which is clap's own.
pub fn verbs(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help" && !verb.is_hide_set())
}

/// Returns the arguments of a verb, without `--help`.
pub fn arguments(verb: &Command) -> impl Iterator<Item = &Arg> {
    verb.get_arguments().filter(|argument| {
        !["help", "version"].contains(&argument.get_id().as_str()) && !argument.is_hide_set()
    })
}

fn form(command: &Command, verb: Option<&str>) -> String {
    let mut out = String::from(".Nm\n");
    if let Some(verb) = verb {
        out += &format!(".Cm {}\n", roff::argument(verb));
    }
    for argument in arguments(command) {
        let more = match argument.get_action() {
            ArgAction::Append => " ...",
            _ => "",
        };
        let macros = if argument.is_required_set() {
            "."
        } else {
            ".Op "
        };
        out += &format!("{macros}{}{more}\n", typed(argument));
    }
    out
}

/// As macros: `Fl Fl json Ar FILE`.
fn typed(argument: &Arg) -> String {
    let mut parts = Vec::new();
    if let Some(long) = argument.get_long() {
        parts.push(format!(
            "Fl Fl {}",
            roff::argument(long).replace("\\-", "-")
        ));
    }
    if argument.get_action().takes_values() {
        let names = argument.get_value_names().unwrap_or_default();
        parts.push(match names {
            [] => format!("Ar {}", argument.get_id().as_str().to_uppercase()),
            names => names
                .iter()
                .map(|name| format!("Ar {name}"))
                .collect::<Vec<_>>()
                .join(" "),
        });
    }
    parts.join(" ")
}
