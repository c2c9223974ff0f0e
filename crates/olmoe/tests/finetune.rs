//! `olmoe sft`, `olmoe dpo` and `olmoe kto` from outside: what is said, written and gone on with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod program;

use program::desk::Desk;
use program::{Done, PROGRAM, olmoe};
use serde_json::Value;

/// A folder with a small model, and rows for each command.
struct Table {
    desk: Desk,
}

const CHATS: &str = r#"{"messages":[{"role":"user","content":"ab"},{"role":"assistant","content":"ba"}]}
{"messages":[{"role":"user","content":"cd"},{"role":"assistant","content":"dc"}]}
{"messages":[{"role":"user","content":"ef"},{"role":"assistant","content":"fe"}]}
{"messages":[{"role":"system","content":"s"},{"role":"user","content":"gh"},{"role":"assistant","content":"hg"}]}
"#;
const PAIRS: &str = r#"{"prompt":"ab","chosen":"ba","rejected":"no"}
{"prompt":"cd","chosen":"dc","rejected":"never"}
{"prompt":"ef","chosen":"fe","rejected":"x"}
{"prompt":"gh","chosen":"hg","rejected":"yy"}
"#;
const JUDGED: &str = r#"{"prompt":"ab","completion":"ba","label":true}
{"prompt":"cd","completion":"no","label":false}
{"prompt":"ef","completion":"fe","label":true}
{"prompt":"gh","completion":"never","label":false}
"#;

impl Table {
    fn new() -> Table {
        let table = Table { desk: Desk::new("sft", 96) };
        for (name, rows) in [("chats.jsonl", CHATS), ("pairs.jsonl", PAIRS), ("judged.jsonl", JUDGED)] {
            fs::write(table.path(name), rows).unwrap();
        }
        table
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A run of a command in a folder, with the model and the rows for it.
    fn words(&self, verb: &str, run: &str, more: &[&str]) -> Vec<String> {
        let rows = match verb {
            "sft" => "chats.jsonl",
            "dpo" => "pairs.jsonl",
            _ => "judged.jsonl",
        };
        let mut words: Vec<String> = vec![verb.into(), "-m".into(), self.name("hf")];
        if !more.iter().any(|word| word.starts_with("--train_file") || word.starts_with("--dataset")) {
            words.extend(["--train_file".into(), self.name(rows)]);
        }
        words.extend([format!("--output_dir={}", self.name(run)), "--precision=fp32".into()]);
        words.extend(more.iter().map(ToString::to_string));
        words
    }

    fn run(&self, verb: &str, run: &str, more: &[&str]) -> Done {
        let words = self.words(verb, run, more);
        olmoe(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    }

    /// The same; it has to succeed.
    fn done(&self, verb: &str, run: &str, more: &[&str]) -> Done {
        let done = self.run(verb, run, more);
        assert_eq!(done.code, 0, "{verb} {more:?}: {}", done.err);
        done
    }

    /// What a run logged under a name, step by step.
    fn logged(&self, run: &str, name: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line.get(name)?.as_f64()).collect()
    }

    /// The tensors of a run's step.
    fn tensors(&self, run: &str, step: u64) -> Vec<(String, Vec<u8>)> {
        let folder = self.path(run).join(format!("step-{step}"));
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
        files.sort();
        files.iter().map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read(path).unwrap())).collect()
    }
}

const SHORT: [&str; 5] = ["--max_steps", "4", "--per_device_train_batch_size=2", "--learning_rate", "1e-2"];

