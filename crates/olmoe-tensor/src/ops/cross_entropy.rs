//! Log-probabilities of given tokens, fused with the head, and their gradient.
//!
//! Shapes: `x [T, D]` (after the final norm), head `W [V, D]`, logits `l = c·(x·Wᵀ + b)` with a constant `c`, `[T, V]`;
//! `logp_t = l_t[target_t] − lse_t`, `lse_t = log Σ_v exp l_tv`. Given `g_t = ∂L/∂logp_t` and `h_t = ∂L/∂lse_t` beside it,
//! `∂L/∂l_tv = g_t·[v = target_t] + (h_t − g_t)·exp(l_tv − lse_t)`. Cross-entropy over `N` targets is `g_t = −1/N`.
//!
//! The logits exist only for a chunk of tokens at a time ([`CHUNK_BYTES`]); where a gradient is wanted, the same pass
//! turns them block by block, still in the cache, into the packed factors of `dx = dl·W` and `dW += dlᵀ·x`.

use std::ops::Range;

use crate::gemm::{
    Left, Operand, PANEL_ROWS, Source, Store, gemm_panels, pack_columns, pack_rows, panel_count, panel_start,
};
use crate::memory::Buffer;
use crate::ops::linear::{PackedWeight, pack_saved};
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

/// The target of a token that has none: its log-probability is 0 and it adds no gradient.
pub const IGNORE: u32 = u32::MAX;

/// Bytes of logits in a chunk. Larger chunks read and write `dW` less often, smaller ones hold less memory; at this size
/// that traffic is a few percent of the products' time.
pub const CHUNK_BYTES: usize = 96 << 20;

/// Rows and panels of columns in a block of the gradient: 28 × 896 numbers are 98 KiB, at home in the second-level cache.
const BLOCK_ROWS: usize = 2 * PANEL_ROWS;
const BLOCK_PANELS: usize = 64;

/// The output layer: `c·(x·Wᵀ + b)`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, D]`
    pub weight: &'a PackedWeight,
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

/// All logits `[T, V]`: for generation, and for tests.
pub fn logits(x_td: &Tensor, head: Head<'_>) -> Tensor {
    let mut logits_tv = Tensor::scratch(&[x_td.rows(), head.weight.forward().rows()]);
    logits_into(x_td, 0..x_td.rows(), head, &mut logits_tv);
    logits_tv
}

