//! A checkpoint loaded into a model for inference.
//!
//! All threads read; each reads a part that stays in its cache until it is packed. Files are read at positions rather
//! than mapped into memory, so that a truncated file is an error and not a crash, weights are on huge pages, and the
//! page cache can be reclaimed at any time.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use olmoe_model::adapter::parameters_with;
use olmoe_model::model::{Held, Model, ModelError, Precision};
use olmoe_model::parameters::ParameterKind;
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::memory::{Buffer, available_bytes};

use crate::adapter::AdapterWeights;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::layout::{Transform, slabs};
pub use crate::loading::Loading;
use crate::packed::{PackedCache, Unusable};
use crate::weights::{Weights, slab_len};

/// A loaded model.
pub struct LoadedModel {
    /// The model.
    pub model: Model,
    /// Why an existing file of packed weights was not used.
    pub notice: Option<String>,
    wanted: Option<PackedCache>,
}

impl LoadedModel {
    /// The file of packed weights to be written by [`LoadedModel::keep`], if one was requested and none could be used.
    pub fn to_keep(&self) -> Option<u64> {
        self.wanted.as_ref().map(PackedCache::bytes)
    }

    /// Writes the file of packed weights if one was requested and none could be used. The file gets its name when it is
    /// complete. `advance` is called with the bytes written.
    ///
    /// # Errors
    /// Too little room on the disk, and errors of the system; the model can still be used.
    pub fn keep(&mut self, advance: &dyn Fn(u64)) -> Result<(), CheckpointError> {
        match self.wanted.take() {
            Some(cache) => cache.write(&mut self.model, advance),
            None => Ok(()),
        }
    }
}

/// Slabs that were brought into the canonical order, by index: at most one for each thread.
type Turned = Mutex<Vec<(usize, Buffer<u8>)>>;

impl Checkpoint {
    /// The encodings in which a model for inference may hold the parameters. The embedding keeps its encoding, because
    /// its rows are decoded when they are looked up.
    pub fn encodings(&self, keep_blocks: bool) -> Vec<Option<Encoding>> {
        let held = |parameter: usize| {
            let encoding = |slab| Weights::encoding(self, parameter, slab);
            let (count, ..) = slabs(&self.specs[parameter].shape);
            let alike = (1..count).all(|slab| encoding(slab) == encoding(0));
            let looked_up = self.specs[parameter].kind == ParameterKind::Embedding;
            // A tied embedding is also the head, so its rows are quantised only if the head is.
            let quantized = encoding(0).is_quantized();
            let kept = if quantized { keep_blocks || looked_up && !self.config.tie_embeddings } else { looked_up };
            (alike && kept).then(|| encoding(0))
        };
        (0..self.specs.len()).map(held).collect()
    }

    /// Bytes of the weights of a model for inference.
    pub fn inference_bytes(&self, precision: Precision, keep_blocks: bool) -> u64 {
        self.config.inference_bytes(precision, &self.encodings(keep_blocks))
    }