#[test]
fn a_model_is_tuned_and_is_a_model() {
    let table = Table::new();
    let done = table.done("sft", "run", &SHORT);
    assert!(done.err.contains("format messages, 4 rows, 4 taken"), "{}", done.err);
    assert!(done.err.contains("4 of 4 rows kept") && done.err.contains("step 4/4"), "{}", done.err);
    assert!(done.err.contains("experts") && done.err.contains("trained"), "{}", done.err);
    let losses = table.logged("run", "loss");
    assert!(losses.len() == 4 && losses[3] < losses[0], "{losses:?}");
    let model = table.path("run/model");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(model.join(file).is_file(), "{file}");
    }
    let settings: Value = serde_json::from_slice(&fs::read(model.join("tokenizer_config.json")).unwrap()).unwrap();
    assert!(settings["chat_template"].as_str().unwrap().contains("<|assistant|>"), "{settings}");
    assert_eq!(settings["bos_token"], settings["eos_token"], "{settings}");
    let out = table.name("run/model");
    let written = olmoe(&["generate", "-m", &out, "-p", "a", "-n", "3", "--temp", "0", "--quiet"], &[]);
    assert_eq!(written.code, 0, "{}", written.err);
    // The configuration that a run leaves is one for the command.
    let config = table.name("run/config.yaml");
    let again = olmoe(&["sft", &config, "--print-config"], &[]);
    assert_eq!(
        (again.code, again.out),
        (0, fs::read_to_string(table.path("run/config.yaml")).unwrap()),
        "{}",
        again.err
    );
    // The same command says that it is over, and changes nothing.
    let again = table.done("sft", "run", &SHORT);
    assert!(again.err.contains("encoded before") && again.err.contains("all 4 steps are done"), "{}", again.err);
}

#[test]
fn adapters_are_files_of_peft_and_of_llama_cpp() {
    let table = Table::new();
    let lora = ["--use_lora", "--lora_r", "2", "--target_modules", "attention", "experts"];
    let done = table.done("sft", "run", &[&SHORT[..], &lora].concat());
    assert!(done.err.contains("LoRA adapters of rank 2, scale 2, on q_proj, k_proj"), "{}", done.err);
    let adapter = table.path("run/adapter");
    let settings: Value = serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&settings["r"], &settings["peft_type"]), (&Value::from(2), &Value::from("LORA")), "{settings}");
    assert!(adapter.join("adapter_model.safetensors").is_file() && adapter.join("tokenizer_config.json").is_file());
    let (base, path) = (table.name("hf"), table.name("run/adapter"));
    let say = |more: &[&str]| {
        let words = [&["generate", "-m", &base, "-p", "ab", "-n", "4", "--temp", "0", "--quiet"], more].concat();
        let done = olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        done.out
    };
    say(&["--adapter", &path]);
    // Going on from an adapter trains it.
    let more = [&SHORT[..], &["--adapter_name_or_path", &path, "--output_format", "gguf"]].concat();
    let first = table.done("sft", "more", &more);
    assert!(table.path("more/adapter.gguf").is_file(), "{}", first.err);
    let losses = (table.logged("run", "loss"), table.logged("more", "loss"));
    assert!(losses.1[0] < losses.0[0], "{losses:?}");
    // Merged it is a model.
    let merged = [&SHORT[..], &lora, &["--merge_adapter", "--overwrite_cache"]].concat();
    let done = table.done("sft", "merged", &merged);
    assert!(table.path("merged/model/config.json").is_file(), "{}", done.err);
    assert!(done.err.contains("of the change survives"), "{}", done.err);
}

#[test]
fn a_quantised_base_stays_so_under_adapters() {
    let table = Table::new();
    let (hf, gguf) = (table.name("hf"), table.name("base.gguf"));
    let made = olmoe(&["quantize", &hf, &gguf, "--type", "q8_0", "--quiet"], &[]);
    assert_eq!(made.code, 0, "{}", made.err);
    let lora = ["-m", &gguf, "--use_lora", "--lora_r", "2", "--precision", "amp_bf16"];
    let rows = table.name("chats.jsonl");
    let out = format!("--output_dir={}", table.name("run"));
    let words = [&["sft", "--train_file", &rows, &out][..], &SHORT, &lora].concat();
    let done = olmoe(&words, &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("Q8_0") || done.err.contains("q8_0"), "{}", done.err);
    assert!(table.path("run/adapter/adapter_config.json").is_file());
}

