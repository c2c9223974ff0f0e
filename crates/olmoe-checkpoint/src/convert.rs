//! Converting weights to a format: the conversion is planned, streamed slab by slab, read back and compared, and only
//! then does the result get its name.
//!
//! The bytes of every slab are hashed in canonical order when they are written, and again when the result is read back,
//! so that the result is proved to have the weights of the source. Memory: the largest slab in both encodings, and the
//! headers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use olmoe_model::config::{ConfigError, ModelConfig, in_files};
use olmoe_model::parameters::ParameterKind;
use olmoe_tensor::dtype::DType;
use olmoe_tensor::memory::Buffer;

use crate::checkpoint::{Checkpoint, rows};
use crate::companions::Companions;
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::fidelity::{Fidelity, Recorder};
use crate::file_name::{HF_CONFIG, OLMO_CONFIG, SAFETENSORS};
use crate::gguf::mix::{Context, Mix};
use crate::gguf::model::GgufModelError;
use crate::gguf::parts::{self, GgufPart};
use crate::gguf::{self, value::Metadata, value::Value};
use crate::huggingface::Experts;
use crate::layout::{FileTensor, Layout, Transform, slabs};
use crate::olmo_keys;
use crate::open::Format;
use crate::output::{Made, Output, create, write_file};
use crate::safetensors::{self, INDEX_FILE, SafeType, ShardIndex, Spec, shard_name, split, split_sizes};
pub use crate::step::Step;
use crate::weights::{Weights, slab_len};

/// Bytes of a shard of a Hugging Face checkpoint.
pub const SHARD_BYTES: u64 = 5_000_000_000;
const GGUF_FILE: Made = Made::File(b"GGUF");
/// Size of the write buffer in bytes.
const WRITE_BYTES: usize = 1 << 20;

/// The format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A folder that transformers loads.
    HuggingFace {
        /// How experts are stored.
        experts: Experts,
        /// The type of all numbers; `None` keeps the type of each tensor.
        dtype: Option<DType>,
    },
    /// An unsharded checkpoint of OLMo's trainer.
    Olmo {
        /// The type of all numbers; `None` keeps the type of each tensor.
        dtype: Option<DType>,
    },
    /// A GGUF file.
    Gguf {
        /// The mix that chooses the type of each tensor; `None` keeps the type of each matrix.
        mix: Option<Mix>,
    },
}

impl Target {
    fn format(self) -> Format {
        match self {
            Target::HuggingFace { experts, .. } => Format::HuggingFace(experts),
            Target::Olmo { .. } => Format::Olmo,
            Target::Gguf { .. } => Format::Gguf,
        }
    }
}

/// Options of writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Most bytes of tensors in a file, in a format that can have several; `None`: 5 GB for Hugging Face, and one file
    /// for GGUF.
    pub shard_bytes: Option<u64>,
    /// Whether numbers outside the range of the written type become the largest number of that range; otherwise they
    /// are an error.
    pub clamp: bool,
}

/// The result of a conversion.
#[derive(Debug)]
pub struct Written {
    /// The fidelity of each kind of parameter: `attention.q_proj`, `moe.experts.up_proj`, …
    pub kinds: BTreeMap<String, Fidelity>,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// How many numbers were outside the range of their type.
    pub clamped: u64,
}

/// A planned conversion, for which the format can express all of the model.
pub struct Conversion<'s> {
    source: &'s dyn Weights,
    companions: &'s Companions,
    /// The configuration to write, with the special tokens.
    config: ModelConfig,
    target: Target,
    manner: Manner,
    layout: Layout,
    encodings: Vec<Encoding>,
    config_text: String,
    metadata: Metadata,
    /// Notices for the user about limitations of the result.
    pub notices: Vec<String>,
}

