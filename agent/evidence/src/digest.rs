//! Digest of a record.
//!
//! It is over what the agent itself sends, sorted by name: never over fields that journald adds, and
//! not over the salt. A personal value is in it as a commitment, so that a copy without it can still be
//! verified:
//!
//! - open field: `NAME LF`, length of the value as u64 little endian, the value;
//! - personal field: `#NAME LF C`, where C = SHA-256(s ‖ NAME LF value), and s is the first 16 bytes of
//!   HMAC-SHA-256(salt of the record, NAME);
//! - D = SHA-256("trefoil-record/v1" LF ‖ all of these).
//!
//! The log's entry is D, its leaf SHA-256(0x00 ‖ D).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::merkle::Hash;

/// Random bytes of a record, by which nobody finds a hidden value by trying.
pub type Salt = [u8; 16];

/// Name of the field with the salt, in hexadecimal digits.
pub const SALT: &str = "TREFOIL_SALT";
/// Begin of the names of the agent's own fields in the journal.
pub const PREFIX: &str = "TREFOIL_";
/// Fields of the journal's own that the agent sets, and that count.
pub const OTHERS: [&str; 3] = ["MESSAGE", "MESSAGE_ID", "PRIORITY"];

/// Fields that tell of a person, or of which one can find out whom they tell of.
pub const PERSONAL: [&str; 22] = [
    "MESSAGE",
    "TREFOIL_CGROUP",
    "TREFOIL_COMM",
    "TREFOIL_COMMUNITY_ID",
    "TREFOIL_DST_ADDR",
    "TREFOIL_DST_NAME",
    "TREFOIL_DST_NAMED",
    "TREFOIL_EXE",
    "TREFOIL_GID",
    "TREFOIL_LOGIN",
    "TREFOIL_LOGINUID",
    "TREFOIL_PARENT_EXE",
    "TREFOIL_PID",
    "TREFOIL_PPID",
    "TREFOIL_SESSION",
    "TREFOIL_SESSION_ADDR",
    "TREFOIL_SESSION_COMMUNITY_ID",
    "TREFOIL_SESSION_PORT",
    "TREFOIL_SRC_ADDR",
    "TREFOIL_SRC_PORT",
    "TREFOIL_UID",
    "TREFOIL_USER",
];

/// True if values of this field are behind commitments.
#[must_use]
pub fn is_personal(name: &str) -> bool {
    PERSONAL.binary_search(&name).is_ok()
}

/// True if a field counts for the digest.
#[must_use]
pub fn is_covered(name: &str) -> bool {
    name != SALT && (name.starts_with(PREFIX) || OTHERS.contains(&name))
}

/// Digest of a record, field by field.
#[derive(Clone, Debug)]
pub struct RecordDigest {
    hash: Sha256,
    salt: Salt,
}

impl RecordDigest {
    /// Begins the digest of a record with this salt.
    #[must_use]
    pub fn new(salt: Salt) -> Self {
        Self {
            hash: Sha256::new_with_prefix(b"trefoil-record/v1\n"),
            salt,
        }
    }

    /// Adds a field that [`is_covered`]. Fields come sorted by their names' bytes.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        if is_personal(name) {
            let own_salt = own_salt(&self.salt, name);
            self.add_commitment(name, &commitment(&own_salt, name, value));
        } else {
            self.hash.update(name);
            self.hash.update(b"\n");
            self.hash.update((value.len() as u64).to_le_bytes());
            self.hash.update(value);
        }
    }

    /// Adds a personal field of which the commitment alone is known, in its place among the others.
    pub fn add_commitment(&mut self, name: &str, commitment: &Hash) {
        self.hash.update(b"#");
        self.hash.update(name);
        self.hash.update(b"\n");
        self.hash.update(commitment);
    }

    /// Ends it.
    #[must_use]
    pub fn finish(self) -> Hash {
        self.hash.finalize().into()
    }
}

/// Returns the salt of one field of a record with this salt.
#[must_use]
pub fn own_salt(salt: &Salt, name: &str) -> Salt {
    // HMAC takes a key of any length.
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(salt) else {
        return Salt::default();
    };
    let whole: Hash = mac.chain_update(name).finalize().into_bytes().into();
    *whole.first_chunk().unwrap_or(&Salt::default())
}

/// Returns the commitment to a personal value, by the salt of its field.
#[must_use]
pub fn commitment(own_salt: &Salt, name: &str, value: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(own_salt)
        .chain_update(name)
        .chain_update(b"\n")
        .chain_update(value)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_names_are_sorted() {
        assert!(PERSONAL.is_sorted());
    }

    /// Computed with Python's hashlib and hmac, by the words at the top of this file.
    #[test]
    fn the_digest_is_that_of_its_definition() {
        let mut digest = RecordDigest::new(*b"0123456789abcdef");
        digest.add("MESSAGE", b"a\nb");
        digest.add("PRIORITY", b"6");
        digest.add("TREFOIL_BYTES_OUT", b"17");
        digest.add("TREFOIL_DST_ADDR", b"203.0.113.7");
        let hex: String = digest
            .finish()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "f5adc2785ce9371dc1e297a38a57eebf258d298b72933afb892d0c5ee0e127fb"
        );
    }
}
