//! How likely one of k programs passes.

/// The unbiased estimate of the probability that at least one of `k` programs passes, where `passed` of `samples` did:
/// 1 − C(n−c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1), as the product 1 − Π (1 − k/i) over i from n−c+1
/// to n. `None` if there are fewer than `k` samples, more passed than there are, or `k` is 0.
pub fn pass_at_k(samples: usize, passed: usize, k: usize) -> Option<f64> {
    if k == 0 || k > samples || passed > samples {
        return None;
    }
    if samples - passed < k {
        return Some(1.0);
    }
    Some(1.0 - (samples - passed + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product::<f64>())
}
