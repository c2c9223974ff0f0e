//! Good checkpoints of a tiny model, in every format.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::safetensors::{INDEX_FILE, SafeType, ShardIndex, Spec, Writer, read_header};
use olmoe_checkpoint::save::Checkpoints;
use olmoe_checkpoint::weights::{Random, Weights};
use olmoe_checkpoint::{Checkpoint, olmo_keys};
use olmoe_model::config::{FeedForward, Mlp, ModelConfig, Moe};
use olmoe_tensor::dtype::DType;
use serde_json::json;
use tempfile::TempDir;

use crate::archive::{self, Entry};
use crate::table::whole;

/// Where the good ones lie.
pub(crate) struct Good {
    _folder: TempDir,
    /// One file, experts apart, bf16, with a tokenizer.
    pub(crate) huggingface: PathBuf,
    /// Two files and an index.
    pub(crate) sharded: PathBuf,
    /// Experts in stacks.
    pub(crate) fused: PathBuf,
    /// With a safetensors file, f32.
    pub(crate) olmo: PathBuf,
    /// With a file of torch.save.
    pub(crate) torch: PathBuf,
    /// f32, with a vocabulary.
    pub(crate) gguf: PathBuf,
    /// q8_0.
    pub(crate) quantized: PathBuf,
    /// Of the trainer.
    pub(crate) training: PathBuf,
}

pub(crate) fn config() -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (32, 2, 4, 4, 8);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (260, 260, 64);
    (config.pad_token_id, config.eos_token_id) = (Some(258), Some(257));
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        *moe = Moe { num_experts: 4, top_k: 2, expert: Mlp { width: 32, ..moe.expert }, ..moe.clone() };
    }
    config
}

/// Byte-level BPE of the 256 letters, one merge and two special tokens.
fn tokenizer() -> String {
    let mut next = 0x100;
    let mut letter = |byte: u32| {
        let printed = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printed { byte } else { next };
        next += u32::from(!printed);
        char::from_u32(code).unwrap().to_string()
    };
    let mut vocab: BTreeMap<String, u32> = (0..256).map(|byte| (letter(byte), byte)).collect();
    vocab.insert("he".into(), 256);
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(257, "<|endoftext|>"), special(258, "<|padding|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                   "merges": [["h", "e"]] },
    })
    .to_string()
}

/// A tensor of a safetensors file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) spec: Spec,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tensors(path: &Path) -> Vec<Tensor> {
    let bytes = fs::read(path).unwrap();
    let entries = read_header(&bytes[..]).unwrap().entries.into_iter();
    entries
        .map(|entry| Tensor {
            bytes: bytes[entry.offset as usize..][..entry.bytes as usize].to_vec(),
            spec: Spec::new(entry.name, entry.dtype, entry.shape),
        })
        .collect()
}

pub(crate) fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let specs: Vec<Spec> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    tensors.iter().for_each(|tensor| writer.write(&tensor.bytes).unwrap());
    fs::write(path, writer.finish().unwrap()).unwrap();
}

/// Changes the tensors of a safetensors file.
pub(crate) fn edit_tensors(path: &Path, change: impl FnOnce(&mut Vec<Tensor>)) {
    let mut all = tensors(path);
    change(&mut all);
    write_tensors(path, &all);
}

/// The tensor of that name.
pub(crate) fn named<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.spec.name == name).unwrap()
}

/// Names of the two shards.
pub(crate) const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn shard(single: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::copy(single.join("config.json"), folder.join("config.json")).unwrap();
    let all = tensors(&single.join("model.safetensors"));
    let mut index = ShardIndex::default();
    for (name, part) in SHARDS.into_iter().zip([&all[..20], &all[20..]]) {
        index.weight_map.extend(part.iter().map(|tensor| (tensor.spec.name.clone(), name.to_owned())));
        write_tensors(&folder.join(name), part);
    }
    fs::write(folder.join(INDEX_FILE), index.to_json().unwrap()).unwrap();
}

