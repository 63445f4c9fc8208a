//! The settings, as packaging/trefoil.toml shows and explains them.
//!
//! Values that a setting may have are not written down a second time: the
//! reader of the settings file is asked, by giving it values that are wrong.

use anyhow::{Context, Result, bail};
use trefoil::settings::Settings;

use crate::roff;

const SHIPPED: &str = include_str!("../../../packaging/trefoil.toml");

/// Tables of the file; the first is the file itself.
const TABLES: [&str; 3] = ["", "tables", "gateway_log"];

/// Settings that are explained together.
struct Entry {
    /// `key` and the default, as the file writes it.
    keys: Vec<(String, String)>,
    comment: String,
}

/// One part of the file.
struct Section {
    title: String,
    /// The table that the keys are in; empty for the top.
    table: String,
    intro: String,
    entries: Vec<Entry>,
}

/// Every section of the file, for a manual page.
pub fn text() -> Result<String> {
    let mut out = String::new();
    for section in sections()? {
        out += &format!(".Ss {}\n", section.title);
        if !section.table.is_empty() {
            out += &roff::prose(&format!("These are in the table `[{}]`.", section.table));
        }
        out += &roff::prose(&section.intro);
        out += ".Bl -tag -width Ds\n";
        for entry in &section.entries {
            for (key, default) in &entry.keys {
                out += &format!(
                    ".It Ic {} No = Li {}\n",
                    roff::argument(key),
                    roff::argument(default)
                );
            }
            out += &roff::prose(&entry.comment);
            let mut said = Vec::new();
            for (key, _) in &entry.keys {
                let values = values(&section.table, key, &entry.comment)?;
                if !values.is_empty() && !said.contains(&values) {
                    let of = match entry.keys.len() {
                        1 => String::new(),
                        _ => format!("`{key}`: "),
                    };
                    out += ".Pp\n";
                    out += &roff::prose(&format!("{of}{values}."));
                    said.push(values);
                }
            }
        }
        out += ".El\n";
    }
    Ok(out)
}

/// Every setting that the file shows, with the table before it.
pub fn shown() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for section in sections()? {
        for (key, _) in section.entries.iter().flat_map(|entry| &entry.keys) {
            all.push(path(&section.table, key));
        }
    }
    Ok(all)
}

/// Every setting there is, as the reader of the file knows it.
pub fn known() -> Result<Vec<String>> {
    const NONE_SUCH: &str = "no_setting_is_called_so_in_this_table";
    let mut all = Vec::new();
    for table in TABLES {
        let helps = helps(table, NONE_SUCH, "1");
        let list = helps
            .iter()
            .find_map(|help| help.strip_prefix("there are: "))
            .context("the reader of settings does not say which there are")?;
        let keys = list.split(", ").filter(|key| !TABLES.contains(key));
        all.extend(keys.map(|key| path(table, key)));
    }
    Ok(all)
}

fn path(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

/// Returns the values that the reader of the file says are right, when it is
/// given wrong ones; empty where the comment says all there is to say.
fn values(table: &str, key: &str, comment: &str) -> Result<String> {
    // A date is the right type for no setting.
    let kind = helps(table, key, "1979-05-27")
        .iter()
        .find_map(|help| help.strip_prefix("it should be "))
        .with_context(|| format!("the reader takes a date as `{key}`"))?
        .to_owned();
    let probe = if kind.starts_with("a duration") {
        "\"99999d\""
    } else if kind.starts_with("a size") {
        "3"
    } else {
        "\"?\""
    };
    let more = helps(table, key, probe);
    let said = match more
        .first()
        .map(|help| help.strip_prefix("write ").unwrap_or(help))
    {
        // Words that stand for a path are in the comment, in quotes.
        Some(help) if help.starts_with("begin with") && comment.contains('"') => "",
        Some(help) if help.starts_with("begin with") => "an absolute path",
        Some(help) if help.starts_with("it should be") => &kind,
        Some(help) => help,
        None if kind.contains("in quotes") => "",
        None => &kind,
    };
    Ok(capitalised(said))
}

/// The advice on a settings file that has this one setting.
fn helps(table: &str, key: &str, value: &str) -> Vec<String> {
    let header = if table.is_empty() {
        String::new()
    } else {
        format!("[{table}]\n")
    };
    match Settings::parse(&format!("{header}{key} = {value}\n"), "") {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .list
            .into_iter()
            .filter_map(|problem| problem.help)
            .collect(),
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// Takes the file apart: comments, and the settings below each.
fn sections() -> Result<Vec<Section>> {
    let section = |title: &str| Section {
        title: title.to_owned(),
        table: String::new(),
        intro: String::new(),
        entries: Vec::new(),
    };
    let mut sections = vec![section("General")];
    let mut comment = String::new();
    let mut was_key = false;
    for line in SHIPPED.lines() {
        let current = sections
            .last_mut()
            .context("there is one from the beginning")?;
        let is_key = |text: &str| text.starts_with(|c: char| c.is_ascii_lowercase());
        let setting = line
            .strip_prefix('#')
            .filter(|rest| is_key(rest))
            .or(Some(line).filter(|line| is_key(line)));
        if let Some(setting) = setting {
            let (key, default) = setting
                .split_once(" = ")
                .with_context(|| format!("{line} sets nothing"))?;
            let key = (key.to_owned(), default.to_owned());
            match current.entries.last_mut().filter(|_| was_key) {
                Some(entry) => entry.keys.push(key),
                None if comment.is_empty() => bail!("trefoil.toml does not explain {line}"),
                None => current.entries.push(Entry {
                    keys: vec![key],
                    comment: std::mem::take(&mut comment),
                }),
            }
            was_key = true;
            continue;
        }
        was_key = false;
        if let Some(title) = line
            .strip_prefix("# --- ")
            .and_then(|rest| rest.strip_suffix(" ---"))
        {
            sections.push(section(title));
        } else if let Some(text) = line.strip_prefix("# ") {
            comment += text;
            comment.push(' ');
        } else if let Some(table) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            table.clone_into(&mut current.table);
            current.intro = std::mem::take(&mut comment);
        } else if line.is_empty() {
            // The head of the file is for those who read the file.
            comment.clear();
        } else if line != "#" {
            bail!("trefoil.toml has a line that is neither comment nor setting: {line}");
        }
    }
    Ok(sections)
}
