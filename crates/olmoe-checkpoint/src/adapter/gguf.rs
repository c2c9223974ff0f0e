//! llama.cpp's adapters: a GGUF file with two tensors for each adapted tensor of the model.
//!
//! ```text
//! general.type = adapter   general.architecture = that of the model   adapter.type = lora   adapter.lora.alpha = α, f32
//! {tensor}.lora_a  [r, in], of experts [E, r, in], of token_embd [V, r]
//! {tensor}.lora_b  [out, r], of experts [E, out, r], of token_embd [D, r]
//! ```
//!
//! The scale is `α/r` by the rank of each tensor, or 1 for an α of 0. Source: `llama-adapter.cpp` of llama.cpp.

use std::collections::{BTreeMap, HashMap};
use std::io::BufWriter;
use std::path::Path;

use olmoe_model::config::{ModelConfig, shorten};
use olmoe_model::parameters::{ModulePart, parameters};

use super::error::AdapterFileError;
use super::pieces::{Piece, Pieces, assemble, out_and_in};
use super::tensor::numbers;
use super::{AdapterPart, AdapterWeights};
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::gguf::container::GgufWriter;
use crate::gguf::model::architecture;
use crate::gguf::value::{Metadata, MetadataValue};
use crate::gguf::{self, ADAPTER, TYPE};
use crate::layout::{Layout, StoredSlab, Transform, slabs};
use crate::open::{Contents, Stored};
use crate::output::{Made, Output, create};

const ARCHITECTURE: &str = "general.architecture";
const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const ACTIVATED: &str = "adapter.alora.invocation_tokens";
/// The ends of names.
const SIDES: [&str; 2] = [".lora_a", ".lora_b"];

/// Reads a GGUF adapter.
pub(super) fn read(path: &Path, config: &ModelConfig) -> Result<AdapterWeights, CheckpointError> {
    let contents = Contents::read(path)?;
    let refused = |error| CheckpointError::adapter(path)(error);
    let Some(header) = &contents.gguf else {
        return Err(refused(AdapterFileError::Unrecognised { found: "no GGUF file".to_owned() }));
    };
    let text = |key: &str| header.metadata.get(key).and_then(MetadataValue::as_text);
    if text(TYPE) != Some(ADAPTER) {
        return Err(refused(AdapterFileError::Unrecognised { found: "a GGUF file of another kind".to_owned() }));
    }
    let found = |key: &str| header.metadata.get(key).map_or("missing".to_owned(), |value| shorten(&value.to_string()));
    for (key, expected, reason) in [
        (ARCHITECTURE, architecture(config), "it is the adapter of another architecture than the model's"),
        (KIND, "lora", "only LoRA is computed here"),
    ] {
        if text(key) != Some(expected) {
            let reason = reason.to_owned();
            return Err(refused(AdapterFileError::Refused { key: key.to_owned(), found: found(key), reason }));
        }
    }
    if header.metadata.get(ACTIVATED).is_some() {
        let reason = "the adapter acts from certain tokens on, which is not computed here".to_owned();
        return Err(refused(AdapterFileError::Refused { key: ACTIVATED.to_owned(), found: found(ACTIVATED), reason }));
    }
    let alpha = header.metadata.get(ALPHA).and_then(MetadataValue::as_any_number).filter(|alpha| alpha.is_finite());
    let Some(alpha) = alpha else {
        let (key, found) = (ALPHA.to_owned(), found(ALPHA));
        return Err(refused(AdapterFileError::Value { key, found, expected: "a number" }));
    };

    let specs = parameters(config);
    let layout = Layout::new(&gguf::rows(config), &specs).map_err(|parameter| refused(no_place(&parameter)))?;
    let by_name: HashMap<&str, &[StoredSlab]> =
        layout.tensors.iter().map(|tensor| (tensor.name.as_str(), &tensor.pieces[..])).collect();
    let mut sides: BTreeMap<&str, [Option<&Stored>; 2]> = BTreeMap::new();
    for tensor in &contents.tensors {
        let side = SIDES.iter().position(|side| tensor.name.ends_with(side));
        let base = side.map(|side| &tensor.name[..tensor.name.len() - SIDES[side].len()]);
        match (base, side) {
            (Some(base), Some(side)) if by_name.contains_key(base) => {
                sides.entry(base).or_default()[side] = Some(tensor)
            }
            _ => {
                let problem = "it belongs to no tensor of this model, and nothing is left out in silence";
                return Err(refused(AdapterFileError::tensor(&tensor.name, problem)));
            }
        }
    }
    let mut pieces = Pieces::new();
    for (base, pair) in sides {
        let [Some(a), Some(b)] = pair else {
            return Err(refused(AdapterFileError::tensor(base, "only one of .lora_a and .lora_b is there")));
        };
        let slabs_of = by_name[base];
        let spec = &specs[slabs_of[0].parameter];
        let (out, input) = out_and_in(spec);
        let embedding = spec.module.part == ModulePart::Embedding;
        let rank = b.shape.last().copied().unwrap_or(0);
        let matrices = |shape: [usize; 2]| match slabs(&spec.shape).0 {
            _ if spec.shape.len() < 3 => shape.to_vec(),
            groups => vec![groups, shape[0], shape[1]],
        };
        let expected_a = matrices(if embedding { [input, rank] } else { [rank, input] });
        for (tensor, expected) in [(a, expected_a), (b, matrices([out, rank]))] {
            if tensor.shape != expected || rank == 0 {
                let problem = format!("{:?}, expected {expected:?} with a rank of 1 at least", tensor.shape);
                return Err(refused(AdapterFileError::tensor(&tensor.name, problem)));
            }
        }
        let (numbers_a, numbers_b) = (numbers(&contents, a)?, numbers(&contents, b)?);
        let scale = if alpha == 0.0 { 1.0 } else { (alpha / rank as f64) as f32 };
        let halves = numbers_a.chunks_exact(rank * input).zip(numbers_b.chunks_exact(out * rank));
        for (slab, (a, b)) in slabs_of.iter().zip(halves) {
            let b = in_order(b, rank, slab.transform, false);
            let piece = Piece { rank, scale, a: a.to_vec(), b, magnitude: None };
            pieces.insert((slab.parameter, slab.slab), piece);
        }
    }
    let parts = assemble(&specs, pieces, &BTreeMap::new()).map_err(refused)?;
    let (config, notices) = (config.clone(), contents.notices.clone());
    Ok(AdapterWeights { path: path.to_owned(), config, specs, parts, replaced: Vec::new(), base: None, notices })
}

