//! Gradient clipping as in OLMo's trainer: by the norm of all gradients, or per tensor by the history of its norm.
//!
//! ```text
//! norm    every gradient · min(1, max/(‖g‖ + 1e-6))                    ‖g‖ of all parameters together
//! ratio   the gradient of a tensor · c,  c = min(1, r·e/(‖g‖ + 1e-6)),  e ← e + (1 − β)·(c·‖g‖ − e)    β the larger of
//! both
//! ```
//!
//! The running mean `e` of a tensor starts with the first norm that counts. The first step of a run does not count:
//! OLMo starts with the second one.
//!
//! Tensors are those of OLMo, where queries, keys and values are one tensor, and so are the gate and up projections of
//! a dense MLP.

/// The bound on the gradients of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// No clipping.
    Off,
    /// The largest norm of all gradients together.
    Norm(f64),
    /// The largest ratio of a tensor's gradient norm to its running mean.
    Ratio(f64),
}

/// The state and scratch of clipping for each tensor.
pub(super) struct Clipping {
    /// The index of the tensor of each trained parameter.
    pub(super) tensors: Vec<usize>,
    /// The running means, from the second step on.
    pub(super) norms: Option<Vec<f32>>,
    /// `Σ x²` of each tensor's gradient.
    squares: Vec<f64>,
    /// The factor of each tensor's gradient.
    coefficients: Vec<f32>,
    /// Scratch for running means that are not kept yet.
    fresh: Vec<f32>,
    adaptive: bool,
}

impl Clipping {
    /// Clipping for trained parameters; `names` gives the name of each parameter's tensor.
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Clipping {
        let mut distinct: Vec<&str> = Vec::new();
        let tensors = names.map(|name| {
            // Parts of a tensor are adjacent, or nearly so.
            let known = distinct.iter().rposition(|known| *known == name);
            known.unwrap_or_else(|| {
                distinct.push(name);
                distinct.len() - 1
            })
        });
        let tensors: Vec<usize> = tensors.collect();
        let count = distinct.len();
        let zeros = || vec![0.0; count];
        Clipping {
            tensors,
            norms: None,
            squares: vec![0.0; count],
            coefficients: zeros(),
            fresh: zeros(),
            adaptive: false,
        }
    }

    /// The number of tensors.
    pub(super) fn count(&self) -> usize {
        self.squares.len()
    }

    /// The factor of a parameter's gradient.
    pub(super) fn coefficient(&self, at: usize) -> f32 {
        self.coefficients[self.tensors[at]]
    }

    /// The running mean of the tensor of a parameter.
    pub(super) fn running_mean(&self, at: usize) -> f32 {
        self.norms.as_ref().unwrap_or(&self.fresh)[self.tensors[at]]
    }

    /// Whether the last bound was [`Clip::Ratio`].
    pub(super) fn is_adaptive(&self) -> bool {
        self.adaptive
    }

    /// The share of the tensors that were clipped.
    pub(super) fn rate(&self) -> f64 {
        self.coefficients.iter().filter(|c| **c < 1.0).count() as f64 / self.count().max(1) as f64
    }

    /// The global norm, given `Σ x²` of each parameter's gradient in order.
    pub(super) fn measure(&mut self, squares: impl Iterator<Item = f64>) -> f64 {
        self.squares.fill(0.0);
        let mut total = 0.0;
        for (tensor, square) in self.tensors.iter().zip(squares) {
            self.squares[*tensor] += square;
            total += square;
        }
        total.sqrt()
    }

    /// Computes the factors for the gradients that were measured last, and updates the running means. Returns the
    /// smallest factor.
    pub(super) fn apply(&mut self, clip: Clip, total: f64, betas: (f64, f64), step: u64) -> f64 {
        self.adaptive = matches!(clip, Clip::Ratio(_));
        match clip {
            Clip::Off => {
                self.coefficients.fill(1.0);
                1.0
            }
            Clip::Norm(most) => {
                let coefficient = (most / (total + 1e-6)).min(1.0);
                self.coefficients.fill(coefficient as f32);
                coefficient
            }
            Clip::Ratio(ratio) => self.apply_ratio(ratio as f32, (1.0 - betas.0.max(betas.1)) as f32, step),
        }
    }

