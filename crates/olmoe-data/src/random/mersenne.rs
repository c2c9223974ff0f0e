//! The Mersenne twister MT19937 of Matsumoto and Nishimura (1998), as Python and NumPy seed it and draw from it.

const N: usize = 624;
const M: usize = 397;

/// MT19937.
#[derive(Clone)]
pub struct Mersenne {
    state: [u32; N],
    /// The index of the next word of the state to output.
    at: usize,
}

impl Mersenne {
    /// `random.seed(seed)` of Python.
    pub fn python(seed: u64) -> Mersenne {
        let words = [seed as u32, (seed >> 32) as u32];
        let key = if words[1] == 0 { &words[..1] } else { &words };
        let mut state = Mersenne::numpy(19_650_218).state;
        let mut i = 1;
        for k in 0..2 * N - 1 {
            let last = state[i - 1];
            let last = last ^ (last >> 30);
            if k < N {
                let j = k % key.len();
                state[i] = (state[i] ^ last.wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            } else {
                state[i] = (state[i] ^ last.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            }
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 1 << 31;
        Mersenne { state, at: N }
    }

    /// `numpy.random.seed(seed)`.
    pub fn numpy(seed: u32) -> Mersenne {
        let mut state = [seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Mersenne { state, at: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.at >= N {
            for i in 0..N {
                let y = self.state[i] & (1 << 31) | self.state[(i + 1) % N] & !(1 << 31);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// `random.random()`, which is `numpy.random.random_sample()` too: uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        let (high, low) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `random.randrange(bound)`: below `bound`, which is not 0. `random.choice(items)` of Python is the item with the
    /// index `below(items.len())`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let bits = 64 - bound.leading_zeros();
        loop {
            // Words come lowest first; the last one contributes its highest bits.
            let mut drawn = 0;
            for word in (0..bits).step_by(32) {
                let wanted = (bits - word).min(32);
                drawn |= u64::from(self.next_u32() >> (32 - wanted)) << word;
            }
            if drawn < bound {
                return drawn;
            }
        }
    }

    /// `random.shuffle(items)` of Python.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1);
            items.swap(i, j as usize);
        }
    }

    /// `random.sample(range(population), count)` of Python: distinct indices in the order drawn; all of them where
    /// `count` is greater than `population`, which Python refuses.
    pub fn sample(&mut self, population: usize, count: usize) -> Vec<usize> {
        let count = count.min(population);
        // Python keeps a pool of what is left where that takes less memory than a set of what was drawn.
        let mut set_size = 21;
        if count > 5 {
            set_size += 4usize.pow((3.0 * count as f64).log(4.0).ceil() as u32);
        }
        if population <= set_size {
            let mut pool: Vec<usize> = (0..population).collect();
            let mut drawn = Vec::with_capacity(count);
            for taken in 0..count {
                let j = self.below((population - taken) as u64) as usize;
                drawn.push(pool[j]);
                pool[j] = pool[population - taken - 1];
            }
            return drawn;
        }
        let mut drawn = Vec::with_capacity(count);
        let mut seen = std::collections::HashSet::with_capacity(count);
        while drawn.len() < count {
            let j = self.below(population as u64) as usize;
            if seen.insert(j) {
                drawn.push(j);
            }
        }
        drawn
    }

    /// `numpy.random.choice(len(p), p=p)`, where `p` sums to 1.
    pub fn choice(&mut self, p: &[f64]) -> usize {
        let sum_with = |sum: &mut f64, p: &f64| {
            *sum += p;
            Some(*sum)
        };
        let cumulated: Vec<f64> = p.iter().scan(0.0, sum_with).collect();
        let sum = cumulated.last().copied().unwrap_or(1.0);
        let drawn = self.uniform();
        cumulated.partition_point(|c| *c / sum <= drawn).min(p.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_and_numpy_draw_the_same() {
        // Python: random.seed(s); [random.getrandbits(32) for _ in range(2)], then random.random().
        for (seed, words, uniform) in PYTHON {
            let mut random = Mersenne::python(seed);
            assert_eq!([random.next_u32(), random.next_u32()], words, "{seed}");
            assert_eq!(random.uniform(), uniform, "{seed}");
        }
        // Python: random.seed(3920); x = list(range(20)); random.shuffle(x)
        let mut items: Vec<u32> = (0..20).collect();
        Mersenne::python(3920).shuffle(&mut items);
        assert_eq!(items, SHUFFLED);
        // Python: random.seed(1); [random.randrange(2**40 + 5) for _ in range(3)]
        let mut random = Mersenne::python(1);
        assert_eq!([0; 3].map(|_| random.below((1 << 40) + 5)), WIDE);
        // NumPy: numpy.random.seed(3920); [numpy.random.choice(4, p=[.1, .2, .3, .4]) for _ in range(12)]
        let mut random = Mersenne::numpy(3920);
        assert_eq!([0; 12].map(|_| random.choice(&[0.1, 0.2, 0.3, 0.4])), CHOSEN);
        // More words than the state holds.
        let mut random = Mersenne::python(6198);
        let sum = (0..2000).fold(0u64, |sum, _| sum + u64::from(random.next_u32()));
        assert_eq!(sum, SUM);
        // Python: r = random.Random(42); r.sample(range(n), k), one after the other: pools and sets.
        let mut random = Mersenne::python(42);
        for (population, count, drawn) in SAMPLES {
            assert_eq!(random.sample(population, count), drawn, "{population} {count}");
        }
        // Python: random.Random(1234).sample(range(10000), 8)
        assert_eq!(Mersenne::python(1234).sample(10_000, 8), [7220, 1914, 122, 1485, 9539, 572, 1375, 1612]);
        assert_eq!(Mersenne::python(1).sample(3, 9).len(), 3);
        assert!(Mersenne::python(1).sample(0, 2).is_empty());
        for len in 0..3u32 {
            let mut items: Vec<u32> = (0..len).collect();
            Mersenne::python(0).shuffle(&mut items);
            items.sort_unstable();
            assert_eq!(items, (0..len).collect::<Vec<_>>());
        }
    }

    const PYTHON: [(u64, [u32; 2], f64); 4] = [
        (0, [3626764237, 1654615998], 0.7579544029403025),
        (3920, [3574766655, 3903044131], 0.532571277789377),
        (4294967295, [2728839433, 2661025012], 0.20319993954407756),
        (1099511627783, [2635837658, 3209733218], 0.8149162973309487),
    ];
    const SHUFFLED: [u32; 20] = [0, 9, 7, 12, 1, 8, 19, 10, 3, 13, 15, 11, 4, 6, 2, 16, 14, 18, 5, 17];
    const WIDE: [u64; 3] = [140719340484, 258793550908, 1037017667747];
    const CHOSEN: [usize; 12] = [0, 0, 3, 2, 1, 3, 3, 3, 3, 1, 3, 1];
    const SAMPLES: [(usize, usize, &[usize]); 7] = [
        (1000, 4, &[654, 114, 25, 759]),
        (20, 5, &[8, 7, 18, 4, 3]),
        (21, 5, &[17, 2, 18, 13, 1]),
        (22, 5, &[0, 2, 6, 7, 16]),
        (85, 20, &[77, 3, 71, 25, 69, 53, 28, 57, 75, 35, 0, 20, 54, 43, 76, 19, 27, 82, 13, 11]),
        (86, 21, &[48, 12, 45, 44, 77, 33, 5, 58, 68, 15, 10, 70, 37, 80, 79, 46, 73, 24, 8, 84, 29]),
        (8_589_934_592, 3, &[7_615_270_538, 4_231_494_220, 3_673_561_638]),
    ];
    const SUM: u64 = 4236967392355;
}
