//! The settings of DPO and its relatives, named as trl's `DPOConfig` and `CPOConfig` name them, and which go together.

use serde::{Deserialize, Serialize};

use super::error::PreferenceError;
use crate::names::names;

names! {
    "loss type";
    /// A loss of a pair of answers. `s_c`, `s_r` are the log-ratios of the chosen and the rejected answer between policy and
    /// reference (their f-divergence scores where one is chosen), `Δ = s_c − s_r`, `z = βΔ`, `n` lengths, `ℓ` mean
    /// log-probabilities of a token under the policy, ε `label_smoothing`.
    pub enum LossType {
        /// DPO (Rafailov et al., arXiv 2305.18290): `−(1−ε)·log σ(z) − ε·log σ(−z)`. With ε it is cDPO, open-instruct's
        /// meaning of label smoothing; trl 1.16 has no ε here.
        Sigmoid = "sigmoid" | "dpo" | "cdpo",
        /// Length-normalised DPO: as sigmoid with `Δ = s_c/n_c − s_r/n_r`.
        SigmoidNorm = "sigmoid_norm" | "dpo_norm",
        /// SimPO (Meng et al., arXiv 2405.14734): as sigmoid with `Δ = ℓ_c − ℓ_r − γ/β`; no reference.
        Simpo = "simpo",
        /// WPO (Zhou et al., arXiv 2406.11827): sigmoid times `min(1, w_c·w_r)`, `w = exp(mean(log p − log Σp²))`, without a
        /// gradient of its own.
        Wpo = "wpo",
        /// IPO (Azar et al., arXiv 2310.12036), by the mean of a token: `(s_c/n_c − s_r/n_r − 1/2β)²`.
        Ipo = "ipo",
        /// SLiC (Zhao et al., arXiv 2305.10425): `max(0, 1 − z)`.
        Hinge = "hinge",
        /// Robust DPO (Chowdhury et al., arXiv 2403.00409): `[−(1−ε)·log σ(z) + ε·log σ(−z)]/(1−2ε)`.
        Robust = "robust",
        /// EXO (Ji et al., arXiv 2402.00856): `σ(z)·(log σ(z) − log(1−ε)) + σ(−z)·(log σ(−z) − log ε)`.
        ExoPair = "exo_pair",
        /// NCA (Chen et al., arXiv 2402.05369): `−log σ(βs_c) − ½·log σ(−βs_c) − ½·log σ(−βs_r)`.
        NcaPair = "nca_pair",
        /// BCO (Jung et al., arXiv 2404.04656): `−log σ(βs_c − δ) − log σ(−(βs_r − δ))`; trl 1.16 has δ = 0, versions before
        /// 1.10 the running mean of all rewards: [`StepTotals::delta`](super::StepTotals::delta).
        BcoPair = "bco_pair",
        /// SPPO with hard labels (Wu et al., arXiv 2405.00675): `(s_c − ½/β)² + (s_r + ½/β)²`.
        SppoHard = "sppo_hard",
        /// APO-zero (D'Oosterlinck et al., arXiv 2408.06266): `1 − σ(βs_c) + σ(βs_r)`.
        ApoZero = "apo_zero",
        /// APO-down, of the same paper: `σ(βs_c) + 1 − σ(β(s_c − s_r))`.
        ApoDown = "apo_down",
        /// AOT (Melnyk et al., arXiv 2406.05882): as sigmoid with the k-th smallest log-ratio between the answers under the
        /// policy minus the k-th smallest under the reference.
        Aot = "aot",
        /// Unpaired AOT: as sigmoid with the k-th smallest `s_c` minus the k-th smallest `s_r`.
        AotUnpaired = "aot_unpaired",
        /// DiscoPOP (Lu et al., arXiv 2406.08414): `(1−m)·(−log σ(z)) + m·e⁻ᶻ`, `m = σ(z/τ)`.
        Discopop = "discopop",
        /// ORPO (Hong et al., arXiv 2403.07691): cross-entropy of the chosen answer minus `λ·log σ(log odds ratio)`, the odds
        /// those of `exp ℓ`; λ is `beta`, as in trl. The cross-entropy is over the answer; trl's ORPO takes the prompt, too.
        Orpo = "orpo",
        /// CPO (Xu et al., arXiv 2401.08417): as sigmoid with the policy's sums alone, plus `cpo_alpha` times the
        /// cross-entropy of the chosen answer.
        Cpo = "cpo",
        /// Cross-entropy of the chosen answers, mean over their tokens in the step: for sums of several losses.
        Sft = "sft",
    }
}

