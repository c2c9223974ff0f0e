//! Rows of a table by number: `y_td = w_{ids_t}d`, and `dw_{ids_t}d += dy_td`.
//!
//! T tokens, V vocabulary, D width. (`torch.nn.Embedding`, whose gradient on several threads adds in no certain order; here
//! the tokens' is the order, and the threads share the columns.)

use super::add::add_slice;
use super::lanes::{row_grain, split};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel_ranges};

/// Columns that a thread takes at least, in the backward pass: four cache lines of each row.
const COLUMNS: usize = 64;

/// weight_vd and T ids to y_td.
///
/// # Panics
/// When an id is not below V: callers check ids where they enter.
pub fn forward(weight: &Tensor, ids: &[u32]) -> Tensor {
    let width = weight.cols();
    let mut y = Tensor::scratch(&[ids.len(), width]);
    if width > 0 {
        split(ids.len(), row_grain(width), [(&mut *y, width)], |range, [y]| {
            for (y, id) in y.chunks_exact_mut(width).zip(&ids[range]) {
                y.copy_from_slice(weight.row(*id as usize));
            }
        });
    }
    y
}

/// dy_td and T ids: adds to dweight_vd.
///
/// # Panics
/// When the shapes do not belong together, or an id is not below V.
pub fn backward(dy: &Tensor, ids: &[u32], dweight: &mut Tensor) {
    let width = dweight.cols();
    assert_eq!((dy.rows(), dy.cols()), (ids.len(), width), "rows and columns of an embedding's gradient");
    let dweight = Shared::new(dweight);
    parallel_ranges(width, COLUMNS, |columns| {
        for (row, id) in ids.iter().enumerate() {
            let at = *id as usize * width;
            // SAFETY: the tasks have disjoint columns, this one holds one range at a time, and the slice is borrowed until
            // the loop ends.
            let dweight = unsafe { dweight.range(at + columns.start..at + columns.end) };
            add_slice(dweight, &dy.row(row)[columns.clone()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa_and_threads, relative_error, wide};

    #[test]
    fn agrees_with_the_formula_and_its_differences() {
        let (rows, width, ids) = (7, 19, [3, 0, 6, 3, 3]);
        let (w, dy) = (numbers(1, rows * width), numbers(2, ids.len() * width));
        let naive =
            |w: &[f64]| -> Vec<f64> { ids.iter().flat_map(|id| w[*id as usize * width..][..width].to_vec()).collect() };
        let y = forward(&Tensor::new(&w, &[rows, width]), &ids);
        assert_eq!(wide(&y), naive(&wide(&w)));
        let mut dw = Tensor::new(&vec![1.0; rows * width], &[rows, width]);
        backward(&Tensor::new(&dy, &[ids.len(), width]), &ids, &mut dw);
        let loss = |w: &[f64]| naive(w).iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum();
        let mut expected = finite_differences(&wide(&w), loss);
        expected.iter_mut().for_each(|g| *g += 1.0);
        assert!(relative_error(&dw, &expected) < 1e-6);
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_number_of_threads() {
        for (tokens, rows, width) in [(0, 3, 5), (1, 1, 1), (9, 4, 33), (100, 13, 1000)] {
            let ids: Vec<u32> = (0..tokens).map(|t| (t * t % rows) as u32).collect();
            let run = || {
                let w = Tensor::new(&numbers(1, rows * width), &[rows, width]);
                let y = forward(&w, &ids);
                let mut dw = Tensor::zeros(&[rows, width]);
                backward(&Tensor::new(&numbers(2, tokens * width), &[tokens, width]), &ids, &mut dw);
                [&y[..], &dw[..]].concat()
            };
            on_every_isa_and_threads(run);
        }
    }

    #[test]
    #[should_panic]
    fn ids_beyond_the_table_panic() {
        forward(&Tensor::zeros(&[3, 4]), &[3]);
    }
}
