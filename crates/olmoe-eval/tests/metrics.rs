//! Metrics equal those of OLMo's evaluation on the same log-probabilities, and what cannot be scored is an error.

mod shared;

use olmoe_eval::answer::{Answer, Scored};
use olmoe_eval::metric::{LeadingSpace, Metric, Normalization};
use olmoe_eval::score::{Aggregate, MetricError, Part, Rule, score};
use olmoe_eval::{Encoding, Gold, Question, Request, Task};
use serde_json::Value;

use LeadingSpace::{Counted, Dropped};
use Normalization::{Characters, Raw, UnconditionalRatio};

fn request(continuation: &str) -> Request {
    Request::Continuation { context: "Q".into(), continuation: continuation.into(), unconditional: None }
}

fn scored(log_prob: f64, tokens: usize, unconditional: Option<f64>) -> Answer {
    Answer::Continuation(Scored { log_prob, tokens, greedy: log_prob > -1.0, unconditional })
}

fn question(id: u64, group: Option<&str>, gold: usize, continuations: &[&str]) -> Question {
    Question {
        id,
        native_id: id.to_string(),
        group: group.map(str::to_owned),
        row: Value::Null,
        gold: Gold::Choice(gold),
        requests: continuations.iter().map(|text| request(text)).collect(),
    }
}

fn task(questions: Vec<Question>, metrics: &[Metric]) -> Task {
    Task { name: "t".into(), settings: Value::Null, encoding: Encoding::Separate, questions, metrics: metrics.to_vec() }
}