fn logits_into(x_td: &Tensor, rows: Range<usize>, head: Head<'_>, out: &mut [f32]) {
    let (d, v) = (x_td.cols(), head.weight.forward().rows());
    let left = Left::from_rows(Source::new(x_td.row_range(rows.clone()), d), rows.len(), d, head.weight.operand());
    gemm_panels(left.panels(), head.weight.forward().group(0), out, Store::Overwrite);
    if head.bias.is_some() || head.scale != 1.0 {
        let shared = Shared::new(out);
        parallel_ranges(rows.len(), 1, |some| {
            for t in some {
                // SAFETY: each token is another row.
                let row = unsafe { shared.range(t * v..(t + 1) * v) };
                if let Some(bias) = head.bias {
                    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
                row.iter_mut().for_each(|x| *x *= head.scale);
            }
        });
    }
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
    let (tokens, d, v) = (x_td.rows(), x_td.cols(), head.weight.forward().rows());
    assert_eq!(targets.len(), tokens, "a target a token");
    let mut out = LogProbs { logp_t: Buffer::scratch(tokens), lse_t: Buffer::scratch(tokens) };
    let mut dx_td = gradients.as_ref().map(|_| Tensor::scratch(&[tokens, d]));
    let chunk = (CHUNK_BYTES / 4 / v.max(1)).clamp(2 * BLOCK_ROWS, 4096) / BLOCK_ROWS * BLOCK_ROWS;
    let mut logits = Tensor::scratch(&[chunk.min(tokens), v]);
    for start in (0..tokens).step_by(chunk) {
        let rows = start..(start + chunk).min(tokens);
        let logits = &mut logits[..rows.len() * v];
        logits_into(x_td, rows.clone(), head, logits);
        statistics(logits, v, &targets[rows.clone()], &mut out, rows.clone());
        if let (Some(gradients), Some(dx_td)) = (&mut gradients, &mut dx_td) {
            let x = Tensor::new(x_td.row_range(rows.clone()), &[rows.len(), d]);
            let dx = &mut dx_td[rows.start * d..rows.end * d];
            chunk_backward(logits, &x, head, &targets[rows.clone()], &out.lse_t[rows.clone()], rows, gradients, dx);
        }
    }
    (out, dx_td)
}

/// Log-sum-exp and target log-probability of each row.
fn statistics(logits: &[f32], v: usize, targets: &[u32], out: &mut LogProbs, rows: Range<usize>) {
    let logp = Shared::new(&mut out.logp_t[rows.clone()]);
    let lse = Shared::new(&mut out.lse_t[rows]);
    parallel_ranges(targets.len(), 1, |some| {
        for t in some {
            let row = &logits[t * v..(t + 1) * v];
            // SAFETY: each token is another place.
            let (logp, lse) = unsafe { (&mut logp.range(t..t + 1)[0], &mut lse.range(t..t + 1)[0]) };
            *lse = log_sum_exp(row);
            *logp = if targets[t] == IGNORE { 0.0 } else { row[targets[t] as usize] - *lse };
        }
    });
}

kernel! {
    /// `log Σ exp x`, in one pass: pieces of 1,024 numbers, each against the largest so far.
    fn log_sum_exp[s: S](x: &[f32]) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        let mut sum = s.zero();
        for piece in x.chunks(1024) {
            let mut most = s.splat(f32::NEG_INFINITY);
            let vectors = piece.chunks_exact(LANES);
            let rest = vectors.remainder();
            for v in vectors {
                // In this order a NaN stays.
                most = s.max(most, s.load(v));
            }
            let mut here = s.reduce_max(most);
            for x in rest {
                here = if *x > here { *x } else { here };
            }
            if here > largest {
                sum = s.mul(sum, exp(s, s.splat(largest - here)));
                largest = here;
            }
            let shift = s.splat(largest);
            let vectors = piece.chunks_exact(LANES);
            for v in vectors {
                sum = s.add(sum, exp(s, s.sub(s.load(v), shift)));
            }
            if !rest.is_empty() {
                let mut last = [f32::NEG_INFINITY; LANES];
                last[..rest.len()].copy_from_slice(rest);
                sum = s.add(sum, exp(s, s.sub(s.load(&last), shift)));
            }
        }
        largest + s.reduce_add(sum).ln()
    }
}

kernel! {
    /// `out = c·exp(x − lse)`
    fn softmax_times[s: S](x: &[f32], lse: f32, c: f32, out: &mut [f32]) {
        let (shift, c) = (s.splat(lse), s.splat(c));
        let mut inputs = x.chunks_exact(LANES);
        let mut outputs = out.chunks_exact_mut(LANES);
        for (x, out) in (&mut inputs).zip(&mut outputs) {
            s.store(s.mul(c, exp(s, s.sub(s.load(x), shift))), out);
        }
        let last = s.load_partial(inputs.remainder());
        s.store_partial(s.mul(c, exp(s, s.sub(last, shift))), outputs.into_remainder());
    }
}

