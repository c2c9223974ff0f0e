//! Files of fine-tuning data as rows, and rows of every format as what they hold.

use std::io::Write;
use std::path::{Path, PathBuf};

use olmoe_data::instruct::{
    AlpacaPrompt, Content, Conversation, EncodeOptions, EncodeReport, Encoder, Format, InstructError, ReadOptions,
    Record, Records, Sample, Turn,
};
use olmoe_data::{ChatTemplate, ChatTokens, SpecialTokenSources, SpecialTokens, TULU};
use proptest::prelude::*;
use serde_json::{Value, json};

mod shared;
use shared::{data, tiny};

/// An instruction without words, in those of Alpaca.
const EMPTY_INSTRUCTION: &str = "user: Below is an instruction that describes a task. Write a response that appropriately \
                                 completes the request.\n\n### Instruction:\n\n\n### Response:assistant: b";

fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Record>, InstructError> {
    Records::open(path, options)?.collect()
}

/// The rows of a file of this name and content.
fn of_file(name: &str, content: &[u8], options: &ReadOptions) -> Result<Vec<Record>, InstructError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read(&path, options)
}

fn of_row(row: &Value, options: &ReadOptions) -> Result<Content, InstructError> {
    let mut records = of_file("rows.jsonl", row.to_string().as_bytes(), options)?;
    Ok(records.remove(0).content)
}

fn named(format: Format) -> ReadOptions {
    ReadOptions { format: Some(format), ..ReadOptions::default() }
}

/// `role: content` of each turn, with its weight.
fn said(sample: &Sample) -> Vec<String> {
    match sample {
        Sample::Text { prompt, completion } => vec![format!("{prompt}|{completion}")],
        Sample::Conversation(Conversation { turns, .. }) => {
            let shown = |turn: &Turn| {
                let weight = turn.weight.map_or(String::new(), |weight| format!(" *{weight}"));
                format!("{}: {}{weight}", turn.role, turn.content.as_deref().unwrap_or("-"))
            };
            turns.iter().map(shown).collect()
        }
    }
}

fn shown(content: &Content) -> Vec<String> {
    match content {
        Content::Sample(sample) => said(sample),
        Content::Tokens(example) => vec![format!("{:?} {:?}", example.ids, example.weights)],
        Content::Pair(pair) => vec![said(&pair.chosen).join(", "), said(&pair.rejected).join(", ")],
        Content::Labelled(labelled) => vec![said(&labelled.sample).join(", "), labelled.desirable.to_string()],
    }
}

