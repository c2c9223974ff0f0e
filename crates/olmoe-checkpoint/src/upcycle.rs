//! Sparse upcycling: a dense model becomes a mixture-of-experts model whose experts begin as copies of its MLP (OLMoE's
//! `sparsify_ckpt_unsharded.py`).
//!
//! | parameter of the mixture | source |
//! |---|---|
//! | `moe.experts.{gate,up,down}_proj` of every expert | the same projection of the MLP; optionally some elements are replaced by noise |
//! | `moe.router` | independent normal draws |
//! | `moe.shared_expert.{gate,up,down}_proj`, optional | the same projection of the MLP |
//! | everything else, such as the MLP of a layer that remains dense | the same parameter |
//!
//! All experts are equal and give the output `m` of the MLP, so the layer gives `(s + Σp)·m`, where `Σp` is the sum of
//! the chosen probabilities (1 if they are normalised, `top_k / num_experts` if the router is even) and `s` is 1 with a
//! shared expert and 0 without.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use olmoe_model::config::{ConfigError, FeedForward, InitMethod, ModelConfig, Moe};
use olmoe_model::init::{Noise, add_noise_to_chunk, initialize_chunk};
use olmoe_model::parameters::{
    InitRule, MlpMatrix, MlpOf, ModuleId, ModulePart, ParameterKind, ParameterSpec, parameters,
};
use olmoe_tensor::memory::Buffer;

use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::weights::{Weights, draw_slab};

/// The mixture-of-experts model to make from a dense model.
#[derive(Clone, Debug, PartialEq)]
pub struct Upcycling {
    /// Number of experts. The script has 8.
    pub num_experts: usize,
    /// Experts for each token. OLMo's default is 2.
    pub top_k: usize,
    /// Whether only every second layer, from the second on, becomes a mixture-of-experts layer and the others remain
    /// dense. The script's `interleave`, off by default.
    pub interleave: bool,
    /// Whether the chosen probabilities are divided by their sum; never in OLMo.
    pub normalize_top_k: bool,
    /// Whether a copy of the MLP becomes a shared expert, which every token passes. The script's `share`, off by
    /// default.
    pub shared_expert: bool,
    /// Whether to reproduce a mistake of the script, which swaps the gate and the up projection of the shared expert.
    pub swap_shared_gate: bool,
    /// Independent noise in all matrices of the routed experts. The script's `noise`, off by default; there it has a
    /// share of 0.5 and a standard deviation of 0.02.
    pub noise: Option<Noise>,
    /// Standard deviation of the router. The script has 0.02.
    pub router_std: f64,
    /// Seed of router and noise.
    pub seed: u64,
}

/// Why a model cannot be upcycled.
#[derive(Debug, thiserror::Error)]
pub enum UpcycleError {
    /// The source is not dense.
    #[error("{}: it is a mixture of {num_experts} experts already; upcycle a dense model", path.display())]
    Mixture {
        /// The checkpoint.
        path: PathBuf,
        /// Its experts.
        num_experts: usize,
    },
    /// Quantised weights, in which elements cannot be replaced by noise.
    #[error(
        "{}: its weights are quantised ({found}); upcycle the original, or make plain numbers of them first with \
         `olmoe convert --dtype f32`",
        path.display()
    )]
    Quantized {
        /// The checkpoint.
        path: PathBuf,
        /// An encoding of it.
        found: &'static str,
    },
    /// MLPs with biases, which experts do not have.
    #[error("{}: its MLPs have biases, which experts do not have, so it cannot be upcycled; use a dense model without biases", path.display())]
    Biases {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A swap of matrices of which one does not exist.
    #[error(
        "{}: the shared expert's gate and up projection are to be swapped, but {reason}; leave the swap out",
        path.display()
    )]
    NothingToSwap {
        /// The checkpoint.
        path: PathBuf,
        /// Which of them is missing.
        reason: &'static str,
    },
    /// A number out of its range.
    #[error("the {what} is {found}, expected {expected}")]
    Number {
        /// Which.
        what: &'static str,
        /// Its value.
        found: f64,
        /// Its range.
        expected: &'static str,
    },
    /// The mixture cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The dense model lacks a parameter.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// The source of a parameter of the mixture.
#[derive(Clone, Copy)]
enum ParameterOrigin {
    /// A parameter of the dense model, unchanged.
    Copy(usize),
    /// A parameter of the dense model, copied to every expert.
    Expert(usize),
    /// Drawn.
    Router,
}

/// The weights of the mixture-of-experts model, read from a dense model.
pub struct Upcycled<'s> {
    dense: &'s dyn Weights,
    upcycling: Upcycling,
    config: ModelConfig,
    specs: Vec<ParameterSpec>,
    origins: Vec<ParameterOrigin>,
}

