//! `y = x·Wᵀ + b`, dense and for groups of weights.
//!
//! Shapes: `x [T, in]`, `W [out, in]`, `b [out]`, `y [T, out]`. Backward: `dx = dy·W`, `dW += dyᵀ·x`, `db += Σ_t dy`.
//! The factors arrive packed, because one packed `x` serves several weights (query, key, value), and one packed weight
//! serves every call until the next update.

use std::cell::OnceCell;
use std::ops::Range;

use crate::gemm::{Left, Operand, PANEL_COLS, Right, Source, Store, gemm};
use crate::memory::Buffer;
use crate::quant::product::{QuantizedInput, QuantizedWeight, product};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

/// The shape of `groups` weights `[out, in]`, cut into strips of 32 rows, of which the last of a weight may have fewer.
/// A strip is what one task reads or writes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// Weights.
    pub groups: usize,
    /// Rows of each.
    pub out: usize,
    /// Numbers in a row.
    pub input: usize,
}

impl Strips {
    /// How many strips there are.
    pub fn count(self) -> usize {
        self.groups * self.out.div_ceil(PANEL_COLS)
    }

    /// The numbers of one strip, as a range of `[groups, out, in]`.
    pub fn numbers(self, strip: usize) -> Range<usize> {
        let (group, rows) = self.rows(strip);
        (group * self.out + rows.start) * self.input..(group * self.out + rows.end) * self.input
    }

    /// The weight that a strip belongs to, and its rows there.
    fn rows(self, strip: usize) -> (usize, Range<usize>) {
        let per_group = self.out.div_ceil(PANEL_COLS);
        let (group, first) = (strip / per_group, strip % per_group * PANEL_COLS);
        (group, first..(first + PANEL_COLS).min(self.out))
    }

    /// Bytes that these weights take when packed, the filling of the last strips included; without overflow.
    pub fn packed_bytes(self, operand: Operand, trainable: bool) -> u64 {
        let panels = |rows: usize, k: usize| {
            let padded = (rows as u64).next_multiple_of(PANEL_COLS as u64);
            let units = (self.groups as u64).saturating_mul(padded).saturating_mul(operand.units(k) as u64);
            units.saturating_mul(size_of::<f32>() as u64)
        };
        let backward = if trainable { panels(self.input, self.out) } else { 0 };
        panels(self.out, self.input).saturating_add(backward)
    }
}

/// One weight `[out, in]`, or `groups` of them (the experts), packed for the products it takes part in.
pub struct PackedWeight {
    shape: Strips,
    forward: Right,
    backward: Option<Right>,
}

impl PackedWeight {
    /// Room for `groups` weights `[out, in]`; `trainable` ones are packed for `dx = dy·W` too. [`PackedWeight::pack`]
    /// or [`PackedWeight::update`] fills it.
    pub fn new(groups: usize, out: usize, input: usize, operand: Operand, trainable: bool) -> PackedWeight {
        PackedWeight {
            shape: Strips { groups, out, input },
            forward: Right::scratch(groups, out, input, operand),
            backward: trainable.then(|| Right::scratch(groups, input, out, operand)),
        }
    }

    /// Packs the weights `[groups · out, in]`, in place of what was there.
    pub fn pack(&mut self, w: &[f32]) {
        self.check(w);
        self.pack_strips(0..self.shape.count(), |range, pack| pack(&w[range]));
    }

    /// Changes the strips `some` of the weights and packs them, so that each number is read once. `change` gets a range
    /// of `[groups, out, in]` and the numbers there: those of `w`, all of the weights as numbers, or where there are none
    /// scratch of one strip with arbitrary contents, which it has to overwrite.
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

    /// Packs strips on all threads. `with` gets the range of each strip and passes its numbers on.
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

    /// All that is held for `y = x·Wᵀ`, to be kept as it is and put back.
    pub fn packed_mut(&mut self) -> &mut [u8] {
        let len = self.forward.bytes() / size_of::<f32>();
        let (data, _) = self.forward.shared();
        // SAFETY: all of its numbers, borrowed as long as this weight is.
        bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(data.pointer(0, len), len) })
    }

    /// The shape of the weights, in strips.
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
    /// When the weight is not trainable.
    pub fn backward(&self) -> &Right {
        self.backward.as_ref().expect("a backward pass runs only over a model made for training")
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

/// The weights of a forward product: packed numbers, or quantised blocks, which have no way back.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// f32 or bf16.
    Packed(&'a PackedWeight),
    /// Blocks; the other factor is rounded to eight bits.
    Quantized(&'a QuantizedWeight),
}

impl<'a> Weight<'a> {
    /// The shape of the weights, in strips.
    pub fn strips(self) -> Strips {
        match self {
            Weight::Packed(weight) => weight.strips(),
            Weight::Quantized(weight) => weight.strips(),
        }
    }

    /// The packed weights.
    ///
    /// # Panics
    /// When they are quantised.
    pub fn packed(self) -> &'a PackedWeight {
        match self {
            Weight::Packed(weight) => weight,
            Weight::Quantized(_) => panic!("quantised weights take part in forward products only"),
        }
    }
}

/// The input of several products, packed once for each kind of weight that asks.
pub struct Input<'x> {
    x: &'x Tensor,
    packed: [OnceCell<Left>; 2],
    quantized: [OnceCell<QuantizedInput>; 2],
}

impl<'x> Input<'x> {
    /// Of `x [T, in]`.
    pub fn new(x: &'x Tensor) -> Input<'x> {
        Input { x, packed: Default::default(), quantized: Default::default() }
    }

    /// `y [T, out] = x·Wᵀ`.
    pub fn times(&self, weight: Weight<'_>) -> Tensor {
        match weight {
            Weight::Packed(weight) => {
                let operand = weight.operand();
                let x = self.packed[usize::from(operand == Operand::Bf16)].get_or_init(|| pack_input(self.x, operand));
                forward(x, weight)
            }
            Weight::Quantized(weight) => {
                let format = weight.format();
                let x = self.quantized[usize::from(format.block_len() > 32)]
                    .get_or_init(|| QuantizedInput::pack(self.x, self.x.cols(), format));
                let mut y = Tensor::scratch(&[self.x.rows(), weight.strips().out]);
                product(x, weight, &mut y, Store::Overwrite);
                y
            }
        }
    }
}

/// Packs `x [T, in]` as the left factor of [`forward`].
pub fn pack_input(x_ti: &Tensor, operand: Operand) -> Left {
    Left::from_rows(Source::new(x_ti, x_ti.cols()), x_ti.rows(), x_ti.cols(), operand)
}

/// `y [T, out] = x·Wᵀ`.
pub fn forward(x: &Left, w: &PackedWeight) -> Tensor {
    let mut y = Tensor::scratch(&[x.rows(), w.forward.rows()]);
    gemm(x, &w.forward, &mut y, Store::Overwrite);
    y
}

/// `dx [T, in] (+)= dy·W`.
pub fn backward_input(dy_to: &Tensor, w: &PackedWeight, dx_ti: &mut Tensor, store: Store) {
    gemm(&pack_input(dy_to, w.operand()), w.backward(), dx_ti, store);
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
                let y = forward(&pack_input(&x, Operand::F32), &packed);
                let mut dx = Tensor::scratch(&[t, i]);
                backward_input(&dy, &packed, &mut dx, Store::Overwrite);
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

    /// Packing at once, by changing numbers, strip by strip through scratch, and in two parts: all give the same panels.
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