#[test]
fn formats_are_recognised() {
    let with_input = "Below is an instruction that describes a task, paired with an input that provides further context. \
                      Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n\
                      1 2\n\n### Response:";
    let without = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                   request.\n\n### Instruction:\nAdd.\n\n### Response:";
    let user = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]);
    for (row, format, expected) in [
        (
            json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi", "name": "me"},
                {"role": "assistant", "content": "A", "weight": 0}, {"role": "user", "content": "B"},
                {"role": "assistant", "content": "C", "weight": 1}]}),
            "messages",
            vec!["system: S", "user: Hi", "assistant: A *0", "user: B", "assistant: C *1"],
        ),
        (
            json!({"messages": chat.to_string(), "system": "S"}),
            "messages",
            vec!["system: S", "user: Hi", "assistant: Yo"],
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "tool_calls": [{"name": "f"}], "training": true}]}),
            "messages",
            vec!["user: ab", "assistant: - *1"],
        ),
        (
            json!({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": "f"}, {"from": "observation", "value": "o"},
                {"from": "gpt", "value": "Yo"}]}),
            "sharegpt",
            vec!["system: S", "user: Hi", "assistant: f", "tool: o", "assistant: Yo"],
        ),
        (json!({"conversations": chat}), "sharegpt", vec!["user: Hi", "assistant: Yo"]),
        (
            json!({"instruction": "Add.", "input": "1 2", "output": "3"}),
            "alpaca",
            vec![&*format!("user: {with_input}"), "assistant: 3"],
        ),
        (
            json!({"instruction": "Add.", "input": "", "output": "3", "system": "S", "history": [["q", "a"]]}),
            "alpaca",
            vec!["system: S", "user: q", "assistant: a", &*format!("user: {without}"), "assistant: 3"],
        ),
        (json!({"prompt": "Hi", "completion": "Yo"}), "prompt-completion", vec!["user: Hi *0", "assistant: Yo"]),
        (
            json!({"prompt": chat, "completion": [{"role": "user", "content": "B"}, {"role": "assistant", "content": "C"}]}),
            "prompt-completion",
            vec!["user: Hi *0", "assistant: Yo *0", "user: B", "assistant: C"],
        ),
        (
            json!({"question": "Q", "response": "R", "system_prompt": "S"}),
            "question-answer",
            vec!["system: S", "user: Q", "assistant: R"],
        ),
        (json!({"query": "Q", "answer": "A"}), "question-answer", vec!["user: Q", "assistant: A"]),
        (json!({"query": "Q", "response": "R"}), "question-answer", vec!["user: Q", "assistant: R"]),
        (json!({"text": "words", "label": 1}), "text", vec!["|words"]),
        (json!({"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}), "tokens", vec!["[5, 6, 7] [0.0, 1.0, 0.0]"]),
        (
            json!({"input_ids": [1, 5, 6, 7, 1], "attention_mask": [0, 1, 1, 1, 0]}),
            "tokens",
            vec!["[5, 6, 7] [0.0, 1.0, 1.0]"],
        ),
        (
            json!({"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1], "attention_mask": [1, 1, 1]}),
            "tokens",
            vec!["[5, 6, 7] [0.0, 0.0, 1.0]"],
        ),
        (json!({"input_ids": "[5, 6]"}), "tokens", vec!["[5, 6] [0.0, 1.0]"]),
        (
            json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
            "preference",
            vec!["user: Hi, assistant: Yo", "user: Hi, assistant: No"],
        ),
        (
            json!({"prompt": "Hi", "chosen": chat, "rejected": chat}),
            "preference",
            vec!["user: Hi, assistant: Yo", "user: Hi, assistant: Yo"],
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Yo"},
                "rejected": {"from": "gpt", "value": "No"}, "system": "S"}),
            "preference",
            vec!["system: S, user: Hi, assistant: Yo", "system: S, user: Hi, assistant: No"],
        ),
        (
            json!({"prompt": user, "chosen": [{"role": "assistant", "content": "Yo"}], "rejected": "No"}),
            "preference",
            vec!["user: Hi, assistant: Yo", "user: Hi, assistant: No"],
        ),
        (
            json!({"chosen": "The sky is blue", "rejected": "The sky is green"}),
            "preference",
            vec!["The sky is| blue", "The sky is| green"],
        ),
        (json!({"messages": chat, "label": false}), "labelled", vec!["user: Hi, assistant: Yo", "false"]),
        (json!({"messages": chat, "kto_tag": 1}), "labelled", vec!["user: Hi, assistant: Yo", "true"]),
        (
            json!({"prompt": "Hi", "completion": "Yo", "label": "False"}),
            "labelled",
            vec!["user: Hi *0, assistant: Yo", "false"],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        let options = ReadOptions::default();
        let mut records = Records::open(&path, &options).unwrap();
        let record = records.next().unwrap().unwrap_or_else(|error| panic!("{row}: {error}"));
        assert_eq!(shown(&record.content), expected, "{row}");
        assert_eq!(records.format().unwrap().to_string(), format, "{row}");
        assert_eq!(format.parse::<Format>().unwrap(), records.format().unwrap());
    }
    let plain = ReadOptions { alpaca: AlpacaPrompt::Plain, ..ReadOptions::default() };
    let content = of_row(&json!({"instruction": "Add.", "input": "1 2", "output": "3"}), &plain).unwrap();
    assert_eq!(shown(&content), ["user: Add.\n1 2", "assistant: 3"]);
    let raw = of_row(&json!({"prompt": "a ", "completion": "b"}), &named(Format::Raw)).unwrap();
    assert_eq!(shown(&raw), ["a |b"]);
    let hh = json!({"chosen": "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: B?\n\nAssistant: C",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No"});
    let pair = of_row(&hh, &named(Format::HumanAssistant)).unwrap();
    assert_eq!(shown(&pair), ["user: Hi, assistant: Yo, user: B?, assistant: C", "user: Hi, assistant: No"]);
    let error = "chat".parse::<Format>().unwrap_err().to_string();
    assert!(error.contains("`format` is chat") && error.contains("sharegpt (conversations)"), "{error}");
}

#[test]
fn wrong_rows_say_what_and_where() {
    let hh = "\n\nHuman: Hi\n\nAssistant: Yo";
    let none = ReadOptions::default();
    let columns = |field: &str, column: &str| ReadOptions {
        columns: [(field.to_owned(), column.to_owned())].into(),
        ..ReadOptions::default()
    };
    for (row, options, expected) in [
        (json!({"a": 1, "b": 2}), &none, "the columns [a, b] belong to no known format"),
        (
            json!({"messages": []}),
            &none,
            "the field messages is a list of 0 elements, expected a list of at least one message",
        ),
        (json!({"messages": "Hi"}), &none, "the field messages is the string \"Hi\""),
        (json!({"messages": [1]}), &none, "the field messages[0] is the number 1, expected an object with role"),
        (
            json!({"messages": [{"role": 1, "content": ""}]}),
            &none,
            "messages[0].role is the number 1, expected a string",
        ),
        (json!({"messages": [{"content": ""}]}), &none, "messages[0].role is missing, expected a string"),
        (json!({"messages": [{"role": "user"}]}), &none, "messages[0].content is missing"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            &none,
            "messages[0].content[0] is an object with the keys [type], expected a text part",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "weight": -1}]}),
            &none,
            "messages[0].weight is the number -1, expected a number that is not negative",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "weight": "1"}]}),
            &none,
            "messages[0].weight is the string",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "train": "so"}]}),
            &none,
            "messages[0].train is the string",
        ),
        (json!({"messages": [{"role": "user", "content": "x"}], "tools": 3}), &none, "the field tools is the number 3"),
        (
            json!({"conversations": [{"from": "nobody", "value": "x"}]}),
            &none,
            "conversations[0].from is the string \"nobody\", expected human, gpt",
        ),
        (json!({"instruction": 1, "output": ""}), &none, "the field instruction is the number 1, expected a string"),
        (json!({"instruction": "", "output": "", "history": [["a"]]}), &none, "the field history is a list of 1"),
        (json!({"prompt": 1, "completion": ""}), &none, "the field prompt is the number 1"),
        (json!({"text": ["a"]}), &none, "the field text is a list of 1 element, expected a string"),
        (
            json!({"input_ids": []}),
            &none,
            "the field input_ids is a list of 0 elements, expected a list of at least one",
        ),
        (json!({"input_ids": [1, -1]}), &none, "input_ids[1] is the number -1"),
        (json!({"input_ids": [1, 4294967296u64]}), &none, "input_ids[1] is the number 4294967296"),
        (
            json!({"input_ids": [1, 2], "labels": [1]}),
            &none,
            "labels is a list of 1 element, expected a list as long as",
        ),
        (
            json!({"input_ids": [1, 2], "labels": [2, -100]}),
            &none,
            "labels[0] is the number 2, expected -100 or the token",
        ),
        (json!({"input_ids": [1, 2], "attention_mask": [0, 2]}), &none, "attention_mask[1] is the number 2"),
        (
            json!({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}),
            &none,
            "attention_mask is a list of 3 elements, expected one run of ones",
        ),
        (
            json!({"input_ids": [1, 2], "attention_mask": [0, 0]}),
            &none,
            "attention_mask is a list of 2 elements, expected one run of ones",
        ),
        (json!({"chosen": hh, "rejected": hh}), &none, "name the format `hh`"),
        (
            json!({"chosen": "a", "rejected": hh}),
            &named(Format::HumanAssistant),
            "chosen is the string \"a\", expected a string of",
        ),
        (
            json!({"chosen": "\n\nHuman: Hi", "rejected": hh}),
            &named(Format::HumanAssistant),
            "chosen is the string \"\\n\\nHuman: Hi\"",
        ),
        (
            json!({"chosen": [{"role": "user", "content": "x"}], "rejected": "y", "prompt": "z"}),
            &none,
            "the field chosen is a list of 1 element, expected an answer of the assistant at the end",
        ),
        (json!({"prompt": "a", "chosen": "b"}), &named(Format::Preference), "the field rejected is missing"),
        (json!({"messages": [{"role": "user", "content": "x"}], "label": true}), &none, "an answer of the assistant"),
        (json!({"messages": [{"role": "user", "content": "x"}]}), &named(Format::Labelled), "kto_tag is missing"),
        (json!({"text": "x", "label": true}), &named(Format::Alpaca), "the field instruction is missing"),
        (
            json!({"chat": 1}),
            &columns("messages", "talk"),
            "there is no column \"talk\" for the field \"messages\"; the columns are [chat]",
        ),
        (
            json!({"chat": 1}),
            &columns("mesages", "chat"),
            "`columns` is mesages; it has to be names of fields: messages",
        ),
    ] {
        let error = of_row(&row, options).unwrap_err().to_string();
        assert!(error.contains(expected), "{row}\n  expected {expected}\n  found    {error}");
        if !error.starts_with('`') {
            assert!(error.contains("rows.jsonl row 1: "), "{error}");
        }
    }
}

