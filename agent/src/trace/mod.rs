//! Request and output of `trefoil trace`: from the lines of the kernel's programs to sentences.
//! Pure: names are looked up elsewhere.

mod filter;
mod seen;

pub use filter::filter;
pub use seen::{Explained, Seen};
