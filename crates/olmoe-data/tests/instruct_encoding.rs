//! Conversations to tokens and targets, against the encoders of open-instruct (`tools/reference/make_golden_instruct.py`), the
//! log of the released model's fine-tuning, and by hand.

use std::path::Path;

use olmoe_data::instruct::{
    Content, Conversation, EncodeOptions, EncodeReport, Encoded, Encoder, Example, InstructError, LabelledCompletion,
    Overlong, Place, PreferencePair, Record, Sample, Spans, Trained, Turn, preview,
};
use olmoe_data::{ChatTemplate, ChatTokens, SpecialTokenSources, SpecialTokens, TULU, Tokenizer};
use serde_json::Value;

mod shared;
use shared::{data, ids, real, tiny};

const END: &str = "<|endoftext|>";
const TOKENS: ChatTokens =
    ChatTokens { bos: Some(END), eos: Some(END), pad: None, unk: None, sep: None, cls: None, mask: None };
/// Marks answers, each with the token that ends it.
const MARKED: &str = "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}\
                      {% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}\
                      {% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";
/// Ends the last answer only.
const END_LAST: &str = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}\
                        {% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/instruct.json")).unwrap()
}

fn record(content: Content) -> Record {
    Record { place: Place { path: Path::new("rows.jsonl").into(), row: 7, line: None }, content }
}

fn conversation(turns: &[(&str, &str)]) -> Sample {
    let turns = turns.iter().map(|(role, content)| Turn::new(*role, *content)).collect();
    Sample::Conversation(Conversation { turns, tools: Vec::new() })
}

fn weighted(turns: &[(&str, &str, Option<f32>)]) -> Sample {
    let turn =
        |(role, content, weight): &(&str, &str, Option<f32>)| Turn { weight: *weight, ..Turn::new(*role, *content) };
    Sample::Conversation(Conversation { turns: turns.iter().map(turn).collect(), tools: Vec::new() })
}

/// With the tokenizer of the model.
fn encode(
    tokenizer: &Tokenizer,
    template: &str,
    options: &EncodeOptions,
    content: Content,
) -> Result<(Option<Encoded>, EncodeReport), InstructError> {
    let template = ChatTemplate::new(template).unwrap();
    let (special, _) = SpecialTokens::resolve(tokenizer, &SpecialTokenSources::default()).unwrap();
    let encoder = Encoder::new(tokenizer, Some(&template), TOKENS, &special, options)?;
    let mut report = EncodeReport::default();
    let encoded = encoder.encode(&record(content), &mut report)?;
    Ok((encoded, report))
}

fn example(tokenizer: &Tokenizer, template: &str, options: &EncodeOptions, sample: Sample) -> Example {
    match encode(tokenizer, template, options, Content::Sample(sample)).unwrap() {
        (Some(Encoded::Example(example)), _) => example,
        other => panic!("{other:?}"),
    }
}

/// What is trained, with `|` between runs.
fn targets(tokenizer: &Tokenizer, example: &Example) -> String {
    let mut runs = Vec::new();
    let mut run = Vec::new();
    for (id, weight) in example.ids.iter().zip(&example.weights).chain([(&0, &0.0)]) {
        if *weight != 0.0 {
            run.push(*id);
        } else if !run.is_empty() {
            runs.push(tokenizer.decode(&std::mem::take(&mut run), false).unwrap());
        }
    }
    runs.join("|")
}

fn options(trained: Trained) -> EncodeOptions {
    EncodeOptions { trained, ..EncodeOptions::default() }
}