#[test]
fn pairs_and_judged_answers_are_tuned_on() {
    let table = Table::new();
    table.done("dpo", "dpo", &[&SHORT[..], &["--eval_split", "1"]].concat());
    let losses = table.logged("dpo", "loss");
    assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-6 && losses[3] < losses[0], "{losses:?}");
    assert_eq!(table.logged("dpo", "rewards/accuracies").len(), 4);
    table.done("kto", "kto", &[&SHORT[..], &["--optim", "adamw_torch"]].concat());
    let losses = table.logged("kto", "loss");
    assert!((losses[0] - 0.5).abs() < 1e-6 && losses.len() == 4, "{losses:?}");
    // Pairs are two judged answers each, and chosen answers are answers.
    let pairs = table.name("pairs.jsonl");
    let done = table.done("kto", "both", &[&SHORT[..], &["--train_file", &pairs]].concat());
    assert!(done.err.contains("8 rows, 8 taken"), "{}", done.err);
    table.done("sft", "chosen", &[&SHORT[..], &["--train_file", &pairs]].concat());
    let wrong = table.run("dpo", "wrong", &["--train_file", &table.name("chats.jsonl")]);
    assert!(wrong.code == 1 && wrong.err.contains("expected a pair of answers"), "{}", wrong.err);
}

