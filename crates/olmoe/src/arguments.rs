//! Arguments that several commands share.

use clap::{Args, ValueEnum};
use olmoe_model::model::Precision;
use olmoe_tensor::threads::{MAX_THREADS, set_num_threads};

/// How many threads.
#[derive(Args)]
pub(crate) struct Threads {
    /// Threads to use [default: one for each processor]
    ///
    /// The results are the same bits for any number.
    #[arg(long, value_name = "N", value_parser = number_of_threads)]
    threads: Option<usize>,
}

impl Threads {
    /// Sets them for the process.
    pub(crate) fn apply(&self) {
        if let Some(threads) = self.threads {
            set_num_threads(threads);
        }
    }
}

fn number_of_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a whole number from 1 to {MAX_THREADS}")),
    }
}

/// A whole number above 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

/// One precision of the matrix products.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum OnePrecision {
    /// f32 throughout
    Fp32,
    /// bf16 factors, f32 sums; everything else in f32
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

/// One precision or all.
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
    /// Those meant.
    pub(crate) fn list(self) -> Vec<Precision> {
        match self {
            Precisions::Fp32 => vec![Precision::Fp32],
            Precisions::AmpBf16 => vec![Precision::AmpBf16],
            Precisions::All => vec![Precision::Fp32, Precision::AmpBf16],
        }
    }
}
