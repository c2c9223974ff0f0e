//! Reading peft's files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use olmoe_model::adapter::Sharing;
use olmoe_model::adapter::paths::{fused_path, peft_path};
use olmoe_model::config::{ModelConfig, shorten};
use olmoe_model::parameters::{MlpMatrix, MlpOf, ModulePart, ParameterSpec, parameters};

use super::error::AdapterFileError;
use super::names::{BASE_LAYER, Named, Role, parse};
use super::pieces::{Piece, Pieces, assemble, out_and_in};
use super::settings::AdapterConfig;
use super::stacks::{StackExtents, StackLayout, block_split, cut, transposed};
use super::tensor::numbers;
use super::{AdapterWeights, Replaced, gguf};
use crate::error::CheckpointError;
use crate::file_name::{ADAPTER_CONFIG, ADAPTER_SAFETENSORS, ADAPTER_TORCH};
use crate::huggingface::{self, Experts};
use crate::layout::{FileTensor, Layout, slabs};
use crate::open::{Contents, Stored, read_bounded};

/// The files of an adapter on the hub, as patterns of names.
pub const ADAPTER_FILES: &[&str] = &["adapter_config.json", "adapter_model.*"];
/// Longest configuration, in bytes: one with a name for each expert's matrix is a megabyte.
const MAX_CONFIG: usize = 1 << 24;
/// The sides that experts share, in the free text of a file: JSON by canonical name of the matrix.
pub(super) const SHARED: &str = "shared_by_experts";

/// The files of an adapter: its configuration and its tensors; `None` for a GGUF file.
fn files(path: &Path) -> Result<Option<(PathBuf, PathBuf)>, CheckpointError> {
    let metadata = std::fs::metadata(path).map_err(CheckpointError::io(path))?;
    if !metadata.is_dir() {
        if Contents::read(path)?.gguf.is_some() {
            return Ok(None);
        }
        return Ok(Some((path.with_file_name(ADAPTER_CONFIG), path.to_owned())));
    }
    let tensors =
        [ADAPTER_SAFETENSORS, ADAPTER_TORCH].map(|name| path.join(name)).into_iter().find(|path| path.is_file());
    let config = path.join(ADAPTER_CONFIG);
    match tensors {
        Some(tensors) if config.is_file() => Ok(Some((config, tensors))),
        tensors => {
            let found = match (tensors.is_some(), config.is_file()) {
                (true, _) => format!("{ADAPTER_CONFIG} is missing"),
                (_, true) => format!("{ADAPTER_CONFIG} without {ADAPTER_SAFETENSORS}"),
                _ => "a folder without either".to_owned(),
            };
            Err(CheckpointError::adapter(path)(AdapterFileError::Unrecognised { found }))
        }
    }
}

pub(super) fn read(path: &Path, config: &ModelConfig) -> Result<AdapterWeights, CheckpointError> {
    let Some((settings, tensors)) = files(path)? else { return gguf::read(path, config) };
    let text = read_bounded(&settings, MAX_CONFIG)?;
    let settings = AdapterConfig::parse(&text).map_err(CheckpointError::adapter(&settings))?;
    let contents = Contents::read(&tensors)?;
    let refused = CheckpointError::adapter(&tensors);
    if contents.config.is_some() {
        let found = "a file of a model".to_owned();
        return Err(refused(AdapterFileError::Unrecognised { found }));
    }
    let specs = parameters(config);
    let table = Table::new(&specs).map_err(CheckpointError::adapter(&tensors))?;
    let sorted = table.sort(&contents, &settings).map_err(CheckpointError::adapter(&tensors))?;
    let mut reader = Reader {
        contents: &contents,
        settings: &settings,
        table: &table,
        sorted: &sorted,
        specs: &specs,
        pieces: Pieces::new(),
        given: BTreeSet::new(),
    };
    let layout = reader.stack_layout().map_err(CheckpointError::adapter(&tensors))?;
    for (place, tensors_of) in &sorted.adapters {
        reader.adapter(place, tensors_of, layout)?;
    }
    let replaced = reader.whole()?;
    agree(&settings, &specs, &reader.given).map_err(CheckpointError::adapter(&tensors))?;
    let pieces = reader.pieces;
    let shared = shared(&contents.metadata);
    let parts = assemble(&specs, pieces, &shared).map_err(refused)?;
    let notices = contents.notices.clone();
    Ok(AdapterWeights {
        path: path.to_owned(),
        config: config.clone(),
        specs,
        parts,
        replaced,
        base: settings.base,
        notices,
    })
}

