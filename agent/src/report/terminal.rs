//! A line for each report, for somebody who watches.

use std::{
    borrow::Cow,
    env,
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use super::{Field, Kind, Priority, Record, Sealed, Sink, sink::Lines, words};

/// Widths that lines are fitted to, whatever the terminal says.
const WIDTHS: std::ops::RangeInclusive<usize> = 80..=200;
/// Width where nothing says one.
const DEFAULT_WIDTH: usize = 100;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Style {
    colour: bool,
    width: usize,
}

/// Aligned lines on standard output, coloured if that is a terminal.
#[derive(Debug)]
pub struct Terminal {
    lines: Lines,
    style: Style,
    has_header: bool,
}

impl Terminal {
    /// Writes to standard output. Colour needs a terminal, and is off where
    /// `NO_COLOR` is set or `TERM` is `dumb`.
    ///
    /// # Errors
    ///
    /// If there is no standard output.
    pub fn stdout() -> io::Result<Self> {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && !is_set("NO_COLOR") && !is_dumb;
        let width = terminal_size::terminal_size_of(&stdout)
            .map_or(DEFAULT_WIDTH, |(width, _)| usize::from(width.0))
            .clamp(*WIDTHS.start(), *WIDTHS.end());
        let lines = Lines::new(File::from(stdout.as_fd().try_clone_to_owned()?))?;
        Ok(Self {
            lines,
            style: Style { colour, width },
            has_header: false,
        })
    }
}

impl Terminal {
    /// Shows a record that has no number, and waits for whoever reads: for verbs
    /// that do nothing else.
    ///
    /// # Errors
    ///
    /// If nobody reads.
    pub fn show(&mut self, record: &Record) -> io::Result<()> {
        let text = self.text(record);
        self.lines.write_all(&text)?;
        self.has_header = true;
        Ok(())
    }

    fn text(&self, record: &Record) -> String {
        let mut text = String::new();
        if !self.has_header {
            text += &paint(&header(self.style), Colour::Dim, self.style);
            text.push('\n');
        }
        text + &line(record, self.style)
    }
}

impl Sink for Terminal {
    fn name(&self) -> &'static str {
        "terminal"
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        let text = self.text(sealed.record());
        self.lines.write(sealed.seq(), &text)?;
        self.has_header = true;
        Ok(())
    }

    fn is_partway(&self, seq: u64) -> bool {
        self.lines.is_at(seq)
    }
}

#[derive(Clone, Copy, Debug)]
enum Colour {
    Good,
    Doubtful,
    Bad,
    Dim,
}

