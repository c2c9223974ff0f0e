//! Preference tuning through the loop: where losses begin, what the reference is, and what does not depend on how a step is
//! divided.

mod tuning;

use olmoe_model::model::{Activations, Keep, Model};
use olmoe_train::finetune::{
    DpoSettings, Examples, FinetuneData, FinetuneSettings, KtoTraining, Method, MicroBatch, ReferenceModel,
    ReferenceSettings, ReferenceTime, RunLength,
};
use olmoe_train::preference::kto::{KlBatch, KtoLoss, KtoSettings};
use olmoe_train::preference::{LossType, Mismatch, PreferenceSettings};
use olmoe_train::trainer::Outcome;
use tuning::{Desk, Log, bits, files, labelled, model, pairs, train, train_until};

fn dpo(preference: PreferenceSettings, when: ReferenceTime) -> Method {
    Method::Dpo(DpoSettings { preference, reference: ReferenceSettings { when, ..ReferenceSettings::default() } })
}

fn kto(kto: KtoSettings, when: ReferenceTime) -> Method {
    Method::Kto(KtoTraining { kto, reference: ReferenceSettings { when, ..ReferenceSettings::default() } })
}

/// A method with its reference computed at some time.
type MethodAt<'m> = &'m dyn Fn(ReferenceTime) -> Method;

fn pair_data(count: u32) -> FinetuneData {
    FinetuneData { train: Examples::Pairs(pairs(count)), evaluation: None }
}

fn labelled_data(count: u32) -> FinetuneData {
    FinetuneData { train: Examples::Labelled(labelled(count)), evaluation: None }
}

/// A step of this loss type, where it begins.
fn first(desk: &Desk, name: &str, preference: PreferenceSettings, by: usize) -> Log {
    let mut settings = desk.settings(name, dpo(preference, ReferenceTime::Before));
    (settings.micro_batch, settings.length) = (MicroBatch::Examples(by), RunLength::Steps(1));
    train(settings, pair_data(9)).0
}

#[test]
fn every_loss_begins_where_policy_and_reference_are_one() {
    use LossType::*;
    let desk = Desk::new();
    let ln2 = 2f64.ln();
    for (loss_type, smoothing, expected) in [
        (Sigmoid, 0.0, ln2),
        (SigmoidNorm, 0.0, ln2),
        (Hinge, 0.0, 1.0),
        (Ipo, 0.0, 25.0),
        (Robust, 0.1, ln2),
        (NcaPair, 0.0, 2.0 * ln2),
        (BcoPair, 0.0, 2.0 * ln2),
        (SppoHard, 0.0, 50.0),
        (Aot, 0.0, ln2),
        (AotUnpaired, 0.0, ln2),
        (ApoZero, 0.0, 1.0),
        (ApoDown, 0.0, 1.0),
        (Discopop, 0.0, 0.846_574),
    ] {
        let settings = PreferenceSettings { label_smoothing: smoothing, ..PreferenceSettings::of(loss_type) };
        for by in [1, 4] {
            let log = first(&desk, &format!("{loss_type}-{by}"), settings.clone(), by);
            let found = log.metric("loss")[0];
            assert!((found - expected).abs() < 1e-6, "{loss_type}: {found}, not {expected}");
            // Not near it: the log-ratios are exactly 0.
            assert_eq!(log.metric("rewards/margins"), [0.0], "{loss_type}");
            assert_eq!(log.metric("rewards/chosen"), [0.0], "{loss_type}");
        }
    }
    let mut settings = desk.settings("kto", kto(KtoSettings::default(), ReferenceTime::Before));
    settings.length = RunLength::Steps(1);
    let (log, _) = train(settings, labelled_data(9));
    assert_eq!((log.metric("loss"), log.metric("kl")), (vec![0.5], vec![0.0]));
}

#[test]
fn the_second_step_is_not_the_first_again() {
    let desk = Desk::new();
    for when in [ReferenceTime::Before, ReferenceTime::Live] {
        let settings = desk.settings(&format!("{when}"), dpo(PreferenceSettings::default(), when));
        let (log, _) = train(settings, pair_data(4));
        let losses = log.losses();
        assert!(losses[1] < losses[0] - 1e-3 && losses[3] < losses[1], "{losses:?}");
        assert!(log.metric("rewards/margins")[3] > 0.0 && log.metric("rewards/accuracies")[3] > 0.5);
    }
}

