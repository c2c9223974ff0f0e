//! The loop: the same bits on any number of threads and after any interruption, and what ends a run.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_checkpoint::disk::{Disk, LocalDisk};
use olmoe_checkpoint::save::verify;
use olmoe_data::pretrain::{Batch, DataSet, DataSettings};
use olmoe_tensor::threads::set_num_threads;
use olmoe_train::config::TrainConfig;
use olmoe_train::trainer::{Event, Outcome, TrainError, Trainer, instances};
use tempfile::TempDir;

const YAML: &str = "
run_name: test
model: {d_model: 32, n_heads: 2, n_layers: 2, mlp_hidden_size: 48, block_type: moe, moe_num_experts: 4, moe_top_k: 2,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 60, embedding_size: 64,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, activation_type: swiglu,
        moe_loss_weight: 0.01, moe_zloss_weight: 0.001, eos_token_id: 0, pad_token_id: 1, max_sequence_length: 16}
optimizer: {name: adamw, learning_rate: 1e-2, eps: 1e-8, weight_decay: 0.1}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
data: {drop_last: true, generate_doc_lengths: true}
global_train_batch_size: 5
device_train_microbatch_size: 2
softmax_auxiliary_loss: true
precision: fp32
max_grad_norm: 1.0
max_duration: 10
stop_at: 10
save_interval: 2
no_pre_train_checkpoint: true
";

/// The process has one number of threads, which the tests change.
static THREADS: Mutex<()> = Mutex::new(());

struct Run {
    folder: TempDir,
}

/// What a run left to be compared.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    losses: Vec<u64>,
    evaluations: Vec<(u64, String, u64)>,
    saved: Vec<u64>,
    notices: Vec<String>,
    names: Vec<String>,
    planned: u64,
}

impl Run {
    fn new() -> Run {
        let folder = tempfile::tempdir().unwrap();
        let run = Run { folder };
        // Each id after its double, with a step aside now and then.
        let mut state = 1u64;
        let mut id = 7u64;
        let ids: Vec<u64> = (0..30 * 16)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                id = (id * 2 + (state >> 62)) % 60;
                id
            })
            .collect();
        run.write("data.npy", &ids);
        run
    }

    fn write(&self, name: &str, ids: &[u64]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, save_folder: &str, overrides: &[&str]) -> TrainConfig {
        let mut all = vec![
            format!("--data.paths=[{}]", self.path("data.npy").display()),
            format!("--save_folder={}", self.path(save_folder).display()),
        ];
        all.extend(overrides.iter().map(ToString::to_string));
        TrainConfig::from_yaml(YAML, &all, &|_| None).unwrap().config
    }

    fn train(&self, save_folder: &str, overrides: &[&str]) -> Result<(Outcome, Seen), TrainError> {
        self.interrupted(save_folder, overrides, u64::MAX)
    }

    /// Interrupted after a step.
    fn interrupted(&self, save_folder: &str, overrides: &[&str], at: u64) -> Result<(Outcome, Seen), TrainError> {
        let mut seen = Seen::default();
        let interrupt = AtomicBool::new(false);
        let mut on = |event: Event<'_>| match event {
            Event::Notice(text) => seen.notices.push(text.to_owned()),
            Event::Step(report, metrics) => {
                seen.losses.push(report.cross_entropy.to_bits());
                seen.names = metrics.iter().map(|(name, _)| name.clone()).collect();
                interrupt.store(report.step >= at, Ordering::Relaxed);
            }
            Event::Evaluated(step, metrics) => {
                seen.evaluations.extend(metrics.iter().map(|(name, value)| (step, name.clone(), value.to_bits())))
            }
            Event::Sampled(_) => {}
            Event::Saved(saved, _) => seen.saved.push(saved.step),
        };
        let mut trainer = Trainer::new(self.config(save_folder, overrides), &mut on)?;
        let planned = trainer.plan()?.steps;
        let outcome = trainer.run(&interrupt, &mut on)?;
        Ok((outcome, Seen { planned, ..seen }))
    }

    /// The instances of each step.
    fn indices(&self, save_folder: &str) -> Vec<Vec<u64>> {
        let file = File::open(self.path(save_folder).join("data-indices/rank0.tsv.gz")).unwrap();
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        text.lines().map(|line| line.split('\t').map(|number| number.parse().unwrap()).collect()).collect()
    }

    /// All files of a checkpoint but the configuration, and the manifest that has its hash.
    fn checkpoint(&self, save_folder: &str, step: u64) -> Vec<(String, Vec<u8>)> {
        let folder = self.path(save_folder).join(format!("step-{step}"));
        verify(&folder).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .filter(|(name, _)| name != "config.yaml" && name != "manifest.json")
            .collect();
        files.sort();
        files
    }
}

