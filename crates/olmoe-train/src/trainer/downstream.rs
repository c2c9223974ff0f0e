//! Tasks with answers: OLMo's evaluators of the type `downstream`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_data::{SpecialTokens, Tokenizer};
use olmoe_engine::{EngineConfig, ScorerConfig};
use olmoe_eval::backend::local::{LocalBackend, LocalModel, SUITES_CONTEXT};
use olmoe_eval::source::Roots;
use olmoe_eval::suites::in_loop;
use olmoe_eval::task::Options;
use olmoe_eval::{Task, run, score};
use olmoe_model::model::Model;
use serde_json::Value;

use super::error::TrainError;
use super::samples::special_tokens;
use crate::config::{EvaluatorType, TrainConfig, count};

/// The tasks of a run.
pub(super) struct Downstream {
    tasks: Vec<Task>,
    tokenizer: Arc<Tokenizer>,
    special: SpecialTokens,
}

impl Downstream {
    /// Reads the tokenizer and the tasks. None if the configuration has no tasks, or no data for them.
    pub(super) fn open(config: &TrainConfig) -> Result<Option<Downstream>, TrainError> {
        let evaluators = || config.evaluators.iter().filter(|one| one.r#type == EvaluatorType::Downstream);
        let data = config.evaluation_data.as_deref().unwrap_or_default();
        if data.is_empty() || evaluators().next().is_none() {
            return Ok(None);
        }
        let paths: Vec<&Path> = data.iter().map(Path::new).collect();
        let tasks = Roots::new(&paths).map_err(olmoe_eval::EvalError::from).and_then(|roots| {
            let of = |label: &str| in_loop::tasks(&[label], &roots, &Options::default());
            evaluators().map(|one| of(&one.label)).collect::<Result<Vec<_>, _>>()
        });
        let mut tasks: Vec<Task> =
            tasks.map_err(|error| TrainError::Downstream(Box::new(error)))?.into_iter().flatten().collect();
        for (task, one) in tasks.iter_mut().zip(evaluators()) {
            let batches = one.subset_num_batches.unwrap_or(config.eval_subset_num_batches);
            let size = count(one.device_eval_batch_size.unwrap_or(config.device_eval_batch_size));
            if let Some(batches) = u64::try_from(batches).ok().filter(|batches| *batches > 0) {
                keep(task, count(batches).saturating_mul(size));
            }
        }
        let tokenizer = Tokenizer::from_file(&config.tokenizer.identifier)?;
        let special = special_tokens(config, &tokenizer)?;
        Ok(Some(Downstream { tasks, tokenizer: Arc::new(tokenizer), special }))
    }

    /// All numbers, with OLMo's names, and whether these are all: fewer when `interrupt` is set.
    pub(super) fn evaluate(
        &self,
        model: &Arc<Model>,
        interrupt: &AtomicBool,
    ) -> Result<(Vec<(String, f64)>, bool), TrainError> {
        let mut metrics = Vec::new();
        let local = LocalModel::of(model.clone(), self.tokenizer.clone(), &self.special, Value::Null);
        let scorer = ScorerConfig { max_tokens: Some(SUITES_CONTEXT), ..ScorerConfig::default() };
        let mut backend = LocalBackend::new(local, scorer, EngineConfig::default())?;
        for task in &self.tasks {
            let failed = |error: String| TrainError::Task { label: task.name.clone(), error };
            let answers = run::ask(task, &mut backend, interrupt).map_err(|error| failed(error.to_string()))?;
            let Some(answers) = answers else { return Ok((metrics, false)) };
            let score = score::score(task, &answers).map_err(|error| failed(error.to_string()))?;
            metrics.extend(in_loop::logged(&task.name, &score));
        }
        Ok((metrics, true))
    }
}

/// The first questions of a task that have no more than so many requests together.
fn keep(task: &mut Task, requests: usize) {
    let mut sum = 0;
    let questions = task.questions.iter().take_while(|question| {
        sum += question.requests.len();
        sum <= requests
    });
    let questions = questions.count();
    // One question is the least that has a metric.
    task.questions.truncate(questions.max(1));
}
