//! The engine: many requests over one model, step by step.

use std::collections::VecDeque;
use std::sync::Arc;

use olmoe_data::Tokenizer;
use olmoe_model::batch::{Batch, BatchError};
use olmoe_model::model::{Activations, Keep, KvCache, Model};
use olmoe_tensor::tensor::Tensor;

use crate::event::{Event, FinishReason, GenerationError};
use crate::prefix::{Held, Kept, common};
use crate::request::{Request, RequestId, SubmitError};
use crate::sampling::Candidates;
use crate::sampling::random::derive;
use crate::sequence::{Sequence, Task};

/// The limits of an engine. None of them changes a result.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most samples that run at once (16).
    pub max_running: usize,
    /// Most tokens in a step, at least `max_running` (512): one of each sample that is generating, the rest from prompts.
    /// Fewer make the tokens come more evenly while prompts are read, more make prompts faster.
    pub step_tokens: usize,
    /// Most samples that wait (1024).
    pub queue: usize,
    /// Tokens that the caches of running samples have room for together (32768). A sample begins when there is room for
    /// its prompt and all that it may generate. See [`Engine::cache_bytes_per_token`].
    pub cache_tokens: usize,
    /// Tokens that caches of finished samples have room for together, beside those (8192); 0 keeps none.
    pub kept_tokens: usize,
    /// Tokens that end a text, unless the request says `ignore_eos`.
    pub ends: Vec<u32>,
    /// Makes the seeds of requests that come without one (0).
    pub seed: u64,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            max_running: 16,
            step_tokens: 512,
            queue: 1024,
            cache_tokens: 32768,
            kept_tokens: 8192,
            ends: Vec::new(),
            seed: 0,
        }
    }
}

/// Why there is no engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// Nothing could run.
    #[error("max_running is 0; let at least one sample run")]
    NothingRuns,
    /// Not a token for every sample.
    #[error(
        "step_tokens is {step_tokens}, below max_running, {max_running}: every running sample takes a token of a step; raise it"
    )]
    StepTooSmall {
        /// `step_tokens`.
        step_tokens: usize,
        /// `max_running`.
        max_running: usize,
    },
    /// A token outside the vocabulary.
    #[error(
        "the end-of-text id {id} is outside the model's vocabulary of {rows}; check that the tokenizer is the model's"
    )]
    EndId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Experts that drop tokens.
    #[error(
        "this model's experts have a capacity factor of {factor}: which tokens they drop depends on all tokens of a batch, so no text would be the same twice; take the factor out of its configuration"
    )]
    Capacity {
        /// The factor.
        factor: f32,
    },
}

/// How much is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Samples that wait.
    pub waiting: usize,
    /// Samples that run.
    pub running: usize,
    /// Tokens that the caches of running samples have room for.
    pub cache_tokens: usize,
    /// Tokens that kept caches have room for.
    pub kept_tokens: usize,
}

/// Runs requests over a model.
pub struct Engine<'a> {
    model: &'a Model,
    tokenizer: Option<&'a Tokenizer>,
    config: EngineConfig,
    submitted: u64,
    waiting: VecDeque<Sequence<'a>>,
    /// From the one that began first on.
    running: Vec<Sequence<'a>>,
    kept: Kept,
    /// What happened between steps.
    between: Vec<Event>,
    step: StepMemory,
}

/// What a step needs, kept for the next one so that its memory is asked for once.
struct StepMemory {
    activations: Activations,
    candidates: Candidates,
    /// The samples that take part: where they are in `running`, and how many tokens each reads.
    parts: Vec<(usize, usize)>,
    ids: Vec<u32>,
    lengths: Vec<usize>,
    held: Vec<usize>,
    caches: Vec<KvCache>,
    /// Rows of the pass that end a sample's tokens.
    last: Vec<usize>,
}

