//! The backward pass of the slots, block by block: a block of slots of one expert goes through the whole layer while it
//! is in the cache, and its rows are packed as factors of the gradients of the weights.

use super::{MlpGradients, MlpSaved, MlpWeights, OutputGradients, PerMatrix, Slots, block_scratch};
use crate::gemm::{Left, Source, Store, gemm_here};
use crate::memory::Buffer;
use crate::ops::activation::{activate, activate_backward, swiglu, swiglu_backward};
use crate::ops::add::{add_assign, bias_backward, scale};
use crate::ops::grouped_linear::{
    BLOCK_ROWS, Contraction, LeftFactors, RightFactors, RowBlock, WeightGradient, blocks,
};
use crate::ops::lanes::lanes;
use crate::ops::linear::Weight;
use crate::ops::low_rank::{LowRank, LowRankGradients, Tokens};
use crate::quant::product::{self, GroupedRows, QuantizedFactor, QuantizedInput};
use crate::simd::kernel;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

kernel! {
    /// `Σ x·y`
    fn dot[s: S](x: &[f32], y: &[f32]) -> f32 {
        let mut sum = s.zero();
        lanes!(s; read [x, y]; { sum = s.fma(x, y, sum); });
        s.reduce_add(sum)
    }
}

/// The factors of the gradients of a weight and of its adapter: `dW = dy ⊗ x`, `dB = dy ⊗ t`, `dA = u ⊗ x`.
#[derive(Default)]
struct Factors {
    /// The gradient of the result.
    dy: Option<LeftFactors>,
    /// `u = s·Bᵀ·dy`
    u: Option<LeftFactors>,
    /// `t = s·A·x`
    t: Option<RightFactors>,
    /// The inputs that are not left out, with dropout.
    x: Option<RightFactors>,
}

impl Factors {
    fn new(
        contraction: &Contraction<'_>,
        out: usize,
        base: bool,
        adapter: Option<LowRank<'_>>,
        gradients: Option<&LowRankGradients<'_>>,
    ) -> Factors {
        let (a, b) = (gradients.is_some_and(|g| g.a.is_some()), gradients.is_some_and(|g| g.b.is_some()));
        let rank = adapter.map_or(0, |adapter| adapter.rank());
        Factors {
            dy: (base || b).then(|| contraction.left(out)),
            u: a.then(|| contraction.left(rank)),
            t: b.then(|| contraction.right(rank)),
            x: adapter
                .filter(|adapter| a && adapter.dropout.is_some())
                .map(|adapter| contraction.right(adapter.input())),
        }
    }

    fn shared(&mut self) -> SharedFactors<'_> {
        SharedFactors {
            dy: self.dy.as_mut().map(LeftFactors::shared),
            u: self.u.as_mut().map(LeftFactors::shared),
            t: self.t.as_mut().map(RightFactors::shared),
            x: self.x.as_mut().map(RightFactors::shared),
        }
    }
}

/// The same, for tasks that pack them.
struct SharedFactors<'a> {
    dy: Option<Shared<'a, f32>>,
    u: Option<Shared<'a, f32>>,
    t: Option<Shared<'a, f32>>,
    x: Option<Shared<'a, f32>>,
}

/// A gradient as a sum of products, and where it is accumulated.
struct Target<'a> {
    left: &'a Option<LeftFactors>,
    right: &'a Option<RightFactors>,
    into: Option<&'a mut [f32]>,
    /// One gradient for each expert, where `into` is that of a matrix that all experts share.
    each: Option<Tensor>,
}

impl<'a> Target<'a> {
    fn new(
        left: &'a Option<LeftFactors>,
        right: &'a Option<RightFactors>,
        into: Option<&'a mut [f32]>,
        experts: usize,
    ) -> Target<'a> {
        let numbers = left.as_ref().map_or(0, LeftFactors::rows) * right.as_ref().map_or(0, RightFactors::rows);
        let shared = numbers > 0 && into.as_ref().is_some_and(|into| into.len() != experts * numbers);
        Target { left, right, into, each: shared.then(|| Tensor::zeros(&[experts, numbers])) }
    }

    fn product(&mut self) -> Option<WeightGradient<'_>> {
        let dw = match &mut self.each {
            Some(each) => &mut each[..],
            None => self.into.as_deref_mut()?,
        };
        Some(WeightGradient { left: self.left.as_ref()?, right: self.right.as_ref()?, dw: Shared::new(dw) })
    }

    /// Adds the gradients of all experts, in order, to that of the matrix that they share.
    fn finish(self) {
        if let (Some(each), Some(into)) = (self.each, self.into) {
            (0..each.rows()).for_each(|e| add_assign(into, each.row(e)));
        }
    }
}

