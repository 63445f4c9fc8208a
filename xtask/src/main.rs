//! Build, run, test and package Trefoil.
fn main() {}
