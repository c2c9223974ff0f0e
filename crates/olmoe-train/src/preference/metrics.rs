//! What trl and open-instruct report of a step of preference tuning, by their names: means over the step.

use super::completion::AnswerLoss;
use super::kto::{Kto, LabelledLoss};
use super::logistic::log_sigmoid;
use super::objective::{PairLoss, Preference};
use super::settings::LossType;

/// What is known of single tokens: of all answers for the entropy, of chosen ones for the accuracy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenStatistics {
    /// Tokens that the policy holds for the most likely.
    pub correct: u64,
    /// Of how many.
    pub chosen_tokens: u64,
    /// The sum of the entropies of the policy's distributions, in nats.
    pub entropy: f64,
    /// Of how many.
    pub tokens: u64,
}

/// Sums over the answers of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Side {
    answers: u64,
    policy: f64,
    rewards: f64,
    mean_policy: f64,
    mean_rewards: f64,
}

impl Side {
    fn add(&mut self, answer: &AnswerLoss, beta: f64) {
        let length = answer.tokens.max(1) as f64;
        self.answers += 1;
        self.policy += answer.policy;
        self.mean_policy += answer.policy / length;
        self.rewards += reward(answer, beta, false);
        self.mean_rewards += reward(answer, beta, true);
    }

    /// The means over the answers of log-probability and reward, if there are answers.
    fn means(&self, of_tokens: bool) -> Option<(f64, f64)> {
        let (policy, rewards) =
            if of_tokens { (self.mean_policy, self.mean_rewards) } else { (self.policy, self.rewards) };
        (self.answers > 0).then(|| (policy / self.answers as f64, rewards / self.answers as f64))
    }
}

/// `β·(log π − log π_ref)`, of the whole answer or of a token in the mean.
fn reward(answer: &AnswerLoss, beta: f64, of_tokens: bool) -> f64 {
    let length = if of_tokens { answer.tokens.max(1) as f64 } else { 1.0 };
    beta * (answer.policy - answer.reference) / length
}

/// The metrics of a step, while its parts come in.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceMetrics {
    beta: f64,
    loss_types: Vec<LossType>,
    loss: f64,
    chosen: Side,
    rejected: Side,
    /// Pairs whose chosen answer has the larger reward, by whole answers and by tokens.
    accurate: [u64; 2],
    cross_entropy: f64,
    log_odds_ratio: f64,
    log_sigmoid_odds: f64,
    chosen_tokens: u64,
    tokens: TokenStatistics,
    kl: Option<f64>,
    auxiliary: Option<f64>,
}

