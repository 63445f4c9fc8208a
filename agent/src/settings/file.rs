//! The settings file: TOML in, settings or every mistake out.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::{self, Uplinks};
use super::{Settings, Tables};
use crate::flow::FlowMode;
use crate::gateway_log::{Mapping, Translation};
use crate::policy::LinkLocal;
use crate::policy::problem::{Fault, Lines, Problem, Problems, nearest};
use crate::quantity;

/// Largest size of a table in entries: what 4 GiB of kernel memory hold of the
/// smallest of them.
const MAX_ENTRIES: u32 = 1 << 24;

pub(super) fn parse(text: &str, file: &str) -> Result<Settings, Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::new(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            Fault::new(error.message()).at(lines.place(offset), "")
        })
        .collect();
    // The rest of a line that is no TOML is not worth a second problem.
    let broken: Vec<u32> = problems.iter().map(|problem| problem.place.line).collect();
    let settings = {
        let mut reader = Reader {
            lines: &lines,
            problems: Vec::new(),
        };
        let settings = settings(&mut reader, root.get_ref());
        let readable = |problem: &Problem| !broken.contains(&problem.place.line);
        problems.extend(reader.problems.into_iter().filter(readable));
        settings
    };
    if problems.is_empty() {
        Ok(settings)
    } else {
        Err(Problems::new(file, problems))
    }
}

fn settings(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Settings {
    let mut to = Settings::default();
    let mut table = reader.table(root, "");
    table.set("policy", &mut to.policy, path);
    to.policy_is_named = root.contains_key("policy");
    table.set("geo", &mut to.geo, |value| {
        list(value)?.into_iter().map(path).collect()
    });
    table.set("cgroup", &mut to.cgroup, |value| match string(value)? {
        "auto" => Ok(None),
        _ => path(value).map(Some),
    });
    table.set("uplinks", &mut to.uplinks, |value| {
        let names: Result<Vec<&str>, Fault> = match value {
            DeValue::Array(_) => list(value)?.into_iter().map(string).collect(),
            single => Ok(vec![string(single)?]),
        };
        Ok(Uplinks::parse(names?)?)
    });
    table.set("pin_dir", &mut to.pin_dir, path);
    table.set("journal", &mut to.journal, |value| match string(value)? {
        "none" => Ok(None),
        _ => path(value).map(Some),
    });
    table.set("journal_object_pid", &mut to.journal_object_pid, boolean);
    table.set("json", &mut to.json, |value| match string(value)? {
        "none" => Ok(None),
        "-" => Ok(Some("-".into())),
        _ => path(value).map(Some),
    });
    table.set("evidence", &mut to.evidence, |value| match string(value)? {
        "none" => Ok(None),
        _ => path(value).map(Some),
    });
    table.set("flows", &mut to.flows, |value| {
        let name = string(value)?;
        FlowMode::parse(name).ok_or_else(|| {
            Fault::new(format!("`{name}` is not a way to report flows"))
                .help("write `\"each\"`, `\"rollup\"` or `\"auto\"`")
        })
    });
    table.set("flows_rate", &mut to.flows_rate, |value| {
        number(value, 0..=1_000_000)
    });
    table.set("violations_rate", &mut to.violations_rate, |value| {
        number(value, 0..=1_000_000)
    });
    table.set("local_flows", &mut to.local_flows, boolean);
    table.set("link_local", &mut to.link_local, |value| {
        match string(value)? {
            "judged" => Ok(LinkLocal::Judged),
            "local" => Ok(LinkLocal::Local),
            other => Err(
                Fault::new(format!("`{other}` is not what can be made of it"))
                    .help("write `\"judged\"` or `\"local\"`"),
            ),
        }
    });
    let interval = |value: &DeValue<'_>| duration(value, "1s"..="1d");
    table.set("update_interval", &mut to.update_interval, interval);
    table.set("rollup_interval", &mut to.rollup_interval, interval);
    table.set("heartbeat_interval", &mut to.heartbeat_interval, interval);
    table.set("sweep_interval", &mut to.sweep_interval, |value| {
        duration(value, "100ms"..="1m")
    });
    table.set(
        "confirm_within",
        &mut to.confirm_within,
        |value| match value {
            DeValue::String(text) if *text == "none" => Ok(Duration::ZERO),
            _ => duration(value, "1s"..="1d"),
        },
    );
    table.set("sha256_max_bytes", &mut to.sha256_max_bytes, bytes);
    let (tables, log) = (table.sub_table("tables"), table.sub_table("gateway_log"));
    table.finish();
    if let Some(tables) = tables {
        sizes(reader, tables, &mut to.tables);
    }
    if let Some(log) = log {
        gateway_log(reader, log, &mut to.gateway_log);
    }
    to
}

fn gateway_log(reader: &mut Reader<'_>, from: &DeTable<'_>, to: &mut Mapping) {
    let mut table = reader.table(from, "gateway_log.");
    let name = |value: &DeValue<'_>| match string(value)? {
        "" => Err(Fault::new("the name is empty").help("write the name of a field of the log")),
        name => Ok(name.to_owned()),
    };
    table.set("time", &mut to.time, name);
    table.set("duration", &mut to.duration, name);
    table.set("src_addr", &mut to.src_addr, name);
    table.set("src_port", &mut to.src_port, name);
    table.set("dst_addr", &mut to.dst_addr, name);
    table.set("dst_port", &mut to.dst_port, name);
    table.set("protocol", &mut to.protocol, name);
    table.set("community_id", &mut to.community_id, name);
    table.set("src_bytes", &mut to.src_bytes, name);
    table.set("dst_bytes", &mut to.dst_bytes, name);
    table.set("translations", &mut to.translations, |value| {
        let all = list(value)?.into_iter();
        all.map(|one| Translation::parse(string(one)?)).collect()
    });
    table.set("clock_skew", &mut to.clock_skew, |value| {
        duration(value, "0s"..="1h")
    });
    table.set("delay", &mut to.delay, |value| duration(value, "0s"..="1d"));
    table.finish();
}