#[test]
fn columns_of_other_names() {
    let chat = json!([{"role": "user", "content": "Hi"}]);
    let columns = |pairs: &[(&str, &str)]| ReadOptions {
        columns: pairs.iter().map(|(field, column)| ((*field).to_owned(), (*column).to_owned())).collect(),
        ..ReadOptions::default()
    };
    let content = of_row(&json!({"id": 1, "chat": chat}), &columns(&[("messages", "chat")])).unwrap();
    assert_eq!(shown(&content), ["user: Hi"]);
    // A column whose name another one takes is not read.
    let swapped = columns(&[("prompt", "completion"), ("completion", "prompt")]);
    let content = of_row(&json!({"prompt": "b", "completion": "a"}), &swapped).unwrap();
    assert_eq!(shown(&content), ["user: a *0", "assistant: b"]);
    let content = of_row(&json!({"text": "no", "body": "yes"}), &columns(&[("text", "body")])).unwrap();
    assert_eq!(shown(&content), ["|yes"]);
}

#[test]
fn one_file_is_of_one_format() {
    let lines = "{\"text\":\"a\",\"id\":1,\"more\":2}\n\n{\"text\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\"}\n";
    let error = of_file("rows.jsonl", lines.as_bytes(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl row 3 (line 4): the row has the format prompt-completion, and"), "{error}");
    assert!(error.contains("the rows before it text"), "{error}");
    let error =
        of_file("rows.jsonl", b"{\"text\":\"a\"}\n{\"x\":1}\n", &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("row 2: the row has the format unknown"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, lines).unwrap();
    let options = ReadOptions::default();
    let mut records = Records::open(&path, &options).unwrap();
    let first = records.next().unwrap().unwrap();
    assert_eq!((first.place.row, first.place.line), (1, Some(1)));
    assert_eq!(records.unused_columns().collect::<Vec<_>>(), ["id", "more"]);
}

#[test]
fn files_of_json_and_their_faults() {
    let none = ReadOptions::default();
    let texts = |records: Vec<Record>| records.iter().map(|record| shown(&record.content).concat()).collect::<Vec<_>>();
    for (name, content, expected) in [
        ("a.json", "\u{feff} [{\"text\":\"a\"},\n{\"text\":\"b\"}]\n", vec!["|a", "|b"]),
        ("a.json", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n", vec!["|a", "|b"]),
        ("a.json", "{\n  \"text\": \"a\"\n}", vec!["|a"]),
        ("a.json", "[]", vec![]),
        ("a.json", "", vec![]),
        ("a.jsonl", "\u{feff}{\"text\":\"a\"}\r\n\r\n{\"text\":\"b\"}", vec!["|a", "|b"]),
        ("A.JSONL", "", vec![]),
        ("a.csv", "\u{feff}text,id\n\"a, \"\"b\"\"\nc\",1\nd,2\n", vec!["|a, \"b\"\nc", "|d"]),
        ("a.csv", "id,prompt,completion\r\n1,x,y\r\n", vec!["user: x *0assistant: y"]),
        ("a.csv", "query,answer,system,tools\nq,a,,\n", vec!["user: qassistant: a"]),
        ("a.csv", "instruction,output,history,input\n,b,,\n", vec![EMPTY_INSTRUCTION]),
        ("a.csv", "text\n", vec![]),
    ] {
        let records = of_file(name, content.as_bytes(), &none).unwrap_or_else(|error| panic!("{content:?}: {error}"));
        assert_eq!(texts(records), expected, "{content:?}");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(content.as_bytes()).unwrap();
        let records = of_file(&format!("{name}.gz"), &packed.finish().unwrap(), &none).unwrap();
        assert_eq!(texts(records), expected, "{content:?} as gzip");
    }
    for (name, content, expected) in [
        ("a.json", &b"[{\"text\":\"a\"},\n{\"text\" \"b\"}]"[..], "a.json row 2: expected `:` at line 2"),
        ("a.json", b"[{\"text\":\"a\"}", "a.json row 2: EOF"),
        ("a.json", b"[{\"text\":\"a\"}] x", "trailing characters"),
        ("a.json", b"[1]", "row 1: the row is the number 1, expected an object"),
        ("a.jsonl", b"{\"text\":\"a\"}\n{", "a.jsonl row 2: EOF"),
        ("a.jsonl", b"[]\n", "row 1: the row is a list of 0 elements, expected an object"),
        ("a.jsonl", b"{\"text\":\"\xff\"}\n", "row 1: "),
        ("a.jsonl", b"\xff\xfe{\0", "the text is UTF-16"),
        ("a.csv", b"\xff\xfe{\0", "the text is UTF-16"),
        ("a.json", b"\xff\xfe[\0", "the text is UTF-16"),
        ("a.csv", b"text,text\n1,2\n", "a.csv header: the header names the column \"text\" twice"),
        ("a.csv", b"text,id\na\n", "a.csv row 1: "),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.parquet", b"no", "does not end with \"PAR1\""),
        ("a.txt", b"", "is of no supported type; expected a name ending in .json"),
        ("a", b"", "is of no supported type"),
        ("a.json.gz", b"\x1f\x8b\x08\x00", "cannot read "),
        ("a.json.bz2", b"BZh", "is of no supported type"),
    ] {
        let error = of_file(name, content, &none).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: expected {expected}\n  found {error}");
    }
    let error = read(Path::new("/nowhere/a.jsonl"), &none).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/a.jsonl: "), "{error}");
    // After an error there are no more rows.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, "{\n{\"text\":\"a\"}\n").unwrap();
    let mut records = Records::open(&path, &none).unwrap();
    assert!(records.next().unwrap().is_err() && records.next().is_none());
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/instruct")
}

#[test]
fn parquet_files_of_pyarrow() {
    let golden: Value = serde_json::from_str(include_str!("golden/instruct.json")).unwrap();
    let rows = golden["parquet"].as_array().unwrap();
    let columns = ReadOptions {
        format: Some(Format::Text),
        columns: [("text".into(), "note".into())].into(),
        ..ReadOptions::default()
    };
    for name in ["none_1", "snappy_1", "gzip_2", "zstd_1", "zstd_2"] {
        let path = golden_folder().join(format!("{name}.parquet"));
        let mut records = Records::open(&path, &columns).unwrap();
        for (at, row) in rows.iter().enumerate() {
            match (records.next().unwrap(), row["note"].as_str()) {
                (Ok(record), Some(note)) => {
                    assert_eq!(shown(&record.content), [format!("|{note}")], "{name} {at}");
                    assert_eq!((record.place.row, record.place.line), (at as u64 + 1, None));
                }
                (Err(error), None) => {
                    assert!(error.to_string().contains(&format!("{name}.parquet row {}: ", at + 1)), "{error}");
                    assert!(error.to_string().contains("the field text is missing"), "{error}");
                }
                other => panic!("{name} {at}: {other:?}"),
            }
        }
        assert!(records.next().is_none(), "{name}");
        // Lists of structures.
        let messages = named(Format::Messages);
        let mut records = Records::open(&path, &messages).unwrap();
        assert_eq!(shown(&records.next().unwrap().unwrap().content), ["user: café", "assistant: 真实"]);
        assert!(records.next().unwrap().unwrap_err().to_string().contains("messages is a list of 0"));
        assert!(records.next().unwrap().unwrap_err().to_string().contains("messages[0].content is missing"));
        for (at, row) in rows.iter().enumerate().skip(3) {
            let record = records.next().unwrap();
            let expected = row["messages"].as_array().unwrap().len();
            assert_eq!(record.map_or(0, |record| shown(&record.content).len()), expected, "{name} {at}");
        }
    }
    let error = read(&golden_folder().join("lz4_1.parquet"), &columns).unwrap_err().to_string();
    assert!(error.contains("cannot be read as Parquet") && error.contains("lz4"), "{error}");
}

#[test]
fn damaged_parquet_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let options = named(Format::Messages);
    let run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(records) = Records::open(&path, &options) {
            for record in records.take(200) {
                let _ = record.map_err(|error| error.to_string());
            }
        }
    };
    for name in ["snappy_1", "gzip_2", "zstd_2"] {
        let whole = std::fs::read(golden_folder().join(format!("{name}.parquet"))).unwrap();
        let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(at in 0..whole.len() - 8, byte: u8, cut in 0..whole.len())| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            run(&bytes);
            bytes.drain(cut..cut + (whole.len() - cut).min(16));
            run(&bytes);
        });
    }
}