/// `y [rows, out] = W_e·x` on the calling thread.
fn product_here(weight: Weight<'_>, e: usize, x: &[f32], y: &mut [f32]) {
    let input = weight.strips().input;
    let rows = x.len() / input.max(1);
    match weight {
        Weight::Packed(weight) => {
            let mut left = Left::scratch_of(BLOCK_ROWS, rows, input, weight.operand());
            left.repack_rows(Source::new(x, input));
            gemm_here(left.panels(), weight.forward().group(e), y, Store::Overwrite);
        }
        Weight::Quantized(weight, _) => {
            let x = QuantizedInput::pack(x, input, weight.format());
            let offsets = [0, rows as u32];
            let rows = GroupedRows { index: None, offsets: &offsets, first: e };
            product::products(&x, rows, [QuantizedFactor { weight, y }], Store::Overwrite);
        }
    }
}

/// The gradients of the rows of the slots, `[S, D]`, with `input`, and of the weights of the slots, `[S]`. Accumulates
/// the gradients of the layer's weights.
pub fn experts_backward(
    slots: Slots<'_>,
    mlp: &MlpWeights<'_>,
    saved: &MlpSaved,
    output: OutputGradients<'_>,
    gradients: MlpGradients<'_>,
    input: bool,
) -> (Option<Tensor>, Buffer<f32>) {
    let (d, width, operand) = (slots.rows.cols(), mlp.up.strips().out, mlp.up.operand());
    let OutputGradients { dy, weight_s } = output;
    let MlpGradients { gate: dgate_into, up: dup_into, down: ddown_into, biases, adapters: mut low_rank } = gradients;
    let experts = slots.offsets_e.len() - 1;
    // The factors of the gradients of the weights, packed block by block.
    let contraction = Contraction::new(slots.offsets_e, operand);
    let factors = |out, base, adapter, gradients| Factors::new(&contraction, out, base, adapter, gradients);
    let adapters = mlp.adapters;
    // With dropout, A has inputs of its own.
    let wants_a = |adapter: Option<LowRank<'_>>, gradients: &Option<LowRankGradients<'_>>| {
        adapter.is_some_and(|adapter| adapter.dropout.is_none()) && gradients.as_ref().is_some_and(|g| g.a.is_some())
    };
    let (gate_a, up_a) = (wants_a(adapters.gate, &low_rank.gate), wants_a(adapters.up, &low_rank.up));
    let x_wanted = dgate_into.is_some() || dup_into.is_some() || gate_a || up_a;
    let act_wanted = ddown_into.is_some() || wants_a(adapters.down, &low_rank.down);
    let mut gate_factors = factors(width, dgate_into.is_some(), adapters.gate, low_rank.gate.as_ref());
    let mut up_factors = factors(width, dup_into.is_some(), adapters.up, low_rank.up.as_ref());
    let mut down_factors = factors(d, ddown_into.is_some(), adapters.down, low_rank.down.as_ref());
    let mut x_factors = x_wanted.then(|| contraction.right(d));
    let mut act_factors = act_wanted.then(|| contraction.right(width));
    let mut dx_sd = input.then(|| Tensor::scratch(&[slots.count(), d]));
    let mut dweight_s = Buffer::scratch(slots.count());
    let blocks = blocks(slots.offsets_e);
    // Column sums of the blocks of a dense layer, for the gradients of its biases.
    let summed = biases.gate.is_some() || biases.up.is_some();
    let mut sums = Tensor::zeros(&[blocks.len() * usize::from(summed), 2 * width]);
    let mut magnitudes = magnitude_sums(adapters, &low_rank, blocks.len());
    {
        let (packed_gate, packed_up, packed_down) = (gate_factors.shared(), up_factors.shared(), down_factors.shared());
        let packed_x = x_factors.as_mut().map(RightFactors::shared);
        let packed_act = act_factors.as_mut().map(RightFactors::shared);
        let dx_sd = dx_sd.as_deref_mut().map(Shared::new);
        let dweight_s = Shared::new(&mut dweight_s);
        let sums = Shared::new(&mut sums);
        let magnitudes = magnitudes.as_mut().map(|sums| Shared::new(sums));
        parallel(blocks.len(), |b| {
            let (e, some) = (blocks[b].group(), blocks[b].rows());
            let (count, inner) = (some.len(), some.len() * width);
            let (weights, tokens) = (&weight_s[some.clone()], slots.tokens(some.clone()));
            let (x, dy) = (slots.source(some.clone()), dy.source(some.clone()));
            let up = saved.up_si.row_range(some.clone());
            let gate = saved.gate_si.as_ref().map(|gate| gate.row_range(some.clone()));
            let [mut dgate, mut dup, mut act] = [(); 3].map(|()| block_scratch(inner, width));
            // SAFETY: each block has a row of its own, each of which is borrowed once.
            let [gate_sum, up_sum, down_sum] = unsafe {
                [(&magnitudes.gate, width), (&magnitudes.up, width), (&magnitudes.down, d)]
                    .map(|(sums, out)| row_of(sums.as_ref(), b, out))
            };

            // The gradient of the output before the factors of DoRA.
            let mut own_dz: Buffer<f32>;
            let dz = match adapters.down.and_then(|adapter| Some((adapter, adapter.rows?))) {
                None => dy,
                Some((adapter, rows)) => {
                    own_dz = block_scratch(count * d, d);
                    (0..count).for_each(|i| own_dz[i * d..(i + 1) * d].copy_from_slice(dy.row(i, 0..d)));
                    if let Some(sum) = down_sum {
                        activation_here(mlp, gate, up, &mut act);
                        let mut z = block_scratch(count * d, d);
                        product_here(mlp.down, e, &act, &mut z);
                        let mut t = block_scratch(count * adapter.rank(), adapter.rank());
                        adapter.add_here(e, Source::new(&act, width), tokens, &mut z, &mut t);
                        rows.gradient_here(e, &own_dz, &z, Some(weights), sum);
                    }
                    rows.scale_here(e, d, &mut own_dz);
                    Source::new(&own_dz, d)
                }
            };

            let mut left = Left::scratch_of(BLOCK_ROWS, count, d, operand);
            left.repack_rows(dz);
            let mut dact = block_scratch(inner, width);
            mlp.down.backward_here(left.panels(), e, 0..d, &mut dact, Store::Overwrite);
            if let Some(adapter) = adapters.down {
                let at = AdapterBlock { adapter, at: &blocks[b], tokens, scale: Some(weights) };
                // SAFETY: each task packs another block.
                unsafe {
                    at.gradient(&contraction, dz, Some(&mut dact), &packed_down, saved.low_rank.down.as_ref());
                }
            }

            // SAFETY: each block is another range of slots.
            let dweight = unsafe { dweight_s.range(some.clone()) };
            for i in 0..count {
                let row = i * width..(i + 1) * width;
                let (dup, act) = (&mut dup[row.clone()], &mut act[row.clone()]);
                let (up, dact) = (&up[row.clone()], &mut dact[row.clone()]);
                dweight[i] = match gate {
                    Some(gate) => swiglu_backward(&gate[row.clone()], up, dact, weights[i], &mut dgate[row], dup, act),
                    None => {
                        activate(mlp.activation, up, act);
                        let dweight = dot(dact, act);
                        scale(dact, weights[i]);
                        activate_backward(mlp.activation, up, dact, dup);
                        dweight
                    }
                };
            }
            dora_here(adapters.up, e, up, mlp.biases.up, &mut dup, up_sum);
            if let Some(gate) = gate {
                dora_here(adapters.gate, e, gate, mlp.biases.gate, &mut dgate, gate_sum);
            }

            // SAFETY: each block is another range of slots.
            let mut dx = dx_sd.as_ref().map(|dx_sd| unsafe { dx_sd.range(some.start * d..some.end * d) });
            let (dgate_rows, dup_rows) = (Source::new(&dgate, width), Source::new(&dup, width));
            if let Some(dx) = &mut dx {
                let mut left = Left::scratch_of(BLOCK_ROWS, count, width, operand);
                left.repack_rows(dup_rows);
                mlp.up.backward_here(left.panels(), e, 0..width, dx, Store::Overwrite);
                if let Some(gate) = mlp.gate {
                    left.repack_rows(dgate_rows);
                    gate.backward_here(left.panels(), e, 0..width, dx, Store::Accumulate);
                }
            }

            // SAFETY: each task packs another block.
            unsafe {
                let t = saved.low_rank.as_ref();
                for (adapter, rows, packed, t) in
                    [(adapters.up, dup_rows, &packed_up, t.up), (adapters.gate, dgate_rows, &packed_gate, t.gate)]
                {
                    let Some(adapter) = adapter else { continue };
                    let at = AdapterBlock { adapter, at: &blocks[b], tokens, scale: None };
                    at.gradient(&contraction, rows, dx.as_deref_mut(), packed, t);
                    at.inputs(&contraction, x, packed);
                }
                if let Some(adapter) = adapters.down {
                    let at = AdapterBlock { adapter, at: &blocks[b], tokens, scale: Some(weights) };
                    at.inputs(&contraction, Source::new(&act, width), &packed_down);
                }
                if let Some(out) = &packed_gate.dy {
                    contraction.pack_left(out, width, dgate_rows, &blocks[b]);
                }
                if let Some(out) = &packed_up.dy {
                    contraction.pack_left(out, width, dup_rows, &blocks[b]);
                }
                if let Some(out) = &packed_down.dy {
                    contraction.pack_left(out, d, dz, &blocks[b]);
                }
                if let Some(out) = &packed_x {
                    contraction.pack_right(out, d, x, None, &blocks[b]);
                }
                if let Some(out) = &packed_act {
                    contraction.pack_right(out, width, Source::new(&act, width), Some(weights), &blocks[b]);
                }
            }
            if summed {
                // SAFETY: each block is another row.
                let (gate_sum, up_sum) = unsafe { sums.range(b * 2 * width..(b + 1) * 2 * width) }.split_at_mut(width);
                dup.chunks_exact(width).for_each(|row| add_assign(up_sum, row));
                if mlp.gate.is_some() {
                    dgate.chunks_exact(width).for_each(|row| add_assign(gate_sum, row));
                }
            }
        });
    }
    bias_gradients(biases, &sums, dy.rows);
    for (sums, into) in [
        (magnitudes.gate, low_rank.gate.as_mut()),
        (magnitudes.up, low_rank.up.as_mut()),
        (magnitudes.down, low_rank.down.as_mut()),
    ] {
        let (Some(sums), Some(into)) = (sums, into.and_then(|into| into.magnitude.as_deref_mut())) else { continue };
        for (b, block) in blocks.iter().enumerate() {
            let out = sums.cols();
            add_assign(&mut into[block.group() * out..(block.group() + 1) * out], sums.row(b));
        }
    }
    // The inputs that A reads: those that are not left out, with dropout.
    let [gate_x, up_x, down_x] = [
        if gate_factors.x.is_some() { &gate_factors.x } else { &x_factors },
        if up_factors.x.is_some() { &up_factors.x } else { &x_factors },
        if down_factors.x.is_some() { &down_factors.x } else { &act_factors },
    ];
    let [gate_into, up_into, down_into] = [low_rank.gate, low_rank.up, low_rank.down].map(Option::unwrap_or_default);
    // An array: a training step allocates nothing.
    let mut targets = [
        Target::new(&gate_factors.dy, &x_factors, dgate_into, experts),
        Target::new(&up_factors.dy, &x_factors, dup_into, experts),
        Target::new(&down_factors.dy, &act_factors, ddown_into, experts),
        Target::new(&gate_factors.u, gate_x, gate_into.a, experts),
        Target::new(&up_factors.u, up_x, up_into.a, experts),
        Target::new(&down_factors.u, down_x, down_into.a, experts),
        Target::new(&gate_factors.dy, &gate_factors.t, gate_into.b, experts),
        Target::new(&up_factors.dy, &up_factors.t, up_into.b, experts),
        Target::new(&down_factors.dy, &down_factors.t, down_into.b, experts),
    ];
    let (mut products, mut count) = ([const { None }; 9], 0);
    for product in targets.iter_mut().filter_map(Target::product) {
        products[count] = Some(product);
        count += 1;
    }
    contraction.accumulate(&products[..count]);
    targets.into_iter().for_each(Target::finish);
    (dx_sd, dweight_s)
}

