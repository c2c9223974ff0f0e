//! Log-probabilities in the distribution of the model.

use crate::event::Alternative;
use olmoe_tensor::elementary::{exp, ln};

/// Independent sums. Their number and order are part of the definition of the result.
const LANES: usize = 8;

/// `log Σ_v exp l_v` of logits that are finite or −∞; `None` when a logit is NaN or +∞, or all are −∞.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Option<f64> {
    let largest = f64::from(largest(logits)?);
    let mut sums = [0.0; LANES];
    for some in logits.chunks(LANES) {
        for (sum, logit) in sums.iter_mut().zip(some) {
            *sum += exp(f64::from(*logit) - largest);
        }
    }
    Some(largest + ln(sums.iter().sum()))
}

/// The largest logit; `None` when a logit is NaN or +∞, or all are −∞.
pub(crate) fn largest(logits: &[f32]) -> Option<f32> {
    let mut largest = f32::NEG_INFINITY;
    let mut nan = false;
    for logit in logits {
        largest = largest.max(*logit);
        nan |= logit.is_nan();
    }
    (!nan && largest.is_finite()).then_some(largest)
}

/// The `count` most likely tokens in descending order; of equal ones the lower id comes first. `lse` is the log-sum-exp
/// of the logits.
pub(crate) fn likeliest(logits: &[f32], lse: f64, count: usize) -> Vec<Alternative> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    // Adding 0 turns -0 into 0, because both are equal.
    let likelier = |a: &u32, b: &u32| {
        let [x, y] = [a, b].map(|id| logits[*id as usize] + 0.0);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(count - 1, likelier);
    ids.truncate(count);
    ids.sort_unstable_by(likelier);
    ids.iter().map(|id| Alternative { id: *id, logprob: f64::from(logits[*id as usize]) - lse }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_their_formula() {
        let logits: Vec<f32> = (0..1003).map(|i| ((i * 37) % 101) as f32 * 0.3 - 12.0).collect();
        let expected = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let lse = log_sum_exp(&logits).unwrap();
        assert!((lse - expected).abs() < 1e-13, "{lse}, not {expected}");
        let likeliest = likeliest(&logits, lse, 12);
        let mut sorted: Vec<(u32, f32)> = logits.iter().copied().enumerate().map(|(id, x)| (id as u32, x)).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(
            likeliest.iter().map(|x| x.id).collect::<Vec<_>>(),
            sorted[..12].iter().map(|x| x.0).collect::<Vec<_>>()
        );
        assert_eq!(likeliest[11].logprob, f64::from(sorted[11].1) - lse);
        assert_eq!(super::likeliest(&logits, lse, 5000).len(), 1003);
        assert!(super::likeliest(&logits, lse, 0).is_empty());
    }

    #[test]
    fn what_is_no_distribution() {
        assert_eq!(log_sum_exp(&[1.0, f32::NAN, 2.0]), None);
        assert_eq!(log_sum_exp(&[1.0, f32::INFINITY]), None);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(log_sum_exp(&[]), None);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 3.0]), Some(3.0));
    }
}
