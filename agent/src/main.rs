//! `trefoil`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    trefoil::commands::main()
}