#[test]
fn the_real_sets() {
    for (path, format, count) in [
        ("sft/p3_mix_train.jsonl.gz", "messages", 3191),
        ("sft/scan/scan_simple_test_a.jsonl.gz", "messages", 2091),
        ("sft/identity.json", "alpaca", 91),
        ("sft/olmoe_sft_real_sample_26225.json", "tokens", 1),
        ("preference/dpo_en_demo.json", "preference", 300),
        ("preference/kto_en_demo.json", "labelled", 300),
        ("preference/tulu1_human_pairs.jsonl.gz", "preference", 596),
        ("preference/tulu1_human_kto.jsonl.gz", "labelled", 1018),
    ] {
        let Some(file) = data(path) else { return };
        let options = ReadOptions::default();
        let mut records = Records::open(&file, &options).unwrap();
        let mut rows = 0;
        for record in &mut records {
            record.unwrap_or_else(|error| panic!("{error}"));
            rows += 1;
        }
        assert_eq!((records.format().unwrap().to_string().as_str(), rows), (format, count), "{path}");
    }
    let Some(file) = data("preference/anthropic_evals/risk-seeking.jsonl") else { return };
    let names =
        [("prompt", "question"), ("chosen", "answer_matching_behavior"), ("rejected", "answer_not_matching_behavior")];
    let options = ReadOptions {
        columns: names.iter().map(|(field, column)| ((*field).to_owned(), (*column).to_owned())).collect(),
        ..ReadOptions::default()
    };
    let records = read(&file, &options).unwrap();
    assert_eq!(records.len(), 1000);
    assert!(shown(&records[0].content)[0].ends_with("assistant:  Yes"), "{:?}", records[0]);
}

