//! Questions for opposites, with their answers, which a model of the tour is tuned to give; and how many answers of a model are
//! right to the letter.

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

const PAIRS: [[&str; 2]; 20] = [
    ["big", "small"],
    ["hot", "cold"],
    ["up", "down"],
    ["day", "night"],
    ["good", "bad"],
    ["old", "new"],
    ["fast", "slow"],
    ["open", "closed"],
    ["happy", "sad"],
    ["rich", "poor"],
    ["hard", "soft"],
    ["long", "short"],
    ["light", "dark"],
    ["early", "late"],
    ["loud", "quiet"],
    ["wet", "dry"],
    ["full", "empty"],
    ["left", "right"],
    ["high", "low"],
    ["first", "last"],
];
/// Ways to ask for the opposite of a word.
const QUESTIONS: [&str; 8] = [
    "What is the opposite of _?",
    "Name the opposite of _.",
    "Tell me the opposite of _.",
    "And the opposite of _?",
    "I say _, you say the opposite.",
    "The opposite of _, please.",
    "Which word is the opposite of _?",
    "Turn _ into its opposite.",
];
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

/// All rows, those to learn from and those that are held out: one way to ask for each word.
pub(super) fn rows() -> (Vec<Row>, Vec<Row>) {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (at, [word, opposite]) in PAIRS.iter().flat_map(|[one, other]| [[one, other], [other, one]]).enumerate() {
        for (way, question) in QUESTIONS.iter().enumerate() {
            let row = Row { instruction: question.replace('_', word), answer: format!("The opposite is {opposite}.") };
            // Another way from word to word.
            if (3 * at + way) % QUESTIONS.len() == 0 { &mut held_out } else { &mut train }.push(row);
        }
    }
    (train, held_out)
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
    fn questions_have_answers() {
        let (train, held_out) = rows();
        assert_eq!((train.len(), held_out.len()), (280, 40));
        assert!(!held_out.iter().any(|row| train.contains(row)));
        let (question, answer) = ("What is the opposite of big?", "The opposite is small.");
        let found = train.iter().chain(&held_out).find(|row| row.instruction == question);
        assert_eq!(found.map(|row| row.answer.as_str()), Some(answer));
        let text = String::from_utf8(file(&held_out[..1])).unwrap();
        assert_eq!(
            text,
            "{\"messages\":[{\"content\":\"What is the opposite of big?\",\"role\":\"user\"},\
             {\"content\":\"The opposite is small.\",\"role\":\"assistant\"}]}\n"
        );
    }
}