    /// Loads the weights into a model for inference, on all threads. `advance` is called with the bytes read.
    ///
    /// # Errors
    /// Too little memory, before anything is read; NaN or infinity in the weights; errors of the system. A file of
    /// packed weights that cannot be used is not an error: the checkpoint is read instead.
    pub fn load(&self, loading: &Loading, advance: &(dyn Fn(u64) + Sync)) -> Result<LoadedModel, CheckpointError> {
        let mut encodings = self.encodings(loading.keep_blocks);
        let adapter = loading.adapter.as_ref();
        for replaced in adapter.iter().flat_map(|adapter| &adapter.replaced) {
            encodings[replaced.parameter] = None;
        }
        let adapters = adapter.map(AdapterWeights::adapters).unwrap_or_default();
        // While an adapter is read it is in memory twice.
        let adapter_bytes = adapter.map_or(0, |adapter| 2 * adapter.bytes());
        let weights = self.config.inference_bytes(loading.precision, &encodings).saturating_add(adapter_bytes);
        let needed = weights.saturating_add(loading.beside);
        if let Some(available) = available_bytes()
            && needed > available
        {
            let (precision, beside) = (loading.precision.name(), loading.beside);
            return Err(CheckpointError::Memory {
                path: self.contents.path.clone(),
                weights,
                beside,
                needed,
                available,
                precision,
            });
        }
        let held = vec![Held::Inference; parameters_with(&self.config, &adapters).map_err(ModelError::from)?.len()];
        let mut model = Model::with_adapters(self.config.clone(), loading.precision, held, &encodings, &adapters)?;
        let cache = loading.packed_cache.as_ref().filter(|_| adapter.is_none());
        let Some(path) = cache else {
            self.fill(&mut model, advance)?;
            let mut notice = None;
            if let Some(adapter) = adapter {
                self.put_on(adapter, &mut model)?;
                let text = "the file of packed weights is neither read nor written with an adapter";
                notice = loading.packed_cache.as_ref().map(|_| text.to_owned());
            }
            return Ok(LoadedModel { model, notice, wanted: None });
        };
        let cache = PackedCache::new(path, self, loading, &mut model)?;
        let notice = match cache.read(&mut model, advance) {
            Ok(()) => return Ok(LoadedModel { model, notice: None, wanted: None }),
            Err(Unusable::Absent) => None,
            Err(Unusable::Because(reason)) => Some(format!("{}: {reason}; it is written again", path.display())),
        };
        self.fill(&mut model, advance)?;
        Ok(LoadedModel { model, notice, wanted: Some(cache) })
    }

    /// Sets the adapters of a model that has these weights, and the parameters that are replaced.
    fn put_on(&self, adapter: &AdapterWeights, model: &mut Model) -> Result<(), CheckpointError> {
        let parameters: BTreeSet<usize> = adapter.replaced.iter().map(|replaced| replaced.parameter).collect();
        for parameter in parameters {
            let turned = Turned::default();
            let len = slab_len(&self.specs[parameter]);
            let replaced = |slab| {
                let found = adapter.replaced.iter().find(|one| (one.parameter, one.slab) == (parameter, slab));
                found.map(|found| &found.values[..])
            };
            model.fill(parameter, |range, out| {
                // A strip lies in one slab.
                let slab = range.start / len.max(1);
                match replaced(slab) {
                    Some(values) => out.copy_from_slice(&values[range.start - slab * len..range.end - slab * len]),
                    None => drop(self.read_numbers(parameter, range, out, &turned)?),
                }
                Ok::<(), CheckpointError>(())
            })?;
        }
        adapter.fill(model)
    }

    /// Loads the weights into a model with the same parameters, for inference or for training, on all threads.
    /// `advance` is called with the bytes read.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] before anything is read; NaN or infinity in the weights, and errors of the
    /// system, after which the parameters are arbitrary.
    pub fn load_into(&self, model: &mut Model, advance: &(dyn Fn(u64) + Sync)) -> Result<(), CheckpointError> {
        self.check_parameters(model.base_parameters())?;
        self.fill(model, advance)
    }

    /// Fills a model made for these weights.
    fn fill(&self, model: &mut Model, advance: &(dyn Fn(u64) + Sync)) -> Result<(), CheckpointError> {
        for parameter in 0..self.specs.len() {
            let turned = Turned::default();
            // A tied embedding is read twice, for its rows and for the head; each counts as half of the progress.
            let looked_up = self.specs[parameter].kind == ParameterKind::Embedding;
            let times =
                if looked_up && self.config.tie_embeddings && model.encoding(parameter).is_some() { 2 } else { 1 };
            let advance = |bytes: usize| advance(bytes as u64 / times);
            if model.encoding(parameter).is_some() {
                model.fill_encoded(parameter, |range, out| {
                    self.read_range(parameter, range, out, &turned)?;
                    advance(out.len());
                    Ok::<(), CheckpointError>(())
                })?;
            }
            if model.takes_numbers(parameter) {
                model.fill(parameter, |range, out| {
                    let bytes = self.read_numbers(parameter, range, out, &turned)?;
                    advance(bytes);
                    Ok::<(), CheckpointError>(())
                })?;
            }
        }
        Ok(())
    }

