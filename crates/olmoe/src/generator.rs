//! The model behind the commands that generate: how it is loaded, what limits its engine, what interrupts it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_engine::{Engine, EngineConfig};
use olmoe_model::model::{KvCache, Model};
use olmoe_tensor::memory::available_bytes;

use crate::arguments::{CacheArg, ModelArg, OnePrecision, Threads};
use crate::progress::Progress;

/// Exit status after an interrupt, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Which model, and how it computes.
#[derive(Args)]
pub(crate) struct Generator {
    #[command(flatten)]
    model: ModelArg,

    /// Precision of the matrix products
    ///
    /// With bf16 quantised weights stay quantised, and what they are multiplied with is rounded to eight bits; with fp32
    /// they become the numbers that they stand for.
    #[arg(long, value_enum, default_value = "bf16")]
    precision: OnePrecision,

    #[command(flatten)]
    cache: CacheArg,

    #[command(flatten)]
    threads: Threads,

    /// No progress and no summary
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl Generator {
    /// The checkpoint without its weights, and what it has beside them. Says what there is to be noticed.
    pub(crate) fn open(&self) -> anyhow::Result<(Checkpoint, Companions)> {
        self.threads.apply();
        let checkpoint = Checkpoint::open(&self.model.resolve()?)?;
        checkpoint.contents().notices.iter().for_each(|notice| eprintln!("note: {notice}"));
        let companions = Companions::of(&checkpoint, None, false)?;
        companions.notices.iter().for_each(|notice| eprintln!("note: {notice}"));
        Ok((checkpoint, companions))
    }

    /// Its model.
    pub(crate) fn load(&self, checkpoint: &Checkpoint) -> anyhow::Result<Model> {
        let loading = Progress::new("loading", checkpoint.bytes(), self.quiet);
        let quantised = self.precision == OnePrecision::AmpBf16;
        Ok(checkpoint.load(self.precision.into(), quantised, &|bytes| loading.advance(bytes))?)
    }

    /// The limits of an engine on this machine that runs so many sequences at once, and the tokens that end its texts.
    pub(crate) fn limits(&self, model: &Model, companions: &Companions, running: usize) -> EngineConfig {
        let mut ends = Vec::new();
        match companions.special_tokens() {
            Some(special) => ends.extend(special.eos.iter().chain(&special.stops)),
            None => ends.extend(model.config().eos_token_id),
        }
        let defaults = EngineConfig::default();
        // Caches take half of the memory there is at most, but a whole context always has room: it is used as it fills.
        let per_token = Engine::cache_bytes_per_token(model, self.cache.cache_type).max(1) as u64;
        // Each has memory for a few tokens more than it has room for.
        let unused = running.saturating_mul(KvCache::GRAIN - 1);
        let room = available_bytes()
            .map_or(defaults.cache_tokens, |bytes| ((bytes / 2 / per_token) as usize).saturating_sub(unused));
        EngineConfig {
            max_running: running,
            step_tokens: defaults.step_tokens.max(running),
            cache_tokens: room.max(model.config().max_sequence_length),
            cache_type: self.cache.cache_type,
            ends,
            ..defaults
        }
    }
}

/// A flag that any of these signals sets; one that comes while it is set ends the program.
pub(crate) fn interrupts(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        let shutdown = signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), flag.clone());
        let set = shutdown.and_then(|_| signal_hook::flag::register(signal, flag.clone()));
        set.context("cannot listen for interrupts")?;
    }
    Ok(flag)
}
