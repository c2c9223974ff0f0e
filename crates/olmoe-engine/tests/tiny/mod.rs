//! A small random model, and what the tests do with it.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_data::{Tokenizer, Vocabulary};
use olmoe_engine::{Completion, Engine, EngineConfig, FinishReason, Request, RequestId};
use olmoe_model::config::{FeedForward, ModelConfig};
use olmoe_model::model::{Held, Model, Precision};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::quant::{BlockFormat, quantize};

/// Numbers in a row of the embedding; its heads have 40, more than fit a panel of the cache.
pub(crate) const WIDTH: usize = 80;
/// Rows of the embedding.
pub(crate) const ROWS: usize = 300;
/// Most tokens of prompt and text.
pub(crate) const CONTEXT: usize = 160;

pub(crate) fn config() -> ModelConfig {
    let json = format!(
        r#"{{
        "model_type": "olmoe", "vocab_size": {ROWS}, "hidden_size": {WIDTH}, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": {CONTEXT}, "pad_token_id": 1, "eos_token_id": 0, "initializer_range": 0.3
    }}"#
    );
    ModelConfig::from_hf_json(&json).expect("a good configuration").config
}

pub(crate) fn model(precision: Precision) -> Arc<Model> {
    Arc::new(drawn(precision))
}

/// The same, to be changed.
pub(crate) fn drawn(precision: Precision) -> Model {
    let mut model = Model::new(config(), precision, Held::Inference).expect("a model");
    model.initialize(7);
    model
}

/// The same in the block format, or with all its numbers, and as wide as blocks are long.
pub(crate) fn wide_model(precision: Precision, format: Option<BlockFormat>) -> Arc<Model> {
    let mut config = config();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (256, 1, 4, 2, 64);
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        (moe.num_experts, moe.expert.width) = (4, 256);
    }
    let held = if format.is_some() { Held::Trained } else { Held::Inference };
    let mut drawn = Model::new(config.clone(), precision, held).expect("a model");
    drawn.initialize(7);
    let Some(format) = format else { return Arc::new(drawn) };
    let count = drawn.parameters().len();
    let mut model =
        Model::for_inference(config, precision, &vec![Some(Encoding::Blocks(format)); count]).expect("a model");
    for id in 0..count {
        let value = drawn.value(id).expect("numbers");
        if model.encoding(id).is_some() {
            let mut bytes = vec![0; format.bytes(value.len()).expect("whole blocks")];
            quantize(format, value, &mut bytes);
            let place = |number: usize| number / format.block_len() * format.block_bytes();
            let Ok(()) = model.fill_encoded(id, |range, out| {
                out.copy_from_slice(&bytes[place(range.start)..place(range.end)]);
                Ok::<_, Infallible>(())
            });
        }
        if model.takes_numbers(id) {
            let Ok(()) = model.fill(id, |range, out| {
                out.copy_from_slice(&value[range]);
                Ok::<(), Infallible>(())
            });
        }
    }
    Arc::new(model)
}

/// The bytes, then an end of text.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_vocabulary(&Vocabulary::bytes()).expect("a tokenizer"))
}

/// Some ids, the same for the same seed.
pub(crate) fn ids(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 17 + seed * 129 + i * i * seed) % ROWS) as u32).collect()
}

/// Why a sample ended.
pub(crate) fn reason(outcome: &Completion) -> &FinishReason {
    &outcome.end.as_ref().expect("it has ended").reason
}

/// Without the one number that other requests have a part in.
pub(crate) fn without_reuse(mut outcome: Completion) -> Completion {
    if let Some(end) = &mut outcome.end {
        end.usage.reused_tokens = 0;
    }
    outcome
}

/// Outcomes by request and sample.
pub(crate) type Outcomes = BTreeMap<(RequestId, usize), Completion>;

/// Takes a step and notes what happened.
pub(crate) fn step(engine: &mut Engine, outcomes: &mut Outcomes) {
    for event in engine.step() {
        let outcome = outcomes.entry((event.request, event.sample)).or_default();
        assert!(outcome.end.is_none(), "something happened after the end: {event:?}");
        outcome.add(event.kind);
    }
}

/// Steps until nothing is left.
pub(crate) fn drain(engine: &mut Engine) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut steps = 0;
    while !engine.is_idle() {
        step(engine, &mut outcomes);
        steps += 1;
        assert!(steps < 100_000, "the engine does not come to an end");
    }
    outcomes
}

/// One request alone in an engine of its own, its prompt read at once.
pub(crate) fn alone(model: &Arc<Model>, tokenizer: Option<&Arc<Tokenizer>>, request: &Request) -> Vec<Completion> {
    alone_with(model, tokenizer, request, None)
}

/// The same with this type of cache.
pub(crate) fn alone_with(
    model: &Arc<Model>,
    tokenizer: Option<&Arc<Tokenizer>>,
    request: &Request,
    cache_type: Option<CacheType>,
) -> Vec<Completion> {
    let config = EngineConfig {
        max_running: 1,
        step_tokens: 4096,
        kept_tokens: 0,
        ends: vec![256],
        cache_type,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(model.clone(), tokenizer.cloned(), config).expect("an engine");
    let mut done = engine.complete_all([request.clone()], &AtomicBool::new(false)).expect("it is not interrupted");
    done.remove(0).expect("a good request").into_iter().map(without_reuse).collect()
}
