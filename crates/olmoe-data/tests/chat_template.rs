//! Chat templates against transformers' `apply_chat_template` (`tools/reference/make_golden_chat.py`).

use olmoe_data::{ChatTemplate, ChatTemplateError, ChatTokens, Message, TULU};
use proptest::prelude::*;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/chats.json")).unwrap()
}

#[test]
fn conversations_as_transformers_renders_them() {
    let golden = golden();
    let mut compared = 0;
    for template in golden["templates"].as_array().unwrap() {
        let source = template["source"].as_str().unwrap();
        let tokens = ChatTokens { bos: template["bos_token"].as_str(), eos: template["eos_token"].as_str() };
        let ready = ChatTemplate::new(source).unwrap_or_else(|error| panic!("{}: {error}", template["name"]));
        for row in template["rows"].as_array().unwrap() {
            let chat = row["chat"].as_str().unwrap();
            let messages: Vec<Message> = serde_json::from_value(golden["chats"][chat].clone()).unwrap();
            let got = ready.render(&messages, tokens, row["add_generation_prompt"].as_bool().unwrap());
            let expected = match row["text"].as_str() {
                Some(text) => Ok(text.to_owned()),
                None => Err(ChatTemplateError::Refused { message: row["error"].as_str().unwrap().to_owned() }),
            };
            assert_eq!(got, expected, "{} {chat}", template["name"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 100);
    assert_eq!(golden["templates"][0]["source"], TULU);
}

#[test]
fn the_text_of_the_fine_tuning() {
    let template = ChatTemplate::new(TULU).unwrap();
    let tokens = ChatTokens { bos: Some("<|endoftext|>"), eos: Some("<|endoftext|>") };
    let messages = [
        Message::new("user", "Compute the modulus of 12/5 using a Lua function."),
        Message::new(
            "assistant",
            "function modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)",
        ),
    ];
    let expected = "<|endoftext|><|user|>\nCompute the modulus of 12/5 using a Lua function.\n<|assistant|>\nfunction \
        modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)<|endoftext|>";
    assert_eq!(template.render(&messages, tokens, false).unwrap(), expected);
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
        ("separators", "{{ messages | tojson(separators=1) }}", "separators are two texts"),
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
