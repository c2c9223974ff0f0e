//! Random numbers of tokens, from a key for each token: the same in every pass, for any batch and on any number of
//! threads.

use crate::tensor::Tensor;
use crate::threads::{Shared, parallel_ranges};

/// The increment of SplitMix64.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds uniform numbers between −a and a to the rows of tokens, `x [T, D]`, whose keys are `keys_t [T]`: the noise of
/// NEFTune (Jain et al., arXiv 2310.05914).
///
/// # Panics
/// Unless there is a key for each token.
pub fn add_uniform(x: &mut Tensor, keys_t: &[u64], a: f32) {
    assert_eq!(keys_t.len(), x.rows(), "a key for each token");
    let width = x.cols();
    let x = Shared::new(x);
    parallel_ranges(keys_t.len(), 8, |some| {
        for t in some {
            // SAFETY: each token is another row.
            let row = unsafe { x.range(t * width..(t + 1) * width) };
            for (at, x) in row.iter_mut().enumerate() {
                let bits = mix(keys_t[t].wrapping_add((at as u64 + 1).wrapping_mul(GOLDEN))) >> 40;
                *x += a * ((bits as f32 + 0.5) / 8_388_608.0 - 1.0);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_uniform_and_of_the_token() {
        let (tokens, width) = (300, 64);
        let keys: Vec<u64> = (0..tokens as u64).map(|t| mix(t * 7)).collect();
        let mut x = Tensor::zeros(&[tokens, width]);
        add_uniform(&mut x, &keys, 0.5);
        let mean: f64 = x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
        let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(x.iter().all(|x| x.abs() <= 0.5));
        assert!(mean.abs() < 0.01 && (square * 12.0 - 1.0).abs() < 0.03, "{mean} {square}");
        let mut alone = Tensor::zeros(&[1, width]);
        add_uniform(&mut alone, &keys[41..42], 0.5);
        assert_eq!(alone[..], *x.row(41));
    }
}
