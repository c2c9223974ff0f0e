//! `y = x·Wᵀ + b`, for one weight and for groups of rows with a weight each.
//!
//! Shapes: `x [T, in]`, `W [out, in]`, `b [out]`, `y [T, out]`. Backward: `dx = dy·W`, `dW += dyᵀ·x`, `db += Σ_t dy`.
//! The factors are packed by the caller, because one packed `x` serves several weights (query, key, value), and a
//! packed weight serves every call until the next update.

use std::cell::OnceCell;
use std::ops::Range;

use crate::gemm::{self, Left, Operand, PANEL_COLS, Panels, Right, Source, Store, gemm, gemm_here};
use crate::memory::Buffer;
use crate::quant::product::{self, GroupedRows, QuantizedInput, QuantizedWeight};
pub use crate::strips::Strips;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

/// One weight `[out, in]`, or one for each of `groups` (the experts), packed for the products that it takes part in.
pub struct PackedWeight {
    shape: Strips,
    forward: Right,
    backward: Option<Right>,
}

impl PackedWeight {
    /// `groups` weights `[out, in]` with arbitrary contents, to be filled by [`PackedWeight::pack`] or
    /// [`PackedWeight::update`]. With `way_back` they are packed for the backward product `dx = dy·W` too.
    pub fn new(groups: usize, out: usize, input: usize, operand: Operand, way_back: bool) -> PackedWeight {
        PackedWeight {
            shape: Strips { groups, out, input },
            forward: Right::scratch(groups, out, input, operand),
            backward: way_back.then(|| Right::scratch(groups, input, out, operand)),
        }
    }

    /// Packs the weights `[groups · out, in]`, in place of the previous ones.
    pub fn pack(&mut self, w: &[f32]) {
        self.check(w);
        self.pack_strips(0..self.shape.count(), |range, pack| pack(&w[range]));
    }

    /// Changes the strips `some` of the weights and packs them, so that each number is read once. `change` is called
    /// with a range of `[groups, out, in]` and the numbers there. They are those of `w`, all of the weights as f32
    /// numbers, if it is given; otherwise they are a scratch buffer with arbitrary contents, which `change` has to
    /// overwrite.
    pub fn update(
        &mut self,
        w: Option<&mut [f32]>,
        some: Range<usize>,
        change: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) {
        let Some(w) = w else {
            return self.pack_strips(some, |range, pack| {
                let mut strip = Buffer::scratch(range.len());
                change(range, &mut strip);
                pack(&strip);
            });
        };
        self.check(w);
        let w = Shared::new(w);
        self.pack_strips(some, |range, pack| {
            // SAFETY: each strip is another range.
            let strip = unsafe { w.range(range.clone()) };
            change(range, strip);
            pack(strip);
        });
    }

    fn check(&self, w: &[f32]) {
        let Strips { groups, out, input } = self.shape;
        assert_eq!(w.len(), groups * out * input, "a weight is [groups, out, in]");
    }

    /// Packs strips on all threads. `with` is called with the range of each strip and passes its numbers on.
    fn pack_strips(&mut self, some: Range<usize>, with: impl Fn(Range<usize>, &dyn Fn(&[f32])) + Sync) {
        let shape = self.shape;
        assert!(some.end <= shape.count(), "strips {some:?} of {}", shape.count());
        let (forward, forward_shape) = self.forward.shared();
        let backward = self.backward.as_mut().map(Right::shared);
        parallel(some.len(), |task| {
            let strip = some.start + task;
            let (group, rows) = shape.rows(strip);
            with(shape.numbers(strip), &|numbers| {
                // SAFETY: each task packs another strip.
                unsafe {
                    forward_shape.pack_panel(&forward, group, rows.start / PANEL_COLS, numbers);
                    if let Some((backward, shape)) = &backward {
                        shape.pack_part(backward, group, rows.start, numbers);
                    }
                }
            });
        });
    }

    /// The packed bytes for `y = x·Wᵀ`, which can be stored and later written back to a weight of the same shape.
    pub fn packed_mut(&mut self) -> &mut [u8] {
        let len = self.forward.bytes() / size_of::<f32>();
        let (data, _) = self.forward.shared();
        // SAFETY: the range is all of the packed numbers, borrowed as long as this weight is.
        bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(data.pointer(0, len), len) })
    }

    /// The shape of the weights, cut into strips.
    pub fn strips(&self) -> Strips {
        self.shape
    }

    /// Panels for `y = x·Wᵀ`.
    pub fn forward(&self) -> &Right {
        &self.forward
    }

    /// Panels for `dx = dy·W`.
    ///
    /// # Panics
    /// When the weight was made without `way_back`.
    pub fn backward(&self) -> &Right {
        self.backward.as_ref().expect("a backward pass runs only over weights that were made with `way_back`")
    }

    /// The precision of the packed numbers.
    pub fn operand(&self) -> Operand {
        self.forward.operand()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.as_ref().map_or(0, Right::bytes)
    }
}

