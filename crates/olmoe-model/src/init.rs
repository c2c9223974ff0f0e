//! Initial parameters, drawn so that each element depends only on the seed, the name of the parameter and its position.
//!
//! A parameter is divided into chunks of [`CHUNK`] elements. Each chunk has its own PCG generator (XSL RR 128/64),
//! seeded with 256 bits that SplitMix64 derives from the seed, the FNV-1a hash of the name and the index of the chunk.
//! So the result does not depend on the order of parameters, the number of threads or the presence of other parameters.
//!
//! Normal draws use Marsaglia's polar method in f64: for `u`, `v` uniform in (-1, 1) with `0 < s = u² + v² < 1`, both
//! `u·f` and `v·f` with `f = sqrt(-2·ln(s)/s)` are standard normal. The method uses only additions, products,
//! quotients, a square root and the logarithm of [`olmoe_tensor::elementary`], which give the same bits on every
//! machine.
//!
//! Truncation repeats draws until one lies within the cutoff, which gives the distribution of PyTorch's
//! `trunc_normal_`: `std` stays that of the normal before truncation (at a cutoff of 3 the result has 0.9866 of it).

use olmoe_tensor::elementary::ln;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use crate::parameters::{InitRule, ParameterSpec};

/// Elements that share one generator. Part of the definition of the result: another number gives other initial
/// parameters.
pub const CHUNK: usize = 1 << 16;

/// Below this cutoff, uniform proposals are accepted more often than normal ones.
const MIN_NORMAL_PROPOSAL: f64 = 1.0;

/// Fills `out` with the initial values of the whole parameter.
///
/// # Panics
/// If `out` does not have as many elements as the parameter.
pub fn initialize(spec: &ParameterSpec, seed: u64, out: &mut [f32]) {
    assert_eq!(out.len(), spec.num_elements(), "the buffer of `{}` must hold the whole parameter", spec.name);
    for (index, chunk) in out.chunks_mut(CHUNK).enumerate() {
        initialize_chunk(spec, seed, index, chunk);
    }
}

/// Fills `out` with the values of the elements from `index * CHUNK` on of the parameter, at most [`CHUNK`] of them.
/// Chunks are independent, so they can be filled in any order and on any thread, and a part of a parameter can be drawn
/// alone.
///
/// # Panics
/// If `out` is longer than [`CHUNK`].
pub fn initialize_chunk(spec: &ParameterSpec, seed: u64, index: usize, out: &mut [f32]) {
    assert!(out.len() <= CHUNK, "a chunk of `{}` has at most {CHUNK} elements", spec.name);
    match spec.init {
        InitRule::Zeros => out.fill(0.0),
        InitRule::Ones => out.fill(1.0),
        InitRule::Uniform { bound } => {
            let mut source = NormalDraws::new(seed, &spec.name, index as u64);
            for element in out {
                *element = (bound * source.uniform()) as f32;
            }
        }
        InitRule::Normal { std, cutoff_factor } => {
            let mut source = NormalDraws::new(seed, &spec.name, index as u64);
            for element in out {
                *element = (std * source.draw(cutoff_factor)) as f32;
            }
        }
    }
}

/// Noise that replaces some elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Probability that an element is replaced, independently of the others.
    pub share: f64,
    /// Standard deviation of the replacement; the mean is 0.
    pub std: f64,
}

/// Replaces some elements of `out` by noise; `out` has the elements from `index * CHUNK` on of the parameter with that
/// name. Chunks are independent, as in [`initialize_chunk`]; the draws differ from those that initialise the parameter.
///
/// # Panics
/// If `out` is longer than [`CHUNK`].
pub fn add_noise_to_chunk(name: &str, noise: Noise, seed: u64, index: usize, out: &mut [f32]) {
    assert!(out.len() <= CHUNK, "a chunk of `{name}` has at most {CHUNK} elements");
    // No parameter has a name with a space, so no parameter is initialised with these draws.
    let mut source = NormalDraws::new(seed, &format!("{name} noise"), index as u64);
    for element in out {
        if 0.5 * (source.uniform() + 1.0) < noise.share {
            *element = (noise.std * source.normal()) as f32;
        }
    }
}

/// Normal draws of one chunk.
struct NormalDraws {
    generator: Pcg64,
    /// The second of the last pair, until it is used.
    spare: Option<f64>,
}

