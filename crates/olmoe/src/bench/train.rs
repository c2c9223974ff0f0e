//! `olmoe bench train`: whole training steps against the multiply-add peak of the machine, measured in the same run.

use std::path::Path;
use std::time::{Duration, Instant};

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::counted;
use olmoe_model::adapter::{Adapter, parameters_with};
use olmoe_model::batch::Batch;
use olmoe_model::config::{FeedForward, ModelConfig};
use olmoe_model::model::{Activations, Held, Model, Precision};
use olmoe_model::parameters::{MlpOf, ModulePart, ParameterCount, ParameterSpec, parameters};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::peak_flops;
use olmoe_tensor::memory;
use olmoe_tensor::simd::Isa;
use olmoe_tensor::threads::num_threads;
use olmoe_train::config::OptimizerConfig;
use olmoe_train::loss::Loss;
use olmoe_train::optimizer::{Clip, Optimizer, Step};
use olmoe_train::plan::{flops_per_token, too_little_memory};
use serde_json::json;

use super::{TrainArgs, Trained, median};
use crate::output::note;

const SEED: u64 = 6198;
const PEAK_TIME: Duration = Duration::from_millis(300);

/// Refuses a model that cannot fit. Activations come on top, so this is the least.
fn check_memory(
    config: &ModelConfig,
    precision: Precision,
    specs: &[ParameterSpec],
    held: &[Held],
    encodings: &[Option<Encoding>],
    adapters: &[Adapter],
) -> anyhow::Result<()> {
    let trained = specs.iter().zip(held).filter(|(_, held)| **held == Held::Trained);
    let trained: usize = trained.map(|(spec, _)| spec.num_elements()).sum();
    // Gradients, and two moments of AdamW.
    let weights = config.bytes_with_adapters(precision, held, encodings, adapters)?;
    let needed = weights + 3 * (trained * size_of::<f32>()) as u64;
    if let Some(available) = too_little_memory(needed) {
        anyhow::bail!(
            "training {trained} parameters in {} takes at least {:.1} GB, and {:.1} GB are free; choose a smaller configuration",
            precision.name(),
            needed as f64 / 1e9,
            available as f64 / 1e9
        );
    }
    Ok(())
}

