//! AOT's losses (Melnyk et al., arXiv 2406.05882): the answers of a step, sorted by their log-ratios.

use super::completion::Sums;
use super::pairwise::{Slope, Terms, logistic};
use super::settings::{LossType, PreferenceSettings};

/// The places of numbers from the smallest to the largest; equal ones in the order in which they came.
fn sorted(numbers: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..numbers.len()).collect();
    places.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    places
}

/// Loss and derivatives of all pairs of a step: the k-th loss is said of the pair that has the k-th number of the chosen side.
pub(super) fn terms(loss_type: LossType, settings: &PreferenceSettings, sums: &[(Sums, Sums)]) -> Vec<Terms> {
    let of = |number: fn(&(Sums, Sums)) -> f64| sums.iter().map(number).collect::<Vec<f64>>();
    let paired = loss_type == LossType::Aot;
    let (left, right) = match paired {
        true => (of(|(c, r)| c.policy - r.policy), of(|(c, r)| c.reference - r.reference)),
        false => (of(|(c, _)| c.log_ratio()), of(|(_, r)| r.log_ratio())),
    };
    let mut terms = vec![Terms::default(); sums.len()];
    for (l, r) in sorted(&left).into_iter().zip(sorted(&right)) {
        let Slope { loss, by } = logistic(settings.beta, settings.label_smoothing, left[l] - right[r]);
        terms[l].loss = loss;
        terms[l].chosen = by;
        // The reference's side of paired AOT has no gradient; both of the policy's answers are on the left.
        terms[if paired { l } else { r }].rejected = -by;
    }
    terms
}
