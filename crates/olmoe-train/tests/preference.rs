//! The losses of DPO and its relatives: against trl, whose numbers tools/reference/make_golden_preference.py has written,
//! against their own differences, and how they take a step in parts.

use std::f64::consts::LN_2;

use olmoe_train::preference::{
    Completion, FDivergence, LossType, PairLoss, Preference, PreferenceError, PreferenceMetrics, PreferencePair,
    PreferenceSettings, ReferenceLogProb, RunningMean, StepTotals, TokenStatistics, log_prob,
};
use serde_json::Value;

const GOLDEN: &str = include_str!("golden/preference.json");

/// An answer with its numbers.
#[derive(Clone, Debug, Default)]
struct Answer {
    logp: Vec<f32>,
    reference: Vec<f32>,
    squares: Vec<f32>,
}

#[derive(Clone, Debug, Default)]
struct Answers {
    chosen: Answer,
    rejected: Answer,
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn golden() -> (Value, Vec<Answers>) {
    let golden: Value = serde_json::from_str(GOLDEN).expect("JSON");
    let answer = |value: &Value| Answer {
        logp: numbers(&value["logp"]),
        reference: numbers(&value["ref"]),
        squares: numbers(&value["log_sum_squares"]),
    };
    let pairs = golden["pairs"].as_array().expect("pairs").iter();
    let pairs = pairs.map(|pair| Answers { chosen: answer(&pair["chosen"]), rejected: answer(&pair["rejected"]) });
    let pairs = pairs.collect();
    (golden, pairs)
}

impl Answer {
    fn view(&self) -> Completion<'_> {
        let reference = ReferenceLogProb::Tokens(&self.reference);
        Completion { logp_t: &self.logp, log_sum_squares_t: Some(&self.squares), reference }
    }
}

fn views(pairs: &[Answers]) -> Vec<PreferencePair<'_>> {
    pairs.iter().map(|pair| PreferencePair { chosen: pair.chosen.view(), rejected: pair.rejected.view() }).collect()
}

fn preference(settings: PreferenceSettings) -> Preference {
    Preference::new(settings).expect("good settings")
}

fn losses(settings: &PreferenceSettings, pairs: &[Answers], delta: f64) -> Vec<PairLoss> {
    let views = views(pairs);
    let totals = StepTotals { delta, ..StepTotals::of(&views) };
    preference(settings.clone()).losses(&views, &totals).expect("losses")
}

fn total(losses: &[PairLoss]) -> f64 {
    losses.iter().map(|loss| loss.loss).sum()
}

fn assert_near(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "{what}: {got:e}, not {expected:e}");
}

/// Settings under which a loss type is defined, with others than the defaults where they count.
fn settings_of(loss_type: LossType) -> PreferenceSettings {
    let mut settings = PreferenceSettings::of(loss_type);
    if matches!(loss_type, LossType::Robust | LossType::ExoPair) {
        settings.label_smoothing = 0.1;
    }
    settings
}

/// Policy and reference are one.
fn start(pairs: &mut [Answers]) {
    for answer in pairs.iter_mut().flat_map(|pair| [&mut pair.chosen, &mut pair.rejected]) {
        answer.reference.clone_from(&answer.logp);
    }
}

#[test]
fn losses_gradients_and_metrics_are_those_of_trl() {
    let (golden, pairs) = golden();
    let mut seen = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let settings: PreferenceSettings = serde_json::from_value(case["settings"].clone()).expect("settings");
        let what = format!("{} by {}", case["settings"], case["by"]);
        let tolerance = case["tolerance"].as_f64().expect("a number");
        let losses = losses(&settings, &pairs, case["delta"].as_f64().expect("a number"));
        assert_near(total(&losses), case["loss"].as_f64().expect("a number"), tolerance, &what);
        for (at, loss) in losses.iter().enumerate() {
            for (side, answer) in [("chosen", &loss.chosen), ("rejected", &loss.rejected)] {
                let expected = case[side][at].as_array().expect("gradients");
                assert_eq!(expected.len(), answer.tokens);
                for (t, expected) in expected.iter().enumerate() {
                    let expected = expected.as_f64().expect("a number");
                    assert_near(answer.gradient.at(t), expected, tolerance, &format!("{what}: {side} {at}, token {t}"));
                }
            }
        }
        let mut metrics = PreferenceMetrics::of_pairs(&preference(settings.clone()));
        losses.iter().for_each(|loss| metrics.add_pair(loss));
        let named = metrics.trl();
        for (name, expected) in case["metrics"].as_object().into_iter().flatten() {
            let got = named.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{what}: no {name}")).1;
            // trl counts in f32.
            let tolerance = if name == "rewards/accuracies" { 1e-7 } else { tolerance };
            assert_near(got, expected.as_f64().expect("a number"), tolerance, &format!("{what}: {name}"));
        }
        seen.extend(settings.loss_type);
    }
    assert!(LossType::ALL.iter().all(|loss| seen.contains(loss)), "a loss type without a golden case");
}

