//! The layout of the parameters of a model in the tensors of a format.
//!
//! A format is a table from canonical names to its own names. A tensor of a file is a sequence of *slabs*: a slab is
//! one matrix of a parameter (that of one expert of a stack, or a whole matrix or vector), which may be transposed or
//! have its rows in another order. Reading restores the canonical order of a slab, writing applies that of the format;
//! a conversion does both.

use std::collections::HashMap;

use olmoe_model::parameters::ParameterSpec;

use crate::encoding::Encoding;

/// One line of the table of a format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Canonical name: `{i}` stands for the layer, `{s}` for `weight` or `bias`.
    pub(crate) canonical: &'static str,
    /// Name in the file: the same, and `{e}` for the expert when each has a tensor of its own.
    pub(crate) file: &'static str,
    /// Parameters with the same name in the file are concatenated in this order, slab by slab.
    pub(crate) order: u8,
    /// How the format changes each slab.
    pub(crate) transform: Transform,
    /// A stack of matrices is written as one matrix of all their rows.
    pub(crate) flat: bool,
}

impl Row {
    /// The slab is stored unchanged.
    pub(crate) const fn new(canonical: &'static str, file: &'static str) -> Self {
        Self { canonical, file, order: 0, transform: Transform::Same, flat: false }
    }

    pub(crate) const fn order(self, order: u8) -> Self {
        Self { order, ..self }
    }

    pub(crate) const fn transform(self, transform: Transform) -> Self {
        Self { transform, ..self }
    }

    pub(crate) const fn flat(self) -> Self {
        Self { flat: true, ..self }
    }
}

/// How a format stores a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Unchanged.
    Same,
    /// Transposed: `[out, in]` is written as `[in, out]`.
    Transpose,
    /// With the rows of each of that many heads interleaved: the pairs of the rotary embedding are adjacent
    /// (`0, d/2, 1, d/2 + 1, …`), where in the canonical order they are half a head apart.
    Interleave(usize),
}

/// A slab of a parameter in a tensor of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredSlab {
    /// Index of the parameter.
    pub(crate) parameter: usize,
    /// Index of the slab in the parameter.
    pub(crate) slab: usize,
    pub(crate) transform: Transform,
}

/// A tensor as a format has it.
#[derive(Clone, Debug)]
pub(crate) struct FileTensor {
    /// Its name there.
    pub(crate) name: String,
    /// Row-major, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Its slabs, one after the other.
    pub(crate) pieces: Vec<StoredSlab>,
}

impl FileTensor {
    pub(crate) fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where a slab lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Index of the tensor.
    pub(crate) tensor: usize,
    /// Numbers before it.
    pub(crate) start: usize,
    pub(crate) transform: Transform,
}

/// All tensors of a model in one format.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// In canonical order of their first parameter.
    pub(crate) tensors: Vec<FileTensor>,
    /// By parameter and slab.
    places: Vec<Vec<Place>>,
}

/// Matrices of a parameter, and rows and columns of each. A vector is a column.
pub(crate) fn slabs(shape: &[usize]) -> (usize, usize, usize) {
    match *shape {
        [groups, rows, columns] => (groups, rows, columns),
        [rows, columns] => (1, rows, columns),
        [rows] => (1, rows, 1),
        _ => (1, shape.iter().product(), 1),
    }
}

