//! Contexts and continuations as tokens, against lm-evaluation-harness' own functions.

use std::path::Path;

use olmoe_data::{Tokenizer, Vocabulary};
use olmoe_eval::{Beginning, Encoding, EncodingError, TokenPair, encode, encode_after_examples};
use serde_json::{Value, json};

const EOS: u32 = 50279;

/// OLMoE's tokenizer as it is, and one that puts token 1 before every text.
fn tokenizers() -> Option<[(Tokenizer, Beginning); 2]> {
    let name = "../../../shared/data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let Ok(json) = std::fs::read(&path) else {
        println!("skipped: no tokenizers in ../shared/data beside the checkout");
        return None;
    };
    let mut with_bos: Value = serde_json::from_slice(&json).expect("JSON");
    with_bos["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [
            { "SpecialToken": { "id": "<|padding|>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
        ],
        "pair": [
            { "SpecialToken": { "id": "<|padding|>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
            { "Sequence": { "id": "B", "type_id": 0 } },
        ],
        "special_tokens": { "<|padding|>": { "id": "<|padding|>", "ids": [1], "tokens": ["<|padding|>"] } },
    });
    let plain = Tokenizer::from_json(&json).expect("a tokenizer");
    let bos = Tokenizer::from_json(with_bos.to_string().as_bytes()).expect("a tokenizer");
    assert_eq!((plain.before_text(), bos.before_text()), (&[][..], &[1][..]));
    let before = bos.before_text().to_vec();
    let none = Beginning { eos: Some(EOS), ..Beginning::default() };
    Some([(plain, none), (bos, Beginning { before, bos: Some(1), eos: Some(EOS) })])
}

fn pair(value: &Value) -> Option<TokenPair> {
    let ids =
        |at: usize| value[at].as_array().map(|ids| ids.iter().map(|id| id.as_u64().expect("an id") as u32).collect());
    Some(TokenPair { context: ids(0)?, continuation: ids(1)? })
}

/// Every pair that lm-evaluation-harness scores has its tokens; what it fails on is never left without a continuation.
#[test]
fn joint_pairs_are_those_of_the_harness() {
    let Some([plain, bos]) = tokenizers() else { return };
    let golden = include_str!("../../../tests/golden/evaluation/pairs.jsonl");
    let (mut same, mut own) = (0, 0);
    for line in golden.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |key: &str| line[key].as_str().expect("a text");
        let (context, continuation) = (text("context"), text("continuation"));
        for (key, (tokenizer, beginning)) in [("joint", &plain), ("joint_bos", &bos)] {
            let found = encode(tokenizer, Encoding::Joint, context, continuation, beginning);
            match pair(&line[key]) {
                // The harness scores white space of the context as a continuation, where there is none.
                Some(_) if continuation.is_empty() => {
                    assert!(matches!(found, Err(EncodingError::NoContinuation { .. })), "{line}");
                }
                Some(expected) => {
                    assert_eq!(found.expect("a pair"), expected, "{key}: {line}");
                    same += 1;
                }
                None if continuation.is_empty() => assert!(found.is_err(), "{line}"),
                None => {
                    let TokenPair { context, continuation } = found.expect("a pair");
                    assert!(!context.is_empty() && !continuation.is_empty(), "{line}");
                    own += 1;
                }
            }
        }
    }
    assert!(same > 3000 && own > 50, "{same} pairs as the harness has them, {own} that it fails on");
}

/// lm-evaluation-harness #337: the context ends with the token before the continuation.
#[test]
fn the_context_is_whole() {
    let Some([(tokenizer, beginning), _]) = tokenizers() else { return };
    for encoding in [Encoding::Separate, Encoding::Joint, Encoding::Foundry] {
        let TokenPair { context, continuation } =
            encode(&tokenizer, encoding, "The sky is", " blue today", &beginning).expect("a pair");
        assert_eq!(tokenizer.decode(&context, false).expect("a text"), "The sky is");
        assert_eq!(tokenizer.decode(&continuation, false).expect("a text"), " blue today");
        assert_eq!((context.len(), continuation.len()), (3, 2));
    }
}

/// lm-evaluation-harness #1297, #1053, #4055: a token that spans context and continuation.
#[test]
fn a_continuation_is_never_empty() {
    let Some(both) = tokenizers() else { return };
    for (tokenizer, beginning) in &both {
        // `e` and a combining accent are one character, and `  ` and more spaces are one token.
        for (context, continuation) in
            [("e", "\u{301}"), ("caf", "e\u{301}"), ("e\u{301}", "\u{302}"), ("x  ", "  "), (" ", " ")]
        {
            let pair = encode(tokenizer, Encoding::Joint, context, continuation, beginning).expect("a pair");
            assert!(!pair.context.is_empty() && !pair.continuation.is_empty(), "{context:?} {continuation:?} {pair:?}");
        }
        for encoding in [Encoding::Separate, Encoding::Joint, Encoding::Foundry] {
            for context in ["", "x", "x "] {
                let error = encode(tokenizer, encoding, context, "", beginning).unwrap_err();
                assert!(error.to_string().contains("the continuation \"\" has no tokens"), "{error}");
            }
        }
    }
}