/// The gradients of one chunk; `rows` are its tokens.
fn chunk_backward(
    logits: &[f32],
    x_td: &Tensor,
    head: Head<'_>,
    targets: &[u32],
    lse: &[f32],
    rows: Range<usize>,
    gradients: &mut Gradients<'_>,
    dx: &mut [f32],
) {
    let (tokens, v, operand) = (rows.len(), head.weight.forward().rows(), head.weight.operand());
    let mut by_token = Left::scratch(tokens, v, operand);
    let mut by_word = gradients.dweight.is_some().then(|| Left::scratch(v, tokens, operand));
    let blocks = Blocks { tokens, v, operand };
    {
        let by_token = Shared::new(by_token.data_mut());
        let by_word = by_word.as_mut().map(|l| Shared::new(l.data_mut()));
        let (token_blocks, word_blocks) = blocks.counts();
        parallel(token_blocks * word_blocks, |task| {
            let (i, j) = (task / word_blocks, task % word_blocks);
            let tokens = blocks.tokens(i);
            let words = blocks.words(j);
            let width = words.len();
            let mut dl = Buffer::<f32>::scratch(tokens.len() * width);
            for (t, row) in tokens.clone().zip(dl.chunks_exact_mut(width)) {
                let g = gradients.dlogp_t[rows.start + t] * head.scale;
                let h = gradients.z * lse[t] * head.scale;
                if targets[t] == IGNORE {
                    row.fill(0.0);
                    continue;
                }
                softmax_times(&logits[t * v + words.start..t * v + words.end], lse[t], h - g, row);
                if let Some(at) = (targets[t] as usize).checked_sub(words.start).filter(|at| *at < width) {
                    row[at] += g;
                }
            }
            // SAFETY: each block of tokens and words is another set of ranges, see `Blocks`.
            unsafe {
                blocks.pack_tokens(&dl, i, words.clone(), &by_token);
                if let Some(by_word) = &by_word {
                    blocks.pack_words(&dl, j, tokens, by_word);
                }
            }
        });
    }
    gemm_panels(by_token.panels(), head.weight.backward().group(0), dx, Store::Overwrite);
    if let (Some(left), Some(dweight)) = (&by_word, &mut gradients.dweight) {
        gemm_panels(left.panels(), pack_saved(x_td, operand).group(0), dweight, Store::Accumulate);
    }
    if let Some(dbias) = &mut gradients.dbias {
        bias_backward(logits, targets, lse, rows, gradients.dlogp_t, gradients.z, head.scale, dbias);
    }
}

/// `db += Σ_t dl_t`: rare (no released model has it), so plain.
fn bias_backward(
    logits: &[f32],
    targets: &[u32],
    lse: &[f32],
    rows: Range<usize>,
    dlogp: &[f32],
    z: f32,
    scale: f32,
    dbias: &mut [f32],
) {
    let v = dbias.len();
    let mut row = Buffer::<f32>::scratch(v);
    for (t, target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        let g = dlogp[rows.start + t] * scale;
        softmax_times(&logits[t * v..(t + 1) * v], lse[t], z * lse[t] * scale - g, &mut row);
        row[*target as usize] += g;
        dbias.iter_mut().zip(row.iter()).for_each(|(d, x)| *d += x);
    }
}

/// How a chunk's gradient is cut: blocks of whole left panels, of tokens (for `dx`) and of words (for `dW`). Panels begin
/// at even rows, so pairs of bf16 numbers are whole in both directions.
struct Blocks {
    tokens: usize,
    v: usize,
    operand: Operand,
}

impl Blocks {
    fn counts(&self) -> (usize, usize) {
        (panel_count(self.tokens).div_ceil(BLOCK_ROWS / PANEL_ROWS), panel_count(self.v).div_ceil(BLOCK_PANELS))
    }

    /// The panels of block `i` when `some` panels make a block.
    fn panels(rows: usize, i: usize, some: usize) -> impl Iterator<Item = Range<usize>> {
        let count = panel_count(rows);
        (i * some..((i + 1) * some).min(count)).map(move |p| panel_start(rows, count, p)..panel_start(rows, count, p + 1))
    }

    fn span(rows: usize, i: usize, some: usize) -> Range<usize> {
        let count = panel_count(rows);
        panel_start(rows, count, i * some)..panel_start(rows, count, ((i + 1) * some).min(count))
    }

    fn tokens(&self, i: usize) -> Range<usize> {
        Blocks::span(self.tokens, i, BLOCK_ROWS / PANEL_ROWS)
    }

    fn words(&self, j: usize) -> Range<usize> {
        Blocks::span(self.v, j, BLOCK_PANELS)
    }

