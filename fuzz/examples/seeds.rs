//! Writes the files that fuzzing begins with into `seeds/`: tiny good ones of every format.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use olmoe_checkpoint::adapter::{AdapterWeights, FileLayout};
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::olmo_keys;
use olmoe_checkpoint::safetensors::ShardIndex;
use olmoe_checkpoint::weights::Random;
use olmoe_data::TULU;
use olmoe_data::token_file::{MegatronWriter, TokenType};
use olmoe_model::adapter::parameters_with;
use olmoe_model::adapter::settings::AdapterSettings;
use olmoe_model::config::{FeedForward, Mlp, ModelConfig, Moe};
use olmoe_model::model::{Held, Model, Precision};
use olmoe_model::parameters::parameters;
use olmoe_tensor::dtype::DType;
use olmoe_train::metrics::{LOSS, MetricsLog, Record};
use serde_json::json;

fn config(width: usize) -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (width, 1, 2, 2, width / 2);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (260, 260, 16);
    (config.pad_token_id, config.eos_token_id) = (Some(258), Some(257));
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        *moe = Moe { num_experts: 2, top_k: 1, expert: Mlp { width, ..moe.expert }, ..moe.clone() };
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
        char::from_u32(code).expect("a letter").to_string()
    };
    let mut vocab: BTreeMap<String, u32> = (0..256).map(|byte| (letter(byte), byte)).collect();
    vocab.insert("he".into(), 256);
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": [special(257, "<|endoftext|>"), special(258, "<|padding|>")],
        "normalizer": { "type": "NFC" }, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [["h", "e"]] },
    })
    .to_string()
}

/// A tokenizer of words, which the library reads.
fn words() -> String {
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
        "model": { "type": "WordLevel", "unk_token": "?", "vocab": { "?": 0, "once": 1, "upon": 2 } },
    })
    .to_string()
}

/// An adapter of the model of the target `adapter`: of every matrix of attention and experts.
fn adapter() -> Result<AdapterWeights, Box<dyn std::error::Error>> {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (8, 2, 2, 2, 4);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (12, 12, 16);
    (config.pad_token_id, config.eos_token_id) = (None, None);
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        (moe.num_experts, moe.top_k, moe.expert.width) = (3, 2, 6);
    }
    let settings = AdapterSettings { rank: 2, alpha: 3.0, ..AdapterSettings::default() };
    let adapters = settings.resolve(&config)?;
    let canonical = parameters(&config).len();
    let count = parameters_with(&config, &adapters)?.len();
    let held = (0..count).map(|id| if id < canonical { Held::Frozen } else { Held::Trained }).collect();
    let mut model = Model::with_adapters(config, Precision::Fp32, held, &[], &adapters)?;
    model.initialize(1);
    Ok(AdapterWeights::of(&model)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    if seeds.exists() {
        fs::remove_dir_all(&seeds)?;
    }
    let put = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(seeds.join(target))?;
        fs::write(seeds.join(target).join(name), bytes)
    };
    let work = std::env::temp_dir().join(format!("olmoe-seeds-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let tokenizer_file = work.join("tokenizer.json");
    fs::write(&tokenizer_file, tokenizer())?;
    let make = |name: &str, config: ModelConfig, dtype, tokenized: bool, target| {
        let random = Random::new(config.clone(), 7, dtype);
        let companions = match tokenized {
            true => Companions::with_tokenizer("tiny", &tokenizer_file, &config)?,
            false => Companions::named("tiny"),
        };
        let out = work.join(name);
        Conversion::plan(&random, &companions, target)?.run(&out, true, &|_| ())?;
        Ok::<_, Box<dyn std::error::Error>>(out)
    };
    let plain = make("plain.gguf", config(4), DType::Bf16, true, Target::Gguf { mix: None })?;
    let blocks = make("q4_0.gguf", config(32), DType::F32, false, Target::Gguf { mix: Some(Mix::Q4_0) })?;
    put("gguf", "vocabulary", &fs::read(plain)?)?;
    put("gguf", "blocks", &fs::read(blocks)?)?;

    for (name, layout) in [("separate", FileLayout::Separate), ("fused", FileLayout::Fused)] {
        let folder = work.join(name);
        adapter()?.write(&folder, layout, true)?;
        let settings = fs::read(folder.join("adapter_config.json"))?;
        let tensors = fs::read(folder.join("adapter_model.safetensors"))?;
        put("adapter", name, &[&settings[..], b"\0", &tensors].concat())?;
    }
    adapter()?.write_gguf(&work.join("adapter.gguf"), true)?;
    put("adapter", "gguf", &fs::read(work.join("adapter.gguf"))?)?;

    let experts = Experts::Separate;
    let hf = make("hf", config(4), DType::Bf16, false, Target::HuggingFace { experts, dtype: None })?;
    let olmo = make("olmo", config(4), DType::Bf16, false, Target::Olmo { dtype: None })?;
    put("safetensors", "huggingface", &fs::read(hf.join("model.safetensors"))?)?;
    put("safetensors", "olmo", &fs::read(olmo.join("model.safetensors"))?)?;
    put("config", "config.json", &fs::read(hf.join("config.json"))?)?;
    put("config", "config.yaml", &fs::read(olmo.join("config.yaml"))?)?;
    put("config", "own.json", serde_json::to_string(&config(4))?.as_bytes())?;
    put("tokenizer", "bytes", tokenizer().as_bytes())?;
    put("tokenizer", "words", words().as_bytes())?;

    let mut index = ShardIndex { total_size: Some(12), ..ShardIndex::default() };
    index.weight_map.insert("a".to_owned(), "model-00001-of-00001.safetensors".to_owned());
    put("index", "one", index.to_json()?.as_bytes())?;
    put("olmo_keys", "one", olmo_keys::encode(&["transformer.wte.weight"], false).as_bytes())?;
    put("olmo_keys", "three", olmo_keys::encode(&["optim", "state", "x"], true).as_bytes())?;

    // `{"w": tensor of 6 f32}`, as torch.save writes it.
    let pickle = b"\x80\x02}q\0X\x01\0\0\0wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\0\0\0storageq\x03ctorch\n\
        FloatStorage\nq\x04X\x01\0\0\x000q\x05X\x03\0\0\0cpuq\x06K\x06tq\x07QK\0K\x02K\x03\x86q\x08K\x03K\x01\x86q\t\x89\
        ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs.";
    put("pickle", "state", pickle)?;
    put("torch_file", "state", pickle)?;
    let mut megatron = MegatronWriter::create(&work.join("set"), TokenType::U16)?;
    for sequence in [&[1, 2, 3][..], &[4], &[5, 6]] {
        megatron.sequence(sequence)?;
        megatron.end_document();
    }
    megatron.finish()?;
    put("megatron", "three", &fs::read(work.join("set.idx"))?)?;

    let mut log = MetricsLog::open(&work, 0)?;
    for step in 1..=2 {
        log.append(&Record::new(step).with(LOSS, 2.5).with("train/TokensPercentage/layer0/expert0", 50.0))?;
    }
    put("metrics", "two", &fs::read(log.path())?)?;
    put("chat_template", "tulu", TULU.as_bytes())?;
    put("train_config", "tiny", include_bytes!("../../configs/tiny-train.yml"))?;
    fs::remove_dir_all(work)?;
    Ok(())
}
