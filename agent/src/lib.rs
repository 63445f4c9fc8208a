//! Trefoil's agent: attributes, judges and reports what leaves the host.
//!
//! Data flows one way through these modules, top to bottom; nothing in user
//! space is ever asked for a verdict.

#![deny(unsafe_code)]

pub mod clock;
pub mod flow;
pub mod geo;
pub mod kernel;
pub mod owner;
pub mod report;
pub mod policy;
