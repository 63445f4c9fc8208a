//! Copies of records without persons, which still verify.
//!
//! A copy has no salt of the record any more. A personal value that is shown has its own salt beside
//! it, in `salts`; one that is hidden has its commitment, in `commitments`, by which nobody finds it by
//! trying. A pseudonym, in `pseudonyms`, is the same wherever the same value was: whoever made the copy
//! asserts that, and nothing proves it.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value};
use sha2::Sha256;

use crate::{
    digest::{PERSONAL, PREFIX, commitment, is_personal},
    entry::{Entry, hex, journal_name, json_name},
};

/// Least bytes of a key: whoever guesses it can find the values of pseudonyms by trying.
pub const LEAST_KEY_BYTES: usize = 16;
/// Bytes of a pseudonym.
const PSEUDONYM_BYTES: usize = 8;

/// Why nothing can be redacted so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedactionError {
    /// A field to show that is not hidden anyway.
    #[error("`{0}` is not the name of a personal field; these are: {names}", names = names())]
    Field(String),
    /// A key that can be guessed.
    #[error(
        "a key of {0} bytes can be guessed: take {LEAST_KEY_BYTES} bytes at the least, such as of \
         /dev/urandom"
    )]
    Key(usize),
}

/// Names of all personal fields, as in JSON.
///
/// Not by `join`: of a list whose length is a constant, LLVM 22's constraint elimination adds up the
/// lengths in exponential time.
fn names() -> String {
    let mut names = String::new();
    for name in PERSONAL {
        if !names.is_empty() {
            names.push_str(", ");
        }
        names.push_str(&json_name(name));
    }
    names
}

/// Choice of the fields that a copy of records shows.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    shown: BTreeSet<String>,
    key: Option<Vec<u8>>,
}

impl Redaction {
    /// Shows these personal fields, by their names in JSON, and no others.
    ///
    /// # Errors
    ///
    /// When one is not the name of a personal field.
    pub fn showing(names: &[String]) -> Result<Self, RedactionError> {
        let mut shown = BTreeSet::new();
        for name in names {
            let known = journal_name(name);
            if !is_personal(&known) || json_name(&known) != *name {
                return Err(RedactionError::Field(name.clone()));
            }
            shown.insert(known);
        }
        Ok(Self { shown, key: None })
    }

    /// Gives hidden values pseudonyms that depend on this key.
    ///
    /// # Errors
    ///
    /// When it is too short to be a secret.
    pub fn with_pseudonyms(self, key: Vec<u8>) -> Result<Self, RedactionError> {
        match key.len() < LEAST_KEY_BYTES {
            true => Err(RedactionError::Key(key.len())),
            false => Ok(Self {
                key: Some(key),
                ..self
            }),
        }
    }

    /// Makes the copy of a record: an object of JSON with the names that the agent's own lines have. A
    /// record without evidence loses its personal values, and nothing else stands for them.
    #[must_use]
    pub fn apply(&self, entry: &Entry) -> Map<String, Value> {
        let mut copy = Map::new();
        let (mut salts, mut commitments, mut pseudonyms) = (Map::new(), Map::new(), Map::new());
        for (name, value) in entry.values() {
            // The kind says it, as in the agent's own lines.
            if name == "MESSAGE_ID" {
                continue;
            }
            let (key, own_salt) = (json_name(name), entry.own_salt(name));
            if !is_personal(name) {
                copy.insert(key, json_value(value));
                continue;
            }
            if self.shown.contains(name) {
                if let Some(salt) = own_salt {
                    salts.insert(key.clone(), hex(&salt).into());
                }
                copy.insert(key, json_value(value));
                continue;
            }
            if let Some(secret) = &self.key {
                pseudonyms.insert(key.clone(), pseudonym(secret, name, value).into());
            }
            if let Some(salt) = own_salt {
                commitments.insert(key, hex(&commitment(&salt, name, value)).into());
            }
        }
        for (name, commitment) in entry.commitments() {
            commitments.insert(json_name(name), hex(commitment).into());
        }
        for (name, object) in [
            ("salts", salts),
            ("commitments", commitments),
            ("pseudonyms", pseudonyms),
        ] {
            if !object.is_empty() {
                copy.insert(name.to_owned(), object.into());
            }
        }
        copy
    }
}

/// Stands for a value: the same for all fields of its kind.
fn pseudonym(key: &[u8], name: &str, value: &[u8]) -> String {
    // HMAC takes a key of any length.
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return String::new();
    };
    let mac = mac.chain_update(kind(name)).chain_update(b"\n");
    let whole = mac.chain_update(value).finalize().into_bytes();
    hex(&whole[..PSEUDONYM_BYTES])
}

/// Kind of a field's values: within one, pseudonyms are comparable.
fn kind(name: &str) -> &str {
    match name.strip_prefix(PREFIX).unwrap_or(name) {
        "DST_ADDR" | "DST_NAMED" | "SESSION_ADDR" | "SRC_ADDR" => "address",
        "COMMUNITY_ID" | "SESSION_COMMUNITY_ID" => "connection",
        "EXE" | "PARENT_EXE" => "file",
        "PID" | "PPID" => "process",
        "LOGIN" | "USER" => "user",
        "LOGINUID" | "UID" => "user id",
        other => other,
    }
}

