//! Log-probabilities of given tokens, fused with the head, and their gradient.
//!
//! Shapes: `x [T, D]` (after the final norm), head `W [V, D]`, logits `l = c·(x·Wᵀ + b)` with a constant `c`, `[T, V]`;
//! `logp_t = l_t[target_t] − lse_t`, `lse_t = log Σ_v exp l_tv`. Given `g_t = ∂L/∂logp_t` and `h_t = ∂L/∂lse_t` beside it,
//! `∂L/∂l_tv = g_t·[v = target_t] + (h_t − g_t)·exp(l_tv − lse_t)`. Cross-entropy over `N` targets is `g_t = −1/N`.
//!
//! The logits exist only for a chunk of tokens at a time ([`CHUNK_BYTES`]). The forward pass makes them tile by tile and
//! takes each tile's largest number and sum of exponentials while it is in the cache; the backward pass turns them, tile
//! by tile again, into the packed factors of `dx = dl·W` and `dW += dlᵀ·x` and multiplies at once. So the logits are
//! written and read once, and their gradient never leaves the cache.

use std::ops::Range;

use crate::gemm::{
    Left, PANEL_COLS, PANEL_ROWS, Right, Source, Store, block, gemm_here, pack_columns, pack_rows, panel_count,
    panel_start,
};
use crate::memory::Buffer;
use crate::ops::add::{add_assign, scale};
use crate::ops::lanes::lanes;
use crate::ops::linear::{Weight, pack_input, pack_saved};
use crate::quant::product::{QuantizedInput, product};
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

/// The target of a token that has none: its log-probability is 0 and it adds no gradient.
pub const IGNORE: u32 = u32::MAX;

/// Bytes of logits in a chunk, at most. Larger chunks read and write `dW` less often, smaller ones hold less memory; at
/// this size that traffic is a few percent of the products' time.
pub const CHUNK_BYTES: usize = 128 << 20;

/// Tokens and right panels of words in a tile of the forward pass: 96 × 896 logits are 336 KiB, in the second-level cache.
const TILE_TOKENS: usize = 8 * PANEL_ROWS;
const TILE_PANELS: usize = 28;
const TILE_WORDS: usize = TILE_PANELS * PANEL_COLS;

/// Tokens, and words, in a block of the backward pass of a model of width `d`. The words' rows of `dW` share the
/// second-level cache with the block's factors; once they are too many for it, larger blocks read and write them less
/// often. The sums of `dx` are divided at these blocks, so their size is part of the result.
fn block_size(d: usize) -> usize {
    if d <= 512 { 224 } else { 448 }
}

/// Tokens whose gradients are made at once: 48 × 224 numbers are 42 KiB.
const STRIP_TOKENS: usize = 4 * PANEL_ROWS;
/// Parts of the vocabulary that are summed into a `dx` of their own and then added in order: a fixed number, so that the
/// sums do not depend on the threads.
const SLABS: usize = 16;

/// The output layer: `c·(x·Wᵀ + b)`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, D]`
    pub weight: Weight<'a>,
    /// `[V]`
    pub bias: Option<&'a [f32]>,
    /// The constant `c`: 1, or 1/√D where the model scales its logits.
    pub scale: f32,
}

/// What the forward pass gives for each token.
#[derive(Clone, Debug)]
pub struct LogProbs {
    /// Natural log-probability of the target, `[T]`; 0 where there is none.
    pub logp_t: Buffer<f32>,
    /// `log Σ_v exp l_tv`, `[T]`.
    pub lse_t: Buffer<f32>,
}

/// Where the gradients go and what they come from.
pub struct Gradients<'a> {
    /// `∂L/∂logp_t`, `[T]`.
    pub dlogp_t: &'a [f32],
    /// `∂L/∂lse_t = z · lse_t` beside that through `logp`: a z-loss on the logits; 0 for none.
    pub z: f32,
    /// `[V, D]`, added to; none for a frozen head.
    pub dweight: Option<&'a mut [f32]>,
    /// `[V]`, added to.
    pub dbias: Option<&'a mut [f32]>,
}

impl Head<'_> {
    fn words(&self) -> usize {
        self.weight.strips().out
    }
}

