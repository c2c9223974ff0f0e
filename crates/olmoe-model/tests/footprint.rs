//! What a pass is foreseen to need is what it needs. One test, alone in its process, because the peak is that of all
//! threads.

use std::convert::Infallible;

use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, Precision};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::memory::{peak_bytes, restart_peak};
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::set_num_threads;

/// Width, width of an expert, experts, experts of a token, heads and those of keys and values, rows of the embedding.
type Shape = (usize, usize, usize, usize, usize, usize, usize);

fn config((width, expert, experts, top_k, heads, kv_heads, rows): Shape) -> ModelConfig {
    let json = format!(
        r#"{{
        "model_type": "olmoe", "vocab_size": {rows}, "hidden_size": {width}, "intermediate_size": {expert},
        "num_hidden_layers": 3, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
        "num_experts": {experts}, "num_experts_per_tok": {top_k}, "max_position_embeddings": 4096, "eos_token_id": 2
    }}"#
    );
    ModelConfig::from_hf_json(&json).expect("a good configuration").config
}

/// With weights of some numbers, quantised or not.
fn model(shape: Shape, precision: Precision, quantized: bool) -> Model {
    let config = config(shape);
    if !quantized {
        let mut model = Model::new(config, precision, Held::Inference).expect("a model");
        model.initialize(1);
        return model;
    }
    let mut drawn = Model::new(config.clone(), precision, Held::Inference).expect("a model");
    drawn.initialize(1);
    let count = drawn.parameters().len();
    let encodings = vec![Some(Encoding::Blocks(BlockFormat::Q8_0)); count];
    let mut model = Model::for_inference(config, precision, &encodings).expect("a model");
    for id in 0..count {
        if model.encoding(id).is_some() {
            // Whole numbers that differ, under a scale that is small.
            let Ok(()) = model.fill_encoded(id, |range, out| {
                let block =
                    |(at, byte): (usize, &mut u8)| *byte = [0, 0x10][at % 34 % 2] | ((range.start + at) % 5) as u8;
                out.iter_mut().enumerate().for_each(block);
                Ok::<_, Infallible>(())
            });
        }
        if model.takes_numbers(id) {
            let Ok(()) = model.fill(id, |range, out| {
                out.iter_mut().zip(range).for_each(|(x, i)| *x = (i * 7919 % 101) as f32 / 101.0 - 0.4);
                Ok::<(), Infallible>(())
            });
        }
    }
    model
}

#[test]
fn a_pass_needs_what_was_foreseen() {
    set_num_threads(2);
    // The shares of the release; few wide experts; many narrow ones; and a head that outweighs all else.
    let shapes = [
        (512, 256, 64, 8, 4, 4, 6000),
        (512, 1536, 4, 1, 8, 2, 2000),
        (256, 64, 32, 4, 4, 4, 1000),
        (256, 128, 8, 2, 4, 4, 40_000),
    ];
    let mut wrong = String::new();
    for shape in shapes {
        for (precision, quantized) in
            [(Precision::Fp32, false), (Precision::AmpBf16, false), (Precision::AmpBf16, true)]
        {
            let model = model(shape, precision, quantized);
            let rows = model.config().embedding_size;
            for (sequences, length) in [(1, 2048), (1, 512), (4, 256), (16, 16)] {
                let ids: Vec<u32> = (0..sequences * length).map(|i| (i * 7919 % rows) as u32).collect();
                let kind = KvCache::default_type(precision);
                let foreseen = model.config().cache_bytes(kind, &vec![length; sequences])
                    + model.config().pass_bytes(ids.len(), sequences, precision, quantized);
                let before = restart_peak();
                let mut caches: Vec<KvCache> = (0..sequences).map(|_| KvCache::of_type(&model, length, kind)).collect();
                let mut activations = Activations::new(Keep::Nothing);
                let batch = Batch::uniform(&ids, length).expect("whole sequences");
                model.forward_cached(&batch, &mut caches, &mut activations).expect("a pass");
                let hidden = activations.hidden();
                let last: Vec<f32> = (1..=sequences).flat_map(|s| hidden.row(s * length - 1)).copied().collect();
                let logits = model.logits_of(&Tensor::new(&last, &[sequences, hidden.cols()]));
                let measured = (peak_bytes() - before) as f64;
                drop((logits, batch));
                let ratio = foreseen as f64 / measured;
                if !(0.9..=1.1).contains(&ratio) {
                    wrong += &format!(
                        "{shape:?}, {precision:?}, quantised {quantized}, {sequences} × {length}: {measured} bytes, \
                         {ratio:.3} of them foreseen\n"
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
