//! Scenarios in virtual machines: what an operator does with the package, on a
//! stock Debian, looked at as an operator does.

mod archive;
mod bare_machine;
mod battery;
mod enforcement;
mod evidence;
mod flows;
mod install;
mod kernels;
mod senders;
mod sessions;
mod tamper;
mod web;
mod world;
