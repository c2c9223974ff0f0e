//! Two steps of fine-tuning through the loop against trl and peft, whose numbers tools/reference/make_golden_finetune.py and
//! its siblings have written: losses, norms of gradients, all logged metrics, and what the parameters have changed by.

mod tuning;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use olmoe_data::instruct::{Example, LabelledExample, PairExample};
use olmoe_model::adapter::{Adapter, AdapterInit, Sharing};
use olmoe_model::config::{Auxiliary, AuxiliaryDefinition, ModelConfig};
use olmoe_model::model::{Held, Model, Precision};
use olmoe_model::parameters::parameters;
use olmoe_train::config::OptimizerConfig;
use olmoe_train::finetune::{
    BaseModel, DpoSettings, Examples, FinetuneData, FinetuneSettings, KtoTraining, Method, MicroBatch, ReferenceModel,
    ReferenceSettings, ReferenceTime, RunLength, ScheduleShape, SftSettings, begin,
};
use olmoe_train::loss::TokenLoss;
use olmoe_train::preference::Mismatch;
use olmoe_train::preference::kto::KlBatch;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tuning::Log;

/// Numbers by name.
type Tensors = BTreeMap<String, Vec<f32>>;

/// Relative, of losses and norms.
const TOLERANCE: f64 = 1e-5;
/// Settings that are not of the loss.
const RUN_KEYS: [&str; 7] = [
    "router_aux_loss_coef",
    "precompute_ref_log_probs",
    "padding_free",
    "max_grad_norm",
    "weight_decay",
    "adam_beta2",
    "reduce_loss",
];

fn bytes(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/finetune");
    std::fs::read(folder.join(name)).expect("a golden file")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).expect("JSON")
}

fn tensors(bytes: &[u8]) -> Tensors {
    let tensors = SafeTensors::deserialize(bytes).expect("a golden file");
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), numbers(view.data()))).collect()
}

fn config_json(bytes: &[u8]) -> String {
    let (_, header) = SafeTensors::read_metadata(bytes).expect("a golden file");
    header.metadata().as_ref().expect("metadata")["config_hf"].clone()
}

fn config() -> ModelConfig {
    ModelConfig::from_hf_json(&config_json(&bytes("policy.safetensors"))).expect("a configuration").config
}

/// One of the two golden models.
fn model(name: &str) -> Model {
    let tensors = tensors(&bytes(&format!("{name}.safetensors")));
    let mut model = Model::new(config(), Precision::Fp32, Held::Trained).expect("a model");
    for spec in model.parameters().to_vec() {
        model.set(&spec.name, &spec.shape, &tensors[&format!("param.{}", spec.name)]).expect("a parameter");
    }
    model
}

/// A golden model as a checkpoint, with the names of the released ones.
fn checkpoint(name: &str, folder: &Path) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    let golden = bytes(&format!("{name}.safetensors"));
    std::fs::write(path.join("config.json"), config_json(&golden)).expect("a file");
    let golden = SafeTensors::deserialize(&golden).expect("a golden file");
    let mut views = Vec::new();
    for (key, view) in golden.iter() {
        let own = key.strip_prefix("param.").expect("a parameter");
        let name = own
            .replace("attention_norm", "input_layernorm")
            .replace("mlp_norm", "post_attention_layernorm")
            .replace("attention.", "self_attn.")
            .replace("moe.router", "mlp.gate")
            .replace("moe.experts", "mlp.experts");
        let name = if own == "lm_head.weight" { name } else { format!("model.{name}") };
        match name.split_once("experts.") {
            None => {
                views.push((name, TensorView::new(Dtype::F32, view.shape().to_vec(), view.data()).expect("a view")))
            }
            Some((before, matrix)) => {
                let experts = view.shape()[0];
                for (expert, data) in view.data().chunks(view.data().len() / experts).enumerate() {
                    let view = TensorView::new(Dtype::F32, view.shape()[1..].to_vec(), data).expect("a view");
                    views.push((format!("{before}experts.{expert}.{matrix}"), view));
                }
            }
        }
    }
    safetensors::serialize_to_file(views, None, &path.join("model.safetensors")).expect("a file");
    path
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// A prompt and its answer, of which the answer is learned.
fn example(prompt: &Value, answer: &Value) -> Example {
    let (prompt, answer) = (ids(prompt), ids(answer));
    let weights = prompt.iter().map(|_| 0.0).chain(answer.iter().map(|_| 1.0)).collect();
    Example { ids: [prompt, answer].concat(), weights }
}