#[test]
fn targets_are_those_of_open_instruct_and_transformers() {
    let Some((tokenizer, _)) = real("allenai_gpt-neox-olmo-dolma-v1_5.json") else { return };
    let golden = golden();
    let (mut compared, mut dropped, mut spaces) = (0, 0, 0);
    for row in golden["masks"].as_array().unwrap() {
        let name = format!("{} {} {} {}", row["encoder"], row["template"], row["chat"], row["limit"]);
        let (spans, trained) = match row["encoder"].as_str().unwrap() {
            "august" => (Spans::Released, Trained::Answers),
            "october" => (Spans::Lengths, Trained::Answers),
            "now" => (Spans::Offsets, Trained::Answers),
            "blocks" => (Spans::Blocks, Trained::Answers),
            "now, last" => (Spans::Offsets, Trained::LastAnswer),
            other => panic!("{other}"),
        };
        let max_length = row["limit"].as_u64().map(|limit| limit as usize);
        let options = EncodeOptions { spans, trained, max_length, ..EncodeOptions::default() };
        let chat = golden["chats"][row["chat"].as_str().unwrap()].as_array().unwrap();
        let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
        let turns = chat.iter().map(|turn| Turn::new(text(turn, "role"), text(turn, "content"))).collect();
        let sample = Sample::Conversation(Conversation { turns, tools: Vec::new() });
        let template = golden["templates"][row["template"].as_str().unwrap()].as_str().unwrap();
        let (encoded, report) = encode(tokenizer, template, &options, Content::Sample(sample)).unwrap();
        if row["dropped"].is_string() {
            assert!(encoded.is_none() && report.unknown == 1 && report.first_unknown.is_some(), "{name}: {report:?}");
            dropped += 1;
            continue;
        }
        // The first token is never a target.
        let expected: Vec<bool> =
            row["trained"].as_str().unwrap().bytes().enumerate().map(|(at, mark)| at > 0 && mark == b'1').collect();
        let (found, found_ids) = match encoded {
            Some(Encoded::Example(example)) => {
                (example.weights.iter().map(|weight| *weight == 1.0).collect::<Vec<_>>(), example.ids)
            }
            None => (vec![false; expected.len()], ids(&row["ids"])),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(found_ids, ids(&row["ids"]), "{name}");
        for (at, (expected, found)) in expected.iter().zip(&found).enumerate() {
            // In the reference, tokens of spaces only have empty offsets.
            let blank = || tokenizer.token_bytes(found_ids[at]).unwrap().iter().all(|byte| *byte == b' ');
            if !expected && *found && spans == Spans::Offsets && blank() {
                spaces += 1;
                continue;
            }
            assert_eq!(expected, found, "{name}: token {at}");
        }
        compared += 1;
    }
    assert!(compared >= 480 && dropped >= 30 && spaces >= 20, "{compared} {dropped} {spaces}");
}

#[test]
fn the_released_fine_tuning_is_reproduced() {
    let Some((tokenizer, _)) = real("allenai_gpt-neox-olmo-dolma-v1_5.json") else { return };
    let Some(path) = data("sft/olmoe_sft_real_sample_26225.json") else { return };
    let log: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let released = EncodeOptions { spans: Spans::Released, ..EncodeOptions::default() };
    for row in log.as_array().unwrap() {
        let expected = ids(&row["input_ids"]);
        let text = tokenizer.decode(&expected, false).unwrap();
        let text = text.strip_prefix(&format!("{END}<|user|>\n")).and_then(|text| text.strip_suffix(END)).unwrap();
        let (question, answer) = text.split_once("\n<|assistant|>\n").unwrap();
        let sample = conversation(&[("user", question), ("assistant", answer)]);
        let example = example(tokenizer, TULU, &released, sample);
        assert_eq!(example.ids, expected);
        let masked: Vec<bool> = row["labels"].as_array().unwrap().iter().map(|label| *label == -100).collect();
        assert_eq!(example.weights.iter().map(|weight| *weight == 0.0).collect::<Vec<_>>(), masked);
    }
    // Sample 288389 of the same log: 54 tokens, of which the first 26 are not targets.
    let question = "Compute the modulus of 12/5 using a Lua function.";
    let answer = "function modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)";
    let example = example(tokenizer, TULU, &released, conversation(&[("user", question), ("assistant", answer)]));
    assert_eq!((example.ids.len(), example.first_target(), example.num_targets()), (54, Some(26), 28));
}

#[test]
fn targets_decode_to_the_answers_and_their_ends() {
    let tokenizer = tiny();
    let turns = [
        ("system", "low"),
        ("user", " the  the"),
        ("assistant", "  the low\n   é 真"),
        ("user", "x"),
        ("assistant", "lo"),
    ];
    let answers = format!("  the low\n   é 真{END}|lo{END}");
    for (spans, template, trained, expected) in [
        (Spans::Offsets, TULU, Trained::Answers, answers.clone()),
        (Spans::Offsets, TULU, Trained::LastAnswer, format!("lo{END}")),
        (Spans::Lengths, TULU, Trained::Answers, answers.clone()),
        (Spans::Lengths, TULU, Trained::LastAnswer, format!("lo{END}")),
        (Spans::Blocks, MARKED, Trained::Answers, answers.clone()),
        (Spans::Blocks, MARKED, Trained::LastAnswer, format!("lo{END}")),
        (Spans::Offsets, TULU, Trained::Roles(vec!["system".into()]), "low\n".to_owned()),
    ] {
        let options = EncodeOptions { spans, ..options(trained) };
        let example = example(&tokenizer, template, &options, conversation(&turns));
        assert_eq!(targets(&tokenizer, &example), expected, "{spans:?} {template}");
        // Every token of the text is a target, and no other.
        let messages: Vec<Turn> = turns.iter().map(|(role, content)| Turn::new(*role, *content)).collect();
        let tools: [Value; 0] = [];
        let text =
            ChatTemplate::new(template).unwrap().render_with_tools(&messages, &tools, TOKENS, false).unwrap().text;
        assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), text);
    }
    let all = options(Trained::Everything);
    for (spans, template) in
        [(Spans::Offsets, TULU), (Spans::Lengths, TULU), (Spans::Blocks, MARKED), (Spans::Released, TULU)]
    {
        let all = EncodeOptions { spans, ..all.clone() };
        let example = example(&tokenizer, template, &all, conversation(&turns));
        assert_eq!(example.num_targets(), example.ids.len() - 1, "{spans:?}: all but the first");
        assert_eq!(example.weights[0], 0.0);
    }
}

