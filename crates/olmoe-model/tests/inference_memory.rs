//! Filling a model made for inference takes little more memory than the model. Alone in its process, because the peak
//! is that of all threads.

use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Model, Precision};
use olmoe_tensor::memory::peak_bytes;
use olmoe_tensor::threads::set_num_threads;

#[test]
fn filling_takes_little_more_memory_than_the_model() {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 61, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_experts": 16, "max_position_embeddings": 40, "eos_token_id": 2
    }"#;
    let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    set_num_threads(2);
    let mut model = Model::new(config, Precision::AmpBf16, Held::Inference).expect("a model");
    let made = peak_bytes();
    let id = model.find("layers.0.moe.experts.down_proj.weight").expect("it has experts");
    model.fill(id, |range, out| (range.len() == out.len()).then(|| out.fill(1.0)).ok_or(())).expect("both are a strip");
    // Two strips of 32 rows of 1024 numbers, where the matrix has 8 million.
    let filled = peak_bytes();
    assert!(filled - made <= 2 * 32 * 1024 * 4, "{} bytes", filled - made);
    model.initialize(1);
    let drawn = peak_bytes();
    assert!(drawn - made <= 20 << 20, "{} bytes", drawn - made);
}