/// Cross-entropy of ten steps, each with its bits.
fn golden() -> Vec<u64> {
    let text = include_str!("golden/losses.tsv").lines().filter(|line| !line.starts_with('#'));
    text.map(|line| u64::from_str_radix(line.split('\t').nth(2).unwrap(), 16).unwrap()).collect()
}

#[test]
fn ten_steps_have_these_losses_on_any_number_of_threads() {
    let _lock = THREADS.lock().unwrap_or_else(|error| error.into_inner());
    let run = Run::new();
    let mut weights = Vec::new();
    for threads in [1, 2, 3] {
        set_num_threads(threads);
        let name = format!("run{threads}");
        let (outcome, seen) = run.train(&name, &[]).unwrap();
        assert_eq!((outcome, &seen.saved[..]), (Outcome::Finished, &[2, 4, 6, 8, 10][..]));
        let table: String = seen
            .losses
            .iter()
            .enumerate()
            .map(|(i, bits)| format!("{}\t{:.6}\t{bits:016x}\n", i + 1, f64::from_bits(*bits)))
            .collect();
        assert_eq!(seen.losses, golden(), "{threads} threads:\n{table}");
        assert!(f64::from_bits(seen.losses[9]) < 0.97 * f64::from_bits(seen.losses[0]), "nothing is learned");
        weights.push(run.checkpoint(&name, 10));
    }
    assert!(weights[0] == weights[1] && weights[0] == weights[2]);
}

/// Ten steps of torch: tools/reference/compare_training.py, which trains for a hundred, too.
#[test]
fn ten_steps_are_those_of_torch() {
    let run = Run::new();
    let (mut state, mut id) = (1u64, 7u64);
    let ids: Vec<u64> = (0..4 * 10 * 64 * 8 / 3)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            id = 2 + (id * 2 + (state >> 62)) % 498;
            id
        })
        .collect();
    run.write("torch.npy", &ids);
    let overrides = [
        format!("--data.paths=[{}]", run.path("torch.npy").display()),
        format!("--save_folder={}", run.path("torch").display()),
        "--max_duration=10".to_owned(),
        "--stop_at=10".to_owned(),
    ];
    let config = TrainConfig::from_yaml(include_str!("golden/training.yml"), &overrides, &|_| None).unwrap().config;
    let mut found = Vec::new();
    let mut on = |event: Event<'_>| {
        if let Event::Step(report, _) = event {
            let auxiliary = [report.logits_z, report.load_balancing, report.router_z];
            found.push([&[report.cross_entropy][..], &auxiliary, &[report.grad_norm]].concat());
        }
    };
    Trainer::new(config, &mut on).unwrap().run(&AtomicBool::new(false), &mut on).unwrap();
    let golden = include_str!("golden/training.tsv").lines().filter(|line| !line.starts_with('#'));
    let golden: Vec<Vec<f64>> =
        golden.map(|line| line.split('\t').skip(1).map(|value| value.parse().unwrap()).collect()).collect();
    assert_eq!((golden.len(), found.len()), (10, 10));
    for (step, (found, expected)) in found.iter().zip(&golden).enumerate() {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "step {}: {found:?}, not {expected:?}", step + 1);
        }
    }
}

