//! The backward pass through quantised weights: `dx[T, in] (+)= dy[T, out]·W[out, in]`.
//!
//! The blocks are dequantised in squares of 32 rows and 32 columns, and each square is packed as a section of the right
//! factor of a dense product, whose contraction runs over the rows of `W`. A thread works on [`PANELS`] panels over a
//! section of [`SECTION`] rows at a time, so that the dequantised numbers of a thread stay in its cache. The sums run
//! over the rows in one chain, section after section: the bits are those of the dense product with the same numbers.

use std::ops::Range;

use super::layout::{self, Layout, ROWS, with_layout};
use super::weight::QuantizedWeight;
use crate::gemm::{Left, PANEL_COLS, Panels, Source, Store, block, pack_rows, panel_count};
use crate::memory::Buffer;
use crate::quant::{BlockFormat, half_at};
use crate::simd::kernel;
use crate::threads::{Shared, parallel};

/// Right panels that a thread dequantises at once.
const PANELS: usize = 4;
/// Rows of the weights in a section: 4 panels of 512 rows are 256 KiB, in the second-level cache.
const SECTION: usize = 512;

/// `dx_s (+)= W_eᵀ·dy_s` for the rows `s` of every group `e`, on all threads; `dy` was packed with the same offsets.
///
/// # Panics
/// When shapes, groups or rows do not fit each other.
pub(crate) fn backward(dy: &Left, offsets: &[u32], weight: &QuantizedWeight, dx: &mut [f32], into: Store) {
    let shape = weight.strips();
    let groups = offsets.len().saturating_sub(1);
    assert!(offsets.is_sorted() && offsets.last() == Some(&(dy.rows() as u32)), "groups cover the rows");
    assert_eq!(groups, shape.groups, "groups of a factor");
    assert_eq!(dx.len(), dy.rows() * shape.input, "dx is [{}, {}]", dy.rows(), shape.input);
    let panels = shape.input / PANEL_COLS;
    let parts = panels.div_ceil(PANELS);
    let dx = Shared::new(dx);
    parallel(groups * parts, |task| {
        let (group, part) = (task / parts, task % parts);
        let rows = offsets[group] as usize..offsets[group + 1] as usize;
        if rows.is_empty() {
            return;
        }
        let columns = part * PANELS..((part + 1) * PANELS).min(panels);
        let out = dx.pointer(rows.start * shape.input, rows.len() * shape.input);
        // SAFETY: each task writes other columns of these rows, or other rows.
        unsafe { columns_of(dy.group(rows), weight, group, 0..shape.out, columns, out, into) }
    });
}

/// `dx (+)= dy·W` with the rows `rows` of weight `group`, on the calling thread. The contraction of `dy` runs over
/// those rows, the first of which is the first of a strip.
pub(crate) fn backward_here(
    dy: Panels<'_>,
    weight: &QuantizedWeight,
    group: usize,
    rows: Range<usize>,
    dx: &mut [f32],
    into: Store,
) {
    let input = weight.strips().input;
    assert_eq!(dx.len(), dy.rows * input, "dx is [{}, {input}]", dy.rows);
    let panels = input / PANEL_COLS;
    for first in (0..panels).step_by(PANELS) {
        let columns = first..(first + PANELS).min(panels);
        // SAFETY: `dx` is borrowed mutably and has the size just checked.
        unsafe { columns_of(dy, weight, group, rows.clone(), columns, dx.as_mut_ptr(), into) }
    }
}

