//! The same destinations looked up in the kernel's LPM tries.

use std::{path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::lpm_trie::{Key, LpmTrie},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use ipnetwork::IpNetwork;
use maxminddb::{Reader, WithinOptions};
use trefoil_ebpf::abi::{MAX_QUESTIONS, Question};

/// The tries of a country table, and the program that asks them.
pub struct Tries {
    ebpf: Ebpf,
    /// Prefixes in both.
    pub n_prefixes: usize,
}

impl Tries {
    /// Loads the program and every network of the table.
    pub fn load(object: &Path, table: &Path) -> Self {
        let mut ebpf = Ebpf::load(&std::fs::read(object).unwrap()).unwrap();
        let reader = Reader::open_readfile(table).unwrap();
        let mut n_prefixes = 0;
        let mut v4: LpmTrie<_, [u8; 4], u32> =
            ebpf.take_map("PREFIXES32").unwrap().try_into().unwrap();
        let mut v6: LpmTrie<_, [u8; 16], u32> =
            ebpf.take_map("PREFIXES128").unwrap().try_into().unwrap();
        for found in reader.networks(WithinOptions::default()).unwrap() {
            let network = found.unwrap().network().unwrap();
            let len = u32::from(network.prefix());
            n_prefixes += 1;
            match network {
                IpNetwork::V4(network) => v4.insert(&Key::new(len, network.ip().octets()), 1, 0),
                IpNetwork::V6(network) => v6.insert(&Key::new(len, network.ip().octets()), 1, 0),
            }
            .unwrap();
        }
        let program: &mut SchedClassifier = ebpf
            .program_mut("trie_question")
            .unwrap()
            .try_into()
            .unwrap();
        program.load().unwrap();
        Self { ebpf, n_prefixes }
    }

    /// How long the program runs for all questions.
    pub fn ask(&mut self, questions: &[Question]) -> Duration {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut("trie_question")
            .unwrap()
            .try_into()
            .unwrap();
        let mut duration = Duration::ZERO;
        for batch in questions.chunks(MAX_QUESTIONS) {
            let mut packet = vec![0; 14];
            for question in batch {
                packet.extend_from_slice(&[0; 16]);
                packet.extend_from_slice(&question.peer.address.0);
                packet.extend_from_slice(&[0; 16]);
            }
            let options = TestRunOptions {
                data_in: Some(&packet),
                ..TestRunOptions::default()
            };
            duration += program.test_run(options).unwrap().duration;
        }
        duration
    }
}
