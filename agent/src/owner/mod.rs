//! Owners of flows, in the words of a person: unit, container, login name, the executable's
//! hash.
//!
//! The kernel says which ids; this module says what they are called. A wrong
//! name is worse than none: what cannot be told for certain is left out.

pub mod cgroup;
pub mod executable;
pub mod process;
pub mod users;