fn paint(text: &str, colour: Colour, style: Style) -> String {
    if !style.colour {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Good => 32,
        Colour::Doubtful => 33,
        Colour::Bad => 31,
        Colour::Dim => 2,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Cells of a line about flows. The three columns in the middle share the width that the
/// others leave.
struct Cells<'a> {
    time: &'a str,
    verdict: &'a str,
    process: String,
    /// `[4711]`, never cut.
    pid: String,
    unit: String,
    destination: String,
    country: &'a str,
    bytes: String,
    what: String,
}

const TIME: usize = 8;
const VERDICT: usize = 12;
const COUNTRY: usize = 2;
const BYTES: usize = 7;
const WHAT: usize = 10;
const FIXED: usize = TIME + VERDICT + COUNTRY + BYTES + WHAT + 7 + 2;
/// A terminal that is narrower has no room for the unit.
const WITH_UNIT: usize = 96;

fn header(style: Style) -> String {
    let cells = Cells {
        time: "UTC",
        verdict: "VERDICT",
        process: "PROCESS".to_owned(),
        pid: String::new(),
        unit: "UNIT".to_owned(),
        destination: "DESTINATION".to_owned(),
        country: "CC",
        bytes: "OUT".to_owned(),
        what: "WHAT".to_owned(),
    };
    row(&cells, "  ", None, style)
}

fn line(record: &Record, style: Style) -> String {
    let mut text = match record.kind() {
        Kind::Flow | Kind::Violation => flow_line(record, style),
        _ => news_line(record, style),
    };
    text.push('\n');
    text
}

fn flow_line(record: &Record, style: Style) -> String {
    let text = |field| record.text(field).unwrap_or_default();
    let verdict = record.text(Field::Verdict).unwrap_or("-");
    let colour = match verdict {
        "local" | "gateway" | "approved" | "exception" => Colour::Good,
        "denied" => Colour::Bad,
        _ => Colour::Doubtful,
    };
    let number = |field| record.number(field).unwrap_or_default();
    let is_rollup = text(Field::State) == "rollup";
    let what = match (record.kind(), text(Field::State)) {
        (_, "rollup") => words::count(number(Field::Flows) + number(Field::FlowsOpen), "flow"),
        (Kind::Violation, _) => text(Field::Outcome).to_owned(),
        (_, state) => state.to_owned(),
    };
    let bytes = if is_rollup {
        number(Field::BytesOut) + number(Field::BytesOpen)
    } else {
        number(Field::BytesOut)
    };
    let cells = Cells {
        time: text(Field::Time).get(11..19).unwrap_or_default(),
        verdict,
        process: process(record),
        pid: record
            .number(Field::Pid)
            .map_or(String::new(), |pid| format!("[{pid}]")),
        unit: unit(record),
        destination: destination(record),
        country: record.text(Field::DstCountry).unwrap_or("--"),
        bytes: words::bytes(bytes),
        what,
    };
    let arrow = if text(Field::Direction) == "accepted" {
        "⇄ "
    } else {
        "→ "
    };
    row(&cells, arrow, Some(colour), style)
}

fn process(record: &Record) -> String {
    let name = match record.text(Field::Exe) {
        Some(exe) => exe.rsplit('/').next().unwrap_or(exe),
        None => record.text(Field::Comm).unwrap_or("?"),
    };
    words::clean(name).into_owned()
}

/// Most units are services, which goes without saying.
fn unit(record: &Record) -> String {
    let unit = record
        .text(Field::UserUnit)
        .or(record.text(Field::Unit))
        .unwrap_or("-");
    words::clean(unit.strip_suffix(".service").unwrap_or(unit)).into_owned()
}

fn destination(record: &Record) -> String {
    let protocol = record.text(Field::Protocol).unwrap_or("?");
    let port = u16::try_from(record.number(Field::DstPort).unwrap_or_default()).unwrap_or_default();
    match record
        .text(Field::DstAddr)
        .and_then(|address| address.parse().ok())
    {
        Some(address) => words::endpoint(address, port, protocol),
        None if port != 0 => format!("{port}/{protocol}"),
        None => protocol.to_owned(),
    }
}

/// Fits the cells into the width. The destination is shown in whole; process and
/// unit are cut for it, and if need be the line is longer.
fn row(cells: &Cells<'_>, arrow: &str, verdict: Option<Colour>, style: Style) -> String {
    const LEAST: usize = 9;
    /// Of an IPv4 address with port and protocol.
    const IPV4: usize = 22;
    let room = style.width.saturating_sub(FIXED);
    let has_unit = style.width >= WITH_UNIT;
    let usual = if has_unit { room * 24 / 52 } else { IPV4 };
    let destination = cells.destination.chars().count().max(usual);
    let rest = room.saturating_sub(destination);
    let (process, unit) = if has_unit {
        let process = (rest * 16 / 28).max(LEAST);
        let unit = rest.saturating_sub(process).max(LEAST);
        (process, pad(&cells.unit, unit) + " ")
    } else {
        ((rest + 1).max(LEAST), String::new())
    };
    let pid = cells.pid.chars().count();
    let process = process.max(pid + 3);
    let name = cut(&cells.process, process - pid);
    let judged = pad(cells.verdict, VERDICT);
    let judged = match verdict {
        Some(colour) => paint(&judged, colour, style),
        None => judged,
    };
    format!(
        "{} {judged} {} {unit}{arrow}{} {} {:>BYTES$} {}",
        pad(cells.time, TIME),
        pad(&format!("{name}{}", cells.pid), process),
        pad(&cells.destination, destination),
        pad(cells.country, COUNTRY),
        cells.bytes,
        cells.what,
    )
    .trim_end()
    .to_owned()
}

fn pad(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, width))
}

/// Cuts in the middle, where names differ least.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    let n_chars = text.chars().count();
    if n_chars <= width {
        return Cow::Borrowed(text);
    }
    let tail = (width - 1) / 2;
    let head = width - 1 - tail;
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(n_chars - tail).collect();
    Cow::Owned(format!("{head}…{tail}"))
}

