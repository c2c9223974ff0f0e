//! The registry of parameters: canonical names, shapes, kinds and initial distributions, in one fixed order.
//!
//! Shapes: V rows of the embedding, D model width, H·d query width, K·d key and value width, E experts, I expert or MLP
//! width. Matrices are `[out, in]`; the experts of a layer are stacked to `[E, out, in]`. `.bias` follows its weight
//! where the configuration asks for one, and a norm without parameters has no entry.
//!
//! ```text
//! embed_tokens.weight [V,D]                                embedding_norm.weight [D]
//! layers.{i}.attention_norm.weight [D]
//! layers.{i}.attention.q_proj.weight [H·d,D]               .k_proj.weight .v_proj.weight [K·d,D]
//! layers.{i}.attention.q_norm.weight [H·d]                 .k_norm.weight [K·d]
//! layers.{i}.attention.o_proj.weight [D,H·d]
//! layers.{i}.mlp_norm.weight [D]
//! layers.{i}.moe.router.weight [E,D]
//! layers.{i}.moe.experts.gate_proj.weight [E,I,D]          .up_proj.weight [E,I,D]   .down_proj.weight [E,D,I]
//! layers.{i}.moe.bias [D]
//! layers.{i}.moe.shared_expert.gate_proj.weight [I,D]      .up_proj.weight [I,D]     .down_proj.weight [D,I]
//! layers.{i}.mlp.gate_proj.weight [I,D]                    .up_proj.weight [I,D]     .down_proj.weight [D,I]
//! norm.weight [D]                                          lm_head.weight [V,D]
//! ```

use serde::{Deserialize, Serialize};

use crate::config::architecture::{FeedForward, InitMethod, Mlp, ModelConfig, Moe, Norm};
use crate::config::error::ConfigError;
use crate::modules::{
    AttentionModule, BlockModule, FeedForwardModule, Linear, MlpModule, Modules, MoeModule, NormModule, ParameterId,
};

/// Most parameters of a model, about 17.6 trillion.
pub const MAX_PARAMETERS: u64 = 1 << 44;

pub use crate::identity::{MlpMatrix, MlpOf, ModuleId, ModulePart, Projection};

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// The module that it is a parameter of.
    pub module: ModuleId,
    /// Canonical name, unique within the model: that of the module and [`ParameterKind::suffix`].
    pub name: String,
    /// Extents, outermost first; row-major.
    pub shape: Vec<usize>,
    /// The kind of parameter, for weight decay and for the forms in which it is held.
    pub kind: ParameterKind,
    /// The distribution of its initial values.
    pub init: InitRule,
}

impl ParameterSpec {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().fold(1, |product: usize, &extent| product.saturating_mul(extent))
    }
}

/// The kind of a parameter. OLMo applies weight decay to linears, routers and experts always, to norms and biases if
/// `decay_norm_and_bias` is set, and to the embedding if `decay_embeddings` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// The token embedding, also when the head shares it.
    Embedding,
    /// A matrix that every token passes: attention, dense MLP, shared expert, head.
    Linear,
    /// A router.
    Router,
    /// A stack of routed experts' matrices.
    Expert,
    /// The weight of a norm.
    Norm,
    /// A bias of a linear or of a norm.
    Bias,
    /// The matrix A of an adapter.
    LoraA,
    /// The matrix B of an adapter.
    LoraB,
    /// The magnitude of a DoRA adapter.
    LoraMagnitude,
}

impl ParameterKind {
    /// The end of the name of such a parameter, after the name of its module.
    pub fn suffix(self) -> &'static str {
        match self {
            ParameterKind::Bias => "bias",
            ParameterKind::LoraA => "lora_a",
            ParameterKind::LoraB => "lora_b",
            ParameterKind::LoraMagnitude => "lora_magnitude",
            _ => "weight",
        }
    }

    /// Whether it is a parameter of an adapter.
    pub fn is_of_adapter(self) -> bool {
        matches!(self, ParameterKind::LoraA | ParameterKind::LoraB | ParameterKind::LoraMagnitude)
    }
}

