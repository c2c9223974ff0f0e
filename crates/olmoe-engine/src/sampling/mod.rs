//! From logits to a token: the settings, and the order in which they are applied.
//!
//! V tokens with logits `l_v`. The order is that of llama.cpp; each step works on the tokens that the step before it
//! kept.
//!
//! 1. **Bias**: `l_v += bias_v`; −∞ excludes a token.
//! 2. **Penalties**: for every token of prompt and text, `l_v / r` where `l_v > 0`, else `l_v · r` (repetition, Keskar
//!    et al. 2019, CTRL); then `l_v −= frequency · n_v + presence · [n_v > 0]` with `n_v` the number of times that the
//!    token is in the text after the prompt (OpenAI).
//! 3. **Excluded tokens**: tokens that would end the sample too early, and ids that are not below `below`.
//! 4. **Temperature 0**: the largest logit is chosen, of equal ones the lower id; the steps below are skipped.
//! 5. **Top-k**: the `k` largest logits.
//! 6. **Typical-p** (Meister et al. 2023): with the probabilities `p_v` of the remaining tokens and their entropy `H`,
//!    tokens in the order of `|−ln p_v − H|` until their probabilities reach the mass.
//! 7. **Top-p** (Holtzman et al. 2020): tokens in descending order of probability until their probabilities reach the
//!    mass.
//! 8. **Min-p** (Nguyen et al. 2024): tokens with `p_v ≥ m · max p`.
//! 9. **Temperature**: `p_v ∝ exp(l_v / T)` of the remaining tokens.
//! 10. **The draw**: the first token, in the order of ids, at which the sum of probabilities exceeds a uniform number.
//!
//! Every filter keeps at least one token; ties go to the lower id. All steps are computed in f64 with the functions of
//! [`olmoe_tensor::elementary`], and the uniform numbers come from a generator that never changes ([`random`]). So a
//! token depends only on logits, settings, history and seed, and is the same on every machine.

mod filters;
mod penalties;
pub mod random;

use olmoe_tensor::elementary::exp;
pub(crate) use penalties::History;
use random::Stream;

/// How tokens are chosen. [`Sampling::default`] draws from the distribution of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the draw; 0 chooses the most likely token.
    pub temperature: f64,
    /// Draws only from this many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Draws only from the most likely tokens whose probabilities sum to this; 1 for all.
    pub top_p: f64,
    /// Draws only from tokens with at least this share of the highest probability; 0 for all.
    pub min_p: f64,
    /// Draws only from the most typical tokens whose probabilities sum to this; 1 for all.
    pub typical_p: f64,
    /// Divides positive logits, and multiplies negative ones, of tokens in the prompt or the text; 1 for none.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of a token for each time that it was generated; 0 for none.
    pub frequency_penalty: f64,
    /// Subtracted from the logit of every token that was generated; 0 for none.
    pub presence_penalty: f64,
    /// Added to logits; −∞ excludes a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Ids that are not below this are never chosen: an embedding may have more rows than there are tokens.
    pub below: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            below: None,
        }
    }
}

/// A setting out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A number out of its range.
    #[error("{setting} is {found}, expected {expected}")]
    Range {
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: f64,
        /// The values it may have.
        expected: &'static str,
    },
    /// A bias for an id outside the vocabulary.
    #[error("logit_bias: id {id} is outside the model's vocabulary of {rows}")]
    BiasId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A bias that is neither finite nor −∞.
    #[error("logit_bias: {bias} for id {id}, expected a finite number, or -inf to exclude the token")]
    Bias {
        /// The id.
        id: u32,
        /// The bias.
        bias: f32,
    },
}

impl Sampling {
    /// Chooses the most likely token every time.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Checks that every setting is in its range, for a model whose embedding has `rows` rows.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self, rows: usize) -> Result<(), SamplingError> {
        let finite = |x: f64| x.is_finite();
        for (setting, found, good, expected) in [
            ("temperature", self.temperature, finite(self.temperature) && self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            ("typical_p", self.typical_p, self.typical_p > 0.0 && self.typical_p <= 1.0, "above 0 and at most 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "above 0",
            ),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a finite number"),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a finite number"),
        ] {
            if !good {
                return Err(SamplingError::Range { setting, found, expected });
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= rows {
                return Err(SamplingError::BiasId { id, rows });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(SamplingError::Bias { id, bias });
            }
        }
        Ok(())
    }

