//! Chat templates against transformers' `apply_chat_template` (`tools/reference/make_golden_chat.py`).

use olmoe_data::{ChatTemplate, ChatTemplateError, ChatTokens, Message, Rendered, TULU};
use proptest::prelude::*;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/chats.json")).unwrap()
}

fn tokens(of: &Value) -> ChatTokens<'_> {
    ChatTokens {
        bos: of["bos_token"].as_str(),
        eos: of["eos_token"].as_str(),
        pad: of["pad_token"].as_str(),
        unk: of["unk_token"].as_str(),
        ..ChatTokens::default()
    }
}

/// What was rendered, as the row of a golden file has it: ranges of characters, and an error's text if it is the template's.
fn row(rendered: Result<Rendered, ChatTemplateError>) -> (Option<String>, Value) {
    match rendered {
        Ok(Rendered { text, answers }) => {
            let characters = |byte: usize| text[..byte].chars().count();
            let ranges = answers.iter().map(|range| [characters(range.start), characters(range.end)]);
            let ranges = ranges.collect::<Vec<_>>();
            (Some(text), if ranges.is_empty() { Value::Null } else { serde_json::json!(ranges) })
        }
        Err(ChatTemplateError::Refused { message }) => (None, message.into()),
        Err(_) => (None, Value::Null),
    }
}

fn expected(row: &Value) -> (Option<String>, Value) {
    let answers = row["answers"].as_array().filter(|answers| !answers.is_empty());
    match row["text"].as_str() {
        Some(text) => (Some(text.to_owned()), answers.cloned().map_or(Value::Null, Value::Array)),
        None => (None, row["error"].clone()),
    }
}

#[test]
fn conversations_as_transformers_renders_them() {
    let golden = golden();
    let (mut compared, mut marked) = (0, 0);
    for template in golden["templates"].as_array().unwrap() {
        let source = template["source"].as_str().unwrap();
        let ready = ChatTemplate::new(source).unwrap_or_else(|error| panic!("{}: {error}", template["name"]));
        for golden_row in template["rows"].as_array().unwrap() {
            let chat = golden_row["chat"].as_str().unwrap();
            let messages: Vec<Message> = serde_json::from_value(golden["chats"][chat].clone()).unwrap();
            let prompt = golden_row["add_generation_prompt"].as_bool().unwrap();
            let got = row(ready.render(&messages, tokens(&template["tokens"]), prompt));
            assert_eq!(got, expected(golden_row), "{} {chat}", template["name"]);
            compared += 1;
            marked += usize::from(golden_row["answers"].as_array().is_some_and(|answers| !answers.is_empty()));
            assert_eq!(
                ready.marks_answers(),
                golden_row["answers"].is_array() || golden_row["error"].is_string() && source.contains("generation %}")
            );
        }
    }
    assert!(compared >= 100 + 25 * 4 && marked >= 8, "{compared} {marked}");
    assert_eq!(golden["templates"][0]["source"], TULU);
}

#[test]
fn snippets_as_transformers_renders_them() {
    let golden = golden();
    let snippets = &golden["snippets"];
    let messages: Vec<Message> =
        serde_json::from_value(golden["chats"][snippets["chat"].as_str().unwrap()].clone()).unwrap();
    let rows = snippets["rows"].as_array().unwrap();
    assert!(rows.len() >= 300, "{}", rows.len());
    let mut differences = Vec::new();
    for golden_row in rows {
        let source = golden_row["source"].as_str().unwrap();
        let got =
            row(ChatTemplate::new(source).and_then(|ready| ready.render(&messages, tokens(&snippets["tokens"]), true)));
        let expected = expected(golden_row);
        if got != expected {
            differences.push(format!("{source}\n    expected {expected:?}\n    found    {got:?}"));
        }
    }
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), rows.len(), differences.join("\n"));
}

#[test]
fn the_text_of_the_fine_tuning() {
    let template = ChatTemplate::new(TULU).unwrap();
    let tokens = ChatTokens { bos: Some("<|endoftext|>"), eos: Some("<|endoftext|>"), ..ChatTokens::default() };
    let messages = [
        Message::new("user", "Compute the modulus of 12/5 using a Lua function."),
        Message::new(
            "assistant",
            "function modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)",
        ),
    ];
    let expected = "<|endoftext|><|user|>\nCompute the modulus of 12/5 using a Lua function.\n<|assistant|>\nfunction \
        modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)<|endoftext|>";
    assert_eq!(template.render(&messages, tokens, false).unwrap().text, expected);
}

#[test]
fn bad_templates_name_the_line() {
    let says = |source: &str| match ChatTemplate::new(source) {
        Err(error) => error.to_string(),
        Ok(template) => {
            let messages = [Message::new("user", "x")];
            template.render(&messages, ChatTokens::default(), true).unwrap_err().to_string()
        }
    };
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    for (name, source, expected) in [
        ("unclosed tag", "a\nb {% for x in messages", "line 2"),
        ("unclosed block", "a\n{% for x in messages %}\n", "line "),
        ("unknown tag", "\n\n{% generate %}", "line 3: syntax error: unknown statement generate"),
        ("unknown filter", "x\n{{ messages | nothing }}", "line 2: unknown filter"),
        ("unknown function", "x\n{{ nothing() }}", "in line 2: unknown function"),
        ("unknown method", "{{ messages[0].content.nothing() }}", "in line 1: unknown method"),
        ("of something undefined", "\n{{ nothing.at.all }}", "in line 2: undefined value"),
        ("no number", "{{ 'a' + 1 }}", "in line 1: invalid operation"),
        (
            "no end",
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
            "more than 5000000 steps",
        ),
        ("nesting", nested.as_str(), "recursion"),
        ("a file", "{% include 'other' %}", "line 1"),
        ("json", "{{ messages | tojson(idnent=2) }}", "idnent"),
        ("separators", "{{ messages | tojson(separators=1) }}", "separators are two strings"),
        ("indent", "{{ messages | tojson(indent=1000000000) }}", "indent is above 64"),
    ] {
        let error = says(source);
        assert!(error.starts_with("the chat template") && error.contains(expected), "{name}: {error}");
    }
    let long = says(&"x".repeat((1 << 20) + 1));
    assert!(long.contains("has 1048577 bytes"), "{long}");
}

#[test]
fn any_template_is_a_text_or_an_error() {
    let parts = prop::sample::select(vec![
        "{% for m in messages %}",
        "{% endfor %}",
        "{% if ",
        "%}",
        "{% else %}",
        "{% endif %}",
        "{{",
        "}}",
        "{#",
        "{%- generation -%}",
        "{% endgeneration %}",
        " m.content ",
        " messages",
        "[1:]",
        "[-9]",
        "['role']",
        "|tojson(indent=3)",
        ".split('é', 0)",
        ".strip()",
        " not ",
        " - ",
        " * 99999999999 ",
        " 'é' ",
        "{% set ns.x = ",
        "{% macro a(b) %}",
        "{% endmacro %}",
        "\n",
        "真",
    ]);
    let messages = [Message::new("user", "é"), Message::new("assistant", "")];
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(parts in prop::collection::vec(parts, 0..16))| {
        if let Ok(template) = ChatTemplate::new(&parts.concat()) {
            let _ = template.render(&messages, ChatTokens::default(), true);
        }
    });
}