/// The sides that the experts of a layer share, as written here; anything else is passed over.
fn shared(metadata: &BTreeMap<String, String>) -> BTreeMap<String, Sharing> {
    let names: BTreeMap<String, String> =
        metadata.get(SHARED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let side = |name: &str| match name {
        "a" => Sharing::A,
        "b" => Sharing::B,
        "both" => Sharing::Both,
        _ => Sharing::PerExpert,
    };
    names.into_iter().map(|(module, name)| (module, side(&name))).collect()
}

/// Where the adapter of a path acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// One matrix of a parameter.
    Matrix(usize, usize),
    /// The stack of gate and up of a layer, by the parameters of both; or that of down. The inner one has a name of its
    /// own if the other is there, too.
    Experts { layer: usize, inner: bool },
}

/// The names of a model's matrices and tensors.
struct Table {
    places: HashMap<String, Place>,
    /// By name: all tensors of transformers' files.
    whole: HashMap<String, FileTensor>,
    /// Of each layer with experts: the parameters of gate, up and down.
    experts: BTreeMap<usize, [Option<usize>; 3]>,
}

/// The tensors of a file by what they are.
struct Sorted<'c> {
    adapters: BTreeMap<Place, BTreeMap<Role, &'c Stored>>,
    whole: Vec<(&'c Stored, FileTensor)>,
}

