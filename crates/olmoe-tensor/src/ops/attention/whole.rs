//! Attention over whole sequences, in which some rows may be hidden as keys, as padding is.
//!
//! A row attends to the rows of its segment up to itself that are not hidden. Where there is none, it attends to all rows of
//! its segment with equal weights, hidden and later ones included:
//!
//! ```text
//! o[t] = Σ_s v[s] / n      dv[s] += do[t] / n      dS[t, s] = (do[t] · v[s] − do[t] · v̄) / (n √D)      n rows, v̄ their mean
//! ```
//!
//! That is what OLMo computes (`attention_mask` in `olmo/model.py`): it adds the lowest finite f32 to the scores of hidden and
//! of later keys. Where that is added to all scores of a row, rounding leaves nothing of them: the weights are equal, and the
//! scores have the gradient of equal weights.

use std::ops::Range;

use crate::gemm::Operand;
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::backward::backward_sight;
use super::forward::{AttentionSaved, forward_sight};
use super::{Heads, Sight};

/// The keys that are left when some rows are hidden.
struct Seen {
    /// The rows that are keys.
    rows: Buffer<u32>,
    /// Where the keys of each segment begin, then their number.
    bounds: Buffer<u32>,
    /// How many keys of its segment each row attends to.
    counts: Buffer<u32>,
    /// Segments whose first rows have no key, and how many rows that are.
    blind: Vec<(Range<usize>, usize)>,
}

impl Seen {
    fn new(segments: &[u32], hidden: &[bool]) -> Seen {
        assert_eq!(segments.last().copied().unwrap_or(0) as usize, hidden.len(), "a flag for each row");
        let mut seen = Seen {
            rows: Buffer::scratch(hidden.iter().filter(|hidden| !**hidden).count()),
            bounds: Buffer::zeroed(segments.len()),
            counts: Buffer::scratch(hidden.len()),
            blind: Vec::new(),
        };
        let mut keys = 0;
        for (i, segment) in segments.windows(2).enumerate() {
            let (first, rows) = (keys, segment[0] as usize..segment[1] as usize);
            for row in rows.clone() {
                if !hidden[row] {
                    seen.rows[keys] = row as u32;
                    keys += 1;
                }
                seen.counts[row] = (keys - first) as u32;
            }
            seen.bounds[i + 1] = keys as u32;
            let blind = seen.counts[rows.clone()].partition_point(|count| *count == 0);
            if blind > 0 {
                seen.blind.push((rows, blind));
            }
        }
        seen
    }

    fn sight<'a>(&'a self, segments: &'a [u32]) -> Sight<'a> {
        Sight { segments, keys: &self.bounds, seen: Some(&self.counts) }
    }

    /// The keys' rows of a tensor.
    fn gather(&self, x: &Tensor) -> Tensor {
        let mut to = Tensor::scratch(&[self.rows.len(), x.cols()]);
        for (i, row) in self.rows.iter().enumerate() {
            to.row_mut(i).copy_from_slice(x.row(*row as usize));
        }
        to
    }

    /// The keys' rows to their places; the others are zero.
    fn scatter(&self, x: &Tensor, rows: usize) -> Tensor {
        let mut to = Tensor::zeros(&[rows, x.cols()]);
        for (i, row) in self.rows.iter().enumerate() {
            to.row_mut(*row as usize).copy_from_slice(x.row(i));
        }
        to
    }
}

/// Attention of each row of `q_td` to the rows up to it in its segment; see the module for formula and shapes.
///
/// `segments` holds the boundaries of the independent sequences: `0 = s_0 < s_1 < … = T`. `hidden [T]`, if given, marks the
/// rows that are no keys. `operand` is the precision of the factors of both products; sums and softmax are f32.
///
/// # Panics
/// When the shapes, the boundaries or the flags do not fit.
pub fn forward(
    q_td: &Tensor,
    k_td: &Tensor,
    v_td: &Tensor,
    heads: Heads,
    segments: &[u32],
    hidden: Option<&[bool]>,
    operand: Operand,
) -> (Tensor, AttentionSaved) {
    let Some(hidden) = hidden else {
        return forward_sight(q_td, k_td, v_td, heads, Sight::causal(segments), operand);
    };
    let seen = Seen::new(segments, hidden);
    let (k, v) = (seen.gather(k_td), seen.gather(v_td));
    let (mut o_td, saved) = forward_sight(q_td, &k, &v, heads, seen.sight(segments), operand);
    for (rows, blind) in &seen.blind {
        let means: Vec<f32> = means(v_td, rows.clone(), 0..v_td.cols()).iter().map(|mean| *mean as f32).collect();
        for row in rows.start..rows.start + blind {
            for (head, o) in o_td.row_mut(row).chunks_exact_mut(heads.dim).enumerate() {
                let head = head / heads.group();
                o.copy_from_slice(&means[head * heads.dim..(head + 1) * heads.dim]);
            }
        }
    }
    (o_td, saved)
}

