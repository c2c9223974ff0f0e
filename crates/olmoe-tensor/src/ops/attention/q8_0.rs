//! Keys and values in blocks of 32 numbers of a head, integers in −127..=127 with an f16 scale, and products with them.
//!
//! The numbers of a block are `d·a`, with `a` as for activations in eight bits (`quant`) and d rounded to f16. A number
//! that is NaN, infinite or larger than 8.3 million gives results that are not finite. With queries `d_q·a_q` in eight
//! bits, too,
//!
//! * a score is the chain of the product with Q8_0 weights: `s = fma(d_k·Σ a_k·a_q, d_q, s)` over the blocks in order;
//! * a number of the output is the chain `o = fma(p·d_v, a_v, o)` over the tokens in order, in f32.
//!
//! Keys have the layout of packed weights: for each block of 32 tokens first the 32 scales, then the quants with 128
//! added, four numbers of every token at a time. Values have first the scales of all rows, block after block, because
//! the scales are read first, then the quants row by row.

use std::ops::Range;

use half::f16;

use crate::gemm::{Form, PANEL_COLS, PANEL_ROWS, Source, pack_rows};
use crate::memory::Buffer;
use crate::quant::BlockFormat;
use crate::quant::product::input::{block_bytes, quantize, quantize_block};
use crate::quant::product::kernel::{AHEAD, Ahead, TILE_ROWS, kernels};
use crate::simd::{LANES, Simd, fetch, kernel};

use super::BLOCK_KEYS;
use super::tile::multiply;

/// Numbers of a block, which share a scale; as many as a panel of the head has columns.
const BLOCK: usize = PANEL_COLS;
/// Bytes of a block of 32 keys: scales, then quants.
const KEY_BYTES: usize = PANEL_COLS * (2 + BLOCK);
/// The most rows for which values are dequantised anew for each row; for more rows they are dequantised once.
const FEW: usize = 2;

/// Bytes of the keys, and of the values, of 32 tokens.
pub(super) fn panel_bytes(wide: usize) -> usize {
    wide / BLOCK * KEY_BYTES
}

/// Bytes of the scales of `rows` values.
fn scale_bytes(wide: usize, rows: usize) -> usize {
    wide / BLOCK * rows * 2
}

/// Bytes of a query.
fn query_bytes(wide: usize) -> usize {
    wide / BLOCK * block_bytes(BLOCK)
}

/// Words of four bytes of a query.
pub(super) fn query_units(wide: usize) -> usize {
    query_bytes(wide) / size_of::<f32>()
}

/// Words of scratch memory that [`add_values`] takes.
pub(super) fn scratch_units(wide: usize) -> usize {
    (2 * PANEL_ROWS + PANEL_COLS + wide / BLOCK) * BLOCK_KEYS
}

/// A block of a row, padded with zeros.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; BLOCK] {
    let mut block = [0.0; BLOCK];
    block[..x.len()].copy_from_slice(x);
    block
}

kernel! {
    /// Writes a row as token `lane` of a panel of keys.
    fn write_key[s: S](row: &[f32], lane: usize, panel: &mut [u8]) {
        let mut quants = [0; BLOCK];
        for (x, block) in row.chunks(BLOCK).zip(panel.as_chunks_mut::<KEY_BYTES>().0) {
            let d = f16::from_f32(quantize_block(s, &padded(x), &mut quants));
            let (scales, groups) = block.split_at_mut(2 * PANEL_COLS);
            scales[2 * lane..2 * lane + 2].copy_from_slice(&d.to_le_bytes());
            for (four, group) in quants.as_chunks::<4>().0.iter().zip(groups.as_chunks_mut::<{ 4 * PANEL_COLS }>().0) {
                group[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|q| q as u8 ^ 0x80));
            }
        }
    }
}

kernel! {
    /// Writes a row as quants, and the scale of its block `b` to place `b·stride`.
    fn write_value[s: S](row: &[f32], quants: &mut [u8], scales: &mut [u8], stride: usize) {
        let mut block = [0; BLOCK];
        for (i, (x, quants)) in row.chunks(BLOCK).zip(quants.as_chunks_mut::<BLOCK>().0).enumerate() {
            let d = f16::from_f32(quantize_block(s, &padded(x), &mut block));
            quants.copy_from_slice(bytemuck::cast_slice(&block));
            scales[2 * i * stride..][..2].copy_from_slice(&d.to_le_bytes());
        }
    }
}

/// Writes the first `dim` numbers of rows `some` as tokens `at…` of the keys of a block.
pub(super) fn write_keys(dim: usize, keys: &mut [u8], at: usize, source: Source<'_>, some: Range<usize>) {
    let panel = panel_bytes(dim.next_multiple_of(BLOCK));
    for (at, row) in (at..).zip(some) {
        let panel = &mut keys[at / PANEL_COLS * panel..][..panel];
        write_key(&source.data[row * source.stride..][..dim], at % PANEL_COLS, panel);
    }
}