/// The weights of a product: packed f32 or bf16 numbers, or quantised blocks.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// f32 or bf16.
    Packed(&'a PackedWeight),
    /// Quantised blocks; the other factor is quantised to eight bits. In the backward product `dx = dy·W`, both factors
    /// have the precision of the operand.
    Quantized(&'a QuantizedWeight, Operand),
}

impl<'a> Weight<'a> {
    /// The shape of the weights, cut into strips.
    pub fn strips(self) -> Strips {
        match self {
            Weight::Packed(weight) => weight.strips(),
            Weight::Quantized(weight, _) => weight.strips(),
        }
    }

    /// The packed weights.
    ///
    /// # Panics
    /// When the weights are quantised.
    pub fn packed(self) -> &'a PackedWeight {
        match self {
            Weight::Packed(weight) => weight,
            Weight::Quantized(..) => panic!("the weights of one product are all packed or all quantised"),
        }
    }

    /// The blocks.
    pub(super) fn quantized(self) -> &'a QuantizedWeight {
        match self {
            Weight::Packed(_) => panic!("the weights of one product are all packed or all quantised"),
            Weight::Quantized(weight, _) => weight,
        }
    }

    /// The precision of the factors of the backward product.
    pub(super) fn operand(self) -> Operand {
        match self {
            Weight::Packed(weight) => weight.operand(),
            Weight::Quantized(_, operand) => operand,
        }
    }

    /// `dx (+)= dy·W` with the rows `rows` of weight `group`, on the calling thread. The contraction of `dy` runs over
    /// those rows, the first of which is the first of a strip.
    pub(super) fn backward_here(self, dy: Panels<'_>, group: usize, rows: Range<usize>, dx: &mut [f32], store: Store) {
        match self {
            Weight::Packed(weight) => gemm_here(dy, weight.backward().group(group).section(rows), dx, store),
            Weight::Quantized(weight, _) => product::backward::backward_here(dy, weight, group, rows, dx, store),
        }
    }
}

/// The input of several products, packed once for each kind of weight when it is first needed.
pub struct LinearInput<'x> {
    x: &'x Tensor,
    /// Where present, row `s` of the input is row `index[s]` of `x`.
    index: Option<&'x [u32]>,
    groups: Option<&'x [u32]>,
    /// The offsets of a single group.
    all: [u32; 2],
    packed: [OnceCell<Left>; 2],
    quantized: [OnceCell<QuantizedInput>; 2],
}

impl<'x> LinearInput<'x> {
    /// The input `x [T, in]`.
    pub fn new(x: &'x Tensor) -> LinearInput<'x> {
        let all = [0, x.rows() as u32];
        LinearInput { x, index: None, groups: None, all, packed: Default::default(), quantized: Default::default() }
    }

    /// Rows of `x [T, in]` in groups, each of which is multiplied with a weight of its own. Row `s` is row `index[s]`
    /// of `x`, or row `s` without an index; `offsets` says where the rows of each group begin, and where the last group
    /// ends.
    pub fn grouped(x: &'x Tensor, index: Option<&'x [u32]>, offsets: &'x [u32]) -> LinearInput<'x> {
        LinearInput { index, groups: Some(offsets), ..LinearInput::new(x) }
    }

    /// The tensor that the rows are of.
    pub(super) fn rows(&self) -> &'x Tensor {
        self.x
    }

    /// The rows of [`LinearInput::grouped`] as one group, which is multiplied with one weight.
    pub(super) fn ungrouped(&self) -> LinearInput<'x> {
        let rows = self.groups.map_or(self.all[1], |offsets| offsets.last().copied().unwrap_or(0));
        LinearInput { index: self.index, all: [0, rows], ..LinearInput::new(self.x) }
    }

    /// `y [S, out]`, `y_s = W_e·x_s`, for the rows `s` of each group `e`.
    pub fn times(&self, weight: Weight<'_>) -> Tensor {
        let [y] = self.times_each([weight]);
        y
    }

