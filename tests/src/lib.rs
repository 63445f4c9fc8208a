//! The lab: a small world of network namespaces in which a policy can be tried
//! without harm, and what the end-to-end tests are written with.
//!
//! | place | addresses | country | what it stands for |
//! |---|---|---|---|
//! | `host` | 192.0.2.1, 2001:db8:1::1 | IE | the data-centre host under test |
//! | `gateway` | 192.0.2.10, 2001:db8:1::10 | IE | the approved way out |
//! | `peer` | 198.51.100.0/24, 2001:db8:2::/48 | DE | an approved destination |
//! | `foreign` | 203.0.113.0/24, 2001:db8:3::/48 | CN, in part unknown | everywhere else |
//!
//! Every far place answers on all of its addresses. Nothing is routed between
//! the lab and the machine it runs on, and enforcement reaches only programs in
//! the lab's own control group: [`agent::Agent`] offers no other.
//!
//! This crate looks at the agent from outside only: command line, exit codes,
//! JSON, journal, and what arrives at the far end.

pub mod agent;
pub mod attach;
pub mod battery;
pub mod books;
pub mod cgroup;
pub mod conn_log;
pub mod cover;
pub mod fill;
pub mod foretold;
pub mod frames;
pub mod journal;
pub mod kernel;
pub mod lab;
pub mod link;
mod memory;
pub mod namespace;
pub mod object;
pub mod packets;
pub mod pipe;
pub mod places;
pub mod program;
pub mod record;
pub mod router;
pub mod sink;
mod tail;
pub mod tap;
pub mod terminal;
pub mod tracer;
pub mod vm;
pub mod wait;
pub mod watch;
pub mod ways;
pub mod wiring;

pub use agent::Agent;
pub use lab::Lab;
pub use record::Record;
pub use wait::wait_for;
