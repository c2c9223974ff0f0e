//! What the tests share: the folder of real data, which may be missing, and a small tokenizer made by hand.
#![allow(dead_code)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use olmoe_data::{Pre, TokenKind, Tokenizer, Vocabulary};
use serde_json::{Value, json};

/// The two real tokenizers: the name in the golden files, and the file.
pub(crate) const REAL: [(&str, &str); 2] =
    [("olmoe", "allenai_gpt-neox-olmo-dolma-v1_5.json"), ("dolma2", "allenai_dolma2.json")];

/// A file of the shared data, or nothing and a line about it.
pub(crate) fn data(path: &str) -> Option<PathBuf> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(path);
    if !file.exists() {
        println!("skipped: {} is missing", file.display());
        return None;
    }
    Some(file)
}

/// A real tokenizer, and the library's own of the same file; each is read once.
pub(crate) fn real(file: &str) -> Option<&'static (Tokenizer, tokenizers::Tokenizer)> {
    static READ: [OnceLock<(Tokenizer, tokenizers::Tokenizer)>; 2] = [OnceLock::new(), OnceLock::new()];
    let path = data(&format!("tokenizers/{file}"))?;
    let read = || (Tokenizer::from_file(&path).unwrap(), tokenizers::Tokenizer::from_file(&path).unwrap());
    Some(READ[usize::from(file == REAL[1].1)].get_or_init(read))
}

/// The rows of the golden encodings.
pub(crate) fn golden() -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(data("tokenizers/golden_encodings.jsonl")?).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The texts of a file of documents.
pub(crate) fn documents(path: &Path) -> Vec<String> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let document = |line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    text.lines().map(document).collect()
}

/// The byte-level letters, by byte; written down here a second time.
pub(crate) fn letters() -> Vec<String> {
    let mut next = 255;
    (0..=255u32)
        .map(|byte| {
            let printed = (33..127).contains(&byte) || (161..=255).contains(&byte) && byte != 173;
            next += u32::from(!printed);
            char::from_u32(if printed { byte } else { next }).unwrap().to_string()
        })
        .collect()
}

/// A vocabulary of the bytes, six merges, a run of spaces and an end of text.
pub(crate) fn tiny_vocabulary(pre: Pre) -> Vocabulary {
    let mut tokens = letters();
    let merges = ["t h", "th e", "Ġ the", "l o", "lo w", "Ġ Ġ"];
    tokens.extend(["th", "the", "Ġthe", "lo", "low", "ĠĠ", "   ", "<|endoftext|>"].map(str::to_owned));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[262] = TokenKind::UserDefined;
    kinds[263] = TokenKind::Control;
    Vocabulary {
        model: "gpt2".into(),
        pre,
        tokens,
        kinds,
        merges: merges.map(str::to_owned).to_vec(),
        bos: None,
        eos: Some(263),
        pad: None,
        unk: None,
        ends: Vec::new(),
        add_bos: false,
        chat_template: None,
    }
}

/// The same as a tokenizer.json, with the pre-tokenizer of GPT-2.
pub(crate) fn tiny_json() -> Value {
    let Vocabulary { tokens, merges, .. } = tiny_vocabulary(Pre::Gpt2);
    let vocab: serde_json::Map<String, Value> = tokens.into_iter().zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(262, "   ", false), added(263, "<|endoftext|>", true)],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    })
}

pub(crate) fn tiny() -> Tokenizer {
    Tokenizer::from_json(tiny_json().to_string().as_bytes()).unwrap()
}
