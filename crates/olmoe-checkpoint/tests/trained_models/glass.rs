//! glassllm's English model: 0.85 million parameters, trained on public-domain novels. Matrices are stored in f16 as
//! `[in, out]`, and rotary pairs are neighbours.
//!
//! `golden/trained/glassllm.json` is what its own package (0.1.0) computes in f64 from these weights.

use std::collections::HashSet;
use std::path::Path;

use olmoe_checkpoint::encoding::Encoding;
use olmoe_data::Tokenizer;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    surprise: Vec<f64>,
    last_logits: Vec<f64>,
    prompt: String,
    prompt_ids: Vec<u32>,
    continuation_ids: Vec<u32>,
    continuation: String,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trained/glassllm.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn arrays(folder: &Path) -> Arrays {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut config = dense(128, 4, (4, 2), 341);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (1024, 1024, 128);
    config.norm.eps = 1e-6;
    let head = config.head_dim;
    Arrays::new(config, |name, layer| {
        let (part, transposed) = match name {
            "embed_tokens" => ("E", false),
            "norm" => ("norm_f.gamma", false),
            "attention_norm" => ("norm1.gamma", false),
            "mlp_norm" => ("norm2.gamma", false),
            "attention.q_proj" => ("attn.W_Q", true),
            "attention.k_proj" => ("attn.W_K", true),
            "attention.v_proj" => ("attn.W_V", true),
            "attention.o_proj" => ("attn.W_O", true),
            "mlp.gate_proj" => ("ffn.W1", true),
            "mlp.up_proj" => ("ffn.W3", true),
            "mlp.down_proj" => ("ffn.W2", true),
            other => panic!("{other}: no such parameter in this model"),
        };
        let tensor = file.tensor(&layer.map_or(part.into(), |layer| format!("blocks.{layer}.{part}"))).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F16);
        let mut numbers = vec![0.0; tensor.data().len() / 2];
        Encoding::F16.decode(tensor.data(), &mut numbers);
        if transposed {
            let (input, out) = (tensor.shape()[0], tensor.shape()[1]);
            numbers = (0..input * out).map(|i| numbers[i % input * out + i / input]).collect();
        }
        match name {
            "attention.q_proj" | "attention.k_proj" => halves_apart(&numbers, head, 128),
            _ => numbers,
        }
    })
}

/// Its `en.tokenizer.json` holds an alphabet and merges; the rest is in its program: NFC, blanks as `▁`, chunks that
/// merges do not cross. As a file of the tokenizers library.
fn tokenizer(folder: &Path) -> Tokenizer {
    let own: Value = serde_json::from_slice(&std::fs::read(folder.join("en.tokenizer.json")).unwrap()).unwrap();
    let special = ["<pad>", "<unk>", "<bos>", "<eos>"].map(str::to_owned);
    let alphabet: Vec<String> = serde_json::from_value(own["alphabet"].clone()).unwrap();
    let merges: Vec<(String, String)> = serde_json::from_value(own["merges"].clone()).unwrap();
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = special.into_iter().chain(alphabet).chain(merged);
    let vocabulary: serde_json::Map<_, _> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": "\n|▁*[^▁\n]+|▁+" }, "behavior": "Isolated", "invert": false,
        },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "Fuse" },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
            "merges": merges,
        },
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn the_numbers_of_its_own_package() {
    let Some(folder) = shared("models/glassllm-en") else { return };
    let golden = golden();
    let model = arrays(&folder).model();
    let found = surprise(&model, &golden.ids);
    let error = found.iter().zip(&golden.surprise).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(error < 2e-5, "-ln p is off by {error:e}");

    let logits = logits(&model, &golden.ids);
    let last = logits.row(golden.ids.len() - 1);
    let errors = last.iter().zip(&golden.last_logits).map(|(x, y)| (f64::from(*x) - y).abs());
    let logit_error = errors.fold(0.0, f64::max);
    println!("largest error: {error:e} nats, {logit_error:e} in the logits");
    assert!(logit_error < 2e-5, "the logits are off by {logit_error:e}");

    // The two likeliest are never closer than 0.007 nats.
    assert_eq!(greedy(&model, &golden.prompt_ids, golden.continuation_ids.len()), golden.continuation_ids);
}

#[test]
fn its_tokens_and_its_english() {
    let Some(folder) = shared("models/glassllm-en") else { return };
    let Some(stories) = shared("pretrain/tinystories") else { return };
    let golden = golden();
    let tokenizer = tokenizer(&folder);
    assert_eq!(tokenizer.encode(&golden.text).unwrap(), golden.ids);
    assert_eq!(tokenizer.encode(&golden.prompt).unwrap(), golden.prompt_ids);
    assert_eq!(tokenizer.decode(&golden.continuation_ids, false).unwrap(), golden.continuation);

    // It has not seen this paragraph, and knows it far better than chance (ln 1024 = 6.93) or the same tokens at random.
    let model = arrays(&folder).model();
    let (told, jumbled) = (mean(&surprise(&model, &golden.ids)), mean(&surprise(&model, &shuffled(&golden.ids))));
    println!("{told:.3} nats a token, {jumbled:.3} shuffled");
    assert!(told < 4.0 && jumbled > told + 3.0, "{told} nats a token, {jumbled} shuffled");

    // What it says is made of words that children's stories have.
    let text = std::fs::read_to_string(stories.join("valid_head.txt")).unwrap().to_lowercase();
    let known: HashSet<&str> = text.split(|c: char| !c.is_alphabetic()).collect();
    let ids = greedy(&model, &golden.prompt_ids, 100);
    let said = tokenizer.decode(&ids, false).unwrap().to_lowercase();
    let words: Vec<&str> = said.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    let share = words.iter().filter(|word| known.contains(*word)).count() as f64 / words.len() as f64;
    println!("{:.0} % of {} words known: {said:?}", 100.0 * share, words.len());
    assert!(words.len() > 50 && share > 0.9, "{share} of the words are known: {said}");
}
