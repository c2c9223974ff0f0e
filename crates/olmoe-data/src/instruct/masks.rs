//! Which tokens of a conversation are targets.
//!
//! | definition | the targets of an answer |
//! |---|---|
//! | [`Spans::Offsets`] | the tokens that overlap the text from the end of the turn's header (the generation prompt) to
//! the end of the turn |
//! | [`Spans::Blocks`] | the tokens that overlap a `{% generation %}` block of the template |
//! | [`Spans::Lengths`] | the tokens between the lengths, in tokens, of successive prefixes of the conversation:
//! open-instruct in October 2024 |
//! | [`Spans::Released`] | as `Lengths`, without a template and with lengths that lack the first token: open-instruct
//! in August 2024, the released OLMoE-1B-7B-0924-SFT |
//!
//! `Released` strips every message and trains on the line break after `<|assistant|>`. `Offsets` does what
//! open-instruct does today, with one difference. There, with tokenizers that trim offsets, as OLMoE's does, tokens of
//! nothing but spaces overlap nothing, so the indentation of code is never trained on. Here a token covers all of its
//! bytes.

use serde::Serialize;

use super::conversation::{Conversation, Turn};
use super::json::Json;
use crate::white_space::{is_space, stripped};
use crate::{ChatTemplate, ChatTemplateError, ChatTokens, Piece, Tokenizer, TokenizerError};

/// How targets are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spans {
    /// By positions in the text.
    #[default]
    Offsets,
    /// By the blocks that the template marks.
    Blocks,
    /// By token counts of prefixes.
    Lengths,
    /// By token counts of prefixes, as for the released model.
    Released,
}

/// Which turns are targets. A turn with a weight of its own ignores this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trained {
    /// All turns of the assistant.
    #[default]
    Answers,
    /// The last turn of the assistant.
    LastAnswer,
    /// All turns of these roles.
    Roles(Vec<String>),
    /// Every token, including prompts and headers, whatever the weights of the turns.
    Everything,
}

/// Tokens with their weights.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Masked {
    pub(super) ids: Vec<u32>,
    pub(super) weights: Vec<f32>,
    /// The number of tokens before truncation.
    pub(super) length: usize,
    /// Whether a rendered prefix was not a prefix of the text, so that targets were found by token counts.
    pub(super) by_lengths: bool,
    /// Targets that begin before the trained text.
    pub(super) straddling: usize,
}

/// Why targets cannot be found.
#[derive(Debug)]
pub(super) enum Failure {
    /// The template refused the conversation or failed.
    Template(ChatTemplateError),
    /// A role that the definition does not know.
    Role(String),
    Tokens(TokenizerError),
    /// The places of the targets cannot be determined.
    Unknown(String),
}

impl From<TokenizerError> for Failure {
    fn from(error: TokenizerError) -> Failure {
        Failure::Tokens(error)
    }
}

/// The weight of each turn.
fn wanted(turns: &[Turn], trained: &Trained) -> Vec<f32> {
    let last = turns.iter().rposition(Turn::is_answer);
    let by_policy = |at: usize, turn: &Turn| match trained {
        Trained::Answers => turn.is_answer(),
        Trained::LastAnswer => Some(at) == last,
        Trained::Roles(roles) => roles.contains(&turn.role),
        Trained::Everything => true,
    };
    let weight = |(at, turn): (usize, &Turn)| turn.weight.unwrap_or_else(|| f32::from(u8::from(by_policy(at, turn))));
    turns.iter().enumerate().map(weight).collect()
}

/// The part of a range of weights that exists.
fn range_of(weights: &mut [f32], start: usize, end: usize) -> &mut [f32] {
    let end = end.min(weights.len());
    &mut weights[start.min(end)..end]
}

/// Encodes conversations and finds their targets.
pub(super) struct Masks<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) template: Option<&'a ChatTemplate>,
    pub(super) tokens: ChatTokens<'a>,
    pub(super) spans: Spans,
    pub(super) trained: &'a Trained,
    /// Most tokens; the others are cut off.
    pub(super) limit: usize,
}