#[test]
fn start_values_are_those_of_the_papers() {
    let (_, mut pairs) = golden();
    start(&mut pairs);
    let starts = [
        (LossType::Sigmoid, LN_2),
        (LossType::Hinge, 1.0),
        (LossType::Ipo, 25.0),
        (LossType::Robust, LN_2),
        (LossType::ExoPair, 0.510826),
        (LossType::NcaPair, 2.0 * LN_2),
        (LossType::BcoPair, 2.0 * LN_2),
        (LossType::SppoHard, 50.0),
        (LossType::Aot, LN_2),
        (LossType::AotUnpaired, LN_2),
        (LossType::ApoZero, 1.0),
        (LossType::ApoDown, 1.0),
        (LossType::Discopop, 0.846574),
        (LossType::SigmoidNorm, LN_2),
    ];
    for (loss_type, expected) in starts {
        assert_near(total(&losses(&settings_of(loss_type), &pairs, 0.0)), expected, 1e-6, loss_type.name());
    }
    // Whatever the lengths and however many pairs: log-ratios are exactly 0, and a step of packed pairs starts at log 2, too.
    for count in 1..=pairs.len() {
        for loss in losses(&PreferenceSettings::default(), &pairs[..count], 0.0) {
            assert_eq!(loss.chosen.policy.to_bits(), loss.chosen.reference.to_bits());
            assert_eq!(loss.loss, LN_2 * (1.0 / count as f64));
        }
    }
    for divergence in FDivergence::ALL.iter().copied() {
        let settings = PreferenceSettings { f_divergence_type: divergence, ..PreferenceSettings::default() };
        assert_near(total(&losses(&settings, &pairs, 0.0)), LN_2, 1e-6, divergence.name());
    }
    // The sum of a reference, kept on its own, is as good as its tokens.
    let mut kept = views(&pairs);
    for pair in &mut kept {
        pair.chosen.reference = ReferenceLogProb::Sum(log_prob(pair.chosen.logp_t));
        pair.rejected.reference = ReferenceLogProb::Sum(log_prob(pair.rejected.logp_t));
    }
    let dpo = preference(PreferenceSettings::default());
    let losses = dpo.losses(&kept, &StepTotals::of(&kept)).expect("losses");
    assert_eq!(losses, self::losses(&PreferenceSettings::default(), &pairs, 0.0));
}

#[test]
fn after_a_step_the_loss_is_another() {
    let (_, mut pairs) = golden();
    start(&mut pairs);
    for loss_type in [LossType::Sigmoid, LossType::SigmoidNorm, LossType::Robust, LossType::ApoZero, LossType::NcaPair]
    {
        let settings = settings_of(loss_type);
        let before = losses(&settings, &pairs, 0.0);
        let mut moved = pairs.clone();
        for (answers, loss) in moved.iter_mut().zip(&before) {
            for (answer, side) in [(&mut answers.chosen, &loss.chosen), (&mut answers.rejected, &loss.rejected)] {
                answer.logp.iter_mut().enumerate().for_each(|(t, x)| *x -= side.gradient.at(t) as f32);
            }
        }
        assert!(total(&losses(&settings, &moved, 0.0)) < total(&before), "{loss_type}");
    }
}