#[test]
fn the_plan_and_the_preview_write_nothing() {
    let table = Table::new();
    let done = table.done("sft", "run", &["--plan", "--use_lora"]);
    for expected in [
        "numbers",
        "adapters",
        "LoRA adapters of rank 16",
        "sft of 4 rows, 2 epochs, 8 rows a step",
        "nothing was written",
    ] {
        assert!(done.out.contains(expected), "{expected}: {}", done.out);
    }
    let done = table.done("sft", "run", &["--preview", "1"]);
    assert!(done.out.starts_with("row 1: "), "{}", done.out);
    let learned: String = done.out.lines().skip(2).filter(|line| !line.contains("-100")).collect::<Vec<_>>().join("\n");
    // An answer of two letters, and what ends it.
    assert!(learned.lines().count() == 3 && learned.ends_with("\"<|endoftext|>\""), "{learned}");
    let done = table.done("dpo", "run", &["--preview", "9"]);
    assert!(done.out.contains("row 4, rejected: "), "{}", done.out);
    assert!(!table.path("run").exists());
    let done = table.done("sft", "run", &["--print-config", "--lr", "3e-4"]);
    assert!(done.out.contains("learning_rate: 0.0003\n") && !done.out.contains("dpo_beta"), "{}", done.out);
    // A reader that closes early is no error.
    let mut child = Command::new(PROGRAM)
        .args(table.words("sft", "run", &["--preview", "4"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_wrong_is_said() {
    let table = Table::new();
    fs::write(table.path("empty.jsonl"), "").unwrap();
    fs::write(table.path("masked.jsonl"), r#"{"messages":[{"role":"user","content":"a"}]}"#).unwrap();
    fs::write(table.path("broken.jsonl"), "{\"messages\": 3}\n").unwrap();
    fs::write(table.path("typo.yml"), "learning_rat: 1\n").unwrap();
    let own = |name: &str| table.name(name);
    let (empty, masked, broken, typo) = (own("empty.jsonl"), own("masked.jsonl"), own("broken.jsonl"), own("typo.yml"));
    for (verb, more, code, expected) in [
        ("sft", vec!["--learning_rat", "1"], 2, "unexpected argument '--learning_rat'"),
        ("sft", vec![&*typo], 1, "typo.yml: unknown key `learning_rat`; did you mean `learning_rate`?"),
        ("sft", vec!["--dpo_beta", "1"], 1, "`dpo_beta` is 1; it is for `olmoe dpo`"),
        ("sft", vec!["--train_file", "none.jsonl"], 1, "`train_file` is none.jsonl; there is no such file or folder"),
        ("sft", vec!["--dataset_name", "org/set"], 1, "a data set of the hub has to be downloaded first"),
        ("sft", vec!["--train_file", &empty], 1, "empty.jsonl; there are no rows in it"),
        ("sft", vec!["--train_file", &masked], 1, "no row is left to learn from"),
        ("sft", vec!["--train_file", &broken], 1, "broken.jsonl row 1"),
        ("sft", vec!["--max_seq_length", "4096"], 1, "4096, and the model takes 96 tokens"),
        ("sft", vec!["--use_lora", "--lora_target", "q_prj"], 1, "did you mean \"q_proj\"?"),
        ("sft", vec!["--train", "routr"], 1, "did you mean router?"),
        ("sft", vec!["--max_memory", "much"], 2, "expected a size such as 5GB"),
        ("sft", vec!["--chat_template_name", "none"], 1, "it has to be tulu, a Jinja file"),
        ("sft", vec!["--use_lora", "--output_format", "olmo"], 2, "set `merge_adapter`"),
        ("dpo", vec!["--dpo_loss_type", "exo_pair"], 1, "label_smoothing"),
        ("sft", vec!["--preview", "0"], 2, "above 0"),
    ] {
        let more: Vec<&str> = more.iter().map(|word| &**word).collect();
        let done = table.run(verb, "run", &more);
        assert!(done.code == code && done.err.contains(expected), "{more:?}: {} {}", done.code, done.err);
        assert!(!table.path("run/step-1").exists());
    }
    let nothing = olmoe(&["sft", "-m", &own("hf")], &[]);
    assert!(nothing.code == 1 && nothing.err.contains("--train_file chats.jsonl"), "{}", nothing.err);
    let nothing = olmoe(&["kto", "--train_file", &own("judged.jsonl")], &[]);
    assert!(nothing.code == 1 && nothing.err.contains("name the model to begin from: -m PATH"), "{}", nothing.err);
}

#[test]
fn the_command_lines_of_olmoes_readme_train() {
    let table = Table::new();
    // As they stand, with a model, data and lengths of this size.
    let (hf, chats, pairs, out) =
        (table.name("hf"), table.name("chats.jsonl"), table.name("pairs.jsonl"), table.name("out"));
    let sft = format!(
        "accelerate launch --mixed_precision bf16 --num_machines 1 --num_processes 8 --use_deepspeed \
         --deepspeed_config_file configs/ds_configs/stage3_no_offloading_accelerate.conf open_instruct/finetune.py \
         --model_name_or_path {hf} --tokenizer_name {hf} --use_flash_attn --max_seq_length 96 \
         --preprocessing_num_workers 128 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 \
         --learning_rate 2e-05 --lr_scheduler_type linear --warmup_ratio 0.03 --weight_decay 0.0 --num_train_epochs 2 \
         --output_dir {out}-sft --with_tracking --report_to wandb --logging_steps 1 --reduce_loss sum --model_revision main \
         --dataset_mixer_list {chats} 1.0 {pairs} 1.0 --checkpointing_steps epoch --add_bos"
    );
    let dpo = format!(
        "--model_name_or_path {hf} --tokenizer_name {hf} --use_flash_attn --gradient_checkpointing --dataset_name {pairs} \
         --max_seq_length 96 --preprocessing_num_workers 16 --per_device_train_batch_size 1 \
         --gradient_accumulation_steps 4 --learning_rate 5e-7 --lr_scheduler_type linear --warmup_ratio 0.1 \
         --weight_decay 0. --num_train_epochs 3 --output_dir {out}-dpo --report_to tensorboard --logging_steps 1 \
         --reduce_loss sum --add_bos --checkpointing_steps epoch --dpo_beta 0.1"
    );
    let kto = format!(
        "--model_name_or_path {hf} --output_dir {out}-kto --report_to wandb --per_device_train_batch_size 4 \
         --gradient_accumulation_steps 1 --optim rmsprop --learning_rate 5e-07 --beta 0.1 --logging_steps 1 --bf16 \
         --sanity_check False --num_train_epochs 3 --train_file {pairs}"
    );
    for (verb, line, steps, notes) in [
        ("sft", &sft, 2, &["`num_processes`: one process", "`with_tracking`: nothing is sent"][..]),
        ("dpo", &dpo, 3, &["`reduce_loss`: no effect", "`report_to`"]),
        ("kto", &kto, 6, &["`report_to`"]),
    ] {
        let words: Vec<&str> = [verb].into_iter().chain(line.split_whitespace()).collect();
        let done = olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{verb}: {}", done.err);
        assert!(done.err.contains(&format!("step {steps}/{steps}")), "{verb}: {}", done.err);
        for note in notes {
            assert_eq!(done.err.matches(note).count(), 1, "{verb}, {note}: {}", done.err);
        }
        assert!(table.path(&format!("out-{verb}/model/config.json")).is_file(), "{verb}");
    }
}

#[test]
fn prompts_are_answered_meanwhile() {
    let table = Table::new();
    fs::write(table.path("prompts.txt"), "ab\n\ncd\n").unwrap();
    let prompts = table.name("prompts.txt");
    let more = ["--sample_prompts", &prompts, "--sample_steps", "2", "--sample_max_new_tokens", "3"];
    let done = table.done("sft", "run", &[&SHORT[..], &more].concat());
    let text = fs::read_to_string(table.path("run/samples.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(done.err.contains("<|assistant|>"), "{}", done.err);
    let chats = table.name("chats.jsonl");
    let more = ["--sample_prompts", &chats, "--sample_max_new_tokens", "3"];
    table.done("sft", "rows", &[&SHORT[..], &more].concat());
    let text = fs::read_to_string(table.path("rows/samples.jsonl")).unwrap();
    assert!(text.contains("<|system|>") && !text.contains("hg<"), "{text}");
}

/// Until a file has so many lines.
#[cfg(unix)]
fn wait_for_lines(path: &Path, lines: usize) {
    let began = Instant::now();
    while fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count()) < lines {
        assert!(began.elapsed() < Duration::from_secs(60), "{} does not grow", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[cfg(unix)]
fn a_signal_saves_and_the_same_command_goes_on() {
    let table = Table::new();
    let lora = ["--use_lora", "--lora_r", "2", "--packing", "--max_seq_length", "64", "--lr", "1e-3"];
    for (verb, more) in [("sft", &lora[..]), ("dpo", &["--lr", "1e-3"])] {
        let run = format!("{verb}-stopped");
        let long = [more, &["--per_device_train_batch_size", "1", "--max_steps", "4000", "--quiet"]].concat();
        let mut child = Command::new(PROGRAM)
            .args(table.words(verb, &run, &long))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_lines(&table.path(&run).join("metrics.jsonl"), 3);
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(75), "{verb}");
        let latest = fs::read_link(table.path(&run).join("latest")).unwrap();
        let step: u64 = latest.to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap();
        // Schedules depend on the length, which is the same; the end is another signal.
        let end = step + 3;
        let mut child = Command::new(PROGRAM)
            .args(table.words(verb, &run, &long))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_lines(&table.path(&run).join("metrics.jsonl"), end as usize);
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(75), "{verb}");
        let losses = table.logged(&run, "loss");
        let whole = format!("{verb}-whole");
        let mut child = Command::new(PROGRAM)
            .args(table.words(verb, &whole, &long))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_lines(&table.path(&whole).join("metrics.jsonl"), losses.len());
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(75), "{verb}");
        let same = table.logged(&whole, "loss");
        let count = losses.len().min(same.len());
        assert!(count as u64 >= end && losses[..count] == same[..count], "{verb}");
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    let table = Table::new();
    let more = [&SHORT[..], &["--gradient_accumulation_steps", "2"]].concat();
    table.done("sft", "one", &[&more[..], &["--threads", "1"]].concat());
    table.done("sft", "two", &[&more[..], &["--threads", "3"]].concat());
    assert_eq!(table.tensors("one", 4), table.tensors("two", 4));
}
