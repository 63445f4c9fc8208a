//! Trefoil's agent: attributes, judges and reports what leaves the host.
//!
//! Data flows one way through these modules; nothing in user space is ever asked
//! for a verdict. docs/ARCHITECTURE.md has the map.

#![deny(unsafe_code)]

use trefoil_bounded as bounded;

pub mod acknowledged;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod connections;
pub mod evidence;
pub mod flow;
pub mod gateway_log;
pub mod geo;
pub mod kernel;
pub mod learn;
pub mod limits;
pub mod losses;
pub mod monitor;
pub mod names;
pub mod notify;
pub mod observed;
pub mod owner;
pub mod policy;
pub mod privileges;
pub mod quantity;
pub mod refusals;
pub mod report;
pub mod settings;
pub mod state;
pub mod trace;
pub mod trial;
pub mod uplinks;