#[test]
fn a_run_that_goes_on_is_the_run_that_never_stopped() {
    let _lock = THREADS.lock().unwrap_or_else(|error| error.into_inner());
    let run = Run::new();
    for (i, extra) in [
        &["--precision=amp_bf16", "--activation_checkpointing=whole_layer", "--scheduler.units=tokens"][..],
        &["--optimizer.name=lionw", "--max_grad_norm_ratio=1.1", "--activation_checkpointing=fine_grained"],
    ]
    .into_iter()
    .enumerate()
    {
        let whole = format!("whole{i}");
        let (_, all) = run.train(&whole, extra).unwrap();
        let steps: Vec<(u64, usize)> = run.indices(&whole).iter().map(|line| (line[0], line.len())).collect();
        assert_eq!(steps, (1..=10).map(|step| (step, 6)).collect::<Vec<_>>());
        // Six batches are an epoch.
        for stop in [1, 3, 6, 7] {
            let part = format!("part{i}-{stop}");
            let (outcome, first) = run.interrupted(&part, extra, stop).unwrap();
            assert_eq!((outcome, first.losses.len() as u64), (Outcome::Interrupted, stop));
            set_num_threads(1 + stop as usize % 3);
            let (outcome, second) = run.train(&part, &[extra, &["--try_load_latest_save"]].concat()).unwrap();
            assert_eq!(outcome, Outcome::Finished);
            assert_eq!([first.losses, second.losses].concat(), all.losses, "stopped after {stop}");
            assert_eq!(run.checkpoint(&part, 10), run.checkpoint(&whole, 10), "stopped after {stop}");
            assert_eq!(run.indices(&part), run.indices(&whole));
        }
    }
    // One that is over does nothing more.
    let (outcome, seen) =
        run.train("whole0", &["--precision=amp_bf16", "--scheduler.units=tokens", "--try_load_latest_save"]).unwrap();
    assert_eq!((outcome, seen), (Outcome::Finished, Seen::default()));
}

#[test]
fn files_are_mixed_by_ratios() {
    let run = Run::new();
    run.write("more.npy", &[1; 8 * 16]);
    let paths = format!("--data.paths=[{}, {}]", run.path("data.npy").display(), run.path("more.npy").display());
    let count = |ratios: &str| instances(&run.config("run", &[&paths, ratios])).unwrap();
    let each = count("--data.ratios=[1, 0]");
    assert_eq!(count("--data.ratios=null"), count("--data.ratios=[1, 1]"));
    assert_eq!(count("--data.ratios=[2, 0]"), 2 * each);
    assert_eq!(count("--data.ratios=[0.5, 2]"), each / 2 + 2 * count("--data.ratios=[0, 1]"));
}

#[test]
fn dense_blocks_and_mixtures_in_turn() {
    let run = Run::new();
    let extra = ["--model.moe_interleave=true", "--model.n_layers=3", "--activation_checkpointing=whole_layer"];
    let (_, all) = run.train("whole", &extra).unwrap();
    assert!(all.losses.last() < all.losses.first(), "positive numbers, ordered as their bits: it learns");
    let mixtures = all.names.iter().filter_map(|name| name.strip_prefix("train/TokensTotal/"));
    assert_eq!(mixtures.collect::<Vec<_>>(), [0, 1, 2, 3].map(|expert| format!("layer1/expert{expert}")));
    let (_, first) = run.interrupted("part", &extra, 4).unwrap();
    let (_, second) = run.train("part", &[&extra[..], &["--try_load_latest_save"]].concat()).unwrap();
    assert_eq!([first.losses, second.losses].concat(), all.losses);
    assert_eq!(run.checkpoint("part", 10), run.checkpoint("whole", 10));
}

#[test]
fn durations_end_where_olmo_ends_them() {
    let run = Run::new();
    for (i, (overrides, steps)) in [
        (&["--stop_at=4"][..], 4),
        (&["--stop_at=null", "--max_duration=1ep"], 6),
        // A duration in steps or tokens ends ten steps late, or with the epoch.
        (&["--stop_at=null", "--max_duration=3"], 6),
        (&["--stop_at=null", "--max_duration=560T"], 12),
        (&["--stop_after=3"], 3),
        (&["--stop_at=2", "--stop_after=3"], 2),
        (&["--stop_at=9", "--epoch=1", "--max_duration=2ep"], 6),
        (&["--max_duration=0"], 0),
    ]
    .into_iter()
    .enumerate()
    {
        let overrides = [overrides, &["--save_interval=100"]].concat();
        let (outcome, seen) = run.train(&format!("run{i}"), &overrides).unwrap();
        assert_eq!((outcome, seen.losses.len()), (Outcome::Finished, steps), "{overrides:?}");
        assert_eq!(seen.planned, steps as u64, "{overrides:?}");
        assert_eq!(seen.saved, [steps as u64], "the last step is always saved");
    }
    let (outcome, seen) = run.train("limit", &["--time_limit=1e-9"]).unwrap();
    assert_eq!((outcome, seen.saved), (Outcome::TimeLimit, vec![1]));
    let (outcome, seen) = run.train("early", &["--early_stopping_factor=0.5"]).unwrap();
    assert_eq!((outcome, seen.saved), (Outcome::EarlyStop, vec![2, 4]), "after the warm-up");
}