impl Table {
    fn new(specs: &[ParameterSpec]) -> Result<Table, AdapterFileError> {
        let mut table = Table { places: HashMap::new(), whole: HashMap::new(), experts: BTreeMap::new() };
        for (parameter, spec) in specs.iter().enumerate() {
            if spec.kind.suffix() != "weight" {
                continue;
            }
            for slab in 0..slabs(&spec.shape).0 {
                if let Some(path) = peft_path(spec.module, slab) {
                    table.places.insert(path, Place::Matrix(parameter, slab));
                }
            }
            if let (Some(layer), ModulePart::Mlp(MlpOf::Experts, which)) = (spec.module.layer, spec.module.part) {
                let at = [MlpMatrix::Gate, MlpMatrix::Up, MlpMatrix::Down].iter().position(|matrix| *matrix == which);
                table.experts.entry(layer).or_default()[at.unwrap_or(0)] = Some(parameter);
                let path = format!("model.layers.{layer}.mlp.experts");
                table.places.insert(format!("{path}.{BASE_LAYER}"), Place::Experts { layer, inner: true });
                table.places.insert(path, Place::Experts { layer, inner: false });
            }
        }
        for experts in [Experts::Fused, Experts::Separate] {
            let layout = Layout::new(&huggingface::rows(experts), specs).map_err(|parameter| {
                let reason = format!("transformers has no place for the parameter {parameter}");
                AdapterFileError::Inexpressible { format: "peft", reason }
            })?;
            table.whole.extend(layout.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
        }
        Ok(table)
    }

    /// Finds the place of every tensor.
    fn sort<'c>(&self, contents: &'c Contents, settings: &'c AdapterConfig) -> Result<Sorted<'c>, AdapterFileError> {
        let mut sorted = Sorted { adapters: BTreeMap::new(), whole: Vec::new() };
        let mut used = BTreeSet::new();
        for tensor in &contents.tensors {
            match parse(&tensor.name) {
                Named::Adapter(path, role) => {
                    let place = self.places.get(&path).ok_or_else(|| {
                        let problem =
                            format!("this model has no matrix {}; is it another model's adapter?", shorten(&path));
                        AdapterFileError::tensor(&tensor.name, problem)
                    })?;
                    if sorted.adapters.entry(*place).or_default().insert(role, tensor).is_some() {
                        return Err(AdapterFileError::tensor(&tensor.name, "a second one for the same matrix"));
                    }
                }
                Named::Whole(name, under_adapter) => {
                    let Some(found) = self.whole.get(&name) else {
                        let problem = "it is neither part of an adapter nor a tensor of this model, and nothing is left out \
                                       in silence";
                        return Err(AdapterFileError::tensor(&tensor.name, problem));
                    };
                    let module = name.rsplit_once('.').map_or(name.as_str(), |(module, _)| module);
                    let by = settings.stores_whole(module).or_else(|| settings.stores_whole(&name));
                    if by.is_none() && !under_adapter {
                        let problem =
                            format!("{} is stored whole, but modules_to_save does not name it", shorten(&name));
                        return Err(AdapterFileError::tensor(&tensor.name, problem));
                    }
                    used.extend(by);
                    sorted.whole.push((tensor, found.clone()));
                }
            }
        }
        match settings.whole.iter().find(|name| !used.contains(name.as_str())) {
            None => Ok(sorted),
            Some(name) => Err(AdapterFileError::Disagree(format!(
                "modules_to_save names {name:?}, of which no tensor is in the file"
            ))),
        }
    }
}

struct Reader<'c> {
    contents: &'c Contents,
    settings: &'c AdapterConfig,
    table: &'c Table,
    sorted: &'c Sorted<'c>,
    specs: &'c [ParameterSpec],
    pieces: Pieces,
    /// The matrices of which the file has tensors.
    given: BTreeSet<(usize, usize)>,
}

