//! The classic mistakes, made on purpose. Checks that a wrong model could pass would prove little, so each mistake has
//! to cause an error of more than a hundred times the bound for a correct model.
//!
//! Most mistakes are made with the model itself, by a configuration, weights or a batch that are wrong in the way in
//! which a loader or a caller makes them wrong; the others are made in the f64 [`reference`](crate::reference).
//!
//! Two mistakes are absent because the results stay the same with them. One is rotary positions that start again with each
//! document: only differences of positions count, and attention does not leave the document. The other is whether an
//! f32 norm multiplies by its weight before or after the cast.

use olmoe_model::config::{Activation, AuxiliaryDefinition, ClipOrder, FeedForward, Moe, NormKind};
use olmoe_model::model::{Keep, Precision};
use olmoe_tensor::ops::cross_entropy::IGNORE;

use crate::agreement::{FP32, gradient_errors};
use crate::check::{Check, CheckKind, largest, relative, relative_scalar};
use crate::golden::{Golden, Parameter};
use crate::pass::{PassTask, TrainingPass, VerifyError, build};
use crate::reference::{self, Slip};

/// A mistake is detected when its error exceeds this many times the bound of a correct model.
const FACTOR: f64 = 100.0;

/// One mistake.
pub struct Mistake {
    /// The mistake in words.
    pub name: &'static str,
    /// The golden state that shows it.
    pub golden: &'static str,
    shows_in: Quantity,
    made: Made,
}

/// The quantity in which a mistake is measured.
#[derive(Clone, Copy)]
enum Quantity {
    Logits,
    CrossEntropy,
    LoadBalancing,
    Z,
    Gradients,
}

enum Made {
    InModel(fn(&mut Trial)),
    InReference(Slip),
}
use Made::{InModel, InReference};

/// The inputs that a mistake changes.
struct Trial {
    golden: Golden,
    task: PassTask,
}

const fn mistake(golden: &'static str, shows_in: Quantity, name: &'static str, made: Made) -> Mistake {
    Mistake { name, golden, shows_in, made }
}

const fn logits(golden: &'static str, name: &'static str, made: Made) -> Mistake {
    mistake(golden, Quantity::Logits, name, made)
}

