//! A checkpoint of any format, whose tensors are matched with the parameters of its model.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use olmoe_model::config::ModelConfig;
use olmoe_model::parameters::{ParameterSpec, parameters};
use olmoe_tensor::memory::Buffer;

use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::huggingface::Experts;
use crate::layout::{Layout, Row, Transform, slabs};
use crate::open::{Contents, Format, Stored, StoredType};
use crate::read_at::ReadAt;
use crate::weights::{Weights, slab_len};
use crate::{gguf, huggingface, olmo, training};

/// A head that is stored although the configuration ties it to the embedding.
const TIED_HEAD: &str = "lm_head.weight";

/// An open checkpoint.
pub struct Checkpoint {
    pub(crate) contents: Contents,
    pub(crate) config: ModelConfig,
    pub(crate) specs: Vec<ParameterSpec>,
    pub(crate) layout: Layout,
    /// For each tensor of the layout: its index in the contents, and its encoding.
    pub(crate) stored: Vec<(usize, Encoding)>,
}

/// The table of a format for a configuration.
pub(crate) fn rows(format: Format, config: &ModelConfig, joined: bool) -> Vec<Row> {
    match format {
        Format::HuggingFace(experts) => huggingface::rows(experts),
        Format::Olmo => olmo::rows(config, joined),
        Format::Gguf => gguf::rows(config),
        Format::Training | Format::Tensors | Format::Config => training::rows(),
    }
}