impl Masks<'_> {
    pub(super) fn conversation(&self, conversation: &Conversation) -> Result<Masked, Failure> {
        let Conversation { turns, tools } = conversation;
        let wanted = wanted(turns, self.trained);
        match self.spans {
            Spans::Released => self.released(turns, &wanted),
            Spans::Offsets => self.offsets(turns, tools, &wanted),
            Spans::Blocks => self.blocks(turns, tools, &wanted),
            Spans::Lengths => {
                let count = |upto: usize, prompt: bool| -> Result<usize, Failure> {
                    Ok(self.count(&self.render(&turns[..upto], tools, prompt)?)?)
                };
                let ids = self.tokenizer.encode(&self.render(turns, tools, false)?)?;
                self.by_lengths(ids, turns, &wanted, &count)
            }
        }
    }

    /// Encodes a text and makes the bytes from `from` on targets.
    pub(super) fn text(&self, text: &str, from: usize) -> Result<Masked, Failure> {
        let pieces = self.tokenizer.encode_with_offsets(text)?;
        Ok(self.overlapping(&pieces, &[(from, text.len(), 1.0)]))
    }

    fn render(&self, turns: &[Turn], tools: &[Json], prompt: bool) -> Result<String, Failure> {
        let Some(template) = self.template else {
            return Err(Failure::Unknown("the tokenizer has no chat template".to_owned()));
        };
        let rendered = template.render_with_tools(turns, tools, self.tokens, prompt);
        rendered.map(|rendered| rendered.text).map_err(Failure::Template)
    }

    /// The text of the first turns alone. A template may refuse them although it renders the whole conversation.
    fn beginning(&self, turns: &[Turn], tools: &[Json], prompt: bool) -> Result<String, Failure> {
        self.render(turns, tools, prompt).map_err(|failure| match failure {
            Failure::Template(error) => {
                Failure::Unknown(format!("of its first {} messages alone: {error}", turns.len()))
            }
            other => other,
        })
    }

    /// The number of tokens of a text, at most `limit`.
    fn count(&self, text: &str) -> Result<usize, TokenizerError> {
        Ok(self.tokenizer.encode(text)?.len().min(self.limit))
    }

    fn cut(&self, mut ids: Vec<u32>) -> (Vec<u32>, usize) {
        let length = ids.len();
        ids.truncate(self.limit);
        (ids, length)
    }

    /// The tokens with the weights of the byte spans that they overlap; spans are disjoint and in order.
    fn overlapping(&self, pieces: &[Piece], spans: &[(usize, usize, f32)]) -> Masked {
        let (ids, length) = self.cut(pieces.iter().map(|piece| piece.id).collect());
        let mut weights = vec![0.0; ids.len()];
        let mut straddling = 0;
        let mut next = 0;
        for (piece, weight) in pieces.iter().zip(&mut weights) {
            while spans.get(next).is_some_and(|(_, end, _)| *end <= piece.start) {
                next += 1;
            }
            if let Some((start, _, trained)) = spans.get(next)
                && *start < piece.end
            {
                *weight = *trained;
                straddling += usize::from(piece.start < *start);
            }
        }
        Masked { ids, weights, length, by_lengths: false, straddling }
    }

    fn offsets(&self, turns: &[Turn], tools: &[Json], wanted: &[f32]) -> Result<Masked, Failure> {
        let text = self.render(turns, tools, false)?;
        let pieces = self.tokenizer.encode_with_offsets(&text)?;
        if *self.trained == Trained::Everything {
            return Ok(self.overlapping(&pieces, &[(0, text.len(), 1.0)]));
        }
        let mut spans = Vec::new();
        for (at, turn) in turns.iter().enumerate().filter(|(at, _)| wanted[*at] > 0.0) {
            let header = if at == 0 { String::new() } else { self.beginning(&turns[..at], tools, turn.is_answer())? };
            let through = self.beginning(&turns[..at + 1], tools, false)?;
            let begins = text.starts_with(&header) && text.starts_with(&through);
            if !begins || header.len() > through.len() {
                return self.verified_lengths(turns, tools, wanted, &text);
            }
            let mut start = header.len();
            if !turn.is_answer() {
                // For a role without a generation prompt, the header ends where the turn's content begins.
                start += turn.content.as_ref().and_then(|content| through[start..].find(content)).unwrap_or(0);
            }
            spans.push((start, through.len(), wanted[at]));
        }
        Ok(self.overlapping(&pieces, &spans))
    }

    /// Targets by token counts, for a template whose rendered prefixes are not prefixes of the text. Each range of
    /// tokens is checked to hold the turn's content.
    fn verified_lengths(&self, turns: &[Turn], tools: &[Json], wanted: &[f32], text: &str) -> Result<Masked, Failure> {
        let (ids, length) = self.cut(self.tokenizer.encode(text)?);
        let mut weights = vec![0.0; ids.len()];
        let mut found = Vec::new();
        for (at, turn) in turns.iter().enumerate().filter(|(at, _)| wanted[*at] > 0.0) {
            let start = match at {
                0 => 0,
                _ => self.count(&self.beginning(&turns[..at], tools, turn.is_answer())?)?,
            };
            let end = self.count(&self.beginning(&turns[..at + 1], tools, false)?)?;
            range_of(&mut weights, start, end).fill(wanted[at]);
            found.push((at, start.min(ids.len())..end.min(ids.len())));
        }
        for (at, range) in found {
            let Some(content) = turns[at].content.as_deref().filter(|content| !content.is_empty()) else { continue };
            // If the template rewrites the content, there is nothing to compare with.
            if range.is_empty() || !text.contains(content) {
                continue;
            }
            let decoded = self.tokenizer.decode(&ids[range.clone()], false)?;
            let words = decoded.trim_start_matches(is_space);
            if range.end == ids.len() && !words.is_empty() && content.starts_with(words) {
                continue;
            }
            let wrong = |what: &str| {
                let message = format!(
                    "the tokens of message {at} {what}; the template renders the first messages alone differently"
                );
                Err(Failure::Unknown(message))
            };
            let Some(place) = decoded.find(content) else { return wrong("do not hold its content") };
            if !words.starts_with(content) {
                return wrong("begin before its content");
            }
            let behind = &decoded[place + content.len()..];
            let mut later = turns[at + 1..].iter().filter_map(|turn| turn.content.as_deref());
            if later.any(|later| !later.is_empty() && behind.contains(later)) {
                return wrong("go on into a later one");
            }
        }
        Ok(Masked { ids, weights, length, by_lengths: true, straddling: 0 })
    }

    fn blocks(&self, turns: &[Turn], tools: &[Json], wanted: &[f32]) -> Result<Masked, Failure> {
        let Some(template) = self.template else {
            return Err(Failure::Unknown("the tokenizer has no chat template".to_owned()));
        };
        let rendered = template.render_with_tools(turns, tools, self.tokens, false).map_err(Failure::Template)?;
        let pieces = self.tokenizer.encode_with_offsets(&rendered.text)?;
        if *self.trained == Trained::Everything {
            return Ok(self.overlapping(&pieces, &[(0, rendered.text.len(), 1.0)]));
        }
        let answers: Vec<usize> = (0..turns.len()).filter(|at| turns[*at].is_answer()).collect();
        let all_alike = answers.iter().all(|at| wanted[*at] == 1.0);
        if answers.len() != rendered.answers.len() && !all_alike {
            return Err(Failure::Unknown(format!(
                "the template marks {} blocks, and there are {} answers of different weights",
                rendered.answers.len(),
                answers.len()
            )));
        }
        let weight = |block: usize| if all_alike { 1.0 } else { wanted[answers[block]] };
        let blocks = rendered.answers.iter().enumerate();
        let mut spans: Vec<_> = blocks.map(|(block, range)| (range.start, range.end, weight(block))).collect();
        spans.retain(|(start, end, _)| start < end);
        Ok(self.overlapping(&pieces, &spans))
    }

    /// `count(n, prompt)` is the number of tokens of the first `n` turns, with a generation prompt after them if
    /// `prompt`.
    fn by_lengths(
        &self,
        ids: Vec<u32>,
        turns: &[Turn],
        wanted: &[f32],
        count: &dyn Fn(usize, bool) -> Result<usize, Failure>,
    ) -> Result<Masked, Failure> {
        let (ids, length) = self.cut(ids);
        let mut weights = vec![1.0; ids.len()];
        let everything = *self.trained == Trained::Everything;
        let mut start = 0;
        let weighted = wanted.iter().any(|weight| ![0.0, 1.0].contains(weight)) && !everything;
        for at in 0..if weighted { turns.len() } else { 0 } {
            // The last turn extends to the end of the sequence, whatever its token count.
            let end = if at + 1 == turns.len() { ids.len() } else { count(at + 1, false)? };
            if wanted[at] > 0.0 {
                range_of(&mut weights, start, end).fill(wanted[at]);
            }
            start = end;
        }
        let mut start = 0;
        for at in 0..if everything { 0 } else { turns.len() } {
            let next = count(at + 1, false)?;
            if wanted[at] == 0.0 {
                let answered = turns.get(at + 1).is_some_and(Turn::is_answer);
                let end = if answered { count(at + 1, true)? } else { next };
                range_of(&mut weights, start, end).fill(0.0);
                if end >= self.limit {
                    break;
                }
            }
            start = next;
        }
        Ok(Masked { ids, weights, length, by_lengths: false, straddling: 0 })
    }

    /// The encoding without a template that the released model was fine-tuned with.
    fn released(&self, turns: &[Turn], wanted: &[f32]) -> Result<Masked, Failure> {
        let (begin, end) = (self.tokens.bos.unwrap_or(""), self.tokens.eos.unwrap_or(""));
        // The byte offsets of the ends of the turns.
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(turns.len()));
        for turn in turns {
            let content = stripped(turn.content.as_deref().unwrap_or(""));
            match turn.role.as_str() {
                role @ ("system" | "user") => text.push_str(&format!("<|{role}|>\n{content}\n")),
                "assistant" => text.push_str(&format!("<|assistant|>\n{content}{end}\n")),
                role => return Err(Failure::Role(role.to_owned())),
            }
            ends.push(text.len());
        }
        let count = |upto: usize, prompt: bool| -> Result<usize, Failure> {
            let beginning = &text[..ends[upto - 1]];
            Ok(if prompt { self.count(&format!("{beginning}<|assistant|>\n"))? } else { self.count(beginning)? })
        };
        let ids = self.tokenizer.encode(&format!("{begin}{}", stripped(&text)))?;
        self.by_lengths(ids, turns, wanted, &count)
    }
}