/// An adapter and a block of slots.
struct AdapterBlock<'a> {
    adapter: LowRank<'a>,
    at: &'a RowBlock,
    tokens: Tokens<'a>,
    /// Factors of the slots in the gradients of weights.
    scale: Option<&'a [f32]>,
}

impl AdapterBlock<'_> {
    /// Backward with the gradient `dz` of the result: adds to `dx`, and packs `u` and `t` as factors.
    ///
    /// # Safety
    /// No other task packs this block.
    unsafe fn gradient(
        &self,
        contraction: &Contraction<'_>,
        dz: Source<'_>,
        dx: Option<&mut [f32]>,
        packed: &SharedFactors<'_>,
        t: Option<&Tensor>,
    ) {
        let (rank, rows) = (self.adapter.rank(), self.at.rows());
        if dx.is_some() || packed.u.is_some() {
            let mut u = block_scratch(rows.len() * rank, rank);
            self.adapter.backward_here(self.at.group(), dz, self.tokens, &mut u, dx);
            if let Some(out) = &packed.u {
                // SAFETY: by the caller's promise.
                unsafe { contraction.pack_left(out, rank, Source::new(&u, rank), self.at) };
            }
        }
        if let (Some(out), Some(t)) = (&packed.t, t) {
            // SAFETY: by the caller's promise.
            unsafe { contraction.pack_right(out, rank, Source::new(t.row_range(rows), rank), self.scale, self.at) };
        }
    }

    /// Packs the inputs that are not left out, with dropout.
    ///
    /// # Safety
    /// No other task packs this block.
    unsafe fn inputs(&self, contraction: &Contraction<'_>, x: Source<'_>, packed: &SharedFactors<'_>) {
        let Some(out) = &packed.x else { return };
        let input = self.adapter.input();
        if let Some(own) = self.adapter.dropped_here(self.at.group(), x, self.at.rows().len(), self.tokens) {
            // SAFETY: by the caller's promise.
            unsafe { contraction.pack_right(out, input, Source::new(&own, input), self.scale, self.at) };
        }
    }
}

