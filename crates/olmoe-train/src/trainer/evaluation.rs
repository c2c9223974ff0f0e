//! Perplexity on held-out texts: OLMo's evaluators of the type `lm`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::pretrain::{Batch, DataSet};
use olmoe_data::random::Mersenne;
use olmoe_model::model::{Activations, Keep, Model};

use super::data;
use super::error::TrainError;
use crate::config::{EvaluatorType, TrainConfig, count};
use crate::loss::cross_entropy;

/// Sets of texts, which one pass goes through together.
pub(super) struct Evaluator {
    /// Names in the log, each with the file that comes after its own: those of the sets, or that of the evaluator.
    labels: Vec<(String, usize)>,
    data: Arc<DataSet>,
    seed: u64,
    batch_size: usize,
    batches: usize,
    drop_last: bool,
}

/// The evaluators of a configuration, and the labels of those that are of another type.
pub(super) fn evaluators(config: &TrainConfig) -> Result<(Vec<Evaluator>, Vec<String>), TrainError> {
    let (mut evaluators, mut others) = (Vec::new(), Vec::new());
    for one in &config.evaluators {
        if one.r#type == EvaluatorType::Downstream {
            others.push(one.label.clone());
            continue;
        }
        let mut files = 0;
        let mut label = |(label, own): (&String, &Vec<String>)| {
            files += own.len();
            (label.clone(), files)
        };
        let paths = one.data.paths.iter().map(|paths| (&one.label, paths));
        let labels = paths.chain(one.data.datasets.iter().flatten()).map(&mut label).collect();
        let data = data::open(&one.data, one.data.files(), &config.model)?;
        let subset = one.subset_num_batches.unwrap_or(config.eval_subset_num_batches);
        evaluators.push(Evaluator {
            labels,
            seed: one.data.seed.unwrap_or(config.seed),
            batch_size: count(one.device_eval_batch_size.unwrap_or(config.device_eval_batch_size))
                .clamp(1, count(data.len().into()).max(1)),
            batches: u64::try_from(subset).ok().filter(|subset| *subset > 0).map_or(usize::MAX, count),
            drop_last: one.data.drop_last,
            data,
        });
    }
    Ok((evaluators, others))
}

impl Evaluator {
    /// By label, the mean over the instances of each instance's mean loss, none where there is no instance; nothing when
    /// `interrupt` is set.
    fn losses(&self, model: &Model, interrupt: &AtomicBool) -> Result<Option<Vec<Option<f64>>>, TrainError> {
        let mut activations = Activations::new(Keep::Nothing);
        let mut sums = vec![(0.0, 0u64); self.labels.len()];
        let order = order(self.data.len(), self.seed);
        for indices in order.chunks(self.batch_size).take(self.batches) {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if self.drop_last && indices.len() < self.batch_size {
                break;
            }
            let batch = Batch::read(&self.data, indices, 0)?;
            model.forward(&data::micro_batch(&batch, 0..batch.size)?, &mut activations)?;
            let log_probs = model.log_probs(&activations, &batch.targets())?;
            for (logp, file) in log_probs.logp_t.chunks(batch.sequence_length).zip(&batch.files) {
                let label = self.labels.partition_point(|(_, end)| *end <= *file as usize);
                if let Some((sum, instances)) = sums.get_mut(label) {
                    *sum += cross_entropy(logp, (batch.sequence_length.max(2) - 1) as f64);
                    *instances += 1;
                }
            }
        }
        Ok(Some(sums.into_iter().map(|(sum, instances)| (instances > 0).then(|| sum / instances as f64)).collect()))
    }
}

/// The order in which an evaluator sees its instances, the same every time: `torch.randperm` as its sampler draws it. A
/// subset is the beginning of it.
fn order(instances: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..instances).collect();
    // torch takes as many bits of a seed.
    let mut random = Mersenne::numpy(seed as u32);
    for i in 0..instances.saturating_sub(1) {
        let other = i + random.next_u32() % (instances - i);
        order.swap(i as usize, other as usize);
    }
    order
}

/// All of them, with OLMo's names, and whether these are all: fewer when `interrupt` is set.
pub(super) fn evaluate(
    evaluators: &[Evaluator],
    model: &Model,
    interrupt: &AtomicBool,
) -> Result<(Vec<(String, f64)>, bool), TrainError> {
    let mut metrics = Vec::new();
    for evaluator in evaluators {
        let Some(losses) = evaluator.losses(model, interrupt)? else { return Ok((metrics, false)) };
        for ((label, _), loss) in evaluator.labels.iter().zip(losses) {
            let Some(loss) = loss else { continue };
            metrics.push((format!("eval/{label}/CrossEntropyLoss"), loss));
            metrics.push((format!("eval/{label}/Perplexity"), loss.exp()));
        }
    }
    Ok((metrics, true))
}

#[cfg(test)]
mod tests {
    use super::order;

    /// `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` of torch 2.15.
    #[test]
    fn orders_are_those_of_torch() {
        assert_eq!(order(10, 6198), [8, 5, 1, 2, 7, 9, 4, 0, 3, 6]);
        assert_eq!(order(10, 6198 + (1 << 32)), order(10, 6198));
        let first = [41615, 23657, 92717, 16389, 28607, 45432, 45737, 59262, 69052, 23840];
        assert_eq!(order(100_000, 7)[..10], first);
        assert!(order(0, 1).is_empty());
        assert_eq!(order(1, 1), [0]);
    }
}