impl Layout {
    /// The layout of the parameters by the table of a format.
    ///
    /// # Errors
    /// The name of the first parameter that the table does not have.
    pub(crate) fn new(rows: &[Row], specs: &[ParameterSpec]) -> Result<Layout, String> {
        let mut tensors: Vec<FileTensor> = Vec::new();
        // Sort keys of the pieces, beside them: slab by slab, then the order of the table.
        let mut keys: Vec<Vec<(usize, u8)>> = Vec::new();
        let mut by_name: HashMap<String, usize> = HashMap::new();
        for (parameter, spec) in specs.iter().enumerate() {
            let named = |pattern: &str| {
                let layer = spec.module.layer.map(|layer| layer.to_string()).unwrap_or_default();
                pattern.replace("{i}", &layer).replace("{s}", spec.kind.suffix())
            };
            let row = rows.iter().find(|row| named(row.canonical) == spec.name).ok_or_else(|| spec.name.clone())?;
            let (groups, out, input) = slabs(&spec.shape);
            let (out, input) = if row.transform == Transform::Transpose { (input, out) } else { (out, input) };
            let name = named(row.file);
            for slab in 0..groups {
                let name = name.replace("{e}", &slab.to_string());
                let index = *by_name.entry(name).or_insert_with_key(|name| {
                    let shape = if spec.shape.len() == 1 { vec![0] } else { vec![0, input] };
                    let stacked = spec.shape.len() == 3 && !row.flat && !row.file.contains("{e}");
                    let shape = if stacked { vec![groups, 0, input] } else { shape };
                    tensors.push(FileTensor { name: name.clone(), shape, pieces: Vec::new() });
                    keys.push(Vec::new());
                    tensors.len() - 1
                });
                let tensor = &mut tensors[index];
                match &mut tensor.shape[..] {
                    // Every member of the stack grows alike; counted once.
                    [_, rows, _] if slab == 0 => *rows += out,
                    [_, _, _] => {}
                    [rows, ..] => *rows += out,
                    [] => {}
                }
                tensor.pieces.push(StoredSlab { parameter, slab, transform: row.transform });
                keys[index].push((slab, row.order));
            }
        }
        for (tensor, keys) in tensors.iter_mut().zip(&keys) {
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by_key(|&at| keys[at]);
            tensor.pieces = order.into_iter().map(|at| tensor.pieces[at]).collect();
        }
        let mut places: Vec<Vec<Option<Place>>> = specs.iter().map(|spec| vec![None; slabs(&spec.shape).0]).collect();
        for (index, tensor) in tensors.iter().enumerate() {
            let mut start = 0;
            for piece in &tensor.pieces {
                let place = Place { tensor: index, start, transform: piece.transform };
                places[piece.parameter][piece.slab] = Some(place);
                let (_, rows, columns) = slabs(&specs[piece.parameter].shape);
                start += rows * columns;
            }
        }
        let places = places.into_iter().map(|slabs| slabs.into_iter().flatten().collect()).collect();
        Ok(Layout { tensors, places })
    }

    /// Where a slab lies.
    pub(crate) fn place(&self, parameter: usize, slab: usize) -> Place {
        self.places[parameter][slab]
    }
}

impl Transform {
    /// Converts the canonical order `[rows, columns]` to that of the file.
    pub(crate) fn apply(self, encoding: Encoding, (rows, columns): (usize, usize), from: &[u8], to: &mut [u8]) {
        match self {
            Transform::Same => to.copy_from_slice(from),
            Transform::Transpose => transpose(encoding.block_bytes(), rows, columns, from, to),
            Transform::Interleave(head) => {
                move_rows(from, to, rows, |row| (interleaved(row, head), row));
            }
        }
    }

    /// Converts the order of the file to the canonical `[rows, columns]`.
    pub(crate) fn invert(self, encoding: Encoding, (rows, columns): (usize, usize), from: &[u8], to: &mut [u8]) {
        match self {
            Transform::Same => to.copy_from_slice(from),
            Transform::Transpose => transpose(encoding.block_bytes(), columns, rows, from, to),
            Transform::Interleave(head) => {
                move_rows(from, to, rows, |row| (row, interleaved(row, head)));
            }
        }
    }

    /// The place of a canonical row in the order of the file, if rows stay whole.
    pub(crate) fn row(self, row: usize) -> Option<usize> {
        match self {
            Transform::Same => Some(row),
            Transform::Interleave(head) => Some(interleaved(row, head)),
            Transform::Transpose => None,
        }
    }

    /// Whether the transform is possible in an encoding, whose blocks lie along rows and stay whole.
    pub(crate) fn keeps_blocks(self) -> bool {
        self != Transform::Transpose
    }
}

/// The place of a canonical row among rows whose rotary pairs are adjacent.
fn interleaved(row: usize, head: usize) -> usize {
    let (start, within) = (row / head * head, row % head);
    let half = head / 2;
    start + if within < half { 2 * within } else { 2 * (within - half) + 1 }
}

/// Copies rows: `places(row)` says where a row is written and where it is read.
fn move_rows(from: &[u8], to: &mut [u8], rows: usize, places: impl Fn(usize) -> (usize, usize)) {
    let width = from.len() / rows.max(1);
    for row in 0..rows {
        let (target, source) = places(row);
        to[target * width..(target + 1) * width].copy_from_slice(&from[source * width..(source + 1) * width]);
    }
}

