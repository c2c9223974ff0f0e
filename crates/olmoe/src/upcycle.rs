//! `olmoe upcycle`

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::upcycle::{Upcycled, Upcycling};
use olmoe_data::counted;
use olmoe_model::init::Noise;

use crate::flags::{Beside, Form, InOut, RecordArg, RunArgs, input, positive};

/// Make a mixture-of-experts model from a dense model
///
/// Every expert begins as a copy of the dense MLP, and every router with normally distributed weights; everything else
/// stays. The result is the start of a training run, as OLMoE's upcycling script makes it. All blocks get experts, with
/// --interleave every second one. Memory: the largest matrix and a few megabytes.
///
/// With --normalize-top-k the new model computes what the dense model does. Without it, as in OLMo, the outputs of the
/// chosen experts are weighted with their probabilities, whose sum is at first about top-k / experts; --shared-expert
/// adds a whole copy of the MLP to that. OLMo's format supports everything but --normalize-top-k. Hugging Face and GGUF
/// require query and key norms and support neither a shared expert nor dense blocks between; of the two, only Hugging
/// Face supports --normalize-top-k.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe upcycle step700000-unsharded moe --to olmo --seed 1
  olmoe upcycle step700000-unsharded moe-hf --to hf --seed 1 \\
      --num-experts 64 --top-k 8 --normalize-top-k --noise 0.5

Files: reads IN; writes OUT as `olmoe convert` does.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct UpcycleArgs {
    #[command(flatten)]
    files: InOut,

    #[command(flatten)]
    form: Form,

    /// Seed of routers and noise; the same bits on every machine
    #[arg(long, value_name = "N")]
    seed: u64,

    /// Experts of each layer
    #[arg(long, value_name = "N", value_parser = positive, default_value = "8")]
    num_experts: usize,

    /// Experts per token
    #[arg(long, value_name = "N", value_parser = positive, default_value = "2")]
    top_k: usize,

    /// Leave the even blocks (0, 2, ...) dense; only OLMo's format supports that, and its `moe_interleave` branch
    /// trains it
    #[arg(long)]
    interleave: bool,

    /// Divide the probabilities of the chosen experts by their sum
    #[arg(long)]
    normalize_top_k: bool,

    /// Give each layer a copy of the MLP that processes every token
    #[arg(long)]
    shared_expert: bool,

    /// Swap gate and up projection of the shared expert, as the upcycling script does by mistake
    #[arg(long, requires = "shared_expert")]
    upstream_swap: bool,

    /// Probability that a number of an expert is replaced by noise, drawn for each expert [script: 0.5]
    #[arg(long, value_name = "SHARE", default_value = "0")]
    noise: f64,

    /// Standard deviation of the noise
    #[arg(long, value_name = "X", default_value = "0.02")]
    noise_std: f64,

    /// Standard deviation of the routers
    #[arg(long, value_name = "X", default_value = "0.02")]
    router_std: f64,

    #[command(flatten)]
    beside: Beside,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &UpcycleArgs) -> anyhow::Result<()> {
    let (from, output) = args.files.get()?;
    let target = args.form.target(&output)?;
    let dense = Checkpoint::open(&input(from, MODEL_FILES, args.run.offline)?)?;
    let companions = args.beside.companions(&dense)?;
    let noise = Noise { share: args.noise, std: args.noise_std };
    let upcycling = Upcycling {
        num_experts: args.num_experts,
        top_k: args.top_k,
        interleave: args.interleave,
        normalize_top_k: args.normalize_top_k,
        shared_expert: args.shared_expert,
        swap_shared_gate: args.upstream_swap,
        noise: (noise.share != 0.0).then_some(noise),
        router_std: args.router_std,
        seed: args.seed,
    };
    let mixture = Upcycled::new(&dense, upcycling)?;
    let written = args.run.write(&mixture, &companions, target, &output)?;
    let (tensors, bytes) = (counted(written.tensors, "tensor"), counted(written.bytes, "byte"));
    args.record.show(&output, &written, format!("{}: {tensors}, {bytes}, read back and compared", output.display()))
}