/// The gradients `(dq, dk, dv)` of [`forward`] from its inputs, its results and the gradient of its output.
///
/// # Panics
/// When the shapes, the boundaries or the flags do not fit.
pub fn backward(
    q_td: &Tensor,
    k_td: &Tensor,
    v_td: &Tensor,
    o_td: &Tensor,
    saved: &AttentionSaved,
    d_o_td: &Tensor,
    heads: Heads,
    segments: &[u32],
    hidden: Option<&[bool]>,
    operand: Operand,
) -> (Tensor, Tensor, Tensor) {
    let Some(hidden) = hidden else {
        return backward_sight(q_td, k_td, v_td, o_td, saved, d_o_td, heads, Sight::causal(segments), operand);
    };
    let seen = Seen::new(segments, hidden);
    let (k, v) = (seen.gather(k_td), seen.gather(v_td));
    let sight = seen.sight(segments);
    let (mut dq, dk, dv) = backward_sight(q_td, &k, &v, o_td, saved, d_o_td, heads, sight, operand);
    let (mut dk, mut dv) = (seen.scatter(&dk, q_td.rows()), seen.scatter(&dv, q_td.rows()));
    let [dq_shared, dk_shared, dv_shared] = [&mut dq, &mut dk, &mut dv].map(|x| Shared::new(x));
    parallel(seen.blind.len() * heads.key_value, |task| {
        let (rows, blind) = &seen.blind[task / heads.key_value];
        let inputs = [q_td, k_td, v_td, d_o_td];
        let blind = Blind { heads, inputs, rows: rows.clone(), blind: rows.start..rows.start + blind };
        // SAFETY: each segment and key/value head has places of its own.
        unsafe { blind.backward(task % heads.key_value, [&dq_shared, &dk_shared, &dv_shared]) };
    });
    (dq, dk, dv)
}

/// The mean over some rows of some columns.
fn means(x: &Tensor, rows: Range<usize>, columns: Range<usize>) -> Vec<f64> {
    let mut sums = vec![0.0; columns.len()];
    for row in rows.clone() {
        sums.iter_mut().zip(&x.row(row)[columns.clone()]).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sums.iter().map(|sum| sum / rows.len() as f64).collect()
}

/// `m += a bᵀ`
fn add_outer(m: &mut [f64], a: impl Iterator<Item = f64>, b: &[f32]) {
    for (row, a) in m.chunks_exact_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(m, b)| *m += a * f64::from(*b));
    }
}

/// `y += s mᵀ a`
fn add_product(y: &mut [f32], s: f64, m: &[f64], a: impl Iterator<Item = f64>) {
    let mut sums = vec![0.0; y.len()];
    for (row, a) in m.chunks_exact(y.len()).zip(a) {
        sums.iter_mut().zip(row).for_each(|(sum, m)| *sum += a * m);
    }
    y.iter_mut().zip(sums).for_each(|(y, sum)| *y += (s * sum) as f32);
}

/// The rows of a segment that see no key, and so all of them.
struct Blind<'a> {
    heads: Heads,
    /// q, k, v and the gradient of o.
    inputs: [&'a Tensor; 4],
    /// Those of the segment, n.
    rows: Range<usize>,
    blind: Range<usize>,
}

impl Blind<'_> {
    /// Adds their gradients of a key/value head. With `c = 1 / (n √D)` they are, in matrices of the head's size,
    ///
    /// ```text
    /// dq[t] += c (Σ_s (v[s] − v̄) k[s]ᵀ)ᵀ do[t]      dk[s] += c (Σ_t do[t] q[t]ᵀ)ᵀ (v[s] − v̄)      dv[s] += Σ_t do[t] / n
    /// ```
    ///
    /// # Safety
    /// As [`Shared::range`]: nobody else touches the columns of the head and its query heads in the rows of the segment.
    unsafe fn backward(&self, head: usize, [dq, dk, dv]: [&Shared<f32>; 3]) {
        let Heads { query, key_value, dim } = self.heads;
        let [q, k, v, d_o] = self.inputs;
        let n = self.rows.len() as f64;
        let factor = f64::from(self.heads.scale()) / n;
        let own = head * dim..(head + 1) * dim;
        let mean = means(v, self.rows.clone(), own.clone());
        let centred = |row: usize| v.row(row)[own.clone()].iter().zip(&mean).map(|(v, mean)| f64::from(*v) - mean);
        let mut of_keys = vec![0.0; dim * dim];
        for row in self.rows.clone() {
            add_outer(&mut of_keys, centred(row), &k.row(row)[own.clone()]);
        }
        let mut of_queries = vec![0.0; dim * dim];
        let mut sums = vec![0.0; dim];
        for one in head * self.heads.group()..(head + 1) * self.heads.group() {
            let columns = one * dim..(one + 1) * dim;
            for row in self.blind.clone() {
                let gradient = || d_o.row(row)[columns.clone()].iter().map(|x| f64::from(*x));
                // SAFETY: the caller's promise.
                let to = unsafe { dq.range((row * query + one) * dim..(row * query + one + 1) * dim) };
                add_product(to, factor, &of_keys, gradient());
                add_outer(&mut of_queries, gradient(), &q.row(row)[columns.clone()]);
                sums.iter_mut().zip(gradient()).for_each(|(sum, x)| *sum += x);
            }
        }
        for row in self.rows.clone() {
            let at = (row * key_value + head) * dim..(row * key_value + head + 1) * dim;
            // SAFETY: the caller's promise.
            let (dk, dv) = unsafe { (dk.range(at.clone()), dv.range(at)) };
            add_product(dk, factor, &of_queries, centred(row));
            dv.iter_mut().zip(&sums).for_each(|(dv, sum)| *dv += (sum / n) as f32);
        }
    }
}
