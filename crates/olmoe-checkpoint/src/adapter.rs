//! Adapters in files, and what becomes of them: a part of a model, or a change of its weights.
//!
//! | module | contents |
//! |---|---|
//! | `settings` | `adapter_config.json`: what it may ask for, and what is refused |
//! | `names` | the names of tensors in peft's files |
//! | `pieces` | what a file has, matrix by matrix, and the adapters that it makes |
//! | `stacks` | the layouts in which the experts' adapters are one tensor |
//! | `read`, `write` | peft's files |
//! | `gguf` | llama.cpp's files |
//!
//! peft has three layouts of the experts, all of which are read: a tensor for each expert (with transformers 4); A and B
//! of a layer as one tensor each (with transformers 5); and that with the sides exchanged (peft 0.17 to 0.18.1). The first
//! is written unless the second is asked for, because every program that loads adapters knows it.

pub(crate) mod error;
mod gguf;
mod names;
mod pieces;
mod read;
mod settings;
mod stacks;
mod tensor;
mod write;

use std::path::{Path, PathBuf};

use olmoe_model::adapter::{Adapter, Sharing};
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Model};
use olmoe_model::parameters::{ParameterKind, ParameterSpec, parameters};

use crate::error::CheckpointError;
use crate::layout::slabs;

pub use error::AdapterFileError;
pub use read::ADAPTER_FILES;
pub use write::FileLayout;

/// An adapter of one matrix, or of the stack of experts' matrices, with its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPart {
    /// What it adapts, and how.
    pub adapter: Adapter,
    /// A `[r, in]`, of experts `[E, r, in]` unless they share it, of the embedding `[V, r]`.
    pub a: Vec<f32>,
    /// B `[out, r]`, of experts `[E, out, r]` unless they share it, of the embedding `[D, r]`.
    pub b: Vec<f32>,
    /// The magnitudes of DoRA `[out]`, of experts `[E, out]`.
    pub magnitude: Option<Vec<f32>>,
    /// The index of the adapted matrix among the canonical parameters, and its extents: matrices, rows, columns.
    pub(crate) base: usize,
    pub(crate) extents: (usize, usize, usize),
}

/// A matrix or vector that takes the place of the base's (peft's `modules_to_save`).
#[derive(Clone, Debug, PartialEq)]
pub struct Replaced {
    /// The index of the canonical parameter.
    pub parameter: usize,
    /// Which matrix of a stack.
    pub slab: usize,
    /// Its numbers, row-major.
    pub values: Vec<f32>,
}

/// An adapter of a model: low-rank matrices, and matrices that replace those of the base.
#[derive(Clone, Debug)]
pub struct AdapterWeights {
    pub(crate) path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) specs: Vec<ParameterSpec>,
    /// In canonical order of the matrices.
    pub parts: Vec<AdapterPart>,
    /// In canonical order of the parameters.
    pub replaced: Vec<Replaced>,
    /// The base that it was made for, as its file names it.
    pub base: Option<String>,
    /// What is remarkable about it.
    pub notices: Vec<String>,
}

impl AdapterPart {
    /// A, B and the magnitudes of one matrix of a stack, or of any other matrix.
    pub(crate) fn of(&self, slab: usize) -> (&[f32], &[f32], Option<&[f32]>) {
        let (groups, rows, _) = self.extents;
        let [shared_a, shared_b] = self.sides();
        let side = |numbers: &'_ [f32], shared: bool| match shared {
            true => 0..numbers.len(),
            false => slab * (numbers.len() / groups)..(slab + 1) * (numbers.len() / groups),
        };
        let magnitude = self.magnitude.as_ref().map(|all| &all[slab * rows..(slab + 1) * rows]);
        (&self.a[side(&self.a, shared_a)], &self.b[side(&self.b, shared_b)], magnitude)
    }

    /// Which sides all matrices have in common; of a single matrix neither counts.
    fn sides(&self) -> [bool; 2] {
        if self.extents.0 > 1 { self.adapter.share.sides() } else { [false, false] }
    }

    /// The same with every matrix of its own.
    fn unshared(&self) -> AdapterPart {
        let groups = self.extents.0;
        let [shared_a, shared_b] = self.sides();
        let side = |numbers: &[f32], shared: bool| numbers.repeat(if shared { groups } else { 1 });
        AdapterPart {
            adapter: Adapter { share: Sharing::PerExpert, ..self.adapter.clone() },
            a: side(&self.a, shared_a),
            b: side(&self.b, shared_b),
            ..self.clone()
        }
    }
}

