//! Templates of pages: mdoc(7), with lines that begin with `@` where something
//! is put in.
//!
//! ```text
//! @synopsis, @verb NAME, @options the command line
//! @settings                      every setting
//! @kinds, @fields                records
//! @losses, @hooks                what they say is missing
//! @groups, @protocols, @local    what a policy can name
//! @example KIND ... @end         an example, see [`examples`](crate::examples)
//! ```

use anyhow::{Context, Result, bail};
use clap::Command;

use crate::examples::ExampleKind;
use crate::{command, places, records, roff, settings};

/// The page that a template makes. `cli` is the program that it is about.
pub fn render(template: &str, mut cli: Command) -> Result<String> {
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
            "options" => command::options(&cli),
            "settings" => settings::text()?,
            "kinds" => records::kinds()?,
            "fields" => records::fields(),
            "hooks" => records::hooks(),
            "losses" => records::losses(),
            "groups" => places::groups(),
            "set-aside" => places::set_aside(),
            "protocols" => places::protocols(),
            "local" => places::local(),
            "example" => {
                let example: Vec<&str> = lines
                    .by_ref()
                    .map(|(_, line)| line)
                    .take_while(|line| *line != "@end")
                    .collect();
                ExampleKind::parse(argument).with_context(|| format!("line {}", index + 1))?;
                roff::display(&example.join("\n"))
            }
            _ => bail!("line {}: there is no @{name}", index + 1),
        };
    }
    Ok(out)
}