#[test]
fn begins_from_other_checkpoints() {
    let run = Run::new();
    let (_, all) = run.train("first", &[]).unwrap();
    let from = |step: u64| format!("--load_path={}", run.path("first").join(format!("step-{step}")).display());
    // As it was; the pointer of the run's folder serves as well.
    let (_, seen) = run.train("same", &[&from(4)]).unwrap();
    assert_eq!(seen.losses, all.losses[4..]);
    assert_eq!(run.checkpoint("same", 10), run.checkpoint("first", 10));
    let newest = format!("--load_path={}", run.path("first").display());
    assert_eq!(run.train("newest", &[&newest, "--stop_at=11"]).unwrap().1.losses.len(), 1);
    // The data moves on, the optimizer does not.
    let (_, seen) = run.train("skipped", &[&from(2), "--fast_forward_batches=2"]).unwrap();
    assert_ne!(seen.losses[0], all.losses[2]);
    // All but the weights begins anew: the first batch, with better weights.
    let (_, seen) = run.train("anew", &[&from(10), "--reset_trainer_state", "--reset_optimizer_state"]).unwrap();
    assert_eq!(seen.losses.len(), 10);
    assert!(f64::from_bits(seen.losses[0]) < f64::from_bits(all.losses[0]));
    // A fresh optimizer has a warm-up of its own, which an interruption does not begin again.
    let fresh = [&from(4)[..], "--reset_optimizer_state", "--try_load_latest_save", "--force_save_unsharded"];
    let (_, seen) = run.train("fresh", &fresh).unwrap();
    assert_eq!(seen.saved, [4, 6, 8, 10]);
    let (_, first) = run.interrupted("again", &fresh, 5).unwrap();
    let (_, second) = run.train("again", &fresh).unwrap();
    assert_eq!([first.losses, second.losses].concat(), seen.losses);
    assert_eq!(run.checkpoint("again", 10), run.checkpoint("fresh", 10));
    // Another model is refused before anything is written.
    let error = run.train("other", &[&from(4), "--model.moe_num_experts=8"]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("of another model than the checkpoint") && error.contains("router"), "{error}");
}

#[test]
fn evaluates_and_names_its_metrics() {
    let run = Run::new();
    let held = format!(
        "--evaluators=[{{label: held, data: {{datasets: {{b: [{0}], a: [{0}]}}}}, subset_num_batches: 1}}, {{label: piqa, type: \
         downstream}}]",
        run.path("data.npy").display()
    );
    let overrides = [
        &held[..],
        "--eval_interval=4",
        "--device_eval_batch_size=3",
        "--optimizer.metrics_log_interval=10",
        "--data.instance_filter={}",
    ];
    let (_, seen) = run.train("run", &overrides).unwrap();
    let named: Vec<(u64, &str)> = seen.evaluations.iter().map(|(step, name, _)| (*step, name.as_str())).collect();
    let expected = ["eval/a/CrossEntropyLoss", "eval/a/Perplexity", "eval/b/CrossEntropyLoss", "eval/b/Perplexity"];
    let expected: Vec<_> = [4, 8, 10].iter().flat_map(|step| expected.map(|name| (*step, name))).collect();
    assert_eq!(named, expected);
    assert!(seen.notices.iter().any(|notice| notice.contains("piqa")), "{:?}", seen.notices);
    for name in [
        "train/CrossEntropyLoss",
        "train/Perplexity",
        "train/ZLoss",
        "train/LoadBalancingLoss",
        "train/MoEZLoss",
        "train/TokensPercentage/layer1/expert3",
        "train/TokensTotal/layer0/expert0",
        "train/masked_instances_local_rank",
        "optim/total_grad_norm",
        "optim/clipping_rate",
        "optim/learning_rate_group0",
        "optim/learning_rate_group1",
        "optim/exp_avg_sq/transformer.blocks.1.ffn.router.layer.weight.norm",
        "optim/grad/transformer.blocks.0.att_proj.weight.norm",
        "throughput/total_tokens",
        "throughput/device/tokens_per_second",
    ] {
        assert_eq!(seen.names.iter().filter(|known| *known == name).count(), 1, "{name}");
    }
}