impl<'s> Conversion<'s> {
    /// Plans a conversion.
    ///
    /// # Errors
    /// A model that the format cannot express, and quantised weights without a type to write.
    pub fn plan(
        source: &'s dyn Weights,
        companions: &'s Companions,
        target: Target,
    ) -> Result<Conversion<'s>, CheckpointError> {
        Self::planned(source, companions, target).map_err(|error| with_holders(error, source))
    }

    fn planned(
        source: &'s dyn Weights,
        companions: &'s Companions,
        target: Target,
    ) -> Result<Conversion<'s>, CheckpointError> {
        let config = companions.corrected(source.config());
        let format = target.format();
        let layout = Layout::new(&rows(format, &config, true), source.parameters())
            .map_err(|parameter| CheckpointError::NoPlace { format: format.name(), parameter })?;
        let mut encodings = Vec::with_capacity(layout.tensors.len());
        for tensor in &layout.tensors {
            encodings.push(encoding(source, target, tensor)?);
        }
        let (mut config_text, mut metadata, mut notices) = (String::new(), Metadata::default(), Vec::new());
        match target {
            Target::HuggingFace { .. } => config_text = config.to_hf_json(dtype_name(&layout, &encodings))?,
            Target::Olmo { .. } => config_text = config.to_olmo_yaml()?,
            Target::Gguf { mix } => {
                let file_type = mix.unwrap_or_else(|| mix_of(source.main_encoding()));
                metadata = gguf_metadata(&config, companions, file_type)?;
                gguf::model::check(&config, &metadata, &layout).map_err(|source| CheckpointError::GgufModel {
                    path: "the result".into(),
                    source: Box::new(source),
                })?;
                notices.extend(gguf::model::not_loaded_by_llama_cpp(&config));
                if !companions.stop_strings().is_empty() {
                    let text = "`stop_strings` of generation_config.json have no place in a GGUF file and are left out";
                    notices.push(format!("{text}; give them with --stop where it generates"));
                }
            }
        }
        let manner = Manner::default();
        Ok(Conversion { source, companions, config, target, manner, layout, encodings, config_text, metadata, notices })
    }

    /// Sets the options of writing.
    ///
    /// # Errors
    /// A size of shards for a format that has one file.
    pub fn manner(self, manner: Manner) -> Result<Conversion<'s>, CheckpointError> {
        match self.target {
            Target::Olmo { .. } if manner.shard_bytes.is_some() => {
                Err(CheckpointError::OneFile { format: self.target.format().name() })
            }
            _ => Ok(Conversion { manner, ..self }),
        }
    }

    /// Bytes of the tensors that will be written.
    pub fn bytes(&self) -> u64 {
        let bytes = |(tensor, encoding): (&FileTensor, &Encoding)| encoding.bytes(tensor.num_elements()).unwrap_or(0);
        self.layout.tensors.iter().zip(&self.encodings).map(|pair| bytes(pair) as u64).sum()
    }

    /// Writes the result, reads it back, compares it and gives it its name. After an error, nothing is left under the
    /// name.
    ///
    /// # Errors
    /// An existing file or folder of the name (unless `force` is set), too little room on the disk, errors of the
    /// system, and a result that reads back differently.
    pub fn run(self, out: &Path, force: bool, progress: &(dyn Fn(Step) + Sync)) -> Result<Written, CheckpointError> {
        let shards = self.gguf_shards();
        let output = match self.target {
            Target::Gguf { .. } if shards.len() > 1 => {
                Output::begin_parts(out, GGUF_FILE, part_names(out, shards.len()), force, self.bytes())?
            }
            Target::Gguf { .. } => Output::begin(out, GGUF_FILE, force, self.bytes())?,
            _ => Output::begin(out, Made::Folder, force, self.bytes())?,
        };
        let mut written = Recorder::new(self.source);
        match self.target {
            Target::HuggingFace { .. } => self.huggingface(output.path(), &mut written, progress)?,
            Target::Olmo { .. } => self.olmo(output.path(), &mut written, progress)?,
            Target::Gguf { .. } => self.gguf(&output, &shards, &mut written, progress)?,
        }
        written.compare(&Checkpoint::open(output.path())?, out, progress)?;
        output.commit()?;
        let clamped = written.clamped;
        Ok(Written { kinds: written.kinds, bytes: self.bytes(), tensors: self.layout.tensors.len(), clamped })
    }

    fn huggingface(
        &self,
        folder: &Path,
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        write_file(&folder.join(HF_CONFIG), self.config_text.as_bytes())?;
        self.companions.write(folder, &self.config)?;
        let specs = self.specs(|tensor| tensor.name.clone());
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |source| CheckpointError::Safetensors { path, source }
        };
        let most = self.manner.shard_bytes.unwrap_or(SHARD_BYTES);
        let shards = split(&specs, most).map_err(bad(folder))?;
        let mut index = ShardIndex::default();
        for (number, range) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SAFETENSORS.to_owned(),
                several => shard_name("model", number + 1, several),
            };
            let path = folder.join(&name);
            for spec in &specs[range.clone()] {
                index.weight_map.insert(spec.name.clone(), name.clone());
            }
            self.safetensors(&path, &specs, range.clone(), written, progress)?;
        }
        if shards.len() > 1 {
            index.total_size = Some(self.bytes());
            let path = folder.join(INDEX_FILE);
            let text = index.to_json().map_err(|source| CheckpointError::Index { path: path.clone(), source })?;
            write_file(&path, text.as_bytes())?;
        }
        Ok(())
    }

    fn olmo(
        &self,
        folder: &Path,
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        write_file(&folder.join(OLMO_CONFIG), self.config_text.as_bytes())?;
        self.companions.write(folder, &self.config)?;
        let specs = self.specs(|tensor| olmo_keys::encode(&[&tensor.name], false));
        self.safetensors(&folder.join(SAFETENSORS), &specs, 0..specs.len(), written, progress)
    }

    fn specs(&self, name: impl Fn(&FileTensor) -> String) -> Vec<Spec> {
        let spec = |(tensor, encoding): (&FileTensor, &Encoding)| {
            let dtype = match encoding {
                Encoding::Plain(DType::F16) => SafeType::F16,
                Encoding::Plain(DType::Bf16) => SafeType::BF16,
                // `encoding` plans no blocks for these formats.
                Encoding::Plain(DType::F32) | Encoding::Blocks(_) => SafeType::F32,
            };
            Spec::new(name(tensor), dtype, tensor.shape.clone())
        };
        self.layout.tensors.iter().zip(&self.encodings).map(spec).collect()
    }

    fn safetensors(
        &self,
        path: &Path,
        specs: &[Spec],
        range: std::ops::Range<usize>,
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        let file = BufWriter::with_capacity(WRITE_BYTES, create(path)?);
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let bad = |source| match source {
            safetensors::SafetensorsError::Io(source) => CheckpointError::Io { path: path.to_owned(), source },
            source => CheckpointError::Safetensors { path: path.to_owned(), source },
        };
        let mut writer = safetensors::Writer::new(file, &specs[range.clone()], &metadata).map_err(bad)?;
        for index in range {
            self.tensor(index, written, progress, &mut |bytes| writer.write(bytes).map_err(bad))?;
        }
        finish(path, writer.finish().map_err(bad)?)
    }

    /// The division of the tensors among files.
    fn gguf_shards(&self) -> Vec<std::ops::Range<usize>> {
        let sizes = self.layout.tensors.iter().zip(&self.encodings).map(|(tensor, encoding)| {
            // A tensor begins at a multiple of the alignment.
            encoding.bytes(tensor.num_elements()).unwrap_or(0).next_multiple_of(gguf::container::ALIGNMENT as usize)
                as u64
        });
        split_sizes(sizes, self.manner.shard_bytes.unwrap_or(u64::MAX))
    }

    fn gguf(
        &self,
        output: &Output,
        shards: &[std::ops::Range<usize>],
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        let [one] = shards else {
            let count = shards.len() as u64;
            for ((range, path), number) in shards.iter().zip(output.parts()).zip(0..) {
                // All other metadata is in the first part.
                let mut metadata = if number == 0 { self.metadata.clone() } else { Metadata::default() };
                GgufPart { number, count, tensors: Some(self.layout.tensors.len() as u64) }.write(&mut metadata);
                self.gguf_file(&path, &metadata, range.clone(), written, progress)?;
            }
            return Ok(());
        };
        self.gguf_file(output.path(), &self.metadata, one.clone(), written, progress)
    }

    fn gguf_file(
        &self,
        path: &Path,
        metadata: &Metadata,
        range: std::ops::Range<usize>,
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<(), CheckpointError> {
        let file = BufWriter::with_capacity(WRITE_BYTES, create(path)?);
        let tensor =
            |(tensor, encoding): (&FileTensor, &Encoding)| (tensor.name.clone(), tensor.shape.clone(), *encoding);
        let tensors = self.layout.tensors[range.clone()].iter().zip(&self.encodings[range.clone()]);
        let tensors: Vec<_> = tensors.map(tensor).collect();
        let bad = |source| CheckpointError::Io { path: path.to_owned(), source };
        let mut writer = gguf::container::GgufWriter::new(file, metadata, &tensors).map_err(bad)?;
        for index in range {
            self.tensor(index, written, progress, &mut |bytes| writer.write(bytes).map_err(bad))?;
        }
        finish(path, writer.finish().map_err(bad)?)
    }

    /// Whether any tensor of the result is quantised.
    fn quantizes(&self) -> bool {
        matches!(self.target, Target::Gguf { mix: Some(mix) } if mix.encoding().is_quantized())
    }

    /// Converts numbers of which some are outside the range of the type. With `clamp` they become the largest number of
    /// the range, and the number of them is returned; otherwise, and where that is impossible, the error has the place
    /// and the value of the largest.
    fn narrow(&self, bytes: &[u8], from: Encoding, to: Encoding, out: &mut [u8]) -> Result<u64, (usize, f32)> {
        let count = bytes.len() / from.block_bytes() * from.block_len();
        let mut numbers = Buffer::<f32>::scratch(count);
        from.decode(bytes, &mut numbers);
        let worst = (0..count).max_by(|a, b| numbers[*a].abs().total_cmp(&numbers[*b].abs())).unwrap_or(0);
        let Some(largest) = to.largest().filter(|_| self.manner.clamp) else { return Err((worst, numbers[worst])) };
        let mut clamped = 0;
        for x in &mut numbers[..] {
            clamped += u64::from(x.abs() > largest);
            *x = x.clamp(-largest, largest);
        }
        to.encode(&numbers, out);
        Ok(clamped)
    }

    /// Writes one tensor: each slab is read, converted, and laid out.
    fn tensor(
        &self,
        index: usize,
        written: &mut Recorder<'_>,
        progress: &(dyn Fn(Step) + Sync),
        write: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let (tensor, to) = (&self.layout.tensors[index], self.encodings[index]);
        for piece in &tensor.pieces {
            let from = self.source.encoding(piece.parameter, piece.slab);
            let bytes = self.source.read(piece.parameter, piece.slab)?;
            let spec = &self.source.parameters()[piece.parameter];
            let numbers = slab_len(spec);
            let mut converted = Buffer::scratch(to.bytes(numbers).unwrap_or(0));
            from.convert(&bytes, to, &mut converted);
            // Numbers that are not converted may also be NaN or infinite, so that a diverged model can be converted and
            // examined.
            let exact = from == to || (to == Encoding::F32 && !from.is_quantized());
            if !exact || self.quantizes() {
                if let Some(unit) = from.first_not_finite(&bytes) {
                    return Err(CheckpointError::NotFinite {
                        path: self.source.origin().to_owned(),
                        parameter: spec.name.clone(),
                        slab: piece.slab,
                        at: unit * from.block_len(),
                    });
                }
                if !exact && to.first_beyond(&converted).is_some() {
                    written.clamped += self.narrow(&bytes, from, to, &mut converted).map_err(|(at, value)| {
                        CheckpointError::Overflow {
                            path: self.source.origin().to_owned(),
                            parameter: spec.name.clone(),
                            slab: piece.slab,
                            at,
                            value,
                            encoding: to.name(),
                        }
                    })?;
                }
            }
            written.record((piece.parameter, piece.slab), (from, &bytes), (to, &converted), numbers);
            self.source.written(piece.parameter, piece.slab, to, &converted);
            if piece.transform == Transform::Same {
                write(&converted)?;
            } else {
                let (_, rows, columns) = slabs(&spec.shape);
                let mut laid_out = Buffer::scratch(converted.len());
                piece.transform.apply(to, (rows, columns), &converted, &mut laid_out);
                write(&laid_out)?;
            }
            progress(Step::Written(converted.len() as u64));
        }
        Ok(())
    }
}