fn sizes(reader: &mut Reader<'_>, from: &DeTable<'_>, to: &mut Tables) {
    let mut table = reader.table(from, "tables.");
    table.set("events_bytes", &mut to.events_bytes, |value| {
        const RANGE: RangeInclusive<u64> = 4096..=1 << 30;
        let bytes = bytes(value)?;
        if bytes.is_power_of_two() && RANGE.contains(&bytes) {
            Ok(u32::try_from(bytes).expect("the range ends before"))
        } else {
            Err(
                Fault::new(format!("{bytes} bytes cannot be the size of a ring buffer"))
                    .help("write a power of two from `4 KiB` to `1 GiB`"),
            )
        }
    });
    let entries = |value: &DeValue<'_>| number(value, 1..=MAX_ENTRIES);
    table.set("flows", &mut to.flows, entries);
    table.set("uplink_flows", &mut to.uplink_flows, entries);
    table.set("remembered", &mut to.remembered, entries);
    table.set("uplinks", &mut to.uplinks, entries);
    table.set("ended", &mut to.ended, entries);
    table.set("processes", &mut to.processes, entries);
    table.set("executables", &mut to.executables, entries);
    table.set("cgroups", &mut to.cgroups, entries);
    table.set("followed", &mut to.followed, entries);
    table.set("rollups", &mut to.rollups, entries);
    table.set("pending", &mut to.pending, entries);
    table.set("spool_bytes", &mut to.spool_bytes, |value| {
        const RANGE: RangeInclusive<u64> = 4 << 20..=1 << 40;
        let bytes = bytes(value)?;
        match RANGE.contains(&bytes) {
            true => Ok(bytes),
            false => Err(
                Fault::new(format!("{bytes} bytes cannot be the size of the spool"))
                    .help("write a size from `4 MiB` to `1 TiB`"),
            ),
        }
    });
    table.finish();
}

struct Reader<'t> {
    lines: &'t Lines<'t>,
    problems: Vec<Problem>,
}

impl<'t> Reader<'t> {
    fn table<'r, 'v>(
        &'r mut self,
        table: &'v DeTable<'v>,
        path: &'static str,
    ) -> Table<'r, 't, 'v> {
        Table {
            reader: self,
            table,
            path,
            known: Vec::new(),
        }
    }
}

/// A table that is being read. The keys that are asked for are those it may have.
struct Table<'r, 't, 'v> {
    reader: &'r mut Reader<'t>,
    table: &'v DeTable<'v>,
    /// Prefix of this table's keys in messages.
    path: &'static str,
    known: Vec<&'static str>,
}

