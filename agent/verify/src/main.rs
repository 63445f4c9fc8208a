//! The program: see the library.

use std::process::ExitCode;

use clap::Parser;
use trefoil_verify::arguments::Arguments;

fn main() -> ExitCode {
    trefoil_verify::run(&Arguments::parse())
}
