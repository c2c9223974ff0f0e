//! The model that a run begins with.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::open::Contents;
use olmoe_checkpoint::weights::Weights;
use olmoe_model::adapter::Adapter;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Model, Precision};
use olmoe_tensor::encoding::Encoding;

use crate::trainer::TrainError;

/// Windows of each file that the fingerprint of a checkpoint looks at, and bytes of each.
const WINDOWS: u64 = 256;
const WINDOW_BYTES: usize = 64 << 10;

/// Fills parameters of a model.
type Fill<'a> = Box<dyn FnMut(&mut Model) -> Result<(), TrainError> + 'a>;

/// The model that a run begins with: what it is, and how its numbers get into a model that is made for training.
pub struct BaseModel<'a> {
    /// What it is called, for messages and in checkpoints.
    pub name: String,
    /// Its configuration.
    pub config: ModelConfig,
    /// The encodings of its parameters in a file.
    pub encodings: Vec<Option<Encoding>>,
    /// What its numbers are recognised by.
    pub fingerprint: String,
    fill: Fill<'a>,
    adapters: Option<Fill<'a>>,
}

impl<'a> BaseModel<'a> {
    /// A checkpoint of any format. Matrices in quantised blocks stay so where they are not trained.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub fn open(path: &Path) -> Result<BaseModel<'a>, TrainError> {
        let checkpoint = Checkpoint::open(path)?;
        let fingerprint = fingerprint(checkpoint.contents()).map_err(TrainError::io("read", path))?;
        Ok(BaseModel {
            name: path.display().to_string(),
            config: checkpoint.config().clone(),
            encodings: checkpoint.encodings(true),
            fingerprint,
            fill: Box::new(move |model| Ok(checkpoint.load_into(model, &|_| {})?)),
            adapters: None,
        })
    }

    /// A model in memory, all of whose numbers are there.
    pub fn of(model: &'a Model) -> BaseModel<'a> {
        let mut hash = blake3::Hasher::new();
        for (id, spec) in model.base_parameters().iter().enumerate() {
            hash.update(spec.name.as_bytes());
            let numbers = model.value(id).map_or(&[][..], |value| &value[..]);
            for some in numbers.chunks(WINDOW_BYTES) {
                let bytes: Vec<u8> = some.iter().flat_map(|number| number.to_le_bytes()).collect();
                hash.update(&bytes);
            }
        }
        let fill = move |other: &mut Model| {
            for (id, spec) in model.base_parameters().iter().enumerate() {
                let value = model.value(id).map_or(&[][..], |value| &value[..]);
                other.set(&spec.name, &spec.shape, value)?;
            }
            Ok(())
        };
        BaseModel {
            name: "a model in memory".to_owned(),
            config: model.config().clone(),
            encodings: Vec::new(),
            fingerprint: hash.finalize().to_string(),
            fill: Box::new(fill),
            adapters: None,
        }
    }

    /// The same with adapters that do not begin as nothing but are filled with numbers, which `fingerprint` stands for.
    #[must_use]
    pub fn with_adapters(
        self,
        fingerprint: &str,
        fill: impl FnMut(&mut Model) -> Result<(), TrainError> + 'a,
    ) -> BaseModel<'a> {
        let fingerprint = format!("{}+{fingerprint}", self.fingerprint);
        BaseModel { fingerprint, adapters: Some(Box::new(fill)), ..self }
    }

    /// Whether its adapters begin with numbers of their own.
    pub(super) fn has_adapters(&self) -> bool {
        self.adapters.is_some()
    }

    /// A model with these numbers. Parameters that `trained` has are never held in an encoding; `seed` draws adapters.
    pub(super) fn model(
        &mut self,
        config: &ModelConfig,
        precision: Precision,
        held: Vec<Held>,
        adapters: &[Adapter],
        trained: &dyn Fn(usize) -> bool,
        seed: u64,
    ) -> Result<Model, TrainError> {
        let encodings = self.encodings.iter().enumerate().map(|(id, own)| own.filter(|_| !trained(id)));
        let encodings: Vec<Option<Encoding>> = encodings.collect();
        let mut model = Model::with_adapters(config.clone(), precision, held, &encodings, adapters)?;
        (self.fill)(&mut model)?;
        model.initialize_adapters(seed);
        if let Some(fill) = &mut self.adapters {
            fill(&mut model)?;
        }
        Ok(model)
    }
}

/// A hash of the lengths of the files of a checkpoint, and of windows of them: training changes all numbers of a parameter.
fn fingerprint(contents: &Contents) -> std::io::Result<String> {
    let mut hash = blake3::Hasher::new();
    let mut window = vec![0; WINDOW_BYTES];
    for (path, _) in &contents.files {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        hash.update(&length.to_le_bytes());
        for at in 0..WINDOWS {
            // The last window ends with the file.
            let most = length.saturating_sub(WINDOW_BYTES as u64);
            let start = (u128::from(most) * u128::from(at) / u128::from(WINDOWS - 1)) as u64;
            file.seek(SeekFrom::Start(start))?;
            let count = (length - start).min(WINDOW_BYTES as u64) as usize;
            file.read_exact(&mut window[..count])?;
            hash.update(&window[..count]);
            if most == 0 {
                break;
            }
        }
    }
    Ok(hash.finalize().to_string())
}
