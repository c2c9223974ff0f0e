//! What the routers do with the data: the experts that it uses most, and how their choices drift in a run.

use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::instruct::Example;
use olmoe_model::model::{Activations, Keep, Model};

use super::error::FinetuneError;
use super::examples::micro_batches;
use super::settings::{EsftScore, EsftSettings, MicroBatch};
use super::stack::{Stack, Unit};
use crate::trainer::TrainError;

/// Tokens of a pass over the data for its statistics.
const TOKENS_AT_ONCE: usize = 4096;

/// The experts of a layer that are to be trained, with the sum of their scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenExperts {
    /// The layer.
    pub layer: usize,
    /// The experts, ascending.
    pub experts: Vec<usize>,
    /// The sum of their scores; those of all experts of the layer have the sum 1.
    pub score: f64,
}

/// The experts that examples use most, by layer, after forward passes over them: those with the largest scores, as few as
/// have a sum of `threshold` (ESFT, Wang et al., arXiv 2407.01906). Of equal scores the lower expert comes first.
///
/// # Errors
/// Ids that the model has no rows for; [`FinetuneError::Interrupted`].
pub fn most_used_experts(
    model: &Model,
    examples: &[&Example],
    settings: &EsftSettings,
    interrupt: &AtomicBool,
) -> Result<Vec<ChosenExperts>, TrainError> {
    let mut scores: Vec<(usize, Vec<f64>)> = Vec::new();
    let mut activations = Activations::new(Keep::Nothing);
    let tokens: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
    for some in micro_batches(&tokens, MicroBatch::Tokens(TOKENS_AT_ONCE)) {
        if interrupt.load(Ordering::Relaxed) {
            return Err(FinetuneError::Interrupted.into());
        }
        let units: Vec<Unit<'_>> = some.map(|at| Unit::of(at, examples[at])).collect();
        let stack = Stack::new(units.iter(), None)?;
        model.forward(&stack.batch, &mut activations)?;
        for (at, layer) in activations.routing.layers.iter().enumerate() {
            if scores.len() == at {
                scores.push((layer.layer, vec![0.0; layer.load_e.len()]));
            }
            let routing = &layer.routing;
            for t in 0..stack.batch.tokens() {
                let (experts, weights) = (routing.ids_tk.row(t), routing.weights_tk.row(t));
                for (expert, weight) in experts.iter().zip(weights) {
                    scores[at].1[*expert as usize] += match settings.score {
                        EsftScore::Token => 1.0,
                        EsftScore::Gate => f64::from(*weight),
                    };
                }
            }
        }
    }
    Ok(scores.iter().map(|(layer, scores)| chosen(*layer, scores, settings.threshold)).collect())
}

/// The fewest experts with a share of the scores.
fn chosen(layer: usize, scores: &[f64], threshold: f64) -> ChosenExperts {
    let total = scores.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (mut experts, mut sum) = (Vec::new(), 0.0);
    for expert in order {
        if sum / total >= threshold {
            break;
        }
        sum += scores[expert];
        experts.push(expert);
    }
    experts.sort_unstable();
    ChosenExperts { layer, experts, score: sum / total }
}

/// The choices of the routers for some examples at the start of a run.
pub(super) struct Drift {
    stack: Stack,
    /// By layer, the experts of each token, ascending.
    start: Vec<(usize, Vec<u32>)>,
    choices: usize,
}

impl Drift {
    /// The first examples with so many tokens, under the model at the start.
    pub(super) fn new(model: &Model, examples: &[&Example], tokens: usize) -> Result<Drift, TrainError> {
        let mut left = tokens;
        let few = examples.iter().take_while(|example| {
            let before = left;
            left = left.saturating_sub(example.ids.len());
            before > 0
        });
        let units: Vec<Unit<'_>> = few.enumerate().map(|(at, row)| Unit::of(at, row)).collect();
        let stack = Stack::new(units.iter(), None)?;
        let mut drift = Drift { stack, start: Vec::new(), choices: 1 };
        drift.start = drift.choices(model)?;
        Ok(drift)
    }

    fn choices(&mut self, model: &Model) -> Result<Vec<(usize, Vec<u32>)>, TrainError> {
        let mut activations = Activations::new(Keep::Nothing);
        model.forward(&self.stack.batch, &mut activations)?;
        let mut all = Vec::new();
        for layer in &activations.routing.layers {
            let ids = &layer.routing.ids_tk;
            self.choices = ids.cols().max(1);
            let mut own: Vec<u32> = ids[..].to_vec();
            own.chunks_mut(self.choices).for_each(<[u32]>::sort_unstable);
            all.push((layer.layer, own));
        }
        Ok(all)
    }

    /// By layer, the share of the choices that are other ones than at the start, and the mean of the layers.
    pub(super) fn metrics(&mut self, model: &Model) -> Result<Vec<(String, f64)>, TrainError> {
        let now = self.choices(model)?;
        let share = |(then, now): (&[u32], &[u32])| {
            let kept = now.iter().filter(|expert| then.binary_search(expert).is_ok()).count();
            now.len() - kept
        };
        let mut metrics = Vec::new();
        for ((layer, then), (_, now)) in self.start.iter().zip(&now) {
            let tokens = then.chunks(self.choices).zip(now.chunks(self.choices));
            let moved: usize = tokens.map(share).sum();
            metrics.push((format!("routing/drift/layer{layer}"), moved as f64 / now.len().max(1) as f64));
        }
        if !metrics.is_empty() {
            let mean = metrics.iter().map(|(_, share)| share).sum::<f64>() / metrics.len() as f64;
            metrics.push(("routing/drift".to_owned(), mean));
        }
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_experts_with_a_share() {
        let scores = [1.0, 4.0, 2.0, 4.0, 0.0];
        for (threshold, experts) in [(0.1, vec![1]), (0.4, vec![1, 3]), (0.8, vec![1, 2, 3]), (1.0, vec![0, 1, 2, 3])] {
            assert_eq!(chosen(2, &scores, threshold).experts, experts, "{threshold}");
        }
        assert_eq!(chosen(0, &[], 0.5).experts, [0; 0]);
    }
}