#[test]
fn weights_of_turns_count_before_the_policy() {
    let tokenizer = tiny();
    let turns = [
        ("user", "the", Some(0.5)),
        ("assistant", "low", Some(0.0)),
        ("user", "x", None),
        ("assistant", "lo", Some(0.25)),
        ("user", "y", None),
        ("assistant", "the", None),
    ];
    for (spans, template, expected) in [
        (Spans::Offsets, TULU, format!("the\n|lo{END}|the{END}")),
        (Spans::Lengths, TULU, format!("<|user|>\nthe\n|lo{END}|the{END}")),
        (Spans::Released, TULU, format!("<|user|>\nthe|\nlo{END}|\nthe{END}")),
    ] {
        let example =
            example(&tokenizer, template, &EncodeOptions { spans, ..EncodeOptions::default() }, weighted(&turns));
        assert_eq!(targets(&tokenizer, &example), expected, "{spans:?}");
        let mut seen: Vec<f32> = example.weights.clone();
        seen.dedup();
        seen.retain(|weight| *weight != 0.0);
        assert_eq!(seen, [0.5, 0.25, 1.0], "{spans:?}");
    }
    let marked = weighted(&turns[1..]);
    let options = EncodeOptions { spans: Spans::Blocks, ..EncodeOptions::default() };
    let example = example(&tokenizer, MARKED, &options, marked);
    assert_eq!(targets(&tokenizer, &example), format!("lo{END}|the{END}"));
}

#[test]
fn indentation_is_a_target() {
    let Some((tokenizer, _)) = real("allenai_gpt-neox-olmo-dolma-v1_5.json") else { return };
    let code = "def f(x):\n    if x:\n        return  x\n\n\n    return None\n";
    let sample = conversation(&[("user", "Write it."), ("assistant", code)]);
    let example = example(tokenizer, TULU, &EncodeOptions::default(), sample);
    assert_eq!(targets(tokenizer, &example), format!("{code}{END}"));
}

