//! The log-probabilities of many continuations, each after a context of its own.
//!
//! The pairs of context and continuation form a tree: what several have in common, such as the examples before every
//! question of a task, or the question before its choices, is in it once (`tree`). The scorer walks through the tree,
//! depth first, in passes of at most [`ScorerConfig::step_tokens`] tokens, and one cache holds the path from the root to
//! where the walk is. So each common beginning is computed once, however many pairs have it and wherever they are in the
//! list, nothing is copied, and the memory is that of one sequence and one pass. The log-probabilities of a pair are those
//! of the pair alone, bit for bit.

mod tree;

use std::collections::HashMap;
use std::iter::Peekable;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_model::batch::{Batch, BatchError};
use olmoe_model::model::{Activations, Keep, KvCache, Model, ModelError, RoutingRecord};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::ops::cross_entropy::LogProbs;

use crate::config::{EngineError, check_batches};
pub use tree::Pair;
use tree::{Node, Query, Tree};

/// The limits of a scorer. Only `max_tokens` and `cache_type` affect results.
#[derive(Clone, Debug)]
pub struct ScorerConfig {
    /// Most tokens of a pass (512).
    pub step_tokens: usize,
    /// Most tokens that the model reads of a pair, if fewer than the model's context has: longer contexts are cut from the
    /// left. A cache has room for so many.
    pub max_tokens: Option<usize>,
    /// The type of keys and values in the cache; `None` for that of the model's precision.
    pub cache_type: Option<CacheType>,
    /// Whether what pairs have in common is computed once (true); false to measure what that saves.
    pub share: bool,
}

impl Default for ScorerConfig {
    fn default() -> ScorerConfig {
        ScorerConfig { step_tokens: 512, max_tokens: None, cache_type: None, share: true }
    }
}

/// The score of a continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredTokens {
    /// The log-probability of each token, natural logarithm. NaN where the logits of the model are not finite.
    pub log_probs: Vec<f32>,
    /// Whether each token is the most likely one; of equal ones the lower id is.
    pub greedy: Vec<bool>,
}

impl ScoredTokens {
    /// The log-probability of the continuation: the sum, from the first token to the last.
    pub fn sum(&self) -> f64 {
        self.log_probs.iter().map(|log_prob| f64::from(*log_prob)).sum()
    }

    /// Whether every token is the most likely one.
    pub fn is_greedy(&self) -> bool {
        self.greedy.iter().all(|greedy| *greedy)
    }
}

/// Why pairs cannot be scored. Nothing was computed.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// No context.
    #[error("pair {pair}: the context has no tokens; give at least one, such as the token that begins or ends a text")]
    NoContext {
        /// Index of the pair.
        pair: usize,
    },
    /// No continuation.
    #[error("pair {pair}: the continuation has no tokens, so it has no log-probability; give at least one")]
    NoContinuation {
        /// Index of the pair.
        pair: usize,
    },
    /// A continuation without room for a token before it.
    #[error(
        "pair {pair}: the continuation has {tokens} tokens, which are never cut, but at most {limit} can be scored; shorten it, or raise the limit on tokens up to the model's context"
    )]
    TooLong {
        /// Index of the pair.
        pair: usize,
        /// Its tokens.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// An id outside the vocabulary.
    #[error(
        "pair {pair}: id {id} is outside the model's vocabulary of {rows}; check that the tokenizer is the model's"
    )]
    TokenId {
        /// Index of the pair.
        pair: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// More tokens than are counted.
    #[error("the pairs have more than {} tokens to compute; score them in several parts", u32::MAX)]
    TooMany,
    /// The model refused a pass, which the checks before should have prevented.
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    /// The same for the tokens of a pass.
    #[error("the model: {0}")]
    Batch(#[from] BatchError),
}

impl ScoreError {
    /// The index of the pair, if one is the reason.
    pub fn pair(&self) -> Option<usize> {
        match self {
            ScoreError::NoContext { pair }
            | ScoreError::NoContinuation { pair }
            | ScoreError::TooLong { pair, .. }
            | ScoreError::TokenId { pair, .. } => Some(*pair),
            ScoreError::TooMany | ScoreError::Model(_) | ScoreError::Batch(_) => None,
        }
    }
}

/// A token to be predicted.
#[derive(Clone, Copy)]
struct Target {
    /// The row of the token before it, in the order of the walk.
    row: u32,
    id: u32,
    pair: u32,
    /// Place in the continuation.
    place: u32,
}

/// Pairs that were checked, and what has to be computed for them.
pub struct ScorePlan<'a> {
    queries: Vec<Query<'a>>,
    tree: Tree,
    /// In the order of rows, and of ids within a row.
    targets: Vec<Target>,
}

