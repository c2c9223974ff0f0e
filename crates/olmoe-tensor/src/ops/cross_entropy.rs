//! Log-probabilities of given tokens, fused with the output layer (the head), and their gradient.
//!
//! Shapes: `x [T, D]` (after the final norm), head `W [V, D]`, logits `l = c·(x·Wᵀ + b)` with a constant `c`, `[T, V]`;
//! `logp_t = l_t[target_t] − lse_t`, `lse_t = log Σ_v exp l_tv`. Given `g_t = ∂L/∂logp_t` and `h_t = ∂L/∂lse_t` beside
//! it, `∂L/∂l_tv = g_t·[v = target_t] + (h_t − g_t)·exp(l_tv − lse_t)`. Cross-entropy over `N` targets is `g_t = −1/N`.
//!
//! Tokens without a target cost nothing: the rows of the other tokens are gathered before the head.
//!
//! The logits exist only for a chunk of tokens at a time ([`CHUNK_BYTES`]). The forward pass computes them piece by
//! piece, and for each piece the largest logit and the sum of exponentials while the piece is in the cache. The
//! backward pass computes the gradient of the logits in blocks of tokens and words, packs each block as a factor of `dx
//! = dl·W` and of `dW += dlᵀ·x`, and multiplies at once. So the logits are written and read once, and their gradient
//! stays in the cache.

use std::ops::Range;

use crate::elementary::{exp as exp64, ln};
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

/// Most bytes of logits in a chunk. Larger chunks read and write `dW` less often, smaller ones take less memory; with
/// this size that traffic takes a few percent of the time of the products.
pub const CHUNK_BYTES: usize = 128 << 20;

/// Tokens and right panels of words in a piece of the forward pass: 96 × 896 logits are 336 KiB, in the second-level
/// cache.
const PIECE_TOKENS: usize = 8 * PANEL_ROWS;
const PIECE_PANELS: usize = 28;
const PIECE_WORDS: usize = PIECE_PANELS * PANEL_COLS;

/// Tokens, and words of the vocabulary, in a block of the backward pass of a model of width `d`. The rows of `dW` of
/// these words share the second-level cache with the factors of the block. Where they do not fit, larger blocks read
/// and write them less often. The sums of `dx` are divided at these blocks, so their size affects the bits of the
/// result.
fn block_size(d: usize) -> usize {
    if d <= 512 { 224 } else { 448 }
}

/// Tokens of a band, whose gradients of the logits are computed at once: 48 × 224 numbers are 42 KiB.
const BAND_TOKENS: usize = 4 * PANEL_ROWS;
/// Parts of the vocabulary that each sum into a `dx` of their own; these are then added in order. The number is fixed,
/// so that the sums do not depend on the number of threads.
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

/// The results of the forward pass for each token.
#[derive(Clone, Debug)]
pub struct LogProbs {
    /// Natural log-probability of the target, `[T]`; 0 where there is no target.
    pub logp_t: Buffer<f32>,
    /// `log Σ_v exp l_tv`, `[T]`; 0 where there is no target.
    pub lse_t: Buffer<f32>,
}

/// The gradients of the objective by the log-probabilities, and where the gradients of the head are accumulated.
pub struct HeadGradients<'a> {
    /// `∂L/∂logp_t`, `[T]`.
    pub dlogp_t: &'a [f32],
    /// The coefficient of a z-loss on the logits, which adds `∂L/∂lse_t = z · lse_t`; 0 for none.
    pub z: f32,
    /// `[V, D]`, accumulated; `None` for a frozen head.
    pub dweight: Option<&'a mut [f32]>,
    /// `[V]`, accumulated; `None` for a head that is frozen or has no bias.
    pub dbias: Option<&'a mut [f32]>,
    /// Whether the gradient of `x` is computed.
    pub input: bool,
}

impl Head<'_> {
    fn words(&self) -> usize {
        self.weight.strips().out
    }
}

