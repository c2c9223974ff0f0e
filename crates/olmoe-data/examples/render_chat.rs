//! Renders conversations, for comparisons with other implementations.
//!
//! Each line of standard input is an object with `source` (a template), `messages`, `tokens` (`bos_token` and the like) and
//! `add_generation_prompt`; each line of the output has `text` and `answers` (ranges of characters that the template marks as
//! the assistant's), or `error`.

use std::io::{BufRead, Write};

use olmoe_data::{ChatTemplate, ChatTemplateError, ChatTokens, Message, Rendered};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let result = match render(&case) {
            Ok(Rendered { text, answers }) => {
                let characters = |byte: usize| text[..byte].chars().count();
                let answers: Vec<_> =
                    answers.iter().map(|range| [characters(range.start), characters(range.end)]).collect();
                json!({"text": text, "answers": answers})
            }
            Err(error) => json!({"error": error.to_string()}),
        };
        writeln!(out, "{result}")?;
    }
    Ok(())
}

fn render(case: &Value) -> Result<Rendered, ChatTemplateError> {
    let template = ChatTemplate::new(case["source"].as_str().unwrap_or_default())?;
    let token = |name: &str| case["tokens"][name].as_str();
    let tokens = ChatTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        pad: token("pad_token"),
        unk: token("unk_token"),
        sep: token("sep_token"),
        cls: token("cls_token"),
        mask: token("mask_token"),
    };
    let messages = case["messages"].as_array().into_iter().flatten();
    let text = |message: &Value, key: &str| message[key].as_str().unwrap_or_default().to_owned();
    let messages: Vec<Message> =
        messages.map(|message| Message::new(text(message, "role"), text(message, "content"))).collect();
    template.render(&messages, tokens, case["add_generation_prompt"] == true)
}