names! {
    "f-divergence";
    /// What a log-ratio `s` counts (f-DPO, Wang et al., arXiv 2309.16240): `f′(eˢ)` up to a constant.
    pub enum FDivergence {
        /// `s`: DPO.
        ReverseKl = "reverse_kl",
        /// `1 − e⁻ˢ`
        ForwardKl = "forward_kl",
        /// `log 2 + log σ(s)`
        JsDivergence = "js_divergence" | "js",
        /// `(e^{(α−1)s} − 1)/(α − 1)`; the exponent is at most 80, and `s` at α = 1.
        AlphaDivergence = "alpha_divergence" | "alpha",
    }
}

impl LossType {
    /// Whether it compares with a reference model.
    pub fn needs_reference(self) -> bool {
        !matches!(self, LossType::Simpo | LossType::Orpo | LossType::Cpo | LossType::Sft)
    }

    /// Whether it compares the answers of a step with each other, so that all of them have to be known at once.
    pub fn is_of_whole_step(self) -> bool {
        matches!(self, LossType::Aot | LossType::AotUnpaired)
    }

    fn smooths_labels(self) -> bool {
        use LossType::*;
        matches!(self, Sigmoid | SigmoidNorm | Simpo | Wpo | Robust | ExoPair | Aot | AotUnpaired | Cpo)
    }

    /// Whether it is a function of the difference of two scores, which is all that a divergence gives.
    fn takes_divergence(self) -> bool {
        use LossType::*;
        matches!(self, Sigmoid | SigmoidNorm | Wpo | Hinge | Ipo | ExoPair | Robust | Discopop | Sft)
    }

    /// Whether a weight of the pair multiplies it: not where a loss is not of one pair, or has no rejected answer.
    fn takes_weights(self) -> bool {
        use LossType::*;
        !matches!(self, Aot | AotUnpaired | Sft | Orpo | Cpo | Wpo)
    }
}

/// Settings of DPO and its relatives; the defaults are those of trl 1.16, that of `gamma_beta_ratio` is open-instruct's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// The losses, one or a sum of several (MPO: `[sigmoid, bco_pair, sft]`). Default `[sigmoid]`.
    pub loss_type: Vec<LossType>,
    /// The weight of each (MPO: `[0.8, 0.2, 1.0]`). Default none: 1 each.
    pub loss_weights: Option<Vec<f64>>,
    /// β: how much the policy is held to the reference; τ of IPO, λ of ORPO. Default 0.1, in trl and open-instruct; the 0125
    /// model was tuned with `dpo_norm` and 5.
    pub beta: f64,
    /// ε: see each loss type. Default 0; EXO's paper has 1e-3, that of robust DPO 0.1.
    pub label_smoothing: f64,
    /// α of LD-DPO: the weight of tokens beyond the length of the pair's shorter answer. Default none: 1.
    pub ld_alpha: Option<f64>,
    /// The divergence from the reference. Default `reverse_kl`.
    pub f_divergence_type: FDivergence,
    /// α of `alpha_divergence`. Default 0.5.
    pub f_alpha_divergence_coef: f64,
    /// τ of DiscoPOP. Default 0.05.
    pub discopop_tau: f64,
    /// WPO's weights, without the limit 1 that the loss type `wpo` has, on every loss. Default false.
    pub use_weighting: bool,
    /// γ/β of SimPO. Default 0.3, open-instruct's `dpo_gamma_beta_ratio`; trl's `simpo_gamma` is γ, 0.5.
    pub gamma_beta_ratio: f64,
    /// The weight of the cross-entropy in CPO. Default 1.
    pub cpo_alpha: f64,
}

impl Default for PreferenceSettings {
    fn default() -> Self {
        PreferenceSettings {
            loss_type: vec![LossType::Sigmoid],
            loss_weights: None,
            beta: 0.1,
            label_smoothing: 0.0,
            ld_alpha: None,
            f_divergence_type: FDivergence::ReverseKl,
            f_alpha_divergence_coef: 0.5,
            discopop_tau: 0.05,
            use_weighting: false,
            gamma_beta_ratio: 0.3,
            cpo_alpha: 1.0,
        }
    }
}