/// Sums for each block of the gradients of the magnitudes that are wanted.
fn magnitude_sums(
    adapters: PerMatrix<LowRank<'_>>,
    gradients: &PerMatrix<LowRankGradients<'_>>,
    blocks: usize,
) -> PerMatrix<Tensor> {
    let zeros = |adapter: Option<LowRank<'_>>, gradients: Option<&LowRankGradients<'_>>| {
        let wanted = gradients?.magnitude.is_some();
        adapter.filter(|_| wanted).map(|adapter| Tensor::zeros(&[blocks, adapter.out()]))
    };
    let of = gradients.as_ref();
    PerMatrix {
        gate: zeros(adapters.gate, of.gate),
        up: zeros(adapters.up, of.up),
        down: zeros(adapters.down, of.down),
    }
}

/// The row of a block in the sums of a magnitude.
///
/// # Safety
/// No other reference to that row is alive.
#[allow(clippy::mut_from_ref)]
unsafe fn row_of<'s>(sums: Option<&'s Shared<'_, f32>>, b: usize, out: usize) -> Option<&'s mut [f32]> {
    // SAFETY: by the caller's promise.
    sums.map(|sums| unsafe { sums.range(b * out..(b + 1) * out) })
}

/// The inputs of the output projection: the activation function of the rows of a block.
fn activation_here(mlp: &MlpWeights<'_>, gate: Option<&[f32]>, up: &[f32], act: &mut [f32]) {
    match gate {
        Some(gate) => swiglu(gate, up, act),
        None => activate(mlp.activation, up, act),
    }
}