/// The panels `panels` of columns of the product.
///
/// # Safety
/// `dx` is `[dy.rows, in]`, and no other task touches these columns of it.
unsafe fn columns_of(
    dy: Panels<'_>,
    weight: &QuantizedWeight,
    group: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    dx: *mut f32,
    mut into: Store,
) {
    let (shape, operand) = (weight.strips(), dy.operand);
    assert!(rows.start.is_multiple_of(ROWS) && rows.end <= shape.out, "rows {rows:?} of {}", shape.out);
    assert_eq!(dy.k, rows.len(), "contraction of both factors");
    let mut right = Buffer::<f32>::scratch(panels.len() * PANEL_COLS * operand.units(SECTION));
    let mut square = [0.0; ROWS * PANEL_COLS];
    for start in rows.clone().step_by(SECTION) {
        let section = start..(start + SECTION).min(rows.end);
        let units = operand.units(section.len());
        let right = &mut right[..panels.len() * PANEL_COLS * units];
        for (p, panel) in panels.clone().zip(right.chunks_exact_mut(PANEL_COLS * units)) {
            for first in section.clone().step_by(ROWS) {
                let count = ROWS.min(section.end - first);
                unpack(weight.format(), weight.panel(group, first / ROWS), p, &mut square);
                let at = operand.units(first - section.start);
                let part = &mut panel[at * PANEL_COLS..(at + operand.units(count)) * PANEL_COLS];
                pack_rows(Source::new(&square, ROWS), 0..PANEL_COLS, count, operand.right(), PANEL_COLS, part);
            }
        }
        let left = dy.section(section.start - rows.start..section.end - rows.start);
        let right = Panels::new(right, panels.len() * PANEL_COLS, section.len(), operand, operand.right());
        // SAFETY: by the caller's promise.
        unsafe {
            let columns = dx.add(panels.start * PANEL_COLS);
            block(left, 0..panel_count(dy.rows), right, 0..panels.len(), columns, shape.input, into);
        }
        into = Store::Accumulate;
    }
}

kernel! {
    /// The numbers of the 32 columns from `32·at` on of a packed panel, `[32 columns, 32 rows]`.
    fn unpack[_s: S](format: BlockFormat, panel: &[u8], at: usize, square: &mut [f32; ROWS * PANEL_COLS]) {
        with_layout!(format, L => columns::<L>(panel, at, square));
    }
}

#[inline(always)]
fn columns<L: Layout>(panel: &[u8], at: usize, square: &mut [f32]) {
    let parts = PANEL_COLS / L::PART;
    let first = at * parts;
    let block = &panel[first / L::PARTS * L::BLOCK_BYTES..][..L::BLOCK_BYTES];
    for (i, out) in square.chunks_exact_mut(L::PART * ROWS).enumerate() {
        part_numbers::<L>(block, first % L::PARTS + i, out);
    }
}

/// The numbers of one part of a block, `[numbers, rows]`, with the operations of `dequantize` in their order.
#[inline(always)]
fn part_numbers<L: Layout>(block: &[u8], part: usize, out: &mut [f32]) {
    let mut scales: [f32; ROWS] = std::array::from_fn(|row| half_at(block, 2 * row));
    let mut minima = [0.0; ROWS];
    if L::SCALES {
        // Scales of six bits are not negative, so they are the same with and without a sign.
        let whole = &block[L::SCALES_AT + part * ROWS..][..ROWS];
        (0..ROWS).for_each(|row| scales[row] *= f32::from(whole[row] as i8));
    }
    if L::MINIMUM {
        minima = std::array::from_fn(|row| half_at(block, 2 * ROWS + 2 * row));
        if L::SCALES {
            let whole = &block[L::MINIMA_AT + part / 4 * 4 * ROWS..][..4 * ROWS];
            (0..ROWS).for_each(|row| minima[row] *= f32::from(whole[4 * row + part % 4]));
        }
    }
    let bytes = &block[L::PARTS_AT + part * L::PART_BYTES..][..L::PART_BYTES];
    let (plane, groups) = bytes.split_at(L::PLANE_BYTES);
    let half = L::PART / 8;
    for (g, out) in out.chunks_exact_mut(4 * ROWS).enumerate() {
        let quants = if L::BITS == 8 {
            words(groups, g)
        } else {
            let shift = if g < half { 0 } else { 4 };
            let mut quants = words(groups, g % half).map(|word| word >> shift & 0x0f0f_0f0f);
            if L::PLANE_BYTES > 0 {
                let (bits, mask) = if L::BITS == 5 { (1, 0x0101_0101) } else { (2, 0x0303_0303) };
                let high = words(plane, 0);
                (0..ROWS).for_each(|row| quants[row] |= (high[row] >> (bits * g) & mask) << 4);
            }
            quants
        };
        for (b, out) in out.chunks_exact_mut(ROWS).enumerate() {
            for row in 0..ROWS {
                let quant = (quants[row] >> (8 * b) & 0xff) as i32;
                out[row] = match L::OFFSET {
                    Some(offset) => scales[row] * (quant - offset) as f32,
                    None => scales[row] * quant as f32 - minima[row],
                };
            }
        }
    }
}

