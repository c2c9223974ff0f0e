//! What else is known of the distributions than the log-probabilities of the targets.

use std::ops::Range;

use super::IGNORE;
use crate::memory::Buffer;
use crate::ops::lanes::lanes;
use crate::simd::{LANES, exp, kernel};
use crate::threads::{Shared, parallel_ranges};

/// Statistics of the distribution of each token, `[T]`; 0 where there is no target.
#[derive(Clone, Debug)]
pub struct TokenStatistics {
    /// The entropy `−Σ_v p_v·ln p_v`, in nats.
    pub entropy_t: Buffer<f32>,
    /// `ln Σ_v p_v²`, which is negative.
    pub log_square_sum_t: Buffer<f32>,
    /// The mean of the logits over the vocabulary.
    pub mean_logit_t: Buffer<f32>,
    /// 1 where the target is the most likely word, the first of several; otherwise 0.
    pub top1_t: Buffer<f32>,
}

kernel! {
    /// `Σ p·(x − lse)`, `Σ p²` and `Σ x` with `p = exp(x − lse)`.
    fn sums[s: S](x: &[f32], lse: f32) -> (f32, f32, f32) {
        let (shift, mut surprise, mut square, mut all) = (s.splat(lse), s.zero(), s.zero(), s.zero());
        // Whole vectors: lanes beyond the end would be read as logits of 0.
        let (y, rest) = x.split_at(x.len() / LANES * LANES);
        lanes!(s; read [y]; {
            let logp = s.sub(y, shift);
            let p = exp(s, logp);
            surprise = s.fma(p, logp, surprise);
            square = s.fma(p, p, square);
            all = s.add(all, y);
        });
        let mut sums = (s.reduce_add(surprise), s.reduce_add(square), s.reduce_add(all));
        for y in rest {
            let logp = y - lse;
            let p = crate::elementary::exp(f64::from(logp)) as f32;
            sums = (sums.0 + p * logp, sums.1 + p * p, sums.2 + y);
        }
        sums
    }
}

impl TokenStatistics {
    pub(super) fn scratch(tokens: usize) -> TokenStatistics {
        let [entropy_t, log_square_sum_t, mean_logit_t, top1_t] = [(); 4].map(|()| Buffer::scratch(tokens));
        TokenStatistics { entropy_t, log_square_sum_t, mean_logit_t, top1_t }
    }

    pub(super) fn map(self, to: impl Fn(&Buffer<f32>) -> Buffer<f32>) -> TokenStatistics {
        TokenStatistics {
            entropy_t: to(&self.entropy_t),
            log_square_sum_t: to(&self.log_square_sum_t),
            mean_logit_t: to(&self.mean_logit_t),
            top1_t: to(&self.top1_t),
        }
    }

    /// Fills the tokens `some` from their logits `[some, V]`.
    pub(super) fn fill(&mut self, some: Range<usize>, logits: &[f32], v: usize, targets: &[u32], lse: &[f32]) {
        let TokenStatistics { entropy_t, log_square_sum_t, mean_logit_t, top1_t } = self;
        let outputs =
            [entropy_t, log_square_sum_t, mean_logit_t, top1_t].map(|out| Shared::new(&mut out[some.clone()]));
        parallel_ranges(targets.len(), 4, |range| {
            for t in range {
                let row = &logits[t * v..(t + 1) * v];
                let numbers = match targets[t] {
                    IGNORE => [0.0; 4],
                    target => {
                        let (surprise, square, all) = sums(row, lse[t]);
                        let own = row[target as usize];
                        let first = row.iter().position(|x| *x >= own) == Some(target as usize);
                        let top1 = first && !row.iter().any(|x| *x > own);
                        let log_square = crate::elementary::ln(f64::from(square)) as f32;
                        [-surprise, log_square, all / v as f32, f32::from(u8::from(top1))]
                    }
                };
                for (out, number) in outputs.iter().zip(numbers) {
                    // SAFETY: each token is another place.
                    unsafe { out.range(t..t + 1)[0] = number };
                }
            }
        });
    }
}
