//! Adapters against peft, whose logits and gradients tools/reference/make_golden_adapter_steps.py has written: of 0.18, which
//! adapts each expert's matrices by themselves and with DoRA, and of 0.21, which adapts the experts' stacks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use olmoe_model::adapter::{Adapter, AdapterInit, Sharing, parameters_with};
use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Gradients, Held, Keep, Model, Objective, Precision};
use olmoe_model::parameters::{ModuleId, parameters};
use olmoe_tensor::ops::cross_entropy::IGNORE;
use safetensors::SafeTensors;
use serde_json::Value;

/// Numbers by name.
type Tensors = BTreeMap<String, Vec<f32>>;

const EXPERTS: usize = 6;
/// Of the largest magnitude in a tensor.
const TOLERANCE: f64 = 1e-5;

fn bytes(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/finetune");
    std::fs::read(folder.join(name)).expect("a golden file")
}

fn tensors(bytes: &[u8]) -> Tensors {
    let tensors = SafeTensors::deserialize(bytes).expect("a golden file");
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), numbers(view.data()))).collect()
}

/// The configuration of the policy and its parameters.
fn policy() -> (ModelConfig, Tensors) {
    let bytes = bytes("policy.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a golden file");
    let json = header.metadata().as_ref().expect("metadata")["config_hf"].clone();
    (ModelConfig::from_hf_json(&json).expect("a configuration").config, tensors(&bytes))
}

/// The golden cases of a version of peft, and their tensors.
fn golden(version: &str) -> (Value, Tensors) {
    let json = bytes(&format!("adapters_peft_{version}.json"));
    (serde_json::from_slice(&json).expect("JSON"), tensors(&bytes(&format!("adapters_peft_{version}.safetensors"))))
}

/// The adapters of a case, by name of the module.
fn adapters(config: &ModelConfig, case: &Value) -> Vec<Adapter> {
    let module = |name: &str| -> ModuleId {
        let found = parameters(config).into_iter().find(|spec| spec.module.to_string() == name);
        found.unwrap_or_else(|| panic!("no module {name}")).module
    };
    let of = |(name, one): (&String, &Value)| Adapter {
        module: module(name),
        rank: one["rank"].as_u64().expect("a rank") as usize,
        scale: one["scale"].as_f64().expect("a scale") as f32,
        dora: one["dora"] == true,
        share: Sharing::PerExpert,
        dropout: 0.0,
        init: AdapterInit::default(),
    };
    case["modules"].as_object().expect("modules").iter().map(of).collect()
}

/// The model with the adapters of a case and their first numbers; only those that peft trains are trained.
fn model(case: &Value, own: &Tensors) -> Model {
    let (config, base) = policy();
    let adapters = adapters(&config, case);
    let name = case["name"].as_str().expect("a name");
    let initial = |spec: &str| own.get(&format!("{name}/initial.{spec}"));
    let specs = parameters_with(&config, &adapters).expect("adapters");
    let held = Held::of(&specs, &config, |spec| initial(&spec.name).is_some());
    let mut model = Model::with_adapters(config, Precision::Fp32, held, &[], &adapters).expect("a model");
    let mut used = 0;
    for spec in &specs {
        let value = initial(&spec.name).inspect(|_| used += 1);
        let value = value.unwrap_or_else(|| &base[&format!("param.{}", spec.name)]);
        model.set(&spec.name, &spec.shape, value).expect("a parameter");
    }
    let given = own.keys().filter(|key| key.starts_with(&format!("{name}/initial."))).count();
    assert_eq!(used, given, "{name}: every tensor is one of the model's");
    model
}

/// The first four rows, with the token to predict after each token.
fn rows(golden: &Value) -> (Batch, Vec<u32>) {
    let (mut ids, mut lengths, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for row in &golden["rows"]["conversations"].as_array().expect("rows")[..4] {
        let own = row["input_ids"].as_array().expect("ids");
        ids.extend(own.iter().map(|id| id.as_u64().expect("an id") as u32));
        lengths.push(own.len());
        let labels = row["labels"].as_array().expect("labels");
        targets.extend(labels[1..].iter().map(|label| label.as_u64().map_or(IGNORE, |id| id as u32)));
        targets.push(IGNORE);
    }
    (Batch::new(&ids, &lengths).expect("a batch"), targets)
}

fn assert_near(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - f64::from(*expected)).abs();
        assert!(error <= TOLERANCE * largest, "{what}[{at}]: {got:e}, not {expected:e}; the largest is {largest:e}");
    }
}