/// A built-in configuration by name, or a file.
fn read_config(name: &str) -> anyhow::Result<ModelConfig> {
    match name {
        "tiny" => Ok(ModelConfig::from_olmo_yaml(include_str!("../../../../configs/tiny.yml"))?.config),
        "small" => Ok(ModelConfig::from_olmo_yaml(include_str!("../../../../configs/small.yml"))?.config),
        path => {
            let found = Path::new(path).exists();
            anyhow::ensure!(found, "--config {path}: no such file, and the built-in configurations are tiny and small");
            let loaded = ModelConfig::read(path)?;
            loaded.notices.iter().for_each(note);
            Ok(loaded.config)
        }
    }
}

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.as_deref().map(Checkpoint::open).transpose()?;
    let config = match &checkpoint {
        Some(checkpoint) => checkpoint.config().clone(),
        None => read_config(&args.config)?,
    };
    let sequence = args.sequence.unwrap_or(config.max_sequence_length);
    // The batch sizes of the published comparison, else one sequence.
    let batch_size = args.batch.unwrap_or(match args.config.as_str() {
        "tiny" => 8,
        "small" => 4,
        _ => 1,
    });
    let precision = args.precision();
    let operand = match precision {
        Precision::Fp32 => Operand::F32,
        Precision::AmpBf16 => Operand::Bf16,
    };
    let adapters = args.adapters(&config);
    let flops = flops_per_token(&config, sequence)?;
    let count = ParameterCount::of(&config)?;
    let shape = describe(&config);
    let specs = parameters_with(&config, &adapters)?;
    let held = args.held(&config, &specs);
    anyhow::ensure!(held.contains(&Held::Trained), "--train: the model has none of these parameters");
    let encodings = checkpoint.as_ref().map_or_else(Vec::new, |checkpoint| checkpoint.encodings(true));
    check_memory(&config, precision, &specs, &held, &encodings, &adapters)?;
    // Adapters have no product with the gradient of a frozen weight, which is a third of a full step.
    let flops = match args.lora {
        Some(rank) => flops * 2.0 / 3.0 + 6.0 * adapted_numbers(&config, &adapters, rank),
        None => flops,
    };

    let mut model = Model::with_adapters(config, precision, held, &encodings, &adapters)?;
    match &checkpoint {
        Some(checkpoint) => {
            checkpoint.load_into(&mut model, &|_| {})?;
            model.initialize_adapters(SEED);
        }
        None => model.initialize(SEED),
    }
    let mut gradients = model.gradients();
    let mut optimizer = Optimizer::new(OptimizerConfig::release(), &model);
    let mut activations = Activations::new(args.keep());
    let vocabulary = model.config().vocab_size as u64;
    let mut state = SEED;
    let ids: Vec<u32> = (0..batch_size * sequence)
        .map(|_| {
            // Knuth's MMIX generator; its high bits are used.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary) as u32
        })
        .collect();
    let batch = Batch::uniform(&ids, sequence)?;
    let (targets, num_targets) = batch.next_tokens();

    let mut peak = peak_flops(operand, PEAK_TIME);
    let (mut seconds, mut last) = (Vec::new(), 0.0);
    let loss = Loss::over(num_targets as f64);
    for step in 0..args.warmup + args.steps {
        let start = Instant::now();
        let losses = loss.step(&model, &batch, &targets, &mut activations, &mut gradients)?;
        let settings = Step { number: step as u64 + 1, learning_rate: 4e-4, clip: Clip::Norm(1.0), record: false };
        let report = optimizer.step(&mut model, &mut gradients, &settings);
        let elapsed = start.elapsed().as_secs_f64();
        anyhow::ensure!(
            report.applied,
            "step {step}: the gradients' norm is {}; nothing was updated",
            report.grad_norm
        );
        last = losses.cross_entropy;
        if step >= args.warmup {
            seconds.push(elapsed);
        }
    }
    peak = peak.max(peak_flops(operand, PEAK_TIME));

    let tokens = batch.tokens() as f64;
    let median_seconds = median(seconds.clone());
    let tokens_per_second = tokens / median_seconds;
    let share = tokens_per_second * flops / peak;
    let peak_bytes = memory::peak_bytes();
    // The products of a step that trains everything, or of one that trains adapters.
    let whole = args.train == Trained::All;
    if args.json {
        let report = json!({
            "config": args.model.as_ref().map_or(args.config.clone(), |path| path.display().to_string()),
            "lora": args.lora, "precision": precision.name(), "threads": num_threads(), "isa": Isa::current().name(),
            "batch": batch_size, "sequence": sequence, "steps": args.steps,
            "parameters_total": count.total, "parameters_active": count.active,
            "tokens_per_second": tokens_per_second, "step_seconds": seconds, "flops_per_token": flops,
            "peak_flops": peak, "peak_share": whole.then_some(share), "peak_bytes": peak_bytes, "loss": last,
        });
        println!("{report}");
    } else {
        println!("{shape}; {} parameters, {} active", count.total, count.active);
        println!(
            "{batch_size} x {sequence} tokens a step, {}, {}, {}",
            precision.name(),
            counted(num_threads(), "thread"),
            Isa::current().name()
        );
        println!(
            "{tokens_per_second:.0} tokens/s (median of {}, {:.1} ms a step, loss {last:.4})",
            counted(args.steps, "step"),
            1e3 * median_seconds
        );
        if whole {
            println!(
                "{:.1} % of the multiply-add peak measured beside it ({:.0} GFLOP/s; {:.0} MFLOP a token)",
                100.0 * share,
                peak / 1e9,
                flops / 1e6
            );
        }
        println!("{:.2} GB at the peak", peak_bytes as f64 / 1e9);
    }
    Ok(())
}

/// The numbers of adapters that a token passes.
fn adapted_numbers(config: &ModelConfig, adapters: &[Adapter], rank: usize) -> f64 {
    let of = |adapter: &Adapter| {
        let spec = parameters(config).into_iter().find(|spec| spec.module == adapter.module);
        let sides = spec.map_or(0, |spec| spec.shape.iter().rev().take(2).sum::<usize>());
        let times = match (adapter.module.part, config.moe()) {
            (ModulePart::Mlp(MlpOf::Experts, _), Some(moe)) => moe.top_k,
            _ => 1,
        };
        (rank * sides * times) as f64
    };
    adapters.iter().map(of).sum()
}

fn describe(config: &ModelConfig) -> String {
    let feed_forward = match &config.feed_forward {
        FeedForward::Dense(mlp) => format!("dense width {}", mlp.width),
        FeedForward::Moe(moe) => {
            format!("{} of width {}, top {}", counted(moe.num_experts, "expert"), moe.expert.width, moe.top_k)
        }
    };
    let dense = config.even_layers.map(|mlp| format!(", even layers dense of width {}", mlp.width)).unwrap_or_default();
    let (layers, heads) = (counted(config.n_layers, "layer"), counted(config.n_heads, "head"));
    format!("{layers}, width {}, {heads}, {feed_forward}{dense}", config.d_model)
}
