//! Reports: what the agent tells the world.
//!
//! A [`Record`] is made from what the flow table says and from the names that
//! belong to its ids; the [`Reporter`] gives it a number and hands it to the
//! sinks: journal, JSON lines, terminal. This module decides nothing about
//! traffic and looks nothing up.

mod books;
mod community_id;
mod context;
mod field;
mod flow_record;
mod journal;
mod json;
mod kind;
mod limit_record;
mod news;
mod record;
mod reporter;
mod session;
mod sink;
mod spool;
mod terminal;
mod unseen;
pub mod words;

#[cfg(test)]
mod catalog_tests;

pub use books::Balanced;
pub use community_id::community_id;
pub use context::Context;
pub use field::{FIELDS, Field, FieldInfo, Form, Kinds, Value};
pub use flow_record::FlowFacts;
pub use journal::{Journal, JournalSettings};
pub use json::Json;
pub use kind::{Kind, Priority};
pub use news::{Coverage, Heartbeat, PolicyNews};
pub use record::{NotARecord, Record};
pub use reporter::{Progress, Reporter, ReporterError, ReporterSettings, Stall};
pub use session::SessionFacts;
pub use sink::{Sealed, Sink};
pub use spool::{Origin, SpoolError};
pub use terminal::Terminal;
