//! KTO and its relatives: against trl, whose numbers tools/reference/make_golden_preference.py has written, and how they take
//! batches of any size.

use std::f64::consts::LN_2;

use olmoe_train::preference::kto::{KlBatch, Kto, KtoLoss, KtoSettings, KtoStep, LabelledCompletion};
use olmoe_train::preference::{Completion, Mismatch, PreferenceError, PreferenceMetrics, ReferenceLogProb};
use serde_json::Value;

const GOLDEN: &str = include_str!("golden/preference.json");

struct Labelled {
    logp: Vec<f32>,
    reference: Vec<f32>,
    desirable: bool,
}

fn golden() -> (Value, Vec<Labelled>) {
    let golden: Value = serde_json::from_str(GOLDEN).expect("JSON");
    let golden = golden["kto"].clone();
    let numbers = |value: &Value| {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect::<Vec<f32>>()
    };
    let answers = golden["answers"].as_array().expect("answers").iter().map(|answer| Labelled {
        logp: numbers(&answer["logp"]),
        reference: numbers(&answer["ref"]),
        desirable: answer["desirable"].as_bool().expect("a label"),
    });
    let answers = answers.collect();
    (golden, answers)
}

fn view(answer: &Labelled) -> LabelledCompletion<'_> {
    let reference = ReferenceLogProb::Tokens(&answer.reference);
    let completion = Completion { logp_t: &answer.logp, log_sum_squares_t: None, reference };
    LabelledCompletion { completion, desirable: answer.desirable }
}

fn kto(settings: KtoSettings) -> Kto {
    Kto::new(settings).expect("good settings")
}

fn assert_near(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "{what}: {got:e}, not {expected:e}");
}

#[test]
fn losses_gradients_and_metrics_are_those_of_trl() {
    let (golden, answers) = golden();
    let mut seen = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let settings: KtoSettings = serde_json::from_value(case["settings"].clone()).expect("settings");
        let what = format!("{} of {}", case["settings"], case["rows"]);
        let kto = kto(settings);
        let number = |value: &Value| value.as_f64().expect("a number");
        let rows: Vec<(f64, f64)> =
            case["kl"].as_array().expect("rows").iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
        let kl = if kto.needs_kl() { kto.kl(&rows) } else { 0.0 };
        let own = case["rows"].as_array().expect("rows").iter();
        let own: Vec<_> = own.map(|row| view(&answers[row.as_u64().expect("a row") as usize])).collect();
        let step = KtoStep { answers: own.len() as u64, kl, delta: number(&case["delta"]) };
        let losses = kto.losses(&own, &step).expect("losses");
        let mut metrics = PreferenceMetrics::of_answers(&kto, kl);
        for (at, loss) in losses.iter().enumerate() {
            metrics.add_answer(loss);
            for (t, expected) in case["gradients"][at].as_array().expect("gradients").iter().enumerate() {
                assert_near(loss.answer.gradient.at(t), number(expected), 1e-12, &format!("{what}: {at}, token {t}"));
            }
        }
        assert_near(metrics.loss(), number(&case["loss"]), 1e-12, &what);
        let named = metrics.trl();
        assert!(named.iter().all(|(_, value)| value.is_finite()), "{named:?}");
        let expected = case["metrics"].as_object().expect("metrics");
        for (name, value) in expected {
            let got = named.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{what}: no {name}")).1;
            assert_near(got, number(value), 1e-12, &format!("{what}: {name}"));
        }
        assert!(expected.is_empty() || named.iter().all(|(name, _)| *name == "loss" || expected.contains_key(*name)));
        seen.push(settings.loss_type);
    }
    assert!(KtoLoss::ALL.iter().all(|loss| seen.contains(loss)), "a loss without a golden case");
}