impl<'v> Table<'_, '_, 'v> {
    /// Puts the value of `key`, if there is one, where it belongs.
    fn set<T>(
        &mut self,
        key: &'static str,
        to: &mut T,
        read: impl FnOnce(&'v DeValue<'v>) -> Result<T, Fault>,
    ) {
        self.known.push(key);
        let Some(value) = self.table.get(key) else {
            return;
        };
        match read(value.get_ref()) {
            Ok(read) => *to = read,
            Err(fault) => self.problem(fault, value.span().start, key),
        }
    }

    fn sub_table(&mut self, key: &'static str) -> Option<&'v DeTable<'v>> {
        self.known.push(key);
        let value = self.table.get(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some(table);
        }
        let fault = expected(
            value.get_ref(),
            &format!("a table: write `[{key}]`, and its keys below"),
        );
        self.problem(fault, value.span().start, key);
        None
    }

    /// Every other key is a mistake: a setting that is ignored is worse than none.
    fn finish(mut self) {
        let unknown: Vec<&Spanned<_>> = self
            .table
            .keys()
            .filter(|key| !self.known.contains(&&**key.get_ref()))
            .collect();
        for key in unknown {
            let name = key.get_ref();
            let fault = Fault::new(format!("there is no setting `{}{name}`", self.path));
            let fault = match nearest(name, &self.known) {
                Some(near) => fault.help(format!("did you mean `{near}`?")),
                None => fault.help(format!("there are: {}", self.known.join(", "))),
            };
            self.problem(fault, key.span().start, name);
        }
    }

    fn problem(&mut self, fault: Fault, offset: usize, key: &str) {
        let place = self.reader.lines.place(offset);
        self.reader
            .problems
            .push(fault.at(place, format!("{}{key}", self.path)));
    }
}

fn expected(value: &DeValue<'_>, what: &str) -> Fault {
    let found = match value {
        DeValue::Array(_) => "list",
        DeValue::Datetime(_) => "date",
        other => other.type_str(),
    };
    Fault::new(format!("the value is of type {found}")).help(format!("it should be {what}"))
}

fn string<'v>(value: &'v DeValue<'v>) -> Result<&'v str, Fault> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(expected(other, "a text in quotes")),
    }
}

fn list<'v>(value: &'v DeValue<'v>) -> Result<Vec<&'v DeValue<'v>>, Fault> {
    match value {
        DeValue::Array(elements) => Ok(elements.iter().map(Spanned::get_ref).collect()),
        other => Err(expected(other, "a list, as in `[\"one\", \"two\"]`")),
    }
}

fn boolean(value: &DeValue<'_>) -> Result<bool, Fault> {
    match value {
        DeValue::Boolean(boolean) => Ok(*boolean),
        other => Err(expected(other, "`true` or `false`, without quotes")),
    }
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, Fault> {
    Ok(values::absolute_path(string(value)?)?)
}

fn number(value: &DeValue<'_>, range: RangeInclusive<u32>) -> Result<u32, Fault> {
    let help = || format!("a whole number from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value else {
        return Err(expected(value, &help()));
    };
    u32::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| Fault::new(format!("{integer} is out of range")).help(help()))
}

fn bytes(value: &DeValue<'_>) -> Result<u64, Fault> {
    match value {
        DeValue::String(text) => Ok(quantity::bytes(text)?),
        DeValue::Integer(integer) if integer.radix() == 10 => {
            Ok(quantity::bytes(integer.as_str())?)
        }
        other => Err(expected(other, "a size, as in `\"8 MiB\"`")),
    }
}

fn duration(value: &DeValue<'_>, range: RangeInclusive<&str>) -> Result<Duration, Fault> {
    let DeValue::String(text) = value else {
        return Err(expected(value, "a duration with its unit, as in `\"10s\"`"));
    };
    let duration = quantity::duration(text)?;
    let limit = |text| quantity::duration(text).expect("limits are durations");
    if (limit(range.start())..=limit(range.end())).contains(&duration) {
        Ok(duration)
    } else {
        Err(
            Fault::new(format!("`{text}` is out of range")).help(format!(
                "write a duration from `{}` to `{}`",
                range.start(),
                range.end()
            )),
        )
    }
}
