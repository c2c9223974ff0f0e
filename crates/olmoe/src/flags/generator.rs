//! The model of the commands that generate: how it is loaded, and the limits of its engine.

use std::cmp::Reverse;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::SpecialTokens;
use olmoe_engine::EngineConfig;
use olmoe_model::model::Model;
use olmoe_tensor::memory::available_bytes;

use super::computing::{CacheArg, OnePrecision, Threads};
use super::loading::{LoadingArgs, beside};
use super::quiet::Quiet;
use crate::output::note;

/// The model and its precision.
#[derive(Args)]
pub(crate) struct Generator {
    #[command(flatten)]
    loading: LoadingArgs,

    /// Precision of the matrix products
    ///
    /// With amp_bf16 quantised weights stay quantised, and their activations are rounded to eight bits; with fp32 they
    /// are dequantised.
    #[arg(long, value_enum, default_value = "amp_bf16", help_heading = "Model")]
    precision: OnePrecision,

    #[command(flatten)]
    cache: CacheArg,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    _quiet: Quiet,
}

/// The work for an engine: how many sequences run at once, tokens per step, tokens of finished texts to keep, and for
/// each sample the tokens that it may have in the end and those of its prompt.
pub(crate) struct Work {
    pub(crate) running: usize,
    pub(crate) step_tokens: usize,
    pub(crate) kept_tokens: usize,
    pub(crate) samples: Vec<(usize, usize)>,
}

impl Generator {
    /// Opens the checkpoint without its weights, and the files beside them. Prints the notices.
    ///
    /// The first positional argument is the model unless the flag gives it.
    pub(crate) fn open(&self, words: &[&str]) -> anyhow::Result<(Checkpoint, Companions)> {
        self.threads.apply();
        let checkpoint = self.loading.open(words)?;
        let companions = Companions::of(&checkpoint, None, false)?;
        companions.notices.iter().for_each(note);
        Ok((checkpoint, companions))
    }

    /// The positional arguments without the model.
    pub(crate) fn rest<'a>(&'a self, words: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
        self.loading.rest(words)
    }

    /// Loads the model, if it fits memory together with `beside` further bytes.
    pub(crate) fn load(&self, checkpoint: &Checkpoint, beside: u64) -> anyhow::Result<Model> {
        self.loading.load(checkpoint, self.precision.into(), self.keep_blocks(), beside)
    }

    /// What its adapters are recognised by.
    pub(crate) fn adapters(&self, checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
        self.loading.adapters(checkpoint)
    }

    fn keep_blocks(&self) -> bool {
        self.precision == OnePrecision::AmpBf16
    }

    /// The bytes that the weights will take.
    pub(crate) fn weight_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        checkpoint.inference_bytes(self.precision.into(), self.keep_blocks())
    }

    /// The limits of an engine for this work on this machine, with its end-of-text tokens, and the bytes that it needs
    /// beside the weights.
    pub(crate) fn limits(
        &self,
        checkpoint: &Checkpoint,
        companions: &Companions,
        mut work: Work,
    ) -> (EngineConfig, u64) {
        let config = Weights::config(checkpoint);
        let kind = self.cache.kind(self.precision.into());
        let ends = companions.special_tokens().map(SpecialTokens::end_ids).unwrap_or_default();
        // The caches of the samples that run at once, the largest first.
        work.samples.sort_unstable_by_key(|(most, _)| Reverse(*most));
        work.samples.truncate(work.running);
        let samples = &work.samples;
        let prompts = samples.iter().map(|(_, prompt)| *prompt).sum::<usize>().max(samples.len());
        // Caches take at most half of the memory that the weights leave, but the largest one always has room.
        let half = available_bytes().map(|available| available.saturating_sub(self.weight_bytes(checkpoint)) / 2);
        let fits = |sequences: &[usize]| half.is_none_or(|half| config.cache_bytes(kind, sequences) <= half);
        let mut caches = vec![work.kept_tokens];
        for (most, _) in samples {
            caches.push(*most);
            if caches.len() > 2 && !fits(&caches) {
                caches.pop();
                break;
            }
        }
        if !fits(&caches) {
            caches[0] = 0;
        }
        let weights = (self.precision.into(), self.keep_blocks());
        let pass = (work.step_tokens.min(prompts), samples.len());
        let beside = beside(checkpoint, weights, (kind, &caches), pass);
        let limits = EngineConfig {
            max_running: work.running,
            step_tokens: work.step_tokens,
            cache_tokens: caches[1..].iter().sum(),
            kept_tokens: caches[0],
            cache_type: self.cache.cache_type,
            ends,
            ..EngineConfig::default()
        };
        (limits, beside)
    }
}
