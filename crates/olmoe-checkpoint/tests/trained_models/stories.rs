//! stories260K, a Llama of 260 032 parameters trained on TinyStories, as llama2.c stores it.
//!
//! A header of seven i32 (d, width, layers, heads, heads of keys, vocabulary, positions), then f32 arrays, each with all
//! layers behind one another. Rotary pairs are neighbours.

use std::path::Path;

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::Loading;
use olmoe_model::model::Precision;

use super::*;

const BOS: u32 = 1;
const TOKENS: usize = 256;

fn i32_at(bytes: &[u8], at: usize) -> usize {
    i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).try_into().unwrap()
}

fn arrays(folder: &Path) -> Arrays {
    let bytes = std::fs::read(folder.join("stories260K.bin")).unwrap();
    let (header, data) = bytes.split_at(28);
    let [d, width, layers, heads, kv_heads, vocabulary, positions] = std::array::from_fn(|i| i32_at(header, 4 * i));
    let mut config = dense(d, layers, (heads, kv_heads), width);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (vocabulary, vocabulary, positions);
    config.bos_token_id = Some(BOS);
    let head = config.head_dim;
    let kv = kv_heads * head;
    let numbers: Vec<f32> = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    // Name, and numbers of one layer, in the order of the file.
    let order = [
        ("attention_norm", d),
        ("attention.q_proj", d * d),
        ("attention.k_proj", kv * d),
        ("attention.v_proj", kv * d),
        ("attention.o_proj", d * d),
        ("mlp_norm", d),
        ("mlp.gate_proj", width * d),
        ("mlp.down_proj", width * d),
        ("mlp.up_proj", width * d),
    ];
    let per_layer: usize = order.iter().map(|entry| entry.1).sum();
    let tables = positions * head;
    assert_eq!(numbers.len(), vocabulary * d + layers * per_layer + d + tables, "the header's sizes are the file's");
    Arrays::new(config, |name, layer| {
        let (start, len) = match (name, layer) {
            ("embed_tokens", None) => (0, vocabulary * d),
            ("norm", None) => (vocabulary * d + layers * per_layer, d),
            (name, layer) => {
                let at = order.iter().position(|entry| entry.0 == name).unwrap();
                let before: usize = order[..at].iter().map(|entry| entry.1 * layers).sum();
                (vocabulary * d + before + layer.unwrap() * order[at].1, order[at].1)
            }
        };
        let numbers = &numbers[start..start + len];
        match name {
            "attention.q_proj" | "attention.k_proj" => halves_apart(numbers, head, d),
            _ => numbers.to_vec(),
        }
    })
}

/// The text of tokens after the one that begins a text, by `tok512.bin`: the longest length, then score, length and
/// bytes of each piece.
fn text(folder: &Path, ids: &[u32]) -> String {
    let bytes = std::fs::read(folder.join("tok512.bin")).unwrap();
    let (mut pieces, mut at) = (Vec::new(), 4);
    while at < bytes.len() {
        let len = i32_at(&bytes, at + 4);
        pieces.push(&bytes[at + 8..at + 8 + len]);
        at += 8 + len;
    }
    let mut out = Vec::new();
    for (place, id) in ids.iter().enumerate() {
        let piece = pieces[*id as usize];
        let byte = piece.strip_prefix(b"<0x").and_then(|rest| rest.strip_suffix(b">"));
        match byte {
            Some(hex) => out.push(u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap()),
            // The first piece loses the blank that every word begins with.
            None if place == 0 => out.extend(piece.strip_prefix(b" ").unwrap_or(piece)),
            None => out.extend(piece),
        }
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn the_text_of_its_own_program() {
    let Some(folder) = shared("models/stories260K") else { return };
    let expected = std::fs::read_to_string(folder.join("expected_greedy.txt")).unwrap();
    let model = arrays(&folder).model();
    let ids = greedy(&model, &[BOS], TOKENS);
    assert_eq!(text(&folder, &ids), expected);

    // One pass over the whole text chooses the same tokens.
    let input = [&[BOS], &ids[..TOKENS - 1]].concat();
    let logits = logits(&model, &input);
    let chosen: Vec<u32> = (0..TOKENS).map(|row| argmax(logits.row(row))).collect();
    assert_eq!(chosen, ids);
}

#[test]
fn rows_in_another_order_are_another_model() {
    let Some(folder) = shared("models/stories260K") else { return };
    let expected = std::fs::read_to_string(folder.join("expected_greedy.txt")).unwrap();
    let mut arrays = arrays(&folder);
    let (head, d) = (arrays.config.head_dim, arrays.config.d_model);
    let key = arrays.specs.iter().position(|spec| spec.name == "layers.2.attention.k_proj.weight").unwrap();
    arrays.values[key] = halves_apart(&arrays.values[key], head, d);
    assert_ne!(text(&folder, &greedy(&arrays.model(), &[BOS], TOKENS)), expected);
}

#[test]
fn every_format_brings_the_same_model_back() {
    let Some(folder) = shared("models/stories260K") else { return };
    let arrays = arrays(&folder);
    let model = arrays.model();
    let ids = greedy(&model, &[BOS], TOKENS);
    let expected = logits(&model, &ids);
    let scratch = tempfile::tempdir().unwrap();
    for (name, target) in [
        ("stories.gguf", Target::Gguf { mix: None }),
        ("huggingface", Target::HuggingFace { experts: Experts::Separate, dtype: None }),
        ("olmo", Target::Olmo { dtype: None }),
    ] {
        let path = scratch.path().join(name);
        let companions = Companions::named("stories260K");
        Conversion::plan(&arrays, &companions, target).unwrap().run(&path, false, &|_| {}).unwrap();
        let back = Checkpoint::open(&path).unwrap().load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
        let same = logits(&back, &ids).iter().zip(expected.iter()).all(|(x, y)| x.to_bits() == y.to_bits());
        assert!(same, "{name}: the logits have other bits");
        assert_eq!(greedy(&back, &[BOS], TOKENS), ids, "{name}");
    }
}

#[test]
fn narrower_numbers_know_the_text_almost_as_well() {
    let Some(folder) = shared("models/stories260K") else { return };
    let arrays = arrays(&folder);
    let model = arrays.model();
    let story = [&[BOS][..], &greedy(&model, &[BOS], TOKENS)].concat();
    let before = mean(&surprise(&model, &story));
    let scratch = tempfile::tempdir().unwrap();
    for mix in Mix::all() {
        let path = scratch.path().join(mix.name());
        let companions = Companions::named("stories260K");
        let target = Target::Gguf { mix: Some(mix) };
        Conversion::plan(&arrays, &companions, target).unwrap().run(&path, false, &|_| {}).unwrap();
        let back = Checkpoint::open(&path).unwrap().load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
        let change = mean(&surprise(&back, &story)) - before;
        println!("{}: {change:+.4} nats a token", mix.name());
        // About four times what each costs here.
        let bound = match mix.name().split('_').next() {
            Some("f32") => 0.0,
            Some("f16" | "bf16") => 0.001,
            Some("q8" | "q6") => 0.01,
            Some("q5") => 0.04,
            _ => 0.25,
        };
        assert!(change.abs() <= bound, "{}: {change:+} nats a token, expected {bound} at most", mix.name());
    }
}
