//! The filters: each keeps some of the candidate tokens, at least one, in any order.

use std::cmp::Ordering;

use super::{Candidate, largest, weigh};
use olmoe_tensor::elementary::{exp, ln};

/// The number of most likely tokens that are sorted first; four times as many each time that they are too few.
const SORTED: usize = 64;

/// The descending order of probability; of equal ones the lower id comes first.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Keeps the `k` most likely tokens; 0 for all.
pub(super) fn top_k(list: &mut Vec<Candidate>, k: usize) {
    if (1..list.len()).contains(&k) {
        list.select_nth_unstable_by(k - 1, likelier);
        list.truncate(k);
    }
}

/// Keeps the most typical tokens, until their probabilities reach `mass`; 1 for all.
pub(super) fn typical(list: &mut Vec<Candidate>, mass: f64) {
    if mass >= 1.0 || list.len() < 2 {
        return;
    }
    let total = weigh(list, 1.0);
    let offset = largest(list) + ln(total);
    let surprise = |candidate: &Candidate| offset - candidate.logit;
    let entropy = list.iter().map(|candidate| candidate.weight / total * surprise(candidate)).sum::<f64>();
    let distance = |candidate: &Candidate| (surprise(candidate) - entropy).abs();
    list.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)));
    let mut sum = 0.0;
    if let Some(last) = list.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= mass * total
    }) {
        list.truncate(last + 1);
    }
}

/// Keeps the most likely tokens, until their probabilities reach `mass`; 1 for all.
pub(super) fn top_p(list: &mut Vec<Candidate>, mass: f64) {
    if mass >= 1.0 || list.len() < 2 {
        return;
    }
    let target = mass * weigh(list, 1.0);
    let (mut sum, mut sorted, mut more) = (0.0, 0, SORTED);
    while sorted < list.len() {
        let end = (sorted + more).min(list.len());
        if end < list.len() {
            list[sorted..].select_nth_unstable_by(end - sorted - 1, likelier);
        }
        list[sorted..end].sort_unstable_by(likelier);
        for at in sorted..end {
            sum += list[at].weight;
            if sum >= target {
                list.truncate(at + 1);
                return;
            }
        }
        (sorted, more) = (end, 4 * more);
    }
}

/// Keeps the tokens with at least `share` of the highest probability; 0 for all.
pub(super) fn min_p(list: &mut Vec<Candidate>, share: f64) {
    if share > 0.0 {
        let largest = largest(list);
        list.retain(|candidate| exp(candidate.logit - largest) >= share);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Candidates;
    use super::super::tests::logits;
    use super::*;

    /// The ids that a filter keeps.
    fn left(probabilities: &[f64], filter: impl Fn(&mut Vec<Candidate>)) -> Vec<u32> {
        let mut candidates = Candidates::default();
        candidates.fill(&logits(probabilities));
        filter(&mut candidates.0);
        let mut ids: Vec<u32> = candidates.0.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        ids
    }

    const P: [f64; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];

    #[test]
    fn top_k_by_hand() {
        for (k, expected) in [
            (1, &[1][..]),
            (2, &[1, 3]),
            (4, &[0, 1, 3, 4]),
            (5, &[0, 1, 2, 3, 4]),
            (9, &[0, 1, 2, 3, 4]),
            (0, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(left(&P, |list| top_k(list, k)), expected, "k = {k}");
        }
        // Of tokens with equal probabilities, the lower ids are kept.
        assert_eq!(left(&[0.25; 4], |list| top_k(list, 2)), [0, 1]);
    }

    #[test]
    fn top_p_by_hand() {
        // Falling: 0.4, 0.65, 0.85, 0.95, 1.
        for (p, expected) in [
            (1e-9, &[1][..]),
            (0.39, &[1]),
            (0.41, &[1, 3]),
            (0.64, &[1, 3]),
            (0.66, &[1, 3, 4]),
            (0.94, &[0, 1, 3, 4]),
            (0.96, &[0, 1, 2, 3, 4]),
            (1.0, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(left(&P, |list| top_p(list, p)), expected, "p = {p}");
        }
        assert_eq!(left(&[0.25; 4], |list| top_p(list, 0.3)), [0, 1]);
    }

    #[test]
    fn top_p_of_many_is_that_of_a_full_sort() {
        // p_i ∝ 0.99^i, shuffled; 1 − 0.99^k of the whole in the k likeliest.
        let n = 3000;
        let probabilities: Vec<f64> = (0..n).map(|i| 0.99f64.powi((i * 1009) % n)).collect();
        for k in [1, 63, 64, 65, 300, 321, 700] {
            let mass = 1.0 - 0.99f64.powi(k) - 0.002 * 0.99f64.powi(k);
            let kept = left(&probabilities, |list| top_p(list, mass));
            let mut expected: Vec<u32> = (0..n).filter(|i| (i * 1009) % n < k).map(|i| i as u32).collect();
            expected.sort_unstable();
            assert_eq!(kept, expected, "{k} tokens");
        }
    }

    #[test]
    fn min_p_by_hand() {
        // Shares of the likeliest: 0.25, 1, 0.125, 0.625, 0.5.
        for (share, expected) in [
            (0.0, &[0, 1, 2, 3, 4][..]),
            (0.12, &[0, 1, 2, 3, 4]),
            (0.13, &[0, 1, 3, 4]),
            (0.26, &[1, 3, 4]),
            (0.51, &[1, 3]),
            (1.0, &[1]),
        ] {
            assert_eq!(left(&P, |list| min_p(list, share)), expected, "share {share}");
        }
    }

    #[test]
    fn typical_p_by_hand() {
        // −ln p: 2.303, 0.916, 2.996, 1.386, 1.609; H = 1.4149; distances 0.888, 0.499, 1.581, 0.029, 0.195. So the
        // order is 3, 4, 1, 0, 2 with sums 0.25, 0.45, 0.85, 0.95, 1.
        for (p, expected) in [
            (0.1, &[3][..]),
            (0.24, &[3]),
            (0.26, &[3, 4]),
            (0.46, &[1, 3, 4]),
            (0.84, &[1, 3, 4]),
            (0.86, &[0, 1, 3, 4]),
            (0.96, &[0, 1, 2, 3, 4]),
            (1.0, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(left(&P, |list| typical(list, p)), expected, "p = {p}");
        }
    }

    #[test]
    fn one_token_always_stays() {
        for filter in [top_p as fn(&mut Vec<Candidate>, f64), typical, min_p] {
            for probabilities in [&[1.0][..], &[1e-30, 1.0, 1e-30], &[0.5, 0.5]] {
                assert!(!left(probabilities, |list| filter(list, 1e-12)).is_empty());
                assert!(!left(probabilities, |list| filter(list, 1.0)).is_empty());
            }
            let mut none = Vec::new();
            filter(&mut none, 0.5);
            assert!(none.is_empty());
        }
    }
}
