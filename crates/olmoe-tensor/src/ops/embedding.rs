//! Rows of a table by number: `y_td = w_{ids_t}d`, and `dw_{ids_t}d += dy_td`.
//!
//! T tokens, V vocabulary, D width. (`torch.nn.Embedding`, whose gradient on several threads adds in no certain order; here
//! the tokens' is the order, and the threads share the columns.)

use std::ops::Range;

use super::add::add_slice;
use super::lanes::{row_grain, split};
use crate::encoding::Encoding;
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

/// Columns that a thread takes at least, in the backward pass: four cache lines of each row.
const COLUMNS: usize = 64;
/// Bytes of rows that a thread reads at once.
const AT_ONCE: usize = 256 << 10;

/// Rows as they lie in a file, decoded when they are looked up: no look-up reads more than its own rows, so the table need
/// not be larger than the file has it.
pub struct Rows {
    data: Buffer<u8>,
    encoding: Encoding,
    shape: [usize; 2],
    row_bytes: usize,
}

impl Rows {
    /// Room for rows of a shape `[V, D]`; [`Rows::update`] fills it.
    ///
    /// # Panics
    /// Unless a row is whole units of the encoding.
    pub fn new(encoding: Encoding, shape: [usize; 2]) -> Rows {
        let row_bytes = encoding.bytes(shape[1]).expect("a row is whole units of its encoding");
        let bytes = shape[0].checked_mul(row_bytes).expect("a table fits the address space");
        Rows { data: Buffer::scratch(bytes), encoding, shape, row_bytes }
    }

    /// Reads all rows anew, on all threads. `read` gets a range of the table's numbers, whole rows, and room for their bytes,
    /// which it has to overwrite; the ranges cover all of them, and no two run over each other.
    pub fn update(&mut self, read: impl Fn(Range<usize>, &mut [u8]) + Sync) {
        let ([rows, width], row_bytes) = (self.shape, self.row_bytes);
        let at_once = (AT_ONCE / row_bytes.max(1)).max(1);
        let data = Shared::new(&mut self.data);
        parallel(rows.div_ceil(at_once), |task| {
            let some = task * at_once..((task + 1) * at_once).min(rows);
            // SAFETY: each task has other rows.
            let bytes = unsafe { data.range(some.start * row_bytes..some.end * row_bytes) };
            read(some.start * width..some.end * width, bytes);
        });
    }

    /// The encoding of the rows.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// All bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All bytes, to be put back as they were.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

/// A table of rows.
#[derive(Clone, Copy)]
pub enum Table<'a> {
    /// As numbers `[V, D]`.
    Numbers(&'a Tensor),
    /// As bytes.
    Rows(&'a Rows),
}

impl Table<'_> {
    fn width(self) -> usize {
        match self {
            Table::Numbers(weight) => weight.cols(),
            Table::Rows(rows) => rows.shape[1],
        }
    }

    fn read(self, id: usize, y: &mut [f32]) {
        match self {
            Table::Numbers(weight) => y.copy_from_slice(weight.row(id)),
            Table::Rows(rows) => rows.encoding.decode(&rows.data[id * rows.row_bytes..][..rows.row_bytes], y),
        }
    }
}

/// weight_vd and T ids to y_td.
///
/// # Panics
/// When an id is not below V: callers check ids where they enter.
pub fn forward(weight: Table<'_>, ids: &[u32]) -> Tensor {
    let width = weight.width();
    let mut y = Tensor::scratch(&[ids.len(), width]);
    if width > 0 {
        split(ids.len(), row_grain(width), [(&mut *y, width)], |range, [y]| {
            for (y, id) in y.chunks_exact_mut(width).zip(&ids[range]) {
                weight.read(*id as usize, y);
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
    use crate::quant::BlockFormat;
    use crate::testing::{finite_differences, numbers, on_every_isa_and_threads, relative_error, wide};

    #[test]
    fn agrees_with_the_formula_and_its_differences() {
        let (rows, width, ids) = (7, 19, [3, 0, 6, 3, 3]);
        let (w, dy) = (numbers(1, rows * width), numbers(2, ids.len() * width));
        let naive =
            |w: &[f64]| -> Vec<f64> { ids.iter().flat_map(|id| w[*id as usize * width..][..width].to_vec()).collect() };
        let y = forward(Table::Numbers(&Tensor::new(&w, &[rows, width])), &ids);
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
                let y = forward(Table::Numbers(&w), &ids);
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
        forward(Table::Numbers(&Tensor::zeros(&[3, 4])), &[3]);
    }

    #[test]
    #[should_panic]
    fn ids_beyond_the_bytes_of_a_table_panic() {
        forward(Table::Rows(&Rows::new(Encoding::BF16, [3, 4])), &[3]);
    }

    #[test]
    fn rows_are_decoded_as_they_are_looked_up() {
        let plain = [Encoding::F32, Encoding::BF16, Encoding::F16];
        for encoding in plain.into_iter().chain(BlockFormat::ALL.map(Encoding::Blocks)) {
            // Enough rows for several tasks.
            let (rows, width) = (1200, 256);
            let w = numbers(3, rows * width);
            let mut bytes = vec![0; encoding.bytes(w.len()).unwrap()];
            encoding.encode(&w, &mut bytes);
            let mut decoded = vec![0.0; w.len()];
            encoding.decode(&bytes, &mut decoded);
            let mut table = Rows::new(encoding, [rows, width]);
            let byte = |number: usize| number / encoding.unit() * encoding.unit_bytes();
            table.update(|range, out| out.copy_from_slice(&bytes[byte(range.start)..byte(range.end)]));
            assert_eq!(table.data(), bytes);
            let ids = [0, 7, 1199, 600, 7];
            let expected: Vec<f32> =
                ids.iter().flat_map(|id| &decoded[*id as usize * width..][..width]).copied().collect();
            assert_eq!(
                on_every_isa_and_threads(|| forward(Table::Rows(&table), &ids).to_vec()),
                expected,
                "{encoding}"
            );
        }
    }
}