impl Checkpoint {
    /// Opens a checkpoint and checks that it has exactly the tensors of its model.
    ///
    /// # Errors
    /// [`CheckpointError`], with the file and the tensor.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Self::new(Contents::read(path)?)
    }

    /// Matches the tensors with the parameters of the model.
    ///
    /// # Errors
    /// A tensor that is missing, superfluous, of the wrong shape or of a type that is not read; a missing
    /// configuration.
    pub fn new(mut contents: Contents) -> Result<Checkpoint, CheckpointError> {
        let path = &contents.path;
        let Some(loaded) = &contents.config else {
            // A GGUF adapter has another error than tensors alone.
            if let Some(header) = &contents.gguf {
                let in_file = |source| CheckpointError::GgufModel { path: path.clone(), source: Box::new(source) };
                gguf::model::read(header).map_err(in_file)?;
            }
            return Err(CheckpointError::NoConfig { path: path.clone() });
        };
        if contents.format == Format::Config {
            let found = "a configuration without weights".to_owned();
            return Err(CheckpointError::Unrecognised { path: path.clone(), found });
        }
        let config = loaded.config.clone();
        let joined = !contents.tensors.iter().any(|tensor| tensor.name == olmo::SEPARATE_QUERY);
        let rows = rows(contents.format, &config, joined);
        let by_name: HashMap<&str, usize> =
            contents.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.as_str(), at)).collect();
        let lay_out = |specs: &[ParameterSpec]| {
            let layout = Layout::new(&rows, specs)
                .map_err(|parameter| CheckpointError::NoPlace { format: contents.format.name(), parameter })?;
            let stored = find(&contents, &by_name, &layout)?;
            Ok::<_, CheckpointError>((layout, stored))
        };
        // A configuration may describe far more than the files contain. The routers are looked for first, in one layer
        // more than there can be, so that no layout is made for layers and experts whose routers are missing.
        let most = contents.tensors.len().saturating_add(1);
        let mut specs = parameters(&ModelConfig { n_layers: config.n_layers.min(most), ..config.clone() });
        let small: Vec<ParameterSpec> = specs.iter().filter(|spec| spec.shape.len() < 3).cloned().collect();
        lay_out(&small)?;
        if contents.format == Format::HuggingFace(Experts::Separate) {
            let stacks = specs.iter_mut().filter(|spec| spec.shape.len() == 3);
            stacks.for_each(|spec| spec.shape[0] = spec.shape[0].min(most));
        }
        let (layout, stored) = lay_out(&specs)?;
        let mut by_name = by_name;
        for tensor in &layout.tensors {
            by_name.remove(tensor.name.as_str());
        }
        // A tied head that is stored in spite of the tie is a copy of the embedding.
        let tied = if config.tie_embeddings { by_name.remove(TIED_HEAD) } else { None };
        if let Some(&at) = by_name.values().min() {
            let found = &contents.tensors[at];
            return Err(CheckpointError::Unexpected {
                path: contents.files[found.file].0.clone(),
                tensor: found.name.clone(),
                found: found.shape.clone(),
            });
        }
        if let Some(head) = tied {
            // The embedding comes first in every layout.
            let embedding = stored[0];
            check_tied_head(&contents, (head, encoding(&contents, &contents.tensors[head], &[])?), embedding)?;
            contents
                .notices
                .push(format!("{TIED_HEAD}: passed over, it is a copy of the embedding that it is tied to"));
        }
        Ok(Checkpoint { contents, config, specs, layout, stored })
    }

    /// The contents of the path.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.contents.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Checks that these are the parameters of the checkpoint.
    pub(crate) fn check_parameters(&self, expected: &[ParameterSpec]) -> Result<(), CheckpointError> {
        let describe = |spec: Option<&ParameterSpec>| match spec {
            Some(spec) => format!("{} {:?}", spec.name, spec.shape),
            None => "nothing more".to_owned(),
        };
        for i in 0..self.specs.len().max(expected.len()) {
            let (found, expected) = (self.specs.get(i), expected.get(i));
            let key = |spec: &ParameterSpec| (spec.name.clone(), spec.shape.clone());
            if found.map(key) != expected.map(key) {
                let (found, expected) = (describe(found), describe(expected));
                return Err(CheckpointError::OtherModel { path: self.contents.path.clone(), found, expected });
            }
        }
        Ok(())
    }

    /// Whether the file has a slab in another order, so that all of it has to be read to read a part.
    pub(crate) fn is_turned(&self, parameter: usize, slab: usize) -> bool {
        self.layout.place(parameter, slab).transform != Transform::Same
    }

    /// The bytes of some numbers of a slab, in whole blocks, all of them finite.
    pub(crate) fn read_part(
        &self,
        parameter: usize,
        slab: usize,
        range: Range<usize>,
    ) -> Result<Buffer<u8>, CheckpointError> {
        let place = self.layout.place(parameter, slab);
        let (at, encoding) = self.stored[place.tensor];
        let bytes_of = |numbers: usize| numbers / encoding.block_len() * encoding.block_bytes();
        let part = match place.transform {
            Transform::Same => {
                let mut part = Buffer::scratch(bytes_of(range.len()));
                self.read_stored(at, encoding, place.start + range.start, &mut part)?;
                part
            }
            _ => Buffer::copy_of(&self.read(parameter, slab)?[bytes_of(range.start)..bytes_of(range.end)]),
        };
        self.check_finite(&part, encoding, parameter, slab, range.start)?;
        Ok(part)
    }

    pub(crate) fn check_finite(
        &self,
        bytes: &[u8],
        encoding: Encoding,
        parameter: usize,
        slab: usize,
        before: usize,
    ) -> Result<(), CheckpointError> {
        match encoding.first_not_finite(bytes) {
            None => Ok(()),
            Some(unit) => Err(CheckpointError::NotFinite {
                path: self.file_of(parameter, slab).to_owned(),
                parameter: self.specs[parameter].name.clone(),
                slab,
                at: before + unit * encoding.block_len(),
            }),
        }
    }

    /// The file of a slab.
    fn file_of(&self, parameter: usize, slab: usize) -> &Path {
        let at = self.stored[self.layout.place(parameter, slab).tensor].0;
        &self.contents.files[self.contents.tensors[at].file].0
    }

    /// Reads numbers of a stored tensor in its order and encoding, from number `start` on, until `out` is full.
    pub(crate) fn read_stored(
        &self,
        at: usize,
        encoding: Encoding,
        start: usize,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let tensor = &self.contents.tensors[at];
        // Whole blocks inside the tensor, which was checked to have all numbers of its shape.
        let skip = start / encoding.block_len() * encoding.block_bytes();
        let (path, file) = &self.contents.files[tensor.file];
        file.read_at(tensor.offset + skip as u64, out).map_err(CheckpointError::io(path))
    }
}

/// The tensors of a layout: index in the contents, and how each is encoded.
fn find(
    contents: &Contents,
    by_name: &HashMap<&str, usize>,
    layout: &Layout,
) -> Result<Vec<(usize, Encoding)>, CheckpointError> {
    let mut stored = Vec::with_capacity(layout.tensors.len());
    for tensor in &layout.tensors {
        let missing = || CheckpointError::Missing {
            path: contents.path.clone(),
            tensor: tensor.name.clone(),
            expected: tensor.shape.clone(),
        };
        let at = *by_name.get(tensor.name.as_str()).ok_or_else(missing)?;
        let found = &contents.tensors[at];
        if found.shape != tensor.shape {
            return Err(CheckpointError::Shape {
                path: contents.files[found.file].0.clone(),
                tensor: tensor.name.clone(),
                found: found.shape.clone(),
                expected: tensor.shape.clone(),
            });
        }
        let transforms: Vec<Transform> = tensor.pieces.iter().map(|piece| piece.transform).collect();
        stored.push((at, encoding(contents, found, &transforms)?));
    }
    Ok(stored)
}

