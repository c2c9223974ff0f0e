//! Writing peft's files.
//!
//! The scales are written as plain LoRA's, `lora_alpha/r`, also those of rsLoRA: the numbers are the same, programs that do
//! not know `use_rslora` apply them too, and peft doubles ranks and alphas of gate and up when it makes stacks of them,
//! which keeps `alpha/r` and not `alpha/√r`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufWriter;
use std::path::Path;

use olmoe_model::adapter::Sharing;
use olmoe_model::adapter::paths::{fused_path, matrices, peft_path};
use olmoe_model::parameters::{MlpMatrix, MlpOf, ModuleId, ModulePart, ParameterKind};
use serde_json::{Map, Value, json};

use super::error::AdapterFileError;
use super::names::{BASE_LAYER, PREFIX, Role};
use super::pieces::out_and_in;
use super::read::SHARED;
use super::stacks::{Sides, stack, transposed};
use super::{AdapterPart, AdapterWeights};
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::file_name::{ADAPTER_CONFIG, ADAPTER_SAFETENSORS};
use crate::huggingface::{self, Experts};
use crate::layout::Layout;
use crate::output::{Made, Output, create, write_file};
use crate::safetensors::{SafeType, Spec, Writer};

/// How the adapters of experts are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileLayout {
    /// Two matrices for each expert's, which peft loads with transformers 4 and 5, and vLLM.
    #[default]
    Separate,
    /// Two matrices for each stack of a layer, as peft 0.19 and later save them with transformers 5.
    Fused,
}

/// What gets two tensors, or in the separate layout two for each of its matrices.
enum Unit<'a> {
    Part(&'a AdapterPart),
    GateUp(Option<AdapterPart>, Option<AdapterPart>),
    Down(AdapterPart),
}

/// Name, shape and numbers of a tensor that is stored whole.
type Whole<'a> = (String, Vec<usize>, &'a [f32]);

