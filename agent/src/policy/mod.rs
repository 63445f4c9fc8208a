//! Policies: from the text that two parties sign off to the tables that decide.
//!
//! A policy has one meaning, said twice: [`mod@explain`] goes through the rules as a
//! reader would, and [`mod@compile`] makes the tables that the kernel decides by
//! (`trefoil_ebpf::abi::Policy` describes them), on which [`evaluate`] decides the
//! same in user space. Property tests hold them against each other.
//!
//! Everything here is pure: no files, no kernel, no clock.

#![forbid(unsafe_code)]

pub mod automaton;
pub mod compile;
pub mod evaluate;
pub mod explain;
pub mod geography;
pub mod glob;
mod intervals;
pub mod local;
pub mod network;
pub mod pattern;
pub mod problem;
pub mod service;
pub mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod warnings;

pub use compile::{Budget, Clause, Compiled, Period, RuleSummary, compile, image::Image, load};
pub use evaluate::Question;
pub use explain::{Explanation, Inquiry, explain};
pub use geography::{Geography, Surroundings, Users};
pub use local::LinkLocal;
pub use problem::{Place, Problem, Problems};
pub use source::{Mode, Policy};
