//! One record: what the journal, a JSON line and the terminal are made of.

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Field, Form, Kind, Priority, Value};
use crate::clock;

/// A kind, a priority, a message for a person, and facts.
///
/// A fact that is not known is a field that is not there: no empty text, no
/// zero that stands for "don't know".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kind: Kind,
    priority: Priority,
    message: String,
    /// Sorted by field.
    fields: Vec<(Field, Value)>,
}

impl Record {
    /// A record that was made at this time, microseconds since 1970.
    #[must_use]
    pub fn new(kind: Kind, priority: Priority, time_us: u64, message: impl Into<String>) -> Self {
        debug_assert!(
            kind.priorities().iter().any(|(own, _)| *own == priority),
            "{kind} with {priority:?}"
        );
        let mut record = Self {
            kind,
            priority,
            message: message.into(),
            fields: Vec::new(),
        };
        record.set(Field::Event, kind.name());
        record.set(Field::Time, clock::rfc3339(time_us));
        record
    }

    /// Returns the kind of event that it is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Returns the message to a person.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// All facts, in the order of [`super::FIELDS`].
    #[must_use]
    pub fn fields(&self) -> &[(Field, Value)] {
        &self.fields
    }

    /// One fact.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<&Value> {
        let index = self
            .fields
            .binary_search_by_key(&field, |(field, _)| *field)
            .ok()?;
        Some(&self.fields[index].1)
    }

    /// One fact that is a number.
    #[must_use]
    pub fn number(&self, field: Field) -> Option<u64> {
        match self.get(field)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) => None,
        }
    }

    /// One fact that is text.
    #[must_use]
    pub fn text(&self, field: Field) -> Option<&str> {
        match self.get(field)? {
            Value::Text(text) => Some(text),
            Value::Number(_) => None,
        }
    }

    /// Adds a fact, or replaces it. Empty text is no fact.
    pub fn set(&mut self, field: Field, value: impl Into<Value>) {
        let value = value.into();
        debug_assert!(
            field.info().kinds.contains(self.kind),
            "{} in {}",
            field.name(),
            self.kind
        );
        debug_assert_eq!(
            matches!(value, Value::Number(_)),
            field.info().form == Form::Number,
            "{}",
            field.name()
        );
        if matches!(&value, Value::Text(text) if text.is_empty()) {
            return;
        }
        match self
            .fields
            .binary_search_by_key(&field, |(field, _)| *field)
        {
            Ok(index) => self.fields[index].1 = value,
            Err(index) => self.fields.insert(index, (field, value)),
        }
    }

    /// Adds a fact if it is known.
    pub fn set_known(&mut self, field: Field, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(field, value);
        }
    }

    /// Adds a fact unless it is there already.
    pub fn set_default(&mut self, field: Field, value: Option<impl Into<Value>>) {
        if self.get(field).is_none() {
            self.set_known(field, value);
        }
    }

    /// The record as one line of JSON, without the line's end.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are always JSON")
    }

    /// A record from its JSON; `None` if it is none. Fields with unknown names
    /// are left out, so that one version reads what another wrote.
    #[must_use]
    pub fn from_json(line: &str) -> Option<Self> {
        Self::from_object(&serde_json::from_str(line).ok()?).ok()
    }

    /// A record from its JSON, already taken apart.
    ///
    /// # Errors
    ///
    /// Returns an error if a field is missing or has a value that the field cannot have, or
    /// if this version does not know the kind of record.
    pub fn from_object(
        object: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, NotARecord> {
        let lacks = |name: &str| NotARecord::Lacks(name.to_owned());
        let event = object.get(Field::Event.name()).and_then(|it| it.as_str());
        let event = event.ok_or_else(|| lacks(Field::Event.name()))?;
        let kind = Kind::parse(event).ok_or_else(|| NotARecord::Kind(event.to_owned()))?;
        let priority = object.get(PRIORITY).and_then(|it| it.as_u64());
        let priority = priority.and_then(Priority::parse);
        let message = object.get(MESSAGE).and_then(|it| it.as_str());
        let mut record = Self {
            kind,
            priority: priority.ok_or_else(|| lacks(PRIORITY))?,
            message: message.ok_or_else(|| lacks(MESSAGE))?.to_owned(),
            fields: Vec::new(),
        };
        for (name, value) in object {
            let Some(field) = Field::parse(name) else {
                continue;
            };
            if !field.info().kinds.contains(kind) {
                continue;
            }
            let is_number = field.info().form == Form::Number;
            match (value.as_str(), value.as_u64()) {
                (Some(text), _) if !is_number => record.set(field, text),
                (_, Some(number)) if is_number => record.set(field, number),
                _ => return Err(NotARecord::Form(name.clone())),
            }
        }
        Ok(record)
    }
}

/// Why something is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Every record has it.
    #[error("it has no valid `{0}`, which every record has")]
    Lacks(String),
    /// Not a kind that this version knows.
    #[error("this version knows no records of kind `{0}`")]
    Kind(String),
    /// The value has not the form that the field has.
    #[error("`{0}` is not what records have there")]
    Form(String),
}

/// Names of what the journal has fields of its own for.
const MESSAGE: &str = "message";
const PRIORITY: &str = "priority";

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len() + 2))?;
        for (field, value) in &self.fields {
            match value {
                Value::Text(text) => map.serialize_entry(field.name(), text.as_ref())?,
                Value::Number(number) => map.serialize_entry(field.name(), number)?,
            }
        }
        map.serialize_entry(PRIORITY, &(self.priority as u8))?;
        map.serialize_entry(MESSAGE, &self.message)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new(Kind::Flow, Priority::Info, 1_000_000, "a → \"b\"\n");
        record.set(Field::BytesOut, 17_u64);
        record.set(Field::Seq, 3_u64);
        record.set(Field::Exe, "/opt/a b");
        record
    }

    #[test]
    fn json_has_the_fields_in_their_order_and_numbers_as_numbers() {
        assert_eq!(
            record().to_json(),
            r#"{"event":"flow","seq":3,"time":"1970-01-01T00:00:01.000000Z","bytes_out":17,"#
                .to_owned()
                + r#""exe":"/opt/a b","priority":6,"message":"a → \"b\"\n"}"#
        );
    }

    #[test]
    fn a_record_survives_json() {
        assert_eq!(Record::from_json(&record().to_json()), Some(record()));
    }

    #[test]
    fn json_of_another_version_is_read_as_far_as_it_is_known() {
        let line = record()
            .to_json()
            .replace("\"seq\":3", "\"seq\":3,\"not_yet\":[1]");
        assert_eq!(Record::from_json(&line), Some(record()));
        for broken in [
            "",
            "{}",
            "[]",
            &line.replace("17", "\"17\""),
            &line.replace("17", "-1"),
        ] {
            assert_eq!(Record::from_json(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let mut record = record();
        record.set(Field::User, "");
        record.set_known(Field::Uid, None::<u32>);
        assert_eq!(
            (record.get(Field::User), record.get(Field::Uid)),
            (None, None)
        );
        record.set_default(Field::Seq, Some(9_u64));
        assert_eq!(record.number(Field::Seq), Some(3));
    }
}
