//! Uniform numbers for draws: a stream for each sample, which never changes.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// Uniform numbers: PCG XSL RR 128/64 (O'Neill 2014), seeded with 256 bits that SplitMix64 (Steele et al. 2014) derives
/// from the seed and the number of the sample. Each drawn token takes one number.
#[derive(Clone, Debug)]
pub struct Stream(Pcg64);

/// The increment of SplitMix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64: a bijection in which every input bit affects every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A seed derived from a seed and a number, so that consecutive seeds and numbers give unrelated seeds.
pub fn derive(seed: u64, number: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ number)
}

impl Stream {
    /// The stream of a sample.
    pub fn new(seed: u64, sample: u64) -> Stream {
        let mut state = derive(seed, sample);
        let mut bytes = [0; 32];
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(GOLDEN);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        Stream(Pcg64::from_seed(bytes))
    }

    /// The next number: uniform in 0 ≤ u < 1, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_never_changes() {
        let mut stream = Stream::new(42, 0);
        let first: [f64; 3] = std::array::from_fn(|_| stream.uniform());
        // The numbers of NumPy's PCG64 from the same state. A change of the stream would change the texts of all seeds.
        assert_eq!(first, [0.18445394049252406, 0.7643670060864782, 0.3693842744043162]);
    }

    #[test]
    fn streams_are_uniform_and_unrelated() {
        const N: usize = 100_000;
        let draw = |seed, sample| {
            let mut stream = Stream::new(seed, sample);
            (0..N).map(move |_| stream.uniform()).collect::<Vec<f64>>()
        };
        let base = draw(1, 0);
        let mean = |x: &mut dyn Iterator<Item = f64>| x.sum::<f64>() / N as f64;
        assert!((mean(&mut base.iter().copied()) - 0.5).abs() < 5.0 * (1.0 / 12.0 / N as f64).sqrt());
        let mut bins = [0usize; 100];
        base.iter().for_each(|u| bins[(u * 100.0) as usize] += 1);
        let chi: f64 = bins.iter().map(|n| (*n as f64 - 1000.0).powi(2) / 1000.0).sum();
        // 99 degrees of freedom: 99 ± 5·√198.
        assert!((29.0..170.0).contains(&chi), "{chi}");
        for (seed, sample) in [(2, 0), (0, 0), (1, 1), (1, 2), (u64::MAX, 0), (0, 1)] {
            let other = draw(seed, sample);
            let products = &mut base.iter().zip(&other).map(|(a, b)| (a - 0.5) * (b - 0.5));
            let covariance = mean(products);
            assert!(covariance.abs() < 5.0 / 12.0 / (N as f64).sqrt(), "seed {seed}, sample {sample}: {covariance}");
        }
    }
}