    /// The same for several weights, at once if they are all packed with the same operand or all quantised alike.
    pub fn times_each<const N: usize>(&self, weights: [Weight<'_>; N]) -> [Tensor; N] {
        let offsets = self.groups.unwrap_or(&self.all);
        let rows = offsets.last().map_or(0, |rows| *rows as usize);
        let mut all = weights.map(|weight| Tensor::scratch(&[rows, weight.strips().out]));
        let kind = |weight: Weight<'_>| match weight {
            Weight::Packed(weight) => (false, weight.operand() == Operand::Bf16),
            Weight::Quantized(weight, _) => (true, weight.format().block_len() > 32),
        };
        if weights.iter().all(|weight| kind(*weight) == kind(weights[0])) {
            let mut ys = all.iter_mut();
            let factors = weights.map(|weight| (weight, ys.next().expect("as many products as weights")));
            self.multiply(offsets, factors, Store::Overwrite);
        } else {
            weights.into_iter().zip(&mut all).for_each(|factor| self.multiply(offsets, [factor], Store::Overwrite));
        }
        all
    }

    /// `y_s += W_e·x_s`, as [`LinearInput::times`].
    pub fn add_to(&self, weight: Weight<'_>, y: &mut Tensor) {
        let offsets = self.groups.unwrap_or(&self.all);
        self.multiply(offsets, [(weight, y)], Store::Accumulate);
    }

