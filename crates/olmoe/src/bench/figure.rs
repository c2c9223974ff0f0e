//! A speed and the limits of the machine.

use std::fmt;
use std::time::Duration;

use olmoe_data::counted;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Model, Precision};
use olmoe_model::parameters::ParameterCount;
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::{peak_flops, peak_int8};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::threads::num_threads;
use serde_json::{Value, json};

use super::median;

/// The kind of multiply-adds that a model mostly consists of.
#[derive(Clone, Copy)]
pub(super) enum Peak {
    Int8,
    Bf16,
    F32,
}

impl Peak {
    /// The kind of a model: eight-bit if it has quantised matrices.
    pub(super) fn of(model: &Model) -> Peak {
        match model.precision() {
            _ if (0..model.parameters().len()).any(|id| matches!(model.encoding(id), Some(Encoding::Blocks(_)))) => {
                Peak::Int8
            }
            Precision::AmpBf16 => Peak::Bf16,
            Precision::Fp32 => Peak::F32,
        }
    }

    /// Operations per second of this machine.
    pub(super) fn measure(self, time: Duration) -> f64 {
        match self {
            Peak::Int8 => peak_int8(time),
            Peak::Bf16 => peak_flops(Operand::Bf16, time),
            Peak::F32 => peak_flops(Operand::F32, time),
        }
    }

    /// The name of the peak in `olmoe bench limits`.
    fn key(self) -> &'static str {
        match self {
            Peak::Int8 => "int8",
            Peak::Bf16 => "bf16",
            Peak::F32 => "fp32",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Peak::Int8 => "8-bit multiply-add peak",
            Peak::Bf16 => "bf16 multiply-add peak",
            Peak::F32 => "f32 multiply-add peak",
        }
    }
}

/// A step of `tokens` tokens for each of some sequences.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) sequences: usize,
    pub(super) tokens: usize,
    /// The mean number of keys that a token attends to.
    pub(super) keys: f64,
    /// The mean number of tokens in a cache before the step.
    pub(super) held: usize,
}

impl Work {
    /// The operations of a token, two per multiply-add. Matrices count by the parameters that the token passes (the
    /// embedding is a look-up, and only the last token of a step has logits), attention by the number of keys.
    fn operations_per_token(self, config: &ModelConfig) -> anyhow::Result<f64> {
        let vocabulary = (config.embedding_size * config.d_model) as f64;
        let outer = if config.tie_embeddings { vocabulary } else { 2.0 * vocabulary };
        let active = ParameterCount::of(config)?.active as f64 - outer + vocabulary / self.tokens as f64;
        Ok(2.0 * active + 4.0 * (config.n_layers * config.query_width()) as f64 * self.keys)
    }
}

/// The speeds of some rounds, and the limits measured beside each.
pub(super) struct Figure {
    what: &'static str,
    /// The number of tokens of the prompt, or in the cache.
    length: usize,
    sequences: usize,
    /// The bytes of weights and caches that a step reads.
    bytes: f64,
    /// The mean number of experts of a layer that a step uses; None for a dense model.
    pub(super) experts: Option<f64>,
    tokens: f64,
    operations: f64,
    peak: Peak,
    speeds: Vec<f64>,
    shares: Vec<f64>,
    bandwidths: Vec<f64>,
    peaks: Vec<f64>,
}

impl Figure {
    pub(super) fn new(
        what: &'static str,
        length: usize,
        work: Work,
        peak: Peak,
        bytes: f64,
        config: &ModelConfig,
    ) -> anyhow::Result<Figure> {
        Ok(Figure {
            what,
            length,
            sequences: work.sequences,
            bytes,
            experts: None,
            tokens: (work.sequences * work.tokens) as f64,
            operations: work.operations_per_token(config)?,
            peak,
            speeds: Vec::new(),
            shares: Vec::new(),
            bandwidths: Vec::new(),
            peaks: Vec::new(),
        })
    }

    /// Tokens per second that the bandwidth and the peak allow.
    fn ceilings(&self, bandwidth: f64, peak: f64) -> (f64, f64) {
        (bandwidth * self.tokens / self.bytes, peak / self.operations)
    }

