//! Checkpoints of a log: <https://c2sp.org/tlog-checkpoint>.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    merkle::{Frontier, Hash},
    note::{self, NoteError, SigningKey, VerifyingKey},
};

/// State of a log, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

/// Why a note is no checkpoint of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// See there.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Not an origin, a size and a root, a line each.
    #[error("it is no checkpoint")]
    Form,
    /// Signed, but not by the log that it is of.
    #[error("it is of `{0}`, which has not signed it")]
    Origin(String),
}

impl Checkpoint {
    /// The state of a log with this tree.
    #[must_use]
    pub fn of(origin: &str, tree: &Frontier) -> Self {
        Self {
            origin: origin.to_owned(),
            size: tree.size(),
            root: tree.root(),
        }
    }

    /// The signed note. The key has the name of the log.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> String {
        key.sign(&format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        ))
    }

    /// Opens a note that the log itself has signed.
    ///
    /// # Errors
    ///
    /// When it is no checkpoint, or none that a known key of the log has signed.
    pub fn open(note: &str, keys: &[VerifyingKey]) -> Result<Self, CheckpointError> {
        let (text, signers) = note::open(note, keys)?;
        // Lines behind the third are extensions, of which this version knows none.
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Form);
        };
        if !signers.iter().any(|name| name == origin) {
            return Err(CheckpointError::Origin(origin.to_owned()));
        }
        let number: u64 = size.parse().map_err(|_| CheckpointError::Form)?;
        let root = STANDARD.decode(root).map_err(|_| CheckpointError::Form)?;
        let root = root.try_into().map_err(|_| CheckpointError::Form)?;
        match number.to_string() == size {
            true => Ok(Self {
                origin: origin.to_owned(),
                size: number,
                root,
            }),
            false => Err(CheckpointError::Form),
        }
    }
}

/// Writes hashes as text: base64 of all of them, one behind the other.
#[must_use]
pub fn to_text(hashes: &[Hash]) -> String {
    STANDARD.encode(hashes.concat())
}

/// Reads hashes as [`to_text`] writes them; `None` if these are none.
#[must_use]
pub fn from_text(text: &str) -> Option<Vec<Hash>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (hashes, []) = bytes.as_chunks::<32>() else {
        return None;
    };
    Some(hashes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::leaf;

    #[test]
    fn a_checkpoint_is_what_was_signed() {
        let key = SigningKey::from_seed("trefoil/a", &[7; 32]).unwrap();
        let mut tree = Frontier::default();
        tree.push(leaf(b"x"));
        let checkpoint = Checkpoint::of("trefoil/a", &tree);
        let keys = [key.public().clone()];
        let note = checkpoint.sign(&key);
        assert_eq!(Checkpoint::open(&note, &keys), Ok(checkpoint));
        let others = SigningKey::from_seed("trefoil/b", &[8; 32]).unwrap();
        let note = Checkpoint::of("trefoil/a", &tree).sign(&others);
        let error = Checkpoint::open(&note, &[others.public().clone()]);
        assert_eq!(error, Err(CheckpointError::Origin("trefoil/a".to_owned())));
        for wrong in ["trefoil/a\n", "trefoil/a\n1\nx\n", "trefoil/a\n01\nx\n"] {
            assert_eq!(
                Checkpoint::open(&key.sign(wrong), &keys),
                Err(CheckpointError::Form)
            );
        }
    }

    #[test]
    fn hashes_survive_their_text() {
        for n in 0..4 {
            let hashes = vec![[n; 32]; n.into()];
            assert_eq!(from_text(&to_text(&hashes)), Some(hashes));
        }
        assert_eq!((from_text("x"), from_text("AAAA")), (None, None));
    }
}
