//! Where addresses are: country data, its file formats, and named groups of
//! countries.
//!
//! Pure: bytes of files in, ranges and answers out. It never says whether a
//! destination is approved (that is `policy`'s), and it never guesses: what the
//! data does not say plainly has no country.

pub mod country;
pub mod groups;

pub use country::Country;