impl ScorePlan<'_> {
    /// Tokens that the model reads: those of the tree.
    pub fn computed_tokens(&self) -> usize {
        self.tree.rows()
    }

    /// Tokens that it would read if each pair were scored alone.
    pub fn pair_tokens(&self) -> usize {
        self.queries.iter().map(|query| query.len()).sum()
    }

    /// Tokens that are scored.
    pub fn scored_tokens(&self) -> usize {
        self.targets.len()
    }

    /// The most tokens on a path, for which the cache has room.
    fn longest(&self) -> usize {
        self.queries.iter().map(|query| query.len()).max().unwrap_or(0)
    }
}

/// The routing of some tokens of a pass: the record of the pass, their rows in it, and the number of pairs that have them.
pub struct PairRouting<'a> {
    /// The record.
    pub record: &'a RoutingRecord,
    /// The rows.
    pub rows: Range<usize>,
    /// The number of pairs.
    pub pairs: u64,
}

/// Scores continuations with a model.
pub struct Scorer {
    model: Arc<Model>,
    config: ScorerConfig,
    activations: Activations,
}

impl Scorer {
    /// A scorer for this model.
    ///
    /// # Errors
    /// Limits without use, and a model whose results would depend on the batch.
    pub fn new(model: Arc<Model>, config: ScorerConfig) -> Result<Scorer, EngineError> {
        if config.step_tokens == 0 {
            return Err(EngineError::NoTokens { limit: "step_tokens" });
        }
        if config.max_tokens == Some(0) {
            return Err(EngineError::NoTokens { limit: "max_tokens" });
        }
        check_batches(&model)?;
        Ok(Scorer { model, config, activations: Activations::new(Keep::Nothing) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The limits.
    pub fn config(&self) -> &ScorerConfig {
        &self.config
    }

    /// Most tokens that the model reads of a pair.
    pub fn max_tokens(&self) -> usize {
        let context = self.model.config().max_sequence_length;
        self.config.max_tokens.map_or(context, |most| most.min(context))
    }

    /// Checks pairs, and finds out what they have in common.
    ///
    /// # Errors
    /// The first pair that cannot be scored.
    pub fn plan<'a>(&self, pairs: &[Pair<'a>]) -> Result<ScorePlan<'a>, ScoreError> {
        let (limit, rows) = (self.max_tokens(), self.model.config().embedding_size);
        let mut queries = Vec::with_capacity(pairs.len());
        for (at, pair) in pairs.iter().enumerate() {
            if pair.context.is_empty() {
                return Err(ScoreError::NoContext { pair: at });
            }
            if pair.continuation.is_empty() {
                return Err(ScoreError::NoContinuation { pair: at });
            }
            if pair.continuation.len() > limit {
                return Err(ScoreError::TooLong { pair: at, tokens: pair.continuation.len(), limit });
            }
            if let Some(id) = pair.context.iter().chain(pair.continuation).find(|id| **id as usize >= rows) {
                return Err(ScoreError::TokenId { pair: at, id: *id, rows });
            }
            queries.push(Query::new(*pair, limit));
        }
        let tree = Tree::new(&queries, self.config.share);
        if pairs.len().max(tree.rows()) > u32::MAX as usize {
            return Err(ScoreError::TooMany);
        }
        let mut targets = Vec::new();
        for (pair, query) in queries.iter().enumerate() {
            let rows = tree.scored_rows(pair, query.scored());
            for (row, (place, id)) in rows.zip(query.continuation().iter().enumerate().rev()) {
                targets.push(Target { row: row as u32, id: *id, pair: pair as u32, place: place as u32 });
            }
        }
        targets.sort_unstable_by_key(|target| (target.row, target.id, target.pair, target.place));
        Ok(ScorePlan { queries, tree, targets })
    }

    /// Scores the pairs of a plan. `scored` gets the index of a pair and its score as soon as it is there, nearly in the
    /// order of the list. `interrupt` is read before every pass; when it is set, or `scored` breaks, nothing further is
    /// computed. Returns whether all pairs were scored.
    ///
    /// # Errors
    /// None that the plan has not refused.
    pub fn run(
        &mut self,
        plan: &ScorePlan,
        interrupt: &AtomicBool,
        scored: impl FnMut(usize, ScoredTokens) -> ControlFlow<()>,
    ) -> Result<bool, ScoreError> {
        self.run_routed(plan, interrupt, scored, |_| ())
    }

