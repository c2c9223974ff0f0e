//! Ids and texts: of the golden encodings, of whole corpora, and against the tokenizers library on made-up texts.

mod shared;

use olmoe_data::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::{REAL, data, documents, golden, ids, real, tiny, tiny_json};

#[test]
fn golden_encodings_and_decodings() {
    let Some(rows) = golden() else { return };
    assert_eq!(rows.len(), 160);
    for (name, file) in REAL {
        let Some((tokenizer, _)) = real(file) else { return };
        let texts: Vec<&str> = rows.iter().map(|row| row["text"].as_str().unwrap()).collect();
        let batch = tokenizer.encode_batch(&texts).unwrap();
        for ((row, text), from_batch) in rows.iter().zip(&texts).zip(batch) {
            let expected = ids(&row[name]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(from_batch, expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, false).unwrap(), row[format!("{name}_decoded")], "{name}: {text:?}");
        }
    }
}

#[test]
fn known_ids_of_olmoe() {
    let Some((tokenizer, _)) = real(REAL[0].1) else { return };
    for (text, expected) in [
        ("A sample test", &[34, 3410, 1071][..]),
        ("生活的真谛是", &[20025, 46549, 5225, 48561, 33656, 238, 12105]),
        ("<|assistant|>\n", &[29, 93, 515, 5567, 49651, 187]),
        ("Hi  Hello", &[12764, 50276, 12092]),
        ("<|endoftext|>", &[50279]),
        (&" ".repeat(26), &[50254, 50276]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
    }
    assert_eq!(
        (tokenizer.size(), tokenizer.id_of("<|endoftext|>"), tokenizer.id_of("no such token")),
        (50280, Some(50279), None)
    );
    assert_eq!(tokenizer.token_bytes(50276).as_deref(), Some(&b"  "[..]));
    assert_eq!(tokenizer.token_bytes(50280), None);
    assert_eq!(tokenizer.decode(&[50279, 12764, 60000, 50279], true).unwrap(), "Hi");
    assert_eq!((tokenizer.is_special(50279), tokenizer.is_special(50276)), (true, false));
}

/// The corpora that are always encoded; with `OLMOE_SLOW_TESTS=1` it is all of them.
const QUICK: [&str; 2] = ["childrens_stories_asp", "wiki_multilingual_olmoe"];

#[test]
fn digests_of_corpora() {
    let Some(path) = data("tokenizers/corpus_token_digests.json") else { return };
    let slow = std::env::var("OLMOE_SLOW_TESTS").is_ok_and(|value| value == "1");
    let digests: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizers: Vec<(&str, &Tokenizer)> =
        REAL.iter().filter_map(|(name, file)| Some((*name, &real(file)?.0))).collect();
    let mut total = 0;
    for entry in digests["files"].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        if !slow && !QUICK.iter().any(|quick| file.contains(quick)) {
            continue;
        }
        let Some(path) = data(file.strip_prefix("curated/").unwrap()) else { return };
        let texts = documents(&path);
        assert_eq!(texts.len() as u64, entry["docs"].as_u64().unwrap());
        for (name, tokenizer) in &tokenizers {
            let mut hash = Sha256::new();
            let mut tokens = 0;
            for document in tokenizer.encode_batch(&texts).unwrap() {
                tokens += document.len() as u64;
                hash.update(document.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            }
            let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(tokens, entry[format!("{name}_tokens")].as_u64().unwrap(), "{file}, {name}");
            assert_eq!(hex, entry[format!("{name}_sha256_u32le")], "{file}, {name}");
            total += tokens;
        }
    }
    println!("{total} tokens are those of the reference");
    assert!(total > 500_000);
}

/// What may come before and after a character: everything that the expressions for words treat on its own.
const CONTEXTS: [(&str, &str); 5] = [("a", " b"), (" ", "a1"), ("'", "s "), ("1", "\n "), ("  ", "\t'LL")];

#[test]
fn every_kind_of_character_is_encoded_as_the_library_does() {
    for (name, file) in REAL {
        let Some((tokenizer, library)) = real(file) else { return };
        let mut text = String::new();
        let common = char::from(0)..='\u{3400}';
        for letter in common.step_by(5).chain(('\u{3400}'..=char::MAX).step_by(1009)) {
            let (before, after) = CONTEXTS[letter as usize % CONTEXTS.len()];
            text.extend([before, letter.encode_utf8(&mut [0; 4]), after]);
            if text.len() > 4000 {
                let expected = library.encode_fast(text.as_str(), false).unwrap();
                assert_eq!(tokenizer.encode(&text).unwrap(), expected.get_ids(), "{name}: up to {letter:?}");
                text.clear();
            }
        }
    }
}

fn texts() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{85}",
        "'",
        "'s",
        "'RE",
        "'ll",
        "'ſ",
        "a",
        "the",
        " low",
        "Z",
        "é",
        "e\u{301}",
        "\u{301}",
        "ﬁ",
        "한",
        "각",
        "ᄒ\u{1161}",
        "\u{958}",
        "真",
        "か\u{3099}",
        "٣",
        "½",
        "Ⅷ",
        "12345",
        "9",
        "-",
        "...",
        "🚀",
        "👩\u{200d}🔬",
        "<|endoftext|>",
        "<|padding|>",
        "<|endo",
        "|||IP_ADDRESS|||",
        "|||",
        "_",
        "\u{0}",
        "\u{10ffff}",
    ]);
    prop_oneof![prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat()), any::<String>()]
}