/// All logits `[T, V]`: for generation, and for tests.
pub fn logits(x_td: &Tensor, head: Head<'_>) -> Tensor {
    let mut logits_tv = Tensor::scratch(&[x_td.rows(), head.words()]);
    forward_pieces(x_td, head, &mut logits_tv, false);
    logits_tv
}

/// Log-probabilities of `targets [T]` without gradients.
pub fn forward(x_td: &Tensor, head: Head<'_>, targets: &[u32]) -> LogProbs {
    assert_eq!(targets.len(), x_td.rows(), "a target a token");
    let rows = selected(targets, |t| targets[t] != IGNORE);
    let found = forward_at(x_td, &rows, head, &gather(targets, &rows));
    scatter(&found, &rows, targets)
}

/// Log-probabilities of `targets [R]` after the tokens `rows [R]` of `x`, without gradients. Nothing is computed for
/// the other tokens. A row may occur more than once.
///
/// # Panics
/// When a row is not below T, a target is not below V, or `rows` and `targets` differ in length.
pub fn forward_at(x_td: &Tensor, rows: &[u32], head: Head<'_>, targets: &[u32]) -> LogProbs {
    run(x_td, rows, head, targets, None).0
}

/// Log-probabilities of `targets [T]` and, in the same pass, the gradients; returns `dx [T, D]` if `into.input` is set.
pub fn forward_backward(
    x_td: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    gradients: HeadGradients<'_>,
) -> (LogProbs, Option<Tensor>) {
    assert_eq!(targets.len(), x_td.rows(), "a target a token");
    // Tokens are left out in pairs: bf16 factors are summed two at a time, and those two stay together. So the
    // gradients have the bits that they would have with the ignored tokens.
    let rows = selected(targets, |t| targets[t] != IGNORE || targets.get(t ^ 1).is_some_and(|other| *other != IGNORE));
    let dlogp_r = gather(gradients.dlogp_t, &rows);
    let own = HeadGradients { dlogp_t: &dlogp_r, ..gradients };
    let (found, dx_td) = run(x_td, &rows, head, &gather(targets, &rows), Some(own));
    (scatter(&found, &rows, targets), dx_td)
}

/// The tokens that take part.
fn selected(targets: &[u32], takes_part: impl Fn(usize) -> bool) -> Buffer<u32> {
    let mut rows = Buffer::scratch(targets.len());
    let mut count = 0;
    for t in (0..targets.len()).filter(|t| takes_part(*t)) {
        rows[count] = t as u32;
        count += 1;
    }
    rows.truncate(count);
    rows
}

fn gather<T: bytemuck::Pod>(all: &[T], rows: &[u32]) -> Buffer<T> {
    let mut some = Buffer::scratch(rows.len());
    some.iter_mut().zip(rows).for_each(|(x, row)| *x = all[*row as usize]);
    some
}

/// Scatters the results of some tokens to their places among all tokens.
fn scatter(found: &LogProbs, rows: &[u32], targets: &[u32]) -> LogProbs {
    let mut all = LogProbs { logp_t: Buffer::zeroed(targets.len()), lse_t: Buffer::zeroed(targets.len()) };
    for (i, t) in rows.iter().map(|row| *row as usize).enumerate() {
        if targets[t] != IGNORE {
            (all.logp_t[t], all.lse_t[t]) = (found.logp_t[i], found.lse_t[i]);
        }
    }
    all
}