/// The columns of each format, together and with others.
const COLUMNS: [&[&str]; 14] = [
    &["messages", "tools"],
    &["conversations", "system"],
    &["instruction", "input", "output", "history"],
    &["prompt", "completion"],
    &["question", "response"],
    &["query", "answer", "system_prompt"],
    &["text"],
    &["input_ids", "labels"],
    &["input_ids", "completion_mask", "attention_mask"],
    &["prompt", "chosen", "rejected"],
    &["chosen", "rejected"],
    &["messages", "label"],
    &["prompt", "completion", "kto_tag"],
    &["role", "content", "from", "value", "weight"],
];

/// A value that some format expects somewhere, or none does.
fn any_value() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "",
        "user",
        "gpt",
        "a b",
        "the low",
        "\n\nHuman: x\n\nAssistant: y",
        "\n\nAssistant:",
        "[1,2]",
        "[{\"role\":\"user\",\"content\":\"é\"}]",
        "{\"role\":1}",
        "[[",
        "<|endoftext|>",
        "真\u{301}",
    ])
    .prop_map(Value::from);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-101i64..300).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        text.clone(),
    ];
    let keys: Vec<&str> = COLUMNS.concat();
    let tree = leaf.prop_recursive(4, 24, 4, move |inner| {
        let object = prop::collection::vec((prop::sample::select(keys.clone()), inner.clone()), 0..5);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|entries| entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    });
    let content = prop_oneof![4 => text.clone(), 1 => tree.clone()];
    let role = prop::sample::select(vec!["user", "assistant", "system", "assistant", "tool"]);
    let message = (role, content)
        .prop_map(|(role, content)| json!({"role": role, "content": content, "from": role, "value": content}));
    let number = prop_oneof![Just(json!(1)), (-100i64..300).prop_map(Value::from)];
    prop_oneof![
        2 => tree,
        3 => text,
        3 => prop::collection::vec(message, 1..4).prop_map(Value::from),
        2 => prop::collection::vec(number, 1..5).prop_map(Value::from),
    ]
}