/// The encoding of a tensor, if its numbers can be read and brought into the canonical order.
fn encoding(contents: &Contents, tensor: &Stored, transforms: &[Transform]) -> Result<Encoding, CheckpointError> {
    let refused = |found: String| CheckpointError::Encoding {
        path: contents.files[tensor.file].0.clone(),
        tensor: tensor.name.clone(),
        found,
    };
    let encoding = match &tensor.kind {
        StoredType::Known(encoding) => *encoding,
        StoredType::Other(name) => return Err(refused(name.clone())),
    };
    let bytes = encoding.bytes(tensor.shape.iter().product());
    if bytes.map(|bytes| bytes as u64) != Some(tensor.bytes) {
        return Err(refused(format!("{encoding} of {} bytes", tensor.bytes)));
    }
    if encoding.is_quantized() && transforms.iter().any(|transform| !transform.keeps_blocks()) {
        return Err(refused(format!("{encoding}, which cannot be transposed")));
    }
    Ok(encoding)
}

/// Fails unless a head has the numbers of the embedding, so that passing it over loses nothing.
fn check_tied_head(
    contents: &Contents,
    (head, head_encoding): (usize, Encoding),
    (embedding, embedding_encoding): (usize, Encoding),
) -> Result<(), CheckpointError> {
    /// Numbers compared at a time: a multiple of every block.
    const PIECE: usize = 1 << 16;
    let (head, embedding) = (&contents.tensors[head], &contents.tensors[embedding]);
    let path = &contents.files[head.file].0;
    if head.shape != embedding.shape {
        let (path, tensor) = (path.clone(), head.name.clone());
        return Err(CheckpointError::Shape {
            path,
            tensor,
            found: head.shape.clone(),
            expected: embedding.shape.clone(),
        });
    }
    let count: usize = head.shape.iter().product();
    for start in (0..count).step_by(PIECE) {
        let len = PIECE.min(count - start);
        let numbers = |tensor: &Stored, encoding: Encoding| {
            let place = |number: usize| number / encoding.block_len() * encoding.block_bytes();
            let mut bytes = Buffer::scratch(place(len));
            let (path, file) = &contents.files[tensor.file];
            file.read_at(tensor.offset + place(start) as u64, &mut bytes).map_err(CheckpointError::io(path))?;
            let mut numbers = Buffer::<f32>::scratch(len);
            encoding.decode(&bytes, &mut numbers);
            Ok::<_, CheckpointError>(numbers)
        };
        let (ours, theirs) = (numbers(head, head_encoding)?, numbers(embedding, embedding_encoding)?);
        // Compared as bits, so that a NaN equals itself.
        if let Some(at) = ours.iter().zip(&theirs[..]).position(|(x, y)| x.to_bits() != y.to_bits()) {
            return Err(CheckpointError::TiedHead {
                path: path.clone(),
                tensor: head.name.clone(),
                embedding: embedding.name.clone(),
                at: start + at,
                found: ours[at],
                expected: theirs[at],
            });
        }
    }
    Ok(())
}

impl Weights for Checkpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn encoding(&self, parameter: usize, slab: usize) -> Encoding {
        self.stored[self.layout.place(parameter, slab).tensor].1
    }

    fn main_encoding(&self) -> Encoding {
        let mut bytes: HashMap<Encoding, u64> = HashMap::new();
        for (tensor, (at, encoding)) in self.layout.tensors.iter().zip(&self.stored) {
            if tensor.shape.len() > 1 {
                *bytes.entry(*encoding).or_default() += self.contents.tensors[*at].bytes;
            }
        }
        // Of equal counts the last name is chosen, so that the result does not depend on the order of a map.
        bytes.into_iter().max_by_key(|(encoding, bytes)| (*bytes, encoding.name())).map_or(Encoding::F32, |most| most.0)
    }

    fn widens_vectors(&self) -> bool {
        self.contents.format == Format::Gguf
    }

    fn origin(&self) -> &Path {
        &self.contents.path
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        let place = self.layout.place(parameter, slab);
        let (at, encoding) = self.stored[place.tensor];
        let len = slab_len(&self.specs[parameter]);
        let mut bytes = Buffer::scratch(len / encoding.block_len() * encoding.block_bytes());
        self.read_stored(at, encoding, place.start, &mut bytes)?;
        if place.transform == Transform::Same {
            return Ok(bytes);
        }
        let (_, rows, columns) = slabs(&self.specs[parameter].shape);
        let mut turned = Buffer::scratch(bytes.len());
        place.transform.invert(encoding, (rows, columns), &bytes, &mut turned);
        Ok(turned)
    }
}