    /// The same; `routed` also gets the routing of every token. A token that several pairs have in common comes once, with
    /// their number, so that each pair counts as if it were alone.
    ///
    /// # Errors
    /// As [`Scorer::run`].
    pub fn run_routed(
        &mut self,
        plan: &ScorePlan,
        interrupt: &AtomicBool,
        mut scored: impl FnMut(usize, ScoredTokens) -> ControlFlow<()>,
        mut routed: impl FnMut(PairRouting<'_>),
    ) -> Result<bool, ScoreError> {
        let kind = self.config.cache_type.unwrap_or(KvCache::default_type(self.model.precision()));
        let mut cache = [KvCache::of_type(&self.model, plan.longest(), kind)];
        let mut unfinished: HashMap<u32, Unfinished> = HashMap::new();
        let (mut step, mut targets) = (Step::default(), &plan.targets[..]);
        let mut walk = Walk { plan, nodes: plan.tree.walk().peekable(), begun: 0, rows: 0 };
        while walk.next_step(self.config.step_tokens, &mut step) {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let (own, rest) = targets.split_at(targets.partition_point(|target| (target.row as usize) < walk.rows));
            targets = rest;
            step.predict(own, walk.rows);
            let found = self.pass(&step, &mut cache)?;
            let mut row = 0;
            for ((_, length), pairs) in step.parts.iter().zip(&step.pairs) {
                routed(PairRouting { record: &self.activations.routing, rows: row..row + length, pairs: *pairs });
                row += length;
            }
            let top1 = found.statistics.as_ref().map(|statistics| &statistics.top1_t[..]).unwrap_or_default();
            for (target, at) in own.iter().zip(&step.results) {
                let count = plan.queries[target.pair as usize].continuation().len();
                let pair = unfinished.entry(target.pair).or_insert_with(|| Unfinished::new(count));
                pair.score.log_probs[target.place as usize] = found.logp_t[*at];
                pair.score.greedy[target.place as usize] = top1[*at] == 1.0;
                pair.left -= 1;
                if pair.left == 0
                    && let Some(pair) = unfinished.remove(&target.pair)
                    && scored(target.pair as usize, pair.score).is_break()
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Runs the model over a step, and the head over the rows that are scored.
    fn pass(&mut self, step: &Step, cache: &mut [KvCache; 1]) -> Result<LogProbs, ScoreError> {
        if let Some((before, _)) = step.parts.first() {
            cache[0].truncate(*before);
        }
        let batch = Batch::walk(&step.ids, &step.parts)?;
        self.model.forward_cached(&batch, cache, &mut self.activations)?;
        Ok(self.model.log_probs_and_statistics_at(&self.activations, &step.rows, &step.targets)?)
    }
}

/// A pair of which some tokens are scored.
struct Unfinished {
    left: usize,
    score: ScoredTokens,
}

impl Unfinished {
    fn new(count: usize) -> Unfinished {
        Unfinished { left: count, score: ScoredTokens { log_probs: vec![0.0; count], greedy: vec![false; count] } }
    }
}

/// The part of the walk that a pass goes over.
#[derive(Default)]
struct Step {
    ids: Vec<u32>,
    /// Tokens before each part, and tokens of it.
    parts: Vec<(usize, usize)>,
    /// The number of pairs that have each part.
    pairs: Vec<u64>,
    /// Rows of the pass and the ids that are predicted there, each once.
    rows: Vec<u32>,
    targets: Vec<u32>,
    /// For each target of the step, its place among these.
    results: Vec<usize>,
}

impl Step {
    /// What is predicted, of a step that ends before row `end` of the walk.
    fn predict(&mut self, targets: &[Target], end: usize) {
        self.rows.clear();
        self.targets.clear();
        self.results.clear();
        let first = end - self.ids.len();
        for target in targets {
            let row = (target.row as usize - first) as u32;
            if (self.rows.last(), self.targets.last()) != (Some(&row), Some(&target.id)) {
                self.rows.push(row);
                self.targets.push(target.id);
            }
            self.results.push(self.rows.len() - 1);
        }
    }
}

/// Where a walk is.
struct Walk<'a, I: Iterator<Item = &'a Node>> {
    plan: &'a ScorePlan<'a>,
    /// The nodes that are not finished.
    nodes: Peekable<I>,
    /// How many tokens of the first of them are done.
    begun: usize,
    /// How many tokens of all are done.
    rows: usize,
}

impl<'a, I: Iterator<Item = &'a Node>> Walk<'a, I> {
    /// Goes on by at most `most` tokens. Returns whether there were any.
    fn next_step(&mut self, most: usize, step: &mut Step) -> bool {
        step.ids.clear();
        step.parts.clear();
        step.pairs.clear();
        while step.ids.len() < most
            && let Some(node) = self.nodes.peek()
        {
            let start = node.places.start + self.begun;
            let end = node.places.end.min(start + most - step.ids.len());
            step.ids.extend((start..end).map(|place| self.plan.queries[node.query].token(place)));
            step.parts.push((start, end - start));
            step.pairs.push(node.pairs);
            self.begun = end - node.places.start;
            if end == node.places.end {
                self.begun = 0;
                self.nodes.next();
            }
        }
        self.rows += step.ids.len();
        !step.ids.is_empty()
    }
}