/// `to [columns, rows]` from `from [rows, columns]`, elements of `size` bytes.
fn transpose(size: usize, rows: usize, columns: usize, from: &[u8], to: &mut [u8]) {
    match size {
        2 => transpose_chunks::<2>(rows, columns, from, to),
        _ => transpose_chunks::<4>(rows, columns, from, to),
    }
}

fn transpose_chunks<const N: usize>(rows: usize, columns: usize, from: &[u8], to: &mut [u8]) {
    /// Both sides of a square stay in the first-level cache.
    const SIDE: usize = 32;
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            for c in column..(column + SIDE).min(columns) {
                for r in row..(row + SIDE).min(rows) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use olmoe_model::config::ModelConfig;
    use olmoe_model::parameters::parameters;

    use super::*;

    #[test]
    fn transforms_are_undone() {
        for (rows, columns, head) in [(2, 1, 2), (8, 3, 4), (70, 33, 10), (64, 128, 64)] {
            for encoding in [Encoding::BF16, Encoding::F32] {
                let bytes: Vec<u8> = (0..rows * columns * encoding.block_bytes()).map(|i| (i % 251) as u8).collect();
                for transform in [Transform::Same, Transform::Transpose, Transform::Interleave(head)] {
                    let (mut there, mut back) = (vec![0; bytes.len()], vec![0; bytes.len()]);
                    transform.apply(encoding, (rows, columns), &bytes, &mut there);
                    transform.invert(encoding, (rows, columns), &there, &mut back);
                    assert_eq!(back, bytes, "{transform:?}");
                }
            }
        }
        let mut to = [0; 8];
        Transform::Interleave(4).apply(Encoding::BF16, (4, 1), &[0, 0, 1, 1, 2, 2, 3, 3], &mut to);
        assert_eq!(to, [0, 0, 2, 2, 1, 1, 3, 3]);
    }

    #[test]
    fn joined_parameters_lie_slab_by_slab() {
        let rows = [
            Row::new("embed_tokens.{s}", "emb"),
            Row::new("layers.{i}.attention_norm.{s}", "{i}.n1"),
            Row::new("layers.{i}.attention.q_proj.{s}", "{i}.qkv"),
            Row::new("layers.{i}.attention.k_proj.{s}", "{i}.qkv").order(1),
            Row::new("layers.{i}.attention.v_proj.{s}", "{i}.qkv").order(2),
            Row::new("layers.{i}.attention.q_norm.{s}", "{i}.qn"),
            Row::new("layers.{i}.attention.k_norm.{s}", "{i}.kn"),
            Row::new("layers.{i}.attention.o_proj.{s}", "{i}.o"),
            Row::new("layers.{i}.mlp_norm.{s}", "{i}.n2"),
            Row::new("layers.{i}.moe.router.{s}", "{i}.r"),
            Row::new("layers.{i}.moe.experts.gate_proj.{s}", "{i}.gu").order(1),
            Row::new("layers.{i}.moe.experts.up_proj.{s}", "{i}.gu"),
            Row::new("layers.{i}.moe.experts.down_proj.{s}", "{i}.d").transform(Transform::Transpose).flat(),
            Row::new("norm.{s}", "norm"),
            Row::new("lm_head.{s}", "head"),
        ];
        let specs = parameters(&ModelConfig::release());
        let layout = Layout::new(&rows, &specs).unwrap();
        let tensor = |name: &str| layout.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(tensor("3.qkv").shape, [6144, 2048]);
        assert_eq!(tensor("3.gu").shape, [64, 2048, 2048]);
        assert_eq!(tensor("3.d").shape, [65536, 2048]);
        assert_eq!(tensor("norm").shape, [2048]);
        let gate = specs.iter().position(|spec| spec.name == "layers.3.moe.experts.gate_proj.weight").unwrap();
        let place = layout.place(gate, 5);
        assert_eq!(place.start, (5 * 2048 + 1024) * 2048);
        assert_eq!(Layout::new(&rows[1..], &specs).unwrap_err(), "embed_tokens.weight");
    }
}