    /// Packs block `dl` of tokens `i` along the rows of the tokens' panels.
    ///
    /// # Safety
    /// No other task packs these tokens and words.
    unsafe fn pack_tokens(&self, dl: &[f32], i: usize, words: Range<usize>, out: &Shared<f32>) {
        let units = self.operand.units(self.v);
        let (first, some) = (self.operand.units(words.start), self.operand.units(words.len()));
        let start = self.tokens(i).start;
        for panel in Blocks::panels(self.tokens, i, BLOCK_ROWS / PANEL_ROWS) {
            let at = panel.start * units + first * panel.len();
            // SAFETY: by the caller's promise.
            let out = unsafe { out.range(at..at + some * panel.len()) };
            let local = panel.start - start..panel.end - start;
            pack_rows(Source::new(dl, words.len()), local, words.len(), self.operand, panel.len(), out);
        }
    }

    /// Packs block `dl` of words `j` down the columns of the words' panels.
    ///
    /// # Safety
    /// No other task packs these tokens and words.
    unsafe fn pack_words(&self, dl: &[f32], j: usize, tokens: Range<usize>, out: &Shared<f32>) {
        let units = self.operand.units(self.tokens);
        let (first, some) = (self.operand.units(tokens.start), self.operand.units(tokens.len()));
        let words = self.words(j);
        for panel in Blocks::panels(self.v, j, BLOCK_PANELS) {
            let at = panel.start * units + first * panel.len();
            // SAFETY: by the caller's promise.
            let out = unsafe { out.range(at..at + some * panel.len()) };
            let local = panel.start - words.start..panel.end - words.start;
            pack_columns(Source::new(dl, words.len()), local, tokens.len(), self.operand, panel.len(), None, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                let head = Head { weight: &weight, bias: Some(&b), scale: c };
                let (mut dw, mut db) = (vec![0.0; v * d], vec![0.0; v]);
                let x = Tensor::new(&x, &[t, d]);
                let gradients = Gradients { dlogp_t: &g, z, dweight: Some(&mut dw), dbias: Some(&mut db) };
                let (log_probs, dx) = forward_backward(&x, head, &targets, gradients);
                assert_eq!(forward(&x, head, &targets).logp_t[..], log_probs.logp_t[..]);
                [&log_probs.logp_t[..], &dx[..], &dw, &db].concat()
            });
            let (x, w, b, g) = (wide(&x), wide(&w), wide(&b), wide(&g));
            let (c, z) = (f64::from(c as f32), f64::from(z));
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
        // 120 tokens of 200,000 words are more than one chunk.
        let (t, d, v) = (200, 2, 200_001);
        assert!(t * v * 4 > CHUNK_BYTES);
        for operand in [Operand::F32, Operand::Bf16] {
            let (x, w) = (numbers(1, t * d), numbers(2, v * d));
            let targets: Vec<u32> = (0..t).map(|i| (i * 997 % v) as u32).collect();
            let mut weight = PackedWeight::new(1, v, d, operand, true);
            weight.pack(&w);
            let head = Head { weight: &weight, bias: None, scale: 1.0 };
            let g = vec![-0.01; t];
            let run = |range: Range<usize>| {
                let mut dw = vec![0.0; v * d];
                let x = Tensor::new(&x[range.start * d..range.end * d], &[range.len(), d]);
                let gradients = Gradients { dlogp_t: &g[range.clone()], z: 0.0, dweight: Some(&mut dw), dbias: None };
                let (log_probs, dx) = forward_backward(&x, head, &targets[range], gradients);
                (log_probs.logp_t.to_vec(), dx.to_vec(), dw)
            };
            let (logp, dx, dw) = run(0..t);
            for range in [0..1, 7..40, 150..200] {
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
    fn nothing_in_nothing_out() {
        let mut weight = PackedWeight::new(1, 5, 3, Operand::F32, true);
        weight.pack(&numbers(1, 15));
        let head = Head { weight: &weight, bias: None, scale: 1.0 };
        assert!(forward(&Tensor::zeros(&[0, 3]), head, &[]).logp_t.is_empty());
        let nan = forward(&Tensor::new(&[f32::NAN, 0.0, 0.0], &[1, 3]), head, &[2]);
        assert!(nan.logp_t[0].is_nan());
    }
}
