//! The auxiliary losses of the routers, in the three definitions that are in use.
//!
//! L mixture-of-experts layers, T tokens, E experts, K choices, `n_le` assignments of expert `e` in layer `l`, `P_le`
//! its mean probability, `lse_lt` the log-sum-exp of the router logits of a token. Only `P` and `lse` carry gradients.
//! Dense layers do not count: OLMo's `moe_interleave` divides by `n_layers // 2`.
//!
//! | definition | load balancing | at balance | z-loss |
//! |---|---|---|---|
//! | `olmo` (megablocks, what OLMoE was trained with) | `w·E/(L·T·K) · Σ_l Σ_e n_le·P_le` | `w` | `w_z · Σ_lt lse² / (L·T·K)` |
//! | `huggingface` (`load_balancing_loss_func`; layers pooled) | `w·E · Σ_e (Σ_l n_le/(L·T)) · (Σ_l P_le/L)` | `w·K` | none of its own; as `olmo` |
//! | `megatron` (`seq_aux_loss`; per sequence, not divided by L) | `w · Σ_l mean_s E · Σ_e n_lse/(T_s·K) · P_lse` | `w·L` | `w_z · Σ_l mean_t lse²` |

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::tensor::Tensor;

use crate::batch::Batch;
use crate::config::{Auxiliary, AuxiliaryDefinition};
use crate::routing::RoutingRecord;

/// The losses of a batch, multiplied by their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AuxiliaryLosses {
    /// Load balancing.
    pub load_balancing: f64,
    /// Router z-loss.
    pub z: f64,
}

/// The gradients of the losses that the backward passes of the routers need.
#[derive(Default)]
pub struct AuxiliaryGradients {
    /// Gradient of the probabilities of the tokens of each group, `[L · groups, E]`, and the tokens at which the groups
    /// begin, followed by T.
    dprobs: Option<(Tensor, Buffer<u32>)>,
    /// Gradient by the log-sum-exp of a token, divided by that log-sum-exp.
    pub z: f32,
}

impl AuxiliaryGradients {
    /// The gradients of the probabilities in a layer of the record, one row for each group of tokens, and the
    /// boundaries of the groups; `None` when there is no such loss.
    pub fn layer(&self, layer: usize) -> Option<(&[f32], &[u32])> {
        self.dprobs.as_ref().map(|(rows, groups)| {
            let count = groups.len() - 1;
            (rows.row_range(layer * count..(layer + 1) * count), &groups[..])
        })
    }
}

/// Sums over the tokens `range` of a layer: assignments and probabilities of each expert.
fn sums(record: &RoutingRecord, layer: usize, range: std::ops::Range<usize>, n: &mut [f64], p: &mut [f64]) {
    let routing = &record.layers[layer].routing;
    for t in range {
        for e in routing.ids_tk.row(t) {
            n[*e as usize] += 1.0;
        }
        for (p, x) in p.iter_mut().zip(routing.probs_te.row(t)) {
            *p += f64::from(*x);
        }
    }
}

/// The losses of a batch and their gradients, both multiplied by `scale`, the share of the batch in a step.
pub fn losses(
    record: &RoutingRecord,
    batch: &Batch,
    config: &Auxiliary,
    scale: f64,
) -> (AuxiliaryLosses, AuxiliaryGradients) {
    let mut losses = AuxiliaryLosses::default();
    let mut gradients = AuxiliaryGradients::default();
    let (Some(first), tokens) = (record.layers.first(), batch.tokens()) else { return (losses, gradients) };
    if tokens == 0 {
        return (losses, gradients);
    }
    let (layers, experts) = (record.layers.len(), first.routing.probs_te.cols());
    let choices = first.routing.ids_tk.cols();
    let (l, t, e, k) = (layers as f64, tokens as f64, experts as f64, choices as f64);

    if config.load_balancing_weight != 0.0 {
        let w = f64::from(config.load_balancing_weight) * scale;
        // Groups of tokens whose assignments are multiplied with their own probabilities.
        let bounds = match config.definition {
            AuxiliaryDefinition::Megatron => batch.sequences.clone(),
            _ => Buffer::copy_of(&[0, tokens as u32]),
        };
        let groups = bounds.len() - 1;
        let range = |group: usize| bounds[group] as usize..bounds[group + 1] as usize;
        let mut n = Buffer::<f64>::zeroed(layers * groups * experts);
        let mut p = Buffer::<f64>::zeroed(layers * groups * experts);
        for row in 0..layers * groups {
            let of = row * experts..(row + 1) * experts;
            sums(record, row / groups, range(row % groups), &mut n[of.clone()], &mut p[of]);
        }
        if config.definition == AuxiliaryDefinition::HuggingFace {
            for sums in [&mut n, &mut p] {
                for e in 0..experts {
                    let pooled: f64 = sums.iter().skip(e).step_by(experts).sum();
                    sums.iter_mut().skip(e).step_by(experts).for_each(|x| *x = pooled);
                }
            }
        }
        // loss = Σ_rows Σ_e factor·n_e·(p_e / size), where p_e / size is the mean probability.
        let factor = |row: usize| match config.definition {
            AuxiliaryDefinition::Olmo => w * e / (l * t * k) / t,
            // Every layer holds the pooled sums, so each row is the loss over L.
            AuxiliaryDefinition::HuggingFace => w * e / (l * t) / (l * t) / l,
            AuxiliaryDefinition::Megatron => {
                let size = range(row % groups).len() as f64;
                w * e / (size * k) / size / groups as f64
            }
        };
        let mut dprobs = Tensor::scratch(&[layers * groups, experts]);
        for row in 0..layers * groups {
            let of = row * experts..(row + 1) * experts;
            losses.load_balancing +=
                factor(row) * n[of.clone()].iter().zip(&p[of.clone()]).map(|(n, p)| n * p).sum::<f64>();
            // The pooled probabilities of one layer enter all L rows.
            let shared = if config.definition == AuxiliaryDefinition::HuggingFace { l } else { 1.0 };
            for (d, n) in dprobs.row_mut(row).iter_mut().zip(&n[of]) {
                *d = (factor(row) * shared * n) as f32;
            }
        }
        gradients.dprobs = Some((dprobs, bounds));
    }
    if config.z_weight != 0.0 {
        let count = match config.definition {
            AuxiliaryDefinition::Olmo | AuxiliaryDefinition::HuggingFace => l * t * k,
            AuxiliaryDefinition::Megatron => t,
        };
        let w = f64::from(config.z_weight) * scale / count;
        let squares = record.layers.iter().flat_map(|layer| layer.routing.lse_t.iter());
        losses.z = w * squares.map(|lse| f64::from(*lse).powi(2)).sum::<f64>();
        gradients.z = (2.0 * w) as f32;
    }
    (losses, gradients)
}

