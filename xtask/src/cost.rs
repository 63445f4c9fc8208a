//! The costs that the documentation tells: a table in the README and charts, made from
//! docs/cost.json alone, which `cargo xtask bench cost --write` makes.
//!
//! No figure of theirs is written by hand: `cargo xtask check` makes all of them once more and
//! compares.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace;

mod chart;

/// The figures that are told.
const KEPT: &str = "docs/cost.json";
const README: &str = "README.md";
/// Lines of the README that enclose the part that is made.
const BEGIN: &str = "<!-- begin of costs: made by `cargo xtask docs` -->\n";
const END: &str = "<!-- end of costs -->\n";
/// Before anything was measured.
const NOTHING_KEPT: &str =
    "No figures are kept yet: `cargo xtask bench cost --write` makes them.\n";

/// Columns of the table: workload, and its name there. Those of connections and of what must
/// not change tell the part of what is possible without; the others, nanoseconds on top.
const COLUMNS: [(&str, &str, Shown); 8] = [
    ("udp-connected", "UDP, connected", Shown::Added),
    ("udp-64", "64 destinations", Shown::Added),
    ("udp-16384", "16,384", Shown::Added),
    ("forwarded", "forwarded", Shown::Added),
    ("tcp-short", "short TCP", Shown::Ratio),
    ("tcp-bulk", "bulk TCP", Shown::Ratio),
    ("unwatched-udp", "unwatched: UDP", Shown::Added),
    ("unwatched-tcp", "short TCP", Shown::Ratio),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Added,
    Ratio,
}

/// Keeps the results of a run, if it proves anything, and makes what is made of them.
pub fn keep(results: &Path) -> Result<()> {
    let text =
        fs::read_to_string(results).with_context(|| format!("read {}", results.display()))?;
    let run: Value = serde_json::from_str(&text).context("understand the results")?;
    if run["control"]["proves"] != true || run["quick"] == true || run["partial"] == true {
        bail!("not kept: a run has to be whole, with quiet controls");
    }
    fs::write(workspace::root().join(KEPT), text).with_context(|| format!("write {KEPT}"))?;
    write()
}