impl AdapterWeights {
    /// Reads an adapter of a model: a folder of peft's, its file of tensors, or a GGUF adapter.
    ///
    /// # Errors
    /// [`CheckpointError`], with the file and the setting or tensor: every tensor has a place in the adapter, and every
    /// matrix that the settings choose has its tensors.
    pub fn read(path: &Path, config: &ModelConfig) -> Result<AdapterWeights, CheckpointError> {
        read::read(path, config)
    }

    /// The adapters and the fully trained parameters of a model.
    ///
    /// # Errors
    /// [`CheckpointError::NotHeld`] for an adapter that is not held as numbers.
    pub fn of(model: &Model) -> Result<AdapterWeights, CheckpointError> {
        let specs = parameters(model.config());
        let numbers = |id: usize| match model.value(id) {
            Some(tensor) => Ok(tensor[..].to_vec()),
            None => Err(CheckpointError::NotHeld { parameter: model.parameters()[id].name.clone() }),
        };
        let mut parts = Vec::new();
        for (adapter, ids) in model.adapters().iter().zip(model.adapter_ids()) {
            parts.push(AdapterPart {
                adapter: adapter.clone(),
                a: numbers(ids.a)?,
                b: numbers(ids.b)?,
                magnitude: ids.magnitude.map(numbers).transpose()?,
                base: ids.base,
                extents: slabs(&specs[ids.base].shape),
            });
        }
        let mut replaced = Vec::new();
        for (parameter, spec) in specs.iter().enumerate().filter(|(id, _)| model.held(*id) == Held::Trained) {
            let (groups, rows, columns) = slabs(&spec.shape);
            let values = numbers(parameter)?;
            for (slab, values) in values.chunks_exact((rows * columns).max(1)).take(groups).enumerate() {
                replaced.push(Replaced { parameter, slab, values: values.to_vec() });
            }
        }
        Ok(AdapterWeights {
            path: "the model".into(),
            config: model.config().clone(),
            specs,
            parts,
            replaced,
            base: None,
            notices: Vec::new(),
        })
    }

    /// The adapters, for [`Model::with_adapters`].
    pub fn adapters(&self) -> Vec<Adapter> {
        self.parts.iter().map(|part| part.adapter.clone()).collect()
    }