impl Reader<'_> {
    /// The numbers of a tensor.
    fn numbers(&self, tensor: &Stored) -> Result<Vec<f32>, CheckpointError> {
        numbers(self.contents, tensor)
    }

    /// The layout of the stacks of experts, by the first shapes that tell it, else by the version of peft.
    fn stack_layout(&self) -> Result<StackLayout, AdapterFileError> {
        let mut stacks = 0;
        for (place, tensors) in &self.sorted.adapters {
            let Place::Experts { layer, .. } = *place else { continue };
            let (Some(a), Some(b)) = (tensors.get(&Role::A), tensors.get(&Role::B)) else { continue };
            stacks += 1;
            let mut possible = Vec::new();
            for down in self.stack_is_down(*place) {
                possible.extend(StackLayout::possible(self.extents(layer, down)?, &a.shape, &b.shape));
            }
            possible.dedup();
            if let [one] = possible[..] {
                return Ok(one);
            }
        }
        // Shapes of square matrices tell nothing. A file that a later peft has converted keeps the old version.
        let version = self.settings.peft_version.as_deref().and_then(version);
        match version {
            _ if stacks == 0 || self.settings.converted => Ok(StackLayout::Fused),
            Some(version) if version >= (0, 19) => Ok(StackLayout::Fused),
            Some(version) if version >= (0, 17) => Ok(StackLayout::Swapped),
            _ => Err(AdapterFileError::Disagree(format!(
                "the matrices of the experts are square, so that their shapes do not tell in which order peft has written \
                 them, and peft_version is {}; set it to the version that wrote the file (0.18.1 and before have the sides \
                 of the experts' adapters exchanged)",
                self.settings.peft_version.as_deref().map_or("missing".to_owned(), |version| format!("{version:?}"))
            ))),
        }
    }

    /// Whether a stack is that of down: the inner of two is that of gate and up; a single one is what target_parameters
    /// names. Both are possible if the settings do not tell.
    fn stack_is_down(&self, place: Place) -> Vec<bool> {
        let Place::Experts { layer, inner } = place else { return Vec::new() };
        if inner {
            return vec![false];
        }
        if self.sorted.adapters.contains_key(&Place::Experts { layer, inner: true }) {
            return vec![true];
        }
        let named = |stack: &str| self.settings.chooses_parameter(&format!("model.layers.{layer}.mlp.experts.{stack}"));
        match (named("gate_up_proj"), named("down_proj")) {
            (true, false) => vec![false],
            (false, true) => vec![true],
            _ => vec![false, true],
        }
    }

    fn extents(&self, layer: usize, down: bool) -> Result<StackExtents, AdapterFileError> {
        let [gate, up, last] = self.table.experts.get(&layer).copied().unwrap_or_default();
        let of = |parameter: Option<usize>| parameter.map(|parameter| slabs(&self.specs[parameter].shape));
        let none = || AdapterFileError::Inexpressible {
            format: "peft",
            reason: format!("the experts of layer {layer} have no gate, so they are no stack of transformers"),
        };
        let (experts, out, input) = of(if down { last } else { gate }).ok_or_else(none)?;
        of(up).ok_or_else(none)?;
        Ok(StackExtents { experts, out: if down { out } else { 2 * out }, input })
    }

    /// Reads the adapter of one matrix or stack.
    fn adapter(
        &mut self,
        place: &Place,
        tensors: &BTreeMap<Role, &Stored>,
        layout: StackLayout,
    ) -> Result<(), CheckpointError> {
        let path = &self.contents.path;
        let refused = |error| CheckpointError::adapter(path)(error);
        match *place {
            Place::Matrix(parameter, slab) => {
                let piece = self.matrix(parameter, slab, tensors)?;
                self.given.insert((parameter, slab));
                if self.pieces.insert((parameter, slab), piece).is_some() {
                    let tensor = tensors.values().next().map_or("", |tensor| tensor.name.as_str());
                    return Err(refused(AdapterFileError::tensor(tensor, "the experts also have adapters as a stack")));
                }
                Ok(())
            }
            Place::Experts { layer, inner } => self.stack(layer, inner, tensors, layout),
        }
    }

    fn matrix(
        &self,
        parameter: usize,
        slab: usize,
        tensors: &BTreeMap<Role, &Stored>,
    ) -> Result<Piece, CheckpointError> {
        let refused = CheckpointError::adapter(&self.contents.path);
        let spec = &self.specs[parameter];
        let (out, input) = out_and_in(spec);
        let embedding = spec.module.part == ModulePart::Embedding;
        let roles = if embedding { [Role::EmbeddingA, Role::EmbeddingB] } else { [Role::A, Role::B] };
        let [Some(&a), Some(&b)] = roles.map(|role| tensors.get(&role)) else {
            return Err(refused(half(tensors, roles)));
        };
        let others = tensors.iter().find(|(role, _)| !roles.contains(role) && **role != Role::Magnitude);
        if let Some((_, other)) = others {
            return Err(refused(AdapterFileError::tensor(&other.name, "not what this matrix has")));
        }
        let rank = a.shape.first().copied().unwrap_or(0);
        let shapes = [(a, vec![rank, input]), (b, vec![out, rank])];
        let magnitude = tensors.get(&Role::Magnitude).copied();
        for (tensor, expected) in shapes.into_iter().chain(magnitude.map(|tensor| (tensor, vec![out]))) {
            if tensor.shape != expected || rank == 0 {
                let problem = format!("{:?}, expected {expected:?} with a rank of 1 at least", tensor.shape);
                return Err(refused(AdapterFileError::tensor(&tensor.name, problem)));
            }
        }
        if magnitude.is_some() != self.settings.dora {
            let problem = match magnitude {
                Some(_) => "a magnitude, but use_dora is false",
                None => "use_dora is true, but this matrix has no magnitudes",
            };
            return Err(refused(AdapterFileError::tensor(&magnitude.unwrap_or(a).name, problem)));
        }
        let path = peft_path(spec.module, slab).unwrap_or_default();
        let mut paths = vec![path.clone()];
        if self.settings.chooses_parameter(&format!("{path}.weight")) {
            paths.push(format!("{path}.weight"));
        }
        let scale = self.scale(&paths, rank, &a.name).map_err(refused)?;
        let numbers_a = self.numbers(a)?;
        Ok(Piece {
            rank,
            scale,
            a: if embedding { transposed(&numbers_a, rank, input) } else { numbers_a },
            b: self.numbers(b)?,
            magnitude: magnitude.map(|tensor| self.numbers(tensor)).transpose()?,
        })
    }

    /// The scale by the settings, whose rank for one of the paths has to be that of the tensor.
    fn scale(&self, paths: &[String], rank: usize, tensor: &str) -> Result<f32, AdapterFileError> {
        let settings: Vec<(usize, f32)> = paths.iter().map(|path| self.settings.rank_and_scale(path)).collect();
        match settings.iter().rev().find(|(expected, _)| *expected == rank) {
            Some((_, scale)) => Ok(*scale),
            None => Err(AdapterFileError::Disagree(format!(
                "tensor {tensor:?} has the rank {rank}, but by r and rank_pattern it is {}",
                settings.first().map_or(0, |found| found.0)
            ))),
        }
    }

    fn stack(
        &mut self,
        layer: usize,
        inner: bool,
        tensors: &BTreeMap<Role, &Stored>,
        layout: StackLayout,
    ) -> Result<(), CheckpointError> {
        let path = self.contents.path.clone();
        let refused = |error| CheckpointError::adapter(&path)(error);
        let [Some(&a), Some(&b)] = [Role::A, Role::B].map(|role| tensors.get(&role)) else {
            return Err(refused(half(tensors, [Role::A, Role::B])));
        };
        if let Some(other) = tensors.iter().find(|(role, _)| !matches!(role, Role::A | Role::B)) {
            let problem = "peft has no DoRA of a stack of experts, so its meaning is not known";
            return Err(refused(AdapterFileError::tensor(&other.1.name, problem)));
        }
        // A single stack whose settings tell nothing is the one whose shape it has.
        let mut fitting = Vec::new();
        for down in self.stack_is_down(Place::Experts { layer, inner }) {
            let extents = self.extents(layer, down).map_err(refused)?;
            if StackLayout::possible(extents, &a.shape, &b.shape).contains(&layout) {
                fitting.push((down, extents));
            }
        }
        let [(down, extents)] = fitting[..] else {
            let problem = match fitting.len() {
                0 => "its shape is that of no stack of this model's experts",
                _ => "it fits two stacks of experts; name one in target_parameters",
            };
            return Err(refused(AdapterFileError::tensor(&a.name, format!("{:?}: {problem}", a.shape))));
        };
        let rank = a.shape[0] / extents.experts;
        let [gate, up, last] = self.table.experts.get(&layer).copied().unwrap_or_default();
        let (Some(gate), Some(up), Some(last)) = (gate, up, last) else { return Ok(()) };
        let name = fused_path(self.specs[if down { last } else { gate }].module).unwrap_or_default();
        let scale = self.scale(&[name], rank, &a.name).map_err(refused)?;
        let (numbers_a, numbers_b) = (self.numbers(a)?, self.numbers(b)?);
        let experts = layout.unstack(extents, &numbers_a, &numbers_b);
        let split = if down { None } else { block_split(&experts, rank, self.settings.converted) };
        for (slab, expert) in experts.into_iter().enumerate() {
            let out = extents.out;
            let of = match (down, split) {
                (true, _) => vec![(last, 0..rank, 0..out)],
                (false, Some(split)) => vec![(gate, 0..split, 0..out / 2), (up, split..rank, out / 2..out)],
                (false, None) => vec![(gate, 0..rank, 0..out / 2), (up, 0..rank, out / 2..out)],
            };
            self.given.extend(of.iter().map(|(parameter, ..)| (*parameter, slab)));
            for (parameter, ranks, rows) in of.into_iter().filter(|(_, ranks, _)| !ranks.is_empty()) {
                let rank_of = ranks.len();
                let (a, b) = cut(&expert, rank, ranks, rows);
                let piece = Piece { rank: rank_of, scale, a, b, magnitude: None };
                if self.pieces.insert((parameter, slab), piece).is_some() {
                    let problem = "the experts also have adapters one by one";
                    return Err(refused(AdapterFileError::tensor(&tensors[&Role::A].name, problem)));
                }
            }
        }
        Ok(())
    }

    /// Reads tensors that replace those of the base.
    fn whole(&self) -> Result<Vec<Replaced>, CheckpointError> {
        let mut all: BTreeMap<(usize, usize), Vec<f32>> = BTreeMap::new();
        for (stored, tensor) in &self.sorted.whole {
            if stored.shape != tensor.shape {
                let problem = format!(
                    "{:?}, expected {:?}; an adapter with another vocabulary than the base is merged with peft",
                    stored.shape, tensor.shape
                );
                let error = AdapterFileError::tensor(&stored.name, problem);
                return Err(CheckpointError::adapter(&self.contents.path)(error));
            }
            let numbers = self.numbers(stored)?;
            let mut rest = &numbers[..];
            for piece in &tensor.pieces {
                let (_, rows, columns) = slabs(&self.specs[piece.parameter].shape);
                let (own, after) = rest.split_at(rows * columns);
                rest = after;
                all.insert((piece.parameter, piece.slab), own.to_vec());
            }
        }
        Ok(all.into_iter().map(|((parameter, slab), values)| Replaced { parameter, slab, values }).collect())
    }
}