/// `torch.randperm(30, generator=torch.Generator().manual_seed(6198))` begins with these.
const DRAWN: [usize; 3] = [18, 8, 21];

#[test]
fn a_subset_is_what_olmo_draws() {
    let run = Run::new();
    let bytes = std::fs::read(run.path("data.npy")).unwrap();
    let instances: Vec<&[u8]> = bytes.chunks(32).collect();
    for (name, picked) in [("drawn.npy", DRAWN), ("first.npy", [0, 1, 2])] {
        std::fs::write(run.path(name), picked.map(|i| instances[i]).concat()).unwrap();
    }
    let evaluator = |label: &str, file: &str, more: &str| {
        format!("{{label: {label}, data: {{paths: [{}]{more}}}}}", run.path(file).display())
    };
    let data = evaluator("subset", "data.npy", "").replace("}}", "}, subset_num_batches: 1}");
    let all = evaluator("all", "data.npy", "").replace("}}", "}, subset_num_batches: 0}");
    // A batch as large as what there is, where whole ones are asked for.
    let (drawn, first) = (evaluator("drawn", "drawn.npy", ", drop_last: true"), evaluator("first", "first.npy", ""));
    let whole = evaluator("whole", "data.npy", "");
    let evaluators = format!("--evaluators=[{data}, {drawn}, {first}, {all}, {whole}]");
    let (_, seen) = run.train("run", &[&evaluators, "--device_eval_batch_size=3", "--stop_at=4"]).unwrap();
    let loss = |label: &str| {
        let name = format!("eval/{label}/CrossEntropyLoss");
        let found = seen.evaluations.iter().find(|(_, known, _)| *known == name);
        f64::from_bits(found.unwrap().2)
    };
    assert!((loss("subset") - loss("drawn")).abs() < 1e-12);
    assert!((loss("subset") - loss("first")).abs() > 1e-6);
    assert_eq!(loss("all"), loss("whole"));
}

#[test]
fn checkpoints_are_kept_as_told() {
    let run = Run::new();
    let overrides =
        ["--save_interval=4", "--save_interval_ephemeral=1", "--save_num_checkpoints_to_keep=1", "--stop_at=7"];
    let (_, seen) = run.train("run", &overrides).unwrap();
    assert_eq!(seen.saved, [1, 2, 3, 4, 5, 6, 7]);
    let steps = || {
        let names =
            std::fs::read_dir(run.path("run")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
        names.sort();
        names
    };
    assert_eq!(steps(), ["step-4", "step-7"]);
    // Not over another run, unless told to; then that is moved aside.
    let error = run.train("run", &[]).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::FolderInUse { newest: 7, .. }), "{error}");
    let (_, seen) = run.train("run", &["--save_overwrite", "--stop_at=2"]).unwrap();
    assert_eq!(seen.notices.len(), 2);
    assert_eq!(steps(), ["step-2", "step-4.replaced", "step-7.replaced"]);
    // A damaged one is passed over, and made again.
    run.train("run", &["--try_load_latest_save", "--stop_at=4"]).unwrap();
    let good = run.checkpoint("run", 4);
    let file = run.path("run/step-4/optimizer.json");
    std::fs::write(&file, "{}").unwrap();
    let (_, seen) = run.train("run", &["--try_load_latest_save", "--stop_at=4"]).unwrap();
    assert!(seen.notices[0].contains("step-4") && seen.losses.len() == 2, "{:?}", seen.notices);
    assert_eq!(run.checkpoint("run", 4), good);
}

