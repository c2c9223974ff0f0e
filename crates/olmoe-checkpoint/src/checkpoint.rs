//! A checkpoint of any format, its tensors matched with the parameters of its model.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Model, Precision};
use olmoe_model::parameters::{ParameterSpec, parameters};
use olmoe_tensor::memory::{Buffer, available_bytes};
use olmoe_tensor::quant::BlockFormat;

use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::huggingface::Experts;
use crate::layout::{Layout, Row, Transform, slabs};
use crate::open::{Contents, Format, Stored, StoredType};
use crate::read_at::ReadAt;
use crate::weights::{Weights, slab_len};
use crate::{gguf, huggingface, olmo, training};

/// An open checkpoint.
pub struct Checkpoint {
    contents: Contents,
    config: ModelConfig,
    specs: Vec<ParameterSpec>,
    layout: Layout,
    /// By tensor of the layout: index in the contents, and how it is encoded.
    stored: Vec<(usize, Encoding)>,
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
    /// Opens a checkpoint and checks that its tensors are those of its model.
    ///
    /// # Errors
    /// [`CheckpointError`], with the file and the tensor.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Self::new(Contents::read(path)?)
    }

    /// Matches the tensors with the parameters of the model.
    ///
    /// # Errors
    /// A missing, superfluous or misshapen tensor, one in a type that is not read, and no configuration.
    pub fn new(mut contents: Contents) -> Result<Checkpoint, CheckpointError> {
        let path = &contents.path;
        let Some(loaded) = &contents.config else { return Err(CheckpointError::NoConfig { path: path.clone() }) };
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
        // A configuration may ask for far more than the files have. What is small is looked for first, in one layer more
        // than there can be, so that nothing is laid out for layers and experts whose routers are not there.
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
        // A tied head that is stored all the same is the embedding once more.
        let tied_head = |name: &str| config.tie_embeddings && name == "lm_head.weight";
        let tied = by_name.keys().any(|name| tied_head(name));
        by_name.retain(|name, _| !tied_head(name));
        if let Some(&at) = by_name.values().min() {
            let found = &contents.tensors[at];
            return Err(CheckpointError::Unexpected {
                path: contents.files[found.file].0.clone(),
                tensor: found.name.clone(),
                found: found.shape.clone(),
            });
        }
        if tied {
            contents.notices.push("lm_head.weight: passed over, the configuration ties it to the embedding".to_owned());
        }
        Ok(Checkpoint { contents, config, specs, layout, stored })
    }

    /// What the path holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.contents.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Loads the weights into a model made for inference, on all threads. `advance` hears of the bytes read.
    ///
    /// With `keep_blocks` quantised matrices stay quantised, and products with them round the other factor to eight bits;
    /// without, they become the numbers that they stand for.
    ///
    /// # Errors
    /// Too little memory, numbers that are not finite, and what the system says.
    pub fn load(
        &self,
        precision: Precision,
        keep_blocks: bool,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Result<Model, CheckpointError> {
        let blocks: Vec<Option<BlockFormat>> = match keep_blocks {
            true => (0..self.specs.len()).map(|parameter| self.blocks(parameter)).collect(),
            false => Vec::new(),
        };
        let needed = self.config.inference_bytes(precision, &blocks);
        if let Some(available) = available_bytes()
            && needed > available
        {
            return Err(CheckpointError::Memory { needed, available, precision: precision.name() });
        }
        let mut model = Model::quantized(self.config.clone(), precision, &blocks)?;
        self.load_into(&mut model, advance)?;
        Ok(model)
    }

    /// Loads the weights into a model that was made for them, for inference or for training, on all threads. `advance`
    /// hears of the bytes read.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] before anything is read, numbers that are not finite, and what the system says; the
    /// parameters are then arbitrary.
    pub fn load_into(&self, model: &mut Model, advance: &(dyn Fn(u64) + Sync)) -> Result<(), CheckpointError> {
        self.check_parameters(model.parameters())?;
        for parameter in 0..self.specs.len() {
            if model.block_format(parameter).is_some() {
                model.fill_blocks(parameter, |range| self.read_blocks(parameter, range, advance))?;
                if model.value(parameter).is_none() {
                    continue;
                }
            }
            let slab_numbers = slab_len(&self.specs[parameter]);
            // Slabs that have to be turned are decoded whole; one for each thread at most.
            let turned: Mutex<Vec<(usize, Buffer<f32>)>> = Mutex::new(Vec::new());
            model.fill(parameter, |range, out| {
                let slab = range.start / slab_numbers;
                let within = range.start - slab * slab_numbers..range.end - slab * slab_numbers;
                let place = self.layout.place(parameter, slab);
                let (at, encoding) = self.stored[place.tensor];
                if place.transform == Transform::Same && within.start.is_multiple_of(encoding.unit()) {
                    let bytes = self.read_bytes(at, encoding, place.start + within.start, within.len())?;
                    self.check_finite(&bytes, encoding, parameter, slab, within.start)?;
                    encoding.decode(&bytes, out);
                    advance(bytes.len() as u64);
                    return Ok(());
                }
                let taken = {
                    let mut turned = turned.lock().unwrap_or_else(|error| error.into_inner());
                    turned.iter().position(|(index, _)| *index == slab).map(|at| turned.swap_remove(at))
                };
                let numbers = match taken {
                    Some((_, numbers)) => numbers,
                    None => {
                        let bytes = self.read(parameter, slab)?;
                        self.check_finite(&bytes, encoding, parameter, slab, 0)?;
                        let mut numbers = Buffer::scratch(slab_numbers);
                        encoding.decode(&bytes, &mut numbers);
                        numbers
                    }
                };
                out.copy_from_slice(&numbers[within.clone()]);
                let mut turned = turned.lock().unwrap_or_else(|error| error.into_inner());
                if within.end < slab_numbers {
                    turned.push((slab, numbers));
                }
                advance(encoding.bytes(within.len()).unwrap_or(0) as u64);
                Ok::<(), CheckpointError>(())
            })?;
        }
        Ok(())
    }

    /// Whether these are the parameters of the checkpoint.
    fn check_parameters(&self, expected: &[ParameterSpec]) -> Result<(), CheckpointError> {
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

    /// The format of a parameter whose slabs are all quantised alike.
    fn blocks(&self, parameter: usize) -> Option<BlockFormat> {
        let encoding = |slab| Weights::encoding(self, parameter, slab);
        let (slabs, ..) = slabs(&self.specs[parameter].shape);
        match encoding(0) {
            Encoding::Blocks(format) if (1..slabs).all(|slab| encoding(slab) == encoding(0)) => Some(format),
            _ => None,
        }
    }

    /// The blocks of a range of a parameter's numbers: whole rows.
    fn read_blocks(
        &self,
        parameter: usize,
        range: Range<usize>,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Result<Buffer<u8>, CheckpointError> {
        let encoding = Weights::encoding(self, parameter, 0);
        let bytes_of = |numbers: usize| numbers / encoding.unit() * encoding.unit_bytes();
        let mut out = Buffer::scratch(bytes_of(range.len()));
        let slab_numbers = slab_len(&self.specs[parameter]);
        let mut at = range.start;
        while at < range.end {
            let slab = at / slab_numbers;
            let (within, len) = (at - slab * slab_numbers, ((slab + 1) * slab_numbers).min(range.end) - at);
            let place = self.layout.place(parameter, slab);
            let part = match place.transform {
                Transform::Same => self.read_bytes(self.stored[place.tensor].0, encoding, place.start + within, len)?,
                _ => Buffer::copy_of(&self.read(parameter, slab)?[bytes_of(within)..bytes_of(within + len)]),
            };
            self.check_finite(&part, encoding, parameter, slab, within)?;
            let start = bytes_of(at - range.start);
            out[start..start + part.len()].copy_from_slice(&part);
            at += len;
        }
        advance(out.len() as u64);
        Ok(out)
    }

    fn check_finite(
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
                path: self.contents.path.clone(),
                parameter: self.specs[parameter].name.clone(),
                slab,
                at: before + unit * encoding.unit(),
            }),
        }
    }

    /// Some numbers of a stored tensor, as they lie there.
    fn read_bytes(
        &self,
        at: usize,
        encoding: Encoding,
        start: usize,
        len: usize,
    ) -> Result<Buffer<u8>, CheckpointError> {
        let tensor = &self.contents.tensors[at];
        // Whole units inside the tensor: it was checked to hold all numbers of its shape.
        let (skip, count) =
            (start / encoding.unit() * encoding.unit_bytes(), len / encoding.unit() * encoding.unit_bytes());
        let mut bytes = Buffer::scratch(count);
        let (path, file) = &self.contents.files[tensor.file];
        file.read_at(tensor.offset + skip as u64, &mut bytes).map_err(CheckpointError::io(path))?;
        Ok(bytes)
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

/// How a tensor is encoded, if its numbers can be read and turned.
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
        // A tie goes to the name that comes last, so that it does not depend on the order of a map.
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
        let bytes = self.read_bytes(at, encoding, place.start, slab_len(&self.specs[parameter]))?;
        if place.transform == Transform::Same {
            return Ok(bytes);
        }
        let (_, rows, columns) = slabs(&self.specs[parameter].shape);
        let mut turned = Buffer::scratch(bytes.len());
        place.transform.invert(encoding, (rows, columns), &bytes, &mut turned);
        Ok(turned)
    }
}