/// The distribution of the initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InitRule {
    /// All elements 0.
    Zeros,
    /// All elements 1.
    Ones,
    /// Independent uniform draws.
    Uniform {
        /// The draws lie between −bound and bound.
        bound: f64,
    },
    /// Independent normal draws with mean 0.
    Normal {
        /// Standard deviation before truncation.
        std: f64,
        /// Draws are repeated until they are within this many `std` of 0. `None`: no bound.
        cutoff_factor: Option<f64>,
    },
}

/// Numbers of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCount {
    /// All parameters, the embedding and the head included; a tied head counts once.
    pub total: u64,
    /// The parameters that one token uses: all but those of the experts that it is not routed to.
    pub active: u64,
}

impl ParameterCount {
    /// Counts the parameters of a model without listing them.
    ///
    /// # Errors
    /// [`ConfigError::TooManyParameters`] above [`MAX_PARAMETERS`].
    pub fn of(config: &ModelConfig) -> Result<Self, ConfigError> {
        let (mut outer, mut shared, mut experts) = (0u128, 0u128, 0u128);
        let mut count_outer = |entry: VisitedParameter<'_>| outer = outer.saturating_add(entry.num_elements());
        let mut visit = Visit::new(&mut count_outer);
        let embedding = visit.before_layers(config);
        visit.after_layers(config, embedding.0);
        // Layers are of two kinds at most: those like the first and those like the second.
        for (index, count) in [(0, config.n_layers.div_ceil(2)), (1, config.n_layers / 2)] {
            let mut count_layer = |entry: VisitedParameter<'_>| {
                let sum = if entry.kind == ParameterKind::Expert { &mut experts } else { &mut shared };
                *sum = sum.saturating_add(entry.num_elements().saturating_mul(count as u128));
            };
            Visit::new(&mut count_layer).block(config, index);
        }
        // Every stack of experts has E equal slices, so the division is exact.
        let routed = config.moe().map_or(0, |moe| {
            (experts / (moe.num_experts as u128).max(1)).saturating_mul(moe.top_k.min(moe.num_experts) as u128)
        });
        let with = |experts: u128| outer.saturating_add(shared).saturating_add(experts);
        let bounded = |count: u128| match u64::try_from(count) {
            Ok(count) if count <= MAX_PARAMETERS => Ok(count),
            _ => Err(ConfigError::TooManyParameters { limit: MAX_PARAMETERS }),
        };
        Ok(Self { total: bounded(with(experts))?, active: bounded(with(routed))? })
    }
}

/// All parameters of a model, in canonical order: embedding, layers from the first to the last, final norm, head.
pub fn parameters(config: &ModelConfig) -> Vec<ParameterSpec> {
    registry(config).0
}

/// All parameters, and the modules with the ids of their parameters.
pub(crate) fn registry(config: &ModelConfig) -> (Vec<ParameterSpec>, Modules) {
    let mut specs = Vec::new();
    let mut receive = |entry: VisitedParameter<'_>| specs.push(entry.spec(config));
    let mut visit = Visit::new(&mut receive);
    let (embedding, embedding_norm) = visit.before_layers(config);
    let blocks = (0..config.n_layers).map(|index| visit.block(config, index)).collect();
    let (norm, head) = visit.after_layers(config, embedding);
    (specs, Modules { embedding, embedding_norm, blocks, norm, head })
}

/// One parameter during a visit, for which nothing is allocated.
struct VisitedParameter<'a> {
    module: ModuleId,
    shape: &'a [usize],
    kind: ParameterKind,
    role: Role,
}

/// The properties of a parameter that its initialisation depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    /// A matrix that reads the residual stream (or, for the router, ranks experts).
    Input,
    /// A matrix whose output is added to the residual stream.
    Output,
    Head,
    Ones,
    Zeros,
}