fn value(key: &'static str, found: impl ToString, problem: &'static str) -> PreferenceError {
    PreferenceError::Value { key, found: found.to_string(), problem }
}

impl PreferenceSettings {
    /// One loss with the defaults.
    pub fn of(loss_type: LossType) -> PreferenceSettings {
        PreferenceSettings { loss_type: vec![loss_type], ..PreferenceSettings::default() }
    }

    /// The losses as one text, for messages.
    fn losses(&self) -> String {
        self.loss_type.iter().map(|loss| loss.name()).collect::<Vec<_>>().join(", ")
    }

    fn together(&self, key: &'static str, found: impl ToString, problem: &'static str) -> PreferenceError {
        PreferenceError::Together { key, found: found.to_string(), loss_type: self.losses(), problem }
    }

    /// The first setting that is out of its range or has no effect.
    pub(super) fn check(&self) -> Result<(), PreferenceError> {
        self.check_values()?;
        let any = |has: fn(LossType) -> bool| self.loss_type.iter().any(|loss| has(*loss));
        let all = |has: fn(LossType) -> bool| self.loss_type.iter().all(|loss| has(*loss));
        if self.label_smoothing != 0.0 && !any(LossType::smooths_labels) {
            let problem = "it has no effect there; set 0, or use sigmoid (cDPO), robust or exo_pair";
            return Err(self.together("label_smoothing", self.label_smoothing, problem));
        }
        if any(|loss| loss == LossType::ExoPair) && self.label_smoothing == 0.0 {
            let problem = "EXO's loss is infinite without it; its paper has 1e-3";
            return Err(self.together("label_smoothing", self.label_smoothing, problem));
        }
        if any(|loss| loss == LossType::Robust) && self.label_smoothing >= 0.5 {
            let problem = "it must be less than 0.5: as many labels are wrong as right there";
            return Err(self.together("label_smoothing", self.label_smoothing, problem));
        }
        if self.f_divergence_type != FDivergence::ReverseKl && !all(LossType::takes_divergence) {
            let problem = "only a loss of the difference of two scores has other divergences: sigmoid, sigmoid_norm, wpo, \
                           hinge, ipo, exo_pair, robust, discopop, sft; set reverse_kl";
            return Err(self.together("f_divergence_type", self.f_divergence_type, problem));
        }
        if let Some(alpha) = self.ld_alpha
            && any(|loss| matches!(loss, LossType::Simpo | LossType::Orpo | LossType::Cpo))
        {
            let problem = "LD-DPO compares with a reference, these do not; leave it out";
            return Err(self.together("ld_alpha", alpha, problem));
        }
        if self.use_weighting && !all(LossType::takes_weights) {
            let problem = "a weight of each pair is not defined for aot, aot_unpaired, sft, orpo and cpo, and wpo has it already; \
                           set false";
            return Err(self.together("use_weighting", self.use_weighting, problem));
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), PreferenceError> {
        if self.loss_type.is_empty() {
            return Err(value("loss_type", "empty", "name at least one; sigmoid is DPO"));
        }
        if let Some(weights) = &self.loss_weights {
            if weights.len() != self.loss_type.len() {
                let found = format!("{} numbers", weights.len());
                return Err(self.together("loss_weights", found, "give one weight for each loss type"));
            }
            if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
                return Err(value("loss_weights", weight, "weights must be finite and at least 0"));
            }
        }
        let positive = [("beta", self.beta), ("discopop_tau", self.discopop_tau)];
        if let Some((key, found)) = positive.into_iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return Err(value(key, found, "it must be finite and greater than 0"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(value("label_smoothing", self.label_smoothing, "it must be at least 0 and less than 1"));
        }
        if let Some(alpha) = self.ld_alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(value("ld_alpha", alpha, "it must be between 0 and 1; 1 weighs all tokens alike"));
        }
        let finite = [
            ("f_alpha_divergence_coef", self.f_alpha_divergence_coef),
            ("gamma_beta_ratio", self.gamma_beta_ratio),
            ("cpo_alpha", self.cpo_alpha),
        ];
        match finite.into_iter().find(|(_, x)| !x.is_finite()) {
            Some((key, found)) => Err(value(key, found, "it must be finite")),
            None => Ok(()),
        }
    }
}