/// All mistakes.
pub const MISTAKES: &[Mistake] = &[
    // Attention.
    logits("toy", "q/k norm of each head by itself", InReference(Slip::QkNormPerHead)),
    logits("gqa", "q/k norm of each head by itself", InReference(Slip::QkNormPerHead)),
    logits("toy", "q/k norm after the rotary embedding", InReference(Slip::QkNormAfterRope)),
    logits("toy", "q/k norm left out", InModel(no_qk_norm)),
    logits("toy", "values normalised too", InReference(Slip::ValueNorm)),
    logits("qk_norm_plain", "q/k norm left out", InModel(|trial| trial.golden.config.qk_norm = None)),
    logits("toy", "rotary embedding of neighbouring pairs", InReference(Slip::InterleavedRope)),
    logits("toy", "keys turned backwards", InReference(Slip::RopeSign)),
    logits("gqa", "rope_theta ignored", InModel(|trial| trial.golden.config.rope.theta = 10_000.0)),
    logits("long", "rope_theta 500000", InModel(|trial| trial.golden.config.rope.theta = 500_000.0)),
    logits("toy", "positions not counted", InModel(|trial| trial.task.batch.positions.fill(0))),
    logits("gqa", "key/value head of query head h is h mod K", InReference(Slip::HeadsModulo)),
    logits("clip_qkv_olmo", "key/value head of query head h is h mod K", InReference(Slip::HeadsModulo)),
    logits("toy", "scores not scaled", InReference(Slip::NoScale)),
    logits("toy", "attention not causal", InReference(Slip::NotCausal)),
    logits("toy", "attention across sequences", InModel(one_sequence)),
    logits("toy", "fused q, k, v read as interleaved by head", InModel(interleaved_qkv)),
    logits("clip_qkv", "clip before the q/k norm", InModel(|trial| clip_order(trial, ClipOrder::BeforeNorm))),
    logits("clip_qkv", "clip left out", InModel(|trial| trial.golden.config.clip_qkv = None)),
    logits("clip_qkv_olmo", "clip after the q/k norm", InModel(|trial| clip_order(trial, ClipOrder::AfterNorm))),
    logits("documents", "documents ignored", InModel(|trial| trial.task.batch.segments = whole(trial))),
    logits("padding", "padding seen by attention", InModel(|trial| trial.task.batch.hidden = None)),
    // Norms.
    logits(
        "toy",
        "LayerNorm in place of RMSNorm",
        InModel(|trial| trial.golden.config.norm.kind = NormKind::LayerNorm),
    ),
    logits(
        "layernorm",
        "RMSNorm in place of LayerNorm",
        InModel(|trial| trial.golden.config.norm.kind = NormKind::Rms),
    ),
    logits("toy", "norm weights read as 1 + w", InModel(norm_weights_plus_one)),
    logits("norm_after", "norms before and not after", InModel(|trial| trial.golden.config.norm_after = false)),
    logits("toy", "norms after and not before", InModel(|trial| trial.golden.config.norm_after = true)),
    logits("layernorm", "biases ignored", InModel(no_biases)),
    // Router.
    logits("release_shape", "top-k weights renormalised", InModel(|trial| moe(trial).normalize_top_k = true)),
    logits("norm_topk_prob", "top-k weights not renormalised", InModel(|trial| moe(trial).normalize_top_k = false)),
    logits("toy", "softmax of the chosen experts only", InReference(Slip::SoftmaxOfChosen)),
    logits("toy", "sigmoid router", InReference(Slip::SigmoidRouter)),
    logits("toy", "probability on the expert's input", InReference(Slip::WeightOnInput)),
    logits("toy", "one expert fewer", InModel(|trial| moe(trial).top_k -= 1)),
    logits("release_shape", "one expert more", InModel(|trial| moe(trial).top_k += 1)),
    // Experts and MLPs.
    logits("toy", "gate and up swapped", InModel(|trial| swap(trial, "moe.experts"))),
    logits("release_shape", "gate and up swapped", InModel(|trial| swap(trial, "moe.experts"))),
    logits("olmo_losses", "gate and up swapped", InModel(|trial| swap(trial, "moe.experts"))),
    logits("dense", "gate and up swapped (up comes first in OLMo)", InModel(|trial| swap(trial, "mlp"))),
    logits("shared_expert", "gate and up of the shared expert swapped", InModel(|trial| swap(trial, "shared_expert"))),
    logits("shared_expert", "shared expert left out", InModel(no_shared_expert)),
    logits("toy", "down projection read in w2's layout", InModel(down_as_w2)),
    logits("olmo_losses", "down projection read in w2's layout", InModel(down_as_w2)),
    logits("toy", "experts off by one", InModel(rotated_experts)),
    logits("toy", "fused gate and up split one row late", InModel(|trial| resplit(trial, |row, n| (row + 1) % n))),
    logits("toy", "fused gate and up read as interleaved", InModel(|trial| resplit(trial, interleaved))),
    logits("interleave", "gate and up of the dense layers swapped", InModel(|trial| swap(trial, ".mlp"))),
    logits("layernorm", "SiLU in place of GELU", InModel(|trial| activation(trial, Activation::Silu))),
    logits("relu_multi_query", "GELU in place of ReLU", InModel(|trial| activation(trial, Activation::Gelu))),
    // Capacity.
    logits("capacity", "gate applied to experts with a capacity", InReference(Slip::CapacityGate)),
    logits("capacity", "first choices served first", InReference(Slip::DropsBySlot)),
    logits("capacity", "last tokens served first", InReference(Slip::DropsFirst)),
    logits("capacity", "capacity factor ignored", InModel(|trial| moe(trial).capacity_factor = Some(1.25))),
    logits("capacity", "nothing dropped", InModel(|trial| moe(trial).capacity_factor = None)),
    // Embedding and head.
    logits("toy", "head tied", InModel(tied)),
    mistake("tied", Quantity::Gradients, "head a copy of the embedding", InModel(untied)),
    logits("scale_logits", "logits not scaled", InModel(|trial| trial.golden.config.scale_logits = false)),
    logits("toy", "logits scaled", InModel(|trial| trial.golden.config.scale_logits = true)),
    logits("toy", "embedding times the root of d_model", InModel(scaled_embedding)),
    // Losses.
    mistake("toy", Quantity::CrossEntropy, "divided by all tokens, not by the targets", InModel(all_tokens)),
    mistake("toy", Quantity::CrossEntropy, "targets not shifted", InModel(unshifted)),
    mistake("toy", Quantity::CrossEntropy, "targets across sequences", InModel(across)),
    mistake("documents", Quantity::CrossEntropy, "no targets across documents", InModel(inside_documents)),
    mistake("padding", Quantity::CrossEntropy, "padding to be predicted", InModel(padding_too)),
    auxiliary("toy", "Hugging Face's loss as OLMo's", |t| definition(t, AuxiliaryDefinition::Olmo)),
    auxiliary("toy", "Hugging Face's loss as Megatron's", |t| definition(t, AuxiliaryDefinition::Megatron)),
    auxiliary("toy", "Hugging Face's loss layer by layer", |trial| {
        definition(trial, AuxiliaryDefinition::Olmo);
        trial.golden.config.auxiliary.load_balancing_weight *= moe(trial).top_k as f32;
    }),
    auxiliary("olmo_losses", "OLMo's loss as Hugging Face's", |t| definition(t, AuxiliaryDefinition::HuggingFace)),
    auxiliary("olmo_losses", "OLMo's loss as Megatron's", |t| definition(t, AuxiliaryDefinition::Megatron)),
    auxiliary("olmo_losses", "OLMo's loss of pooled layers", |trial| {
        definition(trial, AuxiliaryDefinition::HuggingFace);
        trial.golden.config.auxiliary.load_balancing_weight /= moe(trial).top_k as f32;
    }),
    auxiliary("megatron_losses", "Megatron's loss as OLMo's", |t| definition(t, AuxiliaryDefinition::Olmo)),
    auxiliary("megatron_losses", "Megatron's loss as Hugging Face's", |t| {
        definition(t, AuxiliaryDefinition::HuggingFace)
    }),
    auxiliary("megatron_losses", "Megatron's loss of the whole batch", |trial| {
        definition(trial, AuxiliaryDefinition::Olmo);
        trial.golden.config.auxiliary.load_balancing_weight *= trial.golden.config.n_layers as f32;
    }),
    auxiliary("interleave", "OLMo's loss over the dense layers, too", over_all_layers),
    mistake("interleave", Quantity::Z, "z-loss over the dense layers, too", InModel(over_all_layers)),
    mistake(
        "olmo_losses",
        Quantity::Z,
        "z-loss not divided by top_k",
        InModel(|trial| {
            trial.golden.config.auxiliary.z_weight *= moe(trial).top_k as f32;
        }),
    ),
    mistake(
        "olmo_losses",
        Quantity::Z,
        "z-loss summed over layers",
        InModel(|trial| {
            trial.golden.config.auxiliary.z_weight *= trial.golden.config.n_layers as f32;
        }),
    ),
    mistake(
        "olmo_losses",
        Quantity::Gradients,
        "auxiliary losses without gradient",
        InModel(|trial| {
            trial.golden.config.auxiliary.load_balancing_weight = 0.0;
            trial.golden.config.auxiliary.z_weight = 0.0;
        }),
    ),
];

