//! From every format to every other and back: no byte of a tensor changes.

use std::path::{Path, PathBuf};

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target, Written};
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::weights::{Random, Weights};
use olmoe_checkpoint::{Checkpoint, CheckpointError};
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig, Moe};
use olmoe_model::model::{Held, Model, Precision};
use olmoe_model::parameters::ParameterSpec;
use olmoe_tensor::dtype::DType;
use olmoe_tensor::memory::Buffer;

const HF: Target = Target::HuggingFace { experts: Experts::Separate, dtype: None };
const FUSED: Target = Target::HuggingFace { experts: Experts::Fused, dtype: None };
const OLMO: Target = Target::Olmo { dtype: None };
const GGUF: Target = Target::Gguf { mix: None };
const EXACT: Loading =
    Loading { precision: Precision::Fp32, keep_blocks: false, beside: 0, packed_cache: None, adapter: None };

/// The release model in small.
fn mixture() -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (64, 3, 4, 4, 16);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (99, 99, 64);
    (config.pad_token_id, config.eos_token_id) = (Some(1), Some(98));
    *moe(&mut config) = Moe {
        num_experts: 8,
        top_k: 2,
        expert: Mlp { width: 32, activation: Activation::SwiGlu },
        ..moe(&mut config).clone()
    };
    config
}

fn moe(config: &mut ModelConfig) -> &mut Moe {
    match &mut config.feed_forward {
        FeedForward::Moe(moe) => moe,
        FeedForward::Dense(_) => panic!("a mixture"),
    }
}

/// The second of its three layers is a mixture.
fn interleaved() -> ModelConfig {
    ModelConfig { even_layers: Some(Mlp { width: 32, activation: Activation::SwiGlu }), ..mixture() }
}

fn dense() -> ModelConfig {
    let mut config = mixture();
    config.feed_forward = FeedForward::Dense(Mlp { width: 96, activation: Activation::SwiGlu });
    (config.qk_norm, config.n_kv_heads, config.tie_embeddings) = (None, 2, true);
    config
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

    fn try_write(&self, source: &dyn Weights, target: Target) -> Result<(PathBuf, Written), CheckpointError> {
        self.count.set(self.count.get() + 1);
        let path = self.folder.path().join(self.count.get().to_string());
        let companions = Companions::named("toy");
        let written = Conversion::plan(source, &companions, target)?.run(&path, false, &|_| {})?;
        Ok((path, written))
    }

    fn write(&self, source: &dyn Weights, target: Target) -> Checkpoint {
        Checkpoint::open(&self.try_write(source, target).unwrap().0).unwrap()
    }
}

/// Every slab of both: encoding and bytes.
fn assert_same(a: &dyn Weights, b: &dyn Weights) {
    let names = |weights: &dyn Weights| -> Vec<(String, Vec<usize>)> {
        weights.parameters().iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
    };
    assert!(names(a) == names(b));
    a.config().same_function(b.config()).unwrap();
    for (index, spec) in a.parameters().iter().enumerate() {
        let groups = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
        for slab in 0..groups {
            assert_eq!(a.encoding(index, slab), b.encoding(index, slab), "{}", spec.name);
            assert!(a.read(index, slab).unwrap()[..] == b.read(index, slab).unwrap()[..], "{} {slab}", spec.name);
        }
    }
}

/// All but the configuration, in which formats keep more or less of what does not change the function.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.retain(|file| file.0 != "config.json");
    files.sort();
    files
}

#[test]
fn a_mixture_goes_through_all_formats_unchanged() {
    let desk = Desk::new();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let random = Random::new(mixture(), 3, dtype);
        let start = desk.write(&random, HF);
        let routes: [&[Target]; 4] = [&[OLMO, HF], &[GGUF, HF], &[FUSED, HF], &[FUSED, GGUF, OLMO, FUSED, HF]];
        for route in routes {
            let mut at = desk.write(&random, HF);
            for target in route {
                at = desk.write(&at, *target);
            }
            assert_same(&start, &at);
            // The files, too: the order of tensors, the settings for generation.
            assert!(files(&start.contents().path) == files(&at.contents().path), "{route:?}");
        }
    }
}

