//! Vocabularies of GGUF files: there, back, and what is wrong with them.

mod shared;

use olmoe_data::{Pre, SpecialTokenSources, SpecialTokens, TokenKind, Tokenizer, Vocabulary};
use shared::{REAL, data, golden, ids, real, tiny, tiny_vocabulary};

/// The special tokens of what a GGUF file holds.
fn special_of(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> SpecialTokens {
    let sources = SpecialTokenSources { vocabulary: Some(vocabulary), ..Default::default() };
    SpecialTokens::resolve(tokenizer, &sources).unwrap().0
}

#[test]
fn there_and_back_gives_the_same_ids() {
    let Some(rows) = golden() else { return };
    for ((name, file), (pre, rows_of_model)) in REAL.into_iter().zip([(Pre::Olmo, 50304), (Pre::Dbrx, 100352)]) {
        let Some((tokenizer, _)) = real(file) else { return };
        let special = SpecialTokens { eos: tokenizer.id_of("<|endoftext|>"), pad: Some(1), ..Default::default() };
        let vocabulary = tokenizer.to_vocabulary(rows_of_model, &special).unwrap();
        assert_eq!(
            (vocabulary.pre, vocabulary.tokens.len(), vocabulary.kinds.len()),
            (pre, rows_of_model, rows_of_model)
        );
        assert_eq!((vocabulary.eos, vocabulary.bos, vocabulary.pad), (special.eos, None, Some(1)));
        assert_eq!(vocabulary.tokens[rows_of_model - 1], format!("[PAD{}]", rows_of_model - 1));
        let back = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        let found = special_of(&back, &vocabulary);
        assert_eq!((found.eos, found.bos, found.pad, found.unk), (special.eos, None, Some(1), None));
        assert_eq!(back.size(), tokenizer.size());
        for row in &rows {
            let (text, expected) = (row["text"].as_str().unwrap(), ids(&row[name]));
            assert_eq!(back.encode(text).unwrap(), expected, "{text:?}");
            assert_eq!(back.decode(&expected, false).unwrap(), row[format!("{name}_decoded")]);
        }
    }
}

#[test]
fn kinds_of_olmoe() {
    let Some((tokenizer, _)) = real(REAL[0].1) else { return };
    let vocabulary = tokenizer.to_vocabulary(50304, &SpecialTokens::default()).unwrap();
    for (id, text, kind) in [
        (0, "|||IP_ADDRESS|||", TokenKind::UserDefined),
        (1, "<|padding|>", TokenKind::Control),
        (12092, "Hello", TokenKind::Normal),
        (50276, "  ", TokenKind::UserDefined),
        (50279, "<|endoftext|>", TokenKind::Control),
        (50280, "[PAD50280]", TokenKind::Unused),
    ] {
        assert_eq!((vocabulary.tokens[id].as_str(), vocabulary.kinds[id]), (text, kind));
    }
    assert_eq!((vocabulary.merges.len(), vocabulary.merges[1].as_str()), (50009, "Ġ t"));
}

#[test]
fn gpt_neox_of_a_gguf_file() {
    let (Some(path), Some(rows)) = (data("tokenizers/ggml-vocab-gpt-neox.gguf"), golden()) else { return };
    let mut vocabulary = vocabulary_of(&path);
    assert_eq!((vocabulary.tokens.len(), vocabulary.merges.len(), vocabulary.pre), (50432, 50009, Pre::Default));
    assert_eq!((vocabulary.bos, vocabulary.eos), (Some(0), Some(0)));
    // The same merges as OLMoE's: the same ids, when words are cut the same way.
    vocabulary.pre = Pre::Olmo;
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let mut compared = 0;
    for row in rows.iter().filter(|row| !row["text"].as_str().unwrap().contains(['|', '[', '<'])) {
        assert_eq!(tokenizer.encode(row["text"].as_str().unwrap()).unwrap(), ids(&row["olmoe"]), "{}", row["text"]);
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
    assert_eq!(tokenizer.encode("a<|endoftext|>").unwrap(), [66, 0]);
    // Without the name, words are cut in another way: punctuation first, then digits in threes.
    vocabulary.pre = Pre::Default;
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let words = |text: &str| {
        let ids = tokenizer.encode(text).unwrap();
        ids.iter().map(|id| tokenizer.decode(&[*id], false).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(words("1234567"), ["123", "456", "7"]);
    assert_eq!(words("a  b"), ["a", "  ", "b"]);
    assert_eq!(words(" ..."), [" ", "..."]);
}

#[test]
fn ways_to_cut_words_have_names() {
    for pre in [Pre::Default, Pre::Gpt2, Pre::Olmo, Pre::Smollm, Pre::Dbrx, Pre::LlamaBpe, Pre::Qwen2] {
        assert_eq!(Pre::from_name(Some(pre.name())).unwrap(), pre);
        let vocabulary = tiny_vocabulary(pre);
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        let special = special_of(&tokenizer, &vocabulary);
        assert_eq!(tokenizer.to_vocabulary(264, &special).unwrap(), vocabulary, "{pre:?}");
        assert_eq!(tokenizer.encode("the low   <|endoftext|>").unwrap(), [257, 32, 260, 262, 263], "{pre:?}");
    }
    assert_eq!(Pre::from_name(None).unwrap(), Pre::Default);
    assert_eq!(Pre::from_name(Some("mpt")).unwrap(), Pre::Olmo);
    for code in -1..8 {
        assert_eq!(TokenKind::from_code(code).map(TokenKind::code), Some(code).filter(|code| (1..=6).contains(code)));
    }
}

#[test]
fn bad_vocabularies_are_errors() {
    type Edit = fn(&mut Vocabulary);
    let cases: [(&str, Edit, &str); 8] = [
        ("sentencepiece", |v| v.model = "llama".into(), "the model \"llama\"; supported is \"gpt2\""),
        ("same text", |v| v.tokens[3] = "a".into(), "the tokens 3 and 97 have the same text \"a\""),
        ("kinds", |v| v.kinds.truncate(9), "264 tokens but 9 token types"),
        ("merge without a space", |v| v.merges[2] = "the".into(), "merge 2 is \"the\"; expected two tokens"),
        ("merge of one part", |v| v.merges[2] = "the ".into(), "merge 2 is \"the \""),
        ("empty merge", |v| v.merges[0] = String::new(), "merge 0 is \"\""),
        ("merge of nothing known", |v| v.merges[5] = "z z".into(), "merge 5 (\"z\" with \"z\") needs the token \"zz\""),
        ("merge of what is not there", |v| v.merges[4] = "xy w".into(), "needs the token \"xy\""),
    ];
    for (name, edit, expected) in cases {
        let mut vocabulary = tiny_vocabulary(Pre::Gpt2);
        edit(&mut vocabulary);
        let error =
            Tokenizer::from_vocabulary(&vocabulary).err().unwrap_or_else(|| panic!("{name}: no error")).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let error = Pre::from_name(Some("deepseek-llm")).unwrap_err().to_string();
    assert!(error.contains("\"deepseek-llm\" is not supported; supported are default, gpt-2, gpt2, olmo"), "{error}");
    // A token that was added to the tokenizer but not to the model is left out.
    let special = SpecialTokens::default();
    let mut json = shared::tiny_json();
    let mut added = json["added_tokens"][1].clone();
    (added["id"], added["content"]) = (264.into(), "[PAD]".into());
    json["added_tokens"].as_array_mut().unwrap().push(added);
    let with_pad = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(with_pad.to_vocabulary(264, &special).unwrap(), tiny().to_vocabulary(264, &special).unwrap());
    for (rows, expected) in [(263, "264 ids, but the model only 263 rows"), (usize::MAX, "more than the limit")] {
        let error = tiny().to_vocabulary(rows, &special).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The vocabulary of a GGUF file, which is trusted: a reader for these tests.
fn vocabulary_of(path: &std::path::Path) -> Vocabulary {
    struct Reader(Vec<u8>, usize);
    enum Value {
        Number(u64),
        Text(String),
        List(Vec<Value>),
    }
    impl Reader {
        fn number(&mut self, bytes: usize) -> u64 {
            self.1 += bytes;
            let mut number = [0; 8];
            number[..bytes].copy_from_slice(&self.0[self.1 - bytes..self.1]);
            u64::from_le_bytes(number)
        }
        fn value(&mut self, kind: u64) -> Value {
            match kind {
                0 | 1 | 7 => Value::Number(self.number(1)),
                2 | 3 => Value::Number(self.number(2)),
                4..=6 => Value::Number(self.number(4)),
                10..=12 => Value::Number(self.number(8)),
                8 => {
                    let length = self.number(8) as usize;
                    self.1 += length;
                    Value::Text(String::from_utf8(self.0[self.1 - length..self.1].to_vec()).unwrap())
                }
                9 => {
                    let (kind, length) = (self.number(4), self.number(8));
                    Value::List((0..length).map(|_| self.value(kind)).collect())
                }
                other => panic!("type {other}"),
            }
        }
    }
    let mut reader = Reader(std::fs::read(path).unwrap(), 16);
    let pairs = reader.number(8);
    let mut values = std::collections::HashMap::new();
    for _ in 0..pairs {
        let Value::Text(key) = reader.value(8) else { unreachable!() };
        let kind = reader.number(4);
        values.insert(key, reader.value(kind));
    }
    let list = |key: &str| match values.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::List(list)) => list.as_slice(),
        _ => &[],
    };
    let texts = |key: &str| {
        let text = |value: &Value| if let Value::Text(text) = value { text.clone() } else { unreachable!() };
        list(key).iter().map(text).collect::<Vec<_>>()
    };
    let id = |key: &str| match values.get(&format!("tokenizer.ggml.{key}_token_id")) {
        Some(Value::Number(id)) => Some(*id as u32),
        _ => None,
    };
    let text = |key: &str| match values.get(key) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let kind = |value: &Value| {
        if let Value::Number(code) = value { TokenKind::from_code(*code as i32).unwrap() } else { unreachable!() }
    };
    Vocabulary {
        model: text("tokenizer.ggml.model").unwrap(),
        pre: Pre::from_name(text("tokenizer.ggml.pre").as_deref()).unwrap(),
        tokens: texts("tokens"),
        kinds: list("token_type").iter().map(kind).collect(),
        merges: texts("merges"),
        bos: id("bos"),
        eos: id("eos"),
        pad: id("padding"),
        unk: id("unknown"),
        ends: Vec::new(),
        add_bos: false,
        chat_template: text("tokenizer.chat_template"),
    }
}

/// By hand: the file in `OLMOE_GGUF`, against ids that another program gave for the texts: `OLMOE_GGUF_IDS` has one JSON
/// object `{"text", "ids"}` a line.
#[test]
fn a_gguf_file_as_another_program_reads_it() {
    let (Ok(gguf), Ok(rows)) = (std::env::var("OLMOE_GGUF"), std::env::var("OLMOE_GGUF_IDS")) else {
        println!("skipped: OLMOE_GGUF and OLMOE_GGUF_IDS are not set");
        return;
    };
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary_of(gguf.as_ref())).unwrap();
    let mut differ = Vec::new();
    let rows = std::fs::read_to_string(rows).unwrap();
    for line in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let found = tokenizer.encode(row["text"].as_str().unwrap()).unwrap();
        if found != ids(&row["ids"]) {
            differ.push(format!("{}: {found:?}, expected {}", row["text"], row["ids"]));
        }
    }
    println!("{} texts", rows.lines().count());
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn a_vocabulary_of_bytes_has_a_token_for_each() {
    let vocabulary = Vocabulary::bytes();
    assert_eq!(vocabulary.tokens[..256], shared::letters());
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let text = "A 生活 of\n\tbytes.";
    assert_eq!(tokenizer.encode(text).unwrap(), text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.encode("a<|endoftext|>").unwrap(), [97, 256]);
}

#[test]
fn a_beginning_of_texts_goes_both_ways() {
    let beginning = |vocabulary: &Vocabulary| Tokenizer::from_vocabulary(vocabulary).unwrap().before_text().to_vec();
    let plain = tiny_vocabulary(Pre::LlamaBpe);
    let with_bos = Vocabulary { bos: Some(263), add_bos: true, ..plain.clone() };
    assert_eq!(beginning(&plain), [0u32; 0]);
    assert_eq!(beginning(&Vocabulary { bos: Some(263), ..plain.clone() }), [0u32; 0]);
    assert_eq!(beginning(&Vocabulary { add_bos: true, ..plain.clone() }), [0u32; 0]);
    let tokenizer = Tokenizer::from_vocabulary(&with_bos).unwrap();
    assert_eq!(tokenizer.before_text(), [263]);
    // The library that reads the file adds it there, too.
    let library = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
    assert_eq!(library.encode("the", true).unwrap().get_ids(), [263, 257]);
    let special = SpecialTokens { bos: Some(263), eos: Some(263), ..SpecialTokens::default() };
    assert_eq!(tokenizer.to_vocabulary(264, &special).unwrap(), with_bos);
    // By default, the token before texts is bos; a GGUF file cannot name another one for that place.
    let nameless = SpecialTokens { bos: None, ..special.clone() };
    assert_eq!(tokenizer.to_vocabulary(264, &nameless).unwrap().bos, Some(263));
    let error = tokenizer.to_vocabulary(264, &SpecialTokens { bos: Some(1), ..special }).unwrap_err().to_string();
    assert!(
        error.contains("puts the tokens [263] before a text") && error.contains("`bos` only, which is 1"),
        "{error}"
    );
}
