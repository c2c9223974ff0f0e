//! The engine: many requests over one model, step by step.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use olmoe_data::Tokenizer;
use olmoe_model::batch::{Batch, BatchError};
use olmoe_model::model::{Activations, Keep, KvCache, Model};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::tensor::Tensor;

use crate::config::{EngineConfig, EngineError, check_batches};
use crate::event::{Event, EventKind, FinishReason, GenerationError};
use crate::prefix::{KeptPrefix, PrefixCache, common};
use crate::request::{Request, RequestId, SubmitError};
use crate::sampling::Candidates;
use crate::sampling::random::derive;
use crate::sequence::{RequestTask, Sequence};

/// The load of an engine.
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
pub struct Engine {
    model: Arc<Model>,
    tokenizer: Option<Arc<Tokenizer>>,
    config: EngineConfig,
    submitted: u64,
    waiting: VecDeque<Sequence>,
    /// In the order in which they began.
    running: Vec<Sequence>,
    kept: PrefixCache,
    /// Events between steps.
    pub(crate) between: Vec<Event>,
    step: StepMemory,
}

/// The memory of a step, which is reused by the next one.
struct StepMemory {
    activations: Activations,
    candidates: Candidates,
    /// The samples that take part: their indices in `running`, and how many tokens each reads.
    parts: Vec<(usize, usize)>,
    ids: Vec<u32>,
    lengths: Vec<usize>,
    held: Vec<usize>,
    caches: Vec<KvCache>,
    /// Rows of the pass with the last token of each sample.
    last: Vec<usize>,
}

impl StepMemory {
    fn new() -> StepMemory {
        StepMemory {
            activations: Activations::new(Keep::Nothing),
            candidates: Candidates::default(),
            parts: Vec::new(),
            ids: Vec::new(),
            lengths: Vec::new(),
            held: Vec::new(),
            caches: Vec::new(),
            last: Vec::new(),
        }
    }
}

impl Engine {
    /// An engine without requests. Without a tokenizer its tokens have ids and no text.
    ///
    /// # Errors
    /// Limits that contradict each other, and a model whose results would depend on the batch.
    pub fn new(
        model: Arc<Model>,
        tokenizer: Option<Arc<Tokenizer>>,
        config: EngineConfig,
    ) -> Result<Engine, EngineError> {
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
        check_batches(&model)?;
        let (kept, step) = (PrefixCache::new(config.kept_tokens), StepMemory::new());
        let (waiting, running, between) = Default::default();
        Ok(Engine { model, tokenizer, config, submitted: 0, waiting, running, kept, between, step })
    }

    /// Bytes of the keys and values of a token of this model with the type `kind`; `None` for that of its precision.
    /// The capacity of a cache is a multiple of [`KvCache::GRAIN`] tokens.
    pub fn cache_bytes_per_token(model: &Model, kind: Option<CacheType>) -> usize {
        let kind = kind.unwrap_or(KvCache::default_type(model.precision()));
        KvCache::bytes_of(model.config(), KvCache::GRAIN, kind) as usize / KvCache::GRAIN
    }