#[test]
fn a_dense_model_goes_through_all_formats_unchanged() {
    let desk = Desk::new();
    for tied in [true, false] {
        let config = ModelConfig { tie_embeddings: tied, ..dense() };
        let random = Random::new(config, 4, DType::Bf16);
        let start = desk.write(&random, HF);
        for route in [&[OLMO, HF][..], &[GGUF, HF], &[GGUF, OLMO, GGUF, HF]] {
            let mut at = desk.write(&random, HF);
            for target in route {
                at = desk.write(&at, *target);
            }
            assert_same(&start, &at);
        }
    }
}

#[test]
fn olmo_holds_every_variant() {
    let desk = Desk::new();
    let mut configs = Vec::new();
    let mut shared = mixture();
    moe(&mut shared).shared_expert = Some(Mlp { width: 32, activation: Activation::SwiGlu });
    configs.push(shared);
    let mut capacity = mixture();
    moe(&mut capacity).capacity_factor = Some(1.25);
    moe(&mut capacity).expert.activation = Activation::Gelu;
    configs.push(capacity);
    let mut ungated = mixture();
    moe(&mut ungated).expert.activation = Activation::Relu;
    configs.push(ungated);
    let mut biased = mixture();
    (biased.attention_bias, biased.mlp_bias, biased.head_bias, biased.norm.bias) = (true, true, true, true);
    biased.qk_norm = Some(biased.norm);
    configs.push(biased);
    let mut bare = mixture();
    (bare.norm.affine, bare.qk_norm) = (false, None);
    configs.push(bare);
    configs.push(interleaved());
    for config in configs {
        let random = Random::new(config, 5, DType::F32);
        let there = desk.write(&random, OLMO);
        assert_same(&random, &there);
        assert_same(&random, &desk.write(&there, OLMO));
        // What a format cannot say is refused before anything is written.
        for target in [HF, GGUF] {
            let expressible = target == HF && random.config().attention_bias && !random.config().mlp_bias;
            let result = desk.try_write(&random, target);
            assert!(expressible || result.is_err(), "{:?}", random.config());
            if let Err(error) = result {
                assert!(error.to_string().contains("cannot") || error.to_string().contains("no place"), "{error}");
            }
        }
    }
    let left = std::fs::read_dir(desk.folder.path()).unwrap().count();
    assert_eq!(left, 2 * 6, "nothing is left of what was refused");
}

#[test]
fn shards_have_an_index() {
    // A shard has 5 GB; here the index is made by hand from a single file.
    let desk = Desk::new();
    let random = Random::new(mixture(), 6, DType::Bf16);
    let whole = desk.write(&random, HF);
    let folder = desk.folder.path().join("sharded");
    std::fs::create_dir(&folder).unwrap();
    let from = &whole.contents().path;
    std::fs::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    std::fs::copy(from.join("model.safetensors"), folder.join("model-00001-of-00001.safetensors")).unwrap();
    let map: std::collections::BTreeMap<&str, &str> = whole
        .contents()
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), "model-00001-of-00001.safetensors"))
        .collect();
    let index = format!("{{\"weight_map\": {}}}", serde_json::to_string(&map).unwrap());
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    assert_same(&whole, &Checkpoint::open(&folder).unwrap());
}

