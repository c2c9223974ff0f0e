//! What is known of an answer (trl's "completion"), and where its gradient goes.
//!
//! An answer has n tokens with log-probabilities `logp_t [n]` under the policy. Its log-probability is their sum; with `α`,
//! LD-DPO's (Liu et al., arXiv 2409.06411), those beyond the length of the pair's shorter answer count `α` times:
//!
//! `Σ_{t < m} logp_t + α·Σ_{t ≥ m} logp_t`, `m = min(n_chosen, n_rejected)`

use super::error::PreferenceError;

/// The log-probability of an answer: the sum over its tokens, in order. What is kept of a reference model is this sum, so that
/// a policy equal to it has a log-ratio of exactly 0.
pub fn log_prob(logp_t: &[f32]) -> f64 {
    logp_t.iter().map(|logp| f64::from(*logp)).sum()
}

/// The log-probability of an answer under the reference model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReferenceLogProb<'a> {
    /// There is no reference model.
    None,
    /// The [`log_prob`] of the answer.
    Sum(f64),
    /// That of its first tokens and that of the others, as `ld_alpha` weighs them.
    Split {
        /// How many the first ones are: the length of the shorter answer of the pair.
        tokens: usize,
        /// The sum over these.
        shared: f64,
        /// The sum over the others.
        rest: f64,
    },
    /// Those of all tokens, `[n]`.
    Tokens(&'a [f32]),
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// Log-probability of each token under the policy, `[n]`, the end of the answer among them.
    pub logp_t: &'a [f32],
    /// `log Σ_v p_v²` of the policy's distribution at each token, `[n]`: for WPO's weights alone.
    pub log_sum_squares_t: Option<&'a [f32]>,
    /// The log-probability under the reference model.
    pub reference: ReferenceLogProb<'a>,
}

/// Two answers to a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PreferencePair<'a> {
    /// The better one.
    pub chosen: Completion<'a>,
    /// The other.
    pub rejected: Completion<'a>,
}

/// `∂L/∂logp_t` of the tokens of an answer: one number for the first of them and another for those behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenGradient {
    /// How many have the first number.
    pub shared_tokens: usize,
    /// The gradient of each of these.
    pub shared: f64,
    /// That of each of the others.
    pub rest: f64,
}

impl TokenGradient {
    /// The gradient of a token.
    pub fn at(&self, token: usize) -> f64 {
        if token < self.shared_tokens { self.shared } else { self.rest }
    }

    /// Writes the gradients of an answer's tokens.
    pub fn write(&self, dlogp_t: &mut [f32]) {
        for (token, dlogp) in dlogp_t.iter_mut().enumerate() {
            *dlogp = self.at(token) as f32;
        }
    }
}

/// What a loss has of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AnswerLoss {
    /// The gradient of the step's loss.
    pub gradient: TokenGradient,
    /// Log-probability under the policy, with `ld_alpha`.
    pub policy: f64,
    /// The same under the reference; 0 without one.
    pub reference: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// The sums over an answer that losses are made of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Tokens that count whole: all, or those within the shorter answer's length.
    pub(super) shared_tokens: usize,
    pub(super) tokens: usize,
    /// Log-probability under the policy, the tokens behind weighed.
    pub(super) policy: f64,
    /// The same without weights.
    pub(super) plain: f64,
    /// Log-probability under the reference, weighed.
    pub(super) reference: f64,
    /// WPO's logarithmic weight: the mean of `logp − log Σp²`; 0 where it is not asked for.
    pub(super) log_weight: f64,
}

impl Sums {
    pub(super) fn log_ratio(&self) -> f64 {
        self.policy - self.reference
    }

    /// Tokens as a divisor: an answer without any counts one.
    pub(super) fn length(&self) -> f64 {
        self.tokens.max(1) as f64
    }

    /// The mean log-probability of a token.
    pub(super) fn mean(&self) -> f64 {
        self.plain / self.length()
    }
}

/// An answer in a pair, for errors.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) pair: usize,
    pub(super) answer: &'static str,
}

/// What is asked of an answer.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The weight of the tokens behind the shorter answer's length.
    pub(super) ld_alpha: f64,
    /// The loss type that has a reference.
    pub(super) reference: Option<&'static str>,
    /// Whether that one cannot be without: else it is for the rewards alone.
    pub(super) required: bool,
    /// Whether WPO's weight is needed.
    pub(super) square_sums: bool,
}

impl Completion<'_> {
    /// The sums over this answer, of a pair whose shorter one has `shorter` tokens.
    pub(super) fn sums(&self, shorter: usize, wanted: Wanted, place: Place) -> Result<Sums, PreferenceError> {
        let tokens = self.logp_t.len();
        let shared_tokens = if wanted.ld_alpha == 1.0 { tokens } else { shorter.min(tokens) };
        let weighed = |logp_t: &[f32]| {
            let (shared, rest) = logp_t.split_at(shared_tokens);
            log_prob(shared) + wanted.ld_alpha * log_prob(rest)
        };
        let mut sums = Sums { shared_tokens, tokens, policy: weighed(self.logp_t), ..Sums::default() };
        sums.plain = log_prob(self.logp_t);
        if let Some(loss_type) = wanted.reference {
            let Place { pair, answer } = place;
            let other = |found: String, expected: String| PreferenceError::Reference { pair, answer, found, expected };
            sums.reference = match self.reference {
                ReferenceLogProb::None if !wanted.required => 0.0,
                ReferenceLogProb::None => return Err(PreferenceError::NoReference { pair, answer, loss_type }),
                ReferenceLogProb::Sum(sum) if shared_tokens == tokens => sum,
                ReferenceLogProb::Sum(_) => {
                    let expected =
                        format!("those of its tokens, or of its first {shared_tokens} and the others (`ld_alpha`)");
                    return Err(other("one sum".into(), expected));
                }
                ReferenceLogProb::Split { tokens: first, shared, rest } if first == shared_tokens => {
                    shared + wanted.ld_alpha * rest
                }
                ReferenceLogProb::Split { tokens: first, .. } => {
                    return Err(other(format!("split after {first} tokens"), format!("a split after {shared_tokens}")));
                }
                ReferenceLogProb::Tokens(logp_t) if logp_t.len() == tokens => weighed(logp_t),
                ReferenceLogProb::Tokens(logp_t) => {
                    return Err(other(format!("of {} tokens", logp_t.len()), format!("those of {tokens}")));
                }
            };
        }
        if wanted.square_sums {
            let square_sums = self.log_sum_squares_t.unwrap_or(&[]);
            if square_sums.len() != tokens {
                let Place { pair, answer } = place;
                return Err(PreferenceError::SquareSums { pair, answer, found: square_sums.len(), expected: tokens });
            }
            sums.log_weight = (sums.plain - log_prob(square_sums)) / sums.length();
        }
        Ok(sums)
    }
}
