//! A second model in f64 and plain loops, in the order of the formulas. It shares no code with the first except the
//! configuration and the golden state, so it is unlikely that both are wrong in the same way. It can also make mistakes
//! on purpose; see [`Slip`].
//!
//! T tokens, D model width, V vocabulary, L mixture-of-experts layers, E experts. A vector belongs to one token.

use olmoe_model::config::{Activation, ClipOrder, FeedForward, Mlp, Moe, Norm, NormKind};

use crate::check::{Check, CheckKind, largest, relative, relative_scalar};
use crate::golden::Golden;

/// Largest error of the f64 reference, which is that of the golden states: transformers computes them in f32.
const BOUND: f64 = 1e-6;

/// A mistake that the configuration and the weights of the model cannot express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slip {
    /// The query and key norm takes the mean square of each head by itself.
    QkNormPerHead,
    /// The query and key norm follows the rotary embedding.
    QkNormAfterRope,
    /// Values are normalised like keys.
    ValueNorm,
    /// The rotary embedding pairs neighbours and not the two halves of a head.
    InterleavedRope,
    /// The rotary embedding rotates keys in the opposite direction.
    RopeSign,
    /// Query head h reads key/value head h mod K and not h / (H/K).
    HeadsModulo,
    /// Scores are not divided by the square root of the head's width.
    NoScale,
    /// Tokens attend to later tokens.
    NotCausal,
    /// The softmax of the router is over the chosen experts only.
    SoftmaxOfChosen,
    /// The router's probabilities are sigmoids.
    SigmoidRouter,
    /// The probability of an expert multiplies its input and not its output.
    WeightOnInput,
    /// Experts with a capacity have a gate: their single matrix serves as gate and up projection.
    CapacityGate,
    /// The first choices of all tokens are served before any second choice when a capacity drops assignments.
    DropsBySlot,
    /// The last tokens are served first when a capacity drops assignments.
    DropsFirst,
}

/// The results of a forward pass.
pub(crate) struct ReferenceOutput {
    /// `[T, V]`
    pub(crate) logits: Vec<f32>,
    /// Router probabilities, `[L, T, E]`.
    probs: Vec<f64>,
    /// Mean over the next tokens.
    cross_entropy: f64,
}

struct Reference<'a> {
    golden: &'a Golden,
    slip: Option<Slip>,
}

/// The forward pass of the model of a golden state.
pub(crate) fn forward(golden: &Golden, slip: Option<Slip>) -> ReferenceOutput {
    let model = Reference { golden, slip };
    let config = &golden.config;
    let rows = |name: &str| model.weight(name).chunks(config.d_model);
    let embedding: Vec<&[f32]> = rows("embed_tokens").collect();
    let mut h: Vec<Vec<f64>> = golden.ids.iter().map(|id| widen(embedding[*id as usize])).collect();
    if let Some(norm) = config.embedding_norm {
        h.iter_mut().for_each(|h| *h = model.norm("embedding_norm", norm, h));
    }
    let mut probs = Vec::new();
    for layer in 0..config.n_layers {
        let module = |name: &str| format!("layers.{layer}.{name}");
        model.residual(&module("attention_norm"), &mut h, |x| model.attention(&module("attention"), x));
        model.residual(&module("mlp_norm"), &mut h, |x| match (config.even_layers, &config.feed_forward) {
            (Some(mlp), _) if layer % 2 == 0 => model.all_mlp(&module("mlp"), mlp, x),
            (_, FeedForward::Dense(mlp)) => model.all_mlp(&module("mlp"), *mlp, x),
            (_, FeedForward::Moe(moe)) => model.mixture(&module("moe"), moe, x, &mut probs),
        });
    }
    let head = if config.tie_embeddings { "embed_tokens" } else { "lm_head" };
    let scale = if config.scale_logits { (config.d_model as f64).sqrt().recip() } else { 1.0 };
    let mut cross_entropy = Vec::new();
    let mut logits = Vec::new();
    for (t, h) in h.iter().enumerate() {
        let row: Vec<f64> = model.linear(head, &model.norm("norm", config.norm, h)).iter().map(|y| y * scale).collect();
        if (t + 1) % golden.length != 0 {
            let counts = golden.padding.as_ref().is_none_or(|padding| !padding[t + 1]);
            cross_entropy.push(if counts { -softmax(&row)[golden.ids[t + 1] as usize].ln() } else { 0.0 });
        }
        logits.extend(row.iter().map(|y| *y as f32));
    }
    let cross_entropy = cross_entropy.iter().sum::<f64>() / cross_entropy.len() as f64;
    ReferenceOutput { logits, probs, cross_entropy }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(weight: &[f32], x: &[f64]) -> Vec<f64> {
    weight.chunks(x.len()).map(|row| dot(&widen(row), x)).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// `erf x = 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!`, whose terms are all of one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::SwiGlu | Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Relu => x.max(0.0),
    }
}

