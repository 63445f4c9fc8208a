//! Evidence about records: that each is whole and that none is missing can be checked by somebody
//! who trusts neither the agent's host nor this program.
//!
//! - [`digest`]: the digest of a record, over what the agent itself sends, with personal values
//!   behind commitments.
//! - [`merkle`]: the tree over digests, as in RFC 6962.
//! - [`note`] and [`checkpoint`]: C2SP signed notes and checkpoints, with Ed25519.
//! - [`entry`]: records as they are read back: lines of JSON, the journal's JSON, the journal's export
//!   format.
//! - [`redact`]: copies of records without persons, which still verify.
//! - [`statement`]: what left which hosts in a period, as far as their records say.
//! - [`time`]: how a moment is written.
//! - [`verify`]: what a set of records and checkpoints proves, and what it does not.
//!
//! Nothing here reads a clock, a file or the kernel.

pub mod checkpoint;
pub mod digest;
pub mod entry;
pub mod merkle;
pub mod note;
pub mod redact;
pub mod statement;
pub mod time;
pub mod verify;