/// Makes the README's table and the charts anew.
pub fn write() -> Result<()> {
    for (path, text) in made()? {
        let file = workspace::root().join(&path);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make a directory for {path}"))?;
        }
        fs::write(file, text).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Whether they are what the figures give.
pub fn check() -> Result<()> {
    for (path, text) in made()? {
        let found = fs::read_to_string(workspace::root().join(&path));
        if found.ok().as_ref() != Some(&text) {
            bail!("{path} is not what {KEPT} gives; run `cargo xtask docs`");
        }
    }
    Ok(())
}

/// Files, and what has to be in them.
fn made() -> Result<Vec<(String, String)>> {
    let root = workspace::root();
    let readme = fs::read_to_string(root.join(README)).context("read the README")?;
    let kept = root.join(KEPT);
    if !kept.exists() {
        return Ok(vec![(README.to_owned(), put(&readme, NOTHING_KEPT)?)]);
    }
    let text = fs::read_to_string(&kept).with_context(|| format!("read {KEPT}"))?;
    let run: Value = serde_json::from_str(&text).with_context(|| format!("understand {KEPT}"))?;
    let (mut files, mut told) = (Vec::new(), table(&run));
    for (name, title, svg) in chart::all(&run, &origin(&run)) {
        told.push_str(&format!("\n![{title}](docs/img/{name}.svg)\n"));
        files.push((format!("docs/img/{name}.svg"), svg));
    }
    files.push((README.to_owned(), put(&readme, &told)?));
    Ok(files)
}

/// The README with another text between its markers.
fn put(readme: &str, text: &str) -> Result<String> {
    let (before, rest) = readme
        .split_once(BEGIN)
        .with_context(|| format!("{README} has no line {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{README} has no line {END}"))?;
    Ok(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

/// The machine, the commit and the day of a run, in a line.
fn origin(run: &Value) -> String {
    let machine = &run["machine"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{}, {} processors, Linux {}, commit {}, {}",
        text(&machine["cpu"]),
        machine["cpus"],
        text(&machine["kernel"]),
        text(&run["commit"]),
        text(&machine["date"]),
    )
}

fn table(run: &Value) -> String {
    let mut text = String::from("| |");
    for (_, title, shown) in COLUMNS {
        let unit = if shown == Shown::Added { ", ns" } else { "" };
        text.push_str(&format!(" {title}{unit} |"));
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(COLUMNS.len()));
    text.push('\n');
    for (name, title) in contenders(run) {
        text.push_str(&format!("| {title} |"));
        for (workload, _, shown) in COLUMNS {
            let cell = match (figure(run, workload, &name), name == "nothing", shown) {
                (None, ..) => String::new(),
                (Some(figure), true, Shown::Added) => {
                    format!("({:.0})", number(&figure["ns"]))
                }
                (Some(figure), false, Shown::Added) => {
                    format!("{:+.0}", number(&figure["added"]))
                }
                (Some(figure), _, Shown::Ratio) => format!("{:.3}", number(&figure["ratio"])),
            };
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
    }
    text.push_str(&agent(&run["agent"]));
    text.push_str(&format!(
        "\nAdded nanoseconds for each datagram of 64 bytes, and connections or bytes as parts of \
         what there are\nwithout: medians of {} rounds in which all took turns. Nothing differed \
         from itself by {:.1} % at most.\n{}.\n",
        run["rounds"],
        number(&run["control"]["worst"]) * 100.0,
        origin(run),
    ));
    text
}

/// The agent's own share, in sentences.
fn agent(agent: &Value) -> String {
    let Some(modes) = agent["modes"].as_array() else {
        return String::new();
    };
    let modes: Vec<_> = modes
        .iter()
        .map(|mode| {
            let name = mode["name"].as_str().unwrap_or_default();
            let (cpu, ratio) = (number(&mode["cpu_us"]), number(&mode["ratio"]));
            format!("`{name}` {cpu:.1} us and {ratio:.3}")
        })
        .collect();
    format!(
        "\nThe agent's time for a connection, and short connections beside it as a part of those \
         without:\n{}. It is ready after {:.1} s and has {:.0} MiB resident; a refusal\nis in its \
         record after {:.1} ms (median).\n",
        modes.join(", "),
        number(&agent["ready_ms"]) / 1e3,
        number(&agent["memory_mib"]["resident"]),
        number(&agent["refusal_ms"]["median"]),
    )
}

/// Name and title of each, in the order of the run.
fn contenders(run: &Value) -> Vec<(String, String)> {
    let first = &run["workloads"][0]["contenders"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = first.as_array().into_iter().flatten();
    all.map(|it| (text(&it["name"]), text(&it["title"])))
        .collect()
}

fn figure<'r>(run: &'r Value, workload: &str, contender: &str) -> Option<&'r Value> {
    let named = |all: &'r Value, name: &str| {
        let mut all = all.as_array().into_iter().flatten();
        all.find(|it| it["name"] == name)
    };
    named(
        &named(&run["workloads"], workload)?["contenders"],
        contender,
    )
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run() -> Value {
        json!({
            "commit": "abc",
            "rounds": 5,
            "control": { "worst": 0.012 },
            "machine": { "cpu": "A & B", "cpus": 2, "kernel": "6.18", "date": "2026-01-01" },
            "workloads": [{
                "name": "udp-connected",
                "title": "UDP",
                "contenders": [
                    { "name": "nothing", "title": "nothing", "ns": 700.0, "added": 0.0, "ratio": 1.0 },
                    { "name": "floor", "title": "the floor", "ns": 900.0, "added": 204.6, "ratio": 0.78 },
                ],
            }],
        })
    }

    #[test]
    fn the_table_has_a_row_for_each_and_says_where_it_is_from() {
        let table = table(&run());
        assert!(table.contains("| nothing | (700) |"), "{table}");
        assert!(table.contains("| the floor | +205 |"), "{table}");
        assert!(table.contains("1.2 % at most"), "{table}");
        assert!(table.contains("A & B, 2 processors, Linux 6.18, commit abc, 2026-01-01"));
    }

    #[test]
    fn what_is_between_the_markers_is_replaced() {
        let readme = format!("a\n{BEGIN}\nold\n{END}b\n");
        let new = put(&readme, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(put(&new, "new\n").unwrap(), new);
        assert!(put("a\n", "new\n").is_err());
    }

    #[test]
    fn a_chart_is_well_formed_and_names_what_it_shows() {
        let charts = chart::all(&run(), "here & now");
        let (_, _, svg) = &charts[0];
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("the floor") && svg.contains("here &amp; now"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
