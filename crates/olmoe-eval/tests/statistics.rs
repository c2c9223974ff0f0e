//! Errors, intervals and tests against NumPy, SciPy and statsmodels: `tools/reference/make_golden_statistics.py`.

use olmoe_eval::compare::{Change, CompareError, Resampling, TaskValues, compare};
use olmoe_eval::statistics::{Average, Bootstrap, Estimate, McNemar, QuestionValue, standard_error};
use proptest::prelude::*;
use serde_json::Value;

fn golden(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/golden/eval/statistics.json")).unwrap();
    all[name].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn question_values(values: &[f64], groups: Option<&Value>) -> Vec<QuestionValue> {
    let group = |i: usize| groups.map(|groups| groups[i].as_str().unwrap().to_owned());
    values.iter().enumerate().map(|(i, value)| QuestionValue { id: i as u64, group: group(i), value: *value }).collect()
}

#[track_caller]
fn assert_close(found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-11 * expected.abs().max(1e-3), "{found} is not {expected}");
}

#[test]
fn estimates_are_those_of_scipy_and_statsmodels() {
    for case in golden("estimates") {
        let values = numbers(&case["values"]);
        let plain = Estimate::of(&question_values(&values, None), Average::Questions).unwrap();
        assert_close(plain.mean, &case["mean"]);
        assert_close(plain.standard_error.unwrap(), &case["error"]);
        let interval = plain.interval.unwrap();
        if case["wilson"].is_array() {
            assert_close(interval[0], &case["wilson"][0]);
            assert_close(interval[1], &case["wilson"][1]);
        } else {
            assert!(
                (interval[1] - interval[0] - 2.0 * 1.959_963_984_540_054 * plain.standard_error.unwrap()).abs() < 1e-12
            );
        }
        if case["groups"].is_array() {
            let grouped = question_values(&values, Some(&case["groups"]));
            let clustered = Estimate::of(&grouped, Average::Questions).unwrap();
            assert_close(clustered.mean, &case["mean"]);
            assert_close(clustered.standard_error.unwrap(), &case["clustered"]);
            let averaged = Estimate::of(&grouped, Average::Groups).unwrap();
            assert_close(averaged.mean, &case["macro"]);
            match averaged.standard_error {
                Some(error) => assert_close(error, &case["macro_error"]),
                None => assert!(case["macro_error"].is_null()),
            }
        }
    }
    // lm-eval's standard error of 4 right answers of 20.
    let values: Vec<f64> = (0..20).map(|i| f64::from(u8::from(i < 4))).collect();
    assert!((standard_error(&values).unwrap() - 0.091_766_3).abs() < 5e-8);
    assert_eq!(Estimate::of(&[], Average::Questions), None);
    let one = Estimate::of(&question_values(&[1.0], None), Average::Questions).unwrap();
    assert_eq!((one.mean, one.standard_error), (1.0, None));
}

#[test]
fn mcnemar_is_that_of_statsmodels() {
    for case in golden("mcnemar") {
        let found = McNemar::of(case["gained"].as_u64().unwrap(), case["lost"].as_u64().unwrap());
        let close = |found: f64, expected: &Value| {
            let expected = expected.as_f64().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-9, "{case}: {found}");
        };
        close(found.exact, &case["exact"]);
        close(found.mid_p, &case["mid_p"]);
    }
}

#[test]
fn bootstrap_is_that_of_python() {
    for case in golden("bootstrap") {
        let values = question_values(&numbers(&case["values"]), None);
        let (resamples, seed) = (case["resamples"].as_u64().unwrap() as usize, case["seed"].as_u64().unwrap());
        let found = Bootstrap::of(&values, Average::Questions, resamples, seed).unwrap();
        assert_close(found.interval[0], &case["interval"][0]);
        assert_close(found.interval[1], &case["interval"][1]);
        assert_close(found.p, &case["p"]);
        assert_eq!(Bootstrap::of(&values, Average::Questions, resamples, seed), Some(found));
        assert_ne!(Bootstrap::of(&values, Average::Questions, resamples, seed + 1), Some(found));
    }
}