fn news_line(record: &Record, style: Style) -> String {
    let colour = match record.priority() {
        Priority::Critical | Priority::Error => Colour::Bad,
        Priority::Warning => Colour::Doubtful,
        Priority::Notice => Colour::Good,
        Priority::Info => Colour::Dim,
    };
    let time = record
        .text(Field::Time)
        .and_then(|time| time.get(11..19))
        .unwrap_or_default();
    let indent = TIME + 1 + VERDICT + 1;
    let message = wrap(record.message(), style.width - indent);
    let message = message.join(&format!("\n{:indent$}", ""));
    let kind = paint(&pad(record.kind().name(), VERDICT), colour, style);
    format!("{} {kind} {message}", pad(time, TIME))
}

/// Breaks text into lines at blanks, and keeps its own lines.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in words::clean(paragraph).split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style {
        colour: false,
        width: DEFAULT_WIDTH,
    };

    fn violation() -> Record {
        let mut record = Record::new(
            Kind::Violation,
            Priority::Warning,
            1_795_298_020_000_000,
            "",
        );
        record.set(Field::State, "opened");
        record.set(Field::Verdict, "unapproved");
        record.set(Field::Outcome, "would-drop");
        record.set(Field::Exe, "/usr/bin/curl");
        record.set(Field::Pid, 4711_u64);
        record.set(Field::Unit, "nginx.service");
        record.set(Field::DstAddr, "203.0.113.9");
        record.set(Field::DstPort, 443_u64);
        record.set(Field::Protocol, "tcp");
        record.set(Field::DstCountry, "CN");
        record.set(Field::BytesOut, 1_234_u64);
        record
    }

    #[test]
    fn a_line_is_aligned_with_its_header() {
        assert_eq!(
            header(PLAIN),
            "UTC      VERDICT      PROCESS          UNIT           DESTINATION              CC     \
             OUT WHAT"
        );
        assert_eq!(
            line(&violation(), PLAIN),
            "21:53:40 unapproved   curl[4711]       nginx        → 203.0.113.9:443/tcp      CN  \
             1.2 kB would-drop\n"
        );
    }

    #[test]
    fn lines_are_readable_at_every_width() {
        let mut record = violation();
        record.set(
            Field::Exe,
            "/usr/lib/postgresql/15/bin/postgres-with-a-very-long-name",
        );
        record.set(Field::Unit, "postgresql-replication@15-main.service");
        record.set(Field::Pid, 31_156_u64);
        for (address, port, least) in [
            ("203.0.113.209", 65_535_u64, *WIDTHS.start()),
            ("2001:db8:82f:4001::200e", 443, DEFAULT_WIDTH),
        ] {
            record.set(Field::DstAddr, address);
            record.set(Field::DstPort, port);
            for width in WIDTHS {
                let line = line(&record, Style { width, ..PLAIN });
                let length = line.trim_end().chars().count();
                assert!(line.contains(address) && line.contains("[31156]"), "{line}");
                assert!(length <= width.max(least), "{length} > {width}: {line}");
            }
        }
    }

    #[test]
    fn colour_is_about_the_verdict_and_does_not_move_columns() {
        let coloured = line(
            &violation(),
            Style {
                colour: true,
                ..PLAIN
            },
        );
        assert!(
            coloured.contains("\u{1b}[33munapproved  \u{1b}[0m"),
            "{coloured}"
        );
        let bare = coloured.replace("\u{1b}[33m", "").replace("\u{1b}[0m", "");
        assert_eq!(bare, line(&violation(), PLAIN));
    }

    #[test]
    fn a_process_cannot_draw_on_the_terminal() {
        let mut record = violation();
        record.set(Field::Exe, "/tmp/\u{1b}]0;x\u{7}");
        assert!(!line(&record, PLAIN).contains(['\u{1b}', '\u{7}']));
    }

    #[test]
    fn news_are_wrapped_under_their_own_column() {
        let message = "word ".repeat(40);
        let record = Record::new(Kind::Coverage, Priority::Warning, 0, message.trim_end());
        let text = line(&record, PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("00:00:00 coverage     word word"),
            "{text}"
        );
        assert!(lines[1].starts_with("                      word"), "{text}");
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() <= DEFAULT_WIDTH),
            "{text}"
        );
        assert_eq!(text.matches("word").count(), 40);
    }

    #[test]
    fn a_rollup_tells_how_many() {
        let mut record = violation();
        record.set(Field::State, "rollup");
        record.set(Field::Flows, 311_u64);
        record.set(Field::FlowsOpen, 1_u64);
        record.set(Field::BytesOpen, 1_000_000_u64);
        assert!(
            line(&record, PLAIN).ends_with(" 1.0 MB 312 flows\n"),
            "{}",
            line(&record, PLAIN)
        );
    }
}
