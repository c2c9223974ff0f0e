//! Perplexity on held-out texts: OLMo's evaluators of the type `lm`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::pretrain::{DataSet, Loader, LoaderSettings, Order, OrderSettings};
use olmoe_model::model::{Activations, Keep, Model};

use super::data;
use super::error::TrainError;
use crate::config::{EvaluatorType, TrainConfig};

/// A set of texts.
pub(super) struct Evaluator {
    /// The name in the log: that of the set, or of the evaluator if it has only one.
    label: String,
    data: Arc<DataSet>,
    batch_size: usize,
    batches: Option<usize>,
    drop_last: bool,
}

/// The evaluators of a configuration, and the labels of those that are of another type.
pub(super) fn evaluators(config: &TrainConfig) -> Result<(Vec<Evaluator>, Vec<String>), TrainError> {
    let (mut evaluators, mut others) = (Vec::new(), Vec::new());
    let count = |x: u64| usize::try_from(x).unwrap_or(usize::MAX);
    for one in &config.evaluators {
        if one.r#type == EvaluatorType::Downstream {
            others.push(one.label.clone());
            continue;
        }
        let subset = one.subset_num_batches.unwrap_or(config.eval_subset_num_batches);
        let mut add = |label: &str, files: &[String]| {
            evaluators.push(Evaluator {
                label: label.to_owned(),
                data: data::open(&one.data, files.iter().map(String::as_str), &config.model)?,
                batch_size: count(one.device_eval_batch_size.unwrap_or(config.device_eval_batch_size)).max(1),
                batches: u64::try_from(subset).ok().map(count),
                drop_last: one.data.drop_last,
            });
            Ok::<(), TrainError>(())
        };
        if let Some(files) = &one.data.paths {
            add(&one.label, files)?;
        }
        for (label, files) in one.data.datasets.iter().flatten() {
            add(label, files)?;
        }
    }
    Ok((evaluators, others))
}

impl Evaluator {
    /// The mean over the instances of each instance's mean loss; none if there is no instance, or when `interrupt` is set.
    fn loss(&self, model: &Model, interrupt: &AtomicBool) -> Result<Option<f64>, TrainError> {
        let order = OrderSettings { shuffle: false, ..OrderSettings::default() };
        let order = Arc::new(Order::new(self.data.len(), order)?);
        let settings =
            LoaderSettings { batch_size: self.batch_size, drop_last: self.drop_last, ..LoaderSettings::default() };
        let mut activations = Activations::new(Keep::Nothing);
        let (mut sum, mut instances) = (0.0, 0u64);
        for batch in Loader::new(self.data.clone(), order, settings)?.take(self.batches.unwrap_or(usize::MAX)) {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let batch = batch?;
            model.forward(&data::micro_batch(&batch, 0..batch.size)?, &mut activations)?;
            let log_probs = model.log_probs(&activations, &batch.targets())?;
            for logp in log_probs.logp_t.chunks(batch.sequence_length) {
                let total: f64 = logp.iter().map(|x| f64::from(*x)).sum();
                sum -= total / (batch.sequence_length.max(2) - 1) as f64;
                instances += 1;
            }
        }
        Ok((instances > 0).then(|| sum / instances as f64))
    }
}

/// All of them, with OLMo's names; less than all when `interrupt` is set.
pub(super) fn evaluate(
    evaluators: &[Evaluator],
    model: &Model,
    interrupt: &AtomicBool,
) -> Result<Vec<(String, f64)>, TrainError> {
    let mut metrics = Vec::new();
    for evaluator in evaluators {
        if let Some(loss) = evaluator.loss(model, interrupt)? {
            metrics.push((format!("eval/{}/CrossEntropyLoss", evaluator.label), loss));
            metrics.push((format!("eval/{}/Perplexity", evaluator.label), loss.exp()));
        }
    }
    Ok(metrics)
}
