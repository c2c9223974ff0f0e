//! The layouts in which the adapters of all experts of a layer are two tensors.
//!
//! ```text
//! fused    A [E·r, in]  expert by expert       B [out, r·E]  rank by rank: column r·E + e is rank r of expert e
//! swapped  A [E·r, out] has the columns of B   B [in, r·E]   has the rows of A      (peft 0.17 to 0.18.1)
//! ```
//!
//! The matrices of gate and up are one of `[2·I, D]`, whose A they have in common. What peft makes of separate adapters of
//! them has the rank of both, and B has blocks: the first ranks for the rows of gate, the others for those of up.
//!
//! E experts, I expert width, D model width.

/// A and B of one matrix.
pub(super) type Sides = (Vec<f32>, Vec<f32>);

/// A stack of two tensors as a layout has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackLayout {
    Fused,
    Swapped,
}

/// The extents of a matrix of the experts: E, rows, columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct StackExtents {
    pub(super) experts: usize,
    pub(super) out: usize,
    pub(super) input: usize,
}

impl StackLayout {
    /// The layouts that tensors of these shapes can have.
    pub(super) fn possible(extents: StackExtents, a: &[usize], b: &[usize]) -> Vec<StackLayout> {
        let fits = |layout: &StackLayout| {
            let StackExtents { experts, out, input } = extents;
            let (a_columns, b_rows) = if *layout == StackLayout::Fused { (input, out) } else { (out, input) };
            matches!((a, b), (&[ranks, columns], &[rows, other]) if ranks == other && ranks > 0
                && ranks.is_multiple_of(experts) && columns == a_columns && rows == b_rows)
        };
        [StackLayout::Fused, StackLayout::Swapped].into_iter().filter(fits).collect()
    }

    /// The adapters of each expert, A `[r, in]` and B `[out, r]`, from tensors whose shapes fit.
    pub(super) fn unstack(self, extents: StackExtents, a: &[f32], b: &[f32]) -> Vec<Sides> {
        let StackExtents { experts, out, input } = extents;
        let (a_columns, b_rows) = if self == StackLayout::Fused { (input, out) } else { (out, input) };
        let rank = a.len() / (experts * a_columns);
        let expert = |e: usize| {
            let own_a = &a[e * rank * a_columns..(e + 1) * rank * a_columns];
            let own_b: Vec<f32> =
                (0..b_rows * rank).map(|at| b[(at / rank * rank + at % rank) * experts + e]).collect();
            match self {
                StackLayout::Fused => (own_a.to_vec(), own_b),
                StackLayout::Swapped => (transposed(&own_b, b_rows, rank), transposed(own_a, rank, a_columns)),
            }
        };
        (0..experts).map(expert).collect()
    }
}

/// The tensors of the fused layout from the adapters of all experts, each of rank `rank`.
pub(super) fn stack(experts: &[Sides], rank: usize) -> (Vec<f32>, Vec<f32>) {
    let a = experts.iter().flat_map(|(a, _)| a.iter().copied()).collect();
    let rows = experts.first().map_or(0, |(_, b)| b.len() / rank.max(1));
    let column = |row: usize| (0..rank).flat_map(move |r| experts.iter().map(move |(_, b)| b[row * rank + r]));
    (a, (0..rows).flat_map(column).collect())
}

/// The number of ranks that belong to gate alone, all others belonging to up alone; `None` if some belong to both. With
/// `converted`, zeros are taken for two equal halves.
pub(super) fn block_split(experts: &[Sides], rank: usize, converted: bool) -> Option<usize> {
    let half = |b: &[f32], upper: bool| {
        let rows = b.len() / rank;
        let rows = if upper { 0..rows / 2 } else { rows / 2..rows };
        let used = |r: &usize| rows.clone().any(|row| b[row * rank + r] != 0.0);
        (0..rank).filter(used).collect::<Vec<usize>>()
    };
    let gate = experts.iter().flat_map(|(_, b)| half(b, true)).max().map_or(0, |last| last + 1);
    let up = experts.iter().flat_map(|(_, b)| half(b, false)).min().unwrap_or(rank);
    if gate == 0 && up == rank {
        return converted.then_some(rank / 2).filter(|_| rank.is_multiple_of(2));
    }
    let middle = rank / 2;
    match gate <= up {
        true if rank.is_multiple_of(2) && gate <= middle && middle <= up => Some(middle),
        true => Some(gate),
        false => None,
    }
}

/// Ranks of an adapter of several rows of a matrix: A's rows and B's columns in `ranks`, B's rows in `rows`.
pub(super) fn cut((a, b): &Sides, rank: usize, ranks: std::ops::Range<usize>, rows: std::ops::Range<usize>) -> Sides {
    let columns = a.len() / rank;
    let b = rows.flat_map(|row| b[row * rank + ranks.start..row * rank + ranks.end].iter().copied()).collect();
    (a[ranks.start * columns..ranks.end * columns].to_vec(), b)
}

/// `[columns, rows]` from `[rows, columns]`.
pub(super) fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| x[row * columns + column])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, from: usize) -> Vec<f32> {
        (from..from + len).map(|x| x as f32).collect()
    }

    #[test]
    fn stacking_is_undone_by_unstacking() {
        let extents = StackExtents { experts: 3, out: 5, input: 4 };
        let experts: Vec<_> = (0..3).map(|e| (numbers(8, 100 * e), numbers(10, 100 * e + 50))).collect();
        let (a, b) = stack(&experts, 2);
        assert_eq!(&b[..6], [50.0, 150.0, 250.0, 51.0, 151.0, 251.0]);
        assert_eq!(StackLayout::Fused.unstack(extents, &a, &b), experts);
        // The other layout has the sides exchanged.
        let turned: Vec<_> = experts.iter().map(|(a, b)| (transposed(b, 5, 2), transposed(a, 2, 4))).collect();
        let (a, b) = stack(&turned, 2);
        assert_eq!(StackLayout::Swapped.unstack(extents, &a, &b), experts);
    }

    #[test]
    fn shapes_tell_the_layout_unless_the_matrix_is_square() {
        let extents = |out, input| StackExtents { experts: 4, out, input };
        use StackLayout::{Fused, Swapped};
        assert_eq!(StackLayout::possible(extents(40, 24), &[12, 24], &[40, 12]), [Fused]);
        assert_eq!(StackLayout::possible(extents(40, 24), &[12, 40], &[24, 12]), [Swapped]);
        assert_eq!(StackLayout::possible(extents(24, 24), &[12, 24], &[24, 12]), [Fused, Swapped]);
        for (a, b) in [
            (vec![13, 24], vec![40, 13]),
            (vec![12, 24], vec![40, 8]),
            (vec![0, 24], vec![40, 0]),
            (vec![12], vec![40, 12]),
        ] {
            assert_eq!(StackLayout::possible(extents(40, 24), &a, &b), []);
        }
    }

    #[test]
    fn blocks_of_gate_and_up() {
        let of = |b: &[f32]| block_split(&[(vec![0.0; 8], b.to_vec())], 4, false);
        assert_eq!(of(&[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), Some(2));
        assert_eq!(of(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), Some(2));
        assert_eq!(of(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]), Some(1));
        assert_eq!(of(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), None);
        assert_eq!(of(&[0.0; 8]), None);
        assert_eq!(block_split(&[(vec![0.0; 8], vec![0.0; 8])], 4, true), Some(2));
        assert_eq!(of(&[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), Some(4));
    }
}