#[test]
fn it_starts_at_a_half() {
    let (_, mut answers) = golden();
    answers.iter_mut().for_each(|answer| answer.reference.clone_from(&answer.logp));
    for (loss_type, expected) in [(KtoLoss::Kto, 0.5), (KtoLoss::ApoZeroUnpaired, 0.5), (KtoLoss::Bco, LN_2)] {
        let kto = kto(KtoSettings { loss_type, ..KtoSettings::default() });
        // Mismatched answers have the same log-probabilities, too.
        let kl = kto.kl(&[(-3.0, -3.0), (-7.5, -7.5)]);
        for count in 1..=answers.len() {
            let own: Vec<_> = answers[..count].iter().map(view).collect();
            let step = KtoStep { answers: count as u64, kl, delta: 0.0 };
            let losses = kto.losses(&own, &step).expect("losses");
            assert_near(losses.iter().map(|loss| loss.loss).sum(), expected, 1e-6, loss_type.name());
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    let (_, answers) = golden();
    for loss_type in KtoLoss::ALL.iter().copied() {
        let settings = KtoSettings {
            loss_type,
            beta: 0.6,
            desirable_weight: 1.2,
            undesirable_weight: 0.7,
            ..KtoSettings::default()
        };
        let kto = kto(settings);
        let step = KtoStep { answers: 8, kl: 0.8, delta: 0.3 };
        for answer in &answers {
            let loss = |by: f32| {
                let mut logp = answer.logp.clone();
                logp[0] += by;
                let moved = Labelled { logp, reference: answer.reference.clone(), ..*answer };
                kto.losses(&[view(&moved)], &step).expect("losses")[0]
            };
            let h = 2f32.powi(-9);
            let slope = |h: f32| (loss(h).loss - loss(-h).loss) / (2.0 * f64::from(h));
            let (coarse, fine) = (slope(h), slope(h / 2.0));
            assert_near(loss(0.0).answer.gradient.at(0), fine + (fine - coarse) / 3.0, 1e-8, loss_type.name());
        }
    }
}

#[test]
fn a_step_in_parts_is_the_same_step() {
    let (_, answers) = golden();
    let views: Vec<_> = answers.iter().map(view).collect();
    for loss_type in KtoLoss::ALL.iter().copied() {
        let kto = kto(KtoSettings { loss_type, ..KtoSettings::default() });
        let step = KtoStep { answers: 5, kl: 0.4, delta: 0.1 };
        let whole = kto.losses(&views, &step).expect("losses");
        for size in 1..5 {
            let parts = views.chunks(size).map(|part| kto.losses(part, &step).expect("losses"));
            assert_eq!(parts.collect::<Vec<_>>().concat(), whole);
        }
    }
}

#[test]
fn the_estimate_of_a_step_does_not_depend_on_micro_batches() {
    let kto = kto(KtoSettings::default());
    assert_eq!(kto.settings().kl_batch, KlBatch::Step);
    let rows = [(-3.0, -4.0), (-8.0, -2.0), (-1.0, -9.0), (-5.0, -5.5)];
    assert_eq!(kto.kl(&rows), (1.0 - 6.0 + 8.0 + 0.5) / 4.0);
    // Means of parts, each at least 0, are another number: what trl compares with depends on the split.
    assert_ne!(0.5 * (kto.kl(&rows[..2]) + kto.kl(&rows[2..])), kto.kl(&rows));
    assert_eq!((kto.kl(&rows[..2]), kto.kl(&[])), (0.0, 0.0));
    let answers = kto.mismatched(7, 1, 1).expect("rows");
    for (micro, step) in [(1, 4), (2, 4), (3, 6), (7, 7)] {
        assert_eq!(kto.mismatched(7, micro, step).expect("rows"), answers, "{micro} {step}");
    }
}

#[test]
fn a_batch_of_one_works_by_step_and_is_refused_by_micro_batch() {
    let by = |kl_batch, mismatch| kto(KtoSettings { kl_batch, mismatch, ..KtoSettings::default() });
    let rotated = by(KlBatch::Step, Mismatch::Rotated);
    assert_eq!(rotated.mismatched(3, 1, 1).expect("rows"), [2, 0, 1]);
    let error = by(KlBatch::Micro, Mismatch::Rotated).mismatched(3, 1, 4).expect_err("a batch of one");
    assert_eq!(error, PreferenceError::NoOther { rows: 3, block: 1 });
    assert!(error.to_string().contains("use micro-batches of at least 2 rows, or `kl_batch: step`"), "{error}");
    let reversed = by(KlBatch::Step, Mismatch::Reversed);
    assert_eq!(reversed.mismatched(8, 1, 4).expect("rows"), [3, 2, 1, 0, 7, 6, 5, 4]);
    // No row is paired with itself where batches are odd.
    for rows in 2..20 {
        for size in 2..8 {
            for kto in
                [&rotated, &reversed, &by(KlBatch::Micro, Mismatch::Rotated), &by(KlBatch::Micro, Mismatch::Reversed)]
            {
                let answers = kto.mismatched(rows, size, size).expect("rows");
                assert!(answers.iter().enumerate().all(|(row, answer)| row != *answer), "{rows} {size}");
            }
        }
    }
}

#[test]
fn numbers_of_answers_out_of_proportion_are_noticed_as_in_trl() {
    let with = |desirable_weight, undesirable_weight| {
        kto(KtoSettings { desirable_weight, undesirable_weight, ..KtoSettings::default() })
    };
    let even = with(1.0, 1.0);
    assert_eq!(even.imbalance(10, 10), None);
    let found = even.imbalance(10, 30).expect("three times as many");
    assert_eq!((found.desirable_weight, found.undesirable_weight), ((3.0, 3.99), (0.25, 0.33)));
    assert_eq!(
        found.to_string(),
        "10 desirable and 30 undesirable answers; set either `desirable_weight` between 3.00 and 3.99 or \
         `undesirable_weight` between 0.25 and 0.33"
    );
    assert_eq!(with(3.0, 1.0).imbalance(10, 30), None);
    assert_eq!(with(1.0, 0.3).imbalance(10, 30), None);
    assert!(with(2.9, 1.0).imbalance(10, 30).is_some());
    assert!(even.imbalance(0, 7).is_some() && even.imbalance(1, 0).is_none());
}

#[test]
fn settings_and_inputs_out_of_range_are_refused() {
    for (settings, key) in [
        (KtoSettings { beta: -0.1, ..KtoSettings::default() }, "`beta` is -0.1"),
        (KtoSettings { desirable_weight: f64::NAN, ..KtoSettings::default() }, "`desirable_weight` is NaN"),
        (KtoSettings { undesirable_weight: -1.0, ..KtoSettings::default() }, "`undesirable_weight` is -1"),
    ] {
        assert!(Kto::new(settings).expect_err(key).to_string().contains(key));
    }
    let (_, mut answers) = golden();
    let kto = kto(KtoSettings::default());
    let views: Vec<_> = answers.iter().map(view).collect();
    let error = kto.losses(&views, &KtoStep { answers: 4, ..KtoStep::default() }).expect_err("too many");
    assert_eq!(error, PreferenceError::Totals { what: "answers", found: 5, expected: 4 });
    assert_eq!(kto.losses(&[], &KtoStep::default()), Ok(Vec::new()));
    answers[3].logp[0] = f32::NEG_INFINITY;
    answers[3].reference[0] = f32::NEG_INFINITY;
    let error = kto.losses(&[view(&answers[3])], &KtoStep { answers: 1, ..KtoStep::default() }).expect_err("NaN");
    assert!(
        error.to_string().starts_with("answer 0: the loss is NaN, with log-probabilities of -inf and -inf"),
        "{error}"
    );
}
