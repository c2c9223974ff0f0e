//! Adapters in files, against those of peft in `tests/golden/adapters`.
//!
//! | module | what |
//! |---|---|
//! | [`references`] | peft's files, and what transformers computes with them |
//! | [`layouts`] | the layouts of peft and GGUF, written and read |
//! | [`refusals`] | files that are no adapter of the model, and settings that are not followed |
//! | [`sums`] | several adapters at once |
//! | [`merging`] | adapters merged into weights of every type |
//! | [`running`] | adapters beside the weights of a model |

mod layouts;
mod merging;
mod references;
mod refusals;
mod running;
mod sums;

use std::path::{Path, PathBuf};

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::adapter::AdapterWeights;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::merge::{Merged, MergedType};
use olmoe_checkpoint::weights::Weights;
use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Keep, Model, Precision};
use olmoe_tensor::dtype::DType;

const HF: Target = Target::HuggingFace { experts: Experts::Separate, dtype: None };

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters").join(name)
}

fn base() -> Checkpoint {
    Checkpoint::open(&golden("base")).unwrap()
}

fn config() -> ModelConfig {
    base().config().clone()
}

fn read(name: &str) -> AdapterWeights {
    AdapterWeights::read(&golden(name), &config()).unwrap()
}

/// Text of an error in reading an adapter.
fn error(path: &Path) -> String {
    AdapterWeights::read(path, &config()).unwrap_err().to_string()
}

/// The tensors of a golden file.
struct Tensors(Vec<u8>);

impl Tensors {
    fn of(stage: &str) -> Tensors {
        Tensors(std::fs::read(golden(&format!("logits_{stage}.safetensors"))).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        numbers(file.tensor(name).unwrap().data())
    }
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

fn ids() -> Vec<u32> {
    let bytes = Tensors::of("separate").0;
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("ids").unwrap().data().as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect()
}

fn logits_of(model: &Model) -> Vec<f32> {
    let ids = ids();
    let mut activations = Activations::new(Keep::Nothing);
    model.forward(&Batch::uniform(&ids, ids.len()).unwrap(), &mut activations).unwrap();
    model.logits_of(activations.hidden()).to_vec()
}

fn logits(path: &Path) -> Vec<f32> {
    let loading = Loading::new(Precision::Fp32, false);
    logits_of(&Checkpoint::open(path).unwrap().load(&loading, &|_| ()).unwrap().model)
}

/// The largest difference.
fn difference(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// A folder for results.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, weights: &dyn Weights, target: Target, name: &str) -> PathBuf {
        let companions = Companions::of(&base(), None, false).unwrap();
        let path = self.path(name);
        Conversion::plan(weights, &companions, target).unwrap().run(&path, true, &|_| ()).unwrap();
        path
    }

    /// The base with an adapter merged into it, in f32.
    fn merged(&self, adapter: &AdapterWeights, target: Target) -> PathBuf {
        let base = base();
        self.write(&Merged::new(&base, adapter, MergedType::Kept).unwrap(), target, "merged")
    }

    /// A copy of a golden adapter, whose settings can be changed.
    fn copy(&self, name: &str) -> PathBuf {
        let folder = self.path("copy");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden(name).join(file), folder.join(file)).unwrap();
        }
        folder
    }
}

/// Changes a setting of an adapter.
fn set(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

/// Changes the tensors of an adapter.
fn change(folder: &Path, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec(), numbers(view.data()))).collect();
    change(&mut tensors);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, numbers)| {
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                shape.clone(),
                bytemuck::cast_slice(numbers),
            );
            (name.clone(), view.unwrap())
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const F32: Target = Target::Gguf { mix: Some(olmoe_checkpoint::gguf::mix::Mix::F32) };
const BF16: Target = Target::HuggingFace { experts: Experts::Separate, dtype: Some(DType::Bf16) };