#[test]
fn what_is_no_number_ends_the_run_and_is_named() {
    let run = Run::new();
    let quiet = &mut |_: Event<'_>| {};
    let experts = "layers.1.moe.experts.up_proj.weight";
    for (i, (name, value, expected)) in [
        (
            experts,
            f32::NAN,
            "step 3: the loss is NaN; the parameter layers.1.moe.experts.up_proj.weight (layer 1) holds NaN",
        ),
        ("embed_tokens.weight", f32::INFINITY, "the parameter embed_tokens.weight (outside the layers) holds inf"),
        ("layers.0.attention.v_proj.weight", 3e38, "the input of layer 0's experts is the first that is not"),
        ("lm_head.weight", 3e38, "lm_head.weight are too large"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("run{i}");
        run.train(&folder, &["--stop_at=2"]).unwrap();
        let good = run.checkpoint(&folder, 2);
        let mut trainer = Trainer::new(run.config(&folder, &["--try_load_latest_save"]), quiet).unwrap();
        let id = trainer.model().find(name).unwrap();
        trainer.model_mut().update(id, |_, x| x.iter_mut().step_by(3).for_each(|x| *x = value));
        let bits =
            |trainer: &Trainer| -> Vec<u32> { trainer.model().value(1).unwrap().iter().map(|x| x.to_bits()).collect() };
        let before = bits(&trainer);
        let error = trainer.run(&AtomicBool::new(false), quiet).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { step: 3, .. }), "{error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!((bits(&trainer), trainer.state().step), (before, 2), "nothing was updated");
        drop(trainer);
        assert_eq!(run.checkpoint(&folder, 2), good);
        assert!(!run.path(&folder).join("step-3").exists());
    }
    // A loss that is a number, and gradients that are not.
    let mut trainer = Trainer::new(run.config("gradients", &["--model.moe_loss_weight=1e38"]), quiet).unwrap();
    let error = trainer.run(&AtomicBool::new(false), quiet).unwrap_err().to_string();
    assert!(
        error.contains("step 1: the norm of the gradients is inf") && error.contains(".moe.router.weight (layer "),
        "{error}"
    );
}

#[test]
fn weights_that_an_update_breaks_are_not_saved() {
    let run = Run::new();
    let quiet = &mut |_: Event<'_>| {};
    // An f32 does not hold the step.
    let overrides = ["--optimizer.learning_rate=1e60", "--scheduler.t_warmup=0", "--save_interval=1"];
    let mut trainer = Trainer::new(run.config("run", &overrides), quiet).unwrap();
    let error = trainer.run(&AtomicBool::new(false), quiet).unwrap_err();
    assert!(matches!(error, TrainError::BadWeight { step: 1, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("step 1: an update has made weights") && !text.contains("Nothing was updated"), "{text}");
    assert!(text.contains("embed_tokens.weight"), "{text}");
    assert!(!run.path("run/step-1").exists() && !run.path("run/step-1.tmp").exists());
}

#[test]
fn a_batch_that_fails_leaves_nothing_behind() {
    let run = Run::new();
    let mut trainers =
        ["once", "again"].map(|name| Trainer::new(run.config(name, &[]), &mut |_: Event<'_>| {}).unwrap());
    let data = DataSet::open(DataSettings::new(vec![run.path("data.npy")], 16)).unwrap();
    let good = Batch::read(&data, &[3, 1, 4, 2, 5], 0).unwrap();
    // In the last micro-batch, after two that have left gradients; and one whose gradients are infinite.
    let mut bad = good.clone();
    bad.ids[4 * 16 + 3] = 64;
    assert!(matches!(trainers[1].step(&bad, 6), Err(TrainError::Model(_))));
    let id = trainers[1].model().find("lm_head.weight").unwrap();
    let before = trainers[1].model().value(id).unwrap().to_vec();
    trainers[1].model_mut().update(id, |_, x| x.fill(3e38));
    assert!(matches!(trainers[1].step(&good, 6), Err(TrainError::NotFinite { step: 1, .. })));
    trainers[1].model_mut().update(id, |range, x| x.copy_from_slice(&before[range]));
    let [once, again] = trainers.each_mut().map(|trainer| {
        let reports = [(); 2].map(|()| trainer.step(&good, 6).unwrap());
        let losses = reports.map(|report| (report.cross_entropy.to_bits(), report.grad_norm.to_bits()));
        let weights: Vec<u32> = trainer.model().value(0).unwrap().iter().map(|x| x.to_bits()).collect();
        (losses, weights)
    });
    assert_eq!(once.0, again.0);
    assert!(once.1 == again.1);
}

/// A disk that is full after so many bytes.
struct SmallDisk(Mutex<u64>);

impl Disk for SmallDisk {
    type File = File;
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.create_dir(path)
    }
    fn create_file(&self, path: &Path) -> io::Result<File> {
        LocalDisk.create_file(path)
    }
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let mut left = self.0.lock().unwrap();
        match left.checked_sub(bytes.len() as u64) {
            Some(rest) => *left = rest,
            None => return Err(io::ErrorKind::StorageFull.into()),
        }
        LocalDisk.write(file, bytes)
    }
    fn open_append(&self, path: &Path) -> io::Result<File> {
        LocalDisk.open_append(path)
    }
    fn truncate(&self, file: &mut File, length: u64) -> io::Result<()> {
        LocalDisk.truncate(file, length)
    }
    fn sync_file(&self, file: &File) -> io::Result<()> {
        LocalDisk.sync_file(file)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.sync_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)
    }
    fn point(&self, path: &Path, target: &str) -> io::Result<()> {
        LocalDisk.point(path, target)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_dir(path)
    }
    /// Says nothing of it before, or that there is none from the beginning.
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(if *self.0.lock().unwrap() == 0 { 0 } else { u64::MAX })
    }
}

