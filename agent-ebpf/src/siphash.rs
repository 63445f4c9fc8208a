//! SipHash-2-4: a hash whose collisions nobody finds who does not know its key.
//!
//! For messages of whole words, and a last one with the rest and the length.

/// A hash in the making.
#[derive(Clone, Copy, Debug)]
pub struct SipHash {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
}

impl SipHash {
    /// The hash of nothing yet, under a key of 128 bits.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: [u64; 2]) -> Self {
        Self {
            a: key[0] ^ 0x736f_6d65_7073_6575,
            b: key[1] ^ 0x646f_7261_6e64_6f6d,
            c: key[0] ^ 0x6c79_6765_6e65_7261,
            d: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.a = self.a.wrapping_add(self.b);
        self.b = self.b.rotate_left(13) ^ self.a;
        self.a = self.a.rotate_left(32);
        self.c = self.c.wrapping_add(self.d);
        self.d = self.d.rotate_left(16) ^ self.c;
        self.a = self.a.wrapping_add(self.d);
        self.d = self.d.rotate_left(21) ^ self.a;
        self.c = self.c.wrapping_add(self.b);
        self.b = self.b.rotate_left(17) ^ self.c;
        self.c = self.c.rotate_left(32);
    }

    /// Takes in eight bytes, little-endian.
    #[inline(always)]
    pub const fn word(&mut self, word: u64) {
        self.d ^= word;
        self.round();
        self.round();
        self.a ^= word;
    }

    /// Takes in the last seven bytes or fewer, below the length of the message in the highest
    /// byte, and returns the hash.
    #[inline(always)]
    #[must_use]
    pub const fn finish(mut self, last: u64) -> u64 {
        self.word(last);
        self.c ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.a ^ self.b ^ self.c ^ self.d
    }
}

#[cfg(test)]
mod tests {
    use super::SipHash;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn it_is_the_hash_that_its_authors_published() {
        let mut hash = SipHash::new(KEY);
        hash.word(0x0706_0504_0302_0100);
        assert_eq!(hash.finish(0x0f0e_0d0c_0b0a_0908), 0xa129_ca61_49be_45e5);
        assert_eq!(SipHash::new(KEY).finish(0), 0x726f_db47_dd0e_0e31);
    }

    /// A multiplication carries the highest bit nowhere: whatever the key, these two were one.
    #[test]
    fn words_that_differ_in_their_highest_bits_do_not_collide() {
        let of = |first: u64, second: u64| {
            let mut hash = SipHash::new(KEY);
            hash.word(first);
            hash.word(second);
            hash.finish(16 << 56)
        };
        let (first, second) = (0x6e69_622f_7273_752f, 0x786f_622f_6c61_636f);
        let other = of(first ^ 1 << 63, second ^ (1 << 31 | 1 << 63));
        assert_ne!(of(first, second), other);
    }
}
