//! [`Encoder`]: rows to tokens.

use std::sync::Mutex;

use olmoe_tensor::threads::parallel;
use serde::Serialize;

use super::conversation::{Content, Encoded, Example, LabelledExample, PairExample, Place, Record, Sample};
use super::error::InstructError;
use super::masks::{Failure, Masked, Masks, Spans, Trained};
use super::report::Report;
use crate::{ChatTemplate, ChatTokens, SpecialTokens, Tokenizer};

/// Rows that a thread encodes at a time.
const GROUP_ROWS: usize = 64;

/// What is done with rows that are longer than the greatest length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// Their first tokens are kept.
    #[default]
    KeepStart,
    /// They are dropped.
    Drop,
    /// They are an error.
    Refuse,
    /// The last tokens of the prompt are kept, so many at most, and then the first ones of the answer: how trl 0.9.6 prepares
    /// KTO, and so the released OLMoE-1B-7B-0924-Instruct with 128 of 512. The prompt is what comes before the first target; the
    /// tokens that begin and end a text stay.
    KeepEnds(usize),
}

/// How rows are encoded.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EncodeOptions {
    /// How targets are found.
    pub spans: Spans,
    /// Whose words they are.
    pub trained: Trained,
    /// Most tokens of a sequence, at least 2; none: as many as there are.
    pub max_length: Option<usize>,
    /// What is done with those that have more.
    pub overlong: Overlong,
    /// Whether texts that no template touches begin with the token that begins a conversation.
    pub begin_texts: bool,
}

/// Encodes rows.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    tokens: ChatTokens<'a>,
    begin: Option<u32>,
    end: Option<u32>,
    options: &'a EncodeOptions,
}