/// An unpaired test of paired data calls a sure difference noise: https://github.com/EleutherAI/lm-evaluation-harness/issues/3831
#[test]
fn a_difference_has_the_error_of_its_pairs() {
    for case in golden("pairs") {
        let first = question_values(&numbers(&case["first"]), None);
        let mut second = question_values(&numbers(&case["second"]), None);
        // The order of questions in a run does not matter.
        second.reverse();
        let run = |values| TaskValues { task: "arc_easy", metric: "acc", average: Average::Questions, values };
        let found = compare(&run(&first), &run(&second), Resampling { resamples: 500, seed: 1 }).unwrap();
        assert_close(found.difference.mean, &case["difference"]);
        assert_close(found.difference.standard_error.unwrap(), &case["error"]);
        let unpaired = found.first.standard_error.unwrap().hypot(found.second.standard_error.unwrap());
        assert_close(unpaired, &case["unpaired"]);
        assert!(found.difference.standard_error.unwrap() < unpaired);
        let interval = found.difference.interval.unwrap();
        assert!((interval[0] + interval[1] - 2.0 * found.difference.mean).abs() < 1e-12);
        let mcnemar = found.mcnemar.unwrap();
        assert_eq!(found.changed.len() as u64, mcnemar.gained + mcnemar.lost);
    }
    // 40 questions of 400 that only the second answers, none that only the first does: d = .1, and the variance of a pair's
    // difference is .1 · .9 · 400/399.
    let values =
        |right: usize| question_values(&(0..400).map(|i| f64::from(u8::from(i < right))).collect::<Vec<_>>(), None);
    let (first, second) = (values(200), values(240));
    let run = |values| TaskValues { task: "t", metric: "acc", average: Average::Questions, values };
    let found = compare(&run(&first), &run(&second), Resampling::default()).unwrap();
    assert!((found.difference.standard_error.unwrap() - (0.09f64 / 399.0).sqrt()).abs() < 1e-15);
    assert_eq!(found.mcnemar.map(|test| (test.gained, test.lost)), Some((40, 0)));
    assert!(found.bootstrap.interval[0] > 0.065 && found.bootstrap.interval[1] < 0.135);
    assert_eq!(found.changed[0], Change { id: 200, first: 0.0, second: 1.0 });
    // As of different questions, z would be 2.8 instead of 6.7.
    let z = |error: f64| 0.1 / error;
    assert!(z(found.difference.standard_error.unwrap()) > 6.6);
    assert!(z(found.first.standard_error.unwrap().hypot(found.second.standard_error.unwrap())) < 2.9);
}

#[test]
fn what_cannot_be_compared_is_said() {
    let values = question_values(&[1.0, 0.0, 1.0], None);
    fn run(values: &[QuestionValue]) -> TaskValues<'_> {
        TaskValues { task: "t", metric: "acc", average: Average::Questions, values }
    }
    let of = |first: &[QuestionValue], second: &[QuestionValue]| {
        compare(&run(first), &run(second), Resampling { resamples: 10, seed: 1 }).map_err(|error| error.to_string())
    };
    let found = of(&values, &values[1..]).unwrap();
    assert_eq!((found.difference.questions, found.only_in), (2, [1, 0]));
    assert!(of(&values[..1], &values[1..]).unwrap_err().contains("none of the 1 and 2 questions"));
    let twice = [values[0].clone(), values[0].clone()];
    assert!(of(&twice, &values).unwrap_err().contains("question 0 is there twice in the first run"));
    let mut grouped = values.clone();
    grouped[1].group = Some("story 3".into());
    assert!(of(&values, &grouped).unwrap_err().contains("question 1 is in another group"));
    let other = TaskValues { metric: "bpb", ..run(&values) };
    let error = compare(&run(&values), &other, Resampling::default()).unwrap_err();
    assert!(matches!(error, CompareError::Different { .. }), "{error}");
    // Bits per byte have no McNemar.
    let bits = question_values(&[0.5, 1.25, 0.75], None);
    assert_eq!(of(&values, &bits).unwrap().mcnemar, None);
}

proptest! {
    #[test]
    fn estimates_do_not_depend_on_order(values in prop::collection::vec((0u8..4, 0u8..2), 1..40)) {
        let one = |(i, (group, value)): (usize, &(u8, u8))| QuestionValue {
            id: i as u64,
            group: (*group > 0).then(|| group.to_string()),
            value: f64::from(*value),
        };
        let values: Vec<QuestionValue> = values.iter().enumerate().map(one).collect();
        let mut turned = values.clone();
        turned.reverse();
        for average in [Average::Questions, Average::Groups] {
            let (a, b) = (Estimate::of(&values, average).unwrap(), Estimate::of(&turned, average).unwrap());
            prop_assert!((a.mean - b.mean).abs() < 1e-12);
            prop_assert_eq!(a.standard_error.is_some(), b.standard_error.is_some());
            let interval = a.interval.unwrap_or([a.mean; 2]);
            prop_assert!(interval[0] <= a.mean + 1e-12 && a.mean <= interval[1] + 1e-12);
        }
    }
}