/// A value as the agent's lines have it: a number, text, or bytes that are no text.
fn json_value(value: &[u8]) -> Value {
    let Ok(text) = str::from_utf8(value) else {
        return value.to_vec().into();
    };
    match text.parse::<u64>() {
        Ok(number) if number.to_string() == text => number.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{SALT, Salt};

    const SALT_TEXT: &str = "30313233343536373839616263646566";

    fn record() -> Entry {
        let line = serde_json::json!({
            "event": "flow", "seq": 7, "priority": 6, "message": "bob sent", "salt": SALT_TEXT,
            "bytes_out": 9000, "uid": 1000, "user": "bob", "login": "bob", "exe": [47, 255],
            "dst_addr": "203.0.113.7", "src_addr": "192.0.2.1", "dst_country": "CN", "rule": "07",
        });
        Entry::of_json(line.as_object().unwrap()).unwrap()
    }

    fn read(copy: Map<String, Value>) -> Entry {
        let line = Value::Object(copy).to_string();
        Entry::of_json(
            serde_json::from_str::<Value>(&line)
                .unwrap()
                .as_object()
                .unwrap(),
        )
        .unwrap()
    }

    fn showing(names: &[&str]) -> Redaction {
        Redaction::showing(&names.iter().map(|&it| it.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_copy_has_the_digest_of_the_record() {
        let record = record();
        for shown in [
            &[][..],
            &["user"],
            &["exe", "dst_addr", "message"],
            &["uid"],
        ] {
            let copy = showing(shown).apply(&record);
            for name in PERSONAL.map(json_name) {
                let is_shown = shown.contains(&&*name);
                assert!(is_shown || !copy.contains_key(&name), "{name}");
            }
            assert!(!copy.contains_key(&json_name(SALT)));
            assert_eq!(copy["bytes_out"], 9000);
            assert_eq!(copy["rule"], "07");
            let read = read(copy);
            assert_eq!(read.digest(), record.digest());
            // A copy of a copy hides more.
            let again = self::read(Redaction::default().apply(&read));
            assert_eq!(again.digest(), record.digest());
            assert_eq!(again.text("exe"), None);
        }
    }

    #[test]
    fn a_copy_that_was_changed_has_another_digest() {
        type Change<'c> = &'c dyn Fn(&mut Map<String, Value>);
        let record = record();
        let copy = showing(&["user"]).apply(&record);
        let digest_of = |change: Change<'_>| {
            let mut copy = copy.clone();
            change(&mut copy);
            read(copy).digest()
        };
        assert_eq!(digest_of(&|_| ()), record.digest());
        let changes: [Change<'_>; 7] = [
            &|copy| drop(copy.insert("user".into(), "alice".into())),
            &|copy| drop(copy.insert("bytes_out".into(), 1.into())),
            // A value beside its commitment: it would be read, and not be proven.
            &|copy| drop(copy.insert("login".into(), "alice".into())),
            &|copy| drop(copy.remove("salts")),
            &|copy| drop(copy.remove("commitments")),
            &|copy| drop(copy["commitments"].as_object_mut().unwrap().remove("uid")),
            &|copy| copy["salts"]["user"] = SALT_TEXT.into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_ne!(digest_of(change), record.digest(), "{number}");
        }
    }

    /// With all that a copy has, and all values that a field may have.
    #[test]
    fn hidden_values_are_not_found_by_trying() {
        let copy = showing(&["message", "exe", "src_addr"]).apply(&record());
        let mut salts: Vec<Salt> = vec![[0; 16], [0xff; 16]];
        for salt in copy["salts"].as_object().unwrap().values() {
            let salt = u128::from_str_radix(salt.as_str().unwrap(), 16).unwrap();
            salts.push(salt.to_be_bytes());
        }
        assert_eq!(salts.len(), 5);
        let hidden = &copy["commitments"];
        let users = ["bob".to_owned(), "root".to_owned()].into_iter();
        let all = (0..65_536).map(|uid| ("uid", uid.to_string()));
        for (name, value) in all.chain(users.map(|user| ("user", user))) {
            let hidden = hidden[name].as_str().unwrap();
            let field = format!("{PREFIX}{}", name.to_ascii_uppercase());
            for salt in &salts {
                assert_ne!(hex(&commitment(salt, &field, value.as_bytes())), hidden);
            }
        }
        // It is the salt that hides it.
        let own = record().own_salt("TREFOIL_UID").unwrap();
        assert_eq!(
            hex(&commitment(&own, "TREFOIL_UID", b"1000")),
            hidden["uid"]
        );
    }

    #[test]
    fn pseudonyms_are_of_a_value_and_a_key() {
        let redact = |key: u8| {
            let redaction = showing(&["uid"]).with_pseudonyms(vec![key; 32]).unwrap();
            redaction.apply(&record())["pseudonyms"].clone()
        };
        let (one, other) = (redact(1), redact(2));
        assert_eq!(one["user"], one["login"]);
        assert_ne!(one["src_addr"], one["dst_addr"]);
        assert_ne!(one["user"], other["user"]);
        assert!(one.get("uid").is_none());
        let weak = showing(&[]).with_pseudonyms(vec![1; 15]);
        assert_eq!(weak.unwrap_err(), RedactionError::Key(15));
    }

    #[test]
    fn a_field_that_is_not_personal_is_told_with_those_that_are() {
        let error = Redaction::showing(&["verdict".to_owned()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`verdict`") && text.contains("session_addr"),
            "{text}"
        );
    }

    #[test]
    fn a_record_without_evidence_keeps_no_person() {
        let line = serde_json::json!({"event": "flow", "seq": 1, "user": "bob", "rule": "r"});
        let entry = Entry::of_json(line.as_object().unwrap()).unwrap();
        let copy = Redaction::default().apply(&entry);
        let expected = serde_json::json!({"event": "flow", "seq": 1, "rule": "r"});
        assert_eq!(Value::Object(copy), expected);
    }
}
