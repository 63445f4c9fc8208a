//! Records about the books of uplinks.

use trefoil_ebpf::abi::{UplinkBooks, UplinkTotals, sender, unjudged, verdict};

use super::{Coverage, Field, Kind, Priority, Record, words};
use crate::{clock, uplinks::Balance};

/// The books of one uplink, since its hook was attached.
#[derive(Clone, Copy, Debug)]
pub struct Balanced<'a> {
    /// Name of the interface.
    pub uplink: &'a str,
    /// When the hook was attached, microseconds since 1970.
    pub since_us: u64,
    /// Now.
    pub time_us: u64,
    /// Traffic that came to the hook.
    pub books: &'a UplinkBooks,
    /// Comparison with the interface's own counter; `None` if there is no counter any more.
    pub balance: Option<Balance>,
}

const BY_VERDICT: [(u8, Field); 8] = [
    (verdict::LOCAL, Field::BytesLocal),
    (verdict::GATEWAY, Field::BytesGateway),
    (verdict::APPROVED, Field::BytesApproved),
    (verdict::EXCEPTION, Field::BytesException),
    (verdict::OVER_BUDGET, Field::BytesOverBudget),
    (verdict::DENIED, Field::BytesDenied),
    (verdict::UNAPPROVED, Field::BytesUnapproved),
    (verdict::UNDETERMINED, Field::BytesUndetermined),
];

const BY_SENDER: [(u8, Field); sender::N as usize] = [
    (sender::SOCKET, Field::BytesSocket),
    (sender::KERNEL, Field::BytesKernel),
    (sender::FORWARDED, Field::BytesForwarded),
    (sender::PACKET, Field::BytesPacketSocket),
];

const BY_REASON: [(u8, Field); unjudged::N as usize] = [
    (unjudged::ARP, Field::BytesArp),
    (unjudged::LLDP, Field::BytesLldp),
    (unjudged::OTHER, Field::BytesNotIp),
];

impl Record {
    /// An interface is watched from now on. `before_bytes` is what it had sent; `None`
    /// if an agent before has watched it, too.
    #[must_use]
    pub fn uplink(
        name: &str,
        before_bytes: Option<u64>,
        while_running: bool,
        time_us: u64,
    ) -> Self {
        let subject = format!("uplink {name}");
        let (coverage, reason) = match before_bytes {
            None => (
                Coverage::Covered,
                Some("taken over without a gap; its books go on".to_owned()),
            ),
            Some(0) => (Coverage::Covered, None),
            Some(bytes) => {
                let before = words::bytes(bytes);
                let reason = format!("{before} had left by it before, and are in no books");
                let coverage = match while_running {
                    true => Coverage::Partly,
                    false => Coverage::Covered,
                };
                (coverage, Some(reason))
            }
        };
        let mut record = Self::coverage(&subject, coverage, reason.as_deref(), time_us);
        record.set(Field::Uplink, name);
        record.set_known(Field::BytesBefore, before_bytes);
        record
    }

    /// Makes the record of the traffic that left by an uplink since its hook was attached: by
    /// whom and with which verdict, and compared with the interface's counter.
    #[must_use]
    pub fn books(balanced: &Balanced<'_>) -> Self {
        let books = balanced.books;
        let name = balanced.uplink;
        let unaccounted = balanced
            .balance
            .map_or(0, |balance| balance.unaccounted_bytes);
        let judged = bytes(&books.judged);
        let not_judged = bytes(&books.unjudged);
        let (state, priority) = match unaccounted {
            0 => ("covered", Priority::Info),
            _ => ("partly", Priority::Warning),
        };
        let mut message = format!(
            "Books of uplink {name}: {} judged, {} not to be judged",
            words::bytes(judged),
            words::bytes(not_judged),
        );
        message += &match (unaccounted, balanced.balance) {
            (0, Some(_)) => ", nothing else left by it".to_owned(),
            (0, None) => ", and its counter cannot be read any more".to_owned(),
            _ => format!(
                ", and {} left by it that no hook saw",
                words::bytes(unaccounted)
            ),
        };
        let mut record = Self::new(Kind::Coverage, priority, balanced.time_us, message);
        record.set(Field::State, state);
        record.set(Field::Subject, format!("books of uplink {name}"));
        record.set(Field::Uplink, name);
        record.set(Field::Started, clock::rfc3339(balanced.since_us));
        record.set(Field::Ended, clock::rfc3339(balanced.time_us));
        if let Some(balance) = balanced.balance {
            record.set(Field::BytesBefore, balance.earlier_bytes);
            record.set(Field::BytesSent, balance.sent_bytes);
            record.set(Field::BytesUnaccounted, balance.unaccounted_bytes);
            record.set(Field::BytesUnsent, balance.unsent_bytes);
        }
        let all = books.judged.iter().chain(&books.unjudged);
        record.set(Field::BytesWire, all.map(|sum| sum.wire_bytes).sum::<u64>());
        for (verdict, field) in BY_VERDICT {
            let of_verdict = books
                .judged
                .iter()
                .skip(usize::from(verdict))
                .step_by(usize::from(verdict::N));
            record.set(field, of_verdict.map(|sum| sum.bytes).sum::<u64>());
        }
        for (sender, field) in BY_SENDER {
            let of_sender = books.judged.chunks(usize::from(verdict::N));
            let of_sender = of_sender.skip(usize::from(sender)).take(1).flatten();
            record.set(field, of_sender.map(|sum| sum.bytes).sum::<u64>());
        }
        for (reason, field) in BY_REASON {
            record.set(field, books.unjudged[usize::from(reason)].bytes);
        }
        record.set(Field::BytesDropped, bytes(&books.dropped));
        record
    }
}