/// The pass over some rows of `x`, each with a target, a result and a gradient by its log-probability; `dx` has one row
/// for every row of `x`.
fn run(
    x_td: &Tensor,
    rows: &[u32],
    head: Head<'_>,
    targets: &[u32],
    mut gradients: Option<HeadGradients<'_>>,
) -> (LogProbs, Option<Tensor>) {
    let (tokens, d, v) = (rows.len(), x_td.cols(), head.words());
    assert_eq!(targets.len(), tokens, "a target a token");
    let bad = targets.iter().find(|target| **target != IGNORE && **target as usize >= v);
    assert!(bad.is_none(), "target {bad:?} of {v} words");
    let mut out = LogProbs { logp_t: Buffer::scratch(tokens), lse_t: Buffer::scratch(tokens) };
    let wanted = gradients.as_ref().is_some_and(|gradients| gradients.input);
    let mut dx_td = wanted.then(|| match tokens == x_td.rows() {
        true => Tensor::scratch(x_td.shape()),
        false => Tensor::zeros(x_td.shape()),
    });
    // Even chunks, none larger than `CHUNK_BYTES`.
    let most = (CHUNK_BYTES / size_of::<f32>() / v.max(1)).max(block_size(d));
    let chunk = tokens.div_ceil(tokens.div_ceil(most).max(1)).next_multiple_of(2);
    let mut logits = Tensor::scratch(&[chunk.min(tokens), v]);
    for start in (0..tokens).step_by(chunk.max(1)) {
        let some = start..(start + chunk).min(tokens);
        let rows = &rows[some.clone()];
        let mut x = Tensor::scratch(&[rows.len(), d]);
        rows.iter().enumerate().for_each(|(i, row)| x.row_mut(i).copy_from_slice(x_td.row(*row as usize)));
        let logits = &mut logits[..rows.len() * v];
        let pieces = forward_pieces(&x, head, logits, true);
        let targets = &targets[some.clone()];
        finish(&pieces, logits, v, targets, &mut out.logp_t[some.clone()], &mut out.lse_t[some.clone()]);
        if let Some(gradients) = &mut gradients {
            let (lse, dlogp) = (&out.lse_t[some.clone()], &gradients.dlogp_t[some]);
            let chunk = Chunk { logits, x: &x, head, rows, targets, lse, dlogp, z: gradients.z };
            let (dweight, dbias) = (gradients.dweight.as_deref_mut(), gradients.dbias.as_deref_mut());
            chunk.backward(dweight, dbias, dx_td.as_mut());
        }
    }
    (out, dx_td)
}

/// The largest logit and the sum of exponentials against it of each token and piece of words, `[T, pieces]` each.
struct PieceStatistics {
    largest: Tensor,
    sum: Tensor,
}

