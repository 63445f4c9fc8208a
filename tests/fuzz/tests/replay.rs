//! Every input that a search ever kept, through every reader.

use std::fs;

use trefoil_fuzz::{TARGETS, seeds};

/// Each reader also gets the others' inputs: a file may be named in the wrong place.
#[test]
fn the_corpus_finds_nothing() {
    let mut n_inputs = 0;
    for source in TARGETS {
        let directory = source.corpus();
        let entries = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            // The harness prints this only if one of them panics.
            println!("{}", path.display());
            for target in TARGETS {
                (target.check)(&input);
            }
            n_inputs += 1;
        }
    }
    assert!(n_inputs > 100, "only {n_inputs} inputs in the corpus");
}

#[test]
fn what_is_made_is_valid() {
    for target in TARGETS {
        for (name, input) in seeds::of(&target) {
            println!("{name}");
            (target.check)(&input);
        }
    }
}