#[test]
fn gradients_relate_to_those_of_dpo_as_known() {
    let (_, mut pairs) = golden();
    start(&mut pairs);
    let by = |settings: &PreferenceSettings| losses(settings, &pairs, 0.0)[0].chosen.gradient.shared;
    let dpo = by(&PreferenceSettings::default());
    let ratios = [
        (LossType::Hinge, 2.0),
        (LossType::Robust, 1.25),
        (LossType::ExoPair, 0.5 * 9f64.ln()),
        (LossType::NcaPair, 0.5),
        (LossType::BcoPair, 1.0),
        (LossType::SppoHard, 200.0),
        (LossType::ApoZero, 0.5),
    ];
    for (loss_type, ratio) in ratios {
        assert_near(by(&settings_of(loss_type)) / dpo, ratio, 1e-9, loss_type.name());
    }
    for (divergence, ratio) in FDivergence::ALL.iter().copied().zip([1.0, 1.0, 0.5, 1.0]) {
        let settings = PreferenceSettings { f_divergence_type: divergence, ..PreferenceSettings::default() };
        assert_near(by(&settings) / dpo, ratio, 1e-9, divergence.name());
    }
}

#[test]
fn what_one_answer_gains_the_other_loses() {
    let (_, pairs) = golden();
    let symmetric = [LossType::Sigmoid, LossType::Wpo, LossType::Hinge, LossType::Robust, LossType::ExoPair];
    for loss_type in symmetric.into_iter().chain([LossType::Discopop, LossType::Aot]) {
        for loss in losses(&settings_of(loss_type), &pairs, 0.0) {
            assert_eq!(loss.chosen.gradient.shared, -loss.rejected.gradient.shared, "{loss_type}");
        }
    }
    for loss in losses(&PreferenceSettings::default(), &pairs, 0.0) {
        let delta = (loss.chosen.policy - loss.chosen.reference) - (loss.rejected.policy - loss.rejected.reference);
        let expected = -0.1 / (1.0 + (0.1 * delta).exp()) / pairs.len() as f64;
        assert_near(loss.chosen.gradient.at(0), expected, 1e-15, "−βσ(−βΔ)");
    }
    // By their means, the gradients of a token are in the ratio of the lengths.
    for loss_type in [LossType::SigmoidNorm, LossType::Simpo, LossType::Ipo] {
        for loss in losses(&settings_of(loss_type), &pairs, 0.0) {
            let [chosen, rejected] =
                [&loss.chosen, &loss.rejected].map(|side| side.gradient.at(0) * side.tokens as f64);
            assert_near(chosen + rejected, 0.0, 1e-14, loss_type.name());
        }
    }
}

/// Settings of all kinds, each of which counts.
fn all_settings() -> Vec<(PreferenceSettings, f64)> {
    let mut all = Vec::new();
    for loss_type in LossType::ALL.iter().copied() {
        let plain = settings_of(loss_type);
        let smooth = PreferenceSettings { beta: 0.8, label_smoothing: 0.15, ..plain.clone() };
        let long = PreferenceSettings { ld_alpha: Some(0.4), beta: 0.3, ..plain.clone() };
        let weighted = PreferenceSettings { use_weighting: true, ..plain.clone() };
        all.extend([plain.clone(), smooth, long, weighted]);
        for divergence in FDivergence::ALL.iter().copied() {
            all.push(PreferenceSettings { f_divergence_type: divergence, beta: 0.7, ..plain.clone() });
        }
    }
    let mixed = vec![LossType::Sigmoid, LossType::BcoPair, LossType::Sft];
    all.push(PreferenceSettings {
        loss_type: mixed,
        loss_weights: Some(vec![0.8, 0.2, 1.0]),
        ld_alpha: Some(0.5),
        ..PreferenceSettings::default()
    });
    let good = all.into_iter().filter(|settings| Preference::new(settings.clone()).is_ok());
    good.map(|settings| (settings, 0.2)).collect()
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    let (_, pairs) = golden();
    let all = all_settings();
    assert!(all.len() > 60, "{}", all.len());
    for (settings, delta) in all {
        let known = losses(&settings, &pairs, delta);
        // WPO's weights are constants: with those of the tokens moved as well, they stay.
        for (at, t) in [(0, 0), (1, 2), (2, 6), (4, 3), (5, 5)] {
            for chosen in [true, false] {
                let side = if chosen { known[at].chosen } else { known[at].rejected };
                if t >= side.tokens {
                    continue;
                }
                let moved = |step: f32| {
                    let mut pairs = pairs.clone();
                    let answer = if chosen { &mut pairs[at].chosen } else { &mut pairs[at].rejected };
                    answer.logp[t] += step;
                    answer.squares[t] += step;
                    total(&losses(&settings, &pairs, delta))
                };
                // Powers of 2 are added to multiples of 1/256 without rounding.
                let h = 2f32.powi(-9);
                let coarse = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                let fine = (moved(h / 2.0) - moved(-h / 2.0)) / f64::from(h);
                let slope = fine + (fine - coarse) / 3.0;
                let what = format!("{settings:?}: pair {at}, token {t}, chosen {chosen}");
                assert_near(side.gradient.at(t), slope, 1e-7, &what);
            }
        }
    }
}