/// All logits `[T, V]`: for generation, and for tests.
pub fn logits(x_td: &Tensor, head: Head<'_>) -> Tensor {
    let mut logits_tv = Tensor::scratch(&[x_td.rows(), head.words()]);
    forward_tiles(x_td, head, &mut logits_tv);
    logits_tv
}

/// Log-probabilities of `targets [T]` without gradients.
pub fn forward(x_td: &Tensor, head: Head<'_>, targets: &[u32]) -> LogProbs {
    run(x_td, head, targets, None).0
}

/// Log-probabilities of `targets [T]` and, in the same pass, the gradients; returns `dx [T, D]`.
pub fn forward_backward(
    x_td: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    gradients: Gradients<'_>,
) -> (LogProbs, Tensor) {
    let (log_probs, dx_td) = run(x_td, head, targets, Some(gradients));
    (log_probs, dx_td.unwrap_or_else(|| Tensor::zeros(x_td.shape())))
}

fn run(
    x_td: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    mut gradients: Option<Gradients<'_>>,
) -> (LogProbs, Option<Tensor>) {
    let (tokens, d, v) = (x_td.rows(), x_td.cols(), head.words());
    assert_eq!(targets.len(), tokens, "a target a token");
    let mut out = LogProbs { logp_t: Buffer::scratch(tokens), lse_t: Buffer::scratch(tokens) };
    let mut dx_td = gradients.as_ref().map(|_| Tensor::scratch(&[tokens, d]));
    // Even chunks, none larger than asked for.
    let most = (CHUNK_BYTES / size_of::<f32>() / v.max(1)).max(block_size(d));
    let chunk = tokens.div_ceil(tokens.div_ceil(most).max(1)).next_multiple_of(2);
    let mut logits = Tensor::scratch(&[chunk.min(tokens), v]);
    for start in (0..tokens).step_by(chunk.max(1)) {
        let rows = start..(start + chunk).min(tokens);
        let x = Tensor::new(x_td.row_range(rows.clone()), &[rows.len(), d]);
        let logits = &mut logits[..rows.len() * v];
        let tiles = forward_tiles(&x, head, logits);
        let targets = &targets[rows.clone()];
        finish(&tiles, logits, v, targets, &mut out.logp_t[rows.clone()], &mut out.lse_t[rows.clone()]);
        if let (Some(gradients), Some(dx_td)) = (&mut gradients, &mut dx_td) {
            let lse = &out.lse_t[rows.clone()];
            let chunk =
                Chunk { logits, x: &x, head, targets, lse, dlogp: &gradients.dlogp_t[rows.clone()], z: gradients.z };
            let (dweight, dbias) = (gradients.dweight.as_deref_mut(), gradients.dbias.as_deref_mut());
            chunk.backward(dweight, dbias, &mut dx_td[rows.start * d..rows.end * d]);
        }
    }
    (out, dx_td)
}

/// The largest logit and the sum of exponentials against it of each token and tile of words, `[T, tiles]` each.
struct Tiles {
    largest: Tensor,
    sum: Tensor,
}

/// Logits `[T, V]`, and what their tiles say.
fn forward_tiles(x_td: &Tensor, head: Head<'_>, logits: &mut [f32]) -> Tiles {
    let (tokens, v) = (x_td.rows(), head.words());
    let packed = match head.weight {
        Weight::Packed(weight) => Some((pack_input(x_td, weight.operand()), weight.forward().group(0))),
        Weight::Quantized(weight) => {
            product(&QuantizedInput::pack(x_td, x_td.cols(), weight.format()), weight, logits, Store::Overwrite);
            None
        }
    };
    let panels = panel_count(tokens);
    let (token_tiles, word_tiles) = (tokens.div_ceil(TILE_TOKENS), v.div_ceil(TILE_WORDS));
    let mut tiles =
        Tiles { largest: Tensor::scratch(&[tokens, word_tiles]), sum: Tensor::scratch(&[tokens, word_tiles]) };
    let (largest, sum) = (Shared::new(&mut tiles.largest), Shared::new(&mut tiles.sum));
    let logits = Shared::new(logits);
    parallel(token_tiles * word_tiles, |task| {
        // Neighbouring tasks share the words, the larger factor.
        let (i, j) = (task % token_tiles, task / token_tiles);
        let own = panels * i / token_tiles..panels * (i + 1) / token_tiles;
        let rows = panel_start(tokens, panels, own.start)..panel_start(tokens, panels, own.end);
        let words = j * TILE_WORDS..((j + 1) * TILE_WORDS).min(v);
        // SAFETY: each task writes another tile.
        unsafe {
            if let Some((left, right)) = &packed {
                let c = logits.range(0..tokens * v).as_mut_ptr();
                let columns = j * TILE_PANELS..words.end.div_ceil(PANEL_COLS);
                block(left.panels(), own, *right, columns, c, v, Store::Overwrite);
            }
            for t in rows {
                let row = logits.range(t * v + words.start..t * v + words.end);
                if let Some(bias) = head.bias {
                    add_assign(row, &bias[words.clone()]);
                }
                if head.scale != 1.0 {
                    scale(row, head.scale);
                }
                let at = t * word_tiles + j;
                (largest.range(at..at + 1)[0], sum.range(at..at + 1)[0]) = largest_and_sum(row);
            }
        }
    });
    tiles
}

