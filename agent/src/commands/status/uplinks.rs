//! Uplinks in `status`: their books, now.

use std::collections::BTreeMap;

use serde::Serialize;

use super::health::Health;
use crate::{
    clock::{self, BootClock},
    kernel::{KernelError, Others, Reader, RouteSocket, UplinkTable, is_uplink_pin},
    report::{Balanced, Field, Record, words},
};

/// The books of one uplink.
#[derive(Debug, Serialize)]
pub struct UplinkStatus {
    /// True if the hook is attached, as far as its pin tells.
    pub attached: bool,
    /// When it was attached first.
    pub since: String,
    /// Others at its exit, before the hook.
    pub before_hook: Vec<String>,
    /// Those behind it.
    pub behind_hook: Vec<String>,
    /// The sums, by the names that records have.
    #[serde(flatten)]
    pub bytes: BTreeMap<&'static str, u64>,
}

/// Looks at the books of all uplinks, by name.
pub fn look(
    reader: &Reader,
    health: &mut Health,
) -> Result<BTreeMap<String, UplinkStatus>, KernelError> {
    let table = UplinkTable::open(reader.pins())?;
    let mut routes = RouteSocket::open()?;
    let links = routes.links()?;
    let (instance, pins) = (reader.instance(), reader.links());
    let mut found = BTreeMap::new();
    for (index, uplink) in table.all()? {
        // One that has gone is the agent's to forget; without an agent it is no news.
        let Some(link) = links.iter().find(|link| link.index == index) else {
            continue;
        };
        let attached = pins
            .iter()
            .any(|(of, name)| *of == instance && is_uplink_pin(name, index));
        if !attached {
            health.find(format!(
                "{} {} is not watched: its hook was attached, and is not any more",
                if uplink.is_tunnel() {
                    "tunnel"
                } else {
                    "uplink"
                },
                link.name
            ));
        }
        if uplink.is_tunnel() {
            continue;
        }
        let Some(look) = table.look(index, &mut routes)? else {
            continue;
        };
        let balance = look.balance(&uplink, link.counts_before_segmentation());
        if balance.unaccounted_bytes > 0 {
            let bytes = balance.unaccounted_bytes;
            health.lost(
                &format!("books of uplink {}", link.name),
                bytes,
                uplink.attached_ns,
                &format!(
                    "{} left by uplink {} that no hook saw",
                    words::bytes(bytes),
                    link.name
                ),
            );
        }
        let since_us = BootClock::read().unix_us(uplink.attached_ns);
        let record = Record::books(&Balanced {
            uplink: &link.name,
            since_us,
            time_us: clock::unix_us(),
            books: &look.books,
            balance: Some(balance),
        });
        let bytes = record
            .fields()
            .iter()
            .filter_map(|(field, _)| Some((field.name(), record.number(*field)?)))
            .collect();
        let others = Others::look(&mut routes, reader.pins(), index)?;
        if !others.behind.is_empty() {
            health.find(format!(
                "behind the hook of uplink {} stands what may change or send elsewhere that which \
                 was judged: {}",
                link.name,
                others.behind.join("; ")
            ));
        }
        if !others.before.is_empty() {
            health.note(format!(
                "before the hook of uplink {}: {}; what they let pass for good is a remainder of \
                 the books",
                link.name,
                others.before.join("; ")
            ));
        }
        let status = UplinkStatus {
            before_hook: others.before,
            behind_hook: others.behind,
            attached,
            since: clock::rfc3339(since_us),
            bytes,
        };
        found.insert(link.name.clone(), status);
    }
    Ok(found)
}

/// One line about an uplink.
pub fn text(status: &UplinkStatus) -> String {
    let bytes = |field: Field| status.bytes.get(field.name()).copied().unwrap_or_default();
    let mut parts = vec![format!("{} sent", words::bytes(bytes(Field::BytesSent)))];
    let not_judged = [Field::BytesArp, Field::BytesLldp, Field::BytesNotIp]
        .map(bytes)
        .iter()
        .sum();
    for (amount, what) in [
        (not_judged, "not to be judged"),
        (bytes(Field::BytesDropped), "dropped"),
        (bytes(Field::BytesUnaccounted), "seen by no hook"),
        (bytes(Field::BytesBefore), "before it was watched"),
    ] {
        if amount > 0 {
            parts.push(format!("{} {what}", words::bytes(amount)));
        }
    }
    parts.join(", ")
}