#[test]
fn a_step_in_parts_is_the_same_step() {
    let (_, pairs) = golden();
    for (settings, delta) in all_settings() {
        let preference = preference(settings.clone());
        let views = views(&pairs);
        let totals = StepTotals { delta, ..StepTotals::of(&views) };
        let whole = preference.losses(&views, &totals).expect("losses");
        for size in 1..views.len() {
            let parts: Result<Vec<_>, _> = views.chunks(size).map(|part| preference.losses(part, &totals)).collect();
            match parts {
                Ok(parts) => assert_eq!(parts.concat(), whole, "{settings:?}"),
                Err(PreferenceError::PartOfStep { found, expected: 6, .. }) => {
                    assert!(preference.is_of_whole_step() && found == size as u64);
                }
                Err(error) => panic!("{settings:?}: {error}"),
            }
        }
    }
}

#[test]
fn long_and_short_answers_and_certain_ones_have_finite_losses() {
    let (_, mut pairs) = golden();
    // Tokens of probability 1, an answer without tokens, log-ratios of thousands.
    pairs[0].chosen.logp.fill(0.0);
    pairs[1].rejected = Answer::default();
    pairs[2].chosen.logp.fill(-900.0);
    pairs[3].rejected.logp.fill(-2000.0);
    for (settings, delta) in all_settings() {
        if settings.f_divergence_type == FDivergence::ReverseKl {
            let losses = losses(&settings, &pairs, delta);
            assert!(total(&losses).is_finite(), "{settings:?}");
        }
    }
    // e^{6000} is beyond all numbers.
    let settings = PreferenceSettings { f_divergence_type: FDivergence::ForwardKl, ..PreferenceSettings::default() };
    let error = preference(settings).losses(&views(&pairs), &StepTotals::of(&views(&pairs))).expect_err("infinite");
    assert!(
        error.to_string().starts_with("pair 2: the loss is inf, with log-probabilities of -6300 (chosen), "),
        "{error}"
    );
    pairs[5].rejected.logp[3] = f32::NAN;
    for (settings, delta) in all_settings() {
        let views = views(&pairs[4..]);
        let totals = StepTotals { delta, ..StepTotals::of(&views) };
        let result = preference(settings.clone()).losses(&views, &totals);
        let without = settings.loss_type == [LossType::Sft];
        assert_eq!(result.is_err(), !without, "{settings:?}");
        if let Err(error) = result {
            assert!(matches!(error, PreferenceError::NotFinite { .. }), "{error}");
        }
    }
}

#[test]
fn a_kept_reference_has_to_fit_the_weights_of_long_answers() {
    let (_, pairs) = golden();
    let long = preference(PreferenceSettings { ld_alpha: Some(0.3), ..PreferenceSettings::default() });
    let views = views(&pairs[..1]);
    let totals = StepTotals::of(&views);
    let whole = long.losses(&views, &totals).expect("losses");
    let with = |reference| {
        let mut views = views.clone();
        views[0].chosen.reference = reference;
        long.losses(&views, &totals)
    };
    let reference = &pairs[0].chosen.reference;
    let split =
        ReferenceLogProb::Split { tokens: 4, shared: log_prob(&reference[..4]), rest: log_prob(&reference[4..]) };
    assert_eq!(with(split).expect("losses"), whole);
    let refused = [
        (ReferenceLogProb::Sum(-3.0), "one sum, expected those of its tokens, or of its first 4 and the others"),
        (
            ReferenceLogProb::Split { tokens: 3, shared: 0.0, rest: 0.0 },
            "split after 3 tokens, expected a split after 4",
        ),
        (ReferenceLogProb::Tokens(&reference[..2]), "of 2 tokens, expected those of 5"),
        (ReferenceLogProb::None, "no log-probability of the reference model, which sigmoid compares with"),
    ];
    for (reference, text) in refused {
        let error = with(reference).expect_err("it does not fit").to_string();
        assert!(error.starts_with("pair 0, the chosen answer: ") && error.contains(text), "{error}");
    }
    // Answers of one length have no long part.
    let equal = self::views(&pairs[2..3]);
    let mut kept = equal.clone();
    kept[0].chosen.reference = ReferenceLogProb::Sum(log_prob(&pairs[2].chosen.reference));
    let totals = StepTotals::of(&equal);
    assert_eq!(long.losses(&kept, &totals).expect("losses"), long.losses(&equal, &totals).expect("losses"));
}

