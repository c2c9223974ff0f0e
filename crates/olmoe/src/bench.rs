//! `olmoe bench`

mod figure;
mod gemm;
mod inference;
mod limits;
mod quantized;
mod score;
mod train;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use olmoe_model::adapter::{Adapter, AdapterInit, Sharing};
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Keep, Precision};
use olmoe_model::parameters::{ModulePart, ParameterKind, ParameterSpec, parameters};
use olmoe_tensor::quant::BlockFormat;

use crate::flags::{OnePrecision, Precisions, Threads, positive};

/// Measure speed against the limits of this machine
///
/// The limits (multiply-add peak, memory bandwidth) are measured in the same run, and speeds are given as fractions of
/// them. Run nothing else at the same time.
#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Gemm(GemmArgs),
    Quantized(QuantizedArgs),
    Train(TrainArgs),
    Decode(inference::DecodeArgs),
    Batch(inference::BatchArgs),
    Prefill(inference::PrefillArgs),
    Score(score::ScoreArgs),
    Limits(LimitsArgs),
}

/// Measure matrix products
///
/// Dense products, and grouped ones of a layer's experts with 1 to 64 rows each.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench gemm
  olmoe bench gemm --precision amp_bf16 --threads 1 --json

Exit status: 0 done, 1 if it could not be measured, 2 for wrong usage.")]
pub(crate) struct GemmArgs {
    /// Precision of the products
    #[arg(long, value_enum, default_value = "all")]
    precision: Precisions,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl GemmArgs {
    fn precisions(&self) -> Vec<Precision> {
        self.precision.list()
    }
}

/// Measure products of quantised weights
///
/// With activations of eight bits: one row and many, dense and grouped by the experts of a layer.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench quantized
  olmoe bench quantized --format q4_k --format q6_k --threads 1 --json

Exit status: 0 done, 1 if it could not be measured, 2 for wrong usage.")]
pub(crate) struct QuantizedArgs {
    /// Format of the weights; may be given several times [default: all]
    #[arg(long, value_name = "FORMAT", value_parser = block_format)]
    format: Vec<BlockFormat>,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl QuantizedArgs {
    fn formats(&self) -> Vec<BlockFormat> {
        if self.format.is_empty() { BlockFormat::ALL.to_vec() } else { self.format.clone() }
    }
}

fn block_format(name: &str) -> Result<BlockFormat, String> {
    BlockFormat::by_name(name).ok_or_else(|| {
        let names: Vec<_> = BlockFormat::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Measure training steps
///
/// A step is the forward pass with the auxiliary losses, the backward pass, gradient clipping by norm, and AdamW, on
/// random tokens and freshly drawn weights.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench train
  olmoe bench train --config small --precision fp32 --batch 2 --recompute attention
  olmoe bench train --config my-model.yml --sequence 1024 --json
  olmoe bench train --model model-q4_k_m.gguf --lora 16 --recompute block

Exit status: 0 done, 1 if it could not be measured, 2 for wrong usage.")]
pub(crate) struct TrainArgs {
    /// `tiny`, `small`, or a configuration file (config.json or YAML)
    #[arg(long, value_name = "tiny|small|PATH", default_value = "tiny")]
    config: String,

    /// Precision of the matrix products
    #[arg(long, value_enum, default_value = "amp_bf16")]
    precision: OnePrecision,

    /// Sequences per step [default: 8 for tiny, 4 for small, else 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,

    /// Tokens per sequence [default: the longest of the configuration]
    #[arg(long, value_name = "N", value_parser = positive)]
    sequence: Option<usize>,

    /// Steps to measure
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    steps: usize,

    /// Warm-up steps before them
    #[arg(long, value_name = "N", default_value = "2")]
    warmup: usize,

    #[command(flatten)]
    threads: Threads,

    /// Activation checkpointing: what the backward pass recomputes instead of keeping
    #[arg(long, value_enum, default_value = "none")]
    recompute: Recompute,

    /// Which parameters are trained; the others are frozen
    #[arg(long, value_enum, default_value = "all")]
    train: Trained,

    /// Train low-rank adapters of this rank, of attention and of every expert, over frozen weights
    #[arg(long, value_name = "RANK", value_parser = positive, conflicts_with = "train")]
    lora: Option<usize>,

    /// Weights to train on, as they are in the file [default: random ones of the configuration]
    #[arg(short, long, value_name = "PATH", conflicts_with = "config")]
    model: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trained {
    /// All parameters
    All,
    /// The routers alone
    Routers,
    /// The experts of the last layer
    LastExperts,
    /// The upper half of the layers
    UpperHalf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Recompute {
    /// Nothing is recomputed: the fastest
    None,
    /// Norms and attention
    Attention,
    /// Whole blocks: the least memory
    Block,
}

impl TrainArgs {
    fn precision(&self) -> Precision {
        self.precision.into()
    }

    /// The adapters that are trained, if adapters are.
    fn adapters(&self, config: &ModelConfig) -> Vec<Adapter> {
        let Some(rank) = self.lora else { return Vec::new() };
        let adapted = |spec: &&ParameterSpec| match spec.module.part {
            ModulePart::Attention(_) | ModulePart::Mlp(..) => spec.shape.len() > 1,
            _ => false,
        };
        let adapter = |spec: &ParameterSpec| Adapter {
            module: spec.module,
            rank,
            scale: 1.0,
            dora: false,
            share: Sharing::PerExpert,
            dropout: 0.0,
            init: AdapterInit::Kaiming,
        };
        parameters(config).iter().filter(adapted).map(adapter).collect()
    }

    /// What each parameter is held for.
    fn held(&self, config: &ModelConfig, specs: &[ParameterSpec]) -> Vec<Held> {
        let layers = config.n_layers;
        Held::of(specs, config, |spec| match self.train {
            _ if self.lora.is_some() => spec.kind.is_of_adapter(),
            Trained::All => true,
            Trained::Routers => spec.kind == ParameterKind::Router,
            Trained::LastExperts => spec.kind == ParameterKind::Expert && spec.module.layer == Some(layers - 1),
            Trained::UpperHalf => spec.module.layer.is_some_and(|layer| 2 * layer >= layers),
        })
    }

    fn keep(&self) -> Keep {
        match self.recompute {
            Recompute::None => Keep::Everything,
            Recompute::Attention => Keep::FeedForward,
            Recompute::Block => Keep::BlockInputs,
        }
    }
}

/// Measure the limits alone
///
/// Read bandwidth and multiply-add peaks: the limits that the other measurements are compared with. Use them beside the
/// speed of another program.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench limits
  olmoe bench limits --threads 1 --json

Exit status: 0 done, 1 if it could not be measured, 2 for wrong usage.")]
pub(crate) struct LimitsArgs {
    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The bytes to read for the bandwidth: more than any cache holds.
const READ_BYTES: usize = 1 << 30;

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        BenchCommand::Gemm(args) => {
            args.threads.apply();
            gemm::run(args)
        }
        BenchCommand::Quantized(args) => {
            args.threads.apply();
            quantized::run(args);
            Ok(())
        }
        BenchCommand::Decode(args) => inference::decode(args),
        BenchCommand::Batch(args) => inference::batch(args),
        BenchCommand::Prefill(args) => inference::prefill(args),
        BenchCommand::Score(args) => score::run(args),
        BenchCommand::Limits(args) => {
            args.threads.apply();
            limits::run(args);
            Ok(())
        }
        BenchCommand::Train(args) => {
            args.threads.apply();
            train::run(args)
        }
    }
}

/// The median of some numbers; 0 if there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
