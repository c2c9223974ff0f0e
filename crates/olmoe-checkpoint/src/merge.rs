//! An adapter merged into the weights of its base: `W + s·B·A`, with DoRA `m ⊙ (W + s·B·A)/‖W + s·B·A‖` by rows.
//!
//! Everything is computed in f32 from the numbers that the base stands for, and rounded once, to the type that is written.
//! Small changes of bf16 numbers and of blocks get lost in that rounding; how much of the change is left is measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use olmoe_model::config::ModelConfig;
use olmoe_model::parameters::{ModulePart, ParameterSpec};
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::threads::{Shared, parallel_ranges};

use crate::adapter::{AdapterPart, AdapterWeights};
use crate::checkpoint::Checkpoint;
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::weights::{Weights, slab_len};

/// The types of the changed matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergedType {
    /// Those of the base, blocks too.
    Kept,
    /// The type that the conversion writes, which rounds.
    Written,
}

/// What is left of a change after rounding, for the matrices of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Survival {
    /// Matrices that the adapter changes.
    pub matrices: usize,
    /// Sum of the squares of the base.
    pub squares: f64,
    /// Sum of the squares of the change, before rounding.
    pub change: f64,
    /// Sum of the products of the change before and after rounding.
    pub product: f64,
    /// Sum of the squares of the difference of the change before and after rounding.
    pub lost: f64,
}

impl Survival {
    /// The Frobenius norm of the change by that of the base.
    pub fn relative(&self) -> f64 {
        quotient(self.change.sqrt(), self.squares.sqrt())
    }

    /// The share of the change that is left: the length of the rounded change along the change, by the change's. 1 where
    /// nothing changes.
    pub fn kept(&self) -> f64 {
        if self.change == 0.0 { 1.0 } else { self.product / self.change }
    }

    /// The Frobenius norm of what rounding adds and takes, by that of the change.
    pub fn rounding(&self) -> f64 {
        quotient(self.lost.sqrt(), self.change.sqrt())
    }

    /// Adds the matrices of another.
    pub fn add(&mut self, other: &Survival) {
        self.matrices += other.matrices;
        self.squares += other.squares;
        self.change += other.change;
        self.product += other.product;
        self.lost += other.lost;
    }
}

fn quotient(x: f64, y: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x / y }
}

/// A slab before and after, until it is written.
struct Changed {
    place: (usize, usize),
    before: Buffer<f32>,
    after: Buffer<f32>,
}

/// A checkpoint with an adapter merged into it, computed as it is read.
pub struct Merged<'c> {
    base: &'c Checkpoint,
    adapter: &'c AdapterWeights,
    types: MergedType,
    /// The changed slab that was read last.
    last: Mutex<Option<Changed>>,
    survival: Mutex<BTreeMap<String, Survival>>,
}

impl<'c> Merged<'c> {
    /// Merges an adapter that was read for the configuration of the checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] for an adapter that was read for another model.
    pub fn new(
        base: &'c Checkpoint,
        adapter: &'c AdapterWeights,
        types: MergedType,
    ) -> Result<Merged<'c>, CheckpointError> {
        base.check_parameters(&adapter.specs)?;
        Ok(Merged { base, adapter, types, last: Mutex::default(), survival: Mutex::default() })
    }

    /// What is left of the changes that were written, by kind of matrix.
    pub fn survival(&self) -> BTreeMap<String, Survival> {
        self.survival.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn part(&self, parameter: usize) -> Option<&AdapterPart> {
        self.adapter.parts.iter().find(|part| part.base == parameter)
    }

    fn replaced(&self, parameter: usize, slab: usize) -> Option<&[f32]> {
        let found = self.adapter.replaced.iter().find(|one| (one.parameter, one.slab) == (parameter, slab));
        found.map(|found| &found.values[..])
    }

    fn changes(&self, parameter: usize, slab: usize) -> bool {
        self.part(parameter).is_some() || self.replaced(parameter, slab).is_some()
    }

    /// The numbers of a slab before and after.
    fn changed(&self, parameter: usize, slab: usize) -> Result<Changed, CheckpointError> {
        let spec = &self.base.parameters()[parameter];
        let encoding = self.base.encoding(parameter, slab);
        let bytes = self.base.read(parameter, slab)?;
        self.base.check_finite(&bytes, encoding, parameter, slab, 0)?;
        let mut before = Buffer::<f32>::scratch(slab_len(spec));
        encoding.decode(&bytes, &mut before);
        let mut after = match self.replaced(parameter, slab) {
            Some(values) => Buffer::copy_of(values),
            None => Buffer::copy_of(&before),
        };
        if let Some(part) = self.part(parameter) {
            merge(part, slab, &mut after);
        }
        Ok(Changed { place: (parameter, slab), before, after })
    }
}