impl<'a> Engine<'a> {
    /// An engine without work. Without a tokenizer it gives ids and no text.
    ///
    /// # Errors
    /// Limits that do not fit together, and a model whose results would depend on the batch.
    pub fn new(
        model: &'a Model,
        tokenizer: Option<&'a Tokenizer>,
        config: EngineConfig,
    ) -> Result<Engine<'a>, EngineError> {
        let EngineConfig { max_running, step_tokens, .. } = config;
        if max_running == 0 {
            return Err(EngineError::NothingRuns);
        }
        if step_tokens < max_running {
            return Err(EngineError::StepTooSmall { step_tokens, max_running });
        }
        let rows = model.config().embedding_size;
        if let Some(id) = config.ends.iter().find(|id| **id as usize >= rows) {
            return Err(EngineError::EndId { id: *id, rows });
        }
        // A factor of 0 is no limit.
        if let Some(factor) = model.config().moe().and_then(|moe| moe.capacity_factor).filter(|factor| *factor > 0.0) {
            return Err(EngineError::Capacity { factor });
        }
        let kept = Kept::new(config.kept_tokens);
        let step = StepMemory {
            activations: Activations::new(Keep::Nothing),
            candidates: Candidates::default(),
            parts: Vec::new(),
            ids: Vec::new(),
            lengths: Vec::new(),
            held: Vec::new(),
            caches: Vec::new(),
            last: Vec::new(),
        };
        let (waiting, running, between) = Default::default();
        Ok(Engine { model, tokenizer, config, submitted: 0, waiting, running, kept, between, step })
    }

    /// Bytes of keys and values of a token of this model.
    pub fn cache_bytes_per_token(model: &Model) -> usize {
        const TOKENS: usize = 32;
        KvCache::bytes_for(model.config(), model.precision(), TOKENS) as usize / TOKENS
    }

    /// Takes a request into the queue. Its samples run as soon as there is room, in the order in which they came.
    ///
    /// # Errors
    /// [`SubmitError`]: what the model cannot do, or a full queue.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let max_tokens = request.check(self.model.config(), &self.config, self.tokenizer.is_some())?;
        let (waiting, asked, room) = (self.waiting.len(), request.samples, self.config.queue);
        if asked > room.saturating_sub(waiting) {
            return Err(SubmitError::QueueFull { waiting, asked, room });
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        let mut ends = request.stop_ids.clone();
        if !request.ignore_eos {
            ends.extend(&self.config.ends);
        }
        let seed = request.seed.unwrap_or_else(|| derive(self.config.seed, id.0));
        let task = Arc::new(Task { id, request, ends, max_tokens, seed });
        let sequence = |sample| Sequence::new(task.clone(), sample, self.tokenizer);
        self.waiting.extend((0..asked).map(sequence));
        Ok(id)
    }

    /// Ends a request; what it held is free at once, and its samples' last events come with the next step. False if there
    /// is no such request (any more).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let mut found = false;
        for at in (0..self.running.len()).rev().filter(|at| self.running[*at].task.id == id).collect::<Vec<_>>() {
            let mut sequence = self.running.remove(at);
            found = true;
            self.end(&mut sequence, FinishReason::Cancelled);
            self.keep(sequence);
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|sequence| {
            let it = sequence.task.id == id;
            if it {
                found = true;
                self.end(sequence, FinishReason::Cancelled);
            }
            !it
        });
        self.waiting = waiting;
        found
    }

    /// Whether nothing is left to do and to tell.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.between.is_empty()
    }

    /// How much is going on.
    pub fn load(&self) -> Load {
        Load {
            waiting: self.waiting.len(),
            running: self.running.len(),
            cache_tokens: self.reserved(),
            kept_tokens: self.kept.tokens(),
        }
    }

    /// Drops all kept caches.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// One pass of the model: a token of every sample that is generating, then pieces of prompts, up to the budget.
    /// Returns what happened since the last step, in the order of the samples. Does nothing without work.
    pub fn step(&mut self) -> Vec<Event> {
        self.admit();
        self.plan();
        let mut events = std::mem::take(&mut self.between);
        if self.step.parts.is_empty() {
            return events;
        }
        match self.pass() {
            Ok(()) => self.choose(&mut events),
            Err(error) => {
                // Nothing that was checked before can be refused here; if it is, those who took part end.
                for at in self.step.parts.iter().rev().map(|part| part.0) {
                    let mut sequence = self.running.remove(at);
                    let reason = FinishReason::Error(error.clone());
                    let end = sequence.finished(reason);
                    events.push(sequence.event(end));
                }
            }
        }
        events
    }

    /// Tokens that the caches of running samples have room for.
    fn reserved(&self) -> usize {
        self.running.iter().map(|sequence| sequence.task.most()).sum()
    }

    fn end(&mut self, sequence: &mut Sequence<'a>, reason: FinishReason) {
        let end = sequence.finished(reason);
        self.between.push(sequence.event(end));
    }

    /// Starts samples that wait while there is room.
    fn admit(&mut self) {
        while self.running.len() < self.config.max_running {
            // The other samples of a request wait until the first one has read the prompt, and let others pass.
            let reads = |sequence: &Sequence<'_>| {
                let prompt = sequence.task.request.prompt.len();
                let mut same = self.running.iter().filter(|other| Arc::ptr_eq(&other.task, &sequence.task));
                same.any(|other| other.held() + 1 < prompt)
            };
            let Some(at) = self.waiting.iter().position(|sequence| !reads(sequence)) else { return };
            if self.reserved() + self.waiting[at].task.most() > self.config.cache_tokens {
                return;
            }
            let Some(mut sequence) = self.waiting.remove(at) else { return };
            let cache = self.cache_for(&sequence.task);
            sequence.start(cache);
            self.running.push(sequence);
        }
    }

    /// A cache for a sample, with as much of its prompt as there is; the last token is always read, for its logits.
    fn cache_for(&mut self, task: &Task) -> KvCache {
        let most = task.most();
        let begin = &task.request.prompt[..task.request.prompt.len() - 1];
        let of = |other: &Sequence<'_>| common(&other.ids[..other.held()], begin);
        let running = self.running.iter().map(|other| (other, of(other))).max_by_key(|(_, len)| *len);
        let kept = self.kept.find(begin);
        match (running, kept) {
            (Some((Sequence { cache: Some(cache), .. }, len)), kept)
                if len > 0 && kept.is_none_or(|kept| kept.1 <= len) =>
            {
                cache.prefix(len, most)
            }
            (_, Some((at, len))) => self.kept.take(at, len, most),
            _ => KvCache::new(self.model, most),
        }
    }

    /// Decides how many tokens each running sample reads: those that generate one each, then prompts in the order in which
    /// they came.
    fn plan(&mut self) {
        let parts = &mut self.step.parts;
        parts.clear();
        let generating = self.running.iter().filter(|sequence| sequence.pending() == 1).count();
        let mut left = self.config.step_tokens - generating;
        for (at, sequence) in self.running.iter().enumerate() {
            let count = match sequence.pending() {
                1 => 1,
                pending => {
                    let count = pending.min(left);
                    left -= count;
                    count
                }
            };
            if count > 0 {
                parts.push((at, count));
            }
        }
    }

    /// Runs the model over the parts.
    fn pass(&mut self) -> Result<(), GenerationError> {
        let StepMemory { activations, parts, ids, lengths, held, caches, last, .. } = &mut self.step;
        for list in [&mut *lengths, held, last] {
            list.clear();
        }
        ids.clear();
        for &(at, count) in &*parts {
            let sequence = &mut self.running[at];
            let start = sequence.held();
            ids.extend_from_slice(&sequence.ids[start..start + count]);
            lengths.push(count);
            held.push(start);
            if sequence.pending() == count {
                last.push(ids.len() - 1);
            }
            caches.extend(sequence.cache.take());
        }
        let refused = |error: BatchError| GenerationError::Model(error.to_string());
        let batch = Batch::new(ids, lengths).and_then(|batch| batch.continued_from(held)).map_err(refused);
        let done = batch.and_then(|batch| {
            let done = self.model.forward_cached(&batch, caches, activations);
            done.map_err(|error| GenerationError::Model(error.to_string()))
        });
        for (&(at, _), cache) in parts.iter().zip(caches.drain(..)) {
            self.running[at].cache = Some(cache);
        }
        done
    }

    /// Chooses a token for each sample that has read all of its own, and ends those that are done.
    fn choose(&mut self, events: &mut Vec<Event>) {
        let StepMemory { activations, candidates, parts, last, .. } = &mut self.step;
        if last.is_empty() {
            return;
        }
        let hidden_td = activations.hidden();
        let mut chosen_td = Tensor::scratch(&[last.len(), hidden_td.cols()]);
        for (row, from) in last.iter().enumerate() {
            chosen_td.row_mut(row).copy_from_slice(hidden_td.row(*from));
        }
        let logits = self.model.logits_of(&chosen_td);
        let mut ended = Vec::new();
        let complete = parts.iter().filter(|(at, _)| self.running[*at].pending() == 0).map(|part| part.0);
        let complete: Vec<usize> = complete.collect();
        for (row, at) in complete.into_iter().enumerate() {
            let sequence = &mut self.running[at];
            let (token, end) = sequence.advance(logits.row(row), (&activations.routing, last[row]), candidates);
            events.extend(token.map(|token| sequence.event(token)));
            if let Some(end) = end {
                let broken = matches!(&end, crate::event::EventKind::Finished(end) if matches!(end.reason, FinishReason::Error(_)));
                events.push(sequence.event(end));
                ended.push((at, broken));
            }
        }
        for (at, broken) in ended.into_iter().rev() {
            let sequence = self.running.remove(at);
            if !broken {
                self.keep(sequence);
            }
        }
    }

    /// Keeps what a sample leaves for requests that begin alike.
    fn keep(&mut self, sequence: Sequence<'a>) {
        let Sequence { mut ids, cache: Some(cache), .. } = sequence else { return };
        ids.truncate(cache.len());
        self.kept.put(Held { ids, cache });
    }
}