const fn auxiliary(golden: &'static str, name: &'static str, make: fn(&mut Trial)) -> Mistake {
    mistake(golden, Quantity::LoadBalancing, name, InModel(make))
}

/// Makes every mistake that is measured with this golden state.
pub(crate) fn check(golden: &Golden, report: &mut dyn FnMut(Check)) -> Result<(), VerifyError> {
    for mistake in MISTAKES.iter().filter(|mistake| mistake.golden == golden.name) {
        let (allowed, quantity) = match mistake.shows_in {
            Quantity::Logits => (FP32.logits, "logits"),
            Quantity::CrossEntropy => (FP32.cross_entropy, "cross-entropy"),
            Quantity::LoadBalancing => (FP32.auxiliary, "load-balancing loss"),
            Quantity::Z => (FP32.auxiliary, "router z-loss"),
            Quantity::Gradients => (FP32.gradients, "gradients"),
        };
        let (worst, precision) = match &mistake.made {
            InReference(slip) => (relative(&reference::forward(golden, Some(*slip)).logits, &golden.logits), "fp64"),
            InModel(make) => (error(golden, *make, mistake.shows_in)?, "fp32"),
        };
        let what = format!("mistake: {}", mistake.name);
        let detail = format!("{quantity}; a correct model is within {allowed:.0e}");
        report(Check::new((&golden.name, precision), CheckKind::Mistake, what, worst, FACTOR * allowed, detail));
    }
    Ok(())
}