/// The same for the values of a block of `rows` tokens.
pub(super) fn write_values(
    dim: usize,
    rows: usize,
    values: &mut [u8],
    at: usize,
    source: Source<'_>,
    some: Range<usize>,
) {
    let wide = dim.next_multiple_of(BLOCK);
    let (scales, quants) = values.split_at_mut(scale_bytes(wide, rows));
    for (at, row) in (at..).zip(some) {
        let row = &source.data[row * source.stride..][..dim];
        write_value(row, &mut quants[at * wide..][..wide], &mut scales[2 * at..], rows);
    }
}

/// Copies the values of the first `count` tokens of one block to another; each block is given with the number of tokens
/// that it has room for.
pub(super) fn copy_values(wide: usize, count: usize, (rows, values): (usize, &[u8]), (room, to): (usize, &mut [u8])) {
    let (scales, quants) = values.split_at(scale_bytes(wide, rows));
    let (to_scales, to_quants) = to.split_at_mut(scale_bytes(wide, room));
    to_quants[..count * wide].copy_from_slice(&quants[..count * wide]);
    for (scales, to) in scales.chunks_exact(2 * rows).zip(to_scales.chunks_exact_mut(2 * room)) {
        to[..2 * count].copy_from_slice(&scales[..2 * count]);
    }
}

/// Packs the queries that `index` names, rows of `dim` numbers.
pub(super) fn pack_queries(q: &[f32], dim: usize, index: &[u32], out: &mut [u8]) {
    let wide = dim.next_multiple_of(BLOCK);
    let mut row = Buffer::<f32>::zeroed(wide);
    for (i, out) in index.iter().zip(out.chunks_exact_mut(query_bytes(wide))) {
        row[..dim].copy_from_slice(&q[*i as usize * dim..][..dim]);
        quantize(&row, BLOCK, out);
    }
}

/// Computes the scores of the queries of a tile and the first `count` keys of a block, in rows of [`BLOCK_KEYS`]
/// numbers.
pub(super) fn scores(queries: &[u8], wide: usize, keys: &[u8], count: usize, scores: &mut [f32]) {
    let kernels = kernels(BlockFormat::Q8_0);
    let bytes = query_bytes(wide);
    let rows = queries.len() / bytes;
    let tiles = rows.div_ceil(TILE_ROWS);
    let panels = keys.chunks_exact(panel_bytes(wide)).take(count.div_ceil(PANEL_COLS));
    for (panel, columns) in panels.zip((0..).step_by(PANEL_COLS)) {
        for tile in 0..tiles {
            let some = rows * tile / tiles..rows * (tile + 1) / tiles;
            let mut pointers = [std::ptr::null(); TILE_ROWS];
            for (pointer, row) in pointers.iter_mut().zip(some.clone()) {
                *pointer = queries[row * bytes..(row + 1) * bytes].as_ptr();
            }
            let to = &mut scores[some.start * BLOCK_KEYS + columns..(some.end - 1) * BLOCK_KEYS + columns + PANEL_COLS];
            // SAFETY: queries, panel and scores have the sizes of the shape.
            unsafe {
                let (blocks, y) = (wide / BLOCK, to.as_mut_ptr());
                let ahead = Ahead::new(panel, blocks, tile, tiles);
                kernels[some.len()](
                    blocks,
                    &pointers[..some.len()],
                    panel.as_ptr(),
                    y,
                    BLOCK_KEYS,
                    PANEL_COLS,
                    false,
                    ahead,
                );
            }
        }
    }
}

/// Adds the first `count` values of a block of `rows` tokens, weighted by rows of [`BLOCK_KEYS`] weights, to the rows
/// of `out`; overwrites `out` where the values are the `first` ones.
pub(super) fn add_values(
    weights: &[f32],
    values: &[u8],
    (rows, count): (usize, usize),
    wide: usize,
    out: &mut [f32],
    scratch: &mut [f32],
    first: bool,
) {
    let (scales, quants) = values.split_at(scale_bytes(wide, rows));
    let queries = out.len() / wide;
    let (scaled, rest) = scratch.split_at_mut(wide / BLOCK * BLOCK_KEYS);
    if queries <= FEW {
        for (weights, out) in weights.chunks_exact(BLOCK_KEYS).zip(out.chunks_exact_mut(wide)) {
            for (scales, scaled) in scales.chunks_exact(2 * rows).zip(scaled.chunks_exact_mut(BLOCK_KEYS)) {
                scale(&weights[..count.next_multiple_of(LANES)], scales, scaled);
            }
            add_row(scaled, quants, count, out, first);
        }
        return;
    }
    let (left, rest) = rest.split_at_mut(PANEL_ROWS * BLOCK_KEYS);
    let (scaled, rest) = rest.split_at_mut(PANEL_ROWS * BLOCK_KEYS);
    let numbers = &mut rest[..PANEL_COLS * BLOCK_KEYS];
    let units = count * queries;
    pack_rows(Source::new(weights, BLOCK_KEYS), 0..queries, count, Form::F32, queries, left);
    for (panel, scales) in scales.chunks_exact(2 * rows).enumerate() {
        scale_rows(&left[..units], scales, &mut scaled[..units], queries);
        unpack(&quants[panel * BLOCK..], wide, &mut numbers[..count * PANEL_COLS]);
        multiply(Form::F32, count, scaled, queries, numbers, &mut out[panel * PANEL_COLS..], wide, !first);
    }
}

