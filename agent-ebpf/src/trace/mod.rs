//! The programs of `trefoil trace`: one beside each hook that decides about a packet or a call.
//! They look at what that hook has found or will find, ask the same judge the same question, and
//! write a line about it.
//!
//! Maps that they share with the programs that decide they only read
//! ([`ONLY_LOOKS`](crate::globals::ONLY_LOOKS)); they charge no budget, and always pass. In a
//! control group they come behind those, and read what was decided; at an uplink, where nothing
//! comes behind what is dropped, before.

mod calls;
mod filter;
mod frames;
mod packets;
mod story;
#[path = "../hooks/uplink_egress.rs"]
mod uplink_egress;
