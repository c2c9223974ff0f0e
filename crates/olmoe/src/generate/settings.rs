//! How to generate: flags, and the settings of a line of a batch, under the names that llama.cpp and vLLM use.

use std::collections::BTreeMap;

use clap::Args;
use olmoe_engine::{Request, Sampling};
use serde::Deserialize;
use serde_json::Value;

use crate::arguments::{bias, positive};

/// How to generate.
#[derive(Args)]
pub(super) struct Settings {
    /// Most tokens to generate [default: until an end-of-text token or the end of the model's context]
    #[arg(short = 'n', long, visible_aliases = ["n-predict", "predict"], value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,

    /// Before so many tokens no end-of-text token is chosen and no stop string counts
    #[arg(long, value_name = "N", default_value = "0")]
    min_tokens: usize,

    /// Divides the logits before the draw; 0 takes the likeliest token every time
    #[arg(
        long = "temp",
        visible_alias = "temperature",
        value_name = "T",
        default_value = "0.8",
        allow_negative_numbers = true
    )]
    temperature: f64,

    /// Draw from so many likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value = "40")]
    top_k: usize,

    /// Draw from the likeliest tokens that have this probability together; 1 for all
    #[arg(long, value_name = "P", default_value = "0.95", allow_negative_numbers = true)]
    top_p: f64,

    /// Draw from tokens with at least this share of the likeliest one's probability; 0 for all
    #[arg(long, value_name = "P", default_value = "0.05", allow_negative_numbers = true)]
    min_p: f64,

    /// Draw from the most typical tokens that have this probability together; 1 for all
    #[arg(long, visible_alias = "typical", value_name = "P", default_value = "1", allow_negative_numbers = true)]
    typical_p: f64,

    /// Divides the logits of tokens of prompt and text; 1 for none
    #[arg(
        long,
        visible_alias = "repetition-penalty",
        value_name = "R",
        default_value = "1",
        allow_negative_numbers = true
    )]
    repeat_penalty: f64,

    /// Taken from a token's logit for each time it was generated
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f64,

    /// Taken from the logit of each token that was generated
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f64,

    /// Added to the logit of a token, such as 42=-1.5; -inf excludes it. May be repeated
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,

    /// Never choose an id that no token of the tokenizer has
    ///
    /// The embeddings of OLMoE have 24 rows more than there are tokens.
    #[arg(long)]
    mask_padding: bool,

    /// Seed of the draws [default: another one each time, told at the end]
    ///
    /// The same seed gives the same text, for any number of threads, beside any other prompts. Line i of a batch, from 0,
    /// has this seed plus i unless it has its own.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// A text that ends generation; it is not part of the output. May be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// End-of-text tokens are tokens like others
    #[arg(long)]
    ignore_eos: bool,

    /// Samples to generate from each prompt
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub(super) samples: usize,

    /// With --json: the log-probability of each token, and of K alternatives
    ///
    /// Of the model's own distribution: before bias, penalties, filters and temperature.
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "0")]
    logprobs: Option<usize>,

    /// With --json: the experts of each token, by layer
    ///
    /// Those of the pass whose outcome the token is; it reads the token before it.
    #[arg(long)]
    experts: bool,

    /// Show the texts of special tokens
    #[arg(long)]
    special: bool,
}

impl Settings {
    /// Whether something is asked for that only JSON shows.
    pub(super) fn needs_json(&self) -> bool {
        self.logprobs.is_some() || self.experts
    }

    /// The request for a prompt. `tokens` is how many the tokenizer has; `seed` is for when none was given.
    pub(super) fn request(&self, prompt: Vec<u32>, tokens: Option<usize>, seed: u64) -> Request {
        Request {
            prompt,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                typical_p: self.typical_p,
                repetition_penalty: self.repeat_penalty,
                frequency_penalty: self.frequency_penalty,
                presence_penalty: self.presence_penalty,
                logit_bias: self.logit_bias.clone(),
                below: tokens.filter(|_| self.mask_padding).and_then(|tokens| u32::try_from(tokens).ok()),
            },
            seed: Some(seed),
            samples: self.samples,
            stop: self.stop.clone(),
            stop_ids: Vec::new(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            experts: self.experts,
            special: self.special,
        }
    }

    /// The seed given, else another one each time: of 32 bits, so that it is easily typed.
    pub(super) fn seed(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        self.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32)
    }
}

/// A line of a batch.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// Comes back with the result.
    pub(super) id: Option<Value>,
    pub(super) prompt: Prompt,
    #[serde(alias = "n_predict")]
    max_tokens: Option<usize>,
    min_tokens: Option<usize>,
    #[serde(alias = "temp")]
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    stop: Option<Stops>,
    stop_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    #[serde(alias = "n")]
    samples: Option<usize>,
    logprobs: Option<usize>,
    experts: Option<bool>,
}

/// A text, or token ids as they are.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of token ids")]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt::Ids(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of texts")]
enum Stops {
    One(String),
    Several(Vec<String>),
}

impl Line {
    /// Changes what the line says.
    pub(super) fn apply(&self, request: &mut Request) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, &self.temperature);
        set(&mut sampling.top_k, &self.top_k);
        set(&mut sampling.top_p, &self.top_p);
        set(&mut sampling.min_p, &self.min_p);
        set(&mut sampling.typical_p, &self.typical_p);
        set(&mut sampling.repetition_penalty, &self.repetition_penalty);
        set(&mut sampling.frequency_penalty, &self.frequency_penalty);
        set(&mut sampling.presence_penalty, &self.presence_penalty);
        if let Some(bias) = &self.logit_bias {
            sampling.logit_bias = bias.iter().map(|(id, bias)| (*id, *bias)).collect();
        }
        set(&mut request.min_tokens, &self.min_tokens);
        set(&mut request.stop_ids, &self.stop_ids);
        set(&mut request.ignore_eos, &self.ignore_eos);
        set(&mut request.samples, &self.samples);
        set(&mut request.experts, &self.experts);
        request.max_tokens = self.max_tokens.or(request.max_tokens);
        request.seed = self.seed.or(request.seed);
        request.logprobs = self.logprobs.or(request.logprobs);
        match &self.stop {
            Some(Stops::One(stop)) => request.stop = vec![stop.clone()],
            Some(Stops::Several(stops)) => request.stop.clone_from(stops),
            None => {}
        }
    }
}