#[test]
fn a_full_disk_costs_no_checkpoint() {
    let run = Run::new();
    let quiet = &mut |_: Event<'_>| {};
    let (_, all) = run.train("whole", &[]).unwrap();
    let start = |bytes| {
        Trainer::on_disk(run.config("run", &["--try_load_latest_save"]), SmallDisk(Mutex::new(bytes)), &mut |_| {})
    };
    let error = start(0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("0 free; free some space"), "{error}");
    assert!(!run.path("run/step-0.tmp").exists());
    // Room for one checkpoint, and for half of another.
    let size: u64 = run.checkpoint("whole", 2).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let error = start(size * 3 / 2).unwrap().run(&AtomicBool::new(false), quiet).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("step-4.tmp"), "{error}");
    assert_eq!(run.checkpoint("run", 2), run.checkpoint("whole", 2));
    let (_, seen) = run.train("run", &["--try_load_latest_save"]).unwrap();
    assert_eq!(seen.losses, all.losses[2..]);
    assert_eq!(run.checkpoint("run", 10), run.checkpoint("whole", 10));
}

#[test]
fn what_keeps_a_run_from_its_first_step() {
    let run = Run::new();
    run.write("high.npy", &(0..200).map(|i| if i == 130 { 61 } else { i % 60 }).collect::<Vec<_>>());
    run.write("short.npy", &[1; 40]);
    std::fs::write(run.path("odd.npy"), [1, 2, 3]).unwrap();
    let _held = Trainer::new(run.config("held", &[]), &mut |_| {}).unwrap();
    let files = |name: &str| format!("--data.paths=[{}]", run.path(name).display());
    for (name, overrides, expected) in [
        ("held", &[][..], "another process trains here"),
        ("none", &[&files("none.npy")[..]], "none.npy, which cannot be read"),
        ("short", &[&files("short.npy")], "holds 2 sequences of 16 tokens, and global_train_batch_size is 5"),
        ("odd", &[&files("odd.npy")], "odd.npy"),
        ("high", &[&files("high.npy")], "61"),
        ("name", &["--run_name=null"], "`run_name` is not set"),
        ("precision", &["--precision=null"], "`precision` is not set"),
        ("from", &["--load_path=nowhere"], "nowhere"),
        ("large", &["--model.d_model=65536", "--model.n_layers=4"], "choose a smaller model"),
    ] {
        let error = run.train(name, overrides).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