#[test]
fn a_reference_computed_before_has_the_bits_of_a_live_one() {
    let desk = Desk::new();
    let methods: [(&str, MethodAt<'_>, FinetuneData); 4] = [
        ("dpo", &|when| dpo(PreferenceSettings::default(), when), pair_data(9)),
        (
            "ld",
            &|when| dpo(PreferenceSettings { ld_alpha: Some(0.5), ..PreferenceSettings::default() }, when),
            pair_data(9),
        ),
        ("kto", &|when| kto(KtoSettings::default(), when), labelled_data(9)),
        ("bco", &|when| kto(KtoSettings { loss_type: KtoLoss::Bco, ..KtoSettings::default() }, when), labelled_data(9)),
    ];
    for (name, method, data) in methods {
        let [before, live] = [ReferenceTime::Before, ReferenceTime::Live].map(|when| {
            let mut settings = desk.settings(&format!("{name}-{when}"), method(when));
            settings.length = RunLength::Epochs(2.0);
            let (log, trainer) = train(settings, data.clone());
            (log.metric("loss"), log.metric("rewards/margins"), bits(trainer.model()))
        });
        assert!(before == live, "{name}: {:?} {:?}", before.0, live.0);
        assert!(desk.path(&format!("{name}-before/reference.bin")).exists());
        assert!(!desk.path(&format!("{name}-live/reference.bin")).exists());
    }
}

#[test]
fn the_file_of_the_reference_is_used_once_it_is_there_and_made_again_where_it_does_not_fit() {
    let desk = Desk::new();
    let cache = desk.path("shared.bin");
    let settings = |name: &str, alpha: Option<f64>| {
        let preference = PreferenceSettings { ld_alpha: alpha, ..PreferenceSettings::default() };
        let reference = ReferenceSettings { cache: Some(cache.clone()), ..ReferenceSettings::default() };
        desk.settings(name, Method::Dpo(DpoSettings { preference, reference }))
    };
    let (first, _) = train(settings("a", None), pair_data(9));
    let written = std::fs::read(&cache).unwrap();
    let (second, _) = train(settings("b", None), pair_data(9));
    assert_eq!((first.losses(), second.notices.len()), (second.losses(), 0));
    assert_eq!(std::fs::read(&cache).unwrap(), written);
    // Sums that are divided otherwise, other data, a damaged file.
    let (log, _) = train(settings("c", Some(0.5)), pair_data(9));
    assert!(log.notices[0].contains("it belongs to other data, another model or other settings"), "{:?}", log.notices);
    assert_eq!(log.metric("rewards/margins")[0], 0.0);
    train(settings("d", None), pair_data(8));
    let mut bytes = std::fs::read(&cache).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&cache, &bytes).unwrap();
    let (log, _) = train(settings("e", None), pair_data(8));
    assert!(log.notices[0].contains("it is damaged; the log-probabilities of the reference are computed anew"));
    std::fs::write(&cache, b"short").unwrap();
    let (log, _) = train(settings("f", None), pair_data(9));
    assert!(log.notices[0].contains("it is no file of a reference"));
    assert_eq!(log.losses(), first.losses());
    assert_eq!(std::fs::read(&cache).unwrap(), written);
}

#[test]
fn steps_do_not_depend_on_how_they_are_divided() {
    let desk = Desk::new();
    let of_pairs = |loss: LossType| dpo(PreferenceSettings::of(loss), ReferenceTime::Before);
    let kto =
        |loss_type, mismatch| kto(KtoSettings { loss_type, mismatch, ..KtoSettings::default() }, ReferenceTime::Before);
    let cases = [
        ("sigmoid", of_pairs(LossType::Sigmoid), pair_data(9)),
        ("simpo", of_pairs(LossType::Simpo), pair_data(9)),
        ("orpo", of_pairs(LossType::Orpo), pair_data(9)),
        ("cpo", of_pairs(LossType::Cpo), pair_data(9)),
        ("aot", of_pairs(LossType::Aot), pair_data(9)),
        ("kto", kto(KtoLoss::Kto, Mismatch::Rotated), labelled_data(9)),
        ("kto-reversed", kto(KtoLoss::Kto, Mismatch::Reversed), labelled_data(9)),
        ("bco", kto(KtoLoss::Bco, Mismatch::Rotated), labelled_data(9)),
        ("apo", kto(KtoLoss::ApoZeroUnpaired, Mismatch::Rotated), labelled_data(9)),
    ];
    for (name, method, data) in cases {
        let run = |by: usize| {
            let mut settings = desk.settings(&format!("{name}-{by}"), method.clone());
            settings.micro_batch = MicroBatch::Examples(by);
            let (log, _) = train(settings, data.clone());
            (log.losses(), log.metric("grad_norm"), log.metric("rewards/margins"))
        };
        let (one, three, four) = (run(1), run(3), run(4));
        for other in [&three, &four] {
            assert_eq!(one.0[0].to_bits(), other.0[0].to_bits(), "{name}: the first loss");
            assert!(near(&one.0, &other.0) && near(&one.1, &other.1), "{name}: {one:?} {other:?}");
        }
    }
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * a.abs().max(1.0))
}

