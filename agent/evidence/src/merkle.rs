//! Merkle trees as in RFC 6962, section 2.1.

use sha2::{Digest, Sha256};

/// SHA-256 of a leaf or of a node.
pub type Hash = [u8; 32];

/// Hash of the leaf with this entry.
#[must_use]
pub fn leaf(entry: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(entry)
        .finalize()
        .into()
}

/// Hash of the node over two subtrees.
#[must_use]
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The right edge of a tree: enough to add leaves and to know the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, from the largest on: one for each bit that is set in `size`.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The edge of a tree of `size` leaves with these full subtrees, from the largest on. `None` if
    /// a tree of that size has another number of them.
    #[must_use]
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the full subtrees, from the largest on.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds the hash of a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            // One full subtree of each size below.
            let Some(left) = self.peaks.pop() else { break };
            hash = node(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Hash of the whole tree; of nothing, if it has no leaf.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Sha256::digest([]).into();
        };
        peaks.fold(*last, |hash, peak| node(peak, &hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs and roots of the test of Certificate Transparency's reference implementation.
    const INPUTS: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    /// The definition of RFC 6962, word by word.
    fn root_by_definition(leaves: &[Hash]) -> Hash {
        match leaves.len() {
            0 => Sha256::digest([]).into(),
            1 => leaves[0],
            n => {
                let left = n.next_power_of_two() / 2;
                node(
                    &root_by_definition(&leaves[..left]),
                    &root_by_definition(&leaves[left..]),
                )
            }
        }
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let mut tree = Frontier::default();
        for (input, root) in INPUTS.iter().zip(ROOTS) {
            tree.push(leaf(&hex(input)));
            assert_eq!(tree.root().as_slice(), hex(root), "{}", tree.size());
        }
    }

    #[test]
    fn roots_are_those_of_the_definition_and_a_tree_goes_on_from_its_edge() {
        let leaves: Vec<Hash> = (0..300_u32).map(|n| leaf(&n.to_le_bytes())).collect();
        let mut tree = Frontier::default();
        for n in 0..leaves.len() {
            assert_eq!(tree.root(), root_by_definition(&leaves[..n]), "{n}");
            tree = Frontier::new(tree.size(), tree.peaks().to_vec()).unwrap();
            tree.push(leaves[n]);
        }
        assert_eq!(Frontier::new(5, vec![[0; 32]]), None);
    }
}
