//! The battery: every way in which bytes are known to leave a host past a monitor is
//! really gone, and what the agent makes of it is held against `tests/battery.txt`.
//!
//! | grade | yes, if |
//! |---|---|
//! | seen | final records about the far address have all the bytes of payload |
//! | owned | those records name the process that sent, and are `direct` |
//! | blocked | in enforce mode no packet to that address arrives |
//!
//! Each way has far addresses of its own, by which its records and its packets are
//! told apart. Ways that need a kernel with more modules are in
//! `tests/vm/battery.rs`.

#[path = "../world/mod.rs"]
mod world;

mod calls;
mod families;
mod foretold;
mod headers;
mod identity;
mod interfaces;
mod links;
mod lists;
mod monitor;
mod processes;
mod reflected;
mod round;
mod scopes;
mod senders;
mod stage;
mod translated;
mod unknown;