/// Forward and backward pass of the mean cross-entropy; the loss and the gradients.
fn pass(model: &Model, batch: &Batch, targets: &[u32]) -> (f64, Gradients) {
    let mut activations = Activations::new(Keep::Everything);
    let mut gradients = model.gradients();
    let count = targets.iter().filter(|target| **target != IGNORE).count() as f64;
    let dlogp_t: Vec<f32> =
        targets.iter().map(|target| if *target == IGNORE { 0.0 } else { (-1.0 / count) as f32 }).collect();
    model.forward(batch, &mut activations).expect("a forward pass");
    let objective = Objective { targets, dlogp_t: &dlogp_t, z: 0.0, auxiliary: 0.0, statistics: false };
    let (log_probs, _) = model.backward(batch, &mut activations, &objective, &mut gradients).expect("a backward pass");
    (-log_probs.logp_t.iter().map(|logp| f64::from(*logp)).sum::<f64>() / count, gradients)
}

/// What peft's gradient of a parameter is compared with: gate and up of a stack have one A there, whose gradient is the sum.
fn gradient(model: &Model, gradients: &Gradients, name: &str) -> Vec<f32> {
    let of = |name: &str| -> Vec<f32> {
        let id = model.find(name).expect("a parameter");
        gradients.get(id).unwrap_or_else(|| panic!("{name} has no gradient"))[..].to_vec()
    };
    if !name.contains("gate_up_proj") {
        return of(name);
    }
    let (gate, up) = (of(&name.replace("gate_up", "gate")), of(&name.replace("gate_up", "up")));
    if name.ends_with("lora_a") {
        return gate.iter().zip(&up).map(|(gate, up)| gate + up).collect();
    }
    let size = gate.len() / EXPERTS;
    gate.chunks(size).zip(up.chunks(size)).flat_map(|(gate, up)| gate.iter().chain(up)).copied().collect()
}

fn check(version: &str) {
    let (golden, own) = golden(version);
    let (batch, targets) = rows(&golden);
    for case in golden["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let mut model = model(case, &own);
        let mut activations = Activations::new(Keep::Nothing);
        let logits = model.logits(&batch, &mut activations).expect("logits");
        assert_near(&logits[..], &own[&format!("{name}/logits")], &format!("{name}: logits"));
        let (loss, gradients) = pass(&model, &batch, &targets);
        let expected = case["cross_entropy"].as_f64().expect("a number");
        assert!((loss - expected).abs() <= 1e-6 * expected, "{name}: {loss}, not {expected}");
        let mut compared = 0;
        for (key, expected) in own.range(format!("{name}/gradient.")..).take_while(|(key, _)| key.starts_with(name)) {
            let Some(parameter) = key.strip_prefix(&format!("{name}/gradient.")) else { continue };
            assert_near(&gradient(&model, &gradients, parameter), expected, &format!("{name}: {parameter}"));
            compared += if parameter.contains("gate_up_proj") { 2 } else { 1 };
        }
        assert_eq!(compared, gradients.iter().count(), "{name}: a gradient for each trained parameter");

        // Off, the model is the one without adapters, to the bit.
        if own.keys().any(|key| key.starts_with(&format!("{name}/initial.")) && !key.contains("lora_")) {
            continue;
        }
        model.set_adapters_enabled(false);
        let off = model.logits(&batch, &mut activations).expect("logits");
        let (config, base) = policy();
        let mut plain = Model::new(config, Precision::Fp32, Held::Trained).expect("a model");
        for spec in plain.parameters().to_vec() {
            plain.set(&spec.name, &spec.shape, &base[&format!("param.{}", spec.name)]).expect("a parameter");
        }
        let plain = plain.logits(&batch, &mut activations).expect("logits");
        assert!(off.iter().zip(plain.iter()).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: adapters off");
        assert!(off.iter().zip(logits.iter()).any(|(a, b)| a != b), "{name}: adapters on");
    }
}

#[test]
fn adapters_of_experts_one_by_one_and_their_dora_are_those_of_peft_0_18() {
    check("0_18");
}

#[test]
fn adapters_of_stacks_attention_embedding_and_head_are_those_of_peft_0_21() {
    check("0_21");
}