/// A tensor to write.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl AdapterWeights {
    /// Writes a folder that peft loads; returns what other programs cannot do with it. Numbers are f32.
    ///
    /// # Errors
    /// An adapter that the layout cannot express; a folder of that name (unless `force` is set and it is an adapter); errors
    /// of the system; a result that reads back differently.
    pub fn write(&self, out: &Path, layout: FileLayout, force: bool) -> Result<Vec<String>, CheckpointError> {
        let refused = CheckpointError::adapter(out);
        let (config, notices) = self.config_text(layout).map_err(refused)?;
        let output = Output::begin(out, Made::Adapter, force, self.bytes())?;
        write_file(&output.path().join(ADAPTER_CONFIG), config.as_bytes())?;
        self.write_tensors(&output.path().join(ADAPTER_SAFETENSORS), layout)?;
        let back = AdapterWeights::read(output.path(), &self.config)?;
        self.check_read_back(&back, out)?;
        output.commit()?;
        Ok(notices)
    }

    /// Compares as functions: the same change of each matrix, whatever shares what.
    fn check_read_back(&self, back: &AdapterWeights, out: &Path) -> Result<(), CheckpointError> {
        let differs = |parameter: &str| {
            Err(CheckpointError::ReadBack { path: out.to_owned(), parameter: parameter.to_owned(), slab: 0 })
        };
        for part in &self.parts {
            let name = part.adapter.module.to_string();
            let Some(found) = back.parts.iter().find(|found| found.base == part.base) else { return differs(&name) };
            let (part, found) = (part.unshared(), found.unshared());
            // A stack of gate and up with two scales has them in B.
            let key = |part: &AdapterPart| (part.adapter.rank, part.a.clone(), part.magnitude.clone());
            let close = |x: f32, y: f32| (x - y).abs() <= 1e-6 * x.abs().max(y.abs());
            let product = |part: &AdapterPart, at: usize| part.adapter.scale * part.b[at];
            if key(&part) != key(&found)
                || part.b.len() != found.b.len()
                || !(0..part.b.len()).all(|at| close(product(&part, at), product(&found, at)))
            {
                return differs(&name);
            }
        }
        let zeros = |part: &&AdapterPart| !self.parts.iter().any(|own| own.base == part.base);
        if let Some(more) = back.parts.iter().find(zeros) {
            return differs(&more.adapter.module.to_string());
        }
        match self.replaced == back.replaced {
            true => Ok(()),
            false => differs("of those that are stored whole"),
        }
    }

    /// The parts as the tensors of a layout have them.
    fn units(&self, layout: FileLayout) -> Vec<Unit<'_>> {
        let mut units = Vec::new();
        let mut stacks: BTreeMap<usize, [Option<AdapterPart>; 2]> = BTreeMap::new();
        for part in &self.parts {
            match (part.adapter.module.part, part.adapter.module.layer, layout) {
                (ModulePart::Mlp(MlpOf::Experts, MlpMatrix::Down), _, FileLayout::Fused) => {
                    units.push(Unit::Down(part.unshared()));
                }
                (ModulePart::Mlp(MlpOf::Experts, which), Some(layer), FileLayout::Fused) => {
                    stacks.entry(layer).or_default()[usize::from(which == MlpMatrix::Up)] = Some(part.unshared());
                }
                _ => units.push(Unit::Part(part)),
            }
        }
        units.extend(stacks.into_values().map(|[gate, up]| Unit::GateUp(gate, up)));
        units
    }

    fn write_tensors(&self, path: &Path, layout: FileLayout) -> Result<(), CheckpointError> {
        let units = self.units(layout);
        let replaced = self.whole_tensors().map_err(CheckpointError::adapter(path))?;
        let mut specs = Vec::new();
        for unit in &units {
            specs.extend(
                self.tensors(unit).into_iter().map(|tensor| Spec::new(tensor.name, SafeType::F32, tensor.shape)),
            );
        }
        specs.extend(replaced.iter().map(|(name, shape, _)| Spec::new(name.clone(), SafeType::F32, shape.clone())));
        let shared: BTreeMap<String, &str> = self.parts.iter().filter_map(shared_sides).collect();
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        if !shared.is_empty() {
            metadata.insert(SHARED.to_owned(), json!(shared).to_string());
        }
        let bad = |source| CheckpointError::Safetensors { path: path.to_owned(), source };
        let mut writer = Writer::new(BufWriter::new(create(path)?), &specs, &metadata).map_err(bad)?;
        let mut write = |numbers: &[f32]| {
            let mut bytes = vec![0; size_of_val(numbers)];
            Encoding::F32.encode(numbers, &mut bytes);
            writer.write(&bytes).map_err(bad)
        };
        for unit in &units {
            self.tensors(unit).iter().try_for_each(|tensor| write(&tensor.numbers))?;
        }
        replaced.iter().try_for_each(|(_, _, numbers)| write(numbers))?;
        let file = writer.finish().map_err(bad)?.into_inner();
        let file = file.map_err(std::io::IntoInnerError::into_error).map_err(CheckpointError::io(path))?;
        file.sync_all().map_err(CheckpointError::io(path))
    }

    fn tensors(&self, unit: &Unit<'_>) -> Vec<Tensor> {
        match unit {
            Unit::Part(part) => (0..part.extents.0).flat_map(|slab| self.separate(part, slab)).collect(),
            Unit::Down(part) => {
                let layer = part.adapter.module.layer.unwrap_or(0);
                stacked(format!("{PREFIX}model.layers.{layer}.mlp.experts"), &experts_of(part), part.adapter.rank)
            }
            Unit::GateUp(gate, up) => {
                let Some(any) = gate.as_ref().or(up.as_ref()) else { return Vec::new() };
                let (experts, rank, _) = gate_up(gate.as_ref(), up.as_ref());
                let layer = any.adapter.module.layer.unwrap_or(0);
                let outer = self.parts.iter().any(|part| {
                    part.adapter.module
                        == ModuleId { layer: Some(layer), part: ModulePart::Mlp(MlpOf::Experts, MlpMatrix::Down) }
                });
                // The inner one of two stacks has a name of its own.
                let inner = if outer { format!(".{BASE_LAYER}") } else { String::new() };
                stacked(format!("{PREFIX}model.layers.{layer}.mlp.experts{inner}"), &experts, rank)
            }
        }
    }

    /// The tensors of one matrix.
    fn separate(&self, part: &AdapterPart, slab: usize) -> Vec<Tensor> {
        let (a, b, magnitude) = part.of(slab);
        let (out, input) = out_and_in(&self.specs[part.base]);
        let rank = part.adapter.rank;
        let path = peft_path(part.adapter.module, slab).unwrap_or_default();
        let tensor = |role: Role, shape: Vec<usize>, numbers: Vec<f32>| Tensor {
            name: format!("{PREFIX}{path}.{}", role.suffix()),
            shape,
            numbers,
        };
        let mut tensors = match part.adapter.module.part {
            ModulePart::Embedding => vec![
                tensor(Role::EmbeddingA, vec![rank, input], transposed(a, input, rank)),
                tensor(Role::EmbeddingB, vec![out, rank], b.to_vec()),
            ],
            _ => vec![tensor(Role::A, vec![rank, input], a.to_vec()), tensor(Role::B, vec![out, rank], b.to_vec())],
        };
        tensors.extend(magnitude.map(|magnitude| tensor(Role::Magnitude, vec![out], magnitude.to_vec())));
        tensors
    }

    /// Name, shape and numbers of what is stored whole.
    fn whole_tensors(&self) -> Result<Vec<Whole<'_>>, AdapterFileError> {
        if self.replaced.is_empty() {
            return Ok(Vec::new());
        }
        let layout = Layout::new(&huggingface::rows(Experts::Separate), &self.specs)
            .map_err(|parameter| no_place(&parameter))?;
        let tensor = |replaced: &'_ super::Replaced| {
            let tensor = &layout.tensors[layout.place(replaced.parameter, replaced.slab).tensor];
            let adapted = self.parts.iter().any(|part| part.base == replaced.parameter);
            let name = match tensor.name.rsplit_once('.') {
                Some((module, weight)) if adapted => format!("{module}.{BASE_LAYER}.{weight}"),
                _ => tensor.name.clone(),
            };
            (format!("{PREFIX}{name}"), tensor.shape.clone())
        };
        Ok(self
            .replaced
            .iter()
            .map(|replaced| {
                let (name, shape) = tensor(replaced);
                (name, shape, &replaced.values[..])
            })
            .collect())
    }

    fn config_text(&self, layout: FileLayout) -> Result<(String, Vec<String>), AdapterFileError> {
        let dora = self.parts.iter().filter(|part| part.adapter.dora).count();
        let of_experts = |part: &&AdapterPart| part.extents.0 > 1;
        let experts = self.parts.iter().any(|part| of_experts(&part));
        let inexpressible =
            |reason: &str| AdapterFileError::Inexpressible { format: "peft", reason: reason.to_owned() };
        if self.parts.is_empty() {
            return Err(inexpressible("it adapts no matrix; write the whole model"));
        }
        if dora != 0 && dora != self.parts.len() {
            return Err(inexpressible("some of its adapters are DoRA and some are not; adapt all of them in one way"));
        }
        Layout::new(&huggingface::rows(Experts::Separate), &self.specs).map_err(|parameter| no_place(&parameter))?;
        let mut notices = Vec::new();
        if layout == FileLayout::Fused {
            if dora != 0 && experts {
                return Err(inexpressible("peft has no DoRA of a stack of experts; write the separate layout"));
            }
            if self.replaced.iter().any(|replaced| self.specs[replaced.parameter].kind == ParameterKind::Expert) {
                return Err(inexpressible("experts are replaced as a whole; write the separate layout"));
            }
        } else if dora != 0 && experts {
            notices
                .push("peft loads DoRA of experts with transformers 4 only; for other programs, merge it".to_owned());
        }
        let targets = self.targets(layout);
        if layout == FileLayout::Separate && targets.partial_experts {
            let text = "peft with transformers 5 loads adapters of the experts in this layout only for all of gate, up and \
                        down in all layers with one scale for gate and up, or it computes something else in silence; for \
                        it, write the fused layout";
            notices.push(text.to_owned());
        }
        let (rank, alpha, ranks, alphas) = self.ranks(layout);
        // peft refuses dropout with stacks of experts, even where nothing is dropped.
        let dropout =
            if experts { 0.0 } else { self.parts.iter().map(|part| part.adapter.dropout).fold(0.0, f32::max) };
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
        put("peft_type", json!("LORA"));
        put("task_type", json!("CAUSAL_LM"));
        put("base_model_name_or_path", json!(self.base));
        put("inference_mode", json!(true));
        put("bias", json!("none"));
        put("fan_in_fan_out", json!(false));
        put("init_lora_weights", json!(true));
        put("r", json!(rank));
        put("lora_alpha", number(alpha));
        put("lora_dropout", json!(dropout));
        put("use_rslora", json!(false));
        put("use_dora", json!(dora != 0));
        put("rank_pattern", json!(ranks));
        put("alpha_pattern", Value::Object(alphas.into_iter().map(|(key, alpha)| (key, number(alpha))).collect()));
        put("target_modules", json!(targets.modules));
        if layout == FileLayout::Fused {
            put("target_parameters", json!(targets.parameters));
            // The first version with this order of the sides.
            put("peft_version", json!("0.19.0"));
        }
        let whole =
            self.replaced.iter().filter(|replaced| !self.parts.iter().any(|part| part.base == replaced.parameter));
        let module = |replaced: &super::Replaced| {
            let module = self.specs[replaced.parameter].module;
            match peft_path(module, replaced.slab) {
                Some(path) => path,
                None => self.norm_path(replaced.parameter),
            }
        };
        let whole: BTreeSet<String> = whole.map(module).collect();
        put("modules_to_save", if whole.is_empty() { Value::Null } else { json!(whole) });
        let text = serde_json::to_string_pretty(&Value::Object(map)).map_err(AdapterFileError::Json)?;
        Ok((text + "\n", notices))
    }

    /// The path of a module without a matrix.
    fn norm_path(&self, parameter: usize) -> String {
        let layout = Layout::new(&huggingface::rows(Experts::Separate), &self.specs);
        let name =
            layout.map(|layout| layout.tensors[layout.place(parameter, 0).tensor].name.clone()).unwrap_or_default();
        name.rsplit_once('.').map_or(name.clone(), |(module, _)| module.to_owned())
    }

    /// The names that choose the adapted matrices: short ones where all matrices of a name are adapted.
    fn targets(&self, layout: FileLayout) -> TargetNames {
        let mut names = TargetNames::default();
        let all: Vec<ModuleId> = matrices(&self.config).map(|spec| spec.module).collect();
        let stack = |module: ModuleId| fused_path(module).filter(|_| layout == FileLayout::Fused);
        let adapted = |module: ModuleId| {
            let same = |part: &AdapterPart| {
                let own = part.adapter.module;
                own == module || stack(module).is_some_and(|stack_path| stack(own) == Some(stack_path))
            };
            self.parts.iter().any(same)
        };
        for part in &self.parts {
            let module = part.adapter.module;
            let (name, parameter) = target_name(module, layout);
            let alike = all.iter().filter(|other| target_name(**other, layout).0 == name);
            let whole = alike.into_iter().all(|other| adapted(*other));
            match (parameter, whole) {
                (true, true) => drop(names.parameters.insert(name)),
                (true, false) => {
                    let layer = module.layer.unwrap_or(0);
                    names.parameters.insert(format!("layers.{layer}.{name}"));
                }
                (false, true) => drop(names.modules.insert(name)),
                (false, false) => {
                    names.modules.extend((0..part.extents.0).filter_map(|slab| peft_path(module, slab)));
                    names.partial_experts |= part.extents.0 > 1;
                }
            }
        }
        let has = |name: &str| names.modules.contains(name);
        // Of gate and up alone, peft's conversion makes tensors under names that it then does not find.
        names.partial_experts |= has("gate_proj") != has("up_proj") || has("up_proj") && !has("down_proj");
        // Nor is there a stack with two scales.
        let scale = |part: &AdapterPart| (fused_path(part.adapter.module), part.adapter.scale);
        let scales: Vec<_> = self.parts.iter().map(scale).filter(|(path, _)| path.is_some()).collect();
        names.partial_experts |=
            scales.iter().any(|(path, scale)| scales.iter().any(|(other, own)| path == other && scale != own));
        names
    }

    /// The rank and α of most matrices, and the others by patterns.
    fn ranks(&self, layout: FileLayout) -> (usize, f64, BTreeMap<String, usize>, BTreeMap<String, f64>) {
        let alpha = |scale: f32, rank: usize| f64::from(scale) * rank as f64;
        // Last name, pattern for the path, rank, α.
        let mut entries: Vec<(String, String, usize, f64)> = Vec::new();
        let mut stacks: Vec<(String, String, usize, f64)> = Vec::new();
        let escaped = |path: &str| path.replace('.', r"\.");
        for unit in self.units(layout) {
            match unit {
                Unit::Part(part) => {
                    let path = peft_path(part.adapter.module, 0).unwrap_or_default();
                    let leaf = path.rsplit('.').next().unwrap_or_default().to_owned();
                    let rank = part.adapter.rank;
                    let entry = |leaf: String, path: String| (leaf, path, rank, alpha(part.adapter.scale, rank));
                    let parameter = layout == FileLayout::Fused && part.adapter.module.part == ModulePart::Router;
                    if parameter {
                        entries.push(entry(r"gate\.weight".to_owned(), format!(r"{}\.weight", escaped(&path))));
                    } else {
                        let path = escaped(&path).replace(r"\.experts\.0\.", r"\.experts\.\d+\.");
                        entries.push(entry(leaf, path));
                    }
                }
                Unit::Down(part) => {
                    let path = fused_path(part.adapter.module).unwrap_or_default();
                    let rank = part.adapter.rank;
                    entries.push(("down_proj".to_owned(), escaped(&path), rank, alpha(part.adapter.scale, rank)));
                }
                Unit::GateUp(gate, up) => {
                    let (_, rank, scale) = gate_up(gate.as_ref(), up.as_ref());
                    let module = gate.or(up).map(|part| part.adapter.module);
                    let path = module.and_then(fused_path).unwrap_or_default();
                    entries.push(("gate_up_proj".to_owned(), escaped(&path), rank, alpha(scale, rank)));
                }
            }
        }
        if layout == FileLayout::Separate {
            stacks = self.later_stacks(&escaped);
        }
        let mut counts: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for (_, _, rank, alpha) in &entries {
            *counts.entry((*rank, alpha.to_bits())).or_default() += 1;
        }
        // Experts decide, because peft doubles their numbers when it makes stacks of them.
        let expert = entries.iter().find(|entry| entry.1.contains(r"\.experts\.") && entry.0 != "gate_up_proj");
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|most| most.0);
        let (rank, alpha) = match (expert, most) {
            (Some(expert), _) => (expert.2, expert.3),
            (None, Some((rank, bits))) => (rank, f64::from_bits(bits)),
            (None, None) => (8, 8.0),
        };
        // Where all stacks of gate and up have what peft gives them, nothing needs to be said about them.
        let doubled = |stack: &(String, String, usize, f64)| (stack.2, stack.3) == (2 * rank, 2.0 * alpha);
        let is_gate_up = |stack: &(String, String, usize, f64)| stack.0 == "gate_up_proj";
        if stacks.iter().filter(|stack| is_gate_up(stack)).all(doubled) {
            stacks.retain(|stack| !is_gate_up(stack));
        }
        entries.extend(stacks);
        let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        for (leaf, path, own_rank, own_alpha) in &entries {
            let same = entries
                .iter()
                .filter(|entry| entry.0 == *leaf)
                .all(|entry| (entry.2, entry.3) == (*own_rank, *own_alpha));
            let key = if same { leaf } else { path };
            if *own_rank != rank {
                ranks.insert(key.clone(), *own_rank);
            }
            if *own_alpha != alpha {
                alphas.insert(key.clone(), *own_alpha);
            }
        }
        (rank, alpha, ranks, alphas)
    }

    /// The names and numbers that later versions of peft have for the separate layout's stacks and routers.
    fn later_stacks(&self, escaped: &impl Fn(&str) -> String) -> Vec<(String, String, usize, f64)> {
        let mut sums: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        let mut entries = Vec::new();
        for part in &self.parts {
            let alpha = f64::from(part.adapter.scale) * part.adapter.rank as f64;
            match (part.adapter.module.part, fused_path(part.adapter.module)) {
                (ModulePart::Router, _) => {
                    let path = peft_path(part.adapter.module, 0).unwrap_or_default();
                    let path = format!(r"{}\.weight", escaped(&path));
                    entries.push((r"gate\.weight".to_owned(), path, part.adapter.rank, alpha));
                }
                (_, Some(path)) if path.ends_with("gate_up_proj") => {
                    let sum = sums.entry(path).or_default();
                    *sum = (sum.0 + part.adapter.rank, sum.1 + alpha);
                }
                (_, Some(path)) => entries.push(("down_proj".to_owned(), escaped(&path), part.adapter.rank, alpha)),
                _ => {}
            }
        }
        entries.extend(sums.into_iter().map(|(path, sum)| ("gate_up_proj".to_owned(), escaped(&path), sum.0, sum.1)));
        entries
    }
}

