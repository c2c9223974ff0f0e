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

mod statistics;

use std::ops::Range;

use crate::elementary::{exp as exp64, ln};
use crate::gemm::{
    Left, PANEL_COLS, PANEL_ROWS, Right, Source, Store, block, gemm_here, pack_columns, pack_rows, panel_count,
    panel_start,
};
use crate::memory::Buffer;
use crate::ops::add::{add_assign, scale};
use crate::ops::lanes::lanes;
use crate::ops::linear::{Weight, backward_weight, pack_input, pack_saved};
use crate::ops::low_rank::{LowRank, LowRankGradients, Tokens};
use crate::quant::product::{QuantizedInput, product};
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

pub use statistics::TokenStatistics;

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
    /// An adapter of the weight, without DoRA.
    pub adapter: Option<LowRank<'a>>,
}

/// The results of the forward pass for each token.
#[derive(Clone, Debug)]
pub struct LogProbs {
    /// Natural log-probability of the target, `[T]`; 0 where there is no target.
    pub logp_t: Buffer<f32>,
    /// `log Σ_v exp l_tv`, `[T]`; 0 where there is no target.
    pub lse_t: Buffer<f32>,
    /// What else is known of the distributions, where it was asked for.
    pub statistics: Option<TokenStatistics>,
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
    /// Of the adapter, accumulated.
    pub adapter: LowRankGradients<'a>,
    /// Whether [`LogProbs::statistics`] are computed.
    pub statistics: bool,
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
    let adapted =
        head.adapter.map(|adapter| adapter.inner(adapter.dropped(x_td, Tokens::ALL).as_ref().unwrap_or(x_td)));
    forward_pieces(x_td, head, adapted.as_ref(), &mut logits_tv, false);
    logits_tv
}

/// Log-probabilities of `targets [T]` without gradients; with `statistics`, also [`LogProbs::statistics`].
pub fn forward(x_td: &Tensor, head: Head<'_>, targets: &[u32], statistics: bool) -> LogProbs {
    assert_eq!(targets.len(), x_td.rows(), "a target a token");
    let rows = selected(targets, |t| targets[t] != IGNORE);
    let found = run(x_td, &rows, head, &gather(targets, &rows), None, statistics).0;
    scatter(found, &rows, targets)
}

