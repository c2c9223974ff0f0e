//! Ten steps of the optimizer against torch, whose states tools/reference/make_golden_optimizer.py has written.

use std::collections::BTreeMap;

use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Model, Precision};
use olmoe_train::config::OptimizerConfig;
use olmoe_train::optimizer::{Clip, Optimizer, Step};
use safetensors::SafeTensors;
use serde_json::Value;

const GOLDEN: &[u8] = include_bytes!("golden/optimizers.safetensors");
const STEPS: usize = 10;

fn golden() -> (BTreeMap<String, Vec<f32>>, BTreeMap<String, Value>) {
    let (_, header) = SafeTensors::read_metadata(GOLDEN).expect("a golden state");
    let metadata = header.metadata().clone().expect("metadata");
    let metadata = metadata.into_iter().filter(|(key, _)| key != "made_by");
    let metadata = metadata.map(|(key, text)| (key, serde_json::from_str(&text).expect("JSON"))).collect();
    let tensors = SafeTensors::deserialize(GOLDEN).expect("a golden state");
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    (tensors.iter().map(|(name, view)| (name.to_owned(), numbers(view.data()))).collect(), metadata)
}

fn model(start: &[f32]) -> Model {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_experts": 3, "num_experts_per_tok": 1, "max_position_embeddings": 8,
        "pad_token_id": 1, "eos_token_id": 2
    }"#;
    let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    let mut model = Model::new(config, Precision::Fp32, Held::Trained).expect("a model");
    let specs = model.parameters().to_vec();
    let mut rest = start;
    for spec in &specs {
        let (value, after) = rest.split_at(spec.num_elements());
        model.set(&spec.name, &spec.shape, value).expect("its parameters");
        rest = after;
    }
    assert!(rest.is_empty());
    model
}

fn config(case: &Value) -> OptimizerConfig {
    let flag = |key: &str| case[key].as_bool().expect(key);
    OptimizerConfig {
        name: case["name"].as_str().expect("a name").parse().expect("a rule"),
        betas: (case["betas"][0].as_f64().expect("a number"), case["betas"][1].as_f64().expect("a number")),
        eps: case["eps"].as_f64().expect("a number"),
        weight_decay: case["weight_decay"].as_f64().expect("a number"),
        decay_norm_and_bias: flag("decay_norm_and_bias"),
        decay_embeddings: flag("decay_embeddings"),
        selective_updates: flag("selective"),
        record_update_metrics: flag("updates"),
        ..OptimizerConfig::default()
    }
}

/// Every number within a few roundings: of itself, or of the steps that were summed to it.
fn assert_near(got: &[f32], expected: &[f32], absolute: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = 4.0 * f32::EPSILON * expected.abs() + absolute;
        assert!((got - expected).abs() <= bound, "{what}[{i}]: {got:e}, not {expected:e}");
    }
}

#[test]
fn ten_steps_are_those_of_torch() {
    let (tensors, metadata) = golden();
    let start = &tensors["start"];
    for (name, case) in metadata["cases"].as_object().expect("cases") {
        let golden = |what: &str| tensors.get(&format!("{name}.{what}")).map(Vec::as_slice);
        let mut model = model(start);
        let specs = model.parameters().to_vec();
        let listed = metadata["parameters"].as_array().expect("a list");
        assert!(specs.iter().zip(listed).all(|(spec, listed)| listed[0] == spec.name.as_str()), "other parameters");
        let mut gradients = model.gradients();
        let mut optimizer = Optimizer::new(config(case), &model);
        let clip = match (case["ratio"].as_f64(), case["norm"].as_f64()) {
            (Some(ratio), _) => Clip::Ratio(ratio),
            (None, Some(norm)) => Clip::Norm(norm),
            (None, None) => Clip::Off,
        };
        let norms = golden("norms").expect("norms");
        for t in 0..STEPS {
            let mut rest = &tensors["gradients"][t * start.len()..];
            for (_, g) in gradients.iter_mut() {
                let (numbers, after) = rest.split_at(g.len());
                g.copy_from_slice(numbers);
                rest = after;
            }
            let step =
                Step { number: t as u64 + 1, learning_rate: 1e-3 * (t + 1) as f64, clip, record: t + 1 == STEPS };
            let report = optimizer.step(&mut model, &mut gradients, &step);
            assert!(report.applied && gradients.iter().all(|(_, g)| g.iter().all(|g| *g == 0.0)));
            let got = [report.grad_norm as f32, report.clip as f32];
            assert_near(&got, &norms[2 * t..2 * t + 2], 0.0, &format!("{name}: norm and coefficient of step {t}"));
        }
        let all: Vec<f32> = (0..specs.len()).flat_map(|id| model.value(id).expect("trainable").to_vec()).collect();
        // Ten steps of at most 1e-2 are added to numbers of about 1.
        assert_near(&all, golden("param").expect("parameters"), 4e-7, &format!("{name}: parameters"));
        let metrics = optimizer.metrics().expect("recorded");
        if let Some(rows) = golden("metrics") {
            for (metrics, row) in metrics.parameters.iter().zip(rows.as_chunks::<2>().0) {
                let update = metrics.update.expect("measured");
                assert_near(&[update.norm() as f32, update.max_abs], row, 1e-6 * row[1], &format!("{name}: updates"));
            }
        }
        if let Some(cosine) = golden("cosine") {
            assert_near(&[metrics.update_cosine.expect("measured") as f32], cosine, 0.0, "cosine");
        }
        if let Some(running) = golden("running") {
            let mut tensors: Vec<f32> =
                metrics.parameters.iter().map(|p| p.grad_norm_exp_avg.expect("adaptive") as f32).collect();
            // Queries, keys and values are one tensor there.
            tensors.drain(3..5);
            assert_near(&tensors, running, 0.0, &format!("{name}: running means"));
        }
    }
}