    /// Adds a round: its tokens per second, and the limits measured beside it.
    pub(super) fn add(&mut self, speed: f64, bandwidth: f64, peak: f64) {
        let (fed, computed) = self.ceilings(bandwidth, peak);
        self.speeds.push(speed);
        self.shares.push(speed / fed.min(computed));
        self.bandwidths.push(bandwidth);
        self.peaks.push(peak);
    }

    /// The medians of speed, share of the limit, bandwidth and peak.
    fn medians(&self) -> [f64; 4] {
        [&self.speeds, &self.shares, &self.bandwidths, &self.peaks].map(|values| median(values.clone()))
    }

    /// The name of the lower limit.
    fn limit(&self) -> &'static str {
        let [_, _, bandwidth, peak] = self.medians();
        let (fed, computed) = self.ceilings(bandwidth, peak);
        if fed < computed { "read bandwidth" } else { self.peak.name() }
    }

    pub(super) fn json(&self) -> Value {
        let [speed, share, bandwidth, peak] = self.medians();
        json!({
            "what": self.what, "length": self.length, "sequences": self.sequences,
            "threads": num_threads(), "isa": Isa::current().name(),
            "tokens_per_second": speed, "tokens_per_second_range": range(&self.speeds),
            "bytes_per_step": self.bytes, "bytes_per_token": self.bytes / self.tokens,
            "flops_per_token": self.operations, "experts_per_layer": self.experts, "peak": self.peak.key(),
            "read_bandwidth": bandwidth, "peak_flops": peak,
            "limit": self.limit(), "share": share, "share_range": range(&self.shares),
        })
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max)]
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [speed, share, bandwidth, peak] = self.medians();
        let ([slow, fast], [low, high]) = (range(&self.speeds), range(&self.shares));
        write!(f, "{} {}", self.what, self.length)?;
        if self.what == "batch" {
            write!(f, " x {}", self.sequences)?;
        }
        write!(
            f,
            ": {speed:.1} tokens/s ({slow:.1} to {fast:.1}), {:.0} % ({:.0} to {:.0}) of the {} ({:.1} GB/s, {:.0} GFLOP/s); \
             {:.1} MB a step",
            share * 100.0,
            low * 100.0,
            high * 100.0,
            self.limit(),
            bandwidth / 1e9,
            peak / 1e9,
            self.bytes / 1e6,
        )?;
        if let Some(experts) = self.experts {
            write!(f, ", {experts:.1} experts a layer")?;
        }
        write!(f, "; {}, {}", counted(num_threads(), "thread"), Isa::current().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(work: Work, bytes: f64) -> Figure {
        Figure::new("batch", 0, work, Peak::Int8, bytes, &ModelConfig::release()).unwrap()
    }

    #[test]
    fn operations_of_the_release() {
        let matrices = 1_282_017_280.0 - 2.0 * 50304.0 * 2048.0;
        let decode = figure(Work { sequences: 4, tokens: 1, keys: 48.0, held: 48 }, 1.0);
        assert_eq!(decode.operations, 2.0 * (matrices + 50304.0 * 2048.0) + 4.0 * 16.0 * 2048.0 * 48.0);
        let prefill = figure(Work { sequences: 1, tokens: 512, keys: 256.0, held: 0 }, 1.0);
        assert_eq!(prefill.operations, 2.0 * (matrices + 50304.0 * 4.0) + 2.0 * 16.0 * 2048.0 * 512.0);
    }

    #[test]
    fn the_lower_limit_counts() {
        let work = Work { sequences: 4, tokens: 1, keys: 0.0, held: 0 };
        let mut fed = figure(work, 2e9);
        // 50 GB/s feed 25 steps of 4 tokens; the peak allows many more.
        for speed in [40.0, 50.0, 80.0] {
            fed.add(speed, 50e9, 1e15);
        }
        assert_eq!((fed.medians()[1], fed.limit()), (0.5, "read bandwidth"));
        assert_eq!(range(&fed.shares), [0.4, 0.8]);
        let mut computed = figure(work, 1.0);
        computed.add(10.0, 50e9, 20.0 * computed.operations);
        assert_eq!((computed.medians()[1], computed.limit()), (0.5, "8-bit multiply-add peak"));
        let json = computed.json();
        assert_eq!((&json["sequences"], &json["bytes_per_token"]), (&json!(4), &json!(0.25)));
    }
}