    /// Whether the choice depends on the previous tokens.
    pub(crate) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Chooses a token; `None` when all are excluded. `logits` are finite or −∞; ids in `excluded` are not chosen.
    pub(crate) fn choose(
        &self,
        logits: &[f32],
        history: &History,
        excluded: &[u32],
        stream: &mut Stream,
        left: &mut Candidates,
    ) -> Option<u32> {
        left.fill(logits);
        let list = &mut left.0;
        for &(id, bias) in &self.logit_bias {
            list[id as usize].logit += f64::from(bias);
        }
        if self.penalizes() {
            history.penalize(self, list);
        }
        excluded.iter().for_each(|id| list[*id as usize].logit = f64::NEG_INFINITY);
        list.truncate(self.below.map_or(list.len(), |below| below as usize));
        list.retain(|candidate| candidate.logit > f64::NEG_INFINITY);
        if self.temperature == 0.0 {
            return list.iter().min_by(|a, b| filters::likelier(a, b)).map(|candidate| candidate.id);
        }
        filters::top_k(list, self.top_k);
        filters::typical(list, self.typical_p);
        filters::top_p(list, self.top_p);
        filters::min_p(list, self.min_p);
        draw(list, self.temperature, stream)
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f64,
    /// The probability times a constant, where a step needs it.
    weight: f64,
}

/// The candidate tokens: one list for all samples, so that it is allocated once.
#[derive(Default)]
pub(crate) struct Candidates(Vec<Candidate>);

impl Candidates {
    fn fill(&mut self, logits: &[f32]) {
        self.0.clear();
        // Adding 0 turns -0 into 0, because both are equal.
        let candidate =
            |(id, logit): (usize, &f32)| Candidate { id: id as u32, logit: f64::from(*logit) + 0.0, weight: 0.0 };
        self.0.extend(logits.iter().enumerate().map(candidate));
    }
}

/// The largest logit.
fn largest(list: &[Candidate]) -> f64 {
    list.iter().fold(f64::NEG_INFINITY, |largest, candidate| largest.max(candidate.logit))
}

/// Sets the weights to `exp((l − max) / T)`; returns their sum.
fn weigh(list: &mut [Candidate], temperature: f64) -> f64 {
    let largest = largest(list);
    let mut total = 0.0;
    for candidate in list {
        candidate.weight = exp((candidate.logit - largest) / temperature);
        total += candidate.weight;
    }
    total
}

fn draw(list: &mut [Candidate], temperature: f64, stream: &mut Stream) -> Option<u32> {
    list.sort_unstable_by_key(|candidate| candidate.id);
    let target = weigh(list, temperature) * stream.uniform();
    let mut sum = 0.0;
    let passed = list.iter().find(|candidate| {
        sum += candidate.weight;
        sum > target
    });
    // The sum always exceeds a target below the total, because both are the same sum.
    passed.or(list.last()).map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of given probabilities, by id.
    pub(super) fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32 + 3.0).collect()
    }

    fn choose_with(sampling: &Sampling, logits: &[f32], history: &History, stream: &mut Stream) -> Option<u32> {
        sampling.choose(logits, history, &[], stream, &mut Candidates::default())
    }

    fn choose(sampling: &Sampling, logits: &[f32], seed: u64) -> Option<u32> {
        choose_with(sampling, logits, &History::default(), &mut Stream::new(seed, 0))
    }

    /// How often each token comes in `n` draws, as shares.
    fn shares(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<f64> {
        let (mut stream, mut left, mut counts) = (Stream::new(7, 0), Candidates::default(), vec![0.0; logits.len()]);
        for _ in 0..n {
            let id = sampling.choose(logits, &History::default(), &[], &mut stream, &mut left).unwrap();
            counts[id as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[track_caller]
    fn assert_shares(sampling: &Sampling, logits: &[f32], expected: &[f64]) {
        const N: usize = 40_000;
        for (id, (got, p)) in shares(sampling, logits, N).iter().zip(expected).enumerate() {
            // Five standard deviations.
            let bound = 5.0 * (p * (1.0 - p) / N as f64).sqrt();
            assert!((got - p).abs() <= bound, "id {id}: {got}, expected {p} ± {bound}");
        }
    }

    const P: [f64; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];

    #[test]
    fn draws_have_the_distribution_of_the_model() {
        assert_shares(&Sampling::default(), &logits(&P), &P);
    }

    #[test]
    fn draws_after_filters_and_temperature_have_the_distribution_computed_by_hand() {
        let plain = Sampling::default();
        for (sampling, expected) in [
            // p² and √p, renormalised.
            (Sampling { temperature: 0.5, ..plain.clone() }, P.map(|p| p * p / 0.275)),
            (Sampling { temperature: 2.0, ..plain.clone() }, P.map(|p| p.sqrt() / 2.119478)),
            (Sampling { top_k: 2, ..plain.clone() }, [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]),
            (Sampling { top_p: 0.8, ..plain.clone() }, [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]),
            (Sampling { min_p: 0.24, ..plain.clone() }, [0.1 / 0.95, 0.4 / 0.95, 0.0, 0.25 / 0.95, 0.2 / 0.95]),
            // Top-k 3 leaves 8/17, 5/17, 4/17: top-p 0.7 of these is two.
            (Sampling { top_k: 3, top_p: 0.7, ..plain.clone() }, [0.0, 8.0 / 13.0, 0.0, 5.0 / 13.0, 0.0]),
            // The filters come before the temperature: it makes no token likelier to stay.
            (Sampling { top_p: 0.6, temperature: 1e6, ..plain.clone() }, [0.0, 0.5, 0.0, 0.5, 0.0]),
            (Sampling { logit_bias: vec![(1, f32::NEG_INFINITY), (2, 1.0)], ..plain.clone() }, {
                let e = std::f64::consts::E;
                [0.1, 0.0, 0.05 * e, 0.25, 0.2].map(|p| p / (0.55 + 0.05 * e))
            }),
            (Sampling { below: Some(2), ..plain.clone() }, [0.2, 0.8, 0.0, 0.0, 0.0]),
        ] {
            assert_shares(&sampling, &logits(&P), &expected);
        }
    }

    #[test]
    fn temperature_0_is_the_likeliest_and_ties_go_to_the_lower_id() {
        let greedy = Sampling::greedy();
        assert_eq!(choose(&greedy, &logits(&P), 1), Some(1));
        assert_eq!(choose(&greedy, &[0.5, 2.0, 2.0, 1.0], 1), Some(1));
        assert_eq!(choose(&greedy, &[-0.0, 0.0], 1), Some(0));
        assert_eq!(choose(&greedy, &[0.0, -0.0], 1), Some(0));
        let biased = Sampling { logit_bias: vec![(1, -1.0)], ..Sampling::greedy() };
        assert_eq!(choose(&biased, &logits(&P), 1), Some(3));
        // A temperature near 0 gives the same token, except for ties.
        let cold = Sampling { temperature: 1e-300, ..Sampling::default() };
        assert!((0..50).all(|seed| choose(&cold, &logits(&P), seed) == Some(1)));
        let one = Sampling { top_k: 1, ..Sampling::default() };
        assert!((0..50).all(|seed| choose(&one, &[0.5, 2.0, 2.0, 1.0], seed) == Some(1)));
    }

    #[test]
    fn nothing_left_is_no_token() {
        let none = Sampling { logit_bias: vec![(0, f32::NEG_INFINITY)], ..Sampling::default() };
        assert_eq!(choose(&none, &[1.0, f32::NEG_INFINITY], 1), None);
        assert_eq!(choose(&Sampling { below: Some(0), ..Sampling::default() }, &[1.0, 2.0], 1), None);
        let excluded = Sampling::default().choose(
            &[1.0, 2.0],
            &History::default(),
            &[0, 1],
            &mut Stream::new(1, 0),
            &mut Candidates::default(),
        );
        assert_eq!(excluded, None);
    }

    #[test]
    fn penalties_act_before_the_choice() {
        let mut history = History::new(&[1, 1]);
        let stream = &mut Stream::new(1, 0);
        // 3/2 = 1.5 < 2.
        let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        assert_eq!(choose_with(&repetition, &[2.0, 3.0], &history, stream), Some(0));
        // The prompt does not count for the other penalties.
        let presence = Sampling { presence_penalty: 1.5, ..Sampling::greedy() };
        assert_eq!(choose_with(&presence, &[2.0, 3.0], &history, stream), Some(1));
        history.add(1);
        assert_eq!(choose_with(&presence, &[2.0, 3.0], &history, stream), Some(0));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let plain = Sampling::default();
        let range = |setting: &str, sampling: Sampling| {
            let error = sampling.check(10).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{setting} is ")), "{error}");
        };
        for x in [-0.1, f64::NAN, f64::INFINITY] {
            range("temperature", Sampling { temperature: x, ..plain.clone() });
            range("min_p", Sampling { min_p: x, ..plain.clone() });
            range("repetition_penalty", Sampling { repetition_penalty: x, ..plain.clone() });
        }
        for x in [0.0, 1.1, f64::NAN] {
            range("top_p", Sampling { top_p: x, ..plain.clone() });
            range("typical_p", Sampling { typical_p: x, ..plain.clone() });
        }
        range("frequency_penalty", Sampling { frequency_penalty: f64::NAN, ..plain.clone() });
        range("presence_penalty", Sampling { presence_penalty: f64::INFINITY, ..plain.clone() });
        let bias = |id, bias| Sampling { logit_bias: vec![(id, bias)], ..plain.clone() }.check(10);
        assert_eq!(bias(10, 0.0), Err(SamplingError::BiasId { id: 10, rows: 10 }));
        assert!(matches!(bias(1, f32::NAN), Err(SamplingError::Bias { id: 1, .. })));
        assert!(matches!(bias(1, f32::INFINITY), Err(SamplingError::Bias { id: 1, .. })));
        assert_eq!(bias(9, f32::NEG_INFINITY), Ok(()));
    }
}