/// An error about a format that cannot hold a model, with the formats that can.
fn with_holders(error: CheckpointError, source: &dyn Weights) -> CheckpointError {
    let otherwise = |field: &str, found: &str, instead: &str| {
        format!("{} is {found}, but in that format it could only be {instead}", in_files(field))
    };
    let (format, reason) = match error {
        CheckpointError::Config(ConfigError::Inexpressible { format, field, found, instead, .. }) => {
            (format.to_owned(), otherwise(&field, &found, &instead))
        }
        CheckpointError::GgufModel { path, source } => match *source {
            GgufModelError::NotExpressible {
                architecture,
                source: ConfigError::OtherFunction { field, this, other },
            } => (format!("llama.cpp's {architecture}"), otherwise(&field, &this, &other)),
            other => return CheckpointError::GgufModel { path, source: Box::new(other) },
        },
        CheckpointError::NoPlace { format, parameter } => {
            (format.to_owned(), format!("it has no place for the parameter {parameter}"))
        }
        other => return other,
    };
    const FORMATS: [(&str, Format); 3] =
        [("hf", Format::HuggingFace(Experts::Separate)), ("olmo", Format::Olmo), ("gguf", Format::Gguf)];
    let holders = FORMATS.into_iter().filter(|(_, format)| holds(*format, source)).map(|(name, _)| name).collect();
    CheckpointError::CannotHold { format, reason, holders }
}