#[test]
fn rounding_is_asked_for_and_measured() {
    let desk = Desk::new();
    let random = Random::new(mixture(), 7, DType::F32);
    let (path, written) =
        desk.try_write(&random, Target::HuggingFace { experts: Experts::Separate, dtype: Some(DType::Bf16) }).unwrap();
    assert_same(&Random::new(mixture(), 7, DType::Bf16), &Checkpoint::open(&path).unwrap());
    let kind = &written.kinds["moe.experts.up_proj"];
    assert_eq!((kind.numbers, kind.bytes_before, kind.bytes_after), (3 * 8 * 32 * 64, 4 * 49152, 2 * 49152));
    // Eight bits of mantissa: a relative error of 2^-9 / sqrt(3), within the binade.
    assert!((5e-4..2.5e-3).contains(&kind.relative()), "{}", kind.relative());
    assert_eq!(written.kinds["attention_norm"].squared_error, 0.0);
}

#[test]
fn quantised_weights_need_a_word_about_what_they_become() {
    let desk = Desk::new();
    let random = Random::new(mixture(), 8, DType::F32);
    let q8 = desk.write(&random, Target::Gguf { mix: Some(Mix::Q8_0) });
    assert_eq!(q8.main_encoding().name(), "q8_0");
    for target in [HF, OLMO] {
        assert!(matches!(desk.try_write(&q8, target), Err(CheckpointError::Quantized { .. })));
    }
    // As they are, and exactly in f32.
    assert_same(&q8, &desk.write(&q8, GGUF));
    let exact = desk.write(&q8, Target::HuggingFace { experts: Experts::Separate, dtype: Some(DType::F32) });
    for (index, spec) in q8.parameters().iter().enumerate() {
        let (from, bytes) = (q8.encoding(index, 0), q8.read(index, 0).unwrap());
        let mut numbers = vec![0f32; from.block_len() * bytes.len() / from.block_bytes()];
        from.decode(&bytes, &mut numbers);
        assert_eq!(bytemuck::cast_slice::<f32, u8>(&numbers), &exact.read(index, 0).unwrap()[..], "{}", spec.name);
    }
}

/// Beside the other blocks' names and shapes in OLMo's files.
#[test]
fn dense_blocks_and_mixtures_in_turn() {
    let desk = Desk::new();
    let random = Random::new(interleaved(), 12, DType::F32);
    let there = desk.write(&random, OLMO);
    let shape = |name: &str| {
        let found = there.contents().tensors.iter().find(|tensor| tensor.name == format!("transformer.blocks.{name}"));
        found.map(|tensor| tensor.shape.clone())
    };
    for (dense, mixture) in [(0, 1), (2, 1)] {
        assert_eq!(shape(&format!("{dense}.ff_proj.weight")), Some(vec![2 * 32, 64]));
        assert_eq!(shape(&format!("{dense}.ff_out.weight")), Some(vec![64, 32]));
        assert_eq!(shape(&format!("{mixture}.ffn.experts.mlp.w1")), Some(vec![8 * 32, 64]));
        assert_eq!(shape(&format!("{dense}.ffn.router.layer.weight")), None);
        assert_eq!(shape(&format!("{mixture}.ff_proj.weight")), None);
    }
    for (target, format) in [(HF, "Hugging Face's olmoe"), (FUSED, "Hugging Face's olmoe"), (GGUF, "llama.cpp's olmoe")]
    {
        let error = desk.try_write(&there, target).unwrap_err().to_string();
        assert!(error.contains(format) && error.contains("moe_interleave"), "{error}");
    }
    // A configuration of the other kind finds its tensors missing, and says which.
    let config = there.contents().path.join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("moe_interleave: true", "moe_interleave: false")).unwrap();
    let error = Checkpoint::open(&there.contents().path).map(drop).unwrap_err().to_string();
    assert!(error.contains("transformer.blocks.0.ffn.router.layer.weight"), "{error}");
}