/// Turns the gradient of the rows of a block into that before the factors of DoRA, and adds the gradient of the magnitude;
/// `y` is the result with the factors and the bias.
fn dora_here(
    adapter: Option<LowRank<'_>>,
    e: usize,
    y: &[f32],
    bias: Option<&[f32]>,
    dy: &mut [f32],
    sum: Option<&mut [f32]>,
) {
    let Some((adapter, rows)) = adapter.and_then(|adapter| Some((adapter, adapter.rows?))) else { return };
    let out = adapter.out();
    if let Some(sum) = sum {
        let mut z = block_scratch(y.len(), out);
        z.copy_from_slice(y);
        rows.divide_here(e, out, bias, &mut z);
        rows.gradient_here(e, dy, &z, None, sum);
    }
    rows.scale_here(e, out, dy);
}

fn bias_gradients(biases: PerMatrix<&mut [f32]>, sums: &Tensor, dy_td: &Tensor) {
    let width = sums.cols() / 2;
    if let Some(gate) = biases.gate {
        (0..sums.rows()).for_each(|b| add_assign(gate, &sums.row(b)[..width]));
    }
    if let Some(up) = biases.up {
        (0..sums.rows()).for_each(|b| add_assign(up, &sums.row(b)[width..]));
    }
    if let Some(down) = biases.down {
        bias_backward(dy_td, down);
    }
}
