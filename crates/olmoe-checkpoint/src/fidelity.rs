//! Verification of a conversion: that what is read back is what was written, and the rounding errors against the
//! source.

use std::collections::BTreeMap;
use std::path::Path;

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::threads::{Shared, parallel};

use crate::checkpoint::Checkpoint;
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::layout::slabs;
use crate::step::Step;
use crate::weights::Weights;

/// The rounding errors of the tensors of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fidelity {
    /// Numbers.
    pub numbers: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
    /// Tensors by encoding.
    pub encodings: BTreeMap<&'static str, usize>,
    /// Sum of squared differences.
    pub squared_error: f64,
    /// Sum of squares before.
    pub squares: f64,
    /// Largest difference.
    pub max_error: f64,
}

impl Fidelity {
    /// Root of the mean squared difference.
    pub fn rmse(&self) -> f64 {
        (self.squared_error / (self.numbers as f64).max(1.0)).sqrt()
    }

    /// Root of the sum of squared differences divided by the root of the sum of squares; 0 where nothing changed.
    pub fn relative(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squares).sqrt() }
    }
}

/// The hash of every slab as it was written, and its rounding errors.
pub(crate) struct Recorder<'s> {
    source: &'s dyn Weights,
    hashes: Vec<Vec<Option<blake3::Hash>>>,
    pub(crate) kinds: BTreeMap<String, Fidelity>,
    /// How many numbers were outside the range of their type.
    pub(crate) clamped: u64,
}

impl<'s> Recorder<'s> {
    pub(crate) fn new(source: &'s dyn Weights) -> Self {
        let hashes = source.parameters().iter().map(|spec| vec![None; slabs(&spec.shape).0]).collect();
        Self { source, hashes, kinds: BTreeMap::new(), clamped: 0 }
    }

    pub(crate) fn record(
        &mut self,
        (parameter, slab): (usize, usize),
        (from, before): (Encoding, &[u8]),
        (to, after): (Encoding, &[u8]),
        numbers: usize,
    ) {
        self.hashes[parameter][slab] = Some(blake3::hash(after));
        let spec = &self.source.parameters()[parameter];
        let kind = self.kinds.entry(spec.module.part.name().to_owned()).or_default();
        kind.numbers += numbers as u64;
        kind.bytes_before += before.len() as u64;
        kind.bytes_after += after.len() as u64;
        if slab == 0 {
            *kind.encodings.entry(to.name()).or_default() += 1;
        }
        if from != to {
            for change in changes((from, before), (to, after), numbers) {
                kind.squares += change.squares;
                kind.squared_error += change.squared_error;
                kind.max_error = kind.max_error.max(change.max_error);
            }
        }
    }

    /// Reads the result as any reader does, and compares every slab with what was written.
    pub(crate) fn compare(
        &self,
        result: &Checkpoint,
        path: &Path,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        self.source.config().same_function(result.config())?;
        for (parameter, hashes) in self.hashes.iter().enumerate() {
            for (slab, hash) in hashes.iter().enumerate() {
                let bytes = result.read(parameter, slab)?;
                if Some(blake3::hash(&bytes)) != *hash {
                    let parameter = self.source.parameters()[parameter].name.clone();
                    return Err(CheckpointError::ReadBack { path: path.to_owned(), parameter, slab });
                }
                progress(Step::Compared(bytes.len() as u64));
            }
        }
        Ok(())
    }
}

/// The changes of some numbers by a conversion.
#[derive(Clone, Copy, Default)]
struct Change {
    squares: f64,
    squared_error: f64,
    max_error: f64,
}

/// Computes the changes piece by piece, in an order that does not depend on the number of threads.
fn changes((from, before): (Encoding, &[u8]), (to, after): (Encoding, &[u8]), numbers: usize) -> Vec<Change> {
    /// Numbers of a piece: a multiple of every block.
    const PIECE: usize = 1 << 16;
    let mut changes = vec![Change::default(); numbers.div_ceil(PIECE)];
    let shared = Shared::new(&mut changes);
    parallel(numbers.div_ceil(PIECE), |task| {
        let range = task * PIECE..((task + 1) * PIECE).min(numbers);
        let decoded = |encoding: Encoding, bytes: &[u8]| {
            let mut numbers = Buffer::<f32>::scratch(range.len());
            let place = |number: usize| number / encoding.block_len() * encoding.block_bytes();
            encoding.decode(&bytes[place(range.start)..place(range.end)], &mut numbers);
            numbers
        };
        let (x, y) = (decoded(from, before), decoded(to, after));
        let mut change = Change::default();
        for (x, y) in x.iter().zip(&y[..]) {
            let (x, error) = (f64::from(*x), f64::from(*x) - f64::from(*y));
            change.squares += x * x;
            change.squared_error += error * error;
            change.max_error = change.max_error.max(error.abs());
        }
        // SAFETY: each task writes an element of its own.
        let place = unsafe { shared.range(task..task + 1) };
        place[0] = change;
    });
    changes
}