/// Merges the adapter of a matrix into its numbers `[rows, columns]`.
fn merge(part: &AdapterPart, slab: usize, numbers: &mut [f32]) {
    let (_, _, columns) = part.extents;
    let (a, b, magnitude) = part.of(slab);
    let (rank, scale) = (part.adapter.rank, part.adapter.scale);
    // Row o of the change is Σ_r left[o, r]·right[r, :]. The embedding's rows are those of A.
    let turned;
    let (left, right) = match part.adapter.module.part {
        ModulePart::Embedding => {
            turned = (0..rank * columns).map(|at| b[at % columns * rank + at / columns]).collect::<Vec<f32>>();
            (a, &turned[..])
        }
        _ => (b, a),
    };
    let rows = numbers.len() / columns.max(1);
    let shared = Shared::new(numbers);
    parallel_ranges(rows, 16, |range| {
        let mut change = vec![0.0f32; columns];
        for row in range {
            change.fill(0.0);
            for (r, &factor) in left[row * rank..(row + 1) * rank].iter().enumerate() {
                for (sum, x) in change.iter_mut().zip(&right[r * columns..(r + 1) * columns]) {
                    *sum += factor * x;
                }
            }
            // SAFETY: the ranges of a parallel loop are disjoint, and so are their rows.
            let numbers = unsafe { shared.range(row * columns..(row + 1) * columns) };
            for (x, change) in numbers.iter_mut().zip(&change) {
                *x += scale * change;
            }
            if let Some(magnitude) = magnitude {
                let squares: f64 = numbers.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                let factor = magnitude[row] / squares.sqrt() as f32;
                // A row of zeros has no direction.
                let factor = if squares == 0.0 { 0.0 } else { factor };
                numbers.iter_mut().for_each(|x| *x *= factor);
            }
        }
    });
}

impl Weights for Merged<'_> {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn parameters(&self) -> &[ParameterSpec] {
        self.base.parameters()
    }

    fn encoding(&self, parameter: usize, slab: usize) -> Encoding {
        match self.types {
            MergedType::Written if self.changes(parameter, slab) => Encoding::F32,
            _ => self.base.encoding(parameter, slab),
        }
    }

    fn main_encoding(&self) -> Encoding {
        self.base.main_encoding()
    }

    fn widens_vectors(&self) -> bool {
        self.base.widens_vectors()
    }

    fn origin(&self) -> &Path {
        self.base.origin()
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        if !self.changes(parameter, slab) {
            return self.base.read(parameter, slab);
        }
        let changed = self.changed(parameter, slab)?;
        let to = self.encoding(parameter, slab);
        let mut bytes = Buffer::scratch(to.bytes(changed.after.len()).unwrap_or(0));
        to.encode(&changed.after, &mut bytes);
        if to.first_beyond(&bytes).is_some() {
            let numbers = &changed.after;
            let worst = (0..numbers.len()).max_by(|a, b| numbers[*a].abs().total_cmp(&numbers[*b].abs())).unwrap_or(0);
            return Err(CheckpointError::Overflow {
                path: self.origin().to_owned(),
                parameter: self.parameters()[parameter].name.clone(),
                slab,
                at: worst,
                value: numbers[worst],
                encoding: to.name(),
            });
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
        Ok(bytes)
    }

    fn written(&self, parameter: usize, slab: usize, encoding: Encoding, bytes: &[u8]) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(changed) = last.filter(|changed| changed.place == (parameter, slab)) else { return };
        let mut rounded = Buffer::<f32>::scratch(changed.after.len());
        encoding.decode(bytes, &mut rounded);
        let mut sums = Survival { matrices: 1, ..Survival::default() };
        for ((before, after), rounded) in changed.before.iter().zip(&changed.after[..]).zip(&rounded[..]) {
            let [before, after, rounded] = [before, after, rounded].map(|x| f64::from(*x));
            let (change, kept) = (after - before, rounded - before);
            sums.squares += before * before;
            sums.change += change * change;
            sums.product += change * kept;
            sums.lost += (kept - change) * (kept - change);
        }
        let kind = self.parameters()[parameter].module.part.name().to_owned();
        self.survival.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default().add(&sums);
    }
}