/// The examples of a set of rows.
fn examples(rows: &Value) -> Examples {
    let rows = rows.as_array().expect("rows");
    if rows[0].get("input_ids").is_some() {
        let row = |row: &Value| {
            let labels = row["labels"].as_array().expect("labels").iter();
            let weights = labels.map(|label| if label.as_u64().is_some() { 1.0 } else { 0.0 });
            Example { ids: ids(&row["input_ids"]), weights: weights.collect() }
        };
        return Examples::Conversations(rows.iter().map(row).collect());
    }
    if rows[0].get("label").is_some() {
        let row = |row: &Value| LabelledExample {
            example: example(&row["prompt_ids"], &row["completion_ids"]),
            desirable: row["label"] == true,
            prompt: ids(&row["prompt_ids"]).len(),
        };
        return Examples::Labelled(rows.iter().map(row).collect());
    }
    let row = |row: &Value| {
        PairExample::new(
            example(&row["prompt_ids"], &row["chosen_ids"]),
            example(&row["prompt_ids"], &row["rejected_ids"]),
        )
    };
    Examples::Pairs(rows.iter().map(row).collect())
}

/// The largest error of a kind.
fn bound(kind: &str) -> f64 {
    match kind {
        // AdamW divides a gradient by its own size, and with it whatever rounding has made of the smallest ones.
        "change, of itself" => 3e-4,
        _ => TOLERANCE,
    }
}

/// The largest errors of each kind, and where they are.
#[derive(Default)]
struct Errors(BTreeMap<String, (f64, String)>);

impl Errors {
    /// Notes an error as a share of `scale`.
    fn note(&mut self, kind: &str, got: f64, expected: f64, scale: f64, what: &str) {
        let error = (got - expected).abs() / scale;
        let error = if error.is_nan() { f64::INFINITY } else { error };
        let known = self.0.entry(kind.to_owned()).or_default();
        if error >= known.0 {
            *known = (error, format!("{what}: {got:e}, not {expected:e}"));
        }
    }

    fn steps(&mut self, golden: &Value, case: &Value, log: &Log, what: &str) {
        let steps = case["steps"].as_array().expect("steps");
        assert_eq!(log.reports.len(), steps.len(), "{what}");
        for (report, expected) in log.reports.iter().zip(steps) {
            let what = format!("{what}, step {}", report.step);
            let loss = number(&expected["loss"]);
            self.note("loss", report.total_loss(), loss, loss, &what);
            let norm = number(&expected["grad_norm"]);
            self.note("norm of the gradients", report.grad_norm, norm, norm, &what);
            let metrics = match case.get("whole") {
                None => expected["metrics"].as_object().expect("metrics").clone(),
                Some(whole) if report.step == 1 => metrics_in_parts(golden, whole, expected),
                Some(_) => continue,
            };
            self.metrics(case, &metrics, &log.metrics[report.step as usize - 1].1, &what);
        }
    }