impl<'a> Encoder<'a> {
    /// An encoder with the tokens of a model. Without a template, no conversation can be encoded but by [`Spans::Released`].
    /// `tokens` are the texts of the special tokens for the template.
    ///
    /// # Errors
    /// Options that do not go with each other or with the template.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        tokens: ChatTokens<'a>,
        special: &SpecialTokens,
        options: &'a EncodeOptions,
    ) -> Result<Encoder<'a>, InstructError> {
        let setting = |key, value: String, expected: &str| {
            Err(InstructError::Setting { key, value, expected: expected.to_owned() })
        };
        if let Some(length @ ..2) = options.max_length {
            return setting("max_length", length.to_string(), "at least 2: a token and the one that follows it");
        }
        if let (Overlong::KeepEnds(prompt), Some(length)) = (options.overlong, options.max_length)
            && length.saturating_sub(2) <= prompt
        {
            let expected =
                format!("below {}, so that room for an answer and two more tokens is left", length.saturating_sub(2));
            return setting("overlong", format!("keep-ends with {prompt} tokens of the prompt"), &expected);
        }
        if let Trained::Roles(roles) = &options.trained {
            if roles.is_empty() {
                return setting("trained", "no role".to_owned(), "the names of one or more roles");
            }
            if options.spans == Spans::Blocks {
                let expected =
                    "answers: a template marks no other words with {% generation %}; or find targets by offsets";
                return setting("trained", roles.join(", "), expected);
            }
        }
        if options.spans == Spans::Blocks && !template.is_some_and(ChatTemplate::marks_answers) {
            let expected = "offsets: the chat template has no {% generation %} block; or take a template that has";
            return setting("spans", "blocks".to_owned(), expected);
        }
        if options.spans == Spans::Released && tokens.eos.is_none() {
            let expected = "another definition: the tokenizer has no token that ends a text; or name one";
            return setting("spans", "released".to_owned(), expected);
        }
        let (begin, end) = (special.begins_conversation(), special.ends_document());
        Ok(Encoder { tokenizer, template, tokens, begin, end, options })
    }

    /// A row as tokens, or nothing if it is dropped; the report counts it.
    ///
    /// # Errors
    /// A conversation that the template refuses, and a row that is too long where that is refused.
    pub fn encode(&self, record: &Record, report: &mut Report) -> Result<Option<Encoded>, InstructError> {
        report.rows += 1;
        let place = &record.place;
        let mut counts = Report::default();
        let sides: Vec<Option<Example>> = match &record.content {
            Content::Sample(sample) => vec![self.sample(place, sample, &mut counts)?],
            Content::Labelled(labelled) => vec![self.sample(place, &labelled.sample, &mut counts)?],
            Content::Tokens(example) => vec![self.finish(place, of_tokens(example), &mut counts)?],
            Content::Pair(pair) => {
                let chosen = self.sample(place, &pair.chosen, &mut counts)?;
                vec![chosen, self.sample(place, &pair.rejected, &mut counts)?]
            }
        };
        let (dropped, sides): (bool, Vec<Example>) =
            (sides.iter().any(Option::is_none), sides.into_iter().flatten().collect());
        if dropped {
            // One row, whatever is wrong with its sides; what is dropped is not counted otherwise.
            let unknown = counts.unknown.min(1);
            let too_long = counts.too_long.min(1 - unknown);
            report.unknown += unknown;
            report.too_long += too_long;
            report.untrained += 1 - unknown - too_long;
            report.first_unknown = report.first_unknown.take().or(counts.first_unknown);
            return Ok(None);
        }
        counts.kept = 1;
        for side in &sides {
            self.count(side, &mut counts);
        }
        let mut sides = sides.into_iter();
        let Some(first) = sides.next() else { return Ok(None) };
        let encoded = match (&record.content, sides.next()) {
            (Content::Labelled(labelled), _) => Encoded::Labelled(LabelledExample::new(first, labelled.desirable)),
            (_, Some(second)) => {
                counts.same_sides = u64::from(first == second);
                Encoded::Pair(PairExample::new(first, second))
            }
            (_, None) => Encoded::Example(first),
        };
        report.add(counts);
        Ok(Some(encoded))
    }

    /// Rows as tokens, on all threads of the process; the result does not depend on their number.
    ///
    /// # Errors
    /// Those of [`Encoder::encode`], of the first row that has one.
    pub fn encode_all(&self, records: &[Record]) -> Result<(Vec<Encoded>, Report), InstructError> {
        type Group = Result<(Vec<Encoded>, Report), InstructError>;
        let groups: Vec<(&[Record], Mutex<Option<Group>>)> =
            records.chunks(GROUP_ROWS).map(|rows| (rows, Mutex::new(None))).collect();
        parallel(groups.len(), |group| {
            let (rows, result) = &groups[group];
            let mut report = Report::default();
            let encoded: Result<Vec<_>, _> =
                rows.iter().filter_map(|row| self.encode(row, &mut report).transpose()).collect();
            let result = &mut *result.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *result = Some(encoded.map(|encoded| (encoded, report)));
        });
        let (mut all, mut report) = (Vec::with_capacity(records.len()), Report::default());
        for (_, result) in groups {
            let result = result.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
            let (encoded, counts) = result.transpose()?.unwrap_or_default();
            all.extend(encoded);
            report.add(counts);
        }
        Ok((all, report))
    }

    fn sample(&self, place: &Place, sample: &Sample, report: &mut Report) -> Result<Option<Example>, InstructError> {
        // What is to be dropped or refused has to be known in its whole length.
        let limit = match (self.options.overlong, self.options.max_length) {
            (Overlong::KeepStart, Some(limit)) => limit,
            _ => usize::MAX,
        };
        let masks = Masks {
            tokenizer: self.tokenizer,
            template: self.template,
            tokens: self.tokens,
            spans: self.options.spans,
            trained: &self.options.trained,
            limit,
        };
        let masked = match sample {
            Sample::Conversation(conversation) => masks.conversation(conversation),
            Sample::Text { prompt, completion } => {
                let from = if self.options.trained == Trained::Everything { 0 } else { prompt.len() };
                let masks = Masks { limit: usize::MAX, ..masks };
                masks.text(&format!("{prompt}{completion}"), from).map(|masked| self.bounded(masked))
            }
        };
        match masked {
            Ok(masked) => self.finish(place, masked, report),
            Err(Failure::Unknown(message)) => {
                report.unknown += 1;
                report.first_unknown = report.first_unknown.take().or_else(|| Some(format!("{place}: {message}")));
                Ok(None)
            }
            Err(Failure::Template(source)) => Err(InstructError::Template { place: place.clone(), source }),
            Err(Failure::Tokens(source)) => Err(InstructError::Tokens { place: place.clone(), source }),
            Err(Failure::Role(role)) => Err(InstructError::Field {
                place: place.clone(),
                field: "role".to_owned(),
                expected: "system, user or assistant, which are the roles of the released model",
                found: format!("{role:?}"),
            }),
        }
    }

    /// A text between the tokens that begin and end one, unless it has them.
    fn bounded(&self, mut masked: Masked) -> Masked {
        if let Some(begin) = self.begin.filter(|begin| self.options.begin_texts && masked.ids.first() != Some(begin)) {
            masked.ids.insert(0, begin);
            masked.weights.insert(0, 0.0);
        }
        if let Some(end) = self.end.filter(|end| masked.ids.last() != Some(end)) {
            masked.ids.push(end);
            masked.weights.push(1.0);
        }
        masked.length = masked.ids.len();
        masked
    }

    /// What is left of a sequence by the options; nothing if it is dropped.
    fn finish(&self, place: &Place, masked: Masked, report: &mut Report) -> Result<Option<Example>, InstructError> {
        let Masked { mut ids, mut weights, length, by_lengths, straddling } = masked;
        if let Some(limit) = self.options.max_length.filter(|limit| length > *limit) {
            match self.options.overlong {
                Overlong::KeepStart => {
                    ids.truncate(limit);
                    weights.truncate(limit);
                    report.truncated += 1;
                }
                Overlong::KeepEnds(prompt) => {
                    (ids, weights) = self.ends(&ids, &weights, limit, prompt);
                    report.truncated += 1;
                }
                Overlong::Drop => {
                    report.too_long += 1;
                    return Ok(None);
                }
                Overlong::Refuse => {
                    return Err(InstructError::Overlong { place: place.clone(), tokens: length, limit });
                }
            }
        }
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        if weights.iter().all(|weight| *weight == 0.0) {
            report.untrained += 1;
            return Ok(None);
        }
        report.by_lengths += u64::from(by_lengths);
        report.straddling += straddling as u64;
        Ok(Some(Example { ids, weights }))
    }

    /// The end of a prompt and the beginning of its answer. That the answer gives way as if the prompt had all of its tokens,
    /// even where it has fewer, is trl's.
    fn ends(&self, ids: &[u32], weights: &[f32], limit: usize, prompt: usize) -> (Vec<u32>, Vec<f32>) {
        let Some(split) = weights.iter().skip(1).position(|weight| *weight != 0.0).map(|at| at + 1) else {
            return (Vec::new(), Vec::new());
        };
        let first = usize::from(ids.first() == self.begin.as_ref());
        let last = ids.len() - usize::from(ids.last() == self.end.as_ref());
        let room = limit - 2;
        let start = first.max(split.saturating_sub(prompt));
        let end = if split - start + last - split > room { last.min(split + room - prompt) } else { last };
        let begin = self.begin.map(|begin| (begin, 0.0));
        let kept = ids[start..end].iter().copied().zip(weights[start..end].iter().copied());
        let closing = self.end.map(|end| (end, weights.get(last).copied().unwrap_or(1.0)));
        begin.into_iter().chain(kept).chain(closing).unzip()
    }

    fn count(&self, example: &Example, report: &mut Report) {
        report.sequences += 1;
        report.tokens += example.ids.len() as u64;
        report.targets += example.num_targets() as u64;
        report.longest = report.longest.max(example.ids.len() as u64);
        let mut targets = example.ids.iter().zip(&example.weights).filter(|(_, weight)| **weight != 0.0);
        report.ends += u64::from(targets.any(|(id, _)| Some(*id) == self.end));
        if let Some(begin) = self.begin {
            report.begins += u64::from(example.ids.first() == Some(&begin));
            report.begins_twice += u64::from(example.ids.starts_with(&[begin, begin]));
        }
    }
}

fn of_tokens(example: &Example) -> Masked {
    let Example { ids, weights } = example.clone();
    Masked { length: ids.len(), ids, weights, by_lengths: false, straddling: 0 }
}