    /// The path that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its numbers are recognised by.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for part in &self.parts {
            hash.update(format!("{} {}", part.adapter.module, part.adapter.scale).as_bytes());
            for numbers in [&part.a, &part.b].into_iter().chain(&part.magnitude) {
                numbers.iter().for_each(|number| {
                    hash.update(&number.to_le_bytes());
                });
            }
        }
        for replaced in &self.replaced {
            hash.update(format!("{} {}", replaced.parameter, replaced.slab).as_bytes());
            replaced.values.iter().for_each(|number| {
                hash.update(&number.to_le_bytes());
            });
        }
        hash.finalize().to_string()
    }

    /// Bytes of its numbers in f32.
    pub fn bytes(&self) -> u64 {
        let part = |part: &AdapterPart| part.a.len() + part.b.len() + part.magnitude.as_ref().map_or(0, Vec::len);
        let parts = self.parts.iter().map(part).sum::<usize>();
        4 * (parts + self.replaced.iter().map(|replaced| replaced.values.len()).sum::<usize>()) as u64
    }

    /// Sets the adapters of a model made with [`AdapterWeights::adapters`]; its other parameters are left as they are.
    ///
    /// # Errors
    /// [`CheckpointError::Model`] for a model without one of them.
    pub fn fill(&self, model: &mut Model) -> Result<(), CheckpointError> {
        for part in &self.parts {
            let module = part.adapter.module;
            let sides = [(ParameterKind::LoraA, Some(&part.a)), (ParameterKind::LoraB, Some(&part.b))];
            for (kind, numbers) in sides.into_iter().chain([(ParameterKind::LoraMagnitude, part.magnitude.as_ref())]) {
                let Some(numbers) = numbers else { continue };
                let name = format!("{module}.{}", kind.suffix());
                let shape = model.parameters()[model.find(&name)?].shape.clone();
                model.set(&name, &shape, &numbers[..])?;
            }
        }
        Ok(())
    }

    /// The sum of adapters, each times a factor. LoRA adapters of one matrix become one whose rank is the sum of theirs.
    ///
    /// The factor multiplies the scale, as in peft and llama.cpp: with DoRA, whose magnitudes are no part of it, an
    /// adapter times 0 is not the base.
    ///
    /// # Errors
    /// A DoRA adapter of a matrix that has another, because the sum is none; two different replacements of one matrix; no
    /// adapters.
    pub fn combined(list: Vec<(AdapterWeights, f32)>) -> Result<AdapterWeights, CheckpointError> {
        let mut list = list.into_iter();
        let Some((mut sum, factor)) = list.next() else {
            let source = AdapterFileError::NoSum("there is no adapter".to_owned());
            return Err(CheckpointError::adapter(Path::new("the adapters"))(source));
        };
        sum.parts.iter_mut().for_each(|part| part.adapter.scale *= factor);
        for (other, factor) in list {
            let (path, first) = (other.path.clone(), sum.path.clone());
            sum.add(other, factor, &first).map_err(CheckpointError::adapter(path))?;
        }
        sum.parts.sort_by_key(|part| part.base);
        sum.replaced.sort_by_key(|replaced| (replaced.parameter, replaced.slab));
        Ok(sum)
    }

    fn add(&mut self, other: AdapterWeights, factor: f32, first: &Path) -> Result<(), AdapterFileError> {
        for mut part in other.parts {
            part.adapter.scale *= factor;
            let Some(mine) = self.parts.iter_mut().find(|mine| mine.base == part.base) else {
                self.parts.push(part);
                continue;
            };
            if mine.adapter.dora || part.adapter.dora {
                return Err(AdapterFileError::NoSum(format!(
                    "{} has an adapter in {} too, and one of them is DoRA, whose magnitudes belong to one adapter alone; \
                     merge one of them into the base with `olmoe merge`, then use the other",
                    part.adapter.module,
                    first.display()
                )));
            }
            *mine = joined(mine, &part);
        }
        for replaced in other.replaced {
            let key = |replaced: &Replaced| (replaced.parameter, replaced.slab);
            match self.replaced.iter().find(|mine| key(mine) == key(&replaced)) {
                None => self.replaced.push(replaced),
                Some(mine) if mine.values == replaced.values => {}
                Some(_) => {
                    let parameter = &self.specs[replaced.parameter].name;
                    return Err(AdapterFileError::NoSum(format!(
                        "{parameter} is replaced by {} too, by other numbers; use one of the adapters",
                        first.display()
                    )));
                }
            }
        }
        if self.base != other.base {
            let name = |base: &Option<String>| base.clone().unwrap_or_else(|| "no base".to_owned());
            self.notices.push(format!(
                "the adapters name different bases: {} and {}",
                name(&self.base),
                name(&other.base)
            ));
        }
        self.notices.extend(other.notices);
        Ok(())
    }
}

/// Two LoRA adapters of one matrix as one: the ranks of both, and the scales in B.
fn joined(x: &AdapterPart, y: &AdapterPart) -> AdapterPart {
    let (x, y) = if x.adapter.share == y.adapter.share { (x.clone(), y.clone()) } else { (x.unshared(), y.unshared()) };
    let embedding = is_embedding(&x);
    let rank = x.adapter.rank + y.adapter.rank;
    let scaled = |part: &AdapterPart| part.b.iter().map(|b| part.adapter.scale * b).collect::<Vec<f32>>();
    let (bx, by) = (scaled(&x), scaled(&y));
    // A has its ranks as rows, where a shared side or one of a single matrix is one group; B and the embedding's A have
    // them as columns.
    let a = match embedding {
        true => columns_beside((&x.a, x.adapter.rank), (&y.a, y.adapter.rank)),
        false => {
            let groups = if x.sides()[0] { 1 } else { x.extents.0 };
            columns_beside((&x.a, x.a.len() / groups), (&y.a, y.a.len() / groups))
        }
    };
    let b = columns_beside((&bx, x.adapter.rank), (&by, y.adapter.rank));
    AdapterPart { adapter: Adapter { rank, scale: 1.0, ..x.adapter.clone() }, a, b, ..x }
}

fn is_embedding(part: &AdapterPart) -> bool {
    part.adapter.module.part == olmoe_model::parameters::ModulePart::Embedding
}

/// `[x y]` of matrices given with the lengths of their rows.
fn columns_beside(x: (&[f32], usize), y: (&[f32], usize)) -> Vec<f32> {
    let rows = x.0.chunks_exact(x.1).zip(y.0.chunks_exact(y.1));
    rows.flat_map(|(x, y)| x.iter().chain(y).copied().collect::<Vec<f32>>()).collect()
}