/// The name of a matrix in peft's settings, and whether it is one of a parameter.
fn target_name(module: ModuleId, layout: FileLayout) -> (String, bool) {
    let last = |path: String| path.rsplit('.').next().unwrap_or_default().to_owned();
    match (layout, fused_path(module), module.part) {
        (FileLayout::Fused, Some(path), _) => (format!("mlp.experts.{}", last(path)), true),
        (FileLayout::Fused, None, ModulePart::Router) => ("mlp.gate.weight".to_owned(), true),
        _ => (last(peft_path(module, 0).unwrap_or_default()), false),
    }
}

#[derive(Default)]
struct TargetNames {
    modules: BTreeSet<String>,
    parameters: BTreeSet<String>,
    /// Whether only some of the experts' matrices are adapted.
    partial_experts: bool,
}

fn no_place(parameter: &str) -> AdapterFileError {
    let reason = format!("transformers has no place for the parameter {parameter}");
    AdapterFileError::Inexpressible { format: "peft", reason }
}

/// A whole number without a point.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// The sides that experts share, by the canonical name.
fn shared_sides(part: &AdapterPart) -> Option<(String, &'static str)> {
    let name = match part.adapter.share {
        Sharing::A => "a",
        Sharing::B => "b",
        Sharing::Both => "both",
        Sharing::PerExpert => return None,
    };
    (part.extents.0 > 1).then(|| (part.adapter.module.to_string(), name))
}