/// Whether a format has words for a model.
fn holds(format: Format, source: &dyn Weights) -> bool {
    let config = source.config();
    let Ok(layout) = Layout::new(&rows(format, config, true), source.parameters()) else { return false };
    match format {
        Format::HuggingFace(_) => config.to_hf_json("float32").is_ok(),
        Format::Olmo => config.to_olmo_yaml().is_ok(),
        _ => gguf::model::check(config, &gguf::model::described(config), &layout).is_ok(),
    }
}

/// The names of the parts of a GGUF file with that name.
fn part_names(out: &Path, count: usize) -> Vec<String> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    (1..=count as u64).map(|number| parts::file_name(stem, number, count as u64)).collect()
}

/// The encoding of one tensor of the result.
fn encoding(source: &dyn Weights, target: Target, tensor: &FileTensor) -> Result<Encoding, CheckpointError> {
    let from = |at: usize| source.encoding(tensor.pieces[at].parameter, tensor.pieces[at].slab);
    let uniform = (1..tensor.pieces.len()).all(|at| from(at) == from(0));
    // Parts of one tensor need one type.
    let kept = if uniform { from(0) } else { Encoding::F32 };
    let spec = &source.parameters()[tensor.pieces[0].parameter];
    let vector = spec.shape.len() < 2 || spec.kind == ParameterKind::Router;
    match target {
        Target::HuggingFace { dtype: Some(dtype), .. } | Target::Olmo { dtype: Some(dtype) } => {
            Ok(Encoding::Plain(dtype))
        }
        Target::HuggingFace { dtype: None, .. } | Target::Olmo { dtype: None } => {
            let main = source.main_encoding();
            if kept.is_quantized() || main.is_quantized() {
                return Err(CheckpointError::Quantized { path: source.origin().to_owned() });
            }
            // In GGUF these are always in f32.
            let narrow = source.widens_vectors() && vector && narrows_exactly(source, tensor, main)?;
            Ok(if narrow { main } else { kept })
        }
        Target::Gguf { mix: None } => Ok(if vector { Encoding::F32 } else { kept }),
        Target::Gguf { mix: Some(mix) } => {
            let config = source.config();
            Ok(mix.encoding_of(Context {
                module: spec.module,
                num_layers: config.n_layers,
                num_experts: config.moe().map_or(0, |moe| moe.num_experts),
                tied: config.tie_embeddings,
                shape: &tensor.shape,
            }))
        }
    }
}