#[test]
fn losses_without_a_reference_take_none() {
    let (_, pairs) = golden();
    for loss_type in LossType::ALL.iter().copied() {
        let preference = preference(settings_of(loss_type));
        let mut views = views(&pairs);
        for answer in views.iter_mut().flat_map(|pair| [&mut pair.chosen, &mut pair.rejected]) {
            answer.reference = ReferenceLogProb::None;
        }
        let result = preference.losses(&views, &StepTotals::of(&views));
        assert_eq!(result.is_ok(), !loss_type.needs_reference(), "{loss_type}");
        assert_eq!(preference.needs_reference(), loss_type.needs_reference());
    }
}

#[test]
fn weights_need_the_sums_of_squares() {
    let (_, pairs) = golden();
    let wpo = preference(PreferenceSettings::of(LossType::Wpo));
    assert!(wpo.needs_square_sums() && !preference(PreferenceSettings::default()).needs_square_sums());
    let mut views = views(&pairs);
    views[1].rejected.log_sum_squares_t = None;
    let error = wpo.losses(&views, &StepTotals::of(&views)).expect_err("missing");
    assert_eq!(error, PreferenceError::SquareSums { pair: 1, answer: "rejected", found: 0, expected: 6 });
}

#[test]
fn totals_are_those_of_the_whole_step() {
    let (_, pairs) = golden();
    let views = views(&pairs);
    let dpo = preference(PreferenceSettings::default());
    let error = dpo.losses(&views, &StepTotals::default()).expect_err("no pairs");
    assert_eq!(error, PreferenceError::Totals { what: "pairs", found: 6, expected: 0 });
    let few = StepTotals { pairs: 6, ..StepTotals::default() };
    assert!(dpo.losses(&views, &few).is_ok(), "nothing divides by tokens");
    let orpo = preference(PreferenceSettings::of(LossType::Orpo));
    let error = orpo.losses(&views, &few).expect_err("no tokens");
    assert_eq!(error, PreferenceError::Totals { what: "tokens of chosen answers", found: 26, expected: 0 });
    assert_eq!(dpo.losses(&[], &StepTotals::default()), Ok(Vec::new()));
}