fn experts_of(part: &AdapterPart) -> Vec<Sides> {
    (0..part.extents.0)
        .map(|slab| {
            let (a, b, _) = part.of(slab);
            (a.to_vec(), b.to_vec())
        })
        .collect()
}

/// The two tensors of a stack.
fn stacked(path: String, experts: &[Sides], rank: usize) -> Vec<Tensor> {
    let (a, b) = stack(experts, rank);
    let ranks = rank * experts.len();
    let tensor =
        |role: Role, shape: Vec<usize>, numbers| Tensor { name: format!("{path}.{}", role.suffix()), shape, numbers };
    let (columns, rows) = (a.len() / ranks, b.len() / ranks);
    vec![tensor(Role::A, vec![ranks, columns], a), tensor(Role::B, vec![rows, ranks], b)]
}

/// Adapters of each expert's gate and up as one: with one A where both have the same, else with blocks. Also its rank and
/// its scale.
fn gate_up(gate: Option<&AdapterPart>, up: Option<&AdapterPart>) -> (Vec<Sides>, usize, f32) {
    let Some(any) = gate.or(up) else { return (Vec::new(), 1, 1.0) };
    let (groups, rows, _) = any.extents;
    if let (Some(gate), Some(up)) = (gate, up)
        && (gate.adapter.rank, gate.adapter.scale) == (up.adapter.rank, up.adapter.scale)
        && gate.a == up.a
    {
        let beside = |((a, mut gate), (_, up)): (Sides, Sides)| {
            gate.extend(up);
            (a, gate)
        };
        let experts = experts_of(gate).into_iter().zip(experts_of(up)).map(beside).collect();
        return (experts, gate.adapter.rank, gate.adapter.scale);
    }
    let rank_of = |part: Option<&AdapterPart>| part.map_or(0, |part| part.adapter.rank);
    let (ranks_gate, ranks_up) = (rank_of(gate), rank_of(up));
    let rank = ranks_gate + ranks_up;
    let scale_of = |part: Option<&AdapterPart>| part.map(|part| part.adapter.scale);
    let scale = match (scale_of(gate), scale_of(up)) {
        (Some(gate), Some(up)) if gate != up => 1.0,
        (gate, up) => gate.or(up).unwrap_or(1.0),
    };
    let expert = |slab: usize| {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (part, before, after) in [(gate, 0, ranks_up), (up, ranks_gate, 0)] {
            let Some(part) = part else {
                b.resize(b.len() + rows * rank, 0.0);
                continue;
            };
            let (own_a, own_b, _) = part.of(slab);
            a.extend_from_slice(own_a);
            let factor = if part.adapter.scale == scale { 1.0 } else { part.adapter.scale / scale };
            for row in own_b.chunks_exact(part.adapter.rank) {
                b.resize(b.len() + before, 0.0);
                b.extend(row.iter().map(|b| factor * b));
                b.resize(b.len() + after, 0.0);
            }
        }
        (a, b)
    };
    ((0..groups).map(expert).collect(), rank, scale)
}