kernel! {
    /// The largest of `x`, and `Σ exp(x − largest)`.
    fn largest_and_sum[s: S](x: &[f32]) -> (f32, f32) {
        let vectors = x.chunks_exact(LANES);
        let mut rest = [f32::NEG_INFINITY; LANES];
        rest[..vectors.remainder().len()].copy_from_slice(vectors.remainder());
        let rest = s.load(&rest);
        let mut most = rest;
        for v in vectors.clone() {
            // In this order a NaN of `most` would be lost; the sum keeps it.
            most = s.max(most, s.load(v));
        }
        let largest = s.reduce_max(most);
        let shift = s.splat(largest);
        let mut sum = exp(s, s.sub(rest, shift));
        for v in vectors {
            sum = s.add(sum, exp(s, s.sub(s.load(v), shift)));
        }
        (largest, s.reduce_add(sum))
    }
}

/// Log-sum-exp and target log-probability of each token, from its tiles in order.
fn finish(tiles: &Tiles, logits: &[f32], v: usize, targets: &[u32], logp: &mut [f32], lse: &mut [f32]) {
    let (logp, lse) = (Shared::new(logp), Shared::new(lse));
    parallel_ranges(targets.len(), 16, |range| {
        for t in range {
            let (largest, sums) = (tiles.largest.row(t), tiles.sum.row(t));
            let most = largest.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
            let sum: f64 = largest.iter().zip(sums).map(|(m, sum)| f64::from(m - most).exp() * f64::from(*sum)).sum();
            // SAFETY: each token is another place.
            let (logp, lse) = unsafe { (&mut logp.range(t..t + 1)[0], &mut lse.range(t..t + 1)[0]) };
            *lse = (f64::from(most) + sum.ln()) as f32;
            *logp = if targets[t] == IGNORE { 0.0 } else { logits[t * v + targets[t] as usize] - *lse };
        }
    });
}

kernel! {
    /// `out = c·exp(x − lse)`
    fn softmax_times[s: S](x: &[f32], lse: f32, c: f32, out: &mut [f32]) {
        let (shift, c) = (s.splat(lse), s.splat(c));
        lanes!(s; read [x]; update []; write [out]; { [s.mul(c, exp(s, s.sub(x, shift)))] });
    }
}

/// A chunk of tokens on its way back.
struct Chunk<'a> {
    logits: &'a [f32],
    x: &'a Tensor,
    head: Head<'a>,
    targets: &'a [u32],
    lse: &'a [f32],
    dlogp: &'a [f32],
    z: f32,
}

/// The outputs of the backward pass, each task with ranges of its own.
struct Outputs {
    /// `[slabs, T, D]`
    dx: Shared<f32>,
    dweight: Option<Shared<f32>>,
    dbias: Option<Shared<f32>>,
}