impl VisitedParameter<'_> {
    fn num_elements(&self) -> u128 {
        self.shape.iter().fold(1, |product: u128, &extent| product.saturating_mul(extent as u128))
    }

    fn spec(&self, config: &ModelConfig) -> ParameterSpec {
        let fan_in = self.shape.last().copied().unwrap_or(1);
        ParameterSpec {
            module: self.module,
            name: format!("{}.{}", self.module, self.kind.suffix()),
            shape: self.shape.to_vec(),
            kind: self.kind,
            init: init_rule(config, self.role, self.module.layer.unwrap_or(0), fan_in),
        }
    }
}

/// The rule of one parameter; see [`InitMethod`] for the formulas.
fn init_rule(config: &ModelConfig, role: Role, layer: usize, fan_in: usize) -> InitRule {
    let init = &config.init;
    let base = f64::from(init.std);
    let by_width = (config.d_model as f64).sqrt().recip();
    let by_inputs = (fan_in as f64).sqrt().recip();
    let std = match (init.method, role) {
        (_, Role::Ones) => return InitRule::Ones,
        (_, Role::Zeros) => return InitRule::Zeros,
        (InitMethod::Normal, _) => base,
        (InitMethod::Mitchell, Role::Output) => (2.0 * fan_in as f64 * (layer as f64 + 1.0)).sqrt().recip(),
        (InitMethod::Mitchell, _) => by_width,
        (InitMethod::FullMegatron, Role::Output) => base / (2.0 * config.n_layers as f64).sqrt(),
        (InitMethod::FullMegatron, Role::Head) => by_width,
        (InitMethod::FullMegatron, Role::Embedding) if init.scale_embedding => base * (config.d_model as f64).sqrt(),
        (InitMethod::FullMegatron, _) => base,
        (InitMethod::KaimingNormal, _) => std::f64::consts::SQRT_2 * by_inputs,
        (InitMethod::FanIn, Role::Embedding) if config.scale_logits => 0.5,
        (InitMethod::FanIn, _) => by_inputs,
    };
    let std = match (role, init.embedding_std) {
        (Role::Embedding, Some(std)) => f64::from(std),
        _ => std,
    };
    let cutoff_factor = match init.method {
        InitMethod::Normal => init.cutoff_factor.map(f64::from),
        InitMethod::Mitchell | InitMethod::FullMegatron => Some(init.cutoff_factor.map_or(3.0, f64::from)),
        InitMethod::KaimingNormal | InitMethod::FanIn => None,
    };
    InitRule::Normal { std, cutoff_factor }
}

/// A visit of the parameters in canonical order, which passes each parameter on and gives each module the ids of its
/// own.
struct Visit<'v> {
    receive: &'v mut dyn FnMut(VisitedParameter<'_>),
    next: ParameterId,
    layer: Option<usize>,
}