/// The rows of B in the order of the file, or back.
fn in_order(b: &[f32], rank: usize, transform: Transform, to_file: bool) -> Vec<f32> {
    let mut out = b.to_vec();
    for row in 0..b.len() / rank {
        let file = transform.row(row).unwrap_or(row);
        let (from, to) = if to_file { (row, file) } else { (file, row) };
        out[to * rank..(to + 1) * rank].copy_from_slice(&b[from * rank..(from + 1) * rank]);
    }
    out
}

fn no_place(parameter: &str) -> AdapterFileError {
    AdapterFileError::Inexpressible { format: "gguf", reason: format!("it has no place for the parameter {parameter}") }
}

/// A, B and the scale in the file of an adapter, whose α is `alpha` at its rank unless B takes the rest.
struct GgufSides {
    name: String,
    shapes: [Vec<usize>; 2],
    numbers: [Vec<f32>; 2],
}

impl AdapterWeights {
    /// Writes a GGUF adapter; `out` ends in `.gguf`. Scales that differ from those of the file's one α go into B.
    ///
    /// # Errors
    /// DoRA and replaced parameters, which llama.cpp does not have; a file of that name (unless `force` is set and it is a
    /// GGUF file); errors of the system; a result that reads back differently.
    pub fn write_gguf(&self, out: &Path, force: bool) -> Result<(), CheckpointError> {
        let refused = CheckpointError::adapter(out);
        let inexpressible = |reason: String| AdapterFileError::Inexpressible { format: "gguf", reason };
        if let Some(part) = self.parts.iter().find(|part| part.adapter.dora) {
            let reason = format!(
                "the adapter of {} is DoRA, which llama.cpp does not compute; merge it into the base with `olmoe merge \
                 --to gguf`",
                part.adapter.module
            );
            return Err(refused(inexpressible(reason)));
        }
        if let Some(replaced) = self.replaced.first() {
            let reason = format!(
                "{} is replaced as a whole; merge the adapter into the base with `olmoe merge --to gguf`",
                self.specs[replaced.parameter].name
            );
            return Err(refused(inexpressible(reason)));
        }
        let sides = self.gguf_sides().map_err(refused)?;
        let mut metadata = Metadata::default();
        metadata.insert(ARCHITECTURE, MetadataValue::Text(architecture(&self.config).to_owned()));
        metadata.insert(TYPE, MetadataValue::Text(ADAPTER.to_owned()));
        metadata.insert(KIND, MetadataValue::Text("lora".to_owned()));
        metadata.insert(ALPHA, MetadataValue::F32(self.gguf_alpha()));
        let tensor = |sides: &GgufSides, side: usize| {
            (format!("{}{}", sides.name, SIDES[side]), sides.shapes[side].clone(), Encoding::F32)
        };
        let tensors: Vec<_> = sides.iter().flat_map(|sides| [tensor(sides, 0), tensor(sides, 1)]).collect();
        let output = Output::begin(out, Made::File(b"GGUF"), force, self.bytes())?;
        let bad = |source| CheckpointError::Io { path: out.to_owned(), source };
        let mut writer = GgufWriter::new(BufWriter::new(create(output.path())?), &metadata, &tensors).map_err(bad)?;
        for numbers in sides.iter().flat_map(|sides| &sides.numbers) {
            let mut bytes = vec![0; size_of_val(&numbers[..])];
            Encoding::F32.encode(numbers, &mut bytes);
            writer.write(&bytes).map_err(bad)?;
        }
        let file = writer.finish().map_err(bad)?.into_inner().map_err(|error| bad(error.into_error()))?;
        file.sync_all().map_err(bad)?;
        let back = read_partial(output.path(), &self.config)?;
        let same = back.len() == sides.len() && back.iter().zip(&sides).all(|(back, sides)| *back == sides.numbers);
        if !same {
            let parameter = self.parts.first().map_or(String::new(), |part| part.adapter.module.to_string());
            return Err(CheckpointError::ReadBack { path: out.to_owned(), parameter, slab: 0 });
        }
        output.commit()
    }