impl Chunk<'_> {
    fn backward(&self, dweight: Option<&mut [f32]>, dbias: Option<&mut [f32]>, dx: &mut [f32]) {
        let (tokens, d, v) = (self.targets.len(), self.x.cols(), self.head.words());
        let x = dweight.is_some().then(|| pack_saved(self.x, self.head.weight.packed().operand()));
        let size = block_size(d);
        let blocks = v.div_ceil(size);
        let slabs = SLABS.min(blocks);
        let mut partial = Tensor::scratch(&[slabs, tokens, d]);
        let outputs =
            Outputs { dx: Shared::new(&mut partial), dweight: dweight.map(Shared::new), dbias: dbias.map(Shared::new) };
        parallel(slabs, |slab| {
            let own = blocks * slab / slabs..blocks * (slab + 1) / slabs;
            for (i, j) in own.enumerate() {
                let words = j * size..((j + 1) * size).min(v);
                let store = if i == 0 { Store::Overwrite } else { Store::Accumulate };
                for start in (0..tokens).step_by(size) {
                    let rows = start..(start + size).min(tokens);
                    // SAFETY: each slab has words and a `dx` of its own.
                    unsafe { self.block_backward(rows, words.clone(), slab, store, x.as_ref(), &outputs) }
                }
            }
        });
        sum_slabs(&partial, dx);
    }

    /// One block of tokens and words: its gradient, packed both ways, and its two products.
    ///
    /// # Safety
    /// No other task works on these words or this slab.
    unsafe fn block_backward(
        &self,
        rows: Range<usize>,
        words: Range<usize>,
        slab: usize,
        store: Store,
        x: Option<&Right>,
        outputs: &Outputs,
    ) {
        let (tokens, d, v, operand) =
            (self.targets.len(), self.x.cols(), self.head.words(), self.head.weight.packed().operand());
        let mut by_token = Left::scratch(rows.len(), words.len(), operand);
        let mut by_word = x.map(|_| Left::scratch(words.len(), rows.len(), operand));
        let mut strip = Buffer::<f32>::scratch(STRIP_TOKENS.min(rows.len()) * words.len());
        let panels = panel_count(rows.len());
        let panels_in_strip = STRIP_TOKENS / PANEL_ROWS;
        for first in (0..panels).step_by(panels_in_strip) {
            let own = first..(first + panels_in_strip).min(panels);
            let at = |p: usize| panel_start(rows.len(), panels, p);
            let local = at(own.start)..at(own.end);
            let dl = &mut strip[..local.len() * words.len()];
            for (t, row) in local.clone().zip(dl.chunks_exact_mut(words.len())) {
                self.logit_gradient(rows.start + t, &words, v, row);
            }
            for p in own {
                let (form, panel) = (by_token.form(), at(p)..at(p + 1));
                let row = form.words(words.len());
                let out = &mut by_token.data_mut()[panel.start * row..panel.end * row];
                let source = Source::new(dl, words.len());
                pack_rows(
                    source,
                    panel.start - local.start..panel.end - local.start,
                    words.len(),
                    form,
                    panel.len(),
                    out,
                );
            }
            if let Some(by_word) = &mut by_word {
                pack_strip(dl, local.clone(), words.len(), rows.len(), by_word);
            }
            if let Some(dbias) = &outputs.dbias {
                // SAFETY: by the caller's promise.
                let dbias = unsafe { dbias.range(words.clone()) };
                dl.chunks_exact(words.len()).for_each(|row| add_assign(dbias, row));
            }
        }
        let from = (slab * tokens + rows.start) * d;
        // SAFETY: by the caller's promise.
        let dx = unsafe { outputs.dx.range(from..from + rows.len() * d) };
        gemm_here(by_token.panels(), self.head.weight.packed().backward().group(0).span(words.clone()), dx, store);
        if let (Some(by_word), Some(x), Some(dweight)) = (&by_word, x, &outputs.dweight) {
            // SAFETY: by the caller's promise.
            let dweight = unsafe { dweight.range(words.start * d..words.end * d) };
            gemm_here(by_word.panels(), x.group(0).span(rows), dweight, Store::Accumulate);
        }
    }

    /// `∂L/∂l_tv` of the words `words` of token `t`.
    fn logit_gradient(&self, t: usize, words: &Range<usize>, v: usize, out: &mut [f32]) {
        if self.targets[t] == IGNORE {
            out.fill(0.0);
            return;
        }
        let g = self.dlogp[t] * self.head.scale;
        let h = self.z * self.lse[t] * self.head.scale;
        softmax_times(&self.logits[t * v + words.start..t * v + words.end], self.lse[t], h - g, out);
        let target = self.targets[t] as usize;
        if words.contains(&target) {
            out[target - words.start] += g;
        }
    }
}