/// The moments, which only the file of a checkpoint shows otherwise.
#[test]
fn metrics_are_those_of_torch() {
    let (golden, metadata) = golden();
    let mut model = model(&golden["start"]);
    let specs = model.parameters().to_vec();
    let mut gradients = model.gradients();
    let mut optimizer = Optimizer::new(config(&metadata["cases"]["adamw"]), &model);
    for t in 0..STEPS {
        let mut rest = &golden["gradients"][t * golden["start"].len()..];
        for (_, g) in gradients.iter_mut() {
            let (numbers, after) = rest.split_at(g.len());
            g.copy_from_slice(numbers);
            rest = after;
        }
        let (number, learning_rate) = (t as u64 + 1, 1e-3 * (t + 1) as f64);
        let step = Step { number, learning_rate, clip: Clip::Norm(1.0), record: t + 1 == STEPS };
        optimizer.step(&mut model, &mut gradients, &step);
        assert_eq!(optimizer.metrics().is_some(), t + 1 == STEPS);
    }
    // `named_parameters` of OLMo's model, and which of ours each is made of.
    let block = |rest: &str| format!("transformer.blocks.0.{rest}");
    let tensors: Vec<(String, &[usize])> = vec![
        ("transformer.wte.weight".into(), &[0]),
        (block("attn_norm.weight"), &[1]),
        (block("att_proj.weight"), &[2, 3, 4]),
        (block("q_norm.weight"), &[5]),
        (block("k_norm.weight"), &[6]),
        (block("attn_out.weight"), &[7]),
        (block("ff_norm.weight"), &[8]),
        (block("ffn.router.layer.weight"), &[9]),
        (block("ffn.experts.mlp.w1"), &[10]),
        (block("ffn.experts.mlp.v1"), &[11]),
        (block("ffn.experts.mlp.w2"), &[12]),
        ("transformer.ln_f.weight".into(), &[13]),
        ("transformer.ff_out.weight".into(), &[14]),
    ];
    let named: BTreeMap<String, f64> = optimizer.metrics().expect("recorded").named().collect();
    for what in ["grad", "param", "exp_avg", "exp_avg_sq"] {
        let rows = golden[&format!("metrics.{what}")].as_chunks::<4>().0;
        for (name, parts) in &tensors {
            let parts: Vec<(f64, [f64; 4])> =
                parts.iter().map(|at| (specs[*at].num_elements() as f64, rows[*at].map(f64::from))).collect();
            let count: f64 = parts.iter().map(|(count, _)| count).sum();
            let fold = |start: f64, with: &dyn Fn(f64, f64, [f64; 4]) -> f64| {
                parts.iter().fold(start, |all, (count, row)| with(all, *count, *row))
            };
            let row = [
                fold(f64::INFINITY, &|all, _, [min, ..]| all.min(min)),
                fold(0.0, &|all, _, [_, max, ..]| all.max(max)),
                fold(0.0, &|all, count, [_, _, mean, _]| all + count * mean) / count,
                fold(0.0, &|all, _, [.., norm]| all + norm * norm).sqrt(),
            ];
            let got = ["min", "max", "avg", "norm"].map(|part| named[&format!("optim/{what}/{name}.{part}")]);
            // A mean may be small beside what it is the mean of.
            let [got, row] = [got, row].map(|values| values.map(|x| x as f32));
            assert_near(&got, &row, 1e-6 * row[1], &format!("{what} of {name}"));
        }
    }
    let mut expected: Vec<String> = ["optim/total_grad_norm", "optim/clipping_rate"].map(String::from).into();
    for (name, _) in &tensors {
        for what in ["grad", "param", "exp_avg", "exp_avg_sq"] {
            expected.extend(["min", "max", "avg", "norm"].map(|part| format!("optim/{what}/{name}.{part}")));
        }
        expected.extend(["norm", "max"].map(|part| format!("optim/step/{name}.{part}")));
    }
    expected.sort();
    assert_eq!(named.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    assert_eq!(named["optim/clipping_rate"], if named["optim/total_grad_norm"] > 1.0 { 1.0 } else { 0.0 });
}
