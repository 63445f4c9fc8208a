//! `trefoil`: the command line.
fn main() {}