    fn metrics(&mut self, case: &Value, metrics: &Map<String, Value>, named: &[(String, f64)], what: &str) {
        // Rewards and the estimate of the divergence are differences of log-probabilities.
        let log_probs = ["logps/chosen", "logps/rejected"].iter().filter_map(|name| metrics.get(*name)?.as_f64());
        let log_prob = log_probs.map(f64::abs).fold(1.0, f64::max);
        let beta = case["settings"]["beta"].as_f64().unwrap_or(0.1);
        for (name, value) in metrics.iter().filter(|(name, _)| !has_another_meaning(case, name)) {
            let value = number(value);
            let got = named.iter().find(|(known, _)| known == name);
            let got = got.unwrap_or_else(|| panic!("{what}: no {name} among {named:?}")).1;
            let scale = match &name[..] {
                "rewards/accuracies" | "rewards/accuracy" | "mean_token_accuracy" => 1.0,
                // The mean of all logits is near 0, that of their magnitudes near 1.
                "logits/chosen" | "logits/rejected" => 1.0,
                "kl" => log_prob,
                name if name.starts_with("rewards/") => beta * log_prob,
                _ => value.abs(),
            };
            self.note(name, got, value, scale, what);
        }
    }

    /// Compares fingerprints of what the parameters have changed by.
    fn changes(&mut self, before: &Model, after: &Model, expected: &Value, what: &str) {
        for (id, spec) in before.parameters().iter().enumerate() {
            let (before, after) = (before.value(id).expect("f32"), after.value(id).expect("f32"));
            let (mut squares, mut projection, mut weight) = (0.0, 0.0, 0.0);
            for (i, (before, after)) in before.iter().zip(after.iter()).enumerate() {
                let change = f64::from(*after) - f64::from(*before);
                squares += change * change;
                weight += f64::from(*after) * f64::from(*after);
                let sign = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63;
                projection += if sign == 1 { -change } else { change };
            }
            let (norm, expected) = (number(&expected[&spec.name][0]), number(&expected[&spec.name][1]));
            let what = format!("{what}, {}", spec.name);
            self.note("norm of the change", squares.sqrt(), norm, norm, &what);
            self.note("change, of itself", projection, expected, norm, &what);
            self.note("change, of the parameter", projection, expected, weight.sqrt(), &what);
        }
    }

    /// Fails where an error is larger than its bound.
    fn check(&self) {
        for (kind, (error, what)) in &self.0 {
            println!("{kind}: {error:.1e} in {what}");
        }
        for (kind, (error, what)) in &self.0 {
            assert!(*error <= bound(kind), "{kind}: {error:e} is more than {:e} in {what}", bound(kind));
        }
    }
}

/// The metrics of the first step of a case in parts: of the case without them, but for what is of a part by definition.
fn metrics_in_parts(golden: &Value, whole: &Value, own: &Value) -> Map<String, Value> {
    let cases = golden["cases"].as_array().expect("cases");
    let whole = cases.iter().find(|case| case["name"] == *whole).expect("the case without parts");
    let mut metrics = whole["steps"][0]["metrics"].as_object().expect("metrics").clone();
    for (name, value) in own["metrics"].as_object().expect("metrics") {
        if matches!(&name[..], "kl" | "aux_loss") {
            metrics.insert(name.clone(), value.clone());
        }
    }
    metrics
}

/// Whether a name means something else here than in the program that a case is of.
fn has_another_meaning(case: &Value, name: &str) -> bool {
    let loss = case["settings"]["loss_type"].get(0).and_then(Value::as_str).unwrap_or_default();
    match text(&case["by"]) {
        // The means over all tokens, prompts and padding among them.
        "trl ORPOTrainer" | "trl CPOTrainer" if name.starts_with("logits/") => true,
        // 0 where it has no weight.
        "trl CPOTrainer" => name == "nll_loss" && loss == "simpo",
        // Of an answer, as trl has it: open-instruct's is of a token under the same name.
        "its definition" if loss == "dpo_norm" => {
            matches!(name, "logps/chosen" | "logps/rejected" | "rewards/chosen" | "rewards/rejected")
        }
        // Trl runs a reference for it, and no loss depends on that.
        "trl DPOTrainer" => {
            loss == "sft" && case["settings"].get("loss_weights").is_none() && name.starts_with("rewards/")
        }
        _ => false,
    }
}