/// Log-probabilities of `targets [R]` after the tokens `rows [R]` of `x`, without gradients; with `statistics`, also
/// [`LogProbs::statistics`]. Nothing is computed for the other tokens. A row may occur more than once.
///
/// # Panics
/// When a row is not below T, a target is not below V, or `rows` and `targets` differ in length.
pub fn forward_at(x_td: &Tensor, rows: &[u32], head: Head<'_>, targets: &[u32], statistics: bool) -> LogProbs {
    run(x_td, rows, head, targets, None, statistics).0
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
    let statistics = own.statistics;
    let (found, dx_td) = run(x_td, &rows, head, &gather(targets, &rows), Some(own), statistics);
    (scatter(found, &rows, targets), dx_td)
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
fn scatter(found: LogProbs, rows: &[u32], targets: &[u32]) -> LogProbs {
    let scattered = |own: &Buffer<f32>| {
        let mut all = Buffer::zeroed(targets.len());
        for (x, t) in own.iter().zip(rows.iter().map(|row| *row as usize)) {
            if targets[t] != IGNORE {
                all[t] = *x;
            }
        }
        all
    };
    LogProbs {
        logp_t: scattered(&found.logp_t),
        lse_t: scattered(&found.lse_t),
        statistics: found.statistics.map(|own| own.map(scattered)),
    }
}

/// The pass over some rows of `x`, each with a target, a result and a gradient by its log-probability; `dx` has one row
/// for every row of `x`.
fn run(
    x_td: &Tensor,
    rows: &[u32],
    head: Head<'_>,
    targets: &[u32],
    mut gradients: Option<HeadGradients<'_>>,
    statistics: bool,
) -> (LogProbs, Option<Tensor>) {
    let (tokens, d, v) = (rows.len(), x_td.cols(), head.words());
    assert_eq!(targets.len(), tokens, "a target a token");
    let bad = targets.iter().find(|target| **target != IGNORE && **target as usize >= v);
    assert!(bad.is_none(), "target {bad:?} of {v} words");
    let mut out = LogProbs {
        logp_t: Buffer::scratch(tokens),
        lse_t: Buffer::scratch(tokens),
        statistics: statistics.then(|| TokenStatistics::scratch(tokens)),
    };
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
        let dropped = head.adapter.and_then(|adapter| adapter.dropped(&x, Tokens { index: Some(rows), first: 0 }));
        let adapter_x = dropped.as_ref().unwrap_or(&x);
        let t = head.adapter.map(|adapter| adapter.inner(adapter_x));
        let pieces = forward_pieces(&x, head, t.as_ref(), logits, true);
        let targets = &targets[some.clone()];
        finish(&pieces, logits, v, targets, &mut out.logp_t[some.clone()], &mut out.lse_t[some.clone()]);
        if let Some(statistics) = &mut out.statistics {
            statistics.fill(some.clone(), logits, v, targets, &out.lse_t[some.clone()]);
        }
        if let Some(gradients) = &mut gradients {
            let (lse, dlogp) = (&out.lse_t[some.clone()], &gradients.dlogp_t[some]);
            let chunk =
                Chunk { logits, x: &x, head, adapter_x, t: t.as_ref(), rows, targets, lse, dlogp, z: gradients.z };
            chunk.backward(gradients, dx_td.as_mut());
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
///
/// `t` is `s·A·x [T, r]` of the adapter.
fn forward_pieces(
    x_td: &Tensor,
    head: Head<'_>,
    t: Option<&Tensor>,
    logits: &mut [f32],
    statistics: bool,
) -> PieceStatistics {
    let (tokens, v) = (x_td.rows(), head.words());
    let packed = match head.weight {
        Weight::Packed(weight) => Some((pack_input(x_td, weight.operand()), weight.forward().group(0))),
        Weight::Quantized(weight, _) => {
            product(&QuantizedInput::pack(x_td, x_td.cols(), weight.format()), weight, logits, Store::Overwrite);
            None
        }
    };
    let adapter =
        head.adapter.zip(t).map(|(adapter, t)| (pack_input(t, adapter.b.operand()), adapter.b.forward().group(0)));
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
            let products = packed.iter().map(|factors| (factors, Store::Overwrite));
            for ((left, right), store) in products.chain(adapter.iter().map(|factors| (factors, Store::Accumulate))) {
                let c = logits.range(0..tokens * v).as_mut_ptr();
                let columns = j * PIECE_PANELS..words.end.div_ceil(PANEL_COLS);
                block(left.panels(), own.clone(), *right, columns, c, v, store);
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
    /// The input of the adapter: without what dropout leaves out.
    adapter_x: &'a Tensor,
    /// `s·A·x [T, r]` of the adapter.
    t: Option<&'a Tensor>,
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
    /// `dl·B`, `[slabs, T, r]`
    dt: Option<Shared<'a, f32>>,
    /// Gradient of B.
    db: Option<Shared<'a, f32>>,
}

/// The factors of the gradients of the weight, and of B of the adapter.
#[derive(Clone, Copy)]
struct WordFactors<'a> {
    x: Option<&'a Right>,
    t: Option<&'a Right>,
}

impl Chunk<'_> {
    fn backward(&self, gradients: &mut HeadGradients<'_>, mut dx_td: Option<&mut Tensor>) {
        let HeadGradients { dweight, dbias, adapter: into, .. } = gradients;
        let (dweight, dbias) = (dweight.as_deref_mut(), dbias.as_deref_mut());
        if dweight.is_none() && dbias.is_none() && dx_td.is_none() && into.is_empty() {
            return;
        }
        let (tokens, d, v) = (self.targets.len(), self.x.cols(), self.head.words());
        let operand = self.head.weight.operand();
        let x = dweight.is_some().then(|| pack_saved(self.x, operand));
        let adapter = self.head.adapter;
        let t = self.t.filter(|_| into.b.is_some()).map(|t| pack_saved(t, operand));
        let size = block_size(d);
        let blocks = v.div_ceil(size);
        let slabs = SLABS.min(blocks);
        let mut partial = dx_td.is_some().then(|| Tensor::scratch(&[slabs, tokens, d]));
        let inner = adapter.filter(|_| dx_td.is_some() || into.a.is_some());
        let mut partial_t = inner.map(|adapter| Tensor::scratch(&[slabs, tokens, adapter.rank()]));
        let outputs = Outputs {
            dx: partial.as_deref_mut().map(Shared::new),
            dweight: dweight.map(Shared::new),
            dbias: dbias.map(Shared::new),
            dt: partial_t.as_deref_mut().map(Shared::new),
            db: into.b.as_deref_mut().map(Shared::new),
        };
        let factors = WordFactors { x: x.as_ref(), t: t.as_ref() };
        parallel(slabs, |slab| {
            let own = blocks * slab / slabs..blocks * (slab + 1) / slabs;
            for (i, j) in own.enumerate() {
                let words = j * size..((j + 1) * size).min(v);
                let store = if i == 0 { Store::Overwrite } else { Store::Accumulate };
                for start in (0..tokens).step_by(size) {
                    let rows = start..(start + size).min(tokens);
                    // SAFETY: each slab has words and a `dx` of its own.
                    unsafe { self.block_backward(rows, words.clone(), slab, store, factors, &outputs) }
                }
            }
        });
        if let (Some(partial), Some(dx_td)) = (&partial, dx_td.as_deref_mut()) {
            sum_slabs(partial, self.rows, dx_td);
        }
        if let (Some(adapter), Some(partial)) = (adapter, &partial_t) {
            let mut u = Tensor::scratch(&[tokens, adapter.rank()]);
            let all: Buffer<u32> = selected(self.targets, |_| true);
            sum_slabs(partial, &all, &mut u);
            scale(&mut u, adapter.scale);
            if let Some(da) = into.a.as_deref_mut() {
                backward_weight(&u, &pack_saved(self.adapter_x, operand), da);
            }
            if let Some(dx_td) = dx_td {
                let own = adapter.input_gradient(&u, Tokens { index: Some(self.rows), first: 0 });
                self.rows.iter().enumerate().for_each(|(i, row)| add_assign(dx_td.row_mut(*row as usize), own.row(i)));
            }
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
        factors: WordFactors<'_>,
        outputs: &Outputs,
    ) {
        let (tokens, d, v, operand) =
            (self.targets.len(), self.x.cols(), self.head.words(), self.head.weight.operand());
        let (tokenwise, wordwise) =
            (outputs.dx.is_some() || outputs.dt.is_some(), factors.x.is_some() || factors.t.is_some());
        let mut by_token = tokenwise.then(|| Left::scratch(rows.len(), words.len(), operand));
        let mut by_word = wordwise.then(|| Left::scratch(words.len(), rows.len(), operand));
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
        if let (Some(by_token), Some(dt), Some(adapter)) = (&by_token, &outputs.dt, self.head.adapter) {
            let r = adapter.rank();
            let from = (slab * tokens + rows.start) * r;
            // SAFETY: by the caller's promise.
            let dt = unsafe { dt.range(from..from + rows.len() * r) };
            Weight::Packed(adapter.b).backward_here(by_token.panels(), 0, words.clone(), dt, store);
        }
        for (right, dweight) in [(factors.x, &outputs.dweight), (factors.t, &outputs.db)] {
            if let (Some(by_word), Some(right), Some(dweight)) = (&by_word, right, dweight) {
                let columns = right.rows();
                // SAFETY: by the caller's promise.
                let dweight = unsafe { dweight.range(words.start * columns..words.end * columns) };
                gemm_here(by_word.panels(), right.group(0).section(rows.clone()), dweight, Store::Accumulate);
            }
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
mod tests;
