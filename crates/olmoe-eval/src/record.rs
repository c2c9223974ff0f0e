//! Answers as lines of a file.

use olmoe_data::Message;
use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::encoding::Encoding;
use crate::task::{Prompt, Request};

/// A line of a file of answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`Question::id`](crate::Question::id).
    pub question: u64,
    /// The index of the request in its question.
    pub request: usize,
    /// What the answer depends on: [`key`].
    pub key: String,
    /// Bytes of the continuation in UTF-8, for those who read the file without the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

impl Record {
    /// The record of an answer.
    pub fn new(question: u64, request: usize, asked: &Request, key: String, answer: Answer) -> Record {
        let bytes = match asked {
            Request::Continuation { continuation, .. } | Request::Reply { continuation, .. } => {
                Some(continuation.len())
            }
            Request::Generation { .. } => None,
        };
        Record { question, request, key, bytes, answer }
    }
}

/// The key of a request: a hash of the identity of whoever answers, and of everything in the request that determines the
/// answer. Answers with the same key are the same; a change of a shot, a template, a tokenizer or a model changes it.
pub fn key(identity: &str, encoding: Encoding, request: &Request) -> String {
    let mut hash = Fields(blake3::Hasher::new());
    hash.text(identity);
    match request {
        Request::Continuation { context, continuation, unconditional } => {
            hash.text("continuation");
            hash.text(match encoding {
                Encoding::Separate => "separate",
                Encoding::Joint => "joint",
                Encoding::Foundry => "foundry",
            });
            hash.text(context);
            hash.text(continuation);
            hash.text(if unconditional.is_some() { "unconditional" } else { "" });
            hash.text(unconditional.as_deref().unwrap_or_default());
        }
        Request::Reply { messages, begin, continuation } => {
            hash.text("reply");
            hash.chat(messages, begin);
            hash.text(continuation);
        }
        Request::Generation { prompt, stop, max_tokens, sampling, samples, seed } => {
            hash.text("generation");
            match prompt {
                Prompt::Text(text) => {
                    hash.text("text");
                    hash.text(text);
                }
                Prompt::Chat { messages, begin } => {
                    hash.text("chat");
                    hash.chat(messages, begin);
                }
            }
            hash.number(stop.len() as u64);
            stop.iter().for_each(|stop| hash.text(stop));
            hash.number(*max_tokens as u64);
            let olmoe_engine::Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repetition_penalty,
                frequency_penalty,
                presence_penalty,
                logit_bias,
                below,
            } = sampling;
            let penalties = [repetition_penalty, frequency_penalty, presence_penalty];
            [temperature, top_p, min_p, typical_p].into_iter().chain(penalties).for_each(|x| hash.number(x.to_bits()));
            hash.number(*top_k as u64);
            hash.number(logit_bias.len() as u64);
            for (id, bias) in logit_bias {
                hash.number(u64::from(*id));
                hash.number(u64::from(bias.to_bits()));
            }
            hash.number(below.map_or(u64::MAX, u64::from));
            hash.number(*samples as u64);
            hash.number(*seed);
        }
    }
    hash.0.finalize().to_hex()[..32].to_owned()
}

/// A hash of bytes, as identities have it.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// A hash of fields, each with its length, so that none runs into the next.
struct Fields(blake3::Hasher);

impl Fields {
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn chat(&mut self, messages: &[Message], begin: &str) {
        self.number(messages.len() as u64);
        for message in messages {
            self.text(&message.role);
            self.text(&message.content);
        }
        self.text(begin);
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Scored;

    fn asked(context: &str, continuation: &str) -> Request {
        Request::Continuation { context: context.into(), continuation: continuation.into(), unconditional: None }
    }

    #[test]
    fn a_line_comes_back_with_its_bits() {
        let scored = Scored { log_prob: -0.1 - 0.2, tokens: 3, greedy: true, unconditional: Some(-1e-300) };
        for answer in [Answer::Continuation(scored), Answer::Generation { texts: vec!["a\n\u{2028}\"é".into()] }] {
            let record = Record::new(7, 1, &asked("a", " é"), "k".into(), answer);
            let line = crate::lines::line(&record).unwrap();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
        }
    }

    /// A cache that ignores a part of the request gives the answers of another question.
    #[test]
    fn every_part_of_a_request_is_in_its_key() {
        let generation = |stop: &[&str], seed| Request::Generation {
            prompt: Prompt::Text("a".into()),
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            max_tokens: 5,
            sampling: olmoe_engine::Sampling::default(),
            samples: 1,
            seed,
        };
        let reply = |begin: &str, continuation: &str| Request::Reply {
            messages: vec![Message::new("user", "a")],
            begin: begin.into(),
            continuation: continuation.into(),
        };
        let mut unconditional = asked("a", "b");
        if let Request::Continuation { unconditional, .. } = &mut unconditional {
            *unconditional = Some(String::new());
        }
        let requests = [
            ("m", Encoding::Separate, asked("a", "b")),
            ("m", Encoding::Joint, asked("a", "b")),
            ("n", Encoding::Separate, asked("a", "b")),
            ("m", Encoding::Separate, asked("ab", "")),
            ("m", Encoding::Separate, asked("shot\n\na", "b")),
            ("m", Encoding::Separate, unconditional),
            ("m", Encoding::Separate, generation(&["ab"], 1)),
            ("m", Encoding::Separate, generation(&["a", "b"], 1)),
            ("m", Encoding::Separate, reply("c", " A")),
            ("m", Encoding::Separate, reply("c", " B")),
            ("m", Encoding::Separate, reply("", "c A")),
            ("m", Encoding::Separate, generation(&["ab"], 2)),
        ];
        let keys: std::collections::HashSet<String> =
            requests.iter().map(|(identity, encoding, request)| key(identity, *encoding, request)).collect();
        assert_eq!(keys.len(), requests.len());
        assert_eq!(key("m", Encoding::Separate, &asked("a", "b")), key("m", Encoding::Separate, &asked("a", "b")));
    }
}
