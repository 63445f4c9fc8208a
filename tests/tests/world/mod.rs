//! What the tests of this folder share: traffic from the host under test.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use trefoil_lab::Lab;
use trefoil_lab::program::Program;

/// The program that sends.
pub const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");

/// `traffic` on the host under test, in `lab.service`.
pub fn traffic(lab: &Lab) -> Result<Program> {
    lab.program(TRAFFIC)
}

/// `traffic` on the host under test, in another service.
pub fn traffic_in(lab: &Lab, unit: &str) -> Result<Program> {
    lab.program_in(unit, TRAFFIC)
}

/// Address and port as `traffic` wants them.
pub fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}
