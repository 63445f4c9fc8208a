//! The examples in the manual and in Markdown, for the tests that try them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{PAGES, template_of};

/// Kind of an example; each kind is tested in its own way.
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

/// An example.
#[derive(Clone, Debug)]
pub struct Example {
    /// File and line before it.
    pub place: String,
    /// Kind of the example.
    pub kind: ExampleKind,
    /// Its text.
    pub text: String,
}

impl ExampleKind {
    /// As a template writes it behind `@example`.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "policy" => Self::Policy,
            "settings" => Self::Settings,
            "commands" => Self::Commands,
            "text" => Self::Text,
            _ => bail!("there is no kind of example `{name}`"),
        })
    }

    /// As Markdown writes it behind the fence. Settings are told from a policy by
    /// their text.
    fn of_fence(name: &str, text: &str) -> Result<Self> {
        Ok(match name {
            "toml" if text.contains("mode") || text.contains("[[") => Self::Policy,
            "toml" => Self::Settings,
            "console" => Self::Commands,
            "text" => Self::Text,
            _ => bail!("a fenced block of kind `{name}`"),
        })
    }
}

impl Example {
    /// The commands of an example: what follows a prompt, with the lines in which a
    /// command goes on.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            let begun = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "));
            match (begun, commands.last_mut()) {
                (Some(begun), _) if !goes_on => commands.push(begun.to_owned()),
                (_, Some(command)) if goes_on => {
                    *command = format!("{} {}", command.trim_end_matches('\\'), line.trim());
                }
                // Output of a command.
                _ => continue,
            }
            let in_quotes = |command: &String| command.matches('\'').count() % 2 == 1;
            goes_on = commands.last().is_some_and(in_quotes) || line.ends_with(['\\', '|']);
        }
        commands
    }
}

/// Every example of the pages, of the README, of the guides and of the lab's tour.
pub fn all() -> Result<Vec<Example>> {
    let mut all = Vec::new();
    for page in PAGES {
        let file = format!("docs/man/{page}.in");
        blocks(&file, &template_of(page)?, ("@example ", "@end"), &mut all)?;
    }
    for file in [
        "README.md",
        "docs/GUIDE.md",
        "docs/GATEWAYS.md",
        "docs/LAB.md",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(file);
        let text = fs::read_to_string(path).with_context(|| format!("read {file}"))?;
        blocks(file, &text, ("```", "```"), &mut all)?;
    }
    Ok(all)
}

/// Adds the blocks between a line that begins with one mark, and one that is the other.
fn blocks(file: &str, text: &str, marks: (&str, &str), all: &mut Vec<Example>) -> Result<()> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(name) = line.strip_prefix(marks.0) else {
            continue;
        };
        let body: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| *line != marks.1)
            .collect();
        let text = body.join("\n") + "\n";
        let place = format!("{file}:{}", index + 1);
        let kind = match marks.0 {
            "```" => ExampleKind::of_fence(name, &text),
            _ => ExampleKind::parse(name),
        };
        let kind = kind.with_context(|| place.clone())?;
        all.push(Example { place, kind, text });
    }
    Ok(())
}