#[test]
fn made_up_texts_are_encoded_as_the_library_does() {
    let real: Vec<_> = REAL.iter().filter_map(|(_, file)| real(file)).collect();
    let digits = r#"{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
        {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#;
    let mut smollm = tiny_json();
    smollm["pre_tokenizer"] = serde_json::from_str(digits).unwrap();
    smollm["model"]["ignore_merges"] = true.into();
    let made = [tiny_json(), smollm].map(|json| {
        let json = json.to_string();
        (Tokenizer::from_json(json.as_bytes()).unwrap(), tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap())
    });
    let all: Vec<_> = real.iter().copied().chain(&made).collect();
    proptest!(config(100), |(text in texts())| {
        for (tokenizer, library) in &all {
            let expected = library.encode_fast(text.as_str(), false).unwrap();
            let found = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&found, expected.get_ids());
            for skip in [false, true] {
                let decoded = tokenizer.decode(&found, skip).unwrap();
                prop_assert_eq!(&decoded, &library.decode(&found, skip).unwrap());
                prop_assert_eq!(&streamed(tokenizer, &found, skip), &decoded);
            }
            let pieces = tokenizer.encode_with_offsets(&text).unwrap();
            prop_assert_eq!(pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(), found);
            let mut end = 0;
            for piece in &pieces {
                prop_assert!(piece.start <= end && piece.end >= end && piece.end <= text.len());
                end = piece.end;
            }
            prop_assert_eq!(end, text.len());
        }
    });
}

/// So many cases, and no file of failures.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What a stream makes of tokens, one by one.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn streaming_gives_what_decoding_gives_and_whole_characters_only() {
    let Some(rows) = golden() else { return };
    for (name, file) in REAL {
        let Some((tokenizer, _)) = real(file) else { return };
        for row in &rows {
            let (ids, whole) = (ids(&row[name]), row[format!("{name}_decoded")].as_str().unwrap());
            let mut stream = tokenizer.stream(false);
            let mut text = String::new();
            for id in &ids {
                text.push_str(&stream.push(*id));
                assert!(whole.starts_with(&text), "{name}: {text:?} begins {whole:?}");
            }
            text.push_str(&stream.finish());
            assert_eq!(text, whole);
            // A text whose last token ends within a character.
            for end in 0..ids.len() {
                assert_eq!(streamed(tokenizer, &ids[..end], false), tokenizer.decode(&ids[..end], false).unwrap());
            }
        }
    }
}

#[test]
fn streams_of_any_bytes() {
    let tokenizer = tiny();
    // The ids of the tiny vocabulary are the bytes.
    let bytes = prop_oneof![
        any::<u32>().prop_map(|byte| byte % 256),
        prop::sample::select(vec![0xE7, 0x9C, 0x9F, 0xF0, 0x9F, 0xC3, 0xED, 0xA0, 263, 999])
    ];
    proptest!(config(2000), |(ids in prop::collection::vec(bytes, 0..12))| {
        prop_assert_eq!(streamed(&tokenizer, &ids, false), tokenizer.decode(&ids, false).unwrap());
    });
    let mut stream = tokenizer.stream(false);
    assert_eq!([0xE7, 0x9C].map(|id| stream.push(id)), ["", ""]);
    assert_eq!(stream.push(0x9F), "真");
    assert_eq!((stream.push(0xF0), stream.push(0x41)), (String::new(), "\u{fffd}A".to_owned()));
    assert_eq!(stream.push(0xF0), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn offsets_name_the_text() {
    let tokenizer = tiny();
    let text = "the low   真<|endoftext|>";
    let pieces = tokenizer.encode_with_offsets(text).unwrap();
    let parts: Vec<_> = pieces.iter().map(|piece| (piece.id, &text.as_bytes()[piece.start..piece.end])).collect();
    let expected: [(u32, &[u8]); 8] = [
        (257, b"the"),
        (32, b" "),
        (260, b"low"),
        (262, b"   "),
        (0xE7, &[0xE7]),
        (0x9C, &[0x9C]),
        (0x9F, &[0x9F]),
        (263, b"<|endoftext|>"),
    ];
    assert_eq!(parts, expected);
    let Some((olmoe, _)) = real(REAL[0].1) else { return };
    // Three bytes that normalise to a character of two bytes belong to one token.
    let text = "e\u{301}te\u{301} <|endoftext|>q\u{301}";
    let pieces = olmoe.encode_with_offsets(text).unwrap();
    let ranges: Vec<_> = pieces.iter().map(|piece| (piece.start, piece.end)).collect();
    assert_eq!(ranges[..4], [(0, 7), (7, 8), (8, 21), (21, 22)], "{pieces:?}");
    assert_eq!(ranges.last().map(|(_, end)| *end), Some(text.len()));
}

#[test]
fn long_words_and_long_texts() {
    let tokenizer = tiny();
    for text in ["a".repeat(100_000), " ".repeat(100_001), "lo".repeat(50_000), "low the ".repeat(20_000)] {
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    let batch: Vec<String> = (0..300).map(|n| "the low ".repeat(n)).collect();
    let together = tokenizer.encode_batch(&batch).unwrap();
    for (text, ids) in batch.iter().zip(together) {
        assert_eq!(tokenizer.encode(text).unwrap(), ids);
    }
    assert!(tokenizer.encode_batch::<&str>(&[]).unwrap().is_empty());
}