/// The settings of a case.
fn settings(golden: &Value, case: &Value, folder: &Path) -> FinetuneSettings {
    let given = case["settings"].as_object().expect("settings");
    let own: Map<String, Value> = given
        .iter()
        .filter(|(key, _)| !RUN_KEYS.contains(&&key[..]))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let name = text(&case["name"]);
    let before = given.get("precompute_ref_log_probs").is_some();
    let start = before || name.contains("start_is_reference");
    // An adapter's reference is the model without it.
    let other = if case.get("modules").is_some() { "policy" } else { "reference" };
    let reference = ReferenceSettings {
        model: if start { ReferenceModel::Start } else { ReferenceModel::Checkpoint(folder.join(other)) },
        when: if before { ReferenceTime::Before } else { ReferenceTime::Live },
        cache: None,
    };
    let read = Value::Object(own.clone());
    let method = match text(case.get("task").unwrap_or(&Value::from(task(golden)))) {
        "sft" => Method::Sft(SftSettings {
            reduction: given.get("reduce_loss").map_or("token", text).parse().expect("a reduction"),
            token_loss: own.get("loss_type").map_or("nll", text).parse::<TokenLoss>().expect("a loss"),
        }),
        "dpo" => Method::Dpo(DpoSettings { preference: serde_json::from_value(read).expect("settings"), reference }),
        _ => {
            let mut kto = KtoTraining { kto: serde_json::from_value(read).expect("settings"), reference };
            kto.kto.kl_batch = KlBatch::Micro;
            let reversed = golden["optimizer"] == "rmsprop";
            kto.kto.mismatch = if reversed { Mismatch::Reversed } else { Mismatch::Rotated };
            Method::Kto(kto)
        }
    };
    let mut settings = FinetuneSettings::new(method, folder.join(name));
    settings.precision = Precision::Fp32;
    settings.batch_size = 4;
    settings.micro_batch = MicroBatch::Examples(case["micro_batch"].as_u64().expect("a number") as usize);
    settings.length = RunLength::Steps(2);
    settings.shuffle = false;
    settings.schedule.shape = ScheduleShape::Constant;
    settings.saving.keep = 0;
    if golden["optimizer"] == "rmsprop" {
        settings.optimizer = OptimizerConfig::kto();
    }
    settings.optimizer.learning_rate = number(&golden["learning_rate"]);
    settings.optimizer.weight_decay = given.get("weight_decay").map_or(0.0, number);
    if let Some(beta) = given.get("adam_beta2") {
        settings.optimizer.betas.1 = number(beta);
    }
    if given.get("max_grad_norm").is_some_and(|norm| number(norm) == 0.0) {
        settings.max_grad_norm = None;
    }
    settings.auxiliary = given.get("router_aux_loss_coef").map(number).filter(|weight| *weight != 0.0).map(|weight| {
        Auxiliary { definition: AuxiliaryDefinition::HuggingFace, load_balancing_weight: weight as f32, z_weight: 0.0 }
    });
    settings
}

/// The kind of runs that a file has.
fn task(golden: &Value) -> &str {
    let rows = golden["rows"].as_object().expect("rows").keys().next().expect("a set");
    match &rows[..] {
        "conversations" => "sft",
        "pairs" => "dpo",
        _ => "kto",
    }
}

/// Two steps of a case; what was reported, and the model at the end.
fn run(settings: FinetuneSettings, base: BaseModel<'_>, rows: &Value, with: impl FnOnce(&Model)) -> Log {
    let (mut log, interrupt) = (Log::default(), AtomicBool::new(false));
    let data = FinetuneData { train: examples(rows), evaluation: None };
    let mut trainer = begin(settings, base, data, &interrupt, &mut |event| log.take(&event)).expect("a good run");
    trainer.run(&interrupt, &mut |event| log.take(&event)).expect("a good run");
    with(trainer.model());
    log
}