#[test]
fn one_token_begins_a_conversation() {
    let tokenizer = tiny();
    let turns = [("user", "the"), ("assistant", "low")];
    let (encoded, report) =
        encode(&tokenizer, TULU, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
    let Some(Encoded::Example(example)) = encoded else { panic!("dropped") };
    assert_eq!((example.ids[0], report.begins, report.begins_twice), (263, 1, 0));
    assert_ne!(example.ids[1], 263);
    let twice = format!("{{{{ bos_token }}}}{TULU}");
    let (_, report) =
        encode(&tokenizer, &twice, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
    assert_eq!((report.begins, report.begins_twice), (1, 1));
    assert!(report.warnings().iter().any(|warning| warning.contains("twice")), "{:?}", report.warnings());
}

#[test]
fn an_end_that_is_never_a_target_is_warned_of() {
    let tokenizer = tiny();
    let turns = [("user", "the"), ("assistant", "low")];
    let without = TULU.replace(" + eos_token", "");
    for (template, ends) in [(TULU, 1), (without.as_str(), 0)] {
        let (encoded, report) =
            encode(&tokenizer, template, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
        assert!(encoded.is_some());
        assert_eq!(report.ends, ends);
        let warned = report.warnings().iter().any(|warning| warning.contains("learn to stop"));
        assert_eq!(warned, ends == 0, "{:?}", report.warnings());
    }
}

#[test]
fn answers_that_cannot_be_found_are_dropped_and_counted() {
    let tokenizer = tiny();
    let turns = [("user", "a"), ("assistant", "low"), ("user", "x"), ("assistant", "the")];
    // Targets found by token counts are right here.
    let (encoded, report) =
        encode(&tokenizer, END_LAST, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
    let Some(Encoded::Example(example)) = encoded else { panic!("dropped: {report:?}") };
    // The rendered prefix has an end token that the whole conversation lacks, so one token more is counted.
    assert!(targets(&tokenizer, &example).ends_with(&format!("the{END}")), "{}", targets(&tokenizer, &example));
    assert_eq!((report.by_lengths, report.unknown), (1, 0));
    // Without a generation prompt, the header would be trained on.
    let no_prompt = END_LAST.split("{% if add_generation_prompt").next().unwrap();
    let (encoded, report) =
        encode(&tokenizer, no_prompt, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
    assert_eq!(encoded, None);
    assert_eq!((report.rows, report.kept, report.unknown, report.untrained), (1, 0, 1, 0));
    let warnings = report.warnings().join("\n");
    assert!(
        warnings.contains("1 rows were dropped because the places of their targets cannot be determined"),
        "{warnings}"
    );
    assert!(warnings.contains("rows.jsonl row 7: the tokens of message 1 begin before its content"), "{warnings}");
    // A template that requires a question first does not render a prefix without one.
    let strict = format!(
        "{{% if messages[-1]['role'] == 'system' %}}{{{{ raise_exception('no question') }}}}{{% endif %}}{TULU}"
    );
    let turns = [("system", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    let (encoded, report) =
        encode(&tokenizer, &strict, &EncodeOptions::default(), Content::Sample(conversation(&turns))).unwrap();
    assert!(encoded.is_none() && report.unknown == 1, "{report:?}");
    assert!(report.first_unknown.unwrap().contains("no question"));
}

#[test]
fn what_the_template_refuses_is_an_error_with_its_row() {
    let tokenizer = tiny();
    let content = || Content::Sample(conversation(&[("judge", "a"), ("assistant", "b")]));
    let error = encode(&tokenizer, TULU, &EncodeOptions::default(), content()).unwrap_err().to_string();
    assert!(error.starts_with("rows.jsonl row 7: the chat template refuses") && error.contains("judge"), "{error}");
    let released = EncodeOptions { spans: Spans::Released, ..EncodeOptions::default() };
    let error = encode(&tokenizer, TULU, &released, content()).unwrap_err().to_string();
    assert!(error.contains("role is \"judge\", expected system, user or assistant"), "{error}");
}

#[test]
fn long_rows_are_cut_dropped_or_refused() {
    let tokenizer = tiny();
    let turns = [("user", "the"), ("assistant", "low low low")];
    let whole = example(&tokenizer, TULU, &EncodeOptions::default(), conversation(&turns));
    let first = whole.first_target().unwrap();
    for spans in [Spans::Offsets, Spans::Lengths] {
        let with = |max_length, overlong| EncodeOptions {
            spans,
            max_length: Some(max_length),
            overlong,
            ..EncodeOptions::default()
        };
        let run = |max_length, overlong| {
            encode(&tokenizer, TULU, &with(max_length, overlong), Content::Sample(conversation(&turns)))
        };
        let (encoded, report) = run(first + 2, Overlong::KeepStart).unwrap();
        let Some(Encoded::Example(cut)) = encoded else { panic!("dropped") };
        assert_eq!((&cut.ids[..], &cut.weights[..]), (&whole.ids[..first + 2], &whole.weights[..first + 2]));
        assert_eq!((report.truncated, report.kept, report.longest), (1, 1, first as u64 + 2));
        // The answer is truncated away, so no loss could be computed.
        let (encoded, report) = run(first, Overlong::KeepStart).unwrap();
        assert_eq!((encoded, report.untrained, report.truncated, report.kept, report.tokens), (None, 1, 0, 0, 0));
        let (encoded, report) = run(first + 2, Overlong::Drop).unwrap();
        assert_eq!((encoded, report.too_long, report.untrained), (None, 1, 0));
        let error = run(first + 2, Overlong::Refuse).unwrap_err().to_string();
        let expected = format!("row 7: the row has {} tokens, more than the limit of {}", whole.ids.len(), first + 2);
        assert!(error.contains(&expected), "{error}");
        let (encoded, report) = run(whole.ids.len(), Overlong::Refuse).unwrap();
        assert!(encoded.is_some() && report.truncated == 0);
    }
}

#[test]
fn long_answers_give_way_as_in_the_released_tuning() {
    let tokenizer = tiny();
    let golden = golden();
    let special = SpecialTokens { bos: Some(1), eos: Some(0), ..SpecialTokens::default() };
    for row in golden["kto"].as_array().unwrap() {
        let number = |key: &str| row[key].as_u64().unwrap() as usize;
        let (prompt, answer) = (number("prompt") as u32, number("answer") as u32);
        // As rendered by a template: the tokens at both ends are there already.
        let ids_before: Vec<u32> = [1].into_iter().chain(2..2 + prompt).chain(1000..1000 + answer).chain([0]).collect();
        let weights = ids_before.iter().map(|id| f32::from(u8::from(*id >= 1000 || *id == 0))).collect();
        let options = EncodeOptions {
            max_length: Some(number("limit")),
            overlong: Overlong::KeepEnds(number("most")),
            ..EncodeOptions::default()
        };
        let encoder = Encoder::new(&tokenizer, None, TOKENS, &special, &options).unwrap();
        let tokens = record(Content::Tokens(Example { ids: ids_before, weights }));
        let Some(Encoded::Example(example)) = encoder.encode(&tokens, &mut EncodeReport::default()).unwrap() else {
            panic!("dropped")
        };
        assert_eq!(example.ids, ids(&row["ids"]), "{row}");
        assert_eq!(example.first_target(), Some(number("first")), "{row}");
        assert_eq!(example.num_targets(), example.ids.len() - number("first"));
    }
    let none = EncodeOptions { max_length: Some(8), overlong: Overlong::KeepEnds(6), ..EncodeOptions::default() };
    let error = Encoder::new(&tokenizer, None, TOKENS, &special, &none).err().unwrap().to_string();
    assert!(error.contains("`overlong` is keep-ends with 6 tokens of the prompt; it has to be below 6"), "{error}");
}

#[test]
fn a_token_across_prompt_and_completion_is_a_target_and_counted() {
    let tokenizer = tiny();
    let text = |prompt: &str, completion: &str| {
        Content::Sample(Sample::Text { prompt: prompt.into(), completion: completion.into() })
    };
    // " the" is one token, and so is "the".
    for (prompt, completion, expected, straddling) in [
        ("x", " low the", " low the", 0),
        ("x ", "the low", " the low", 1),
        ("x t", "he", " the", 1),
        ("", "the", "", 0),
    ] {
        let (encoded, report) = encode(&tokenizer, TULU, &EncodeOptions::default(), text(prompt, completion)).unwrap();
        let Some(Encoded::Example(example)) = encoded else { panic!("dropped") };
        let text = tokenizer.decode(&example.ids, false).unwrap();
        assert_eq!(text, format!("{prompt}{completion}{END}"));
        if !prompt.is_empty() {
            assert_eq!(targets(&tokenizer, &example), format!("{expected}{END}"));
        }
        assert_eq!(report.straddling, straddling, "{prompt:?} {completion:?}");
        assert_eq!(report.warnings().iter().any(|text| text.contains("begin before")), straddling > 0);
    }
    let begin = EncodeOptions { begin_texts: true, ..EncodeOptions::default() };
    for (completion, ids) in [("low", vec![263, 260, 263]), ("<|endoftext|>low<|endoftext|>", vec![263, 260, 263])] {
        let (encoded, _) = encode(&tokenizer, TULU, &begin, text("", completion)).unwrap();
        let Some(Encoded::Example(example)) = encoded else { panic!("dropped") };
        assert_eq!((example.ids, example.weights), (ids, vec![0.0, 1.0, 1.0]));
    }
}

#[test]
fn pairs_know_the_prompt_they_share() {
    let tokenizer = tiny();
    let side = |answer: &str| conversation(&[("user", "the"), ("assistant", answer)]);
    let pair =
        |chosen: &str, rejected: &str| Content::Pair(PreferencePair { chosen: side(chosen), rejected: side(rejected) });
    let (encoded, report) = encode(&tokenizer, TULU, &EncodeOptions::default(), pair("low", "lo the")).unwrap();
    let Some(Encoded::Pair(encoded)) = encoded else { panic!("dropped") };
    assert_eq!(targets(&tokenizer, &encoded.chosen), format!("low{END}"));
    assert_eq!(targets(&tokenizer, &encoded.rejected), format!("lo the{END}"));
    assert_eq!(encoded.chosen.ids[..encoded.prompt], encoded.rejected.ids[..encoded.prompt]);
    assert_eq!(Some(encoded.prompt), encoded.chosen.first_target());
    assert_eq!((report.rows, report.kept, report.sequences, report.same_sides), (1, 1, 2, 0));
    // Answers with a common beginning: the prompt still ends where the targets begin.
    let (encoded, report) = encode(&tokenizer, TULU, &EncodeOptions::default(), pair("low", "low")).unwrap();
    let Some(Encoded::Pair(encoded)) = encoded else { panic!("dropped") };
    assert_eq!(Some(encoded.prompt), encoded.rejected.first_target());
    assert_eq!(report.same_sides, 1);
    // If the answer of one side is truncated away, the pair is dropped.
    let short = EncodeOptions { max_length: Some(encoded.prompt), ..EncodeOptions::default() };
    let (encoded, report) = encode(&tokenizer, TULU, &short, pair("low", "the")).unwrap();
    assert_eq!((encoded, report.rows, report.kept, report.untrained, report.sequences), (None, 1, 0, 1, 0));
    let labelled = Content::Labelled(LabelledCompletion { sample: side("low"), desirable: false });
    let (encoded, _) = encode(&tokenizer, TULU, &EncodeOptions::default(), labelled).unwrap();
    let Some(Encoded::Labelled(labelled)) = encoded else { panic!("dropped") };
    assert!(!labelled.desirable && Some(labelled.prompt) == labelled.example.first_target());
}

#[test]
fn tools_reach_the_template_in_their_order() {
    let tokenizer = tiny();
    let template = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}{% if m.tool_calls %}\
                    {{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}";
    let tools = serde_json::from_str(r#"[{"z":1,"a":{"y":[true,null],"b":2.5}}]"#).unwrap();
    let calls = serde_json::from_str(r#"[{"name":"f","arguments":{"q":1,"c":2}}]"#).unwrap();
    let call = Turn { content: None, more: vec![("tool_calls".into(), calls)], ..Turn::new("assistant", "") };
    let sample = Sample::Conversation(Conversation { turns: vec![Turn::new("user", "x"), call], tools });
    let example = example(&tokenizer, template, &options(Trained::Everything), sample);
    let expected = format!(
        r#"[{{"z": 1, "a": {{"y": [true, null], "b": 2.5}}}}]userx{END}assistant[{{"name": "f", "arguments": {{"q": 1, "c": 2}}}}]{END}"#
    );
    assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), expected);
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let tokenizer = tiny();
    let sample = || Content::Sample(conversation(&[("user", "a"), ("assistant", "b")]));
    for (options, template, expected) in [
        (EncodeOptions { max_length: Some(1), ..options(Trained::Answers) }, TULU, "`max_length` is 1"),
        (options(Trained::Roles(Vec::new())), TULU, "`trained` is no role"),
        (EncodeOptions { spans: Spans::Blocks, ..options(Trained::Answers) }, TULU, "no {% generation %} block"),
        (
            EncodeOptions { spans: Spans::Blocks, ..options(Trained::Roles(vec!["user".into()])) },
            MARKED,
            "`trained` is user",
        ),
    ] {
        let error = encode(&tokenizer, template, &options, sample()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let (special, _) = SpecialTokens::resolve(&tokenizer, &SpecialTokenSources::default()).unwrap();
    let released = EncodeOptions { spans: Spans::Released, ..EncodeOptions::default() };
    let error = Encoder::new(&tokenizer, None, ChatTokens::default(), &special, &released).err().unwrap().to_string();
    assert!(error.contains("`spans` is released"), "{error}");
}

#[test]
fn threads_and_order_change_nothing() {
    let tokenizer = tiny();
    let template = ChatTemplate::new(TULU).unwrap();
    let (special, _) = SpecialTokens::resolve(&tokenizer, &SpecialTokenSources::default()).unwrap();
    let options = EncodeOptions { max_length: Some(60), ..EncodeOptions::default() };
    let encoder = Encoder::new(&tokenizer, Some(&template), TOKENS, &special, &options).unwrap();
    let sample = |at: usize| {
        let (question, answer) = ("the ".repeat(at % 50), "low ".repeat(at % 11));
        record(Content::Sample(conversation(&[("user", &question), ("assistant", &answer)])))
    };
    let records: Vec<Record> = (0..500).map(sample).collect();
    let mut report = EncodeReport::default();
    let one_by_one: Vec<Encoded> =
        records.iter().filter_map(|record| encoder.encode(record, &mut report).unwrap()).collect();
    for threads in [1, 3] {
        olmoe_tensor::threads::set_num_threads(threads);
        assert_eq!(encoder.encode_all(&records).unwrap(), (one_by_one.clone(), report.clone()));
    }
    assert_eq!(report.rows, 500);
    assert_eq!(report.kept + report.untrained, 500);
    assert!(report.truncated > 0 && report.untrained > 0, "{report:?}");
    let text = report.to_string();
    assert!(text.starts_with(&format!("{} of 500 rows kept", report.kept)), "{text}");
}

#[test]
fn a_table_of_tokens() {
    let tokenizer = tiny();
    let example = Example { ids: vec![258, 263, 128, 9_999], weights: vec![0.0, 1.0, 0.5, 0.0] };
    let rows = preview(&example, &tokenizer);
    let shown: Vec<(&str, bool, f32)> = rows.iter().map(|row| (row.text.as_str(), row.target, row.weight)).collect();
    let expected = [(" the", false, 0.0), (END, true, 1.0), ("<0x80>", true, 0.5), ("<no such token>", false, 0.0)];
    assert_eq!(shown, expected);
    assert_eq!(rows[0].id, 258);
}
