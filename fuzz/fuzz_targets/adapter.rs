//! An adapter as a user gives it: a GGUF file, or settings, a zero byte and a safetensors file.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::adapter::{AdapterWeights, FileLayout};
use olmoe_model::config::{FeedForward, ModelConfig};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("olmoe-fuzz-adapter-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
});

/// The model of the seeds.
static CONFIG: LazyLock<ModelConfig> = LazyLock::new(|| {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (8, 2, 2, 2, 4);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (12, 12, 16);
    (config.pad_token_id, config.eos_token_id) = (None, None);
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        (moe.num_experts, moe.top_k, moe.expert.width) = (3, 2, 6);
    }
    config
});

fuzz_target!(|bytes: &[u8]| {
    let path = if bytes.starts_with(b"GGUF") {
        let path = FOLDER.join("adapter.gguf");
        std::fs::write(&path, bytes).expect("a file");
        path
    } else {
        let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let (settings, tensors) = bytes.split_at(at);
        std::fs::write(FOLDER.join("adapter_config.json"), settings).expect("a file");
        std::fs::write(FOLDER.join("adapter_model.safetensors"), tensors.get(1..).unwrap_or_default()).expect("a file");
        FOLDER.clone()
    };
    let Ok(adapter) = AdapterWeights::read(&path, &CONFIG) else { return };
    // What was read can be added to itself, and what is written of it is checked against it.
    let _ = AdapterWeights::combined(vec![(adapter.clone(), 1.0), (adapter.clone(), 0.5)]);
    for layout in [FileLayout::Separate, FileLayout::Fused] {
        if let Err(error) = adapter.write(&FOLDER.join("again"), layout, true) {
            let text = error.to_string();
            assert!(!text.contains("reads back differently"), "{layout:?}: {text}");
        }
    }
});
