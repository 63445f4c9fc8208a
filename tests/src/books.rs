//! The books of an uplink, as a record or `status` has them, and whether they balance.

use anyhow::{Result, ensure};

use crate::record::Record;

/// The fields whose sum is what was judged.
pub const VERDICTS: [&str; 8] = [
    "bytes_local",
    "bytes_gateway",
    "bytes_approved",
    "bytes_exception",
    "bytes_over_budget",
    "bytes_denied",
    "bytes_unapproved",
    "bytes_undetermined",
];
/// The fields whose sum is that as well.
const SENDERS: [&str; 4] = [
    "bytes_socket",
    "bytes_kernel",
    "bytes_forwarded",
    "bytes_packet_socket",
];
/// The fields whose sum is what could not be judged.
const REASONS: [&str; 3] = ["bytes_arp", "bytes_lldp", "bytes_not_ip"];

/// Of several fields.
pub fn sum(record: &Record, names: &[&str]) -> Result<u64> {
    names.iter().map(|name| record.number(name)).sum()
}

/// Fails unless all that an uplink has sent was judged, or could not be and is known as
/// that. Returns how much it was.
pub fn balanced(book: &Record) -> Result<u64> {
    let judged = sum(book, &VERDICTS)?;
    let sent = judged + sum(book, &REASONS)?;
    ensure!(judged == sum(book, &SENDERS)?, "{book}");
    ensure!(sent == book.number("bytes_sent")?, "{book}");
    ensure!(
        book.is("bytes_unaccounted", 0) && book.is("bytes_unsent", 0),
        "{book}"
    );
    Ok(sent)
}