    /// Computes in f32, as OLMo does.
    fn apply_ratio(&mut self, ratio: f32, weight: f32, step: u64) -> f64 {
        for (fresh, square) in self.fresh.iter_mut().zip(&self.squares) {
            *fresh = square.sqrt() as f32;
        }
        if step > 1 && self.norms.is_none() {
            self.norms = Some(self.fresh.clone());
        }
        let means = self.norms.as_mut().unwrap_or(&mut self.fresh);
        let mut least = 1.0f32;
        for ((mean, square), coefficient) in means.iter_mut().zip(&self.squares).zip(&mut self.coefficients) {
            let norm = square.sqrt() as f32;
            *coefficient = (ratio * *mean / (norm + 1e-6)).min(1.0);
            let clipped = norm * *coefficient;
            // torch's lerp starts from the nearer end.
            *mean = if weight < 0.5 {
                *mean + weight * (clipped - *mean)
            } else {
                clipped - (clipped - *mean) * (1.0 - weight)
            };
            least = least.min(*coefficient);
        }
        f64::from(least)
    }
}

#[cfg(test)]
mod tests {
    use olmoe_checkpoint::olmo::tensor_names;
    use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
    use olmoe_model::parameters::parameters;

    use super::*;

    fn clipping(config: &ModelConfig) -> Clipping {
        Clipping::new(tensor_names(config, &parameters(config)).iter().map(String::as_str))
    }

    #[test]
    fn tensors_are_those_of_olmo() {
        let config = ModelConfig { n_layers: 2, ..ModelConfig::release() };
        let specs = parameters(&config);
        let clipping = clipping(&config);
        // wte, final norm, head; of a layer: two norms, q and k norm, att_proj, attn_out, router, w1, v1, w2.
        assert_eq!(clipping.count(), 3 + 2 * 10);
        let tensor = |name: &str| clipping.tensors[specs.iter().position(|spec| spec.name == name).expect(name)];
        assert_eq!(tensor("layers.1.attention.q_proj.weight"), tensor("layers.1.attention.v_proj.weight"));
        assert_ne!(tensor("layers.0.attention.q_proj.weight"), tensor("layers.1.attention.q_proj.weight"));
        assert_ne!(tensor("layers.0.attention.q_norm.weight"), tensor("layers.0.attention.k_norm.weight"));
        let mlp = Mlp { width: 64, activation: Activation::SwiGlu };
        let dense = ModelConfig { feed_forward: FeedForward::Dense(mlp), mlp_bias: true, ..config };
        let specs = parameters(&dense);
        let clipping = self::clipping(&dense);
        let tensor = |name: &str| clipping.tensors[specs.iter().position(|spec| spec.name == name).expect(name)];
        assert_eq!(tensor("layers.1.mlp.gate_proj.bias"), tensor("layers.1.mlp.up_proj.bias"));
        assert_ne!(tensor("layers.1.mlp.gate_proj.bias"), tensor("layers.1.mlp.gate_proj.weight"));
        assert_ne!(tensor("layers.1.mlp.up_proj.weight"), tensor("layers.1.mlp.down_proj.weight"));
    }

    #[test]
    fn a_large_gradient_is_held_to_its_history() {
        let config = ModelConfig { n_layers: 1, ..ModelConfig::release() };
        let mut clipping = clipping(&config);
        let mut step = |number, size: f64| {
            let squares: Vec<f64> = clipping.tensors.iter().map(|_| size * size).collect();
            let total = clipping.measure(squares.into_iter());
            let least = clipping.apply(Clip::Ratio(2.0), total, (0.9, 0.95), number);
            (least, clipping.norms.as_ref().map(|norms| norms[0]))
        };
        assert_eq!(step(1, 1.0), (1.0, None));
        assert_eq!(step(2, 1.0), (1.0, Some(1.0)));
        let (least, norm) = step(3, 100.0);
        assert!((least - 0.02).abs() < 1e-6, "{least}");
        assert!((norm.expect("kept from step 2 on") - 1.05).abs() < 1e-5);
    }
}
