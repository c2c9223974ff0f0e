//! Look-up of rows in a table: `y_td = w_{ids_t}d`, and `dw_{ids_t}d += dy_td`.
//!
//! T tokens, V vocabulary, D width. As `torch.nn.Embedding`, except that its gradient on several threads has no fixed
//! order of additions; here the order is that of the tokens, and the columns are divided among the threads.

use std::ops::Range;

use super::add::add_slice;
use super::lanes::{row_grain, split};
use crate::encoding::Encoding;
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

/// The least number of columns of a thread in the backward pass: four cache lines of each row.
const COLUMNS: usize = 64;
/// Bytes of rows that a thread reads at once.
const AT_ONCE: usize = 256 << 10;

/// Rows in the encoding of a file, decoded when they are looked up: a look-up reads its own rows alone, so the table
/// can stay as small as in the file.
pub struct EncodedRows {
    data: Buffer<u8>,
    encoding: Encoding,
    shape: [usize; 2],
    row_bytes: usize,
}

impl EncodedRows {
    /// Rows of a table `[V, D]`, to be filled by [`EncodedRows::update`].
    ///
    /// # Panics
    /// When a row is not made of whole blocks of the encoding.
    pub fn new(encoding: Encoding, shape: [usize; 2]) -> EncodedRows {
        let row_bytes = encoding.bytes(shape[1]).expect("a row is made of whole blocks of its encoding");
        let bytes = shape[0].checked_mul(row_bytes).expect("a table fits the address space");
        EncodedRows { data: Buffer::scratch(bytes), encoding, shape, row_bytes }
    }

    /// Overwrites all rows, on all threads. `read` is called with a range of the numbers of the table, whole rows, and
    /// a buffer for their bytes, which it has to overwrite; the ranges cover all numbers and are disjoint.
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

    /// The bytes of all rows.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes of all rows, which can be stored and later written back.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

/// A table of rows to look up.
#[derive(Clone, Copy)]
pub enum EmbeddingTable<'a> {
    /// f32 numbers `[V, D]`.
    Numbers(&'a Tensor),
    /// Rows in the encoding of a file.
    Encoded(&'a EncodedRows),
}

impl EmbeddingTable<'_> {
    fn width(self) -> usize {
        match self {
            EmbeddingTable::Numbers(weight) => weight.cols(),
            EmbeddingTable::Encoded(rows) => rows.shape[1],
        }
    }

    fn read(self, id: usize, y: &mut [f32]) {
        match self {
            EmbeddingTable::Numbers(weight) => y.copy_from_slice(weight.row(id)),
            EmbeddingTable::Encoded(rows) => {
                rows.encoding.decode(&rows.data[id * rows.row_bytes..][..rows.row_bytes], y)
            }
        }
    }
}

/// `y_td` of `weight_vd` and T ids.
///
/// # Panics
/// When an id is not below V: callers check ids where they enter.
pub fn forward(weight: EmbeddingTable<'_>, ids: &[u32]) -> Tensor {
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

/// Accumulates `dweight_vd` from `dy_td` and T ids.
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
            // SAFETY: the tasks have disjoint columns, this one holds one range at a time, and the slice is borrowed
            // until the loop ends.
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
        let y = forward(EmbeddingTable::Numbers(&Tensor::new(&w, &[rows, width])), &ids);
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
                let y = forward(EmbeddingTable::Numbers(&w), &ids);
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
        forward(EmbeddingTable::Numbers(&Tensor::zeros(&[3, 4])), &[3]);
    }

    #[test]
    #[should_panic]
    fn ids_beyond_the_bytes_of_a_table_panic() {
        forward(EmbeddingTable::Encoded(&EncodedRows::new(Encoding::BF16, [3, 4])), &[3]);
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
            let mut table = EncodedRows::new(encoding, [rows, width]);
            let byte = |number: usize| number / encoding.block_len() * encoding.block_bytes();
            table.update(|range, out| out.copy_from_slice(&bytes[byte(range.start)..byte(range.end)]));
            assert_eq!(table.data(), bytes);
            let ids = [0, 7, 1199, 600, 7];
            let expected: Vec<f32> =
                ids.iter().flat_map(|id| &decoded[*id as usize * width..][..width]).copied().collect();
            assert_eq!(
                on_every_isa_and_threads(|| forward(EmbeddingTable::Encoded(&table), &ids).to_vec()),
                expected,
                "{encoding}"
            );
        }
    }
}
