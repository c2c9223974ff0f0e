//! NumPy's `Generator(PCG64(seed))`: PCG XSL-RR 128/64 of O'Neill (2014), seeded by NumPy's `SeedSequence`.

use rand_core::Rng;
use rand_pcg::Pcg64;

/// `numpy.random.Generator(numpy.random.PCG64(seed))`.
pub struct Pcg {
    words: Pcg64,
    /// The upper half of a word whose lower half was output.
    half: Option<u32>,
}

impl Pcg {
    /// Seeds the generator.
    pub fn new(seed: u64) -> Pcg {
        let [a, b, c, d] = seed_sequence(seed).map(u128::from);
        Pcg { words: Pcg64::new(a << 64 | b, c << 64 | d), half: None }
    }

    /// The next 32 bits: the lower half of a 64-bit word, then its upper half.
    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let word = self.words.next_u64();
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// Uniform in `0..=last`, by masking and rejecting: the way NumPy's shuffles draw.
    pub fn up_to(&mut self, last: u32) -> u32 {
        if last == 0 {
            return 0;
        }
        let mask = u32::MAX >> last.leading_zeros();
        loop {
            let drawn = self.next_u32() & mask;
            if drawn <= last {
                return drawn;
            }
        }
    }

    /// `Generator.shuffle(items)`.
    pub fn shuffle(&mut self, items: &mut [u32]) {
        // An order has fewer than 2^32 instances.
        for i in (1..items.len()).rev() {
            let j = self.up_to(i as u32);
            items.swap(i, j as usize);
        }
    }
}

/// `numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5u32;
    let mut hash = |mut x: u32| {
        x ^= constant;
        constant = constant.wrapping_mul(0x931e_8875);
        x = x.wrapping_mul(constant);
        x ^ x >> 16
    };
    // A seed has as many words as it needs; missing words count as zeros.
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                let hashed = hash(pool[from]);
                let mixed = pool[to].wrapping_mul(0xca01_f9dd).wrapping_sub(hashed.wrapping_mul(0x4973_f715));
                pool[to] = mixed ^ mixed >> 16;
            }
        }
    }
    let mut constant = 0x8b51_f9ddu32;
    let mut word = |i: usize| {
        let mut x = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        x = x.wrapping_mul(constant);
        u64::from(x ^ x >> 16)
    };
    [0, 2, 4, 6].map(|i| word(i) | word(i + 1) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_draws_the_same() {
        // NumPy: SeedSequence(s).generate_state(4, uint64), then PCG64(s).random_raw(2) in halves, low first.
        for (seed, state, halves) in SEEDS {
            assert_eq!(seed_sequence(seed), state, "{seed}");
            let mut random = Pcg::new(seed);
            assert_eq!([0; 4].map(|_| random.next_u32()), halves, "{seed}");
        }
        // The same words, masked and rejected, for bounds up to the highest that a 32-bit index can have.
        for (last, drawn) in UP_TO {
            let mut random = Pcg::new(6198);
            assert_eq!([0; 6].map(|_| random.up_to(last)), drawn, "{last}");
        }
        assert_eq!(Pcg::new(1).up_to(0), 0);
    }

    const SEEDS: [(u64, [u64; 4], [u32; 4]); 4] = [
        (
            0,
            [15793235383387715774, 12390638538380655177, 2361836109651742017, 3188717715514472916],
            [3653403231, 2735729615, 2195314465, 1158725112],
        ),
        (
            6198,
            [18226109254346334829, 11509511256931753152, 6908304897609655621, 406285045705944941],
            [4285386229, 3025379164, 996601729, 1229179262],
        ),
        (
            4294967295,
            [3028043900922232328, 2320167514380599704, 17098690511671083926, 6235634683512324349],
            [819527071, 1082089385, 3110619138, 940880430],
        ),
        (
            1099511627783,
            [974592680304384533, 11164224302760304993, 11068753026110695683, 4650291916314288918],
            [886972842, 3564019232, 2617800309, 1096527305],
        ),
    ];
    const UP_TO: [(u32, [u32; 6]); 7] = [
        (1, [1, 0, 1, 0, 0, 1]),
        (2, [1, 0, 1, 2, 0, 1]),
        (6, [5, 4, 1, 6, 0, 5]),
        (65535, [52725, 40796, 61313, 51582, 56136, 49367]),
        (65536, [61313, 56136, 42781, 20871, 10593, 45090]),
        (2147483648, [996601729, 1229179262, 1559550792, 1924251863, 897885981, 240776617]),
        (4294967294, [4285386229, 3025379164, 996601729, 1229179262, 1559550792, 1924251863]),
    ];
}