#[test]
fn loading_gives_the_model_that_was_drawn() {
    let desk = Desk::new();
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 99).collect();
    for config in [mixture(), dense(), interleaved()] {
        let targets: &[Target] = if config.even_layers.is_some() { &[OLMO] } else { &[HF, OLMO, GGUF] };
        let mut drawn = Model::new(config.clone(), Precision::Fp32, Held::Trained).unwrap();
        drawn.initialize(9);
        let expected = logits(&drawn, &ids);
        let random = Random::new(config, 9, DType::F32);
        for &target in targets {
            let there = desk.write(&random, target);
            let read = std::sync::atomic::AtomicU64::new(0);
            let model = there
                .load(&EXACT, &|bytes| {
                    read.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                })
                .unwrap()
                .model;
            assert_eq!(logits(&model, &ids), expected, "{target:?}");
            assert_eq!(read.into_inner(), there.bytes());
        }
    }
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    use olmoe_model::batch::Batch;
    use olmoe_model::model::{Activations, Keep};
    let batch = Batch::uniform(ids, ids.len()).unwrap();
    model.logits(&batch, &mut Activations::new(Keep::Nothing)).unwrap().to_vec()
}

/// Weights with one number that is not finite.
struct Broken(Random, usize);

impl Weights for Broken {
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
        let mut bytes = self.0.read(parameter, slab)?;
        if parameter == self.1 && slab == 0 {
            bytes[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        Ok(bytes)
    }
}

#[test]
fn numbers_that_are_none_are_kept_but_neither_quantised_nor_loaded() {
    let desk = Desk::new();
    let random = Random::new(mixture(), 10, DType::F32);
    let at = random.parameters().iter().position(|spec| spec.name == "layers.1.moe.experts.down_proj.weight").unwrap();
    let broken = Broken(random, at);
    let result = desk.try_write(&broken, Target::Gguf { mix: Some(Mix::Q4_0) });
    assert!(matches!(result, Err(CheckpointError::NotFinite { at: 10, .. })));
    for target in [HF, OLMO, GGUF] {
        let there = desk.write(&broken, target);
        assert_same(&broken, &there);
        let error = there.load(&EXACT, &|_| {}).map(drop).unwrap_err().to_string();
        assert!(error.contains("layers.1.moe.experts.down_proj.weight: number 10 of matrix 0"), "{error}");
    }
}

#[test]
fn a_training_checkpoint_is_read_like_any_other() {
    let desk = Desk::new();
    training_checkpoint(&desk, &Random::new(mixture(), 11, DType::F32), HF);
    training_checkpoint(&desk, &Random::new(interleaved(), 11, DType::F32), OLMO);
}

fn training_checkpoint(desk: &Desk, random: &Random, target: Target) {
    use olmoe_checkpoint::safetensors::{SafeType, Spec};
    use olmoe_checkpoint::save::Checkpoints;
    let run = desk.folder.path().join(format!("run-{target:?}"));
    let checkpoints = Checkpoints::open(&run).unwrap();
    let mut writer = checkpoints.begin(5).unwrap();
    let specs: Vec<Spec> =
        random.parameters().iter().map(|spec| Spec::new(&spec.name, SafeType::F32, spec.shape.clone())).collect();
    writer
        .tensors("model", &specs, 20_000, |index, out| {
            let groups = if specs[index].shape.len() == 3 { specs[index].shape[0] } else { 1 };
            (0..groups).try_for_each(|slab| out.write_all(&random.read(index, slab).unwrap()))
        })
        .unwrap();
    writer.json("config.json", random.config()).unwrap();
    let saved = writer.commit().unwrap();
    // The checkpoint, or the run that it is the newest of.
    for path in [saved.path.as_path(), &run] {
        let there = Checkpoint::open(path).unwrap();
        assert_eq!(there.contents().format.name(), "training");
        assert_same(random, &there);
    }
    assert_same(random, &desk.write(&Checkpoint::open(&run).unwrap(), target));
    let shard = Checkpoint::open(&run).unwrap().contents().files[0].0.clone();
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let error = Checkpoint::open(&run).map(drop).unwrap_err().to_string();
    assert!(error.contains("model-00001-of"), "{error}");
}