#[test]
fn those_of_olmo_in_the_training_loop() {
    let text = std::fs::read_to_string(shared::golden().join("in_loop_metrics.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (kind, metrics) in [
        (
            "acc",
            &[
                ("acc_v1", Metric::Accuracy(Raw)),
                ("acc_v2", Metric::Accuracy(Raw)),
                ("ce_loss_v1", Metric::CrossEntropy(Dropped)),
                ("ce_loss_v2", Metric::CrossEntropy(Counted)),
                ("bpb_v1", Metric::BitsPerByte(Dropped)),
                ("bpb_v2", Metric::BitsPerByte(Counted)),
                ("soft_v1", Metric::Soft(Raw)),
                ("soft_v2", Metric::Soft(Raw)),
                ("soft_log_v1", Metric::SoftLog(Raw)),
                ("soft_log_v2", Metric::SoftLog(Raw)),
            ][..],
        ),
        ("f1", &[("f1_v1", Metric::F1), ("f1_v2", Metric::F1)]),
        (
            "len_norm",
            &[
                // The program computes the first version as the second.
                ("len_norm_v1", Metric::Accuracy(Characters(Counted))),
                ("len_norm_v2", Metric::Accuracy(Characters(Counted))),
                ("ce_loss_v1", Metric::CrossEntropy(Dropped)),
                ("ce_loss_v2", Metric::CrossEntropy(Counted)),
                ("bpb_v1", Metric::BitsPerByte(Dropped)),
                ("bpb_v2", Metric::BitsPerByte(Counted)),
                ("soft_v1", Metric::Soft(Characters(Dropped))),
                ("soft_v2", Metric::Soft(Characters(Counted))),
                ("soft_log_v1", Metric::SoftLog(Characters(Dropped))),
                ("soft_log_v2", Metric::SoftLog(Characters(Counted))),
            ],
        ),
        (
            "pmi_dc",
            &[
                ("pmi_dc_v1", Metric::Accuracy(UnconditionalRatio)),
                ("pmi_dc_v2", Metric::Accuracy(UnconditionalRatio)),
                ("soft_v1", Metric::Soft(UnconditionalRatio)),
                ("soft_v2", Metric::Soft(UnconditionalRatio)),
                ("soft_log_v1", Metric::SoftLog(UnconditionalRatio)),
                ("soft_log_v2", Metric::SoftLog(UnconditionalRatio)),
            ],
        ),
        ("ce_loss", &[("ce_loss_v1", Metric::CrossEntropy(Dropped)), ("ce_loss_v2", Metric::CrossEntropy(Counted))]),
        ("bpb", &[("bpb_v1", Metric::BitsPerByte(Dropped)), ("bpb_v2", Metric::BitsPerByte(Counted))]),
    ] {
        let mut questions = Vec::new();
        let mut answers = Vec::new();
        for (id, row) in golden["questions"].as_array().unwrap().iter().enumerate() {
            let mut choices = row["choices"].as_array().unwrap().as_slice();
            let mut gold = row["gold"].as_u64().unwrap() as usize;
            if ["ce_loss", "bpb"].contains(&kind) {
                (choices, gold) = (&choices[..1], 0);
            }
            let texts: Vec<&str> = choices.iter().map(|choice| choice["continuation"].as_str().unwrap()).collect();
            questions.push(question(id as u64, None, gold, &texts));
            let answer = |choice: &Value| {
                let tokens = choice["tokens"].as_u64().unwrap() as usize;
                scored(choice["log_prob"].as_f64().unwrap(), tokens, choice["unconditional"].as_f64())
            };
            answers.push(choices.iter().map(answer).collect::<Vec<_>>());
        }
        assert!(questions.len() >= 200);
        let own: Vec<Metric> = metrics.iter().map(|(_, metric)| *metric).collect();
        let score = score(&task(questions, &own), &answers).unwrap();
        for ((name, _), own) in metrics.iter().zip(&score.metrics) {
            let expected = golden["expected"][kind][name].as_f64().unwrap();
            // OLMo computes in single precision.
            let near = 3e-6 * expected.abs().max(1.0);
            assert!((own.value - expected).abs() < near, "{kind} {name}: {} instead of {expected}", own.value);
            compared += 1;
        }
    }
    assert_eq!(compared, 32);
}

#[test]
fn lengths_with_and_without_the_leading_space() {
    // " a" at -2.0 and " bcd" at -3.0: per character -1.0 and -0.75 with the space, -2.0 and -1.0 without.
    let metrics = [
        Metric::Accuracy(Raw),
        Metric::Accuracy(Characters(Counted)),
        Metric::CrossEntropy(Counted),
        Metric::CrossEntropy(Dropped),
        Metric::BitsPerByte(Dropped),
        Metric::Greedy,
        Metric::Accuracy(Normalization::Tokens),
    ];
    let task = task(vec![question(0, None, 1, &[" a", " bcd"])], &metrics);
    let values = score(&task, &[vec![scored(-2.0, 1, None), scored(-3.0, 3, None)]]).unwrap();
    let values = &values.questions[0].values;
    assert_eq!(values[..4], [0.0, 1.0, 0.75, 1.0]);
    assert!((values[4] - std::f64::consts::LOG2_E).abs() < 1e-10);
    assert_eq!(values[5..], [0.0, 1.0]);
    assert_eq!(Metric::Accuracy(Characters(Dropped)).name(), "acc_per_char_no_space");
}

#[test]
fn means_and_errors() {
    // Of 20 questions 4 are right: √(0.2·0.8/19).
    let mut questions: Vec<Question> = (0..20).map(|i| question(i, None, 0, &[" x", " y"])).collect();
    let answers: Vec<Vec<Answer>> =
        (0..20).map(|i| vec![scored(if i < 4 { -1.0 } else { -3.0 }, 1, None), scored(-2.0, 1, None)]).collect();
    let plain = score(&task(questions.clone(), &[Metric::Accuracy(Raw)]), &answers).unwrap();
    let metric = plain.metric("acc").unwrap();
    assert_eq!((metric.value, metric.count, metric.macro_average), (0.2, 20, None));
    assert!((metric.standard_error.unwrap() - 0.091_766_3).abs() < 1e-7);
    // In two groups, of which one has all that are right: √(2/1 · (3² + 3²)) / 20.
    for (i, question) in questions.iter_mut().enumerate() {
        question.group = Some(if i < 5 { "a" } else { "b" }.to_owned());
    }
    let grouped = score(&task(questions, &[Metric::Accuracy(Raw)]), &answers).unwrap();
    let metric = grouped.metric("acc").unwrap();
    assert!((metric.value - 0.2).abs() < 1e-15);
    assert!((metric.standard_error.unwrap() - 0.3).abs() < 1e-12);
    assert!((metric.macro_average.unwrap() - 0.4).abs() < 1e-12);
    let text = serde_json::to_string(&grouped).unwrap();
    assert_eq!(serde_json::from_str::<olmoe_eval::score::TaskScore>(&text).unwrap(), grouped);
}

#[test]
fn what_cannot_be_scored() {
    let one = || task(vec![question(7, None, 1, &[" x", " y"])], &[Metric::Accuracy(Normalization::Unconditional)]);
    let answers = |values: &[f64]| vec![values.iter().map(|value| scored(*value, 1, None)).collect::<Vec<_>>()];
    assert!(matches!(score(&one(), &[]), Err(MetricError::Questions { expected: 1, found: 0, .. })));
    for (answers, expected) in [
        (answers(&[-1.0]), "found 1 answers"),
        (answers(&[-1.0, f64::NAN]), "found NaN"),
        (answers(&[-1.0, -1.0]), "needs log-probabilities after an unconditional context"),
        (vec![vec![scored(-1.0, 1, None), Answer::Generation { texts: vec![] }]], "found generated text"),
    ] {
        let error = score(&one(), &answers).unwrap_err().to_string();
        assert!(error.contains("question 7") && error.contains(expected), "{error}");
    }
    // A log-probability of minus infinity is one.
    let raw = task(vec![question(7, None, 1, &[" x", " y"])], &[Metric::Accuracy(Raw), Metric::Soft(Raw)]);
    let score = score(&raw, &answers(&[f64::NEG_INFINITY, f64::NEG_INFINITY])).unwrap();
    assert_eq!(score.questions[0].values[0], 0.0);
    assert!((score.questions[0].values[1] - 0.5).abs() < 1e-12);
}

#[test]
fn numbers_of_several_tasks() {
    let of = |name: &str, rule, parts: Vec<Part>| Aggregate { name: name.into(), rule, parts };
    let tasks = |names: &[&str]| names.iter().map(|name| Part::Task((*name).to_owned())).collect::<Vec<_>>();
    let mmlu = |kind: &str| {
        let names = [format!("law:{kind}"), format!("physics:{kind}")];
        Part::Aggregate(of(kind, Rule::Mean, tasks(&[&names[0], &names[1]])))
    };
    let best = of("mmlu", Rule::Max, vec![mmlu("mc"), mmlu("rc")]);
    let value = |name: &str| match name {
        "law:mc" => Some(0.5),
        "physics:mc" => Some(0.25),
        "law:rc" => Some(1.0),
        "physics:rc" => Some(0.0),
        _ => None,
    };
    assert_eq!(best.compute(&value), Some(0.5));
    assert_eq!(of("x", Rule::Mean, tasks(&["law:mc", "none"])).compute(&value), None);
    assert_eq!(of("x", Rule::Mean, vec![]).compute(&value), None);
}