impl NormalDraws {
    fn new(seed: u64, name: &str, chunk: u64) -> Self {
        let mut state = mix(seed) ^ fnv1a(name.as_bytes());
        state = mix(state) ^ chunk;
        let mut bytes = [0; 32];
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(GOLDEN);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        Self { generator: Pcg64::from_seed(bytes), spare: None }
    }

    /// One standard normal draw, within `cutoff` of 0 if there is one.
    fn draw(&mut self, cutoff: Option<f64>) -> f64 {
        match cutoff {
            None => self.normal(),
            Some(cutoff) if cutoff < MIN_NORMAL_PROPOSAL => loop {
                let proposal = cutoff * self.uniform();
                // Accept with probability exp(-x²/2), compared as logarithms.
                let level = 0.5 * (self.uniform() + 1.0);
                if ln(level) <= -0.5 * proposal * proposal {
                    return proposal;
                }
            },
            Some(cutoff) => loop {
                let proposal = self.normal();
                if proposal.abs() <= cutoff {
                    return proposal;
                }
            },
        }
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (self.uniform(), self.uniform());
            let s = u * u + v * v;
            if s < 1.0 {
                let factor = (-2.0 * ln(s) / s).sqrt();
                self.spare = Some(v * factor);
                return u * factor;
            }
        }
    }

    /// Uniform in (-1, 1), never 0: the midpoints of 2^53 equal parts.
    fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 52) as f64;
        let index = (self.generator.next_u64() >> 11) as i64 - (1 << 52);
        (index as f64 + 0.5) * STEP
    }
}