/// Logits `[T, V]` and, with `statistics`, those of their pieces.
fn forward_pieces(x_td: &Tensor, head: Head<'_>, logits: &mut [f32], statistics: bool) -> PieceStatistics {
    let (tokens, v) = (x_td.rows(), head.words());
    let packed = match head.weight {
        Weight::Packed(weight) => Some((pack_input(x_td, weight.operand()), weight.forward().group(0))),
        Weight::Quantized(weight, _) => {
            product(&QuantizedInput::pack(x_td, x_td.cols(), weight.format()), weight, logits, Store::Overwrite);
            None
        }
    };
    let panels = panel_count(tokens);
    let (token_pieces, word_pieces) = (tokens.div_ceil(PIECE_TOKENS), v.div_ceil(PIECE_WORDS));
    let room = || Tensor::scratch(&[if statistics { tokens } else { 0 }, word_pieces]);
    let mut pieces = PieceStatistics { largest: room(), sum: room() };
    let (largest, sum) = (Shared::new(&mut pieces.largest), Shared::new(&mut pieces.sum));
    let logits = Shared::new(logits);
    parallel(token_pieces * word_pieces, |task| {
        // Neighbouring tasks share the words, whose factor is the larger one.
        let (i, j) = (task % token_pieces, task / token_pieces);
        let own = panels * i / token_pieces..panels * (i + 1) / token_pieces;
        let rows = panel_start(tokens, panels, own.start)..panel_start(tokens, panels, own.end);
        let words = j * PIECE_WORDS..((j + 1) * PIECE_WORDS).min(v);
        // SAFETY: each task writes another piece.
        unsafe {
            if let Some((left, right)) = &packed {
                let c = logits.range(0..tokens * v).as_mut_ptr();
                let columns = j * PIECE_PANELS..words.end.div_ceil(PANEL_COLS);
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
                if statistics {
                    let at = t * word_pieces + j;
                    (largest.range(at..at + 1)[0], sum.range(at..at + 1)[0]) = largest_and_sum(row);
                }
            }
        }
    });
    pieces
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
            // In this order a NaN in `most` would be lost; the sum keeps it.
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

/// Log-sum-exp and target log-probability of each token, from its pieces in order.
fn finish(pieces: &PieceStatistics, logits: &[f32], v: usize, targets: &[u32], logp: &mut [f32], lse: &mut [f32]) {
    let (logp, lse) = (Shared::new(logp), Shared::new(lse));
    parallel_ranges(targets.len(), 16, |range| {
        for t in range {
            let (largest, sums) = (pieces.largest.row(t), pieces.sum.row(t));
            let most = largest.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
            let sum: f64 = largest.iter().zip(sums).map(|(m, sum)| exp64(f64::from(m - most)) * f64::from(*sum)).sum();
            // SAFETY: each token is another place.
            let (logp, lse) = unsafe { (&mut logp.range(t..t + 1)[0], &mut lse.range(t..t + 1)[0]) };
            *lse = (f64::from(most) + ln(sum)) as f32;
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

/// A chunk of tokens in the backward pass.
struct Chunk<'a> {
    logits: &'a [f32],
    x: &'a Tensor,
    head: Head<'a>,
    /// The rows of `dx` of these tokens.
    rows: &'a [u32],
    targets: &'a [u32],
    lse: &'a [f32],
    dlogp: &'a [f32],
    z: f32,
}

/// The outputs of the backward pass; each task writes ranges of its own.
struct Outputs<'a> {
    /// `[slabs, T, D]`
    dx: Option<Shared<'a, f32>>,
    dweight: Option<Shared<'a, f32>>,
    dbias: Option<Shared<'a, f32>>,
}

impl Chunk<'_> {
    fn backward(&self, dweight: Option<&mut [f32]>, dbias: Option<&mut [f32]>, dx_td: Option<&mut Tensor>) {
        if dweight.is_none() && dbias.is_none() && dx_td.is_none() {
            return;
        }
        let (tokens, d, v) = (self.targets.len(), self.x.cols(), self.head.words());
        let x = dweight.is_some().then(|| pack_saved(self.x, self.head.weight.operand()));
        let size = block_size(d);
        let blocks = v.div_ceil(size);
        let slabs = SLABS.min(blocks);
        let mut partial = dx_td.is_some().then(|| Tensor::scratch(&[slabs, tokens, d]));
        let outputs = Outputs {
            dx: partial.as_deref_mut().map(Shared::new),
            dweight: dweight.map(Shared::new),
            dbias: dbias.map(Shared::new),
        };
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
        if let (Some(partial), Some(dx_td)) = (&partial, dx_td) {
            sum_slabs(partial, self.rows, dx_td);
        }
    }

    /// One block of tokens and words: the gradient of its logits, packed as both factors, and its two products.
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
            (self.targets.len(), self.x.cols(), self.head.words(), self.head.weight.operand());
        let mut by_token = outputs.dx.as_ref().map(|_| Left::scratch(rows.len(), words.len(), operand));
        let mut by_word = x.map(|_| Left::scratch(words.len(), rows.len(), operand));
        let mut band = Buffer::<f32>::scratch(BAND_TOKENS.min(rows.len()) * words.len());
        let panels = panel_count(rows.len());
        let panels_in_band = BAND_TOKENS / PANEL_ROWS;
        for first in (0..panels).step_by(panels_in_band) {
            let own = first..(first + panels_in_band).min(panels);
            let at = |p: usize| panel_start(rows.len(), panels, p);
            let local = at(own.start)..at(own.end);
            let dl = &mut band[..local.len() * words.len()];
            for (t, row) in local.clone().zip(dl.chunks_exact_mut(words.len())) {
                self.logit_gradient(rows.start + t, &words, v, row);
            }
            if let Some(by_token) = &mut by_token {
                for p in own {
                    let (form, panel) = (by_token.form(), at(p)..at(p + 1));
                    let row = form.words(words.len());
                    let out = &mut by_token.data_mut()[panel.start * row..panel.end * row];
                    let source = Source::new(dl, words.len());
                    let own = panel.start - local.start..panel.end - local.start;
                    pack_rows(source, own, words.len(), form, panel.len(), out);
                }
            }
            if let Some(by_word) = &mut by_word {
                pack_band(dl, local.clone(), words.len(), rows.len(), by_word);
            }
            if let Some(dbias) = &outputs.dbias {
                // SAFETY: by the caller's promise.
                let dbias = unsafe { dbias.range(words.clone()) };
                dl.chunks_exact(words.len()).for_each(|row| add_assign(dbias, row));
            }
        }
        if let (Some(by_token), Some(dx)) = (&by_token, &outputs.dx) {
            let from = (slab * tokens + rows.start) * d;
            // SAFETY: by the caller's promise.
            let dx = unsafe { dx.range(from..from + rows.len() * d) };
            self.head.weight.backward_here(by_token.panels(), 0, words.clone(), dx, store);
        }
        if let (Some(by_word), Some(x), Some(dweight)) = (&by_word, x, &outputs.dweight) {
            // SAFETY: by the caller's promise.
            let dweight = unsafe { dweight.range(words.start * d..words.end * d) };
            gemm_here(by_word.panels(), x.group(0).section(rows), dweight, Store::Accumulate);
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

/// Packs a band of tokens down the columns as its section of `by_word`, whose contraction runs over `tokens`.
fn pack_band(dl: &[f32], local: Range<usize>, words: usize, tokens: usize, by_word: &mut Left) {
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

/// `dx = Σ_slabs`, in order, for the rows of the tokens.
fn sum_slabs(partial: &Tensor, rows: &[u32], dx_td: &mut Tensor) {
    let d = dx_td.cols();
    let out = Shared::new(dx_td);
    parallel_ranges(rows.len(), ((1 << 14) / d.max(1)).max(1), |range| {
        for i in range {
            let row = rows[i] as usize;
            // SAFETY: each token is another row.
            let out = unsafe { out.range(row * d..(row + 1) * d) };
            let slab = |slab: usize| &partial.row(slab)[i * d..(i + 1) * d];
            out.copy_from_slice(slab(0));
            (1..partial.rows()).for_each(|at| add_assign(out, slab(at)));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Operand;
    use crate::ops::linear::PackedWeight;
    use crate::quant::product::QuantizedWeight;
    use crate::quant::{BlockFormat, dequantize, quantize};
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
                let gradients =
                    HeadGradients { dlogp_t: &g, z, dweight: Some(&mut dw), dbias: Some(&mut db), input: true };
                let (log_probs, dx) = forward_backward(&x, head, &targets, gradients);
                assert_eq!(forward(&x, head, &targets).logp_t[..], log_probs.logp_t[..]);
                let dx = dx.expect("asked for");
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
                let gradients = HeadGradients {
                    dlogp_t: &g[range.clone()],
                    z: 0.0,
                    dweight: Some(&mut dw),
                    dbias: None,
                    input: true,
                };
                let (log_probs, dx) = forward_backward(&x, head, &targets[range], gradients);
                (log_probs.logp_t.to_vec(), dx.expect("asked for").to_vec(), dw)
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
        let gradients = HeadGradients { dlogp_t: &g, z: 0.0, dweight: Some(&mut dw), dbias: None, input: true };
        let (_, dx) = forward_backward(&Tensor::new(&x, &[t, d]), head, &targets, gradients);
        let dx = dx.expect("asked for");
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

    /// In fine-tuning on instructions or on questions, most tokens have no target.
    #[test]
    fn ignored_tokens_leave_no_trace() {
        let (t, d, v) = (61, 40, 230);
        let (x, w, b, g) = (numbers(1, t * d), numbers(2, v * d), numbers(3, v), numbers(4, t));
        let x = Tensor::new(&x, &[t, d]);
        let target = |i: usize| if i % 7 < 3 || i > 40 && i != 60 { IGNORE } else { (i * 5 % v) as u32 };
        let targets: Vec<u32> = (0..t).map(target).collect();
        for operand in [Operand::F32, Operand::Bf16] {
            let mut weight = PackedWeight::new(1, v, d, operand, true);
            weight.pack(&w);
            let head = Head { weight: Weight::Packed(&weight), bias: Some(&b), scale: 0.5 };
            // With a target and without a gradient by it, a token takes part and adds zeros.
            let all: Vec<u32> = targets.iter().map(|t| if *t == IGNORE { 0 } else { *t }).collect();
            let zeroed: Vec<f32> = targets.iter().zip(&g).map(|(t, g)| if *t == IGNORE { 0.0 } else { *g }).collect();
            let run = |targets: &[u32], g: &[f32]| {
                let (mut dw, mut db) = (vec![0.0; v * d], vec![0.0; v]);
                let into =
                    HeadGradients { dlogp_t: g, z: 0.0, dweight: Some(&mut dw), dbias: Some(&mut db), input: true };
                let (log_probs, dx) = forward_backward(&x, head, targets, into);
                (log_probs, [&dx.expect("asked for")[..], &dw, &db].concat())
            };
            let (some, gradients) = run(&targets, &g);
            let (every, expected) = run(&all, &zeroed);
            assert!(gradients == expected, "{operand:?}");
            let rows: Vec<u32> = (0..t as u32).filter(|t| targets[*t as usize] != IGNORE).collect();
            let own: Vec<u32> = rows.iter().map(|t| targets[*t as usize]).collect();
            let at = forward_at(&x, &rows, head, &own);
            for (i, t) in rows.iter().map(|t| *t as usize).enumerate() {
                for found in [&some, &forward(&x, head, &targets)] {
                    assert_eq!((found.logp_t[t], found.lse_t[t]), (every.logp_t[t], every.lse_t[t]));
                }
                assert_eq!((at.logp_t[i], at.lse_t[i]), (every.logp_t[t], every.lse_t[t]));
            }
            assert!((0..t).all(|t| targets[t] != IGNORE || (some.logp_t[t], some.lse_t[t]) == (0.0, 0.0)));

            // Leaving out the gradient of a frozen head changes no other result.
            let mut dw = vec![0.0; v * d];
            let into = HeadGradients { dlogp_t: &g, z: 0.0, dweight: Some(&mut dw), dbias: None, input: false };
            assert!(forward_backward(&x, head, &targets, into).1.is_none());
            assert_eq!(dw, expected[t * d..t * d + v * d]);
            let into = HeadGradients { dlogp_t: &g, z: 0.0, dweight: None, dbias: None, input: true };
            let (_, dx) = forward_backward(&x, head, &targets, into);
            assert_eq!(dx.expect("asked for")[..], expected[..t * d]);
        }
    }

    /// More words than a slab has in a block, and the last band not full.
    #[test]
    fn the_way_back_through_quantised_words_is_that_of_their_numbers() {
        let (t, d, v) = (9, 64, 1000);
        let mut w = numbers(2, v * d);
        let format = BlockFormat::Q5_1;
        let mut blocks = vec![0; format.bytes(v * d).expect("whole blocks")];
        quantize(format, &w, &mut blocks);
        dequantize(format, &blocks, &mut w);
        let mut quantized = QuantizedWeight::new(format, 1, v, d);
        quantized.pack(0..quantized.strips().count(), &blocks);
        let (x, g) = (Tensor::new(&numbers(1, t * d), &[t, d]), numbers(4, t));
        let targets: Vec<u32> = (0..t).map(|i| (i * 77 % v) as u32).collect();
        let mut packed = PackedWeight::new(1, v, d, Operand::F32, true);
        packed.pack(&w);
        let [ours, dense] = [Weight::Quantized(&quantized, Operand::F32), Weight::Packed(&packed)].map(|weight| {
            let head = Head { weight, bias: None, scale: 1.0 };
            let into = HeadGradients { dlogp_t: &g, z: 0.0, dweight: None, dbias: None, input: true };
            forward_backward(&x, head, &targets, into).1.expect("asked for")
        });
        // The logits differ by the rounding of the activations to eight bits.
        let error = relative_error(&ours, &wide(&dense));
        assert!((1e-6..3e-2).contains(&error), "{error}");
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
