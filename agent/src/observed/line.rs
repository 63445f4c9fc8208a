//! One line of what was recorded: JSON as `trefoil run --json` and `trefoil flows
//! --json` write it, or an entry of the journal as `journalctl -o json` does.
//!
//! Anybody may write into the journal, and may call fields as Trefoil does. Fields
//! that journald itself adds, with `_` before their names, nobody else can add: only
//! an entry of one of root's processes is a record.

use serde_json::{Map, Value};

use crate::report::{Field, Form, NotARecord, Record};

/// Content of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A record.
    Record(Box<Record>),
    /// An entry of the journal that is not from Trefoil.
    Other,
    /// An entry that has the fields of a record and is not known to be root's.
    NotTrusted,
}

/// Why a line cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// No JSON.
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    /// Some other JSON.
    #[error(
        "neither a record of Trefoil nor an entry of the journal; records are what `trefoil run \
         --json` and `journalctl -o json` write"
    )]
    Foreign,
    /// Nearly a record.
    #[error("not a record: {0}")]
    NotARecord(#[from] NotARecord),
    /// journalctl leaves out what is long.
    #[error("journalctl has left out `{0}`, which is long; run it with --all")]
    LeftOut(String),
    /// One entry of the journal has a field more than once, or as no text.
    #[error("`{0}` is not one text")]
    Unreadable(String),
}

const PREFIX: &str = "TREFOIL_";

/// Reads a line, without the line's end.
///
/// # Errors
///
/// It is neither a record nor an entry of the journal.
pub fn read(line: &[u8]) -> Result<Line, LineError> {
    let value: Value = serde_json::from_slice(line).map_err(LineError::NotJson)?;
    let Value::Object(object) = value else {
        return Err(LineError::Foreign);
    };
    if object.contains_key(Field::Event.name()) {
        return Ok(Line::Record(Box::new(Record::from_object(&object)?)));
    }
    if object.contains_key("TREFOIL_EVENT") {
        let is_roots = object.get("_UID").and_then(Value::as_str) == Some("0");
        if !is_roots {
            return Ok(Line::NotTrusted);
        }
        return Ok(Line::Record(Box::new(Record::from_object(&own_form(
            &object,
        )?)?)));
    }
    let is_journals = ["__CURSOR", "__REALTIME_TIMESTAMP", "_BOOT_ID", "MESSAGE"];
    if is_journals.iter().any(|name| object.contains_key(*name)) {
        return Ok(Line::Other);
    }
    Err(LineError::Foreign)
}

/// The host that a line is from, be it a record or not.
#[must_use]
pub fn host(line: &[u8]) -> Option<String> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let names = [Field::Host.name(), "TREFOIL_HOST", "_HOSTNAME"];
    let host = names.iter().find_map(|name| object.get(*name)?.as_str());
    host.map(str::to_owned)
}

/// An entry of the journal in the form of JSON that the agent writes.
fn own_form(entry: &Map<String, Value>) -> Result<Map<String, Value>, LineError> {
    let mut own = Map::new();
    for (name, value) in entry {
        let (own_name, is_number) = match name.as_str() {
            "MESSAGE" => ("message".to_owned(), false),
            "PRIORITY" => ("priority".to_owned(), true),
            name => {
                let Some(name) = name.strip_prefix(PREFIX) else {
                    continue;
                };
                let name = name.to_ascii_lowercase();
                let Some(field) = Field::parse(&name) else {
                    continue;
                };
                (name, field.info().form == Form::Number)
            }
        };
        let text = text(name, value)?;
        let value = if is_number {
            let number: u64 = text
                .parse()
                .map_err(|_| LineError::NotARecord(NotARecord::Form(name.clone())))?;
            number.into()
        } else {
            Value::String(text)
        };
        own.insert(own_name, value);
    }
    Ok(own)
}

/// journalctl writes text that it holds for unprintable as numbers, one a byte.
fn text(name: &str, value: &Value) -> Result<String, LineError> {
    let unreadable = || LineError::Unreadable(name.to_owned());
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Err(LineError::LeftOut(name.to_owned())),
        Value::Array(bytes) => {
            let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
            let bytes: Option<Vec<u8>> = bytes.iter().map(byte).collect();
            String::from_utf8(bytes.ok_or_else(unreadable)?).map_err(|_| unreadable())
        }
        _ => Err(unreadable()),
    }
}