    /// Decodes a range of the numbers of a parameter, whole rows or a whole vector; returns the number of bytes read.
    fn read_numbers(
        &self,
        parameter: usize,
        range: Range<usize>,
        out: &mut [f32],
        turned: &Turned,
    ) -> Result<usize, CheckpointError> {
        let slab_numbers = slab_len(&self.specs[parameter]);
        let (mut at, mut out, mut read) = (range.start, out, 0);
        while at < range.end {
            // The slabs of a parameter may have different encodings.
            let slab = at / slab_numbers;
            let len = ((slab + 1) * slab_numbers).min(range.end) - at;
            let encoding = Weights::encoding(self, parameter, slab);
            let (piece, rest) = std::mem::take(&mut out).split_at_mut(len);
            let mut bytes = Buffer::scratch(len / encoding.block_len() * encoding.block_bytes());
            self.read_range(parameter, at..at + len, &mut bytes, turned)?;
            encoding.decode(&bytes, piece);
            (at, out, read) = (at + len, rest, read + bytes.len());
        }
        Ok(read)
    }

    /// The bytes of a range of the numbers of a parameter, whole rows or a whole vector, whose slabs have the same
    /// encoding.
    fn read_range(
        &self,
        parameter: usize,
        range: Range<usize>,
        out: &mut [u8],
        turned: &Turned,
    ) -> Result<(), CheckpointError> {
        let (_, rows, columns) = slabs(&self.specs[parameter].shape);
        let slab_numbers = rows * columns;
        let (mut at, mut out) = (range.start, out);
        while at < range.end {
            let slab = at / slab_numbers;
            let (start, end) = (slab * slab_numbers, ((slab + 1) * slab_numbers).min(range.end));
            let place = self.layout.place(parameter, slab);
            let (tensor, encoding) = self.stored[place.tensor];
            let byte = |number: usize| number / encoding.block_len() * encoding.block_bytes();
            let (within, len) = (at - start, end - at);
            let (piece, rest) = std::mem::take(&mut out).split_at_mut(byte(len));
            match place.transform {
                Transform::Same => self.read_stored(tensor, encoding, place.start + within, piece)?,
                Transform::Interleave(_) => {
                    let first = within / columns;
                    for (row, piece) in piece.chunks_exact_mut(byte(columns)).enumerate() {
                        let from = place.transform.row(first + row).unwrap_or(first + row);
                        self.read_stored(tensor, encoding, place.start + from * columns, piece)?;
                    }
                }
                Transform::Transpose => {
                    let take = |turned: &mut Vec<(usize, Buffer<u8>)>| {
                        turned.iter().position(|(index, _)| *index == slab).map(|at| turned.swap_remove(at).1)
                    };
                    let taken = take(&mut turned.lock().unwrap_or_else(|error| error.into_inner()));
                    let whole = match taken {
                        Some(whole) => whole,
                        None => self.read(parameter, slab)?,
                    };
                    piece.copy_from_slice(&whole[byte(within)..byte(within + len)]);
                    if end < start + slab_numbers {
                        turned.lock().unwrap_or_else(|error| error.into_inner()).push((slab, whole));
                    }
                }
            }
            self.check_finite(piece, encoding, parameter, slab, within)?;
            (at, out) = (end, rest);
        }
        Ok(())
    }
}

/// The path of the packed weights of a checkpoint: beside the checkpoint, or in a folder for several checkpoints.
///
/// The precision is part of the name, because packed weights depend on it; in a folder for several checkpoints the name
/// also distinguishes models with the same name.
pub fn packed_cache_path(model: &Path, folder: Option<&Path>, precision: Precision) -> PathBuf {
    let model = std::fs::canonicalize(model).unwrap_or_else(|_| model.to_owned());
    let mut name = model.file_name().unwrap_or_default().to_owned();
    if folder.is_some() {
        let hash = blake3::hash(model.as_os_str().as_encoded_bytes()).to_hex();
        name.push(format!(".{}", &hash[..8]));
    }
    name.push(format!(".{}.packed", precision.name()));
    match folder {
        Some(folder) => folder.join(name),
        None => model.with_file_name(name),
    }
}
