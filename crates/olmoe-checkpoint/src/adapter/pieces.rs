//! What a file has for each matrix, and the adapters that it makes.

use std::collections::BTreeMap;

use olmoe_model::adapter::{Adapter, AdapterInit, Sharing};
use olmoe_model::parameters::{ModulePart, ParameterSpec};

use super::AdapterPart;
use super::error::AdapterFileError;
use crate::layout::slabs;

/// The adapter of one matrix: A `[r, in]` (of the embedding `[V, r]`), B `[out, r]`.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    pub(super) magnitude: Option<Vec<f32>>,
}

/// The adapters of matrices by canonical parameter and matrix of its stack.
pub(super) type Pieces = BTreeMap<(usize, usize), Piece>;

/// Rows and columns of a matrix as a linear map: of the embedding the vocabulary is the input.
pub(super) fn out_and_in(spec: &ParameterSpec) -> (usize, usize) {
    let (_, rows, columns) = slabs(&spec.shape);
    if spec.module.part == ModulePart::Embedding { (columns, rows) } else { (rows, columns) }
}

/// Stacks the matrices of experts. Experts without an adapter get one of zeros; ranks that differ are filled up with zeros,
/// and scales that differ go into B. Of a matrix in `shared`, experts with the same sides share them.
pub(super) fn assemble(
    specs: &[ParameterSpec],
    mut pieces: Pieces,
    shared: &BTreeMap<String, Sharing>,
) -> Result<Vec<AdapterPart>, AdapterFileError> {
    let mut parts = Vec::new();
    while let Some((&(parameter, _), _)) = pieces.first_key_value() {
        let spec = &specs[parameter];
        let (groups, rows, columns) = slabs(&spec.shape);
        let (out, input) = out_and_in(spec);
        let mut of_slabs: Vec<Option<Piece>> = (0..groups).map(|slab| pieces.remove(&(parameter, slab))).collect();
        let given = || of_slabs.iter().flatten();
        let rank = given().map(|piece| piece.rank).max().unwrap_or(1);
        let scale = given().map(|piece| piece.scale).next().unwrap_or(1.0);
        let uniform = given().all(|piece| piece.scale == scale);
        let dora = given().any(|piece| piece.magnitude.is_some());
        if dora && of_slabs.iter().any(|piece| piece.as_ref().is_none_or(|piece| piece.magnitude.is_none())) {
            return Err(AdapterFileError::Disagree(format!(
                "only some of the experts of {} have DoRA adapters, and the magnitudes of the others are not known; merge \
                 it with peft",
                spec.module
            )));
        }
        let embedding = spec.module.part == ModulePart::Embedding;
        let (mut a, mut b, mut magnitude) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &mut of_slabs {
            let Some(piece) = piece.take() else {
                a.resize(a.len() + rank * input, 0.0);
                b.resize(b.len() + out * rank, 0.0);
                continue;
            };
            if embedding {
                a.extend(piece.a);
            } else {
                a.extend(piece.a);
                a.resize(a.len() + (rank - piece.rank) * input, 0.0);
            }
            let factor = if uniform { 1.0 } else { piece.scale };
            for row in piece.b.chunks_exact(piece.rank) {
                b.extend(row.iter().map(|b| factor * b));
                b.resize(b.len() + rank - piece.rank, 0.0);
            }
            magnitude.extend(piece.magnitude.unwrap_or_default());
        }
        let share = match shared.get(&spec.module.to_string()) {
            Some(share) if groups > 1 => confirmed(*share, groups, &mut a, &mut b),
            _ => Sharing::PerExpert,
        };
        let adapter = Adapter {
            module: spec.module,
            rank,
            scale: if uniform { scale } else { 1.0 },
            dora,
            share,
            dropout: 0.0,
            init: AdapterInit::default(),
        };
        let magnitude = dora.then_some(magnitude);
        parts.push(AdapterPart { adapter, a, b, magnitude, base: parameter, extents: (groups, rows, columns) });
    }
    Ok(parts)
}

/// The sides that are in fact the same for all experts, of which one copy is kept.
fn confirmed(share: Sharing, groups: usize, a: &mut Vec<f32>, b: &mut Vec<f32>) -> Sharing {
    let collapse = |side: &mut Vec<f32>, shared: bool| {
        let len = side.len() / groups;
        let alike = shared && len > 0 && side.chunks_exact(len).all(|expert| expert == &side[..len]);
        if alike {
            side.truncate(len);
        }
        alike
    };
    let [shared_a, shared_b] = share.sides();
    match (collapse(a, shared_a), collapse(b, shared_b)) {
        (true, true) => Sharing::Both,
        (true, false) => Sharing::A,
        (false, true) => Sharing::B,
        (false, false) => Sharing::PerExpert,
    }
}
