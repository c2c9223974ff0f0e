//! The router: softmax over all experts, then the top k.
//!
//! T tokens, E experts, K choices. The caller computes the logits `r = x·Wgᵀ [T, E]` in f32 at every precision. The
//! router computes `p = softmax(r)` over **all** experts and chooses the `K` largest probabilities in descending order;
//! of equal ones the lower index comes first. The weights of the chosen experts are their probabilities, which sum to
//! less than one, or with `normalize` the probabilities divided by their sum. `lse = log Σ exp r` is kept for the
//! z-loss.

use crate::elementary::ln;
use crate::memory::Buffer;
use crate::ops::lanes::lanes;
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel_ranges};

/// The choices of the router, and what its backward pass needs.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Probabilities of all experts, `[T, E]`.
    pub probs_te: Tensor,
    /// Chosen experts in descending order of probability, `[T, K]`.
    pub ids_tk: Tensor<u32>,
    /// Weights of the chosen experts' outputs, `[T, K]`.
    pub weights_tk: Tensor,
    /// `log Σ_e exp r_te`, `[T]`.
    pub lse_t: Buffer<f32>,
}

/// Tokens in a task.
const GRAIN: usize = 32;

kernel! {
    /// Softmax of one row in place; returns its log-sum-exp.
    pub(crate) fn softmax_row[s: S](row: &mut [f32]) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        for x in row.iter() {
            // A NaN has to reach the result, but comparisons would drop it.
            largest = if *x > largest || x.is_nan() { *x } else { largest };
        }
        let mut sum = s.zero();
        let shift = s.splat(largest);
        for piece in row.chunks_mut(LANES) {
            let e = exp(s, s.sub(s.load_partial(piece), shift));
            s.store_partial(e, piece);
            // Loaded again, so that lanes past the end are zero.
            sum = s.add(sum, s.load_partial(piece));
        }
        let sum = s.reduce_add(sum);
        let total = s.splat(sum);
        for piece in row.chunks_mut(LANES) {
            let p = s.div(s.load_partial(piece), total);
            s.store_partial(p, piece);
        }
        largest + ln(f64::from(sum)) as f32
    }
}

