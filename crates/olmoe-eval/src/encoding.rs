//! Contexts and continuations as tokens.

use olmoe_data::white_space::is_space;
use olmoe_data::{Tokenizer, TokenizerError};

/// How a context and a continuation become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Each on its own: OLMo's evaluation in the training loop, and OLMES' request files as it reads them.
    Separate,
    /// Together, cut at the length of the context alone, after white space at the end of the context was moved to the
    /// continuation: lm-evaluation-harness.
    Joint,
    /// Each on its own, white space at the end of the context dropped, and the continuation with a space before it if
    /// the tokenizer has tokens with one: LLM Foundry, and with it DCLM.
    Foundry,
}

impl Encoding {
    /// The most tokens of a context before a continuation of so many tokens, where `limit` tokens are the model's context.
    /// The last token of a continuation is predicted, not read, so one more fits; LLM Foundry counts it all the same.
    pub fn room(self, limit: usize, continuation: usize) -> usize {
        match self {
            Encoding::Separate | Encoding::Joint => (limit + 1).saturating_sub(continuation),
            Encoding::Foundry => limit.saturating_sub(continuation),
        }
    }
}

/// The tokens of a context and of its continuation. The context has at least one token and is cut from the left where the
/// model's context needs it; the continuation has at least one and is never cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// The tokens before it.
    pub context: Vec<u32>,
    /// The tokens that are scored.
    pub continuation: Vec<u32>,
}

impl TokenPair {
    /// Cuts the context from the left to the [`room`](Encoding::room) that there is for it, and to one token at least.
    pub fn cut(&mut self, encoding: Encoding, limit: usize) {
        let room = encoding.room(limit, self.continuation.len()).max(1);
        self.context.drain(..self.context.len().saturating_sub(room));
    }
}

/// The tokens that go before a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The tokens that the tokenizer puts before every text by its own settings; none for OLMoE. They are left out before a
    /// text that begins with them.
    pub before: Vec<u32>,
    /// The token that begins a text, if the tokenizer has one, which OLMoE's has not. OLMo's evaluation puts it before
    /// every context, whatever the settings say.
    pub bos: Option<u32>,
    /// The token that ends a document, which takes the place of a context without tokens where there is no `bos`.
    pub eos: Option<u32>,
}

/// Why texts have no tokens that can be scored.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    /// A continuation without tokens.
    #[error(
        "the continuation {text:?} has no tokens, so it has no log-probability; a choice needs at least one character"
    )]
    NoContinuation {
        /// The continuation.
        text: String,
    },
    /// A context without tokens, and nothing to take its place.
    #[error(
        "the context {text:?} has no tokens, and the tokenizer names no token that begins or ends a text to take its place; give a context"
    )]
    NoContext {
        /// The context.
        text: String,
    },
    /// Text that the tokenizer has no tokens for.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Encodes a context and a continuation.
///
/// A context without tokens becomes the token that begins a text, or the one that ends a document. In
/// [`Encoding::Joint`], a token may span both texts, so that nothing is left behind the length of the context; the last
/// token is then the continuation.
///
/// # Errors
/// [`EncodingError`].
pub fn encode(
    tokenizer: &Tokenizer,
    encoding: Encoding,
    context: &str,
    continuation: &str,
    beginning: &Beginning,
) -> Result<TokenPair, EncodingError> {
    let Beginning { before, bos, .. } = beginning;
    let pair = match encoding {
        Encoding::Separate => TokenPair {
            context: after(bos.as_slice(), tokenizer.encode(context)?),
            continuation: tokenizer.encode(continuation)?,
        },
        Encoding::Foundry => TokenPair {
            context: after(before, tokenizer.encode(context.trim_end_matches(is_space))?),
            continuation: tokenizer.encode(&with_space(tokenizer, continuation)?)?,
        },
        Encoding::Joint => joint(tokenizer, context, continuation, beginning)?,
    };
    complete(pair, context, continuation, beginning)
}

/// As [`encode`] in [`Encoding::Foundry`], where the context comes in two parts that are encoded apart: the examples before
/// a question, and the question. `examples` is empty without any.
///
/// # Errors
/// As [`encode`].
pub fn encode_after_examples(
    tokenizer: &Tokenizer,
    examples: &str,
    context: &str,
    continuation: &str,
    beginning: &Beginning,
) -> Result<TokenPair, EncodingError> {
    let mut pair = TokenPair {
        context: after(&beginning.before, tokenizer.encode(examples)?),
        continuation: tokenizer.encode(&with_space(tokenizer, continuation)?)?,
    };
    pair.context.extend(tokenizer.encode(context.trim_end_matches(is_space))?);
    complete(pair, context, continuation, beginning)
}

/// Tokens after those that go before a text, unless they begin with them.
fn after(before: &[u32], mut ids: Vec<u32>) -> Vec<u32> {
    if !ids.starts_with(before) {
        ids.splice(0..0, before.iter().copied());
    }
    ids
}

/// The continuation with a space before it, if it has none and ` a` is one token.
fn with_space(tokenizer: &Tokenizer, continuation: &str) -> Result<String, TokenizerError> {
    let space = !continuation.starts_with(' ') && !continuation.is_empty() && tokenizer.encode(" a")?.len() == 1;
    Ok(if space { format!(" {continuation}") } else { continuation.to_owned() })
}

fn joint(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    beginning: &Beginning,
) -> Result<TokenPair, EncodingError> {
    let trimmed = context.trim_end_matches(is_space);
    let encoded = |text: &str| Ok::<_, TokenizerError>(after(&beginning.before, tokenizer.encode(text)?));
    if context.is_empty() {
        let mut ids = tokenizer.encode(continuation)?;
        let begins = ids.first().is_some_and(|first| beginning.instead() == Some(*first));
        let context = if begins && ids.len() > 1 { vec![ids.remove(0)] } else { Vec::new() };
        return Ok(TokenPair { context, continuation: ids });
    }
    let mut context_ids = encoded(trimmed)?;
    let mut whole = encoded(&[context, continuation].concat())?;
    let most = whole.len().saturating_sub(1);
    if context_ids.len() > most {
        // A token spans both texts.
        context_ids = whole[..most].to_vec();
    }
    let continuation = whole.split_off(context_ids.len());
    Ok(TokenPair { context: context_ids, continuation })
}

impl Beginning {
    /// The token that takes the place of a context without tokens.
    fn instead(&self) -> Option<u32> {
        self.bos.or(self.eos)
    }
}

/// The pair, if both texts have tokens or can have them.
fn complete(
    mut pair: TokenPair,
    context: &str,
    continuation: &str,
    beginning: &Beginning,
) -> Result<TokenPair, EncodingError> {
    if pair.continuation.is_empty() || continuation.is_empty() {
        return Err(EncodingError::NoContinuation { text: continuation.to_owned() });
    }
    if pair.context.is_empty() {
        pair.context.extend(beginning.instead());
    }
    match pair.context.is_empty() {
        true => Err(EncodingError::NoContext { text: context.to_owned() }),
        false => Ok(pair),
    }
}