/// The four bytes of each row in a group.
#[inline(always)]
fn words(groups: &[u8], g: usize) -> [u32; ROWS] {
    let words = groups[4 * ROWS * g..][..4 * ROWS].as_chunks().0;
    std::array::from_fn(|row| u32::from_le_bytes(words[row]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Operand;
    use crate::ops::grouped_linear;
    use crate::ops::linear::{PackedWeight, Weight};
    use crate::quant::{dequantize, quantize};
    use crate::tensor::Tensor;
    use crate::testing::{numbers, on_every_isa_and_threads, relative_error, wide};

    /// Weights `[groups, out, in]` as blocks, and the numbers that these stand for.
    fn weights(format: BlockFormat, groups: usize, out: usize, input: usize) -> (QuantizedWeight, Vec<f32>) {
        let mut w = numbers(1, groups * out * input);
        let mut blocks = vec![0; format.bytes(w.len()).expect("whole blocks")];
        quantize(format, &w, &mut blocks);
        dequantize(format, &blocks, &mut w);
        let mut weight = QuantizedWeight::new(format, groups, out, input);
        let bytes = |number: usize| number / format.block_len() * format.block_bytes();
        weight.update(|range, out| out.copy_from_slice(&blocks[bytes(range.start)..bytes(range.end)]));
        (weight, w)
    }

    /// One group and several; a strip that is not full, an odd number of rows, more than a section; no row, one and
    /// many.
    #[test]
    fn the_gradient_is_that_of_the_numbers_the_blocks_stand_for() {
        for format in BlockFormat::ALL {
            for (offsets, out, input) in [
                (&[0, 1][..], 33, 256),
                (&[0, 0, 5, 5, 24], 31, 512),
                (&[0, 130], SECTION + 70, 256),
                (&[0, 0], 32, 256),
            ] {
                let groups = offsets.len() - 1;
                let rows = offsets[groups] as usize;
                let (blocks, w) = weights(format, groups, out, input);
                let dy = numbers(2, rows * out);
                for operand in [Operand::F32, Operand::Bf16] {
                    let got = on_every_isa_and_threads(|| {
                        let dy = Tensor::new(&dy, &[rows, out]);
                        let ours = grouped_linear::backward_input(&dy, offsets, Weight::Quantized(&blocks, operand));
                        let mut packed = PackedWeight::new(groups, out, input, operand, true);
                        packed.pack(&w);
                        let dense = grouped_linear::backward_input(&dy, offsets, Weight::Packed(&packed));
                        let what = format!("{} {operand:?} {offsets:?}", format.name());
                        assert!(ours.iter().zip(&dense[..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
                        ours.to_vec()
                    });
                    let (w, dy) = (wide(&w), wide(&dy));
                    let mut expected = vec![0.0; rows * input];
                    for (e, pair) in offsets.windows(2).enumerate() {
                        for s in pair[0] as usize..pair[1] as usize {
                            for o in 0..out {
                                let row = &w[(e * out + o) * input..(e * out + o + 1) * input];
                                let dx = &mut expected[s * input..(s + 1) * input];
                                dx.iter_mut().zip(row).for_each(|(dx, w)| *dx += dy[s * out + o] * w);
                            }
                        }
                    }
                    let bound = if operand == Operand::F32 { 1e-6 } else { 4e-3 };
                    let error = relative_error(&got, &expected);
                    assert!(error < bound, "{} {operand:?} {offsets:?}: {error}", format.name());
                }
            }
        }
    }

    /// The previous contents are added to, and the parts of the rows one after the other give the result of all rows.
    #[test]
    fn rows_in_parts_are_one_chain() {
        let (out, input, rows) = (160, 256, 3);
        let (blocks, _) = weights(BlockFormat::Q5K, 2, out, input);
        let (dy, dx) = (numbers(2, rows * out), numbers(3, rows * input));
        let left = |range: Range<usize>| {
            let part: Vec<f32> = dy.chunks(out).flat_map(|row| row[range.clone()].to_vec()).collect();
            Left::from_rows(Source::new(&part, range.len()), rows, range.len(), Operand::F32)
        };
        let run = |parts: &[Range<usize>]| {
            let mut dx = dx.clone();
            for part in parts {
                let left = left(part.clone());
                backward_here(left.panels(), &blocks, 1, part.clone(), &mut dx, Store::Accumulate);
            }
            dx
        };
        let whole = run(std::slice::from_ref(&(0..160)));
        assert_eq!(whole, run(&[0..32, 32..96, 96..160]));
        assert_ne!(whole, run(&[0..32, 32..96]));
    }
}
