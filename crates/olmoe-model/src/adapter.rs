//! Low-rank adapters: LoRA and DoRA of any matrix, of experts one by one or in common.
//!
//! LoRA (Hu et al., arXiv 2106.09685): `y = W·x + s·B·(A·x)` with `A [r, in]`, `B [out, r]` and a constant s. DoRA (Liu et
//! al., arXiv 2402.09353): `y = m ⊙ (W·x + s·B·(A·x)) / ‖W + s·B·A‖`, the norm that of each row, and no gradient passes
//! through it. With `B = 0`, and `m` the norms of the rows of `W`, both are `W·x`.
//!
//! The matrices of adapters are parameters of the model after the canonical ones, adapter by adapter:
//!
//! ```text
//! {module}.lora_a         [r, in]    of experts [E, r, in];  of the embedding [V, r], a row for each token
//! {module}.lora_b         [out, r]   of experts [E, out, r]; of the embedding [D, r]
//! {module}.lora_magnitude [out]      of experts [E, out];    with DoRA
//! ```
//!
//! A side that all experts have in common has the shape without E. `{module}` is a canonical name, such as
//! `layers.3.moe.experts.gate_proj`.

pub mod paths;
pub mod settings;

use crate::config::ModelConfig;
use crate::identity::{MlpOf, ModuleId, ModulePart};
use crate::modules::ParameterId;
use crate::parameters::{InitRule, ParameterKind, ParameterSpec, parameters};

/// An adapter of one matrix, or of the stack of experts' matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The module whose weight it adapts.
    pub module: ModuleId,
    /// Rank r.
    pub rank: usize,
    /// The constant s: `alpha/r`, or `alpha/√r` for rsLoRA.
    pub scale: f32,
    /// Whether it is DoRA.
    pub dora: bool,
    /// What the experts have in common; of no effect for other matrices.
    pub share: Sharing,
    /// The probability with which each input of `A` is left out in training; the others are divided by one minus it.
    pub dropout: f32,
    /// The initial values of A; B begins with zeros.
    pub init: AdapterInit,
}

/// The sides of an adapter that all experts of a layer have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// None: each expert has an adapter of its own.
    #[default]
    PerExpert,
    /// A.
    A,
    /// B.
    B,
    /// A and B: all experts have the same adapter.
    Both,
}

impl Sharing {
    /// Whether A and B are shared.
    pub fn sides(self) -> [bool; 2] {
        match self {
            Sharing::PerExpert => [false, false],
            Sharing::A => [true, false],
            Sharing::B => [false, true],
            Sharing::Both => [true, true],
        }
    }
}

/// The initial distribution of A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterInit {
    /// Uniform within `±1/√in`: peft's default, `kaiming_uniform_(a=√5)`.
    #[default]
    Kaiming,
    /// Normal with the variance `2/(in + r)`: Megatron-Bridge's default, `xavier_normal_`.
    Xavier,
    /// Normal with the standard deviation `1/r`: peft's `gaussian`.
    Gaussian,
}

/// The ids of the parameters of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterIds {
    /// The adapted matrix.
    pub base: ParameterId,
    /// A.
    pub a: ParameterId,
    /// B.
    pub b: ParameterId,
    /// The magnitude of DoRA.
    pub magnitude: Option<ParameterId>,
}

