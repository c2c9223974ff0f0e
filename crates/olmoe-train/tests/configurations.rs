//! OLMo's public training files, overrides, interpolations, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Keep, Precision};
use olmoe_train::config::{
    Count, Duration, EvaluatorType, FsdpPrecision, Loaded, Notice, OptimizerName, Progress, SchedulerName, TokenType,
    TrainConfig, TrainConfigError,
};

fn no_environment(_: &str) -> Option<String> {
    None
}

/// The least that is a configuration.
const MODEL: &str = "model: {rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0}\n";

fn load(lines: &str, overrides: &[&str]) -> Result<Loaded, TrainConfigError> {
    TrainConfig::from_yaml(&format!("{MODEL}{lines}"), overrides, &no_environment)
}

fn config(lines: &str, overrides: &[&str]) -> TrainConfig {
    load(lines, overrides).expect("a good configuration").config
}

/// The public files in a folder, or none where it is not.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(entries) = fs::read_dir(&folder) else {
        println!("skipped: there is no {}", folder.display());
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

#[test]
fn public_files_are_accepted_as_they_are() {
    let own = files("tests/configs");
    assert_eq!(own.len(), 3);
    for path in own.into_iter().chain(files("../../../shared/data/configs")) {
        let text = fs::read_to_string(&path).expect("a text");
        let loaded = TrainConfig::from_yaml(&text, &[""; 0], &no_environment)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let written = loaded.config.to_yaml().expect("it can be written");
        let again = TrainConfig::from_yaml(&written, &[""; 0], &no_environment)
            .unwrap_or_else(|error| panic!("{}: {error}\n{written}", path.display()));
        assert_eq!(again.config, loaded.config, "{}", path.display());
        assert_eq!(again.config.to_yaml().expect("it can be written"), written);
        let keys: Vec<&str> = loaded.notices.iter().map(|notice| notice.key.as_str()).collect();
        assert!(keys.contains(&"wandb") && keys.contains(&"fsdp"), "{keys:?}");
        let mut once = keys.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), keys.len(), "a notice is there twice: {keys:?}");
    }
}