/// Routes by the logits `r [T, E]`, whose buffer receives the probabilities.
pub fn forward(logits_te: Tensor, top_k: usize, normalize: bool) -> Routing {
    let (tokens, experts) = (logits_te.rows(), logits_te.cols());
    assert!(top_k >= 1 && top_k <= experts, "top {top_k} of {experts} experts");
    let mut routing = Routing {
        probs_te: logits_te,
        ids_tk: Tensor::scratch(&[tokens, top_k]),
        weights_tk: Tensor::scratch(&[tokens, top_k]),
        lse_t: Buffer::scratch(tokens),
    };
    let probs = Shared::new(&mut routing.probs_te);
    let ids = Shared::new(&mut routing.ids_tk);
    let weights = Shared::new(&mut routing.weights_tk);
    let lse = Shared::new(&mut routing.lse_t);
    parallel_ranges(tokens, GRAIN, |range| {
        for t in range {
            // SAFETY: each token is another row of all four.
            let (p, ids, weights, lse) = unsafe {
                (
                    probs.range(t * experts..(t + 1) * experts),
                    ids.range(t * top_k..(t + 1) * top_k),
                    weights.range(t * top_k..(t + 1) * top_k),
                    lse.range(t..t + 1),
                )
            };
            lse[0] = softmax_row(p);
            choose(p, ids, weights);
            if normalize {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
        }
    });
    routing
}

/// The largest of `p` by insertion, in descending order; of equal ones the lower index comes first.
fn choose(p: &[f32], ids: &mut [u32], best: &mut [f32]) {
    let mut found = 0;
    for (e, &x) in p.iter().enumerate() {
        let full = found == best.len();
        let mut at = if full { found - 1 } else { found };
        if full && (x <= best[at] || x.is_nan()) {
            continue;
        }
        while at > 0 && x > best[at - 1] {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
            at -= 1;
        }
        best[at] = x;
        ids[at] = e as u32;
        found = (found + 1).min(best.len());
    }
}

/// The gradient of the router's logits, `[T, E]`.
///
/// - `dweights_tk`: gradient of the weights;
/// - `dprobs`: gradient that is added to the probabilities of every token of a group, for auxiliary losses, into which
///   the probabilities enter as means: a row of E numbers for each group, and the tokens at which the groups begin,
///   followed by T; or `None`;
/// - `z`: the z-loss adds `z · lse_t · p_te`, twice its weight over its count.
pub fn backward(
    routing: &Routing,
    dweights_tk: &Tensor,
    normalize: bool,
    dprobs: Option<(&[f32], &[u32])>,
    z: f32,
) -> Tensor {
    let (tokens, experts, top_k) = (routing.probs_te.rows(), routing.probs_te.cols(), routing.ids_tk.cols());
    let mut dlogits_te = Tensor::scratch(&[tokens, experts]);
    let out = Shared::new(&mut dlogits_te);
    parallel_ranges(tokens, GRAIN, |range| {
        for t in range {
            // SAFETY: each token is another row.
            let d = unsafe { out.range(t * experts..(t + 1) * experts) };
            match dprobs {
                Some((rows, starts)) => {
                    let group = starts.partition_point(|start| *start as usize <= t) - 1;
                    d.copy_from_slice(&rows[group * experts..(group + 1) * experts]);
                }
                None => d.fill(0.0),
            }
            let (p, ids) = (routing.probs_te.row(t), routing.ids_tk.row(t));
            let (w, dw) = (routing.weights_tk.row(t), dweights_tk.row(t));
            let (mut scale, mut shift) = (1.0, 0.0);
            if normalize {
                // w = p / Σp: dp = (dw − Σ w·dw) / Σp
                scale = 1.0 / ids.iter().map(|e| p[*e as usize]).sum::<f32>();
                shift = w.iter().zip(dw).map(|(w, dw)| w * dw).sum::<f32>();
            }
            for k in 0..top_k {
                d[ids[k] as usize] += (dw[k] - shift) * scale;
            }
            softmax_backward(p, d, z * routing.lse_t[t]);
        }
    });
    dlogits_te
}

kernel! {
    /// `d := p ⊙ (d − Σ p·d + plus)`.
    fn softmax_backward[s: S](p: &[f32], d: &mut [f32], plus: f32) {
        let mut sum = s.zero();
        {
            let d = &d[..];
            lanes!(s; read [p, d]; { sum = s.fma(p, d, sum); });
        }
        let shift = s.splat(plus - s.reduce_add(sum));
        lanes!(s; read [p]; update [d]; write []; { [s.mul(p, s.add(d, shift))] });
    }
}

/// Which (token, choice) pairs each expert computes, in what order.
///
/// *Slots* are these pairs sorted by expert, and those of an expert by token; the slots of an expert are contiguous.
#[derive(Debug)]
pub struct Assignment {
    /// Where each expert's slots begin, `[E + 1]`.
    pub offsets_e: Buffer<u32>,
    /// The token of each slot.
    pub token_s: Buffer<u32>,
    /// The weight of each slot.
    pub weight_s: Buffer<f32>,
    /// The slot of each (token, choice), `[T, K]`; [`DROPPED`] where the expert was full.
    pub slot_tk: Tensor<u32>,
    /// The number of (token, choice) pairs for which each expert was chosen, including the dropped ones, `[E]`.
    pub load_e: Buffer<u32>,
}

/// Marks a choice without a slot, because earlier tokens used up the capacity of the expert.
pub const DROPPED: u32 = u32::MAX;

/// Checks that `slots` slots can be numbered by 32 bits; the last number is [`DROPPED`].
fn check_slots(slots: usize) {
    assert!(slots < DROPPED as usize, "{slots} slots do not fit 32 bits; route fewer tokens at once");
}

/// Sorts the choices by expert. With a `capacity`, an expert takes the first `capacity` choices in token order and
/// drops the others.
///
/// # Panics
/// With 2³² − 1 choices or more.
pub fn assign(routing: &Routing, capacity: Option<usize>) -> Assignment {
    let (tokens, experts, top_k) = (routing.probs_te.rows(), routing.probs_te.cols(), routing.ids_tk.cols());
    check_slots(routing.ids_tk.len());
    let limit = capacity.map_or(u32::MAX, |c| u32::try_from(c).unwrap_or(u32::MAX));
    let mut load_e = Buffer::<u32>::zeroed(experts);
    for e in routing.ids_tk.iter() {
        load_e[*e as usize] += 1;
    }
    let mut offsets_e = Buffer::<u32>::zeroed(experts + 1);
    for e in 0..experts {
        offsets_e[e + 1] = offsets_e[e] + load_e[e].min(limit);
    }
    let slots = offsets_e[experts] as usize;
    let mut token_s = Buffer::<u32>::scratch(slots);
    let mut weight_s = Buffer::<f32>::scratch(slots);
    let mut slot_tk = Tensor::<u32>::scratch(&[tokens, top_k]);
    let mut next = Buffer::copy_of(&offsets_e[..experts]);
    for t in 0..tokens {
        for k in 0..top_k {
            let e = routing.ids_tk.row(t)[k] as usize;
            let slot = next[e];
            slot_tk.row_mut(t)[k] = if slot < offsets_e[e + 1] {
                token_s[slot as usize] = t as u32;
                weight_s[slot as usize] = routing.weights_tk.row(t)[k];
                next[e] += 1;
                slot
            } else {
                DROPPED
            };
        }
    }
    Assignment { offsets_e, token_s, weight_s, slot_tk, load_e }
}

impl Assignment {
    /// Assigns all `tokens` to one expert, each with weight one: a dense layer.
    ///
    /// # Panics
    /// With 2³² − 1 tokens or more.
    pub fn dense(tokens: usize) -> Assignment {
        check_slots(tokens);
        let mut token_s = Buffer::<u32>::scratch(tokens);
        let mut slot_tk = Tensor::<u32>::scratch(&[tokens, 1]);
        for t in 0..tokens {
            token_s[t] = t as u32;
            slot_tk[t] = t as u32;
        }
        let mut weight_s = Buffer::<f32>::scratch(tokens);
        weight_s.fill(1.0);
        let offsets_e = Buffer::copy_of(&[0, tokens as u32]);
        Assignment { offsets_e, token_s, weight_s, slot_tk, load_e: Buffer::copy_of(&[tokens as u32]) }
    }

    /// Slots in use.
    pub fn slots(&self) -> usize {
        self.token_s.len()
    }

    /// Experts.
    pub fn experts(&self) -> usize {
        self.load_e.len()
    }

    /// The slots of expert `e`.
    pub fn range(&self, e: usize) -> std::ops::Range<usize> {
        self.offsets_e[e] as usize..self.offsets_e[e + 1] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

    fn naive_softmax(r: &[f64]) -> (Vec<f64>, f64) {
        let largest = r.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = r.iter().map(|x| (x - largest).exp()).sum();
        (r.iter().map(|x| (x - largest).exp() / sum).collect(), largest + sum.ln())
    }

    /// Σ of `dw`-weighted choices, of `da`-weighted probabilities and of `z/2 · lse²`.
    fn naive_loss(
        r: &[f64],
        experts: usize,
        ids: &[u32],
        k: usize,
        normalize: bool,
        dw: &[f64],
        da: &[f64],
        z: f64,
    ) -> f64 {
        let mut loss = 0.0;
        for (t, row) in r.chunks(experts).enumerate() {
            let (p, lse) = naive_softmax(row);
            let ids = &ids[t * k..(t + 1) * k];
            let sum: f64 = if normalize { ids.iter().map(|e| p[*e as usize]).sum() } else { 1.0 };
            loss += ids.iter().zip(&dw[t * k..]).map(|(e, dw)| p[*e as usize] / sum * dw).sum::<f64>();
            loss += p.iter().zip(&da[t / 2 * experts..]).map(|(p, d)| p * d).sum::<f64>() + z / 2.0 * lse * lse;
        }
        loss
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (t, e, k, normalize) in [(2, 3, 1, false), (6, 7, 3, true), (4, 64, 8, false), (4, 33, 33, true)] {
            let r: Vec<f32> = numbers(t, t * e).iter().map(|x| 3.0 * x).collect();
            let (dw, da) = (numbers(5, t * k), numbers(6, t / 2 * e));
            let z = 0.3;
            let ids = forward(Tensor::new(&r, &[t, e]), k, normalize).ids_tk;
            let got = on_every_isa(|| {
                let routing = forward(Tensor::new(&r, &[t, e]), k, normalize);
                let starts: Vec<u32> = (0..=t as u32).step_by(2).collect();
                backward(&routing, &Tensor::new(&dw, &[t, k]), normalize, Some((&da, &starts)), z).to_vec()
            });
            let (dw, da) = (wide(&dw), wide(&da));
            let expected =
                finite_differences(&wide(&r), |r| naive_loss(r, e, &ids, k, normalize, &dw, &da, f64::from(z)));
            let error = relative_error(&got, &expected);
            assert!(error < 1e-6, "{t} tokens, {e} experts, top {k}: {error}");
        }
    }

    #[test]
    fn probabilities_and_choices() {
        let r = [1.0, 3.0, 3.0, -2.0, f32::NEG_INFINITY, 2.0];
        let routing = forward(Tensor::new(&r, &[1, 6]), 4, false);
        // The first of two equal ones comes first; the weights are probabilities of all experts, not renormalised.
        assert_eq!(routing.ids_tk[..], [1, 2, 5, 0]);
        let (p, lse) = naive_softmax(&wide(&r));
        assert!(relative_error(&routing.probs_te, &p) < 1e-6);
        assert!((f64::from(routing.lse_t[0]) - lse).abs() < 1e-6);
        assert_eq!(routing.weights_tk[0], routing.probs_te[1]);
        assert!(routing.weights_tk.iter().sum::<f32>() < 1.0);
        let sum: f32 = forward(Tensor::new(&r, &[1, 6]), 4, true).weights_tk.iter().sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_nan_shows_and_ids_stay_in_range() {
        let routing = forward(Tensor::new(&[f32::NAN, 1.0, 2.0, f32::NAN], &[1, 4]), 3, false);
        assert!(routing.weights_tk.iter().any(|w| w.is_nan()));
        assert!(routing.ids_tk.iter().all(|e| *e < 4));
        let mut ids = routing.ids_tk.to_vec();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 3);
    }

    #[test]
    fn slots_are_sorted_by_expert_and_token() {
        // Expert 1 gets every token, expert 3 none.
        let r = [[0.0, 5.0, 1.0, -9.0], [2.0, 5.0, 1.0, -9.0], [0.0, 5.0, 1.0, -9.0]].concat();
        let routing = forward(Tensor::new(&r, &[3, 4]), 2, false);
        let all = assign(&routing, None);
        assert_eq!(all.offsets_e[..], [0, 1, 4, 6, 6]);
        assert_eq!(all.token_s[..], [1, 0, 1, 2, 0, 2]);
        assert_eq!(all.load_e[..], [1, 3, 2, 0]);
        for t in 0..3 {
            for k in 0..2 {
                let slot = all.slot_tk.row(t)[k] as usize;
                assert_eq!(all.token_s[slot], t as u32);
                assert_eq!(all.weight_s[slot], routing.weights_tk.row(t)[k]);
                assert!(all.range(routing.ids_tk.row(t)[k] as usize).contains(&slot));
            }
        }
        let some = assign(&routing, Some(2));
        assert_eq!(some.offsets_e[..], [0, 1, 3, 5, 5]);
        assert_eq!(some.load_e[..], [1, 3, 2, 0]);
        // The third token finds expert 1 full.
        assert_eq!(some.slot_tk.row(2), [DROPPED, 4]);
        assert_eq!(assign(&forward(Tensor::zeros(&[0, 4]), 2, false), None).slots(), 0);
    }
}