fn any_row() -> impl Strategy<Value = Value> {
    let columns = prop::sample::select(COLUMNS.to_vec());
    (columns, prop::collection::vec(any_value(), 5), 0usize..6).prop_map(|(columns, values, most)| {
        let entries = columns.iter().zip(values).take(most.max(1));
        entries.map(|(column, value)| ((*column).to_owned(), value)).collect()
    })
}

#[test]
fn any_row_is_read_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let (tokenizer, template) = (tiny(), ChatTemplate::new(TULU).unwrap());
    let tokens = ChatTokens { bos: Some("<|endoftext|>"), eos: Some("<|endoftext|>"), ..ChatTokens::default() };
    let (special, _) = SpecialTokens::resolve(&tokenizer, &SpecialTokenSources::default()).unwrap();
    let encode = EncodeOptions { max_length: Some(100), ..EncodeOptions::default() };
    let encoder = Encoder::new(&tokenizer, Some(&template), tokens, &special, &encode).unwrap();
    let formats = [
        Format::Messages,
        Format::ShareGpt,
        Format::Alpaca,
        Format::PromptCompletion,
        Format::QuestionAnswer,
        Format::Text,
        Format::Raw,
        Format::Tokens,
        Format::Preference,
        Format::HumanAssistant,
        Format::Labelled,
    ];
    let formats = prop::option::of(prop::sample::select(formats.to_vec()));
    let config = ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() };
    let kept = std::cell::Cell::new(0);
    proptest!(config, |(row in any_row(), format in formats)| {
        std::fs::write(&path, row.to_string()).unwrap();
        let options = ReadOptions { format, ..ReadOptions::default() };
        let record = match Records::open(&path, &options).unwrap().next().unwrap() {
            Ok(record) => record,
            Err(error) => {
                prop_assert!(error.to_string().contains("rows.jsonl row 1"), "{error}");
                return Ok(());
            }
        };
        let mut report = EncodeReport::default();
        if let Ok(Some(_)) = encoder.encode(&record, &mut report) {
            kept.set(kept.get() + 1);
        }
    });
    assert!(kept.get() > 20, "{}", kept.get());
}