impl Reference<'_> {
    fn get(&self, name: &str) -> Option<&[f32]> {
        self.golden.parameter(name).map(|parameter| &parameter.value[..])
    }

    fn weight(&self, module: &str) -> &[f32] {
        let name = format!("{module}.weight");
        self.get(&name).unwrap_or_else(|| panic!("a golden state has {name} for every model that uses it"))
    }

    fn makes(&self, slip: Slip) -> bool {
        self.slip == Some(slip)
    }

    fn linear(&self, module: &str, x: &[f64]) -> Vec<f64> {
        let mut y = product(self.weight(module), x);
        if let Some(bias) = self.get(&format!("{module}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += f64::from(*b));
        }
        y
    }

    fn norm(&self, module: &str, norm: Norm, x: &[f64]) -> Vec<f64> {
        self.norm_in_groups(module, norm, x, x.len())
    }

    /// A norm with statistics over groups of `group` numbers; a correct norm has one group.
    fn norm_in_groups(&self, module: &str, norm: Norm, x: &[f64], group: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for x in x.chunks(group) {
            let n = x.len() as f64;
            let mean = if norm.kind == NormKind::LayerNorm { x.iter().sum::<f64>() / n } else { 0.0 };
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            y.extend(x.iter().map(|x| (x - mean) / (square + f64::from(norm.eps)).sqrt()));
        }
        if let Some(weight) = self.get(&format!("{module}.weight")) {
            y.iter_mut().zip(weight).for_each(|(y, w)| *y *= f64::from(*w));
        }
        if let Some(bias) = self.get(&format!("{module}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += f64::from(*b));
        }
        y
    }

    fn residual(&self, norm: &str, h: &mut [Vec<f64>], f: impl FnOnce(&[Vec<f64>]) -> Vec<Vec<f64>>) {
        let config = &self.golden.config;
        let all_normed = |x: &[Vec<f64>]| x.iter().map(|x| self.norm(norm, config.norm, x)).collect::<Vec<_>>();
        let y = if config.norm_after { all_normed(&f(h)) } else { f(&all_normed(h)) };
        for (h, y) in h.iter_mut().zip(&y) {
            h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
        }
    }

    fn clip(&self, order: ClipOrder, x: &mut [f64]) {
        if let Some(clip) = self.golden.config.clip_qkv.filter(|clip| clip.order == order) {
            let limit = f64::from(clip.limit);
            x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
        }
    }

    /// Rotates each head: numbers j and j + d/2 by `position · theta^(−2j/d)`, an angle computed in f32 as both
    /// libraries do.
    fn rope(&self, x: &mut [f64], position: usize, backwards: bool) {
        let config = &self.golden.config;
        let (d, half) = (config.head_dim, config.head_dim / 2);
        for head in x.chunks_mut(d) {
            for j in 0..half {
                let frequency = f64::from(config.rope.theta).powf((2 * j) as f64 / d as f64) as f32;
                let angle = f64::from(position as f32 * (1.0 / frequency));
                let (sin, cos) = if backwards { (-angle).sin_cos() } else { angle.sin_cos() };
                let (a, b) = if self.makes(Slip::InterleavedRope) { (2 * j, 2 * j + 1) } else { (j, j + half) };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
    }

    /// A projection as attention reads it. `norm` is the name of its norm.
    fn projected(&self, module: &str, norm: Option<String>, x: &[f64], position: Option<usize>) -> Vec<f64> {
        let config = &self.golden.config;
        let norm = norm.zip(config.qk_norm);
        let group = if self.makes(Slip::QkNormPerHead) { config.head_dim } else { usize::MAX };
        let normed = |x: Vec<f64>| match &norm {
            Some((name, norm)) => self.norm_in_groups(name, *norm, &x, group.min(x.len())),
            None => x,
        };
        let mut y = self.linear(module, x);
        self.clip(ClipOrder::BeforeNorm, &mut y);
        if !self.makes(Slip::QkNormAfterRope) {
            y = normed(y);
        }
        self.clip(ClipOrder::AfterNorm, &mut y);
        if let Some(position) = position {
            self.rope(&mut y, position, self.makes(Slip::RopeSign) && module.ends_with("k_proj"));
        }
        if self.makes(Slip::QkNormAfterRope) { normed(y) } else { y }
    }

    /// For every token those that attention sees; nothing to be seen is everything, alike.
    fn seen(&self) -> Vec<(Vec<usize>, bool)> {
        let golden = self.golden;
        let whole = vec![golden.length; golden.tokens() / golden.length];
        let padding = |t: &usize| golden.padding.as_ref().is_some_and(|padding| padding[*t]);
        let mut seen = Vec::new();
        for length in golden.documents.as_ref().unwrap_or(&whole) {
            let first = seen.len();
            for t in first..first + length {
                let last = if self.makes(Slip::NotCausal) { first + length - 1 } else { t };
                let some: Vec<usize> = (first..=last).filter(|t| !padding(t)).collect();
                let alike = some.is_empty();
                seen.push((if alike { (first..first + length).collect() } else { some }, alike));
            }
        }
        seen
    }

    fn attention(&self, module: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let config = &self.golden.config;
        let name = |suffix: &str| format!("{module}.{suffix}");
        let project = |which: &str, norm: Option<&str>, turned: bool| -> Vec<Vec<f64>> {
            let one = |(t, x): (usize, &Vec<f64>)| {
                self.projected(&name(which), norm.map(name), x, turned.then_some(t % self.golden.length))
            };
            x.iter().enumerate().map(one).collect()
        };
        let q = project("q_proj", Some("q_norm"), true);
        let k = project("k_proj", Some("k_norm"), true);
        let v = project("v_proj", self.makes(Slip::ValueNorm).then_some("k_norm"), false);
        let d = config.head_dim;
        let group = config.n_heads / config.n_kv_heads;
        let scale = if self.makes(Slip::NoScale) { 1.0 } else { (d as f64).sqrt().recip() };
        let mut out = Vec::new();
        for (t, (seen, alike)) in self.seen().into_iter().enumerate() {
            let mut o = vec![0.0; config.n_heads * d];
            for head in 0..config.n_heads {
                let kv = if self.makes(Slip::HeadsModulo) { head % config.n_kv_heads } else { head / group };
                let of = |x: &[Vec<f64>], j: usize, head: usize| x[j][head * d..(head + 1) * d].to_vec();
                let query = of(&q, t, head);
                let score = |j: &usize| if alike { 0.0 } else { dot(&query, &of(&k, *j, kv)) * scale };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                for (p, j) in softmax(&scores).iter().zip(&seen) {
                    for (o, v) in o[head * d..(head + 1) * d].iter_mut().zip(of(&v, *j, kv)) {
                        *o += p * v;
                    }
                }
            }
            out.push(self.linear(&name("o_proj"), &o));
        }
        out
    }

    fn mlp(&self, module: &str, mlp: Mlp, x: &[f64]) -> Vec<f64> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        let mut hidden = self.linear(&name("up_proj"), x);
        if mlp.activation.is_gated() {
            let gate = self.linear(&name("gate_proj"), x);
            hidden.iter_mut().zip(gate).for_each(|(h, g)| *h *= activate(mlp.activation, g));
        } else {
            hidden.iter_mut().for_each(|h| *h = activate(mlp.activation, *h));
        }
        self.linear(&name("down_proj"), &hidden)
    }

    fn all_mlp(&self, module: &str, mlp: Mlp, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        x.iter().map(|x| self.mlp(module, mlp, x)).collect()
    }

    fn expert(&self, module: &str, moe: &Moe, e: usize, x: &[f64]) -> Vec<f64> {
        let matrix = |which: &str| {
            let size = moe.expert.width * self.golden.config.d_model;
            &self.weight(&format!("{module}.experts.{which}"))[e * size..(e + 1) * size]
        };
        let mut hidden = product(matrix("up_proj"), x);
        if moe.expert.activation.is_gated() {
            let gate = product(matrix("gate_proj"), x);
            hidden.iter_mut().zip(gate).for_each(|(h, g)| *h *= activate(moe.expert.activation, g));
        } else {
            let linear = |h: f64| if self.makes(Slip::CapacityGate) { h } else { 1.0 };
            hidden.iter_mut().for_each(|h| *h = activate(moe.expert.activation, *h) * linear(*h));
        }
        product(matrix("down_proj"), &hidden)
    }

    fn mixture(&self, module: &str, moe: &Moe, x: &[Vec<f64>], all_probs: &mut Vec<f64>) -> Vec<Vec<f64>> {
        let mut choices: Vec<Vec<(usize, f64)>> = Vec::new();
        for x in x {
            let r = self.linear(&format!("{module}.router"), x);
            let sigmoid = |r: &f64| 1.0 / (1.0 + (-r).exp());
            let p = if self.makes(Slip::SigmoidRouter) { r.iter().map(sigmoid).collect() } else { softmax(&r) };
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
            order.truncate(moe.top_k);
            let mut weights: Vec<f64> = order.iter().map(|e| p[*e]).collect();
            if self.makes(Slip::SoftmaxOfChosen) {
                weights = softmax(&order.iter().map(|e| r[*e]).collect::<Vec<_>>());
            }
            if moe.normalize_top_k {
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            choices.push(order.into_iter().zip(weights).collect());
            all_probs.extend(p);
        }
        let served = self.served(moe, &choices);
        let mut y = Vec::new();
        for (t, x) in x.iter().enumerate() {
            let mut out = self.get(&format!("{module}.bias")).map_or(vec![0.0; x.len()], widen);
            let mut add = |y: &[f64], weight: f64| out.iter_mut().zip(y).for_each(|(o, y)| *o += weight * y);
            for (slot, (e, weight)) in choices[t].iter().enumerate() {
                if !served[t][slot] {
                    continue;
                }
                if self.makes(Slip::WeightOnInput) {
                    let scaled: Vec<f64> = x.iter().map(|x| x * weight).collect();
                    add(&self.expert(module, moe, *e, &scaled), 1.0);
                } else {
                    add(&self.expert(module, moe, *e, x), *weight);
                }
            }
            if let Some(shared) = moe.shared_expert {
                add(&self.mlp(&format!("{module}.shared_expert"), shared, x), 1.0);
            }
            y.push(out);
        }
        y
    }

    /// The choices that an expert has capacity for, in the order of the tokens.
    fn served(&self, moe: &Moe, choices: &[Vec<(usize, f64)>]) -> Vec<Vec<bool>> {
        let assignments = (moe.top_k * choices.len()) as f64;
        let factor = moe.capacity_factor.map_or(0.0, f64::from);
        let capacity = match (factor * (assignments / moe.num_experts as f64)) as usize {
            0 => usize::MAX,
            limit => limit,
        };
        let mut order: Vec<(usize, usize)> =
            (0..choices.len()).flat_map(|t| (0..moe.top_k).map(move |slot| (t, slot))).collect();
        if self.makes(Slip::DropsBySlot) {
            order.sort_by_key(|(t, slot)| (*slot, *t));
        }
        if self.makes(Slip::DropsFirst) {
            order.reverse();
        }
        let mut taken = vec![0; moe.num_experts];
        let mut served = vec![vec![false; moe.top_k]; choices.len()];
        for (t, slot) in order {
            let (e, _) = choices[t][slot];
            served[t][slot] = taken[e] < capacity;
            taken[e] += 1;
        }
        served
    }
}

pub(crate) fn check(golden: &Golden, report: &mut dyn FnMut(Check)) {
    let output = forward(golden, None);
    let mut answer = |what: &str, worst: f64| {
        report(Check::new((&golden.name, "fp64"), CheckKind::Reference, what, worst, BOUND, ""));
    };
    answer("reference: logits", relative(&output.logits, &golden.logits));
    answer("reference: cross-entropy", relative_scalar(output.cross_entropy, golden.cross_entropy));
    if let Some(router) = &golden.router {
        let errors = output.probs.iter().zip(&router.probs).map(|(a, b)| (a - f64::from(*b)).abs());
        answer("reference: router probabilities", largest(errors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (5.9, 1.0)] {
            assert!((erf(x) - expected).abs() < 1e-10, "{x}");
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!(erf(40.0), 1.0);
    }
}