    /// The products with weights of the same kind.
    fn multiply<const N: usize>(&self, offsets: &[u32], factors: [(Weight<'_>, &mut Tensor); N], store: Store) {
        match factors.first() {
            None => {}
            Some((Weight::Packed(first), _)) => {
                let (k, operand) = (self.x.cols(), first.operand());
                let source = Source { index: self.index, ..Source::new(self.x, k) };
                let x = self.packed[usize::from(operand == Operand::Bf16)]
                    .get_or_init(|| Left::from_groups(source, offsets, k, operand));
                let factors = factors.map(|(weight, y)| gemm::RightFactor { weight: weight.packed().forward(), y });
                gemm::products(x, offsets, factors, store);
            }
            Some((Weight::Quantized(first, _), _)) => {
                let x = self.quantized[usize::from(first.format().block_len() > 32)]
                    .get_or_init(|| QuantizedInput::pack(self.x, self.x.cols(), first.format()));
                let factors = factors.map(|(weight, y)| product::QuantizedFactor { weight: weight.quantized(), y });
                product::products(x, GroupedRows { index: self.index, offsets, first: 0 }, factors, store);
            }
        }
    }
}

/// Packs `x [T, in]` as the left factor of `x·Wᵀ`.
pub fn pack_input(x_ti: &Tensor, operand: Operand) -> Left {
    Left::from_rows(Source::new(x_ti, x_ti.cols()), x_ti.rows(), x_ti.cols(), operand)
}

/// `dx [T, in] (+)= dy·W`.
pub fn backward_input(dy_to: &Tensor, w: Weight<'_>, dx_ti: &mut Tensor, store: Store) {
    let dy = pack_input(dy_to, w.operand());
    match w {
        Weight::Packed(w) => gemm(&dy, w.backward(), dx_ti, store),
        Weight::Quantized(w, _) => product::backward::backward(&dy, &[0, dy.rows() as u32], w, dx_ti, store),
    }
}

/// Packs `x [T, in]` as the right factor of [`backward_weight`].
pub fn pack_saved(x_ti: &Tensor, operand: Operand) -> Right {
    Right::from_columns(Source::new(x_ti, x_ti.cols()), x_ti.cols(), x_ti.rows(), operand)
}

/// `dW [out, in] += dyᵀ·x`.
pub fn backward_weight(dy_to: &Tensor, x: &Right, dw_oi: &mut [f32]) {
    let left = Left::from_columns(Source::new(dy_to, dy_to.cols()), dy_to.cols(), dy_to.rows(), x.operand());
    gemm(&left, x, dw_oi, Store::Accumulate);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::BlockFormat;
    use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

    fn naive(x: &[f64], w: &[f64], t: usize, o: usize, i: usize) -> Vec<f64> {
        (0..t * o).map(|at| (0..i).map(|l| x[at / o * i + l] * w[at % o * i + l]).sum()).collect()
    }

    #[test]
    fn all_three_roles_match_finite_differences() {
        for (t, o, i) in [(1, 1, 1), (3, 5, 7), (17, 33, 19)] {
            let (x, w, dy) = (numbers(1, t * i), numbers(2, o * i), numbers(3, t * o));
            let got = on_every_isa(|| {
                let mut packed = PackedWeight::new(1, o, i, Operand::F32, true);
                packed.pack(&w);
                let (x, dy) = (Tensor::new(&x, &[t, i]), Tensor::new(&dy, &[t, o]));
                let y = LinearInput::new(&x).times(Weight::Packed(&packed));
                let mut dx = Tensor::scratch(&[t, i]);
                backward_input(&dy, Weight::Packed(&packed), &mut dx, Store::Overwrite);
                let mut dw = vec![0.0; o * i];
                backward_weight(&dy, &pack_saved(&x, Operand::F32), &mut dw);
                [&y[..], &dx[..], &dw[..]].concat()
            });
            let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum();
            let dx = finite_differences(&x, |x| loss(naive(x, &w, t, o, i)));
            let dw = finite_differences(&w, |w| loss(naive(&x, w, t, o, i)));
            assert!(relative_error(&got[..t * o], &naive(&x, &w, t, o, i)) < 1e-6);
            assert!(relative_error(&got[t * o..t * o + t * i], &dx) < 1e-6);
            assert!(relative_error(&got[t * o + t * i..], &dw) < 1e-6);
        }
    }

    /// Weights of the same kind and of several kinds, at once and one by one.
    #[test]
    fn several_products_of_an_input_are_each_its_own() {
        let (t, i) = (3, 64);
        let x = Tensor::new(&numbers(1, t * i), &[t, i]);
        let pack = |seed, out, operand| {
            let mut packed = PackedWeight::new(1, out, i, operand, false);
            packed.pack(&numbers(seed, out * i));
            packed
        };
        let (a, b, c) = (pack(2, 40, Operand::Bf16), pack(3, 33, Operand::Bf16), pack(4, 5, Operand::F32));
        let mut blocks = QuantizedWeight::new(BlockFormat::Q8_0, 1, 32, i);
        blocks.pack(0..1, &[0x11; 32 * 2 * 34]);
        let all =
            [Weight::Packed(&a), Weight::Packed(&b), Weight::Packed(&c), Weight::Quantized(&blocks, Operand::F32)];
        let input = LinearInput::new(&x);
        for (y, weight) in input.times_each(all).iter().zip(all) {
            assert_eq!(y.shape(), [t, weight.strips().out]);
            assert_eq!(**y, *input.times(weight));
        }
        let [first, second] = input.times_each([all[0], all[1]]);
        assert_eq!((&*first, &*second), (&*input.times(all[0]), &*input.times(all[1])));
        assert!(input.times_each([]).is_empty());
    }

    /// Packing at once, by changing numbers, strip by strip through scratch, and in two parts: all give the same
    /// panels.
    #[test]
    fn every_way_of_filling_packs_the_same() {
        for (groups, out, input) in [(1, 1, 1), (3, 37, 5), (2, 64, 6), (1, 0, 4), (0, 4, 4)] {
            let w = numbers(4, groups * out * input);
            for (operand, trainable) in [(Operand::F32, true), (Operand::Bf16, true), (Operand::Bf16, false)] {
                let fresh = || PackedWeight::new(groups, out, input, operand, trainable);
                let strips = fresh().strips();
                let covered: Vec<usize> = (0..strips.count()).flat_map(|strip| strips.numbers(strip)).collect();
                assert!(covered.into_iter().eq(0..w.len()));
                let write = |range: Range<usize>, strip: &mut [f32]| strip.copy_from_slice(&w[range]);
                let (mut whole, mut changed, mut filled) = (fresh(), fresh(), fresh());
                whole.pack(&w);
                let mut numbers = vec![0.0; w.len()];
                changed.update(Some(&mut numbers), 0..strips.count(), write);
                assert_eq!(numbers, w);
                let middle = strips.count() / 2;
                filled.update(None, middle..strips.count(), write);
                filled.update(None, 0..middle, write);
                assert_eq!(strips.packed_bytes(operand, trainable), whole.bytes() as u64);
                for other in [&changed, &filled] {
                    for group in 0..groups {
                        let same = |a: &Right, b: &Right| a.group(group).data == b.group(group).data;
                        assert!(same(whole.forward(), other.forward()));
                        assert!(!trainable || same(whole.backward(), other.backward()));
                    }
                }
            }
        }
    }
}