/// Names and values.
type Named = Vec<(&'static str, f64)>;

impl PreferenceMetrics {
    fn new(beta: f64, loss_types: Vec<LossType>) -> PreferenceMetrics {
        PreferenceMetrics {
            beta,
            loss_types,
            loss: 0.0,
            chosen: Side::default(),
            rejected: Side::default(),
            accurate: [0; 2],
            cross_entropy: 0.0,
            log_odds_ratio: 0.0,
            log_sigmoid_odds: 0.0,
            chosen_tokens: 0,
            tokens: TokenStatistics::default(),
            kl: None,
            auxiliary: None,
        }
    }

    /// Those of a step of pairs.
    pub fn of_pairs(preference: &Preference) -> PreferenceMetrics {
        PreferenceMetrics::new(preference.settings().beta, preference.settings().loss_type.clone())
    }

    /// Those of a step of labelled answers; `kl` is what they are compared with.
    pub fn of_answers(kto: &Kto, kl: f64) -> PreferenceMetrics {
        PreferenceMetrics { kl: Some(kl), ..PreferenceMetrics::new(kto.settings().beta, Vec::new()) }
    }

    /// Takes in a pair.
    pub fn add_pair(&mut self, pair: &PairLoss) {
        self.loss += pair.loss;
        self.chosen.add(&pair.chosen, self.beta);
        self.rejected.add(&pair.rejected, self.beta);
        for (accurate, of_tokens) in self.accurate.iter_mut().zip([false, true]) {
            let [chosen, rejected] = [&pair.chosen, &pair.rejected].map(|side| reward(side, self.beta, of_tokens));
            *accurate += u64::from(chosen > rejected);
        }
        self.cross_entropy += pair.cross_entropy;
        self.chosen_tokens += pair.chosen.tokens as u64;
        self.log_odds_ratio += pair.log_odds_ratio;
        self.log_sigmoid_odds += log_sigmoid(pair.log_odds_ratio);
    }

    /// Takes in a labelled answer.
    pub fn add_answer(&mut self, answer: &LabelledLoss) {
        self.loss += answer.loss;
        let side = if answer.desirable { &mut self.chosen } else { &mut self.rejected };
        side.add(&answer.answer, self.beta);
    }

    /// Takes in what is known of tokens.
    pub fn add_tokens(&mut self, tokens: &TokenStatistics) {
        self.tokens.correct += tokens.correct;
        self.tokens.chosen_tokens += tokens.chosen_tokens;
        self.tokens.entropy += tokens.entropy;
        self.tokens.tokens += tokens.tokens;
    }

    /// Takes in the routers' auxiliary loss of a part of the step: `loss` without and `weighted` with weight and share.
    pub fn add_auxiliary(&mut self, loss: f64, weighted: f64) {
        self.auxiliary = Some(self.auxiliary.unwrap_or(0.0) + loss);
        self.loss += weighted;
    }

    /// The loss so far.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    fn has(&self, any_of: &[LossType]) -> bool {
        self.loss_types.iter().any(|loss| any_of.contains(loss))
    }

    /// By trl's names: log-probabilities and rewards of whole answers, of tokens in the mean for `simpo` and `orpo`; without
    /// `logits/…`, which a fused head does not make. What there is no answer for is left out.
    pub fn trl(&self) -> Named {
        let of_tokens = self.has(&[LossType::Simpo, LossType::Orpo]);
        let mut named = vec![("loss", self.loss)];
        let (chosen, rejected) = (self.chosen.means(of_tokens), self.rejected.means(of_tokens));
        named.extend(chosen.map(|(_, reward)| ("rewards/chosen", reward)));
        named.extend(rejected.map(|(_, reward)| ("rewards/rejected", reward)));
        if self.kl.is_none() && self.chosen.answers > 0 {
            let accurate = self.accurate[usize::from(of_tokens)] as f64;
            named.push(("rewards/accuracies", accurate / self.chosen.answers as f64));
        }
        named.extend(chosen.zip(rejected).map(|((_, chosen), (_, rejected))| ("rewards/margins", chosen - rejected)));
        named.extend(chosen.map(|(policy, _)| ("logps/chosen", policy)));
        named.extend(rejected.map(|(policy, _)| ("logps/rejected", policy)));
        named.extend(self.kl.map(|kl| ("kl", kl)));
        if self.has(&[LossType::Orpo, LossType::Cpo]) && self.chosen_tokens > 0 {
            named.push(("nll_loss", self.cross_entropy / self.chosen_tokens as f64));
        }
        if self.has(&[LossType::Orpo]) && self.chosen.answers > 0 {
            named.push(("log_odds_ratio", self.log_sigmoid_odds / self.chosen.answers as f64));
            named.push(("log_odds_chosen", self.log_odds_ratio / self.chosen.answers as f64));
        }
        named.extend(self.tokens.named());
        named.extend(self.auxiliary.map(|loss| ("aux_loss", loss)));
        named
    }

    /// By open-instruct's names: log-probabilities and rewards of tokens in the mean for `dpo_norm` and `simpo`.
    pub fn open_instruct(&self) -> Named {
        let of_tokens = self.has(&[LossType::SigmoidNorm, LossType::Simpo]);
        let mut named = vec![("train_loss", self.loss)];
        if let (Some((logp_c, chosen)), Some((logp_r, rejected))) =
            (self.chosen.means(of_tokens), self.rejected.means(of_tokens))
        {
            let accurate = self.accurate[usize::from(of_tokens)] as f64;
            named.extend([
                ("rewards/chosen", chosen),
                ("rewards/rejected", rejected),
                ("rewards/average", 0.5 * (chosen + rejected)),
                ("rewards/accuracy", accurate / self.chosen.answers as f64),
                ("rewards/margin", chosen - rejected),
                ("logps/chosen", logp_c),
                ("logps/rejected", logp_r),
            ]);
        }
        named.extend(self.auxiliary.map(|loss| ("aux_loss", loss)));
        named
    }
}

impl TokenStatistics {
    /// By trl's names, those that there are tokens for.
    pub fn named(&self) -> Named {
        let share = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        let accuracy = share(self.correct as f64, self.chosen_tokens).map(|x| ("mean_token_accuracy", x));
        accuracy.into_iter().chain(share(self.entropy, self.tokens).map(|x| ("entropy", x))).collect()
    }
}