fn bytes(totals: &[UplinkTotals]) -> u64 {
    totals.iter().map(|sum| sum.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(bytes: u64) -> UplinkTotals {
        UplinkTotals {
            bytes,
            wire_bytes: bytes + 1,
            frames: 1,
        }
    }

    fn record(balance: Option<Balance>) -> Record {
        let mut books = UplinkBooks::default();
        let at = |sender: u8, verdict: u8| usize::from(sender * verdict::N + verdict);
        books.judged[at(sender::SOCKET, verdict::APPROVED)] = totals(1);
        books.judged[at(sender::FORWARDED, verdict::APPROVED)] = totals(10);
        books.judged[at(sender::PACKET, verdict::UNDETERMINED)] = totals(100);
        books.unjudged[usize::from(unjudged::LLDP)] = totals(1000);
        books.dropped[usize::from(verdict::DENIED)] = totals(10_000);
        Record::books(&Balanced {
            uplink: "eth0",
            since_us: 0,
            time_us: 0,
            books: &books,
            balance,
        })
    }

    #[test]
    fn every_sum_is_in_its_field() {
        let record = record(Some(Balance {
            earlier_bytes: 5,
            sent_bytes: 1111,
            ..Balance::default()
        }));
        for (field, bytes) in [
            (Field::BytesApproved, 11),
            (Field::BytesUndetermined, 100),
            (Field::BytesDenied, 0),
            (Field::BytesSocket, 1),
            (Field::BytesKernel, 0),
            (Field::BytesForwarded, 10),
            (Field::BytesPacketSocket, 100),
            (Field::BytesLldp, 1000),
            (Field::BytesDropped, 10_000),
            (Field::BytesWire, 1115),
            (Field::BytesSent, 1111),
            (Field::BytesUnaccounted, 0),
            (Field::BytesBefore, 5),
        ] {
            assert_eq!(record.number(field), Some(bytes), "{}", field.name());
        }
        assert_eq!(record.priority(), Priority::Info);
        assert_eq!(
            record.message(),
            "Books of uplink eth0: 111 B judged, 1.0 kB not to be judged, nothing else left by it"
        );
    }

    #[test]
    fn what_no_hook_saw_is_a_warning() {
        let record = record(Some(Balance {
            unaccounted_bytes: 7,
            ..Balance::default()
        }));
        assert_eq!(record.priority(), Priority::Warning);
        assert_eq!(record.text(Field::State), Some("partly"));
        assert!(
            record
                .message()
                .ends_with("7 B left by it that no hook saw")
        );
    }

    #[test]
    fn an_interface_that_came_while_somebody_watched_has_a_gap() {
        let record = Record::uplink("eth1", Some(42), true, 0);
        assert_eq!(record.text(Field::State), Some("partly"));
        assert_eq!(record.number(Field::BytesBefore), Some(42));
        let record = Record::uplink("eth1", Some(42), false, 0);
        assert_eq!(record.text(Field::State), Some("covered"));
        let record = Record::uplink("eth1", None, false, 0);
        assert_eq!(record.number(Field::BytesBefore), None);
    }
}