    /// Checks whether a request would be accepted if the queue had room.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        request.check(self.model.config(), &self.config, self.tokenizer.is_some()).map(drop)
    }

    /// Adds a request to the queue. Samples begin as soon as there is room, in the order of submission.
    ///
    /// # Errors
    /// [`SubmitError`]: a request that the model cannot fulfil, or a full queue.
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
        let task = Arc::new(RequestTask { id, request, ends, max_tokens, seed });
        let sequence = |sample| Sequence::new(task.clone(), sample, self.tokenizer.clone());
        self.waiting.extend((0..asked).map(sequence));
        Ok(id)
    }

    /// Cancels a request. Its memory is released at once, and the last events of its samples are returned by the next
    /// step. Returns false if there is no such request, or it has ended.
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

    /// Whether there are no samples and no events left.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.between.is_empty()
    }

    /// The load of the engine.
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

    /// The number of samples that the queue still has room for.
    pub(crate) fn room(&self) -> usize {
        self.config.queue.saturating_sub(self.waiting.len())
    }

    /// Runs one pass of the model: one token of every sample that is generating, then parts of prompts, up to the
    /// budget. Returns the events since the last step, in the order of the samples. Does nothing when no sample is
    /// running or waiting.
    ///
    /// A panic during the step, which only an error in this program can cause, ends every running sample with
    /// [`GenerationError::Panic`]; waiting samples begin in the next step.
    pub fn step(&mut self) -> Vec<Event> {
        self.guarded(Engine::work)
    }

    /// Does the work of a step and catches its panics. After a panic, the running samples with their caches and the
    /// memory of the step are dropped, because they may be inconsistent. Kept caches belong to samples that ended
    /// before and stay.
    fn guarded(&mut self, work: impl FnOnce(&mut Engine, &mut Vec<Event>)) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.between);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self, &mut events))) {
            let error = GenerationError::Panic(message(&*panic));
            self.step = StepMemory::new();
            for sequence in std::mem::take(&mut self.running) {
                let ended = |event: &Event| {
                    let same = event.request == sequence.task.id && event.sample == sequence.sample;
                    same && matches!(event.kind, EventKind::Finished(_))
                };
                if !events.iter().any(ended) {
                    events.push(sequence.event(sequence.dropped(FinishReason::Error(error.clone()))));
                }
            }
        }
        events
    }

    fn work(&mut self, events: &mut Vec<Event>) {
        self.admit();
        self.plan();
        if self.step.parts.is_empty() {
            return;
        }
        match self.pass() {
            Ok(()) => self.choose(events),
            Err(error) => {
                // Requests were checked before, so the model refuses none; if it does, the samples of this step end.
                for at in self.step.parts.iter().rev().map(|part| part.0) {
                    let mut sequence = self.running.remove(at);
                    let reason = FinishReason::Error(error.clone());
                    let end = sequence.finished(reason);
                    events.push(sequence.event(end));
                }
            }
        }
    }

    /// The total capacity in tokens of the caches of running samples.
    fn reserved(&self) -> usize {
        self.running.iter().map(|sequence| sequence.task.most()).sum()
    }

    fn end(&mut self, sequence: &mut Sequence, reason: FinishReason) {
        let end = sequence.finished(reason);
        self.between.push(sequence.event(end));
    }

    /// Starts waiting samples while there is room.
    fn admit(&mut self) {
        while self.running.len() < self.config.max_running {
            // The other samples of a request wait until the first one has read the prompt; later requests may begin
            // before them.
            let reads = |sequence: &Sequence| {
                let prompt = sequence.task.request.prompt.len();
                let mut same = self.running.iter().filter(|other| Arc::ptr_eq(&other.task, &sequence.task));
                same.any(|other| other.held() + 1 < prompt)
            };
            let Some(at) = self.waiting.iter().position(|sequence| !reads(sequence)) else { return };
            if self.reserved() + self.waiting[at].task.most() > self.config.cache_tokens {
                return;
            }
            let Some(sequence) = self.waiting.remove(at) else { return };
            let task = sequence.task.clone();
            // The sample is running from here on, so that it is ended if the next line panics.
            self.running.push(sequence);
            let cache = self.cache_for(&task);
            if let Some(sequence) = self.running.last_mut() {
                sequence.start(cache);
            }
        }
    }

    /// A cache for a sample, with as much of its prompt as kept caches have. The last token is always read, for its
    /// logits.
    fn cache_for(&mut self, task: &RequestTask) -> KvCache {
        let most = task.most();
        let begin = &task.request.prompt[..task.request.prompt.len() - 1];
        let of = |other: &Sequence| common(&other.ids[..other.held()], begin);
        let running = self.running.iter().map(|other| (other, of(other))).max_by_key(|(_, len)| *len);
        let kept = self.kept.find(begin);
        match (running, kept) {
            (Some((Sequence { cache: Some(cache), .. }, len)), kept)
                if len > 0 && kept.is_none_or(|kept| kept.1 <= len) =>
            {
                cache.prefix(len, most)
            }
            (_, Some((at, len))) => self.kept.take(at, len, most),
            _ => {
                let kind = self.config.cache_type.unwrap_or(KvCache::default_type(self.model.precision()));
                KvCache::of_type(&self.model, most, kind)
            }
        }
    }

    /// Decides how many tokens each running sample reads: one token of each that is generating, then prompts in the
    /// order of submission.
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
                let broken = matches!(&end, EventKind::Finished(end) if matches!(end.reason, FinishReason::Error(_)));
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

    /// Keeps the cache of a sample for requests that begin with the same tokens.
    fn keep(&mut self, sequence: Sequence) {
        let Sequence { mut ids, cache: Some(cache), .. } = sequence else { return };
        ids.truncate(cache.len());
        self.kept.put(KeptPrefix { ids, cache });
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use olmoe_model::config::ModelConfig;
    use olmoe_model::model::{Held, Precision};

    use super::*;
    use crate::completion::Completion;

    const JSON: &str = r#"{"model_type": "olmoe", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
        "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0}"#;

    fn engine() -> Engine {
        let mut model =
            Model::new(ModelConfig::from_hf_json(JSON).unwrap().config, Precision::Fp32, Held::Inference).unwrap();
        model.initialize(5);
        let config = EngineConfig { max_running: 2, step_tokens: 8, ..EngineConfig::default() };
        Engine::new(Arc::new(model), None, config).unwrap()
    }

    fn request(first: u32) -> Request {
        Request { max_tokens: Some(9), seed: Some(1), ..Request::new((first..first + 12).collect()) }
    }

    /// The completion of a request.
    fn answer(engine: &mut Engine, request: Request) -> Completion {
        let id = engine.submit(request).unwrap();
        let mut completion = Completion::default();
        while !engine.is_idle() {
            engine.step().into_iter().filter(|event| event.request == id).for_each(|event| completion.add(event.kind));
        }
        completion
    }

    /// A step that panics at a place: at the beginning, after the plan, after the pass, or after the choice of tokens.
    fn cut(engine: &mut Engine, events: &mut Vec<Event>, place: usize) {
        if place > 0 {
            engine.admit();
            engine.plan();
        }
        if place > 1 {
            engine.pass().unwrap();
        }
        if place > 2 {
            engine.choose(events);
        }
        panic!("at place {place}");
    }

    #[test]
    fn a_panic_ends_what_runs_and_leaves_the_engine_usable() {
        let expected = answer(&mut engine(), request(20));
        for steps in 0..14 {
            for place in 0..4 {
                let mut engine = engine();
                let ids = [2, 3, 20].map(|first| engine.submit(request(first)).unwrap());
                let mut told: Vec<Event> = (0..steps).flat_map(|_| engine.step()).collect();
                let running = if steps + place == 0 { 0 } else { 2 };
                let last = engine.guarded(|engine, events| cut(engine, events, place));
                let ends = |events: &[Event], id: RequestId| {
                    let of = events.iter().filter(|event| event.request == id);
                    of.filter_map(|event| match &event.kind {
                        EventKind::Finished(end) => Some(end.reason.clone()),
                        EventKind::Token(_) => None,
                    })
                    .collect::<Vec<_>>()
                };
                told.extend(last);
                assert_eq!((engine.load().running, engine.load().cache_tokens), (0, 0));
                for id in &ids[..running] {
                    let panic = FinishReason::Error(GenerationError::Panic(format!("at place {place}")));
                    let found = ends(&told, *id);
                    assert!(found == [panic] || found == [FinishReason::Length], "{steps} {place}: {found:?}");
                }
                // Waiting samples and later requests are not affected.
                while !engine.is_idle() {
                    told.extend(engine.step());
                }
                ids.iter().for_each(|id| assert_eq!(ends(&told, *id).len(), 1, "{steps} {place}"));
                let mut found = answer(&mut engine, request(20));
                if let Some(end) = &mut found.end {
                    end.usage.reused_tokens = 0;
                }
                assert_eq!(found, expected, "{steps} {place}");
            }
        }
    }
}
