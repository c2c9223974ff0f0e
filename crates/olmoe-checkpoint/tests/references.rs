//! Checkpoints that other software wrote, and what transformers computes from them
//! (`tools/reference/make_golden_checkpoints.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::open::Format;
use olmoe_checkpoint::weights::Weights;
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, Precision};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// Path, format, which numbers it holds, and the types of its matrices.
const FORMS: [(&str, Format, &str, &[&str]); 7] = [
    ("hf", Format::HuggingFace(Experts::Separate), "olmoe", &["bf16"]),
    ("hf-fused", Format::HuggingFace(Experts::Fused), "olmoe", &["bf16"]),
    ("olmo", Format::Olmo, "olmoe", &["bf16"]),
    ("olmo-pt", Format::Olmo, "olmoe", &["bf16"]),
    ("olmoe-bf16.gguf", Format::Gguf, "olmoe", &["bf16", "f32"]),
    ("olmoe-q8_0.gguf", Format::Gguf, "q8_0", &["f16", "f32", "q8_0"]),
    ("llama-bf16.gguf", Format::Gguf, "llama", &["bf16"]),
];

/// Largest error of a logit, as a share of the largest logit.
const TOLERANCE: f32 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints")
}

/// The numbers of a slab, in f32.
fn numbers(checkpoint: &Checkpoint, parameter: usize, slab: usize) -> Vec<f32> {
    let encoding = checkpoint.encoding(parameter, slab);
    let bytes = checkpoint.read(parameter, slab).unwrap();
    let mut out = vec![0.0; bytes.len() / encoding.block_bytes() * encoding.block_len()];
    encoding.decode(&bytes, &mut out);
    out
}

#[test]
fn every_form_holds_the_numbers_that_were_written() {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    for (name, format, numbers_of, matrix_types) in FORMS {
        let checkpoint = Checkpoint::open(&folder().join(name)).unwrap();
        assert_eq!(checkpoint.contents().format, format, "{name}");
        let (mut found, mut types) = (BTreeMap::new(), std::collections::BTreeSet::new());
        for (parameter, spec) in checkpoint.parameters().iter().enumerate() {
            let slabs = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
            let mut hash = Sha256::new();
            for slab in 0..slabs {
                hash.update(bytemuck::cast_slice::<f32, u8>(&numbers(&checkpoint, parameter, slab)));
            }
            let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            found.insert(spec.name.clone(), hash);
            if spec.shape.len() > 1 {
                types.insert(checkpoint.encoding(parameter, 0).name());
            }
        }
        assert_eq!(found, expected[numbers_of], "{name}");
        assert_eq!(types.into_iter().collect::<Vec<_>>(), matrix_types, "{name}");
    }
}

#[test]
fn every_form_computes_what_transformers_computes() {
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| expected.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
    let whole = |name: &str| words(name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let ids = whole("ids");
    for (name, _, numbers_of, _) in FORMS {
        let checkpoint = Checkpoint::open(&folder().join(name)).unwrap();
        let model = checkpoint.load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
        let mut activations = Activations::new(Keep::Nothing);
        model.forward(&Batch::uniform(&ids, ids.len()).unwrap(), &mut activations).unwrap();
        let logits = model.logits_of(activations.hidden());

        let reference = floats(&format!("{numbers_of}.logits"));
        assert_eq!(logits.len(), reference.len(), "{name}");
        let largest = reference.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let error = logits.iter().zip(&reference).fold(0.0f32, |most, (x, y)| most.max((x - y).abs())) / largest;
        // Not `>`, which no NaN would satisfy.
        assert!(error <= TOLERANCE, "{name}: logits differ by {error:e} of the largest");

        if checkpoint.config().moe().is_some() {
            let layers = &activations.routing.layers;
            let chosen: Vec<u32> = layers.iter().flat_map(|layer| layer.routing.ids_tk.iter().copied()).collect();
            assert_eq!(chosen, whole(&format!("{numbers_of}.routing")), "{name}");
        }
    }
}