/// Why an adapter cannot be one of a model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("adapter of {module}: {problem}")]
pub struct AdapterError {
    /// The canonical name of the module.
    pub module: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

/// All parameters of a model with adapters: those of [`parameters()`], then those of each adapter.
///
/// # Errors
/// [`AdapterError`]: an adapter of a matrix that the model does not have, a second one of the same, or a value out of
/// its range.
pub fn parameters_with(config: &ModelConfig, adapters: &[Adapter]) -> Result<Vec<ParameterSpec>, AdapterError> {
    let mut specs = parameters(config);
    add_adapters(config, adapters, &mut specs)?;
    Ok(specs)
}

/// Appends the parameters of adapters to the canonical ones.
pub(crate) fn add_adapters(
    config: &ModelConfig,
    adapters: &[Adapter],
    specs: &mut Vec<ParameterSpec>,
) -> Result<Vec<AdapterIds>, AdapterError> {
    let canonical = specs.len();
    let mut all = Vec::with_capacity(adapters.len());
    for (at, adapter) in adapters.iter().enumerate() {
        if adapters[..at].iter().any(|other| other.module == adapter.module) {
            let problem = "it has two adapters; combine them into one".to_owned();
            return Err(AdapterError { module: adapter.module.to_string(), problem });
        }
        let (ids, own) = entries(adapter, config, &specs[..canonical], specs.len())?;
        specs.extend(own);
        all.push(ids);
    }
    Ok(all)
}

/// The entries of an adapter in the registry, given the canonical ones; `next` is the id of the first.
fn entries(
    adapter: &Adapter,
    config: &ModelConfig,
    canonical: &[ParameterSpec],
    next: ParameterId,
) -> Result<(AdapterIds, Vec<ParameterSpec>), AdapterError> {
    let fault = |problem: String| AdapterError { module: adapter.module.to_string(), problem };
    let is_matrix = |spec: &ParameterSpec| {
        use ParameterKind::{Embedding, Expert, Linear, Router};
        spec.module == adapter.module && matches!(spec.kind, Embedding | Expert | Linear | Router)
    };
    let found = canonical.iter().position(is_matrix);
    let base = found.ok_or_else(|| fault("the model has no matrix there; leave the adapter out".to_owned()))?;
    let spec = &canonical[base];
    if adapter.rank == 0 {
        return Err(fault("rank 0, expected at least 1".to_owned()));
    }
    if !adapter.scale.is_finite() {
        return Err(fault(format!("scale {}, expected a finite number", adapter.scale)));
    }
    if !(0.0..1.0).contains(&adapter.dropout) {
        return Err(fault(format!("dropout {}, expected at least 0 and less than 1", adapter.dropout)));
    }
    if adapter.dora && adapter.dropout > 0.0 {
        return Err(fault("DoRA has no dropout here; set the dropout to 0".to_owned()));
    }
    let embedding = spec.kind == ParameterKind::Embedding;
    if embedding && config.tie_embeddings {
        return Err(fault("the embedding is also the head; adapters of tied embeddings are not supported".to_owned()));
    }
    if adapter.dora && matches!(adapter.module.part, ModulePart::Embedding | ModulePart::Head) {
        return Err(fault("DoRA adapts the matrices of the layers only; use LoRA here".to_owned()));
    }
    let (groups, [out, input]) = match spec.shape[..] {
        [groups, out, input] => (Some(groups), [out, input]),
        [rows, columns] if embedding => (None, [columns, rows]),
        [out, input] => (None, [out, input]),
        _ => return Err(fault("its weight is not a matrix".to_owned())),
    };
    let [shared_a, shared_b] = match adapter.module.part {
        ModulePart::Mlp(MlpOf::Experts, _) => adapter.share.sides(),
        _ => [true, true],
    };
    let r = adapter.rank;
    let shape = |shared: bool, shape: [usize; 2]| match groups {
        Some(groups) if !shared => vec![groups, shape[0], shape[1]],
        _ => shape.to_vec(),
    };
    let entry = |kind: ParameterKind, shape: Vec<usize>, init: InitRule| ParameterSpec {
        module: adapter.module,
        name: format!("{}.{}", adapter.module, kind.suffix()),
        shape,
        kind,
        init,
    };
    let a = match adapter.init {
        // peft draws the embedding's A as zeros and B as normal numbers; here A is drawn as for the others.
        AdapterInit::Kaiming => InitRule::Uniform { bound: (input as f64).sqrt().recip() },
        AdapterInit::Xavier => InitRule::Normal { std: (2.0 / (input + r) as f64).sqrt(), cutoff_factor: None },
        AdapterInit::Gaussian => InitRule::Normal { std: (r as f64).recip(), cutoff_factor: None },
    };
    let shape_a = if embedding { vec![input, r] } else { shape(shared_a, [r, input]) };
    let mut specs = vec![
        entry(ParameterKind::LoraA, shape_a, a),
        entry(ParameterKind::LoraB, shape(shared_b, [out, r]), InitRule::Zeros),
    ];
    if adapter.dora {
        let shape = groups.into_iter().chain([out]).collect();
        specs.push(entry(ParameterKind::LoraMagnitude, shape, InitRule::Ones));
    }
    let magnitude = adapter.dora.then_some(next + 2);
    Ok((AdapterIds { base, a: next, b: next + 1, magnitude }, specs))
}