kernel! {
    /// `out = weights · scales`, elementwise.
    fn scale[s: S](weights: &[f32], scales: &[u8], out: &mut [f32]) {
        let parts = weights.chunks_exact(LANES).zip(scales.as_chunks::<{ 2 * LANES }>().0);
        for ((weights, scales), out) in parts.zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: 16 numbers.
            s.store(s.mul(s.load(weights), unsafe { s.load_f16(scales.as_ptr()) }), out);
        }
    }
}

kernel! {
    /// The same with `width` weights for each scale.
    fn scale_rows[s: S](weights: &[f32], scales: &[u8], out: &mut [f32], width: usize) {
        let parts = weights.chunks(LANES * width).zip(scales.as_chunks::<{ 2 * LANES }>().0);
        for ((weights, scales), out) in parts.zip(out.chunks_mut(LANES * width)) {
            let mut d = [0.0; LANES];
            // SAFETY: 16 numbers.
            s.store(unsafe { s.load_f16(scales.as_ptr()) }, &mut d);
            for ((weights, d), out) in weights.chunks_exact(width).zip(d).zip(out.chunks_exact_mut(width)) {
                s.store_partial(s.mul(s.load_partial(weights), s.splat(d)), out);
            }
        }
    }
}

kernel! {
    /// Converts a panel of quants, in rows `stride` bytes apart, to f32.
    fn unpack[s: S](quants: &[u8], stride: usize, out: &mut [f32]) {
        for (out, quants) in out.chunks_exact_mut(PANEL_COLS).zip(quants.chunks(stride)) {
            for (out, quants) in out.chunks_exact_mut(LANES).zip(quants.as_chunks::<LANES>().0) {
                // SAFETY: 16 bytes.
                s.store(unsafe { s.load_i8(quants.as_ptr()) }, out);
            }
        }
    }
}

kernel! {
    /// Adds `count` rows of quants, with the weights of each of their panels, to a row.
    fn add_row[s: S](weights: &[f32], quants: &[u8], count: usize, out: &mut [f32], first: bool) {
        let wide = out.len();
        let mut panel = 0;
        while panel < wide / BLOCK {
            let (weights, quants) = (&weights[panel * BLOCK_KEYS..], &quants[panel * BLOCK..]);
            let out = &mut out[panel * BLOCK..];
            // Several sums at once, because the additions of one sum wait for each other; with the usual sizes of
            // heads, whole
// rows in the order of memory.
            panel += match wide / BLOCK - panel {
                1 => add_panels::<S, 1>(s, weights, quants, wide, count, out, first),
                2 | 3 => add_panels::<S, 2>(s, weights, quants, wide, count, out, first),
                _ => add_panels::<S, 4>(s, weights, quants, wide, count, out, first),
            };
        }
    }
}

/// The same for `P` panels.
#[inline(always)]
fn add_panels<S: Simd, const P: usize>(
    s: S,
    weights: &[f32],
    quants: &[u8],
    wide: usize,
    count: usize,
    out: &mut [f32],
    first: bool,
) -> usize {
    let out = &mut out[..P * PANEL_COLS];
    let mut sums = [[s.zero(); PANEL_COLS / LANES]; P];
    if !first {
        for (sum, out) in sums.as_flattened_mut().iter_mut().zip(out.chunks_exact(LANES)) {
            *sum = s.load(out);
        }
    }
    assert!(weights.len() >= (P - 1) * BLOCK_KEYS + count && count <= BLOCK_KEYS, "weights of {count} tokens");
    assert!(count == 0 || quants.len() >= (count - 1) * wide + P * BLOCK, "values of {count} tokens");
    for i in 0..count {
        let row = quants.as_ptr().wrapping_add(i * wide);
        for line in 0..P.div_ceil(2) {
            fetch(row.wrapping_add(AHEAD + 64 * line));
        }
        for (panel, sums) in sums.iter_mut().enumerate() {
            // SAFETY: a weight of this panel, as asserted.
            let p = s.splat(unsafe { *weights.get_unchecked(panel * BLOCK_KEYS + i) });
            for (half, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside the row, as asserted.
                let a = unsafe { s.load_i8(row.add(panel * BLOCK + half * LANES)) };
                *sum = s.fma(p, a, *sum);
            }
        }
    }
    for (sum, out) in sums.as_flattened().iter().zip(out.chunks_exact_mut(LANES)) {
        s.store(*sum, out);
    }
    P
}