/// Runs all cases of a file with all parameters trained.
fn check(file: &str) {
    let folder = TempDir::new().expect("a folder");
    let (golden, policy) = (golden(file), model("policy"));
    checkpoint("reference", folder.path());
    let mut errors = Errors::default();
    for case in golden["cases"].as_array().expect("cases") {
        let name = text(&case["name"]);
        let settings = settings(&golden, case, folder.path());
        let rows = &golden["rows"][text(&case["rows"])];
        let log =
            run(settings, BaseModel::of(&policy), rows, |model| errors.changes(&policy, model, &case["changes"], name));
        errors.steps(&golden, case, &log, name);
    }
    errors.check();
}

#[test]
fn supervised_steps_are_those_of_trl() {
    check("sft.json");
}

#[test]
fn steps_of_preference_tuning_are_those_of_trl_and_open_instruct() {
    check("preference.json");
}

#[test]
fn steps_of_kto_are_those_of_trl() {
    check("kto.json");
}

#[test]
fn steps_of_kto_with_rmsprop_are_those_of_trl_0_9_6() {
    check("kto_rmsprop.json");
}

/// The adapters of a case, by name of the module.
fn adapters(case: &Value) -> Vec<Adapter> {
    let all = parameters(&config());
    let of = |(name, one): (&String, &Value)| Adapter {
        module: all.iter().find(|spec| spec.module.to_string() == *name).expect("a module").module,
        rank: one["rank"].as_u64().expect("a rank") as usize,
        scale: number(&one["scale"]) as f32,
        dora: one["dora"] == true,
        share: Sharing::PerExpert,
        dropout: 0.0,
        init: AdapterInit::default(),
    };
    case["modules"].as_object().expect("modules").iter().map(of).collect()
}

/// Two steps of a case of adapters, which begin with the numbers that it has.
fn run_adapters(
    mut settings: FinetuneSettings,
    case: &Value,
    own: &Tensors,
    policy: &Model,
    rows: &Value,
    with: impl FnOnce(&Model),
) -> Log {
    let name = text(&case["name"]);
    let initial = |parameter: &str| own.get(&format!("{name}/initial.{parameter}"));
    settings.adapters = adapters(case);
    // Whole modules that are trained beside the adapters.
    settings.train = if initial("lm_head.weight").is_some() { vec!["lm_head".to_owned()] } else { Vec::new() };
    let base = BaseModel::of(policy).with_adapters(name, |model| {
        for spec in model.parameters().to_vec() {
            if let Some(value) = initial(&spec.name) {
                model.set(&spec.name, &spec.shape, value)?;
            }
        }
        Ok(())
    });
    run(settings, base, rows, with)
}

fn check_adapters(version: &str) {
    let folder = TempDir::new().expect("a folder");
    let golden = golden(&format!("adapters_peft_{version}.json"));
    let own = tensors(&bytes(&format!("adapters_peft_{version}.safetensors")));
    let policy = model("policy");
    checkpoint("policy", folder.path());
    let mut errors = Errors::default();
    for case in golden["cases"].as_array().expect("cases").iter().filter(|case| case.get("steps").is_some()) {
        let name = text(&case["name"]);
        let settings = settings(&golden, case, folder.path());
        let log = run_adapters(settings, case, &own, &policy, &golden["rows"][text(&case["rows"])], |model| {
            let key = format!("{name}/final.");
            let last: Vec<_> = own.iter().filter_map(|(own, value)| Some((own.strip_prefix(&key)?, value))).collect();
            assert!(!last.is_empty(), "{name}");
            for (parameter, expected) in last {
                let id = model.find(parameter).expect("a parameter");
                let got = model.value(id).expect("a trained parameter");
                let largest = expected.iter().fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
                for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
                    let what = format!("{name}, {parameter}[{at}]");
                    errors.note("parameter", f64::from(*got), f64::from(*expected), largest, &what);
                }
            }
        });
        errors.steps(&golden, case, &log, name);
    }
    errors.check();
}

#[test]
fn steps_of_adapters_of_single_experts_are_those_of_peft_0_18() {
    check_adapters("0_18");
}

#[test]
fn steps_of_adapters_of_stacks_are_those_of_peft_0_21() {
    check_adapters("0_21");
}