#[test]
fn the_release() {
    let text = include_str!("configs/OLMoE-1B-7B-0924.yml");
    let loaded = TrainConfig::from_yaml(text, &[""; 0], &|name| (name == "SLURM_JOB_ID").then(|| "417".into()));
    let loaded = loaded.expect("the release's file");
    let config = &loaded.config;
    // But for the token that ends documents, which the file has wrong.
    assert_eq!(ModelConfig { eos_token_id: Some(50279), ..config.model.clone() }, ModelConfig::release());
    assert!(loaded.notices.iter().any(|notice| notice.key == "model.eos_token_id"));
    assert_eq!(config.run_name.as_deref(), Some("417"));
    assert_eq!(config.save_folder, "runs/417");
    assert_eq!(config.wandb.as_ref().and_then(|wandb| wandb.name.as_deref()), Some("417"));
    assert_eq!(config.wandb.as_ref().and_then(|wandb| wandb.entity.as_deref()), Some("ai2-llm"));
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.name, optimizer.learning_rate, optimizer.eps), (OptimizerName::AdamW, 4e-4, 1e-8));
    assert_eq!((optimizer.betas, optimizer.weight_decay), ((0.9, 0.95), 0.1));
    assert_eq!(config.scheduler.name, SchedulerName::CosineWithWarmup);
    assert_eq!(config.scheduler.t_max, Some(Count(5_000_000_000_000)));
    assert_eq!(config.max_duration, Duration::Epochs(2));
    assert_eq!((config.device_eval_batch_size, config.eval_interval), (4, 5000));
    assert_eq!((config.precision(), config.keep()), (Some(Precision::AmpBf16), Keep::Everything));
    assert_eq!(config.fsdp.as_ref().and_then(|fsdp| fsdp.precision), Some(FsdpPrecision::Mixed));
    assert_eq!(config.evaluators.len(), 24);
    assert_eq!(config.evaluators[0].r#type, EvaluatorType::Lm);
    assert_eq!(config.evaluators[0].data.files().count(), 11);
    assert_eq!(config.evaluators[23].r#type, EvaluatorType::Downstream);
    assert_eq!(config.data.memmap_dtype, TokenType::Uint16);
    assert_eq!(config.data.instance_filter.as_ref().map(|filter| filter.repetition_max_count), Some(32));
    assert_eq!(config.tokens_per_batch(), 4_194_304);
    assert!(config.records_metrics(20) && !config.records_metrics(21));
    let error = config.check_start().expect_err("the data is elsewhere");
    assert!(error.to_string().starts_with("`data.paths` names /weka/"), "{error}");
    assert!(error.to_string().ends_with("2 of 2 files of `data.paths` are missing"), "{error}");
}

#[test]
fn a_job_without_a_cluster_has_a_name_too() {
    let text = include_str!("configs/OLMoE-1B-7B-0924.yml");
    let loaded = TrainConfig::from_yaml(text, &[""; 0], &no_environment).expect("the release's file");
    assert_eq!(loaded.config.save_folder, "runs/local");
    let notices: Vec<&Notice> = loaded.notices.iter().filter(|notice| notice.key == "run_name").collect();
    assert!(notices.len() == 1 && notices[0].text.contains("--run_name=NAME"), "{notices:?}");
    let named = TrainConfig::from_yaml(text, &["--run-name=mine"], &no_environment).expect("the release's file");
    assert_eq!(named.config.save_folder, "runs/mine");
    assert!(named.notices.iter().all(|notice| notice.key != "run_name"));
}

#[test]
fn all_keys_are_written_in_the_order_of_olmo() {
    let text =
        config("run_name: \"007\"\ndata: {paths: [a b, 'c''d'], memmap_dtype: uint32}\nload_path: '\\${x}'", &[])
            .to_yaml()
            .expect("it can be written");
    let top: Vec<&str> = text.lines().filter(|line| !line.starts_with([' ', '-'])).collect();
    assert_eq!(top[..5], ["run_name: \"007\"", "seed: 6198", "epoch: null", "dry_run: false", "model:"]);
    assert_eq!(top.last(), Some(&"module_outputs_save_steps: null"));
    for part in [
        "optimizer:\n  name: lionw\n  learning_rate: 0.0001\n  weight_decay: 0.01\n  betas:\n  - 0.9\n  - 0.95\n  eps: 1.0e-5\n",
        "scheduler:\n  name: cosine_with_warmup\n  units: steps\n  t_warmup: 100\n  t_max: null\n",
        "data:\n  paths:\n  - \"a b\"\n  - \"c'd\"\n  memmap_dtype: uint32\n",
        "evaluators: []\n",
        "load_path: \"\\\\${x}\"\n",
        "max_duration: 10000\n",
        "  n_heads: 12\n  n_kv_heads: 12\n  clip_qkv: null\n  n_layers: 12\n",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let again = TrainConfig::from_yaml(&text, &[""; 0], &no_environment).expect("what was written").config;
    assert_eq!(again.load_path.as_deref(), Some("${x}"));
    assert_eq!(again.run_name.as_deref(), Some("007"));
}

/// Every key of a written file, with the sections it is in: `evaluators[].data.paths`.
fn keys(value: &serde_json::Value, at: &str, all: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(entries) => {
            for (key, value) in entries {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                all.push(path.clone());
                // The names of sets are free.
                if key != "datasets" {
                    keys(value, &path, all);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{at}[]"), all)),
        _ => {}
    }
}

/// OLMo's own trainer refuses a file with a key that its branch does not have. Its keys: tests/golden/olmo_config_keys.txt,
/// read from allenai/OLMo by tools/reference/make_golden_config_keys.py.
#[test]
fn olmo_knows_every_key_of_a_run() {
    let table = include_str!("../../../tests/golden/olmo_config_keys.txt");
    let rows: Vec<Vec<&str>> =
        table.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect()).collect();
    assert!(rows.len() > 200 && rows.iter().all(|row| row.len() == 4));
    let unknown = |config: &TrainConfig, branch: usize| {
        let written = config.to_yaml().expect("it can be written");
        let value = olmoe_model::config::parse_yaml(&written).expect("YAML");
        let mut found = Vec::new();
        keys(&value, "", &mut found);
        assert!(found.len() > 100, "{found:?}");
        let known = |key: &String| rows.iter().any(|row| row[0] == key.as_str() && row[branch] != "-");
        found.retain(|key| !known(key));
        found
    };
    let (main, moe, shared_layers) = (1, 2, 3);
    let none: [&str; 0] = [];
    let evaluated =
        "evaluators: [{label: a, data: {paths: [b], drop_last: true}}]\ncompile: {mode: default}\nddp: {}\nwandb: {}";
    let dense = config(&format!("data: {{paths: [a], instance_filter: {{}}}}\n{evaluated}"), &[]);
    assert_eq!(unknown(&dense, main), none);
    assert_eq!(unknown(&dense, moe), none);
    let experts = ["--model.block_type=moe", "--model.moe_loss_weight=0.01", "--model.moe_zloss_weight=0.001"];
    let mixture = config(evaluated, &experts);
    assert_eq!(unknown(&mixture, moe), none);
    let own: Vec<PathBuf> = files("tests/configs").into_iter().chain(files("../../configs")).collect();
    for path in own {
        let text = fs::read_to_string(&path).expect("a text");
        if text.contains("\noptimizer:") {
            let config = TrainConfig::from_yaml(&text, &[""; 0], &no_environment).expect("a good file").config;
            let extra = unknown(&config, moe);
            let own = |key: &String| key == "data.ratios" || key.split('.').next() == Some("samples");
            assert!(extra.iter().all(own), "{}: {extra:?}", path.display());
        }
    }
    // A key is there where it is needed, whoever knows it.
    let interleaved = config("", &[&experts[..], &["--model.moe_interleave=true"]].concat());
    assert_eq!(unknown(&interleaved, moe), ["model.moe_interleave"]);
    assert!(!unknown(&interleaved, shared_layers).contains(&"model.moe_interleave".to_owned()));
    let single = config("single: {device: cpu}\ncompile: {dynamic: true}", &[]);
    assert_eq!(unknown(&single, main), none);
    assert_eq!(unknown(&single, moe), ["compile.dynamic", "single", "single.device"]);
    // What is left out is what every reader has.
    for config in [dense, mixture, interleaved, single] {
        let written = config.to_yaml().expect("it can be written");
        let again = TrainConfig::from_yaml(&written, &[""; 0], &no_environment).expect("what was written").config;
        assert_eq!(again, config);
    }
}

#[test]
fn the_weight_of_the_logits_loss_is_not_olmos() {
    let notes = |lines: &str| {
        let notices = load(lines, &[]).expect("a good configuration").notices;
        let own = notices.into_iter().filter(|notice| notice.key == "auxiliary_loss_multiplier");
        own.map(|notice| notice.text).collect::<Vec<_>>()
    };
    assert_eq!(notes("softmax_auxiliary_loss: true\nauxiliary_loss_multiplier: 1e-4"), [""; 0]);
    let text = &notes("softmax_auxiliary_loss: true\nauxiliary_loss_multiplier: 1e-3")[0];
    assert!(text.contains("OLMo pays no heed to it and multiplies by 1e-4"), "{text}");
    assert!(notes("auxiliary_loss_multiplier: 1e-3")[0].contains("no effect without `softmax_auxiliary_loss`"));
}

#[test]
fn padding_and_documents_cannot_both_be_hidden() {
    let both = "generate_attention_mask: true, generate_doc_lengths: true";
    for (lines, path) in [
        (format!("data: {{{both}}}"), "`data.generate_attention_mask`"),
        (
            format!("evaluators: [{{label: a, data: {{paths: [b], {both}}}}}]"),
            "`evaluators[0].data.generate_attention_mask`",
        ),
    ] {
        let error = load(&lines, &[]).expect_err("OLMo asserts the same").to_string();
        assert!(error.contains(path) && error.contains("set `generate_doc_lengths` to false"), "{error}");
    }
}

#[test]
fn the_projects_runs_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let configs = fs::read_dir(root.join("configs")).expect("the folder of configurations");
    let mut runs: Vec<_> = configs.map(|entry| entry.expect("an entry").path()).collect();
    // Some are of a model alone.
    runs.retain(|path| fs::read_to_string(path).expect("a text").contains("\noptimizer:"));
    assert!(runs.len() >= 3, "{runs:?}");
    for run in runs {
        let loaded = TrainConfig::read(&run, &[""; 0]).unwrap_or_else(|error| panic!("{}: {error}", run.display()));
        assert!(loaded.config.optimizer.learning_rate > 0.0);
    }
}

#[test]
fn keys_of_our_own_are_written_where_they_are_set() {
    let evaluated = config("evaluators: [{label: a, data: {paths: [b]}}]", &[]);
    for own in ["samples", "ratios"] {
        assert!(!evaluated.to_yaml().expect("it can be written").contains(own), "{own}");
    }
    let mixed = config("data: {paths: [a, b], ratios: [0.5, 2]}", &[]).to_yaml().expect("so can this");
    assert!(mixed.contains("  ratios:\n  - 0.5\n  - 2"), "{mixed}");
    let written = config("samples: {prompts: ['a: b', '']}", &["--samples.top_k=5"]).to_yaml().expect("so can this");
    let end = "samples:\n  prompts:\n  - \"a: b\"\n  - \"\"\n  interval: 1000\n  max_new_tokens: 64\n  temperature: 0.8\n  \
               top_k: 5\n  top_p: 0.95\n  seed: null\n";
    assert!(written.ends_with(end), "{written}");
    let again = TrainConfig::from_yaml(&written, &[""; 0], &no_environment).expect("what was written").config;
    assert_eq!(again.samples.expect("it is there").prompts, ["a: b", ""]);
}

#[test]
fn overrides() {
    let lines = "data: {paths: [a, b, c]}\nwandb: {project: p, tags: [x]}\nevaluators: [{label: one}, {label: two}]";
    let config = config(
        lines,
        &[
            "--optimizer.learning_rate=4e-4",
            "--optimizer.learning-rate=3e-4",
            "--save_overwrite",
            "--data.paths.1=B",
            "--data.paths[2]=C",
            "--evaluators[1].device_eval_batch_size=7",
            "--wandb.group=g",
            "--wandb={name: n, tags: null}",
            "--fsdp=null",
            "--max_duration=2e9T",
            "--compile.mode=default",
            "--optimizer.betas=[0.8, 0.9]",
            "--load_path=",
            "stop_at=12",
            "--module_outputs_save_steps=[1,2]",
            "--save_folder=runs/${run_name}",
            "--run_name=r",
            "--model.n_layers=3",
        ],
    );
    assert_eq!(config.optimizer.learning_rate, 3e-4);
    assert!(config.save_overwrite);
    assert_eq!(config.data.paths.as_ref().expect("paths")[..], ["a", "B", "C"]);
    assert_eq!(config.evaluators[1].device_eval_batch_size, Some(7));
    let wandb = config.wandb.as_ref().expect("a section");
    assert_eq!(
        (wandb.project.as_deref(), wandb.group.as_deref(), wandb.name.as_deref()),
        (Some("p"), Some("g"), Some("n"))
    );
    assert_eq!((wandb.tags.as_ref(), config.fsdp.as_ref()), (None, None));
    assert_eq!(config.max_duration, Duration::Tokens(2_000_000_000));
    assert_eq!(config.compile.as_ref().and_then(|compile| compile.mode.as_deref()), Some("default"));
    assert_eq!(config.optimizer.betas, (0.8, 0.9));
    assert_eq!((config.load_path.as_ref(), config.stop_at), (None, Some(12)));
    assert_eq!(config.module_outputs_save_steps.as_deref(), Some(&[1, 2][..]));
    assert_eq!(config.save_folder, "runs/r");
    assert_eq!(config.model.n_layers, 3);
    let lines = "data: {paths: [a, b, c]}";
    assert_eq!(self::config(lines, &["--data.paths=[z]"]).data.paths.as_ref().expect("paths")[..], ["z"]);
    assert_eq!(self::config(lines, &["--data.paths=null", "--data.datasets={s: [q]}"]).data.paths, None);
}

#[test]
fn interpolations() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().to_str().expect("UTF-8").to_owned();
    for name in ["b.npy", "a.npy", ".hidden.npy", "c.txt"] {
        fs::write(folder.path().join(name), "").expect("written");
    }
    for name in ["run/step9", "run/step10", "run/step10-unsharded", "run/latest", "own/step-3", "own/step-12", "none"] {
        std::fs::create_dir_all(folder.path().join(name)).expect("made");
    }
    let environment = |name: &str| match name {
        "ROOT" => Some(root.clone()),
        "SIZE" => Some("4".into()),
        _ => None,
    };
    let load = |line: &str| TrainConfig::from_yaml(&format!("{MODEL}{line}\n"), &[""; 0], &environment);
    let run_name = |text: &str| load(&format!("run_name: '{text}'")).expect(text).config.run_name.expect(text);
    for (text, expected) in [
        ("${seed}", "6198"),
        ("a-${optimizer.name}-${dry_run}", "a-lionw-False"),
        ("${oc.env:NONE,default}", "default"),
        ("${oc.env:NONE,${oc.env:SIZE}}", "4"),
        ("${oc.env:NONE, \"a, b\"}", "a, b"),
        ("\\${seed}/${seed}", "${seed}/6198"),
        ("${path.choose:/nowhere/a,/nowhere/b}", "/nowhere/a"),
        ("${path.choose:/nowhere/a,s3://bucket/b}", "s3://bucket/b"),
        ("${.seed}", "6198"),
        ("${optimizer.betas[1]}", "0.95"),
        ("${${optimizer.name}}x", "!"),
    ] {
        if expected == "!" {
            assert!(load(&format!("run_name: '{text}'")).is_err());
        } else {
            assert_eq!(run_name(text), expected, "{text}");
        }
    }
    assert_eq!(run_name("${path.choose:${oc.env:NONE,no}/a.npy,${oc.env:ROOT}/a.npy}"), format!("{root}/a.npy"));
    assert_eq!(run_name(&format!("${{path.last_checkpoint:{root}/run}}")), format!("{root}/run/step10"));
    assert_eq!(run_name(&format!("${{path.last_checkpoint:{root}/own}}")), format!("{root}/own/step-12"));
    let config = load("data:\n  paths: ${path.glob:${oc.env:ROOT}/*.npy,/nowhere/*.npy}\n").expect("paths").config;
    let expected = [format!("{root}/a.npy"), format!("{root}/b.npy"), "/nowhere/*.npy".into()];
    assert_eq!(config.data.paths.as_ref().expect("paths")[..], expected);
    let config =
        load("device_train_microbatch_size: ${oc.env:SIZE}\ndevice_eval_batch_size: ${device_train_microbatch_size}");
    assert_eq!(config.expect("a number").config.device_eval_batch_size, 4);
    let config = load("wandb: {name: '${..run_name}', project: '${.name}'}\nrun_name: r").expect("relative").config;
    assert_eq!(config.wandb.expect("a section").project.as_deref(), Some("r"));
    for (line, expected) in [
        (
            "run_name: ${oc.env:NONE}".to_owned(),
            "`run_name`: cannot resolve `oc.env:NONE`: the environment has no such",
        ),
        ("run_name: ${run_name}".into(), "refers to itself"),
        ("run_name: ${save_folder}\nsave_folder: ${run_name}/x".into(), "refers to itself"),
        ("run_name: ${nothing}".into(), "there is no such key"),
        ("run_name: ${......a}".into(), "above the top level"),
        ("run_name: ${seed".into(), "the `}` at the end is missing"),
        ("run_name: ${now:%Y}".into(), "there is no `now`; expected oc.env"),
        ("run_name: ${oc.env}".into(), "there is no such key"),
        ("run_name: ${path.choose:}".into(), ""),
        ("run_name: a${optimizer}".into(), "it is a mapping, which cannot be part of a string"),
        (format!("run_name: ${{path.last_checkpoint:{root}/none}}"), "the folder has no checkpoint"),
        ("run_name: ${path.last_checkpoint:s3://b}".into(), "copy the folder"),
        ("run_name: ${path.last_checkpoint:/nowhere}".into(), "cannot list the folder"),
        ("run_name: '${path.glob:a***}'".into(), "not a pattern"),
        (format!("run_name: {}seed{}", "${".repeat(10_000), "}".repeat(10_000)), "nested too deeply"),
    ] {
        match load(&line) {
            Err(error) => assert!(error.to_string().contains(expected) && !expected.is_empty(), "{error}"),
            Ok(_) => assert!(expected.is_empty(), "{line} was accepted"),
        }
    }
    // Every line doubles the one before: 2^40 bytes.
    let doubling: Vec<String> =
        (0..40).map(|i| format!("k{i}: '${{wandb.k{}}}${{wandb.k{}}}'", i + 1, i + 1)).collect();
    let error = load(&format!("wandb: {{{}, k40: {}}}", doubling.join(", "), "x".repeat(1000))).expect_err("too much");
    assert!(error.to_string().contains("too"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    for (lines, expected) in [
        (
            "optimizer: {learnig_rate: 1}",
            "unknown key `optimizer.learnig_rate`; did you mean `optimizer.learning_rate`?",
        ),
        ("sample: {}", "unknown key `sample`; did you mean `samples`?"),
        ("samples: {promts: [a]}", "unknown key `samples.promts`; did you mean `samples.prompts`?"),
        (
            "data: {paths: [a, b], ratios: [1]}",
            "`data.ratios` is a list of 1; it must have one number for each of `paths`",
        ),
        ("samples: {}", "`samples.prompts` is empty; list the texts to go on from"),
        ("samples: {prompts: [a], interval: 0}", "`samples.interval` is 0; it must be at least 1"),
        ("samples: {prompts: [a], max_new_tokens: 0}", "`samples.max_new_tokens` is 0; it must be at least 1"),
        ("samples: {prompts: [a], temperature: -1}", "in the section `samples`: temperature is -1, expected 0 or more"),
        ("optimiser: {}", "unknown key `optimiser`; did you mean `optimizer`?"),
        ("zebra: 1", "unknown key `zebra`; remove it"),
        (
            "evaluators: [{label: a}, {lebel: b}]",
            "unknown key `evaluators[1].lebel`; did you mean `evaluators[1].label`?",
        ),
        ("data: {instance_filter: {repetition_max: 1}}", "unknown key `data.instance_filter.repetition_max`"),
        ("optimizer: null", "`optimizer` must be a section of keys and values, found null"),
        ("optimizer: {betas: [0.9]}", "`optimizer.betas` must be a list of two numbers, found a list"),
        ("optimizer: {betas: [0.9, high]}", "`optimizer.betas[1]` must be a number, found the text \"high\""),
        ("optimizer: {betas: [0.9, 1.0]}", "`optimizer.betas[1]` is 1; it must be at least 0 and less than 1"),
        ("optimizer: {name: sgd}", "`optimizer.name` is `sgd`; it must be one of lionw, adamw, rmsprop"),
        ("optimizer: {learning_rate: 0}", "`optimizer.learning_rate` is 0; it must be greater than 0"),
        ("optimizer: {learning_rate: .nan}", "`optimizer.learning_rate` must be a number"),
        ("optimizer: {eps: -1}", "`optimizer.eps` is -1; it must be at least 0"),
        ("seed: -1", "`seed` must be a whole number of at least 0, found the number -1"),
        ("seed: 1.5", "`seed` must be a whole number of at least 0, found the number 1.5"),
        ("dry_run: maybe", "`dry_run` must be true or false, found the text \"maybe\""),
        ("run_name: [a]", "`run_name` must be a text, found a list"),
        ("data: {paths: a.npy}", "`data.paths` must be a list, found the text \"a.npy\""),
        ("data: {paths: [a], datasets: {b: [c]}}", "`data.datasets` is set; `paths` is set, too; keep one of them"),
        (
            "data: {paths: [a, b], label_mask_paths: [c]}",
            "`data.label_mask_paths` is a list of 1; it must have one file",
        ),
        (
            "data: {memmap_dtype: int8}",
            "`data.memmap_dtype` is `int8`; it must be one of uint8, uint16, uint32, uint64",
        ),
        ("data: {custom_dataset: {name: x}}", "`data.custom_dataset` is a mapping; it is not implemented; set null"),
        ("data: {instance_filter: {repetition_min_period: 14}}", "it must be at least 1 and at most"),
        ("scheduler: {t_warmup: -3}", "`scheduler.t_warmup` must be a number of at least 0"),
        ("scheduler: {name: cosine}", "it must be one of cosine_with_warmup, linear_with_warmup"),
        ("scheduler: {warmup_min_lr: 1}", "`scheduler.warmup_min_lr` is 1; it must be at least 0 and less than"),
        ("scheduler: {name: inverse_sqrt_with_warmup, t_warmup: 0}", "makes every learning rate 0"),
        ("scheduler: {grad_clip_warmup_steps: 5}", "`scheduler.grad_clip_warmup_factor` is null"),
        ("max_duration: 1.5ep", "`max_duration` is `1.5ep`; expected a number of steps"),
        ("max_duration: 2e12B", "`max_duration` is `2e12B`"),
        ("max_duration: -5", "`max_duration` is `-5`"),
        ("max_duration: 1e300T", "`max_duration` is `1e300T`"),
        ("max_duration: [1]", "`max_duration` must be a number of steps, or tokens"),
        ("precision: amp_fp16", "`precision` is `amp_fp16`; it must be one of amp_bf16, fp32"),
        ("eval_interval: 0", "`eval_interval` is 0; it must be at least 1"),
        ("save_num_checkpoints_to_keep: -2", "it must be at least 0, or -1 for all"),
        ("max_grad_norm: 0", "null turns clipping off"),
        ("softmax_auxiliary_loss: true\nauxiliary_loss_multiplier: null", "`auxiliary_loss_multiplier` is null"),
        ("evaluators: [{type: lm}]", "`evaluators[0].label` is empty"),
        ("evaluators: [{label: a}, {label: a}]", "`evaluators[1].label` is a; another evaluator has this name"),
        ("wandb: {log_interval: 0}", "`wandb.log_interval` is 0"),
        ("- 1", "not valid YAML"),
        ("seed: 1\nseed: 2", "not valid YAML"),
    ] {
        let error = load(lines, &[]).expect_err(lines).to_string();
        assert!(error.contains(expected), "{lines}: {error}");
    }
    for (text, expected) in [
        ("seed: 1", "there is no section `model`"),
        ("models: {}", "unknown key `models`; did you mean `model`?"),
        ("[]", "must be a section of keys and values, found a list"),
        ("model: {d_modle: 4}", "in the section `model`: unknown key `d_modle`; did you mean `d_model`?"),
        ("model: 3", "`model` must be a section of keys and values, found the number 3"),
        ("", "must be a section of keys and values, found null"),
    ] {
        let error = TrainConfig::from_yaml(text, &[""; 0], &no_environment).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    for (text, expected) in [
        ("--optimizer..eps=1", "a part of its key is empty"),
        ("=1", "a part of its key is empty"),
        ("--data.paths.7=x", "`7` is no place of a list of 1"),
        ("--seed=[", "not valid YAML"),
        ("--seed.x=1", "`seed` must be a whole number of at least 0, found a mapping"),
        ("--optimizer.learnig_rate=1", "did you mean `optimizer.learning_rate`?"),
        (&format!("--{}x=1", "a.".repeat(100)), "too many parts"),
    ] {
        let error = load("data: {paths: [a]}", &[text]).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn older_settings_are_understood() {
    let loaded =
        load("optimizer: {name: decoupled_lionw, eps: 3}\nactivation_checkpointing: true", &[]).expect("older");
    assert_eq!((loaded.config.optimizer.name, loaded.config.optimizer.eps), (OptimizerName::LionW, 1e-5));
    assert_eq!(loaded.config.keep(), Keep::BlockInputs);
    assert_eq!(config("activation_checkpointing: false", &[]).keep(), Keep::Everything);
    let lines = "optimizer: {no_decay_norm_and_bias: false, decay_embeddings: false}";
    let loaded = load(lines, &[]).expect("older");
    assert!(loaded.config.optimizer.decay_norm_and_bias && loaded.config.optimizer.decay_embeddings);
    assert_eq!(loaded.config.optimizer.no_decay_norm_and_bias, None);
    assert!(loaded.notices.iter().any(|notice| notice.key == "optimizer.no_decay_norm_and_bias"));
}

#[test]
fn durations_end_as_in_olmo() {
    let lines = "global_train_batch_size: 2";
    let config =
        |duration: &str| config(lines, &[&format!("--max_duration={duration}"), "--model.max_sequence_length=8"]);
    let at = Progress { step: 5, tokens_seen: 70, batches_per_epoch: 10 };
    for (duration, steps, tokens, epochs) in [
        ("12", 12, 70 + 7 * 16, 2),
        ("'1e1'", 10, 70 + 5 * 16, 1),
        ("3", 3, 70, 1),
        ("100T", 5 + 2, 100, 1),
        ("'1.2e2 T'", 5 + 4, 120, 1),
        ("70T", 5, 70, 1),
        ("2ep", 20, 320, 2),
    ] {
        let config = config(duration);
        let found = (config.max_steps(&at), config.max_tokens(&at), config.max_epochs(&at));
        assert_eq!(found, (steps, tokens, epochs), "{duration}");
        assert_eq!(config.stop_step(&at), steps + 10);
    }
    let mut config = config("2ep");
    assert_eq!((config.schedule_position(&at), config.schedule_end(&at)), (5, 20));
    config.scheduler.units = olmoe_train::config::SchedulerUnits::Tokens;
    assert_eq!((config.schedule_position(&at), config.schedule_end(&at)), (70, 320));
    for (stop_at, stop_after, stop) in
        [(Some(9), None, 9), (None, Some(3), 8), (Some(9), Some(3), 8), (Some(6), Some(3), 6)]
    {
        (config.stop_at, config.stop_after) = (stop_at, stop_after);
        assert_eq!(config.stop_step(&at), stop);
    }
    let nothing = Progress::default();
    assert_eq!((config.max_epochs(&nothing), config.max_steps(&nothing)), (0, 0));
}

#[test]
fn what_training_needs_to_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.npy");
    fs::write(&file, "").expect("written");
    let file = file.to_str().expect("UTF-8");
    let start = |overrides: &[&str]| config("", overrides).check_start().map_err(|error| error.to_string());
    let paths = format!("--data.paths=[{file}]");
    let named = "--run_name=r";
    for (overrides, expected) in [
        (&["--precision=fp32"][..], "`run_name` is not set"),
        (&[named], "`precision` is not set; set amp_bf16"),
        (&[named, "--precision=fp32"], "`data.paths` is not set"),
        (&[named, "--precision=fp32", "--data.datasets={a: [/nowhere]}"], "`data.datasets` names /nowhere"),
        (&[named, "--precision=fp32", "--data.paths=[s3://b/c]"], "an address; copy it to this machine"),
    ] {
        let error = start(overrides).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    start(&[named, "--precision=fp32", &paths]).expect("nothing is missing");
    let evaluator = "--evaluators=[{label: a, data: {paths: [/nowhere]}}]";
    let error = start(&[named, "--precision=fp32", &paths, evaluator]).expect_err("the evaluator's data");
    assert!(error.contains("`evaluators[0].data.paths` names /nowhere"), "{error}");
    let error = TrainConfig::read(folder.path().join("none.yml"), &[""; 0]).expect_err("no file");
    assert!(error.to_string().contains("none.yml"), "{error}");
    fs::write(folder.path().join("bad.yml"), "zebra: 1").expect("written");
    let error = TrainConfig::read(folder.path().join("bad.yml"), &[""; 0]).expect_err("no configuration");
    assert!(error.to_string().contains("bad.yml: unknown key `zebra`"), "{error}");
}

#[test]
fn the_home_directory_is_put_into_paths() {
    let home = std::env::home_dir().expect("a home directory");
    let lines = "evaluators: [{label: e, data: {paths: [~/e.npy]}}]\ntokenizer: {identifier: ~/t.json}\n\
        data: {paths: [~/a.npy, b.npy]}";
    let config = config(lines, &["--save_folder=~/runs/x", "--load_path=~/runs/y"]);
    let inside = |path: &str| home.join(path).to_str().expect("a text").to_owned();
    assert_eq!((config.save_folder, config.load_path), (inside("runs/x"), Some(inside("runs/y"))));
    assert_eq!(config.tokenizer.identifier, inside("t.json"));
    assert_eq!(config.data.paths, Some(vec![inside("a.npy"), "b.npy".to_owned()]));
    assert_eq!(config.evaluators[0].data.paths, Some(vec![inside("e.npy")]));
}