impl<'v> Visit<'v> {
    fn new(receive: &'v mut dyn FnMut(VisitedParameter<'_>)) -> Visit<'v> {
        Visit { receive, next: 0, layer: None }
    }

    fn before_layers(&mut self, config: &ModelConfig) -> (ParameterId, Option<NormModule>) {
        let shape = [config.embedding_size, config.d_model];
        let embedding = self.parameter(ModulePart::Embedding, &shape, ParameterKind::Embedding, Role::Embedding);
        let norm = config.embedding_norm.map(|norm| self.norm(ModulePart::EmbeddingNorm, norm, config.d_model));
        (embedding, norm)
    }

    fn after_layers(&mut self, config: &ModelConfig, embedding: ParameterId) -> (NormModule, Linear) {
        self.layer = None;
        let norm = self.norm(ModulePart::FinalNorm, config.norm, config.d_model);
        let head = match config.tie_embeddings {
            true => Linear { weight: embedding, bias: None },
            false => self.linear(ModulePart::Head, config.embedding_size, config.d_model, Role::Head, config.head_bias),
        };
        (norm, head)
    }

    fn block(&mut self, config: &ModelConfig, index: usize) -> BlockModule {
        self.layer = Some(index);
        // Fields are visited in the order in which they are written.
        BlockModule {
            attention_norm: self.norm(ModulePart::AttentionNorm, config.norm, config.d_model),
            attention: self.attention(config),
            mlp_norm: self.norm(ModulePart::MlpNorm, config.norm, config.d_model),
            feed_forward: match config.feed_forward_of(index) {
                FeedForward::Dense(shape) => {
                    FeedForwardModule::Dense(self.mlp(MlpOf::Dense, shape, config.d_model, config.mlp_bias))
                }
                FeedForward::Moe(moe) => FeedForwardModule::Moe(self.mixture(&moe, config.d_model, config.mlp_bias)),
            },
        }
    }

    fn attention(&mut self, config: &ModelConfig) -> AttentionModule {
        let (d, q, kv, bias) = (config.d_model, config.query_width(), config.key_value_width(), config.attention_bias);
        AttentionModule {
            q: self.linear(ModulePart::Attention(Projection::Query), q, d, Role::Input, bias),
            k: self.linear(ModulePart::Attention(Projection::Key), kv, d, Role::Input, bias),
            v: self.linear(ModulePart::Attention(Projection::Value), kv, d, Role::Input, bias),
            q_norm: config.qk_norm.map(|norm| self.norm(ModulePart::QueryNorm, norm, q)),
            k_norm: config.qk_norm.map(|norm| self.norm(ModulePart::KeyNorm, norm, kv)),
            o: self.linear(ModulePart::Attention(Projection::Output), d, q, Role::Output, bias),
        }
    }

    fn mixture(&mut self, moe: &Moe, d: usize, bias: bool) -> MoeModule {
        let (num_experts, width) = (moe.num_experts, moe.expert.width);
        let router = self.parameter(ModulePart::Router, &[num_experts, d], ParameterKind::Router, Role::Input);
        let mut expert = |matrix, out, inputs, role| {
            let part = ModulePart::Mlp(MlpOf::Experts, matrix);
            let weight = self.parameter(part, &[num_experts, out, inputs], ParameterKind::Expert, role);
            Linear { weight, bias: None }
        };
        let experts = MlpModule {
            config: moe.expert,
            gate: moe.expert.activation.is_gated().then(|| expert(MlpMatrix::Gate, width, d, Role::Input)),
            up: expert(MlpMatrix::Up, width, d, Role::Input),
            down: expert(MlpMatrix::Down, d, width, Role::Output),
        };
        MoeModule {
            router,
            experts,
            bias: bias.then(|| self.parameter(ModulePart::Mixture, &[d], ParameterKind::Bias, Role::Zeros)),
            shared_expert: moe.shared_expert.map(|shared| self.mlp(MlpOf::SharedExpert, shared, d, bias)),
        }
    }

    fn mlp(&mut self, of: MlpOf, shape: Mlp, d: usize, bias: bool) -> MlpModule {
        let mut linear = |matrix, out, inputs, role| self.linear(ModulePart::Mlp(of, matrix), out, inputs, role, bias);
        MlpModule {
            config: shape,
            gate: shape.activation.is_gated().then(|| linear(MlpMatrix::Gate, shape.width, d, Role::Input)),
            up: linear(MlpMatrix::Up, shape.width, d, Role::Input),
            down: linear(MlpMatrix::Down, d, shape.width, Role::Output),
        }
    }

    fn linear(&mut self, part: ModulePart, out: usize, inputs: usize, role: Role, bias: bool) -> Linear {
        Linear {
            weight: self.parameter(part, &[out, inputs], ParameterKind::Linear, role),
            bias: bias.then(|| self.parameter(part, &[out], ParameterKind::Bias, Role::Zeros)),
        }
    }

    fn norm(&mut self, part: ModulePart, norm: Norm, width: usize) -> NormModule {
        NormModule {
            config: norm,
            weight: norm.affine.then(|| self.parameter(part, &[width], ParameterKind::Norm, Role::Ones)),
            bias: norm.bias.then(|| self.parameter(part, &[width], ParameterKind::Bias, Role::Zeros)),
        }
    }

    fn parameter(&mut self, part: ModulePart, shape: &[usize], kind: ParameterKind, role: Role) -> ParameterId {
        (self.receive)(VisitedParameter { module: ModuleId { layer: self.layer, part }, shape, kind, role });
        self.next += 1;
        self.next - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, Init};

    fn moe_mut(config: &mut ModelConfig) -> &mut Moe {
        match &mut config.feed_forward {
            FeedForward::Moe(moe) => moe,
            FeedForward::Dense(_) => panic!("the release model has experts"),
        }
    }

    /// `name [shape] kind` of the layer-0 and outer parameters.
    fn listing(config: &ModelConfig) -> Vec<String> {
        parameters(config)
            .iter()
            .filter(|spec| spec.module.layer.unwrap_or(0) == 0)
            .map(|spec| format!("{} {:?} {:?}", spec.name, spec.shape, spec.kind))
            .collect()
    }

    #[test]
    fn the_release_has_the_published_number_of_parameters() {
        let config = ModelConfig::release();
        let count = ParameterCount::of(&config).unwrap();
        assert_eq!(count.total, 6_919_161_856);
        assert_eq!(count.active, 1_282_017_280);
        let listed: usize = parameters(&config).iter().map(ParameterSpec::num_elements).sum();
        assert_eq!(listed as u64, count.total);
    }

    #[test]
    fn the_release_in_canonical_order() {
        let expected = [
            "embed_tokens.weight [50304, 2048] Embedding",
            "layers.0.attention_norm.weight [2048] Norm",
            "layers.0.attention.q_proj.weight [2048, 2048] Linear",
            "layers.0.attention.k_proj.weight [2048, 2048] Linear",
            "layers.0.attention.v_proj.weight [2048, 2048] Linear",
            "layers.0.attention.q_norm.weight [2048] Norm",
            "layers.0.attention.k_norm.weight [2048] Norm",
            "layers.0.attention.o_proj.weight [2048, 2048] Linear",
            "layers.0.mlp_norm.weight [2048] Norm",
            "layers.0.moe.router.weight [64, 2048] Router",
            "layers.0.moe.experts.gate_proj.weight [64, 1024, 2048] Expert",
            "layers.0.moe.experts.up_proj.weight [64, 1024, 2048] Expert",
            "layers.0.moe.experts.down_proj.weight [64, 2048, 1024] Expert",
            "norm.weight [2048] Norm",
            "lm_head.weight [50304, 2048] Linear",
        ];
        assert_eq!(listing(&ModelConfig::release()), expected);
        let specs = parameters(&ModelConfig::release());
        assert_eq!(specs.len(), 3 + 16 * 12);
        assert_eq!(specs[13].name, "layers.1.attention_norm.weight");
        let normal = InitRule::Normal { std: f64::from(0.02f32), cutoff_factor: Some(3.0) };
        for spec in specs {
            let expected = if spec.kind == ParameterKind::Norm { InitRule::Ones } else { normal };
            assert_eq!(spec.init, expected, "{}", spec.name);
        }
    }

    #[test]
    fn every_optional_parameter_of_a_mixture() {
        let mut config = ModelConfig::release();
        config.n_kv_heads = 4;
        config.norm.bias = true;
        config.embedding_norm = Some(config.norm);
        config.qk_norm = Some(Norm { affine: false, bias: false, ..config.norm });
        (config.attention_bias, config.mlp_bias, config.head_bias) = (true, true, true);
        let shared = moe_mut(&mut config).expert;
        *moe_mut(&mut config) = Moe {
            shared_expert: Some(shared),
            expert: Mlp { activation: Activation::Silu, ..shared },
            capacity_factor: Some(1.25),
            ..moe_mut(&mut config).clone()
        };
        config.validate().unwrap();
        let expected = [
            "embed_tokens.weight [50304, 2048] Embedding",
            "embedding_norm.weight [2048] Norm",
            "embedding_norm.bias [2048] Bias",
            "layers.0.attention_norm.weight [2048] Norm",
            "layers.0.attention_norm.bias [2048] Bias",
            "layers.0.attention.q_proj.weight [2048, 2048] Linear",
            "layers.0.attention.q_proj.bias [2048] Bias",
            "layers.0.attention.k_proj.weight [512, 2048] Linear",
            "layers.0.attention.k_proj.bias [512] Bias",
            "layers.0.attention.v_proj.weight [512, 2048] Linear",
            "layers.0.attention.v_proj.bias [512] Bias",
            "layers.0.attention.o_proj.weight [2048, 2048] Linear",
            "layers.0.attention.o_proj.bias [2048] Bias",
            "layers.0.mlp_norm.weight [2048] Norm",
            "layers.0.mlp_norm.bias [2048] Bias",
            "layers.0.moe.router.weight [64, 2048] Router",
            "layers.0.moe.experts.up_proj.weight [64, 1024, 2048] Expert",
            "layers.0.moe.experts.down_proj.weight [64, 2048, 1024] Expert",
            "layers.0.moe.bias [2048] Bias",
            "layers.0.moe.shared_expert.gate_proj.weight [1024, 2048] Linear",
            "layers.0.moe.shared_expert.gate_proj.bias [1024] Bias",
            "layers.0.moe.shared_expert.up_proj.weight [1024, 2048] Linear",
            "layers.0.moe.shared_expert.up_proj.bias [1024] Bias",
            "layers.0.moe.shared_expert.down_proj.weight [2048, 1024] Linear",
            "layers.0.moe.shared_expert.down_proj.bias [2048] Bias",
            "norm.weight [2048] Norm",
            "norm.bias [2048] Bias",
            "lm_head.weight [50304, 2048] Linear",
            "lm_head.bias [50304] Bias",
        ];
        assert_eq!(listing(&config), expected);
        let count = ParameterCount::of(&config).unwrap();
        let specs = parameters(&config);
        assert_eq!(count.total, specs.iter().map(|spec| spec.num_elements() as u64).sum::<u64>());
        let of_experts = specs.iter().filter(|spec| spec.kind == ParameterKind::Expert);
        let experts: u64 = of_experts.map(|spec| spec.num_elements() as u64).sum();
        assert_eq!(count.active, count.total - experts / 64 * 56);
    }

    #[test]
    fn a_dense_model_with_a_tied_head() {
        let mut config = ModelConfig::release();
        config.tie_embeddings = true;
        config.feed_forward = FeedForward::Dense(Mlp { width: 8192, activation: Activation::Gelu });
        let names: Vec<String> = listing(&config).into_iter().skip(9).collect();
        let expected = [
            "layers.0.mlp.up_proj.weight [8192, 2048] Linear",
            "layers.0.mlp.down_proj.weight [2048, 8192] Linear",
            "norm.weight [2048] Norm",
        ];
        assert_eq!(names, expected);
        let count = ParameterCount::of(&config).unwrap();
        assert_eq!(count.total, count.active);
    }

    #[test]
    fn dense_layers_and_mixtures_in_turn() {
        let mut config = ModelConfig::release();
        let alike = ParameterCount::of(&config).unwrap();
        (config.n_layers, config.even_layers) = (5, Some(Mlp { width: 1024, activation: Activation::SwiGlu }));
        config.validate().unwrap();
        let specs = parameters(&config);
        let of_kind = |part: &str| -> Vec<usize> {
            specs.iter().filter(|spec| spec.name.contains(part)).filter_map(|spec| spec.module.layer).collect()
        };
        assert_eq!(of_kind(".moe.router."), [1, 3]);
        assert_eq!(of_kind(".moe.experts.down_proj."), [1, 3]);
        assert_eq!(of_kind(".mlp.down_proj."), [0, 2, 4]);
        let count = ParameterCount::of(&config).unwrap();
        assert_eq!(count.total, specs.iter().map(|spec| spec.num_elements() as u64).sum::<u64>());
        let idle = 2 * 56 * 3 * 1024 * 2048;
        assert_eq!(count.active, count.total - idle);
        // Three layers without a router and with one MLP in place of 64 experts, and eleven layers fewer.
        let layer = (alike.total - 2 * 50304 * 2048 - 2048) / 16;
        assert_eq!(count.total, alike.total - 11 * layer - 3 * (64 * 2048 + 63 * 3 * 1024 * 2048));
    }

    #[test]
    fn counting_does_not_overflow() {
        let mut config = ModelConfig::release();
        config.n_layers = usize::MAX;
        config.n_heads = usize::MAX;
        moe_mut(&mut config).num_experts = usize::MAX;
        assert!(matches!(ParameterCount::of(&config), Err(ConfigError::TooManyParameters { .. })));
        moe_mut(&mut config).num_experts = 0;
        assert!(ParameterCount::of(&config).is_err());
    }

    #[test]
    fn standard_deviations_of_every_method() {
        let mut config = ModelConfig::release();
        config.feed_forward = FeedForward::Dense(Mlp { width: 8192, activation: Activation::SwiGlu });
        let init = Init { cutoff_factor: None, ..config.init };
        let mut rules = |change: Init, name: &str| {
            config.init = change;
            match parameters(&config).iter().find(|spec| spec.name == name).unwrap().init {
                InitRule::Normal { std, cutoff_factor } => (std, cutoff_factor),
                other => panic!("{name} is initialised as {other:?}"),
            }
        };
        let close = |(std, cutoff): (f64, Option<f64>), expected: f64, expected_cutoff: Option<f64>| {
            assert!((std / expected - 1.0).abs() < 1e-7, "{std} is not {expected}");
            assert_eq!(cutoff, expected_cutoff);
        };
        let root = 2048f64.sqrt();
        let names = ["embed_tokens", "layers.3.attention.q_proj", "layers.3.attention.o_proj", "layers.3.mlp.up_proj"];
        let names = names.into_iter().chain(["layers.3.mlp.down_proj", "lm_head"]).map(|name| format!("{name}.weight"));
        let names: Vec<String> = names.collect();
        let methods = [
            (InitMethod::Normal, None, [0.02; 6]),
            (
                InitMethod::Mitchell,
                Some(3.0),
                [1.0 / root, 1.0 / root, 1.0 / 16384f64.sqrt(), 1.0 / root, 1.0 / 65536f64.sqrt(), 1.0 / root],
            ),
            (
                InitMethod::FullMegatron,
                Some(3.0),
                [0.02, 0.02, 0.02 / 32f64.sqrt(), 0.02, 0.02 / 32f64.sqrt(), 1.0 / root],
            ),
            (InitMethod::KaimingNormal, None, [1.0 / 32.0, 1.0 / 32.0, 1.0 / 32.0, 1.0 / 32.0, 1.0 / 64.0, 1.0 / 32.0]),
            (
                InitMethod::FanIn,
                None,
                [1.0 / root, 1.0 / root, 1.0 / root, 1.0 / root, 1.0 / 8192f64.sqrt(), 1.0 / root],
            ),
        ];
        for (method, cutoff, expected) in methods {
            for (name, expected) in names.iter().zip(expected) {
                close(rules(Init { method, ..init }, name), expected, cutoff);
            }
            let with_std = Init { method, embedding_std: Some(0.5), scale_embedding: true, ..init };
            close(rules(with_std, &names[0]), 0.5, cutoff);
        }
        let scaled = Init { method: InitMethod::FullMegatron, scale_embedding: true, cutoff_factor: Some(2.0), ..init };
        close(rules(scaled, &names[0]), 0.02 * root, Some(2.0));
    }
}