/// Whether all numbers of a tensor are exact in a narrower type.
fn narrows_exactly(source: &dyn Weights, tensor: &FileTensor, to: Encoding) -> Result<bool, CheckpointError> {
    for piece in &tensor.pieces {
        let from = source.encoding(piece.parameter, piece.slab);
        let bytes = source.read(piece.parameter, piece.slab)?;
        let numbers = slab_len(&source.parameters()[piece.parameter]);
        let mut narrow = Buffer::scratch(to.bytes(numbers).unwrap_or(0));
        from.convert(&bytes, to, &mut narrow);
        let mut back = Buffer::scratch(bytes.len());
        to.convert(&narrow, from, &mut back);
        if back[..] != bytes[..] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// transformers' name of the type that most numbers have.
fn dtype_name(layout: &Layout, encodings: &[Encoding]) -> &'static str {
    let mut numbers: BTreeMap<&'static str, usize> = BTreeMap::new();
    for (tensor, encoding) in layout.tensors.iter().zip(encodings) {
        let name = match encoding {
            Encoding::Plain(DType::Bf16) => "bfloat16",
            Encoding::Plain(DType::F16) => "float16",
            Encoding::Plain(DType::F32) | Encoding::Blocks(_) => "float32",
        };
        *numbers.entry(name).or_default() += tensor.num_elements();
    }
    numbers.into_iter().max_by_key(|entry| entry.1).map_or("float32", |entry| entry.0)
}

/// The `general.file_type` of a file whose tensors mostly have an encoding.
fn mix_of(encoding: Encoding) -> Mix {
    Mix::all().find(|mix| mix.encoding() == encoding).unwrap_or(Mix::F32)
}

fn gguf_metadata(config: &ModelConfig, companions: &Companions, mix: Mix) -> Result<Metadata, CheckpointError> {
    /// The version of the block formats.
    const QUANTIZATION_VERSION: u32 = 2;
    let mut metadata = Metadata::default();
    let architecture = gguf::model::architecture(config);
    metadata.insert("general.architecture", Value::Text(architecture.to_owned()));
    metadata.insert("general.type", Value::Text("model".to_owned()));
    metadata.insert("general.name", Value::Text(companions.name().to_owned()));
    gguf::model::write(config, &mut metadata);
    metadata.insert("general.file_type", Value::U32(mix.file_type()));
    if mix.encoding().is_quantized() {
        metadata.insert("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    }
    let vocabulary = companions.vocabulary(config)?;
    gguf::vocabulary::write(vocabulary.as_ref(), &mut metadata);
    Ok(metadata)
}

/// Flushes the result to the disk.
fn finish(path: &Path, writer: BufWriter<File>) -> Result<(), CheckpointError> {
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error).map_err(CheckpointError::io(path))?;
    file.sync_all().map_err(CheckpointError::io(path))
}