/// The file of torch.save with these tensors.
pub(crate) fn torch_file(tensors: &[(String, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut items = Vec::new();
    let mut storages = Vec::new();
    for (number, (name, shape, bytes)) in tensors.iter().enumerate() {
        let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        let strides: Vec<i64> = (0..extents.len()).map(|axis| extents[axis + 1..].iter().product()).collect();
        items.push(archive::text(name));
        items.push(archive::tensor(&number.to_string(), bytes.len() as i64 / 4, 0, &extents, &strides));
        storages.push(Entry::new(&format!("a/data/{number}"), bytes));
    }
    let pickle = archive::pickle(&archive::dict(&items));
    let head = [Entry::new("a/data.pkl", &pickle), Entry::new("a/byteorder", b"little")];
    archive::zip(&head.into_iter().chain(storages).collect::<Vec<_>>())
}

/// The tensors of the OLMo checkpoint by plain name.
pub(crate) fn olmo_tensors(folder: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let plain = |tensor: Tensor| {
        let name = olmo_keys::decode(&tensor.spec.name).unwrap().path.join(".");
        (name, tensor.spec.shape, tensor.bytes)
    };
    tensors(&folder.join("model.safetensors")).into_iter().map(plain).collect()
}

/// The good ones, made once.
pub(crate) fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("tokenizer.json"), tokenizer()).unwrap();
        let companions = Companions::with_tokenizer("tiny", &at("tokenizer.json"), &config()).unwrap();
        let make = |name: &str, dtype, target| {
            let random = Random::new(config(), 7, dtype);
            Conversion::plan(&random, &companions, target).unwrap().run(&at(name), false, &|_| ()).unwrap();
            at(name)
        };
        let huggingface = |experts| Target::HuggingFace { experts, dtype: None };
        let good = Good {
            huggingface: make("hf", DType::Bf16, huggingface(Experts::Separate)),
            sharded: at("sharded"),
            fused: make("fused", DType::F32, huggingface(Experts::Fused)),
            olmo: make("olmo", DType::F32, Target::Olmo { dtype: None }),
            torch: at("torch"),
            gguf: make("tiny.gguf", DType::F32, Target::Gguf { mix: None }),
            quantized: make("tiny-q8_0.gguf", DType::F32, Target::Gguf { mix: Some(Mix::Q8_0) }),
            training: at("training/step-3"),
            _folder: folder,
        };
        shard(&good.huggingface, &good.sharded);
        fs::create_dir(&good.torch).unwrap();
        fs::copy(good.olmo.join("config.yaml"), good.torch.join("config.yaml")).unwrap();
        fs::write(good.torch.join("model.pt"), torch_file(&olmo_tensors(&good.olmo))).unwrap();
        train(good.training.parent().unwrap());
        good
    })
}

fn train(run: &Path) {
    let random = Random::new(config(), 7, DType::F32);
    let spec = |spec: &olmoe_model::parameters::ParameterSpec| Spec::new(&spec.name, SafeType::F32, spec.shape.clone());
    let specs: Vec<Spec> = random.parameters().iter().map(spec).collect();
    let checkpoints = Checkpoints::open(run).unwrap();
    let mut writer = checkpoints.begin(3).unwrap();
    let fill = |parameter: usize, out: &mut dyn Write| {
        let matrices = match &specs[parameter].shape[..] {
            [matrices, _, _] => *matrices,
            _ => 1,
        };
        (0..matrices).try_for_each(|matrix| out.write_all(&random.read(parameter, matrix).unwrap()))
    };
    writer.tensors("model", &specs, 100_000, fill).unwrap();
    writer.bytes("config.json", config().to_hf_json("float32").unwrap().as_bytes()).unwrap();
    writer.commit().unwrap();
}

/// Without this all rows would prove nothing.
#[test]
fn the_good_ones_are_good() {
    let good = good();
    for path in [
        &good.huggingface,
        &good.sharded,
        &good.fused,
        &good.olmo,
        &good.torch,
        &good.gguf,
        &good.quantized,
        &good.training,
    ] {
        whole(path).unwrap();
    }
    let of = |path: &Path| Checkpoint::open(path).unwrap().bytes();
    assert_eq!(of(&good.huggingface) * 2, of(&good.gguf));
    assert_eq!(of(&good.sharded), of(&good.huggingface));
}
