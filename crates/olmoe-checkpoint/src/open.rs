//! The contents of a path: its format, its configuration and the places of its tensors.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use olmoe_data::counted;
use olmoe_model::config::{LoadedConfig, ModelConfig};

use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::file_name::{HF_CONFIG, OLMO_CONFIG, SAFETENSORS, TORCH};
use crate::gguf::container::GgufHeader;
use crate::gguf::parts::{self, GgufPart, PartError};
use crate::gguf::value::Value;
use crate::gguf::{self, types};
use crate::huggingface::{self, Experts};
use crate::read_at::ReadAt;
use crate::safetensors::{INDEX_FILE, SafeType, ShardIndex, read_header};
use crate::save::{self, MANIFEST_FILE, SaveError};
use crate::torch;
use crate::{olmo, olmo_keys, stand_in};

/// The group of a training checkpoint with the parameters.
pub const MODEL_GROUP: &str = "model";
/// The link to the newest checkpoint of a run.
const LATEST: &str = "latest";

/// A checkpoint format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `config.json` and safetensors of transformers.
    HuggingFace(Experts),
    /// `config.yaml` and `model.safetensors` or `model.pt` of OLMo's trainer.
    Olmo,
    /// A GGUF file.
    Gguf,
    /// A checkpoint of this project's trainer.
    Training,
    /// Tensors of a safetensors or PyTorch file alone.
    Tensors,
    /// A configuration alone.
    Config,
}

impl Format {
    /// The name of the format in output and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Format::HuggingFace(_) => "huggingface",
            Format::Olmo => "olmo",
            Format::Gguf => "gguf",
            Format::Training => "training",
            Format::Tensors => "tensors",
            Format::Config => "config",
        }
    }
}

/// The type of a stored tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// A type that can be read.
    Known(Encoding),
    /// The name of a type that cannot be read.
    Other(String),
}

impl StoredType {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            StoredType::Known(encoding) => encoding.name(),
            StoredType::Other(name) => name,
        }
    }
}