    /// The α of a file: the one of most adapters.
    fn gguf_alpha(&self) -> f32 {
        let alpha = |part: &AdapterPart| part.adapter.scale * part.adapter.rank as f32;
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for part in self.parts.iter().filter(|part| alpha(part) > 0.0) {
            *counts.entry(alpha(part).to_bits()).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(1.0, |most| f32::from_bits(most.0))
    }

    fn gguf_sides(&self) -> Result<Vec<GgufSides>, AdapterFileError> {
        let layout = Layout::new(&gguf::rows(&self.config), &self.specs).map_err(|parameter| no_place(&parameter))?;
        let alpha = self.gguf_alpha();
        let mut all = Vec::new();
        for part in &self.parts {
            let part = part.unshared();
            let (rank, scale) = (part.adapter.rank, part.adapter.scale);
            let tensor = &layout.tensors[layout.place(part.base, 0).tensor];
            let transform = layout.place(part.base, 0).transform;
            // As a reader computes it.
            let of_file = (f64::from(alpha) / rank as f64) as f32;
            let factor = if scale == of_file { 1.0 } else { scale / of_file };
            let (out, input) = out_and_in(&self.specs[part.base]);
            let embedding = part.adapter.module.part == ModulePart::Embedding;
            let shape = |shape: [usize; 2]| match part.extents.0 {
                _ if self.specs[part.base].shape.len() < 3 => shape.to_vec(),
                groups => vec![groups, shape[0], shape[1]],
            };
            let shapes = [shape(if embedding { [input, rank] } else { [rank, input] }), shape([out, rank])];
            let b = part.b.chunks_exact(out * rank).flat_map(|b| in_order(b, rank, transform, true));
            let b = b.map(|b| factor * b).collect();
            all.push(GgufSides { name: tensor.name.clone(), shapes, numbers: [part.a, b] });
        }
        Ok(all)
    }
}

/// The numbers of a file's tensors in its order, two by two.
fn read_partial(path: &Path, config: &ModelConfig) -> Result<Vec<[Vec<f32>; 2]>, CheckpointError> {
    // Read as any reader does it first, for the errors.
    read(path, config)?;
    let contents = Contents::read(path)?;
    let all = contents.tensors.iter().map(|tensor| numbers(&contents, tensor)).collect::<Result<Vec<_>, _>>()?;
    Ok(all.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect())
}