#[cfg(test)]
mod tests {
    use super::*;
    use olmoe_tensor::ops::router;

    /// Routings from logits, L layers.
    fn record(logits: &[Vec<f32>], experts: usize, top_k: usize) -> RoutingRecord {
        let layer = |(index, r): (usize, &Vec<f32>)| {
            let routing = router::forward(Tensor::new(r, &[r.len() / experts, experts]), top_k, false);
            let load_e = router::assign(&routing, None).load_e;
            crate::routing::LayerRouting { layer: index, routing, load_e }
        };
        RoutingRecord { layers: logits.iter().enumerate().map(layer).collect() }
    }

    fn config(definition: AuxiliaryDefinition) -> Auxiliary {
        Auxiliary { definition, load_balancing_weight: 0.01, z_weight: 0.001 }
    }

    #[test]
    fn values_at_perfect_balance_at_collapse_and_at_zero_logits() {
        let (layers, tokens, experts, top_k) = (4, 64, 64, 8);
        let batch = Batch::uniform(&vec![0; tokens], 16).unwrap();
        let definitions = [AuxiliaryDefinition::Olmo, AuxiliaryDefinition::HuggingFace, AuxiliaryDefinition::Megatron];
        // Zero logits give uniform probabilities for any assignment, and lse = ln 64.
        let zero = record(&vec![vec![0.0; tokens * experts]; layers], experts, top_k);
        let collapsed: Vec<f32> = (0..tokens * experts).map(|i| if i % experts < 8 { 40.0 } else { 0.0 }).collect();
        let collapsed = record(&vec![collapsed; layers], experts, top_k);
        for (definition, balance) in definitions.into_iter().zip([1.0, 8.0, 4.0]) {
            let (at, _) = losses(&zero, &batch, &config(definition), 1.0);
            assert!((at.load_balancing - 0.01 * balance).abs() < 1e-8, "{definition:?}: {}", at.load_balancing);
            let (at, _) = losses(&collapsed, &batch, &config(definition), 1.0);
            assert!((at.load_balancing - 0.08 * balance).abs() < 1e-7, "{definition:?}: {}", at.load_balancing);
        }
        let (at, _) = losses(&zero, &batch, &config(AuxiliaryDefinition::Olmo), 1.0);
        assert!((at.z - 0.002_162).abs() < 1e-6, "{}", at.z);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (layers, tokens, experts, top_k) = (3, 6, 5, 2);
        let batch = Batch::new(&vec![0; tokens], &[2, 4]).unwrap();
        let logits: Vec<Vec<f32>> = (0..layers)
            .map(|l| (0..tokens * experts).map(|i| ((i * 37 + l * 11) % 29) as f32 / 9.0).collect())
            .collect();
        for definition in [AuxiliaryDefinition::Olmo, AuxiliaryDefinition::HuggingFace, AuxiliaryDefinition::Megatron] {
            let config = Auxiliary { definition, load_balancing_weight: 10.0, z_weight: 10.0 };
            let here = record(&logits, experts, top_k);
            let (_, gradients) = losses(&here, &batch, &config, 0.5);
            let value = |logits: &[Vec<f32>]| {
                let (losses, _) = losses(&record(logits, experts, top_k), &batch, &config, 0.5);
                losses.load_balancing + losses.z
            };
            for l in 0..layers {
                let routing = &here.layers[l].routing;
                let zeros = Tensor::zeros(&[tokens, top_k]);
                let got = router::backward(routing, &zeros, false, gradients.layer(l), gradients.z);
                for i in 0..tokens * experts {
                    let moved = |by: f32| {
                        let mut logits = logits.clone();
                        logits[l][i] += by;
                        value(&logits)
                    };
                    let expected = (moved(1.0 / 64.0) - moved(-1.0 / 64.0)) * 32.0;
                    assert!(
                        (f64::from(got[i]) - expected).abs() < 1e-3,
                        "{definition:?} {l} {i}: {} {expected}",
                        got[i]
                    );
                }
            }
        }
    }
}