fn stored_type(dtype: SafeType) -> StoredType {
    match dtype {
        SafeType::F32 => StoredType::Known(Encoding::F32),
        SafeType::F16 => StoredType::Known(Encoding::F16),
        SafeType::BF16 => StoredType::Known(Encoding::BF16),
        other => StoredType::Other(other.name().to_lowercase()),
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The format's name for it, without the wrappers of a training run.
    pub name: String,
    /// Its numbers.
    pub kind: StoredType,
    /// Row-major, outermost first.
    pub shape: Vec<usize>,
    /// Index of its file in [`Contents::files`].
    pub file: usize,
    /// Its first byte there.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// The contents of a path: format, configuration and tensors, which are not yet matched with the parameters of the
/// model.
#[derive(Debug)]
pub struct Contents {
    /// The path given, or the one that it refers to.
    pub path: PathBuf,
    /// The format.
    pub format: Format,
    /// The configuration, unless there are only tensors.
    pub config: Option<LoadedConfig>,
    /// The tensors, in the order of the files.
    pub tensors: Vec<Stored>,
    /// The files of the tensors.
    pub files: Vec<(PathBuf, File)>,
    /// The header of a GGUF file.
    pub gguf: Option<GgufHeader>,
    /// The free text of safetensors files.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Notices about contents of the files that are not tensors of the model.
    pub notices: Vec<String>,
}

impl Contents {
    /// Reads headers and configurations, but no weights.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn read(path: &Path) -> Result<Contents, CheckpointError> {
        let metadata = std::fs::metadata(path).map_err(CheckpointError::io(path))?;
        let mut contents = Contents {
            path: path.to_owned(),
            format: Format::Tensors,
            config: None,
            tensors: Vec::new(),
            files: Vec::new(),
            gguf: None,
            metadata: BTreeMap::new(),
            notices: Vec::new(),
        };
        if metadata.is_dir() {
            contents.folder()?
        } else {
            contents.file(path)?
        }
        contents.reject_duplicates()?;
        if let Some(config) = &contents.config {
            contents.notices.extend(config.notices.iter().map(ToString::to_string));
        }
        Ok(contents)
    }

    fn folder(&mut self) -> Result<(), CheckpointError> {
        for name in [HF_CONFIG, SAFETENSORS, INDEX_FILE, OLMO_CONFIG, TORCH] {
            stand_in::check_link(&self.path.join(name))?;
        }
        let has = |name: &str| self.path.join(name).is_file();
        if has(MANIFEST_FILE) {
            return self.training();
        }
        let tensors = has(SAFETENSORS) || has(TORCH);
        if has(HF_CONFIG) && (has(SAFETENSORS) || has(INDEX_FILE)) {
            return self.huggingface();
        }
        if has(OLMO_CONFIG) && tensors {
            return self.olmo();
        }
        if self.path.join(LATEST).join(MANIFEST_FILE).is_file() {
            self.path = std::fs::canonicalize(self.path.join(LATEST)).map_err(CheckpointError::io(&self.path))?;
            return self.training();
        }
        let entries = std::fs::read_dir(&self.path).map_err(CheckpointError::io(&self.path))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        let is_gguf = |name: &&String| Path::new(name).extension().is_some_and(|extension| extension == "gguf");
        match names.iter().filter(is_gguf).collect::<Vec<_>>()[..] {
            [] => {
                let found = match names.len() {
                    0 => "an empty folder".to_owned(),
                    1..=8 => names.join(", "),
                    more => format!("{}, … {more} files", names[..6].join(", ")),
                };
                let found = found + stand_in::other_weights(&names);
                Err(CheckpointError::Unrecognised { path: self.path.clone(), found })
            }
            [one] => {
                let path = self.path.join(one);
                self.path = path.clone();
                self.gguf(&path)
            }
            // The parts of one model.
            ref several if one_model(several) => {
                let path = self.path.join(several[0]);
                self.path = path.clone();
                self.gguf(&path)
            }
            ref several => {
                let files = several.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                Err(CheckpointError::Several { path: self.path.clone(), files })
            }
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let mut magic = [0; 4];
        let mut file = open_file(path)?;
        let mut filled = 0;
        while filled < magic.len() {
            match file.read(&mut magic[filled..]).map_err(CheckpointError::io(path))? {
                0 => break,
                count => filled += count,
            }
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension {
            _ if &magic == b"GGUF" => self.gguf(path),
            "gguf" => self.gguf(path),
            "safetensors" => self.safetensors(path),
            "pt" | "pth" | "bin" => self.torch(path),
            "json" | "yaml" | "yml" => {
                self.format = Format::Config;
                self.config = Some(read_config(path)?);
                Ok(())
            }
            _ => {
                let found = format!("a file that begins with {:?}", String::from_utf8_lossy(&magic[..filled]));
                Err(CheckpointError::Unrecognised { path: path.to_owned(), found })
            }
        }
    }

    fn huggingface(&mut self) -> Result<(), CheckpointError> {
        self.config = Some(read_config(&self.path.join(HF_CONFIG))?);
        let single = self.path.join(SAFETENSORS);
        if single.is_file() {
            self.safetensors(&single)?;
        } else {
            let path = self.path.join(INDEX_FILE);
            let bytes = read_bounded(&path, crate::safetensors::MAX_INDEX)?;
            let index =
                ShardIndex::parse(&bytes).map_err(|source| CheckpointError::Index { path: path.clone(), source })?;
            for name in index.files() {
                self.safetensors(&self.path.join(name))?;
            }
            // A tensor that the index puts elsewhere would be read from the wrong place by others.
            for tensor in &self.tensors {
                let file = self.files[tensor.file].0.file_name().and_then(|name| name.to_str());
                if index.weight_map.get(&tensor.name).map(String::as_str) != file {
                    return Err(CheckpointError::Unexpected {
                        path: self.files[tensor.file].0.clone(),
                        tensor: tensor.name.clone(),
                        found: tensor.shape.clone(),
                    });
                }
            }
        }
        let fused = self.tensors.iter().any(|tensor| tensor.name.ends_with(huggingface::FUSED));
        self.format = Format::HuggingFace(if fused { Experts::Fused } else { Experts::Separate });
        self.drop_tensors(huggingface::is_ignored);
        Ok(())
    }

    fn olmo(&mut self) -> Result<(), CheckpointError> {
        self.config = Some(read_config(&self.path.join(OLMO_CONFIG))?);
        let safetensors = self.path.join(SAFETENSORS);
        if safetensors.is_file() {
            self.safetensors(&safetensors)?;
            let mut kept = Vec::new();
            for mut tensor in std::mem::take(&mut self.tensors) {
                let key = olmo_keys::decode(&tensor.name)
                    .map_err(|source| CheckpointError::Key { path: safetensors.clone(), source })?;
                tensor.name = key.path.join(".");
                if key.is_pickled {
                    self.notices.push(format!("{}: a pickled object, ignored", tensor.name));
                } else {
                    kept.push(tensor);
                }
            }
            self.tensors = kept;
        } else {
            self.torch(&self.path.join(TORCH))?;
        }
        self.format = Format::Olmo;
        let group_size = olmo::group_size(self.tensors.iter().map(|tensor| tensor.name.as_str()));
        for tensor in &mut self.tensors {
            tensor.name = olmo::plain_name(&tensor.name, group_size);
        }
        Ok(())
    }

    fn training(&mut self) -> Result<(), CheckpointError> {
        let manifest = save::verify(&self.path)?;
        if manifest.file(HF_CONFIG).is_none() {
            return Err(SaveError::NotThere { path: self.path.clone(), name: HF_CONFIG.to_owned() }.into());
        }
        self.config = Some(read_config(&self.path.join(HF_CONFIG))?);
        let shards = manifest.groups.get(MODEL_GROUP).cloned().unwrap_or_default();
        for name in shards {
            self.safetensors(&self.path.join(name))?;
        }
        self.format = Format::Training;
        Ok(())
    }

    fn safetensors(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let file = open_file(path)?;
        let header =
            read_header(&file).map_err(|source| CheckpointError::Safetensors { path: path.to_owned(), source })?;
        self.tensors.extend(header.entries.into_iter().map(|entry| Stored {
            kind: stored_type(entry.dtype),
            name: entry.name,
            shape: entry.shape,
            file: self.files.len(),
            offset: entry.offset,
            bytes: entry.bytes,
        }));
        self.metadata.extend(header.metadata);
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    fn torch(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let file = open_file(path)?;
        let dict =
            torch::read_from(&file).map_err(|source| CheckpointError::Torch { path: path.to_owned(), source })?;
        self.tensors.extend(dict.tensors.into_iter().map(|tensor| Stored {
            kind: stored_type(tensor.dtype),
            name: tensor.name,
            shape: tensor.shape,
            file: self.files.len(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }));
        self.notices
            .extend(dict.skipped.into_iter().map(|skipped| format!("{}: {}, ignored", skipped.name, skipped.kind)));
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    fn gguf(&mut self, path: &Path) -> Result<(), CheckpointError> {
        self.format = Format::Gguf;
        let (file, header) = gguf_header(path)?;
        let in_file = |path: &Path| {
            let path = path.to_owned();
            move |source| CheckpointError::Part { path, source }
        };
        let header = match GgufPart::of(&header.metadata).map_err(in_file(path))? {
            None => {
                self.add_gguf(path, file, &header);
                header
            }
            Some(part) => {
                drop(file);
                let mut whole: Option<GgufHeader> = None;
                for (number, path) in (0..).zip(part.files(path).map_err(in_file(path))?) {
                    if std::fs::metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
                        let source = PartError::Missing { number: number + 1, count: part.count };
                        return Err(CheckpointError::Part { path, source });
                    }
                    let (file, header) = gguf_header(&path)?;
                    part.check(&header.metadata, number).map_err(in_file(&path))?;
                    self.add_gguf(&path, file, &header);
                    match &mut whole {
                        Some(whole) => whole.tensors.extend(header.tensors),
                        None => whole = Some(header),
                    }
                }
                let found = self.tensors.len();
                if let Some(expected) = part.tensors.filter(|expected| *expected != found as u64) {
                    return Err(in_file(path)(PartError::Tensors { found, expected }));
                }
                // There are at least two parts.
                whole.unwrap_or(header)
            }
        };
        // A file may contain only a vocabulary, or an adapter; then there is no model to configure.
        let adapter = header.metadata.get(gguf::TYPE).and_then(Value::as_text) == Some(gguf::ADAPTER);
        if !header.tensors.is_empty() && !adapter {
            let loaded = gguf::model::read(&header)
                .map_err(|source| CheckpointError::GgufModel { path: path.to_owned(), source: Box::new(source) })?;
            self.config = Some(loaded);
        }
        self.gguf = Some(header);
        Ok(())
    }

    fn add_gguf(&mut self, path: &Path, file: File, header: &GgufHeader) {
        self.tensors.extend(header.tensors.iter().map(|tensor| Stored {
            name: tensor.name.clone(),
            kind: match types::encoding(tensor.kind) {
                Some(encoding) => StoredType::Known(encoding),
                None => StoredType::Other(types::name(tensor.kind).to_owned()),
            },
            shape: tensor.shape.clone(),
            file: self.files.len(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }));
        self.files.push((path.to_owned(), file));
    }

    /// Removes tensors without information, such as the frequencies of the rotary embedding.
    fn drop_tensors(&mut self, is_ignored: impl Fn(&str) -> bool) {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| !is_ignored(&tensor.name));
        let dropped = before - self.tensors.len();
        if dropped > 0 {
            let tensors = counted(dropped, "tensor");
            self.notices.push(format!("ignored, because they can be computed: {tensors} of an old export"));
        }
    }

    fn reject_duplicates(&self) -> Result<(), CheckpointError> {
        let mut names = HashSet::new();
        match self.tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
            None => Ok(()),
            Some(tensor) => Err(CheckpointError::Duplicate { path: self.path.clone(), tensor: tensor.name.clone() }),
        }
    }
}

/// Whether all of these are names of parts of one model.
fn one_model(names: &[&String]) -> bool {
    let whole = |name: &&String| parts::split(name).map(|(stem, _, count)| (stem.to_owned(), count));
    names.first().and_then(whole).is_some_and(|first| names.iter().all(|name| whole(name).as_ref() == Some(&first)))
}

fn gguf_header(path: &Path) -> Result<(File, GgufHeader), CheckpointError> {
    let file = open_file(path)?;
    let header =
        gguf::container::read(&file).map_err(|source| CheckpointError::Gguf { path: path.to_owned(), source })?;
    Ok((file, header))
}

/// Opens a file to read it.
fn open_file(path: &Path) -> Result<File, CheckpointError> {
    stand_in::check_link(path)?;
    // Checked before it is opened: opening a pipe waits for its other end, and reading a device may never end.
    if !std::fs::metadata(path).map_err(CheckpointError::io(path))?.is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "a folder, pipe or device, expected a file");
        return Err(CheckpointError::Io { path: path.to_owned(), source });
    }
    let open = || File::open(path).map_err(CheckpointError::io(path));
    // With a separate handle: on some systems reading at a position moves the position of the handle.
    stand_in::check(path, &open()?)?;
    open()
}

/// The configuration in a file.
fn read_config(path: &Path) -> Result<LoadedConfig, CheckpointError> {
    stand_in::check_path(path)?;
    Ok(ModelConfig::read(path)?)
}

/// All bytes of a small file.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, CheckpointError> {
    let file = open_file(path)?;
    let length = ReadAt::len(&file).map_err(CheckpointError::io(path))?;
    if length > limit as u64 {
        let source =
            std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{length} bytes, expected at most {limit}"));
        return Err(CheckpointError::Io { path: path.to_owned(), source });
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).map_err(CheckpointError::io(path))?;
    Ok(bytes)
}