impl<'s> Upcycled<'s> {
    /// Plans the upcycling; no weights are read yet.
    ///
    /// # Errors
    /// A source that is a mixture, is quantised or has biases in its MLPs; numbers out of their ranges; more experts
    /// for each token than there are; sizes above their limits.
    pub fn new(dense: &'s dyn Weights, upcycling: Upcycling) -> Result<Upcycled<'s>, UpcycleError> {
        let path = || dense.origin().to_owned();
        let mlp = match &dense.config().feed_forward {
            FeedForward::Dense(mlp) => *mlp,
            FeedForward::Moe(moe) => {
                return Err(UpcycleError::Mixture { path: path(), num_experts: moe.num_experts });
            }
        };
        let found = (0..dense.parameters().len()).map(|parameter| dense.encoding(parameter, 0));
        if let Some(found) = found.into_iter().find(|found| found.is_quantized()) {
            return Err(UpcycleError::Quantized { path: path(), found: found.name() });
        }
        if dense.config().mlp_bias {
            return Err(UpcycleError::Biases { path: path() });
        }
        check_numbers(&upcycling)?;
        if upcycling.swap_shared_gate && !(upcycling.shared_expert && mlp.activation.is_gated()) {
            let reason = if upcycling.shared_expert { "its MLPs have no gate" } else { "there is no shared expert" };
            return Err(UpcycleError::NothingToSwap { path: path(), reason });
        }
        let mut config = dense.config().clone();
        config.feed_forward = FeedForward::Moe(Moe {
            num_experts: upcycling.num_experts,
            top_k: upcycling.top_k,
            expert: mlp,
            normalize_top_k: upcycling.normalize_top_k,
            shared_expert: upcycling.shared_expert.then_some(mlp),
            capacity_factor: None,
        });
        config.even_layers = upcycling.interleave.then_some(mlp);
        if !matches!(config.init.method, InitMethod::Normal | InitMethod::FullMegatron) {
            // The other methods are only defined for dense models, and no parameter is drawn by them any more.
            config.init.method = InitMethod::Normal;
        }
        config.validate()?;
        let mut specs = parameters(&config);
        let mut origins = Vec::with_capacity(specs.len());
        let key = |module: ModuleId, spec: &ParameterSpec| (module, spec.kind == ParameterKind::Bias);
        let of_dense: HashMap<_, usize> =
            dense.parameters().iter().enumerate().map(|(at, spec)| (key(spec.module, spec), at)).collect();
        for spec in &mut specs {
            if spec.kind == ParameterKind::Router {
                spec.init = InitRule::Normal { std: upcycling.router_std, cutoff_factor: None };
                origins.push(ParameterOrigin::Router);
                continue;
            }
            let module = in_dense(spec.module, upcycling.swap_shared_gate);
            let missing = || CheckpointError::Missing {
                path: path(),
                tensor: format!("{module}.{}", spec.kind.suffix()),
                expected: spec.shape.clone(),
            };
            let at = *of_dense.get(&key(module, spec)).ok_or_else(missing)?;
            origins.push(if spec.kind == ParameterKind::Expert {
                ParameterOrigin::Expert(at)
            } else {
                ParameterOrigin::Copy(at)
            });
        }
        Ok(Upcycled { dense, upcycling, config, specs, origins })
    }
}

fn check_numbers(upcycling: &Upcycling) -> Result<(), UpcycleError> {
    let Noise { share, std } = upcycling.noise.unwrap_or(Noise { share: 0.0, std: 0.0 });
    if !(0.0..=1.0).contains(&share) {
        return Err(UpcycleError::Number { what: "share of noise", found: share, expected: "a number from 0 to 1" });
    }
    for (what, found) in [("deviation of the noise", std), ("deviation of the router", upcycling.router_std)] {
        // Draws are within some tens of standard deviations, so this bound keeps them finite.
        if !(0.0..=1e6).contains(&found) {
            return Err(UpcycleError::Number { what, found, expected: "a number from 0 to 1000000" });
        }
    }
    Ok(())
}

/// The module of the dense model that one of the mixture comes from.
fn in_dense(module: ModuleId, swap_shared_gate: bool) -> ModuleId {
    let part = match module.part {
        ModulePart::Mlp(MlpOf::SharedExpert, MlpMatrix::Gate) if swap_shared_gate => {
            ModulePart::Mlp(MlpOf::Dense, MlpMatrix::Up)
        }
        ModulePart::Mlp(MlpOf::SharedExpert, MlpMatrix::Up) if swap_shared_gate => {
            ModulePart::Mlp(MlpOf::Dense, MlpMatrix::Gate)
        }
        ModulePart::Mlp(_, matrix) => ModulePart::Mlp(MlpOf::Dense, matrix),
        part => part,
    };
    ModuleId { part, ..module }
}

impl Weights for Upcycled<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn encoding(&self, parameter: usize, _slab: usize) -> Encoding {
        match self.origins[parameter] {
            ParameterOrigin::Copy(at) | ParameterOrigin::Expert(at) => self.dense.encoding(at, 0),
            ParameterOrigin::Router => self.dense.main_encoding(),
        }
    }

    fn main_encoding(&self) -> Encoding {
        self.dense.main_encoding()
    }

    fn widens_vectors(&self) -> bool {
        self.dense.widens_vectors()
    }

    fn origin(&self) -> &Path {
        self.dense.origin()
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        let (spec, seed) = (&self.specs[parameter], self.upcycling.seed);
        let draw = |before, draw: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            draw_slab(spec, slab, self.encoding(parameter, slab), before, draw)
        };
        match (self.origins[parameter], self.upcycling.noise) {
            (ParameterOrigin::Router, _) => draw(None, &|chunk, numbers| initialize_chunk(spec, seed, chunk, numbers)),
            (ParameterOrigin::Expert(at), Some(noise)) => {
                let before = self.dense.read(at, 0)?;
                draw(Some(&before), &|chunk, numbers| add_noise_to_chunk(&spec.name, noise, seed, chunk, numbers))
            }
            (ParameterOrigin::Copy(at) | ParameterOrigin::Expert(at), _) => self.dense.read(at, 0),
        }
    }
}