/// The increment of SplitMix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64: a bijection in which every input bit affects every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The 64-bit FNV-1a hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{ModuleId, ModulePart, ParameterKind};

    fn spec(name: &str, len: usize, std: f64, cutoff_factor: Option<f64>) -> ParameterSpec {
        let init = InitRule::Normal { std, cutoff_factor };
        let module = ModuleId { layer: None, part: ModulePart::Head };
        ParameterSpec { module, name: name.into(), shape: vec![len], kind: ParameterKind::Linear, init }
    }

    fn draw(spec: &ParameterSpec, seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; spec.num_elements()];
        initialize(spec, seed, &mut out);
        out
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Mean, standard deviation and fourth moment over the squared variance.
    fn moments(values: &[f32]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let power = |p: i32| values.iter().map(|&value| f64::from(value).powi(p)).sum::<f64>() / n;
        let variance = power(2) - power(1).powi(2);
        (power(1), variance.sqrt(), power(4) / variance.powi(2))
    }

    #[test]
    fn the_logarithm_agrees_with_the_system() {
        let mut source = NormalDraws::new(1, "ln", 0);
        for _ in 0..100_000 {
            let x = (source.uniform().abs()).powi(3);
            let (own, system) = (ln(x), x.ln());
            assert!((own - system).abs() <= 4e-16 * system.abs().max(1.0), "ln({x}) = {own}, not {system}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn moments_of_the_normal() {
        const N: usize = 1 << 20;
        for (seed, std) in [(0, 0.02), (1, 1.0), (u64::MAX, 3.5)] {
            let (mean, deviation, kurtosis) = moments(&draw(&spec("w", N, std, None), seed));
            let n = (N as f64).sqrt();
            assert!(mean.abs() < 5.0 * std / n, "mean {mean}");
            assert!((deviation / std - 1.0).abs() < 5.0 / (n * 2f64.sqrt()), "deviation {deviation}");
            assert!((kurtosis - 3.0).abs() < 5.0 * 24f64.sqrt() / n, "kurtosis {kurtosis}");
        }
    }

    #[test]
    fn truncation_bounds_the_values_and_keeps_the_parent_deviation() {
        const N: usize = 1 << 20;
        // Deviation of a standard normal truncated at c, by sqrt(1 - 2·c·pdf(c)/(2·cdf(c) - 1)).
        for (cutoff, factor) in [(3.0, 0.986_578), (2.0, 0.879_626), (1.0, 0.539_560), (0.5, 0.283_883)] {
            let values = draw(&spec("w", N, 0.02, Some(cutoff)), 7);
            let bound = (0.02 * cutoff) as f32;
            assert!(values.iter().all(|value| value.abs() <= bound));
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest > 0.99 * bound);
            let (mean, deviation, _) = moments(&values);
            assert!(mean.abs() < 5.0 * 0.02 / (N as f64).sqrt());
            let ratio = deviation / f64::from(0.02f32);
            assert!((ratio / factor - 1.0).abs() < 5e-3, "cutoff {cutoff}: {ratio}, not {factor}");
        }
        let tiny = draw(&spec("w", 1000, 1.0, Some(1e-12)), 7);
        assert!(tiny.iter().all(|value| value.abs() <= 1e-12));
    }

    #[test]
    fn the_same_seed_and_name_give_the_same_bits() {
        let weight = spec("layers.0.moe.router.weight", CHUNK + 10, 0.02, Some(3.0));
        let first = draw(&weight, 6198);
        assert_eq!(bits(&first), bits(&draw(&weight, 6198)));
        assert_ne!(bits(&first), bits(&draw(&weight, 6199)));
        let other = ParameterSpec { name: "layers.1.moe.router.weight".into(), ..weight };
        assert_ne!(bits(&first), bits(&draw(&other, 6198)));
    }

    #[test]
    fn the_bits_never_change() {
        // The first draws of seed 0: an accidental change of the stream would change the initial parameters for all
        // seeds.
        let values = draw(&spec("norm.weight", 4, 1.0, None), 0);
        assert_eq!(values, [-1.2721697, 0.71313214, 0.86378115, 1.3654218]);
    }

    #[test]
    fn noise_takes_the_place_of_its_share() {
        const N: usize = 1 << 20;
        for share in [0.0, 0.1, 0.5, 1.0] {
            let mut values = vec![7.0f32; N];
            for (index, chunk) in values.chunks_mut(CHUNK).enumerate() {
                add_noise_to_chunk("w", Noise { share, std: 0.02 }, 5, index, chunk);
            }
            let replaced: Vec<f32> = values.into_iter().filter(|&value| value != 7.0).collect();
            let spread = (share * (1.0 - share) / N as f64).sqrt();
            assert!((replaced.len() as f64 / N as f64 - share).abs() <= 5.0 * spread, "{} for {share}", replaced.len());
            if share > 0.0 {
                let (mean, deviation, kurtosis) = moments(&replaced);
                let n = (replaced.len() as f64).sqrt();
                assert!(mean.abs() < 5.0 * 0.02 / n && (deviation / 0.02 - 1.0).abs() < 5.0 / (n * 2f64.sqrt()));
                assert!((kurtosis - 3.0).abs() < 5.0 * 24f64.sqrt() / n, "kurtosis {kurtosis}");
            }
        }
        // The draws of a seed never change, and they are not those that initialise the parameter.
        let mut values = [7.0f32; 6];
        add_noise_to_chunk("w", Noise { share: 0.5, std: 1.0 }, 0, 0, &mut values);
        assert_eq!(values, [7.0, 7.0, -0.4491132, 7.0, -0.861504, -0.13419499]);
    }

    #[test]
    fn chunks_do_not_depend_on_each_other() {
        let weight = spec("w", 3 * CHUNK + 17, 0.02, None);
        let whole = draw(&weight, 3);
        for index in (0..4).rev() {
            let part = &whole[index * CHUNK..whole.len().min((index + 1) * CHUNK)];
            let mut alone = vec![f32::NAN; part.len()];
            initialize_chunk(&weight, 3, index, &mut alone);
            assert_eq!(bits(part), bits(&alone));
        }
        // A shorter parameter of the same name begins with the same values, and neighbouring chunks are unrelated.
        assert_eq!(bits(&draw(&spec("w", 100, 0.02, None), 3)), bits(&whole[..100]));
        let pairs = whole[..CHUNK].iter().zip(&whole[CHUNK..2 * CHUNK]);
        let covariance: f64 = pairs.map(|(a, b)| f64::from(a * b)).sum::<f64>() / CHUNK as f64;
        assert!(covariance.abs() < 5.0 * 0.02 * 0.02 / (CHUNK as f64).sqrt(), "{covariance}");
    }

    #[test]
    fn constants_and_empty_parameters() {
        for (init, expected) in [(InitRule::Zeros, 0.0), (InitRule::Ones, 1.0)] {
            let constant = ParameterSpec { init, ..spec("b", 5, 1.0, None) };
            assert_eq!(draw(&constant, 1), [expected; 5]);
        }
        assert!(draw(&spec("e", 0, 1.0, None), 1).is_empty());
        assert!(draw(&spec("z", 3, 0.0, None), 1).iter().all(|value| *value == 0.0));
    }

    #[test]
    #[should_panic(expected = "must hold the whole parameter")]
    fn a_buffer_of_another_size_is_refused() {
        initialize(&spec("w", 4, 1.0, None), 0, &mut [0.0; 3]);
    }
}
