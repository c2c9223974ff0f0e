//! One sample of a request while it waits or runs.

use std::sync::Arc;

use olmoe_data::Tokenizer;
use olmoe_model::model::{KvCache, RoutingRecord};

use crate::event::{Event, EventKind, FinishReason, Finished, GenerationError, Stop, Token, Usage};
use crate::log_probs::{largest, likeliest, log_sum_exp};
use crate::request::{Request, RequestId};
use crate::sampling::random::Stream;
use crate::sampling::{Candidates, History};
use crate::text::SampleText;

/// The data that all samples of a request share.
pub(crate) struct RequestTask {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// Tokens that end a sample.
    pub(crate) ends: Vec<u32>,
    /// Most tokens to generate.
    pub(crate) max_tokens: usize,
    /// Seed of the draws.
    pub(crate) seed: u64,
}

impl RequestTask {
    /// The most tokens of a sample, the prompt included.
    pub(crate) fn most(&self) -> usize {
        self.request.prompt.len() + self.max_tokens
    }
}

/// A sample.
pub(crate) struct Sequence {
    pub(crate) task: Arc<RequestTask>,
    pub(crate) sample: usize,
    /// The ids of prompt and text.
    pub(crate) ids: Vec<u32>,
    /// Keys and values of the first tokens; `None` while the sample waits.
    pub(crate) cache: Option<KvCache>,
    pub(crate) reused: usize,
    stream: Stream,
    history: History,
    text: SampleText,
}

impl Sequence {
    pub(crate) fn new(task: Arc<RequestTask>, sample: usize, tokenizer: Option<Arc<Tokenizer>>) -> Sequence {
        Sequence {
            sample,
            ids: Vec::new(),
            cache: None,
            reused: 0,
            stream: Stream::new(task.seed, sample as u64),
            history: History::default(),
            text: SampleText::new(tokenizer, &task.request.prompt, task.request.special, task.request.stop.clone()),
            task,
        }
    }

    /// Starts the sample with a cache that may already have tokens of the prompt.
    pub(crate) fn start(&mut self, cache: KvCache) {
        self.ids.reserve_exact(self.task.most());
        self.ids.extend_from_slice(&self.task.request.prompt);
        if self.task.request.sampling.penalizes() {
            self.history = History::new(&self.ids);
        }
        self.reused = cache.len();
        self.cache = Some(cache);
    }

    /// The number of tokens whose keys and values are in the cache.
    pub(crate) fn held(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::len)
    }

    /// The number of tokens that have to be read before the next one can be chosen.
    pub(crate) fn pending(&self) -> usize {
        self.ids.len() - self.held()
    }

    fn generated(&self) -> usize {
        self.ids.len().saturating_sub(self.task.request.prompt.len())
    }

    /// Whether stop tokens and stop strings end the sample.
    fn may_stop(&self, generated: usize) -> bool {
        generated >= self.task.request.min_tokens
    }

    /// Chooses the next token from the logits after the last one, whose row in `routing` is `row`. Returns the token,
    /// and the finish reason if it is the last.
    pub(crate) fn advance(
        &mut self,
        logits: &[f32],
        (routing, row): (&RoutingRecord, usize),
        left: &mut Candidates,
    ) -> (Option<EventKind>, Option<EventKind>) {
        let task = self.task.clone();
        let request = &task.request;
        if largest(logits).is_none() {
            let nan = logits.iter().any(|logit| logit.is_nan());
            let error = GenerationError::NotFinite { tokens: self.ids.len(), nan };
            return (None, Some(self.finished(FinishReason::Error(error))));
        }
        let early = !self.may_stop(self.generated() + 1);
        let excluded: &[u32] = if early { &task.ends } else { &[] };
        let chosen = request.sampling.choose(logits, &self.history, excluded, &mut self.stream, left);
        let Some(id) = chosen else {
            let error = GenerationError::NothingLeft { tokens: self.ids.len() };
            return (None, Some(self.finished(FinishReason::Error(error))));
        };
        self.ids.push(id);
        if request.sampling.penalizes() {
            self.history.add(id);
        }
        let mut token = Token { id, text: String::new(), logprob: None, alternatives: Vec::new(), experts: Vec::new() };
        if let Some((count, lse)) = request.logprobs.zip(log_sum_exp(logits)) {
            token.logprob = Some(f64::from(logits[id as usize]) - lse);
            token.alternatives = likeliest(logits, lse, count);
        }
        if request.experts {
            token.experts = routing.layers.iter().map(|layer| layer.routing.ids_tk.row(row).to_vec()).collect();
        }
        let reason = if task.ends.contains(&id) {
            Some(FinishReason::Stop(Stop::Id(id)))
        } else {
            let piece = self.text.push(id, !early);
            token.text = piece.text;
            let length = (self.generated() >= task.max_tokens).then_some(FinishReason::Length);
            piece.stop.map(|stop| FinishReason::Stop(Stop::Text(stop))).or(length)
        };
        (Some(EventKind::Token(token)), reason.map(|reason| self.finished(reason)))
    }

    /// The end of the sample, with the text that was held back, unless a stop string ended the sample.
    pub(crate) fn finished(&mut self, mut reason: FinishReason) -> EventKind {
        let mut text = String::new();
        if !matches!(reason, FinishReason::Stop(Stop::Text(_))) {
            // An incomplete character at the end may complete a stop string.
            let piece = self.text.finish(self.may_stop(self.generated()));
            text = piece.text;
            if let (Some(stop), FinishReason::Length) = (piece.stop, &reason) {
                reason = FinishReason::Stop(Stop::Text(stop));
            }
        }
        EventKind::Finished(Finished { reason, text, usage: self.usage() })
    }

    /// The end of the sample after a panic, without the text that was held back, which may be inconsistent.
    pub(crate) fn dropped(&self, reason: FinishReason) -> EventKind {
        EventKind::Finished(Finished { reason, text: String::new(), usage: self.usage() })
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.task.request.prompt.len(),
            reused_tokens: self.reused,
            completion_tokens: self.generated(),
        }
    }

    /// An event of this sample.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event { request: self.task.id, sample: self.sample, kind }
    }
}
