//! Templates of pages: mdoc(7), with lines that begin with `@` where something
//! is put in.
//!
//! ```text
//! @synopsis, @verb NAME          the command line
//! @settings                      every setting
//! @kinds, @fields, @losses       records
//! @groups, @protocols, @local    what a policy can name
//! @example KIND ... @end         an example, see [`ExampleKind`]
//! ```

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use trefoil::cli::Cli;

use crate::{command, places, records, roff, settings};

/// What an example is; each kind is tested in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExampleKind {
    /// A policy, or rules of one.
    Policy,
    /// A settings file, or lines of one.
    Settings,
    /// Commands, after `# ` or `$ `, and what they print.
    Commands,
    /// Anything else.
    Text,
}

/// An example in a page.
#[derive(Clone, Debug)]
pub struct Example {
    /// What it is.
    pub kind: ExampleKind,
    /// Its text.
    pub text: String,
    /// The line of the template before it, from 1.
    pub line: usize,
}

/// The page that a template makes.
pub fn render(template: &str) -> Result<String> {
    let mut cli = Cli::command();
    cli.build();
    let mut out = String::new();
    let mut lines = template.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(directive) = line.strip_prefix('@') else {
            out += line;
            out.push('\n');
            continue;
        };
        let (name, argument) = directive.split_once(' ').unwrap_or((directive, ""));
        out += &match name {
            "synopsis" => command::synopsis(&cli),
            "verb" => command::verb(&cli, argument)?,
            "settings" => settings::text()?,
            "kinds" => records::kinds()?,
            "fields" => records::fields(),
            "losses" => records::losses(),
            "groups" => places::groups(),
            "protocols" => places::protocols(),
            "local" => places::local(),
            "example" => {
                let example: Vec<&str> = lines
                    .by_ref()
                    .map(|(_, line)| line)
                    .take_while(|line| *line != "@end")
                    .collect();
                kind(argument).with_context(|| format!("line {}", index + 1))?;
                roff::display(&example.join("\n"))
            }
            _ => bail!("line {}: there is no @{name}", index + 1),
        };
    }
    Ok(out)
}

/// The examples of a template.
pub fn examples(template: &str) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    let mut lines = template.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(name) = line.strip_prefix("@example ") {
            let body: Vec<&str> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "@end")
                .collect();
            examples.push(Example {
                kind: kind(name)?,
                text: body.join("\n") + "\n",
                line: index + 1,
            });
        }
    }
    Ok(examples)
}

fn kind(name: &str) -> Result<ExampleKind> {
    Ok(match name {
        "policy" => ExampleKind::Policy,
        "settings" => ExampleKind::Settings,
        "commands" => ExampleKind::Commands,
        "text" => ExampleKind::Text,
        _ => bail!("there is no kind of example `{name}`"),
    })
}
