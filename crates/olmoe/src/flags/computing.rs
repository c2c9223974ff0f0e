//! Flags of the computation: threads, precision, the type of the caches.

use clap::{Args, ValueEnum};
use olmoe_model::model::{KvCache, Precision};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::threads::{MAX_THREADS, set_num_threads};

/// The number of threads.
#[derive(Args)]
pub(crate) struct Threads {
    /// Threads to use [default: one for each processor]
    ///
    /// Results have the same bits for any number of threads.
    #[arg(long, value_name = "N", value_parser = number_of_threads)]
    threads: Option<usize>,
}

impl Threads {
    /// Sets the number for the process.
    pub(crate) fn apply(&self) {
        if let Some(threads) = self.threads {
            set_num_threads(threads);
        }
    }
}

/// The type of keys and values.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct CacheArg {
    /// Type of cached keys and values: f32, bf16 or q8_0 [default: that of the precision, f32 or bf16]
    ///
    /// q8_0 takes 8.5 bits per number, a little more than half of bf16.
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub(crate) cache_type: Option<CacheType>,
}

impl CacheArg {
    /// The type for a model of this precision.
    pub(crate) fn kind(&self, precision: Precision) -> CacheType {
        self.cache_type.unwrap_or(KvCache::default_type(precision))
    }
}

fn cache_type(name: &str) -> Result<CacheType, String> {
    CacheType::by_name(name).ok_or_else(|| {
        let names = CacheType::ALL.map(CacheType::name);
        format!("expected one of {}", names.join(", "))
    })
}

fn number_of_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a whole number from 1 to {MAX_THREADS}")),
    }
}

/// One precision of the matrix products.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum OnePrecision {
    /// f32 throughout
    Fp32,
    /// bf16 factors, f32 sums; everything else in f32
    #[value(alias = "bf16")]
    AmpBf16,
}

impl From<OnePrecision> for Precision {
    fn from(precision: OnePrecision) -> Precision {
        match precision {
            OnePrecision::Fp32 => Precision::Fp32,
            OnePrecision::AmpBf16 => Precision::AmpBf16,
        }
    }
}

/// One precision or both.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Precisions {
    /// f32 throughout
    Fp32,
    /// bf16 factors, f32 sums; everything else in f32
    AmpBf16,
    /// Both, one after the other
    All,
}

impl Precisions {
    /// The precisions that are meant.
    pub(crate) fn list(self) -> Vec<Precision> {
        match self {
            Precisions::Fp32 => vec![Precision::Fp32],
            Precisions::AmpBf16 => vec![Precision::AmpBf16],
            Precisions::All => vec![Precision::Fp32, Precision::AmpBf16],
        }
    }
}
