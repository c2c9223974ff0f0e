//! A small language of instructions, with their answers, which a model of the tour is tuned to follow; and how many answers of
//! a model are right to the letter.
//!
//! `jump twice and walk` is `jump, jump, walk.`, `jump after walk twice` is `walk, walk, jump.`: after the simplest
//! sentences of SCAN (Lake and Baroni, arXiv 1711.00350).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::inference::Loading;
use olmoe_data::{ChatTemplate, ChatTokens, Message, SpecialTokens, TULU};
use olmoe_engine::{Engine, EngineConfig, Request};
use olmoe_model::model::Precision;
use serde_json::json;

const VERBS: [&str; 8] = ["jump", "walk", "run", "look", "sing", "dance", "swim", "read"];
const COUNTS: [(&str, usize); 3] = [("", 1), (" twice", 2), (" three times", 3)];
/// One row in so many is held out.
const HELD_OUT: usize = 12;
/// Most tokens of an answer.
const LONGEST: usize = 24;
/// Answers that are generated at once.
const AT_ONCE: usize = 16;

/// An instruction and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) instruction: String,
    pub(super) answer: String,
}

impl Row {
    fn new(instruction: String, words: &[&str]) -> Row {
        Row { instruction, answer: format!("{}.", words.join(", ")) }
    }
}

/// All rows, those to learn from and those that are held out.
pub(super) fn rows() -> (Vec<Row>, Vec<Row>) {
    let phrases = VERBS
        .iter()
        .flat_map(|verb| COUNTS.iter().map(move |(words, count)| (format!("{verb}{words}"), vec![*verb; *count])));
    let phrases: Vec<(String, Vec<&str>)> = phrases.collect();
    let mut all = Vec::new();
    for (first, words) in &phrases {
        all.push(Row::new(first.clone(), words));
        for (second, more) in phrases.iter().filter(|(second, _)| second != first) {
            all.push(Row::new(format!("{first} and {second}"), &[&words[..], more].concat()));
            all.push(Row::new(format!("{first} after {second}"), &[&more[..], words].concat()));
        }
    }
    // Far apart in the list, so that they are of all kinds.
    let is_held = |at: usize| (at * 7919) % HELD_OUT == HELD_OUT - 1;
    let (held, train): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(at, _)| is_held(*at));
    let rows = |rows: Vec<(usize, Row)>| rows.into_iter().map(|(_, row)| row).collect();
    (rows(train), rows(held))
}

/// Rows as a file of conversations.
pub(super) fn file(rows: &[Row]) -> Vec<u8> {
    let line = |row: &Row| {
        let turns = [("user", &row.instruction), ("assistant", &row.answer)];
        let messages: Vec<_> =
            turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect();
        format!("{}\n", json!({ "messages": messages }))
    };
    rows.iter().map(line).collect::<String>().into_bytes()
}

/// How many rows a model answers to the letter, always with the likeliest token; nothing if it is interrupted.
pub(super) fn right(model: &Path, rows: &[Row], interrupted: &AtomicBool) -> anyhow::Result<Option<usize>> {
    let checkpoint = Checkpoint::open(model)?;
    let companions = Companions::of(&checkpoint, None, false)?;
    let tokenizer = companions.tokenizer().context("a model of the tour has a tokenizer")?;
    let special = companions.special_tokens().cloned().unwrap_or_default();
    let template = ChatTemplate::new(TULU)?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let tokens =
        ChatTokens { bos: text(special.begins_conversation()), eos: text(special.eos), ..ChatTokens::default() };
    let mut requests = Vec::with_capacity(rows.len());
    for row in rows {
        let prompt = template.render(&[Message::new("user", &*row.instruction)], tokens, true)?;
        let mut request = Request::new(tokenizer.encode(&prompt.text)?);
        request.max_tokens = Some(LONGEST);
        request.sampling.temperature = 0.0;
        requests.push(request);
    }
    let context = olmoe_checkpoint::weights::Weights::config(&checkpoint).max_sequence_length;
    let model = checkpoint.load(&Loading::new(Precision::AmpBf16, true), &|_| {})?.model;
    let config = EngineConfig {
        max_running: AT_ONCE,
        queue: requests.len(),
        cache_tokens: AT_ONCE * context,
        kept_tokens: 0,
        ends: SpecialTokens::end_ids(&special),
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Arc::new(model), Some(tokenizer.clone()), config)?;
    let Some(done) = engine.complete_all(requests, interrupted) else { return Ok(None) };
    let mut count = 0;
    for (completions, row) in done.into_iter().zip(rows) {
        count += completions?.iter().filter(|completion| completion.text() == row.answer).count();
    }
    Ok(Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_answers() {
        let (train, held) = rows();
        assert_eq!((train.len() + held.len(), held.len()), (24 + 24 * 23 * 2, 94));
        assert!(!held.iter().any(|row| train.contains(row)));
        let all: Vec<&Row> = train.iter().chain(&held).collect();
        for (instruction, answer) in [
            ("jump", "jump."),
            ("jump twice and walk", "jump, jump, walk."),
            ("jump after walk three times", "walk, walk, walk, jump."),
        ] {
            let row = all.iter().find(|row| row.instruction == instruction).unwrap();
            assert_eq!(row.answer, answer);
        }
        let text = String::from_utf8(file(&train[..1])).unwrap();
        assert_eq!(
            text,
            "{\"messages\":[{\"content\":\"jump\",\"role\":\"user\"},{\"content\":\"jump.\",\"role\":\"assistant\"}]}\n"
        );
    }
}