/// The error that a mistake causes.
fn error(golden: &Golden, make: fn(&mut Trial), quantity: Quantity) -> Result<f64, VerifyError> {
    let mut trial = Trial { golden: golden.clone(), task: PassTask::of(golden) };
    make(&mut trial);
    let model = build(&trial.golden, Precision::Fp32)?;
    let pass = TrainingPass::run(&model, &trial.task, Keep::Everything).map_err(VerifyError::of(golden))?;
    let scalar = |found: f64, expected: Option<f64>| relative_scalar(found, expected.unwrap_or(0.0));
    Ok(match quantity {
        Quantity::Logits => relative(&pass.logits, &golden.logits),
        Quantity::CrossEntropy => relative_scalar(pass.losses.cross_entropy, golden.cross_entropy),
        Quantity::LoadBalancing => scalar(pass.losses.load_balancing, golden.load_balancing),
        Quantity::Z => scalar(pass.losses.router_z, golden.z),
        Quantity::Gradients => largest(gradient_errors(golden, &model, &pass).iter().map(|gradient| gradient.error)),
    })
}

impl Trial {
    /// The parameters whose names contain `part`.
    fn matching(&mut self, part: &str) -> impl Iterator<Item = &mut Parameter> {
        self.golden.parameters.iter_mut().filter(move |parameter| parameter.name.contains(part))
    }

    /// The numbers of the parameter of that name.
    fn value(&mut self, name: &str) -> &mut Vec<f32> {
        let found = self.golden.parameters.iter_mut().find(|parameter| parameter.name == name);
        &mut found.unwrap_or_else(|| panic!("the golden state of a mistake has {name}")).value
    }

    fn remove(&mut self, part: &str) {
        self.golden.parameters.retain(|parameter| !parameter.name.contains(part));
    }
}

fn moe(trial: &mut Trial) -> &mut Moe {
    match &mut trial.golden.config.feed_forward {
        FeedForward::Moe(moe) => moe,
        FeedForward::Dense(_) => panic!("the golden state of a router's mistake has experts"),
    }
}

fn activation(trial: &mut Trial, activation: Activation) {
    match &mut trial.golden.config.feed_forward {
        FeedForward::Dense(mlp) => mlp.activation = activation,
        FeedForward::Moe(moe) => moe.expert.activation = activation,
    }
}

fn definition(trial: &mut Trial, definition: AuxiliaryDefinition) {
    trial.golden.config.auxiliary.definition = definition;
}

/// Divides by the number of layers, not by the number of mixture-of-experts layers.
fn over_all_layers(trial: &mut Trial) {
    let config = &mut trial.golden.config;
    let share = config.mixture_layers().count() as f32 / config.n_layers as f32;
    config.auxiliary.load_balancing_weight *= share;
    config.auxiliary.z_weight *= share;
}

fn clip_order(trial: &mut Trial, order: ClipOrder) {
    if let Some(clip) = &mut trial.golden.config.clip_qkv {
        clip.order = order;
    }
}

fn no_qk_norm(trial: &mut Trial) {
    trial.golden.config.qk_norm = None;
    trial.remove("q_norm");
    trial.remove("k_norm");
}

fn whole(trial: &Trial) -> olmoe_tensor::memory::Buffer<u32> {
    trial.task.batch.sequences.clone()
}

fn one_sequence(trial: &mut Trial) {
    trial.task.batch.segments = olmoe_tensor::memory::Buffer::copy_of(&[0, trial.golden.tokens() as u32]);
}

/// Rows of q, then k, then v, read as rows of q, k and v of the first head, then of the second.
fn interleaved_qkv(trial: &mut Trial) {
    let (heads, head) = (trial.golden.config.n_heads, trial.golden.config.head_dim * trial.golden.config.d_model);
    for layer in 0..trial.golden.config.n_layers {
        let names = ["q", "k", "v"].map(|which| format!("layers.{layer}.attention.{which}_proj.weight"));
        let fused: Vec<f32> = names.iter().flat_map(|name| trial.value(name).clone()).collect();
        for (which, name) in names.iter().enumerate() {
            let rows = (0..heads).flat_map(|h| &fused[(3 * h + which) * head..][..head]);
            *trial.value(name) = rows.copied().collect();
        }
    }
}

fn norm_weights_plus_one(trial: &mut Trial) {
    trial.matching("norm.weight").for_each(|parameter| parameter.value.iter_mut().for_each(|w| *w += 1.0));
}

fn no_biases(trial: &mut Trial) {
    trial.matching(".bias").for_each(|parameter| parameter.value.fill(0.0));
}

