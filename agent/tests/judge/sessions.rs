//! Login sessions in the kernel's table, each with an origin of its own, or with none.

use std::{collections::HashMap, net::IpAddr};

use trefoil::{
    kernel::{Reader, Unattached, peer},
    policy::testing::{OwnedQuestion, Random},
};
use trefoil_ebpf::abi::{MAX_SESSIONS, NOBODY_LOGGED_IN, SessionOrigin, quality};

pub struct Sessions {
    reader: Reader,
    known: HashMap<IpAddr, u32>,
    last: u32,
}

impl Sessions {
    pub fn new(kernel: &Unattached) -> Self {
        Self {
            reader: kernel.reader().unwrap(),
            known: HashMap::new(),
            last: 0,
        }
    }

    /// The audit session of a flow: 0 if nothing is known of one.
    pub fn of(&mut self, question: &OwnedQuestion, random: &mut Random) -> u32 {
        match (question.interactive, question.origin) {
            (None, _) => 0,
            (Some(false), _) => NOBODY_LOGGED_IN,
            (Some(true), Some(origin)) => self.from(origin),
            // None, or one that the kernel has not seen.
            (Some(true), None) if random.one_in(2) => u32::MAX / 2,
            (Some(true), None) => self.add("192.0.2.1".parse().unwrap(), quality::INFERRED),
        }
    }

    fn from(&mut self, origin: IpAddr) -> u32 {
        if let Some(known) = self.known.get(&origin) {
            return *known;
        }
        // The kernel forgets those that nobody has asked about for long.
        if self.known.len() > MAX_SESSIONS / 4 {
            self.known.clear();
        }
        let session = self.add(origin, quality::DIRECT);
        self.known.insert(origin, session);
        session
    }

    fn add(&mut self, origin: IpAddr, quality: u8) -> u32 {
        self.last += 1;
        let origin = SessionOrigin {
            peer: peer(origin, 50_000, 6),
            quality,
            ..SessionOrigin::default()
        };
        self.reader.add_session(self.last, origin).unwrap();
        self.last
    }
}
