//! Signed notes: <https://c2sp.org/signed-note>, with Ed25519.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer};
use sha2::{Digest, Sha256};

/// Type of a key and of its signatures: Ed25519.
const ED25519: u8 = 1;
/// Begin of a line with a signature.
const SIGNATURE: &str = "\u{2014} ";

/// The key of a signer, for all who check what he signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    id: [u8; 4],
    key: ed25519_dalek::VerifyingKey,
}

/// Why a text is no key, or no note that a known key has signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not `NAME+ID+KEY` with an Ed25519 key.
    #[error("it is no key as `evidence/key.pub` has it: NAME+ID+KEY")]
    Key,
    /// A name that no key can have.
    #[error("`{0}` cannot be the name of a key: it must not be empty, nor have a space or a `+`")]
    Name(String),
    /// No text, an empty line, and signatures.
    #[error("it is no signed note")]
    Form,
    /// Of the known keys, none has signed.
    #[error("no known key has signed it")]
    Unsigned,
    /// A signature of a known key is of another text.
    #[error("the signature of `{0}` is of another text")]
    Forged(String),
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let is_good = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+');
    is_good
        .then_some(())
        .ok_or_else(|| NoteError::Name(name.to_owned()))
}

impl VerifyingKey {
    fn new(name: &str, key: ed25519_dalek::VerifyingKey) -> Self {
        let hash = Sha256::new()
            .chain_update(name)
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let mut id = [0; 4];
        id.copy_from_slice(&hash[..4]);
        Self {
            name: name.to_owned(),
            id,
            key,
        }
    }

    /// Reads `NAME+ID+KEY`, as [`Display`](fmt::Display) writes it.
    ///
    /// # Errors
    ///
    /// When it has another form, or the id is not that of the key.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        check_name(name)?;
        let key = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let Some((&ED25519, key)) = key.split_first() else {
            return Err(NoteError::Key);
        };
        let key = key.try_into().map_err(|_| NoteError::Key)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(&key).map_err(|_| NoteError::Key)?;
        let key = Self::new(name, key);
        (key.hex_id() == id).then_some(key).ok_or(NoteError::Key)
    }

    /// Name of the signer: of a log, its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn hex_id(&self) -> String {
        format!("{:08x}", u32::from_be_bytes(self.id))
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![ED25519];
        key.extend(self.key.as_bytes());
        write!(
            formatter,
            "{}+{}+{}",
            self.name,
            self.hex_id(),
            STANDARD.encode(key)
        )
    }
}

/// The key with which somebody signs.
pub struct SigningKey {
    public: VerifyingKey,
    key: ed25519_dalek::SigningKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    /// The key that is made of 32 random bytes, which nobody else may know.
    ///
    /// # Errors
    ///
    /// When no key can have this name.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        Ok(Self {
            public: VerifyingKey::new(name, key.verifying_key()),
            key,
        })
    }

    /// The key for those who check.
    #[must_use]
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs a text, which ends with a line's end.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        debug_assert!(text.ends_with('\n') && !text.contains("\n\n"));
        let mut signature = self.public.id.to_vec();
        signature.extend(self.key.sign(text.as_bytes()).to_bytes());
        let (name, signature) = (&self.public.name, STANDARD.encode(signature));
        format!("{text}\n{SIGNATURE}{name} {signature}\n")
    }
}

/// Returns the text of a note that at least one of these keys has signed, and the names of those that
/// have. Signatures of other keys are passed over, as the standard wants it.
///
/// # Errors
///
/// When it is no note, when none of the keys has signed it, or when a signature of one of them is of
/// another text.
pub fn open<'n>(note: &'n str, keys: &[VerifyingKey]) -> Result<(&'n str, Vec<String>), NoteError> {
    let middle = note.rfind("\n\n").ok_or(NoteError::Form)?;
    let (text, signatures) = (&note[..=middle], &note[middle + 2..]);
    if !signatures.ends_with('\n') {
        return Err(NoteError::Form);
    }
    let mut signers = Vec::new();
    for line in signatures.lines() {
        let signed = line
            .strip_prefix(SIGNATURE)
            .and_then(|line| line.split_once(' '));
        let (name, signature) = signed.ok_or(NoteError::Form)?;
        let signature = STANDARD.decode(signature).map_err(|_| NoteError::Form)?;
        let (id, signature) = signature.split_first_chunk::<4>().ok_or(NoteError::Form)?;
        let Some(key) = keys.iter().find(|key| key.name == name && key.id == *id) else {
            continue;
        };
        let forged = || NoteError::Forged(name.to_owned());
        let signature = Signature::from_slice(signature).map_err(|_| forged())?;
        key.key
            .verify_strict(text.as_bytes(), &signature)
            .map_err(|_| forged())?;
        signers.push(name.to_owned());
    }
    match signers.is_empty() {
        true => Err(NoteError::Unsigned),
        false => Ok((text, signers)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and note of the standard's page and of Go's golang.org/x/mod/sumdb/note.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
                        then you don't know what your problem is.\n\
                        \n\
                        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_note_of_other_people_is_opened() {
        let key = VerifyingKey::parse(KEY).unwrap();
        assert_eq!(key.to_string(), KEY);
        let (text, signers) = open(NOTE, std::slice::from_ref(&key)).unwrap();
        assert!(text.ends_with("problem is.\n"));
        assert_eq!(signers, ["PeterNeumann"]);
        let forged = NOTE.replace("answer", "Answer");
        assert_eq!(
            open(&forged, &[key]),
            Err(NoteError::Forged("PeterNeumann".to_owned()))
        );
        assert_eq!(open(NOTE, &[]), Err(NoteError::Unsigned));
    }

    #[test]
    fn what_is_signed_is_opened() {
        let key = SigningKey::from_seed("trefoil/a", &[7; 32]).unwrap();
        let other = SigningKey::from_seed("trefoil/a", &[8; 32]).unwrap();
        let note = key.sign("a\nb\n");
        assert_eq!(open(&note, &[key.public().clone()]).unwrap().0, "a\nb\n");
        assert_eq!(
            open(&note, &[other.public().clone()]),
            Err(NoteError::Unsigned)
        );
        assert_eq!(
            VerifyingKey::parse(&key.public().to_string()).as_ref(),
            Ok(key.public())
        );
        for wrong in [
            "",
            "a",
            "a+b",
            "a+b+c",
            &key.public().to_string().replace("trefoil", "x"),
        ] {
            assert!(VerifyingKey::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a b", "a+b", "a\n"] {
            assert!(SigningKey::from_seed(wrong, &[7; 32]).is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "a\n",
            "a\n\nb\n",
            "a\n\n\u{2014} b\n",
            "a\n\n\u{2014} b c",
        ] {
            assert!(open(wrong, &[key.public().clone()]).is_err(), "{wrong}");
        }
    }
}