/// Swaps the gate and up projections of every module whose name ends in `module`.
fn swap(trial: &mut Trial, module: &str) {
    let names = trial.golden.parameters.iter().map(|parameter| parameter.name.clone());
    let gates: Vec<_> = names.filter(|name| name.contains(&format!("{module}.gate_proj"))).collect();
    for gate in gates {
        let up = gate.replace("gate_proj", "up_proj");
        let old = std::mem::take(trial.value(&gate));
        let new = std::mem::replace(trial.value(&up), old);
        *trial.value(&gate) = new;
    }
}

fn no_shared_expert(trial: &mut Trial) {
    moe(trial).shared_expert = None;
    trial.remove("shared_expert");
}

/// The numbers of each expert's `[D, I]` read as if they were `[I, D]`.
fn down_as_w2(trial: &mut Trial) {
    let (d, width) = (trial.golden.config.d_model, moe(trial).expert.width);
    for parameter in trial.matching("experts.down_proj") {
        for expert in parameter.value.chunks_mut(d * width) {
            let old = expert.to_vec();
            for row in 0..d {
                for column in 0..width {
                    expert[row * width + column] = old[column * d + row];
                }
            }
        }
    }
}

fn rotated_experts(trial: &mut Trial) {
    let size = moe(trial).expert.width * trial.golden.config.d_model;
    trial.matching("moe.experts.").for_each(|parameter| parameter.value.rotate_left(size));
}

/// Gate rows over up rows, as one matrix of n rows, read in another order.
fn resplit(trial: &mut Trial, order: fn(usize, usize) -> usize) {
    let (d, width) = (trial.golden.config.d_model, moe(trial).expert.width);
    let (layers, experts) = (trial.golden.config.n_layers, moe(trial).num_experts);
    for layer in 0..layers {
        let [gate, up] = ["gate", "up"].map(|which| format!("layers.{layer}.moe.experts.{which}_proj.weight"));
        for e in 0..experts {
            let of = e * width * d..(e + 1) * width * d;
            let mut fused = trial.value(&gate)[of.clone()].to_vec();
            fused.extend_from_slice(&trial.value(&up)[of.clone()]);
            let read: Vec<f32> =
                (0..2 * width).flat_map(|row| &fused[order(row, 2 * width) * d..][..d]).copied().collect();
            trial.value(&gate)[of.clone()].copy_from_slice(&read[..width * d]);
            trial.value(&up)[of].copy_from_slice(&read[width * d..]);
        }
    }
}

/// The gate's rows are taken from the even places, the up projection's from the odd ones.
fn interleaved(row: usize, n: usize) -> usize {
    2 * (row % (n / 2)) + row / (n / 2)
}

fn tied(trial: &mut Trial) {
    trial.golden.config.tie_embeddings = true;
    trial.remove("lm_head");
}

fn untied(trial: &mut Trial) {
    trial.golden.config.tie_embeddings = false;
    let embedding = trial.golden.parameter("embed_tokens.weight").cloned();
    trial.golden.parameters.extend(embedding.map(|copy| Parameter { name: "lm_head.weight".into(), ..copy }));
}

fn scaled_embedding(trial: &mut Trial) {
    let scale = (trial.golden.config.d_model as f32).sqrt();
    trial.value("embed_tokens.weight").iter_mut().for_each(|x| *x *= scale);
}

fn all_tokens(trial: &mut Trial) {
    trial.task.denominator = trial.golden.tokens() as f64;
}

fn unshifted(trial: &mut Trial) {
    let length = trial.golden.length;
    for (t, target) in trial.task.targets.iter_mut().enumerate() {
        // As many targets as there should be.
        *target = if (t + 1) % length == 0 { IGNORE } else { trial.golden.ids[t] };
    }
}

fn across(trial: &mut Trial) {
    trial.task.targets = trial.golden.ids[1..].to_vec();
    trial.task.targets.push(IGNORE);
    trial.task.denominator = (trial.golden.tokens() - 1) as f64;
}

fn inside_documents(trial: &mut Trial) {
    for end in &trial.task.batch.segments[1..] {
        trial.task.targets[*end as usize - 1] = IGNORE;
    }
    let targets = trial.task.targets.iter().filter(|target| **target != IGNORE);
    trial.task.denominator = targets.count() as f64;
}

fn padding_too(trial: &mut Trial) {
    trial.task.targets = trial.task.batch.next_tokens().0.to_vec();
}
