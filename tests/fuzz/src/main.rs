//! The fuzzer's program. `TREFOIL_FUZZ_TARGET` names the reader; the arguments are
//! libFuzzer's. `cargo xtask fuzz` builds and starts it.

#![no_main]

use std::{env, fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use trefoil_fuzz::{TARGETS, Target, seeds};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("TREFOIL_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| {
        let known = TARGETS.map(|target| target.name).join(", ");
        panic!("TREFOIL_FUZZ_TARGET is `{name}`, and there are {known}")
    })
});

/// Puts what a search begins with where libFuzzer is about to look for it.
fn sow() {
    if let Some(directory) = env::var_os("TREFOIL_FUZZ_SEEDS") {
        for (name, input) in seeds::of(&TARGET) {
            fs::write(Path::new(&directory).join(name), input).expect("write a seed");
        }
    }
}

fuzz_target!(
    init: sow(),
    |input: &[u8]| (TARGET.check)(input)
);