/// The last word of a context without tokens is the token that begins a text, or ends a document.
#[test]
fn contexts_without_tokens() {
    let Some([(plain, none), (bos, begin)]) = tokenizers() else { return };
    for encoding in [Encoding::Separate, Encoding::Joint, Encoding::Foundry] {
        let first = |tokenizer, beginning| encode(tokenizer, encoding, "", " x", beginning).expect("a pair").context;
        assert_eq!((first(&plain, &none), first(&bos, &begin)), (vec![EOS], vec![1]));
        let error = encode(&plain, encoding, "", " x", &Beginning::default()).unwrap_err();
        assert!(matches!(error, EncodingError::NoContext { .. }), "{error}");
    }
}

#[test]
fn what_goes_before_a_context() {
    let Some([(plain, none), (bos, begin)]) = tokenizers() else { return };
    let ids = |text: &str| plain.encode(text).expect("ids");
    let context = |tokenizer: &Tokenizer, beginning: &Beginning, encoding, text: &str| {
        encode(tokenizer, encoding, text, " x", beginning).expect("a pair").context
    };
    for encoding in [Encoding::Separate, Encoding::Joint, Encoding::Foundry] {
        assert_eq!(context(&plain, &none, encoding, "a b"), ids("a b"));
        assert_eq!(context(&bos, &begin, encoding, "a b"), [&[1][..], &ids("a b")].concat());
        assert_eq!(context(&bos, &begin, encoding, "<|padding|>a b"), ids("<|padding|>a b"), "once");
    }
    // OLMo's evaluation adds the token if there is one, the others only if the tokenizer adds it.
    let named = Beginning { bos: Some(1), ..none.clone() };
    assert_eq!(context(&plain, &named, Encoding::Separate, "a"), [&[1][..], &ids("a")].concat());
    assert_eq!(context(&plain, &named, Encoding::Joint, "a"), ids("a"));
    assert_eq!(context(&plain, &named, Encoding::Foundry, "a"), ids("a"));
}

/// lm-evaluation-harness #531, t-zero #29: where the space goes.
#[test]
fn leading_and_trailing_spaces() {
    let Some([(tokenizer, beginning), _]) = tokenizers() else { return };
    let ids = |text: &str| tokenizer.encode(text).expect("ids");
    let pair = |encoding, context: &str, continuation: &str| {
        let TokenPair { context, continuation } =
            encode(&tokenizer, encoding, context, continuation, &beginning).expect("a pair");
        (context, continuation)
    };
    assert_eq!(pair(Encoding::Joint, "Answer: ", "yes"), (ids("Answer:"), ids(" yes")));
    assert_eq!(pair(Encoding::Separate, "Answer: ", "yes"), (ids("Answer: "), ids("yes")));
    assert_eq!(pair(Encoding::Foundry, "Answer: \n", "yes"), (ids("Answer:"), ids(" yes")));
    assert_eq!(pair(Encoding::Foundry, "Answer:", " yes"), (ids("Answer:"), ids(" yes")));
    // A byte is not a token with a space.
    let bytes = Tokenizer::from_vocabulary(&Vocabulary::bytes()).expect("a tokenizer");
    let found = encode(&bytes, Encoding::Foundry, "a", "yes", &Beginning::default()).expect("a pair");
    assert_eq!(found.continuation, bytes.encode("yes").expect("ids"));
    // The examples and the question apart: a dot and a line break may be one token.
    let pair = encode_after_examples(&tokenizer, "a  ", "  b ", "c", &beginning).expect("a pair");
    assert_eq!((pair.context, pair.continuation), ([ids("a  "), ids("  b")].concat(), ids(" c")));
}

/// mlx-lm #1902: truncation takes from the context alone; LLM Foundry leaves room for the whole continuation.
#[test]
fn contexts_are_cut_from_the_left() {
    let pair = TokenPair { context: (0..10).collect(), continuation: vec![20, 21, 22] };
    let cut = |encoding, limit| {
        let mut pair = pair.clone();
        pair.cut(encoding, limit);
        assert_eq!(pair.continuation, [20, 21, 22]);
        pair.context
    };
    assert_eq!(cut(Encoding::Separate, 12), pair.context);
    assert_eq!(cut(Encoding::Joint, 8), [4, 5, 6, 7, 8, 9]);
    assert_eq!(cut(Encoding::Foundry, 8), [5, 6, 7, 8, 9]);
    assert_eq!(cut(Encoding::Foundry, 3), [9]);
    assert_eq!(cut(Encoding::Separate, 1), [9]);
}
