//! The checks pass on the model as it is, and fail when something is wrong.

use olmoe_model::model::Precision;
use olmoe_verify::{Check, CheckKind, CheckSummary, Golden, MISTAKES, embedded, verify};

const ALL: [Precision; 2] = [Precision::Fp32, Precision::AmpBf16];

fn golden(name: &str) -> Golden {
    embedded().unwrap().into_iter().find(|golden| golden.name == name).unwrap()
}

fn run(golden: Golden, precisions: &[Precision]) -> Vec<Check> {
    let mut checks = Vec::new();
    verify(&[golden], precisions, |check| checks.push(check)).unwrap();
    checks
}

fn failed(checks: &[Check]) -> Vec<&str> {
    checks.iter().filter(|check| !check.passed).map(|check| check.what.as_str()).collect()
}

#[test]
fn every_check_passes_and_every_mistake_is_detected() {
    let (mut summary, mut wrong) = (CheckSummary::default(), Vec::new());
    let goldens = embedded().unwrap();
    verify(&goldens, &ALL, |check| {
        summary.add(&check);
        if !check.passed {
            wrong.push(check);
        }
    })
    .unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((summary.mistakes, summary.detected), (MISTAKES.len(), MISTAKES.len()));
    // Each golden state has its logits, losses, gradients and bits checked at both precisions.
    assert!(summary.checks > 30 * goldens.len(), "{summary:?}");
}

#[test]
fn one_precision_is_a_part_of_both() {
    let both = run(golden("dense"), &ALL);
    let fp32 = run(golden("dense"), &[Precision::Fp32]);
    let amp = run(golden("dense"), &[Precision::AmpBf16]);
    assert_eq!(both.len(), fp32.len() + amp.len());
    assert!(amp.iter().all(|check| check.precision == "amp_bf16" && check.kind != CheckKind::Mistake));
}

#[test]
fn a_weight_with_the_wrong_sign_is_seen() {
    for index in 0..golden("shared_expert").parameters.len() {
        let mut golden = golden("shared_expert");
        let parameter = &mut golden.parameters[index];
        // The largest entry of a used row: unused embeddings and experts change nothing.
        let used = parameter.gradient.iter().zip(&parameter.value).map(|(g, w)| (g * w).abs());
        let at = used.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
        parameter.value[at] = -parameter.value[at];
        let name = parameter.name.clone();
        let checks = run(golden, &[Precision::Fp32]);
        let failed = failed(&checks);
        for what in ["logits", "cross-entropy", "gradients", "reference: logits"] {
            assert!(failed.contains(&what), "{name}: {what} passed");
        }
    }
}

#[test]
fn wrong_weights_are_seen_at_reduced_precision() {
    let mut golden = golden("toy");
    let parameter = golden.parameters.iter_mut().find(|p| p.name == "layers.1.attention.v_proj.weight").unwrap();
    parameter.value.iter_mut().for_each(|w| *w *= 1.2);
    let checks = run(golden, &[Precision::AmpBf16]);
    let failed = failed(&checks);
    assert!(failed.contains(&"logits") && failed.contains(&"gradients"), "{failed:?}");
}

#[test]
fn wrong_expectations_are_seen_one_by_one() {
    type Change = fn(&mut Golden);
    let changes: [(&str, Change); 8] = [
        ("logits", |golden| golden.logits[7] += 0.1),
        ("cross-entropy", |golden| golden.cross_entropy *= 1.0 + 1e-5),
        ("load-balancing loss", |golden| golden.load_balancing = golden.load_balancing.map(|loss| loss * 1.0001)),
        ("router z-loss", |golden| golden.z = golden.z.map(|loss| loss * 1.0001)),
        ("total loss", |golden| golden.total *= 1.0 + 1e-5),
        ("chosen experts", |golden| golden.router.as_mut().unwrap().ids.swap(0, 1)),
        ("router probabilities", |golden| golden.router.as_mut().unwrap().probs[3] += 1e-4),
        ("gradients", |golden| golden.parameters[5].gradient[0] += 0.01),
    ];
    for (what, change) in changes {
        let mut golden = golden("olmo_losses");
        // Only the agreement with the model is of interest.
        change(&mut golden);
        let checks = run(golden, &[Precision::Fp32]);
        let failed: Vec<_> = checks
            .iter()
            .filter(|check| check.kind == CheckKind::Agreement && !check.passed)
            .map(|c| &c.what[..])
            .collect();
        assert_eq!(failed, [what]);
    }
}

#[test]
fn a_gradient_that_should_be_zero_is_seen() {
    let mut golden = golden("toy");
    golden.parameters[3].gradient.fill(0.0);
    let checks = run(golden, &[Precision::Fp32]);
    assert_eq!(failed(&checks), ["gradients that are zero"]);
}
