//! Checkpoints made of others.
//!
//! | module | what |
//! |---|---|
//! | [`upcycle`] | a mixture of a dense model |
//! | [`soup`] | the average of several |

mod soup;
mod upcycle;

use std::path::{Path, PathBuf};

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::weights::{Random, Weights};
use olmoe_checkpoint::{Checkpoint, CheckpointError};
use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Keep, Precision};
use olmoe_model::parameters::ParameterSpec;
use olmoe_tensor::dtype::DType;
use olmoe_tensor::memory::Buffer;

const HF: Target = Target::HuggingFace { experts: Experts::Separate, dtype: None };
const FUSED: Target = Target::HuggingFace { experts: Experts::Fused, dtype: None };
const OLMO: Target = Target::Olmo { dtype: None };
const GGUF: Target = Target::Gguf { mix: None };

/// A small dense model whose every matrix matters, with query and key norms.
fn dense() -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (64, 3, 4, 4, 16);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (99, 99, 64);
    (config.pad_token_id, config.eos_token_id) = (Some(1), Some(98));
    (config.init.std, config.init.cutoff_factor) = (0.3, None);
    config.feed_forward = FeedForward::Dense(Mlp { width: 96, activation: Activation::SwiGlu });
    config
}

/// The same without those norms: what Hugging Face's and llama.cpp's llama is.
fn llama() -> ModelConfig {
    ModelConfig { qk_norm: None, ..dense() }
}

/// A folder, and the checkpoints in it by number.
struct Desk {
    folder: tempfile::TempDir,
    count: std::cell::Cell<usize>,
}

impl Desk {
    fn new() -> Desk {
        Desk { folder: tempfile::tempdir().unwrap(), count: std::cell::Cell::new(0) }
    }

    fn try_write(&self, source: &dyn Weights, target: Target) -> Result<PathBuf, CheckpointError> {
        self.count.set(self.count.get() + 1);
        let path = self.folder.path().join(self.count.get().to_string());
        let companions = Companions::named("toy");
        Conversion::plan(source, &companions, target)?.run(&path, false, &|_| {})?;
        Ok(path)
    }

    fn write(&self, source: &dyn Weights, target: Target) -> Checkpoint {
        Checkpoint::open(&self.try_write(source, target).unwrap()).unwrap()
    }
}

/// Weights whose numbers are changed as they are read.
struct Edited<F>(Random, F);

impl<F: Fn(&str, usize, &mut [f32])> Weights for Edited<F> {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }
    fn parameters(&self) -> &[ParameterSpec] {
        self.0.parameters()
    }
    fn encoding(&self, parameter: usize, slab: usize) -> Encoding {
        self.0.encoding(parameter, slab)
    }
    fn main_encoding(&self) -> Encoding {
        self.0.main_encoding()
    }
    fn origin(&self) -> &Path {
        self.0.origin()
    }
    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        let mut numbers = numbers(&self.0, parameter, slab);
        (self.1)(&self.parameters()[parameter].name, slab, &mut numbers);
        let encoding = self.encoding(parameter, slab);
        let mut bytes = Buffer::scratch(encoding.bytes(numbers.len()).unwrap());
        encoding.encode(&numbers, &mut bytes);
        Ok(bytes)
    }
}

/// The numbers of a slab, in f32.
fn numbers(weights: &dyn Weights, parameter: usize, slab: usize) -> Vec<f32> {
    let encoding = weights.encoding(parameter, slab);
    let bytes = weights.read(parameter, slab).unwrap();
    let mut out = vec![0.0; bytes.len() / encoding.block_bytes() * encoding.block_len()];
    encoding.decode(&bytes, &mut out);
    out
}

/// Every slab: name, index, parameter.
fn slabs(weights: &dyn Weights) -> Vec<(String, usize, usize)> {
    let mut all = Vec::new();
    for (parameter, spec) in weights.parameters().iter().enumerate() {
        let groups = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
        all.extend((0..groups).map(|slab| (spec.name.clone(), slab, parameter)));
    }
    all
}

/// Every slab of both: encoding and bytes.
fn assert_same(a: &dyn Weights, b: &dyn Weights) {
    assert!(slabs(a) == slabs(b));
    a.config().same_function(b.config()).unwrap();
    for (name, slab, parameter) in slabs(a) {
        assert_eq!(a.encoding(parameter, slab), b.encoding(parameter, slab), "{name}");
        assert!(a.read(parameter, slab).unwrap()[..] == b.read(parameter, slab).unwrap()[..], "{name} {slab}");
    }
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 99).collect();
    let model = checkpoint.load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
    let batch = Batch::uniform(&ids, ids.len()).unwrap();
    model.logits(&batch, &mut Activations::new(Keep::Nothing)).unwrap().to_vec()
}

/// The largest difference over the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0f32, |max, x| max.max(x.abs()));
    largest(&mut a.iter().zip(b).map(|(a, b)| a - b)) / largest(&mut b.iter().copied())
}
