//! Models that other people trained: their weights, brought into this project's layout, say what they said before.
//!
//! | module | model |
//! |---|---|
//! | [`stories`] | a llama2.c model of children's stories, against the text that its own program prints |
//! | [`glass`] | a NumPy model of English prose, against the numbers that its own package computes |
//! | [`smollm`] | SmolLM2-135M-Instruct in 4 bits, where the file is at hand |

mod glass;
mod smollm;
mod stories;

use std::path::{Path, PathBuf};

use olmoe_checkpoint::CheckpointError;
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::weights::Weights;
use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, Precision};
use olmoe_model::parameters::{ParameterSpec, parameters};
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::tensor::Tensor;

/// A folder of the data that lies beside the checkout; says that it is not there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    let found = path.is_dir().then_some(path);
    if found.is_none() {
        println!("skipped: no {name} in ../shared/data beside the checkout");
    }
    found
}

/// A dense model with a tied head and no norm of queries and keys: what both small models are.
fn dense(d_model: usize, n_layers: usize, (n_heads, n_kv_heads): (usize, usize), width: usize) -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers) = (d_model, n_layers);
    (config.n_heads, config.n_kv_heads, config.head_dim) = (n_heads, n_kv_heads, d_model / n_heads);
    config.feed_forward = FeedForward::Dense(Mlp { width, activation: Activation::SwiGlu });
    config.qk_norm = None;
    config.tie_embeddings = true;
    (config.pad_token_id, config.bos_token_id, config.eos_token_id) = (None, None, None);
    config
}

/// Rows of heads whose rotary pairs are neighbours (`2j`, `2j + 1`), moved half a head apart (`j`, `j + head / 2`).
fn halves_apart(matrix: &[f32], head: usize, columns: usize) -> Vec<f32> {
    let mut moved = vec![0.0; matrix.len()];
    for (row, numbers) in matrix.chunks(columns).enumerate() {
        let (start, j, side) = (row / head * head, row % head / 2, row % 2);
        let target = start + side * head / 2 + j;
        moved[target * columns..(target + 1) * columns].copy_from_slice(numbers);
    }
    moved
}

/// All parameters of a model in memory.
struct Arrays {
    config: ModelConfig,
    specs: Vec<ParameterSpec>,
    values: Vec<Vec<f32>>,
}

impl Arrays {
    /// `value` gives the numbers of a parameter by its canonical name without `.weight`.
    fn new(config: ModelConfig, mut value: impl FnMut(&str, Option<usize>) -> Vec<f32>) -> Arrays {
        let specs = parameters(&config);
        let named = |spec: &ParameterSpec| {
            let name = spec.name.strip_suffix(".weight").expect("these models have no biases");
            let inside = spec.module.layer.map(|layer| format!("layers.{layer}."));
            let numbers = value(name.strip_prefix(inside.as_deref().unwrap_or("")).unwrap(), spec.module.layer);
            assert_eq!(numbers.len(), spec.num_elements(), "{}", spec.name);
            numbers
        };
        let values = specs.iter().map(named).collect();
        Arrays { config, specs, values }
    }

    fn model(&self) -> Model {
        let mut model = Model::new(self.config.clone(), Precision::Fp32, Held::Inference).unwrap();
        for (spec, numbers) in self.specs.iter().zip(&self.values) {
            model.set(&spec.name, &spec.shape, numbers).unwrap();
        }
        model
    }
}

impl Weights for Arrays {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn encoding(&self, _parameter: usize, _slab: usize) -> Encoding {
        Encoding::F32
    }

    fn main_encoding(&self) -> Encoding {
        Encoding::F32
    }

    fn origin(&self) -> &Path {
        Path::new("arrays of a test")
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        assert_eq!(slab, 0, "dense models have no stacks");
        Ok(Buffer::copy_of(bytemuck::cast_slice(&self.values[parameter])))
    }
}

/// The logits of every token, from one pass over all of them.
fn logits(model: &Model, ids: &[u32]) -> Tensor {
    model.logits(&Batch::uniform(ids, ids.len()).unwrap(), &mut Activations::new(Keep::Nothing)).unwrap()
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let larger = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).reduce(larger).unwrap() as u32
}

/// The tokens that follow, each the likeliest, with a key and value cache.
fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut caches = vec![KvCache::new(model, prompt.len() + count)];
    let mut activations = Activations::new(Keep::Nothing);
    let (mut pending, mut all) = (prompt.to_vec(), Vec::new());
    while all.len() < count {
        let batch = Batch::uniform(&pending, pending.len()).unwrap();
        let batch = batch.continued_from(&[caches[0].len()]).unwrap();
        model.forward_cached(&batch, &mut caches, &mut activations).unwrap();
        let next = argmax(model.logits_of(activations.hidden()).row(pending.len() - 1));
        all.push(next);
        pending = vec![next];
    }
    all
}

/// `-ln p` of every token but the first, given those before it.
fn surprise(model: &Model, ids: &[u32]) -> Vec<f64> {
    let batch = Batch::uniform(&ids[..ids.len() - 1], ids.len() - 1).unwrap();
    let mut activations = Activations::new(Keep::Nothing);
    model.forward(&batch, &mut activations).unwrap();
    let logits = model.logits_of(activations.hidden());
    let one = |(row, id): (usize, &u32)| {
        let row = logits.row(row);
        let largest = f64::from(row[argmax(row) as usize]);
        let sum: f64 = row.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
        sum.ln() + largest - f64::from(row[*id as usize])
    };
    ids[1..].iter().enumerate().map(one).collect()
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The same tokens in another order, the same in every run.
fn shuffled(ids: &[u32]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    let mut state = 1u64;
    for at in (1..ids.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ids.swap(at, (state >> 33) as usize % (at + 1));
    }
    ids
}