#[test]
fn gradients_of_a_pair_sum_to_zero_where_both_answers_are_the_same() {
    // ∂L/∂logp of the chosen answer is the negative of that of the rejected one, so that equal answers cancel.
    let desk = Desk::new();
    let mut rows = pairs(4);
    rows.iter_mut().for_each(|row| row.rejected = row.chosen.clone());
    let mut settings = desk.settings("run", dpo(PreferenceSettings::default(), ReferenceTime::Before));
    settings.length = RunLength::Steps(1);
    let data = FinetuneData { train: Examples::Pairs(rows), evaluation: None };
    let (log, _) = train(settings, data);
    assert!(log.metric("grad_norm")[0] < 1e-7, "{:?}", log.metric("grad_norm"));
    assert!((log.losses()[0] - 2f64.ln()).abs() < 1e-12);
}

#[test]
fn the_reference_is_the_model_at_the_start_and_not_at_a_resumption() {
    let desk = Desk::new();
    let methods: [(&str, MethodAt<'_>, FinetuneData); 3] = [
        ("dpo", &|when| dpo(PreferenceSettings::default(), when), pair_data(7)),
        ("kto", &|when| kto(KtoSettings::default(), when), labelled_data(7)),
        ("bco", &|when| kto(KtoSettings { loss_type: KtoLoss::Bco, ..KtoSettings::default() }, when), labelled_data(7)),
    ];
    for (method_name, method, data) in methods {
        for when in [ReferenceTime::Before, ReferenceTime::Live] {
            let settings = |name: &str| {
                let mut settings = desk.settings(&format!("{method_name}-{when}-{name}"), method(when));
                (settings.saving.interval, settings.saving.keep) = (Some(1), -1);
                settings.length = RunLength::Epochs(2.0);
                settings.evaluation.interval = Some(2);
                settings
            };
            let data = || {
                let mut data = data.clone();
                data.evaluation = Some(match &data.train {
                    Examples::Pairs(rows) => Examples::Pairs(rows[..3].to_vec()),
                    Examples::Labelled(rows) => Examples::Labelled(rows[..3].to_vec()),
                    Examples::Conversations(_) => unreachable!(),
                });
                data
            };
            let (whole, _) = train(settings("whole"), data());
            for last in 1..4 {
                let name = format!("part-{last}");
                let (_, outcome, _) = train_until(settings(&name), &model(), data(), last).unwrap();
                assert_eq!(outcome, Outcome::Interrupted);
                if last == 2 && when == ReferenceTime::Before {
                    // Without the file, what it held is computed again, of the model at the start.
                    std::fs::remove_file(settings(&name).saving.folder.join("reference.bin")).unwrap();
                }
                let (rest, _) = train(settings(&name), data());
                assert_eq!(rest.losses(), whole.losses()[last as usize..], "{method_name} {when} {last}");
                let of = |name: &str| files(&settings(name).saving.folder.join("step-4"));
                assert!(of(&name) == of("whole"), "{method_name} {when} {last}");
            }
        }
    }
}

#[test]
fn another_checkpoint_is_the_reference() {
    let desk = Desk::new();
    // A checkpoint of all parameters, four steps away.
    let (_, other) = train(desk.sft("other"), tuning::conversation_data(9));
    let other_model = clone(other.model());
    let settings = |name: &str, when| {
        let reference =
            ReferenceSettings { model: ReferenceModel::Checkpoint(desk.path("other/latest")), when, cache: None };
        desk.settings(name, Method::Dpo(DpoSettings { preference: PreferenceSettings::default(), reference }))
    };
    let (before, _) = train(settings("before", ReferenceTime::Before), pair_data(9));
    let (live, _) = train(settings("live", ReferenceTime::Live), pair_data(9));
    assert_eq!(before.losses(), live.losses());
    assert!((before.losses()[0] - 2f64.ln()).abs() > 1e-3);
    // The margin of the first step by hand: nothing but policy and reference at its pairs.
    let score = |model: &Model, row: &olmoe_data::instruct::Example| {
        let batch = olmoe_model::batch::Batch::new(&row.ids, &[row.ids.len()]).unwrap();
        let mut activations = Activations::new(Keep::Nothing);
        model.forward(&batch, &mut activations).unwrap();
        let next = |t: usize| if row.weights.get(t + 1).is_some_and(|w| *w != 0.0) { row.ids[t + 1] } else { u32::MAX };
        let targets: Vec<u32> = (0..row.ids.len()).map(next).collect();
        let found = model.log_probs(&activations, &targets).unwrap();
        found.logp_t.iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    let mut one = settings("one", ReferenceTime::Before);
    (one.batch_size, one.length) = (9, RunLength::Steps(1));
    let (log, _) = train(one, pair_data(9));
    let start = model();
    let ratio = |row| score(&start, row) - score(&other_model, row);
    let margins: f64 = pairs(9).iter().map(|pair| 0.1 * (ratio(&pair.chosen) - ratio(&pair.rejected))).sum();
    let found = log.metric("rewards/margins")[0];
    assert!((found - margins / 9.0).abs() < 1e-6, "{found} {}", margins / 9.0);
}

fn clone(model: &Model) -> Model {
    let mut other = tuning::model();
    for (id, spec) in model.parameters().iter().enumerate() {
        other.set(&spec.name, &spec.shape, model.value(id).expect("all are trained")).unwrap();
    }
    other
}

#[test]
fn answers_of_one_kind_alone_are_no_special_case() {
    let desk = Desk::new();
    for desirable in [true, false] {
        let mut rows = labelled(8);
        rows.iter_mut().for_each(|row| row.desirable = desirable);
        let settings = desk.settings(&format!("{desirable}"), kto(KtoSettings::default(), ReferenceTime::Before));
        let (log, _) = train(settings, FinetuneData { train: Examples::Labelled(rows), evaluation: None });
        assert!(log.losses().iter().all(|loss| loss.is_finite()) && log.losses()[0] == 0.5, "{:?}", log.losses());
        assert_eq!(log.metric("rewards/chosen").len(), if desirable { 4 } else { 0 });
        assert!(log.notices[0].contains("desirable and"), "{:?}", log.notices);
    }
}

#[test]
fn steps_of_one_answer_need_an_estimate_over_steps() {
    let desk = Desk::new();
    let run = |name: &str, kl_batch, by| {
        let kto = KtoSettings { kl_batch, ..KtoSettings::default() };
        let mut settings: FinetuneSettings =
            desk.settings(name, Method::Kto(KtoTraining { kto, ..KtoTraining::default() }));
        settings.micro_batch = MicroBatch::Examples(by);
        train_until(settings, &model(), labelled_data(9), u64::MAX).map(|(log, ..)| log)
    };
    let error = run("one", KlBatch::Micro, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("use micro-batches of at least 2 rows, or `kl_batch: step`"), "{error}");
    run("step", KlBatch::Step, 1).unwrap();
    // An odd number of rows in the last step, none paired with itself.
    let log = run("two", KlBatch::Micro, 2).unwrap();
    assert!(log.losses().iter().all(|loss| loss.is_finite()));
}

#[test]
fn evaluations_of_preferences_do_not_depend_on_their_batches() {
    let desk = Desk::new();
    let cases = [
        (
            "dpo",
            dpo(PreferenceSettings::default(), ReferenceTime::Before),
            pair_data(9),
            Examples::Pairs(pairs(16)[9..].to_vec()),
        ),
        (
            "aot",
            dpo(PreferenceSettings::of(LossType::Aot), ReferenceTime::Live),
            pair_data(9),
            Examples::Pairs(pairs(16)[9..].to_vec()),
        ),
        (
            "kto",
            kto(KtoSettings::default(), ReferenceTime::Before),
            labelled_data(9),
            Examples::Labelled(labelled(16)[9..].to_vec()),
        ),
    ];
    for (name, method, data, held_out) in cases {
        let found: Vec<_> = [1, 3, 7]
            .into_iter()
            .map(|by| {
                let mut settings = desk.settings(&format!("{name}-{by}"), method.clone());
                settings.evaluation.micro_batch = MicroBatch::Examples(by);
                settings.evaluation.at_start = true;
                let (log, _) = train(settings, FinetuneData { evaluation: Some(held_out.clone()), ..data.clone() });
                assert_eq!(log.evaluations.len(), 2);
                (
                    log.evaluated("eval_loss"),
                    log.evaluated("eval_rewards/margins"),
                    log.evaluated("eval_rewards/accuracies"),
                )
            })
            .collect();
        assert!(found[0] == found[1] && found[1] == found[2], "{name}: {found:?}");
        assert!(name == "kto" || found[0].2.len() == 2, "{found:?}");
    }
}