#[test]
fn settings_are_honoured_or_refused() {
    let refused = [
        (r#"{"loss_type": []}"#, "`loss_type` is empty"),
        (r#"{"beta": 0}"#, "`beta` is 0; it must be finite and greater than 0"),
        (r#"{"label_smoothing": 1.0}"#, "`label_smoothing` is 1; it must be at least 0 and less than 1"),
        (r#"{"ld_alpha": 1.5}"#, "`ld_alpha` is 1.5; it must be between 0 and 1"),
        (r#"{"discopop_tau": -1}"#, "`discopop_tau` is -1"),
        (r#"{"loss_weights": [1, 2]}"#, "`loss_weights` is 2 numbers, but `loss_type` is sigmoid; give one weight"),
        (r#"{"loss_weights": [-1]}"#, "`loss_weights` is -1"),
        (r#"{"loss_type": ["hinge"], "label_smoothing": 0.1}"#, "but `loss_type` is hinge; it has no effect there"),
        (r#"{"loss_type": ["exo_pair"]}"#, "EXO's loss is infinite without it"),
        (r#"{"loss_type": ["robust"], "label_smoothing": 0.5}"#, "it must be less than 0.5"),
        (r#"{"loss_type": ["apo_zero"], "f_divergence_type": "js_divergence"}"#, "set reverse_kl"),
        (r#"{"loss_type": ["simpo"], "ld_alpha": 0.5}"#, "LD-DPO compares with a reference"),
        (
            r#"{"loss_type": ["sigmoid", "aot"], "use_weighting": true}"#,
            "`loss_type` is sigmoid, aot; a weight of each pair",
        ),
        (r#"{"loss_type": ["wpo"], "use_weighting": true}"#, "wpo has it already"),
    ];
    for (json, text) in refused {
        let settings: PreferenceSettings = serde_json::from_str(json).expect("it can be read");
        let error = Preference::new(settings).expect_err(json).to_string();
        assert!(error.contains(text), "{json}: {error}");
    }
    let unknown = serde_json::from_str::<PreferenceSettings>(r#"{"loss_type": ["sigmod"]}"#).expect_err("a typo");
    assert!(unknown.to_string().contains("loss type \"sigmod\" is not known, did you mean \"sigmoid\"?"), "{unknown}");
    assert!(serde_json::from_str::<PreferenceSettings>(r#"{"betta": 1}"#).is_err());
    for loss_type in LossType::ALL.iter().copied() {
        assert_eq!(loss_type.name().parse(), Ok(loss_type));
        assert_eq!(serde_json::to_value(loss_type).expect("JSON"), loss_type.name());
    }
    assert_eq!(("dpo".parse(), "dpo_norm".parse()), (Ok(LossType::Sigmoid), Ok(LossType::SigmoidNorm)));
    let settings = PreferenceSettings::default();
    let json = serde_json::to_string(&settings).expect("JSON");
    assert_eq!(serde_json::from_str::<PreferenceSettings>(&json).expect("settings"), settings);
}

#[test]
fn rewards_move_the_mean_that_bco_compares_with() {
    let (_, pairs) = golden();
    let bco = preference(PreferenceSettings::of(LossType::BcoPair));
    let mut running = RunningMean::default();
    let mut rewards = Vec::new();
    for part in [&pairs[..4], &pairs[4..]] {
        rewards.push(bco.mean_reward(&views(part)).expect("rewards"));
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        assert_near(running.update(rewards[rewards.len() - 1]), mean, 1e-15, "the mean of steps");
    }
    let settings = PreferenceSettings::of(LossType::BcoPair);
    assert_ne!(total(&losses(&settings, &pairs, running.mean)), total(&losses(&settings, &pairs, 0.0)));
}

#[test]
fn metrics_have_the_names_of_open_instruct() {
    let (_, pairs) = golden();
    let of = |loss_type: LossType| {
        let settings = PreferenceSettings::of(loss_type);
        let mut metrics = PreferenceMetrics::of_pairs(&preference(settings.clone()));
        losses(&settings, &pairs, 0.0).iter().for_each(|loss| metrics.add_pair(loss));
        metrics.add_auxiliary(2.0, 0.02);
        metrics.add_tokens(&TokenStatistics { correct: 3, chosen_tokens: 4, entropy: 9.0, tokens: 6 });
        metrics
    };
    let metrics = of(LossType::Sigmoid);
    let (trl, ai2) = (metrics.trl(), metrics.open_instruct());
    let get = |named: &[(&str, f64)], name: &str| named.iter().find(|(known, _)| *known == name).expect("a metric").1;
    let names: Vec<&str> = ai2.iter().map(|(name, _)| *name).collect();
    let expected = ["train_loss", "rewards/chosen", "rewards/rejected", "rewards/average", "rewards/accuracy"];
    assert_eq!(names[..5], expected);
    assert_eq!(names[5..], ["rewards/margin", "logps/chosen", "logps/rejected", "aux_loss"]);
    assert_eq!((get(&trl, "mean_token_accuracy"), get(&trl, "entropy"), get(&trl, "aux_loss")), (0.75, 1.5, 2.0));
    assert_eq!(get(&trl, "loss"), metrics.loss());
    assert_eq!(get(&trl, "rewards/margins"), get(&ai2, "rewards/margin"));
    let middle = 0.5 * (get(&ai2, "rewards/chosen") + get(&ai2, "rewards/rejected"));
    assert_eq!(get(&ai2, "rewards/average"), middle);
    // Length-normalised, open-instruct reports means of tokens, trl whole answers.
    let norm = of(LossType::SigmoidNorm);
    let mean = pairs.iter().map(|p| log_prob(&p.chosen.logp) / p.chosen.logp.len() as f64).sum::<f64>() / 6.0;
    assert_near(get(&norm.open_instruct(), "logps/chosen"), mean, 1e-12, "means");
    assert_near(get(&norm.trl(), "logps/chosen"), get(&trl, "logps/chosen"), 1e-12, "sums");
}
