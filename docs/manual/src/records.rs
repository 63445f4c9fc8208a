//! Records: kinds, fields, counters of losses and hooks, as the agent defines them.

use anyhow::Result;
use trefoil::kernel::HOOKS;
use trefoil::losses;
use trefoil::report::{FIELDS, FieldInfo, Form, Kind, Priority};

use crate::{catalog, roff};

/// Every kind of record, with what the catalog says about it.
pub fn kinds() -> Result<String> {
    let mut out = String::new();
    for kind in Kind::ALL {
        out += &format!(".Ss {kind}\n");
        out += &format!(".D1 Ev MESSAGE_ID Ns = Ns {}\n", kind.message_id());
        let priorities: Vec<String> = kind
            .priorities()
            .iter()
            .map(|(priority, when)| {
                let when = if when.is_empty() {
                    String::new()
                } else {
                    format!(": {when}")
                };
                format!("{} ({}){when}", *priority as u8, name_of(*priority))
            })
            .collect();
        out += &format!(
            ".D1 Ev PRIORITY Ns = Ns {}\n",
            roff::prose(&priorities.join("; ")).trim_end()
        );
        out += ".Pp\n";
        out += &catalog::text(kind)?;
    }
    Ok(out)
}

/// As journalctl(1) calls it.
fn name_of(priority: Priority) -> &'static str {
    match priority {
        Priority::Critical => "crit",
        Priority::Error => "err",
        Priority::Warning => "warning",
        Priority::Notice => "notice",
        Priority::Info => "info",
    }
}

/// Every field: its two names, form and unit, kinds of records, meaning.
pub fn fields() -> String {
    let mut out = ".Bl -tag -width Ds\n".to_owned();
    for field in FIELDS {
        let journal = format!("TREFOIL_{}", field.name.to_uppercase());
        out += &format!(".It Ev {journal} , Va {}\n", field.name);
        out += &roff::prose(&format!("{}.", capitalised(field.doc)));
        out += ".br\n";
        out += &roff::prose(&format!("{}; {}.", form(field), kinds_of(field)));
    }
    out + ".El\n"
}

fn form(field: &FieldInfo) -> String {
    let form = match field.form {
        Form::Text => "Text",
        Form::Number => "Number",
        Form::Time => "Time",
        Form::Address => "IP address",
    };
    match field.unit {
        "" => form.to_owned(),
        unit => format!("{form}, in {unit}s"),
    }
}

fn kinds_of(field: &FieldInfo) -> String {
    let kinds: Vec<String> = Kind::ALL
        .into_iter()
        .filter(|kind| field.kinds.contains(*kind))
        .map(|kind| kind.to_string())
        .collect();
    if kinds.len() == Kind::ALL.len() {
        "in every record".to_owned()
    } else {
        format!("in {}", kinds.join(", "))
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Every hook that the agent can do without, and what is not known then.
pub fn hooks() -> String {
    let mut out = ".Bl -tag -width Ds\n".to_owned();
    for hook in HOOKS {
        if let Some(without) = hook.without {
            out += &format!(".It Li {}\n", roff::argument(hook.name));
            let mut missing = format!("{}.", capitalised(without));
            if let Some(fallback) = hook.fallback {
                let (function, without) = (fallback.function, fallback.without);
                missing += &format!(" Where {function} takes its place, only {without}.");
            }
            out += &roff::prose(&missing);
        }
    }
    out + ".El\n"
}

/// Every counter of losses that makes records, and what it costs.
pub fn losses() -> String {
    let mut out = ".Bl -tag -width Ds\n".to_owned();
    for (counter, meaning) in losses::MEANINGS {
        if !losses::is_harmless(counter) {
            out += &format!(".It Li {}\n", roff::argument(counter));
            out += &roff::prose(&format!("{}.", capitalised(meaning)));
        }
    }
    out + ".El\n"
}
