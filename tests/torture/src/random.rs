//! A small generator (splitmix64): a seed means the same on every machine and in every version.

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `sides`, which must not be 0.
    pub fn dice(&mut self, sides: u64) -> u64 {
        self.number() % sides
    }

    /// True once in `sides` times.
    pub fn one_in(&mut self, sides: u64) -> bool {
        self.dice(sides) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.dice(of.len() as u64) as usize]
    }
}

/// Content of a page that follows from a seed.
pub fn page_of(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..512)
        .flat_map(|_| random.number().to_le_bytes())
        .collect()
}
