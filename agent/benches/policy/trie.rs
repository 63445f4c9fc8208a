//! The same destinations looked up in the kernel's LPM tries.

use std::{path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::lpm_trie::{Key, LpmTrie},
    programs::SchedClassifier,
};
use ipnetwork::IpNetwork;
use maxminddb::{Reader, WithinOptions};
use trefoil::kernel;
use trefoil_ebpf::abi::Question;

const TRIE: &str = "trie_question";
const NOTHING: &str = "no_question";
/// The value of every prefix.
const FOUND: u32 = 1;

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
                IpNetwork::V4(network) => {
                    v4.insert(&Key::new(len, network.ip().octets()), FOUND, 0)
                }
                IpNetwork::V6(network) => {
                    v6.insert(&Key::new(len, network.ip().octets()), FOUND, 0)
                }
            }
            .unwrap();
        }
        for name in [TRIE, NOTHING] {
            program(&mut ebpf, name).load().unwrap();
        }
        Self { ebpf, n_prefixes }
    }

    /// How long the look-ups of all destinations take, each of which is in a prefix.
    pub fn ask(&mut self, questions: &[Question]) -> Duration {
        let (answers, duration) = kernel::ask(program(&mut self.ebpf, TRIE), questions).unwrap();
        let n_found = answers.iter().filter(|answer| **answer == FOUND).count();
        assert!(n_found == questions.len(), "{n_found} were found");
        duration
    }

    /// How long it takes to read all questions and to answer nothing.
    pub fn ask_nothing(&mut self, questions: &[Question]) -> Duration {
        kernel::ask(program(&mut self.ebpf, NOTHING), questions)
            .unwrap()
            .1
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut SchedClassifier {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}