/// Checks that the settings choose the matrices of which there are tensors, and no others.
fn agree(
    settings: &AdapterConfig,
    specs: &[ParameterSpec],
    given: &BTreeSet<(usize, usize)>,
) -> Result<(), AdapterFileError> {
    if !settings.names_any() {
        return Ok(());
    }
    for (parameter, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.kind.suffix() == "weight") {
        let linear = !matches!(spec.module.part, ModulePart::Embedding | ModulePart::Head);
        let stack = fused_path(spec.module);
        for slab in 0..slabs(&spec.shape).0 {
            let Some(path) = peft_path(spec.module, slab) else { continue };
            let chosen = settings.stores_whole(&path).is_none()
                && settings.chooses_module(&path, spec.module.layer, linear)
                || settings.chooses_parameter(stack.as_ref().unwrap_or(&format!("{path}.weight")));
            let problem = match (chosen, given.contains(&(parameter, slab))) {
                (true, false) => "chosen by its settings, but has no tensors in the file; is the file complete?",
                (false, true) => "in the file, but the settings do not choose it",
                _ => continue,
            };
            return Err(AdapterFileError::Disagree(format!("{path} is {problem}")));
        }
    }
    Ok(())
}

/// The error for a matrix with only one side.
fn half(tensors: &BTreeMap<Role, &Stored>, roles: [Role; 2]) -> AdapterFileError {
    let missing = roles.into_iter().find(|role| !tensors.contains_key(role)).unwrap_or(roles[1]);
    let there = tensors.values().next().map_or("", |tensor| tensor.name.as_str());
    AdapterFileError::tensor(there, format!("the matrix has no {}; is the file complete?", missing.suffix()))
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_two_numbers_at_least() {
        assert_eq!(version("0.18.1"), Some((0, 18)));
        assert_eq!(version("0.19.0.dev0"), Some((0, 19)));
        assert_eq!(version("1"), None);
        assert_eq!(version("x.y"), None);
    }
}