/// Packs a strip of tokens down the columns: its part of the contraction of `by_word`, which runs over `tokens`.
fn pack_strip(dl: &[f32], local: Range<usize>, words: usize, tokens: usize, by_word: &mut Left) {
    let form = by_word.form();
    let (row, first, some) = (form.words(tokens), form.words(local.start), form.words(local.len()));
    let count = panel_count(words);
    for p in 0..count {
        let panel = panel_start(words, count, p)..panel_start(words, count, p + 1);
        let at = panel.start * row + first * panel.len();
        let out = &mut by_word.data_mut()[at..at + some * panel.len()];
        pack_columns(Source::new(dl, words), panel.clone(), local.len(), form, panel.len(), None, out);
    }
}

/// `dx = Σ_slabs`, in order.
fn sum_slabs(partial: &Tensor, dx: &mut [f32]) {
    let len = dx.len();
    let out = Shared::new(dx);
    parallel_ranges(len, 1 << 14, |range| {
        // SAFETY: the ranges of a parallel loop are disjoint.
        let out = unsafe { out.range(range.clone()) };
        out.copy_from_slice(partial.row(0).get(range.clone()).unwrap_or(&[]));
        for slab in 1..partial.rows() {
            add_assign(out, &partial.row(slab)[range.clone()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Operand;
    use crate::ops::linear::PackedWeight;
    use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

    /// `Σ_t g_t·logp_t + z/2·lse_t²` over the tokens that have a target.
    fn naive(x: &[f64], w: &[f64], b: &[f64], c: f64, targets: &[u32], g: &[f64], z: f64) -> f64 {
        let (v, d) = (b.len(), w.len() / b.len());
        let mut loss = 0.0;
        for (t, target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
            let l: Vec<f64> =
                (0..v).map(|i| c * (b[i] + (0..d).map(|j| x[t * d + j] * w[i * d + j]).sum::<f64>())).collect();
            let lse = l.iter().map(|x| x.exp()).sum::<f64>().ln();
            loss += g[t] * (l[*target as usize] - lse) + z / 2.0 * lse * lse;
        }
        loss
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (t, d, v, c) in [(1, 1, 2, 1.0), (5, 6, 37, 0.5), (61, 4, 33, 1.0)] {
            let (x, w, b) = (numbers(1, t * d), numbers(2, v * d), numbers(3, v));
            let g = numbers(4, t);
            let z = 0.2f32;
            let mut targets: Vec<u32> = (0..t).map(|i| (i * 7 % v) as u32).collect();
            if t > 3 {
                targets[2] = IGNORE;
            }
            let got = on_every_isa(|| {
                let mut weight = PackedWeight::new(1, v, d, Operand::F32, true);
                weight.pack(&w);
                let head = Head { weight: Weight::Packed(&weight), bias: Some(&b), scale: c };
                let (mut dw, mut db) = (vec![0.0; v * d], vec![0.0; v]);
                let x = Tensor::new(&x, &[t, d]);
                let gradients = Gradients { dlogp_t: &g, z, dweight: Some(&mut dw), dbias: Some(&mut db) };
                let (log_probs, dx) = forward_backward(&x, head, &targets, gradients);
                assert_eq!(forward(&x, head, &targets).logp_t[..], log_probs.logp_t[..]);
                [&log_probs.logp_t[..], &dx[..], &dw, &db].concat()
            });
            let (x, w, b, g) = (wide(&x), wide(&w), wide(&b), wide(&g));
            let (c, z) = (f64::from(c), f64::from(z));
            let loss = |x: &[f64], w: &[f64], b: &[f64]| naive(x, w, b, c, &targets, &g, z);
            for (at, target) in targets.iter().enumerate() {
                let one = |i| if i == at { 1.0 } else { 0.0 };
                let only: Vec<f64> = (0..t).map(one).collect();
                let expected = naive(&x, &w, &b, c, &targets, &only, 0.0);
                assert!((f64::from(got[at]) - expected).abs() < 2e-6 * expected.abs().max(1.0), "token {at} {target}");
            }
            let mut rest = &got[t..];
            for (what, expected) in [
                ("dx", finite_differences(&x, |x| loss(x, &w, &b))),
                ("dW", finite_differences(&w, |w| loss(&x, w, &b))),
                ("db", finite_differences(&b, |b| loss(&x, &w, b))),
            ] {
                let error = relative_error(&rest[..expected.len()], &expected);
                assert!(error < 1e-6, "{what} of {t} tokens, {v} words: {error}");
                rest = &rest[expected.len()..];
            }
        }
    }

    #[test]
    fn chunks_and_batches_do_not_show() {
        // More than one chunk.
        let (t, d, v) = (260, 2, 150_001);
        assert!(t * v * 4 > CHUNK_BYTES);
        for operand in [Operand::F32, Operand::Bf16] {
            let (x, w) = (numbers(1, t * d), numbers(2, v * d));
            let targets: Vec<u32> = (0..t).map(|i| (i * 997 % v) as u32).collect();
            let mut weight = PackedWeight::new(1, v, d, operand, true);
            weight.pack(&w);
            let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0 };
            let g = vec![-0.01; t];
            let run = |range: Range<usize>| {
                let mut dw = vec![0.0; v * d];
                let x = Tensor::new(&x[range.start * d..range.end * d], &[range.len(), d]);
                let gradients = Gradients { dlogp_t: &g[range.clone()], z: 0.0, dweight: Some(&mut dw), dbias: None };
                let (log_probs, dx) = forward_backward(&x, head, &targets[range], gradients);
                (log_probs.logp_t.to_vec(), dx.to_vec(), dw)
            };
            let (logp, dx, dw) = run(0..t);
            for range in [0..1, 7..40, 150..260] {
                let (some_logp, some_dx, _) = run(range.clone());
                assert_eq!(some_logp, logp[range.clone()]);
                assert_eq!(some_dx, dx[range.start * d..range.end * d]);
            }
            // Σ_v dW_vd = Σ_t x_td·Σ_v dl_tv = 0, since the gradients of a row's logits sum to zero.
            let sum: f64 = dw.iter().map(|x| f64::from(*x)).sum();
            let size: f64 = dw.iter().map(|x| f64::from(x.abs())).sum();
            assert!(sum.abs() < 2e-3 * size, "{sum} of {size}");
        }
    }

    #[test]
    fn a_wide_model_and_several_blocks_match_the_formula() {
        let (t, d, v) = (470, 516, 910);
        assert!(d > 512 && t > block_size(d) && v > 2 * block_size(d));
        let (x, w) = (numbers(1, t * d), numbers(2, v * d));
        let (x, w): (Vec<f32>, Vec<f32>) = (x.iter().map(|x| x / 8.0).collect(), w.iter().map(|w| w / 8.0).collect());
        let targets: Vec<u32> = (0..t).map(|i| (i * 31 % v) as u32).collect();
        let g = numbers(3, t);
        let mut weight = PackedWeight::new(1, v, d, Operand::F32, true);
        weight.pack(&w);
        let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0 };
        let mut dw = vec![0.0; v * d];
        let gradients = Gradients { dlogp_t: &g, z: 0.0, dweight: Some(&mut dw), dbias: None };
        let (_, dx) = forward_backward(&Tensor::new(&x, &[t, d]), head, &targets, gradients);
        let (x, w) = (wide(&x), wide(&w));
        let (mut expected_dx, mut expected_dw) = (vec![0.0; t * d], vec![0.0; v * d]);
        for t in 0..t {
            let x = &x[t * d..(t + 1) * d];
            let l: Vec<f64> = w.chunks_exact(d).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect();
            let sum: f64 = l.iter().map(|l| l.exp()).sum();
            for (i, l) in l.iter().enumerate() {
                let hit = f64::from(u8::from(targets[t] as usize == i));
                let dl = f64::from(g[t]) * (hit - l.exp() / sum);
                for j in 0..d {
                    expected_dx[t * d + j] += dl * w[i * d + j];
                    expected_dw[i * d + j] += dl * x[j];
                }
            }
        }
        assert!(relative_error(&dx, &expected_dx) < 1e-6);
        assert!(relative_error(&dw, &expected_dw) < 1e-6);
    }

    #[test]
    fn nothing_in_nothing_out() {
        let mut weight = PackedWeight::new(1, 5, 3, Operand::F32, true);
        weight.pack(&numbers(1, 15));
        let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0 };
        assert!(forward(&Tensor::zeros(&[0, 3]), head, &[]).logp_t.is_empty());
        let nan = forward(&Tensor::new(&[f32::NAN, 0.0, 0.0], &[1, 3]), head, &[2]);
        assert!(nan.logp_t[0].is_nan());
    }
}
