//! Configurations of fine-tuning: command lines of OLMoE's README, keys of other programs, what is refused, recipes.

use std::path::Path;

use olmoe_train::config::{Loaded, OptimizerName, TrainPrecision, Words};
use olmoe_train::finetune::config::{
    ActivationMode, ExpertSharing, FinetuneConfig, Flag, LabelSpans, LoraInit, LrScheduler, PackingMode, Task,
    further_names, keys, words,
};
use olmoe_train::loss::{Reduction, TokenLoss};
use olmoe_train::preference::{LossType, Mismatch};

/// The flags of a command line, as a shell and open-instruct's parser split it.
fn flags(task: Task, line: &str) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    for word in line.replace("\\\n", " ").split_whitespace() {
        match word.strip_prefix("--") {
            Some(flag) => match flag.split_once('=') {
                Some((key, value)) => flags.push((key.to_owned(), vec![value.to_owned()])),
                None => flags.push((flag.to_owned(), Vec::new())),
            },
            None => flags.last_mut().expect("a flag comes first").1.push(word.trim_matches('"').to_owned()),
        }
    }
    for (key, given) in &flags {
        let known = words(&key.replace('-', "_"), task);
        assert!(known.is_some() || given.len() < 2, "{key}");
    }
    flags
}

fn line(task: Task, line: &str) -> Result<Loaded<FinetuneConfig>, String> {
    FinetuneConfig::from_yaml(task, None, &flags(task, line), &|_| None).map_err(|error| error.to_string())
}

fn yaml(task: Task, text: &str) -> Result<Loaded<FinetuneConfig>, String> {
    FinetuneConfig::from_yaml(task, Some(text), &[], &|_| None).map_err(|error| error.to_string())
}

fn noted(loaded: &Loaded<FinetuneConfig>) -> Vec<&str> {
    loaded.notices.iter().map(|notice| notice.key.as_str()).collect()
}

/// From OLMoE's README, without the launcher's part.
const SFT: &str = "--model_name_or_path allenai/OLMoE-1B-7B-0924 \
    --tokenizer_name allenai/OLMoE-1B-7B-0924 --use_flash_attn --max_seq_length 4096 --preprocessing_num_workers 128 \
    --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --learning_rate 2e-05 --lr_scheduler_type linear \
    --warmup_ratio 0.03 --weight_decay 0.0 --num_train_epochs 2 --output_dir output/ --with_tracking --report_to wandb \
    --logging_steps 1 --reduce_loss sum --model_revision main \
    --dataset_mixer_list allenai/tulu-v3-mix-preview-4096-OLMoE 1.0 ai2-adapt-dev/daring-anteater-specialized 1.0 \
    --checkpointing_steps epoch --add_bos";
const DPO: &str = "--model_name_or_path allenai/OLMoE-1B-7B-0924-SFT --tokenizer_name allenai/OLMoE-1B-7B-0924-SFT \
    --use_flash_attn --gradient_checkpointing --dataset_name argilla/ultrafeedback-binarized-preferences-cleaned \
    --max_seq_length 4096 --preprocessing_num_workers 16 --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 4 --learning_rate 5e-7 --lr_scheduler_type linear --warmup_ratio 0.1 \
    --weight_decay 0. --num_train_epochs 3 --output_dir output/ --report_to tensorboard --logging_steps 1 \
    --reduce_loss sum --add_bos --checkpointing_steps epoch --dpo_beta 0.1";
const KTO: &str = "--model_name_or_path allenai/OLMoE-1B-7B-0924-SFT --output_dir OLMoE-1B-7B-0924-SFT-KTO-3EP \
    --report_to \"wandb\" --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --optim rmsprop \
    --learning_rate 5e-07 --beta 0.1 --logging_steps 1 --bf16 --sanity_check False --num_train_epochs 3";

#[test]
fn the_command_lines_of_olmoes_readme() {
    let sft = line(Task::Sft, SFT).unwrap();
    let config = &sft.config;
    assert_eq!(config.model_name_or_path.as_deref(), Some("allenai/OLMoE-1B-7B-0924"));
    assert_eq!(config.model_revision.as_deref(), Some("main"));
    assert_eq!(
        (config.max_seq_length, config.learning_rate, config.warmup_ratio),
        (Some(4096), Some(2e-5), Some(0.03))
    );
    assert_eq!((config.per_device_train_batch_size, config.gradient_accumulation_steps), (Some(2), Some(8)));
    assert_eq!((config.lr_scheduler_type, config.reduce_loss), (LrScheduler::Linear, Reduction::Sum));
    assert_eq!((config.num_train_epochs, config.add_bos), (Some(2.0), Some(true)));
    assert_eq!(config.checkpointing_steps.as_deref(), Some("epoch"));
    assert_eq!(config.dataset_mixer_list.len(), 4);
    assert_eq!(noted(&sft), ["preprocessing_num_workers", "report_to", "use_flash_attn", "with_tracking"]);

    let dpo = line(Task::Dpo, DPO).unwrap();
    let config = &dpo.config;
    assert_eq!((config.learning_rate, config.weight_decay, config.dpo_beta), (Some(5e-7), 0.0, 0.1));
    assert_eq!((config.activations, &config.dpo_loss_type[..]), (ActivationMode::Recompute, &[LossType::Sigmoid][..]));
    assert_eq!(config.dataset_name.as_deref(), Some("argilla/ultrafeedback-binarized-preferences-cleaned"));
    assert_eq!(noted(&dpo), ["preprocessing_num_workers", "report_to", "use_flash_attn", "reduce_loss"]);

    let kto = line(Task::Kto, KTO).unwrap();
    let config = &kto.config;
    assert_eq!((config.optim, config.learning_rate, config.kto_beta), (Some(OptimizerName::RmsProp), Some(5e-7), 0.1));
    assert_eq!((config.precision, config.max_train_samples), (TrainPrecision::AmpBf16, None));
    assert_eq!(noted(&kto), ["report_to"]);
    let adam = line(Task::Kto, &KTO.replace("rmsprop", "adamw_torch")).unwrap();
    assert_eq!(adam.config.optim, Some(OptimizerName::AdamW));

    // The launcher's own flags do not hinder, but for a number format that there is not.
    let launcher = "--mixed_precision bf16 --num_machines 1 --num_processes 8 --use_deepspeed \
                    --deepspeed_config_file configs/ds_configs/stage3_no_offloading_accelerate.conf";
    let whole = line(Task::Sft, &format!("{launcher} {SFT}")).unwrap();
    assert_eq!(whole.config, sft.config);
    let note = whole.notices.iter().find(|notice| notice.key == "num_processes").unwrap();
    assert!(note.text.contains("multiply `gradient_accumulation_steps`"), "{note}");
    let error = line(Task::Sft, &format!("{SFT} --mixed_precision fp16")).unwrap_err();
    assert!(error.contains("`mixed_precision` is fp16; it must be bf16 or no"), "{error}");
}

#[test]
fn what_is_not_known_is_said_with_what_is() {
    for (task, given, expected) in [
        (Task::Sft, "--learning_rat 1", "unknown key `learning_rat`; did you mean `learning_rate`?"),
        (Task::Sft, "--max_seq_lenght 1", "did you mean `max_seq_length`?"),
        (Task::Sft, "--xyzzy 1", "unknown key `xyzzy`"),
        (Task::Sft, "--dpo_beta 0.2", "`dpo_beta` is 0.2; it is for `olmoe dpo`; remove it"),
        (Task::Sft, "--beta 0.2", "unknown key `beta`"),
        (Task::Dpo, "--desirable_weight 2", "it is for `olmoe kto`"),
        (Task::Sft, "--ref_model x", "it is for `olmoe dpo` and `olmoe kto`"),
        (Task::Sft, "--fp16", "`fp16` is true; there is no fp16; leave it out for bf16, or set `precision: fp32`"),
        (Task::Sft, "--load_in_4bit True", "quantise it first (olmoe quantize BASE base.gguf --type q4_k_m)"),
        (Task::Sft, "--lr 1 --learning_rate 2", "keep one of them"),
        (Task::Sft, "--lora_rank 8", "none are asked for; set `use_lora: true`"),
        (Task::Sft, "--train_file a --dataset_name b", "`train_file` is set beside `dataset_name`"),
        (Task::Sft, "--max_steps 1 --epochs 2", "both say how long the run is"),
        (Task::Sft, "--lr_scheduler_type polynomial", "it must be one of linear, cosine,"),
        (Task::Sft, "--learning_rate fast", "`learning_rate` must be a number, found the text \"fast\""),
        (Task::Sft, "--learning_rate 0", "`learning_rate` is 0; it must be greater than 0"),
        (Task::Sft, "--max_seq_length 1", "it must be at least 2"),
        (Task::Sft, "--checkpointing_steps often", "a number of steps, at least 1, or epoch"),
        (Task::Sft, "--patience 3", "there is nothing to evaluate on"),
        (Task::Sft, "--dataset_mixer_list_splits test", "a file is taken whole; name the files of the split"),
        (Task::Sft, "--output_dir a b", "`output_dir` is followed by b; it has one value"),
        (Task::Sft, "--global_batch_size 6 --micro_batch_size 4", "it must be a multiple of"),
        (Task::Sft, "--lr_scheduler_type constant --warmup_steps 5", "set constant_with_warmup"),
        (Task::Sft, "--dataset_format tulu", "messages, sharegpt, alpaca"),
        (Task::Sft, "--datasets {path:", "`--datasets={path:` is no override"),
        (Task::Sft, "--recipe olmoe_7b_finetun", "did you mean olmoe_7b_finetune?"),
        (Task::Sft, "--name x", "it is an argument of a recipe"),
        (Task::Dpo, "--reference_free", "set a loss without a reference"),
        (Task::Dpo, "--rpo_alpha 1", "`dpo_loss_type: [sigmoid, sft]`"),
        (Task::Dpo, "--dpo_loss_type sigmod", "did you mean"),
    ] {
        let error = line(task, given).expect_err(given);
        let suggests =
            error.contains(expected) || (expected == "did you mean" && error.contains("must be one of sigmoid"));
        assert!(suggests, "{given}: {error}");
    }
    let error = yaml(Task::Sft, "learning_rate: 1\nmodle_name_or_path: x").unwrap_err();
    assert!(error.contains("did you mean `model_name_or_path`?"), "{error}");
    assert!(yaml(Task::Sft, "- a").unwrap_err().contains("a mapping of keys and values"));
}

#[test]
fn keys_of_other_programs_mean_the_same() {
    let config = |task, given: &str| line(task, given).unwrap_or_else(|error| panic!("{given}: {error}")).config;
    for (given, same) in [
        ("--model a --lr 1e-3 --epochs 3", "--model_name_or_path a --learning_rate 1e-3 --num_train_epochs 3"),
        ("--sample_packing --sequence_len 512", "--packing best_fit --max_seq_length 512"),
        ("--packing False", "--packing off"),
        ("--packing", "--packing best_fit"),
        ("--packing_strategy bfd_split", "--packing best_fit_split"),
        ("--train_on_inputs", "--train_on everything"),
        ("--train_on_inputs False", "--train_on answers"),
        ("--completion_only_loss False", "--train_on everything"),
        ("--mask_history", "--train_on last_answer"),
        ("--router_aux_loss_coef 0.02", "--load_balancing_loss --load_balancing_weight 0.02"),
        ("--router_aux_loss_coef 0.0", "--load_balancing_loss False"),
        (
            "--use_peft --lora_r 4 --lora_target_modules q_proj v_proj",
            "--use_lora --lora_rank 4 --lora_target q_proj v_proj",
        ),
        ("--peft dora", "--use_lora --use_dora"),
        ("--use_qlora", "--use_lora"),
        ("--gradient_checkpointing False", ""),
        ("--save_strategy epoch", "--checkpointing_steps epoch"),
        ("--sanity_check", "--max_train_samples 1000"),
        ("--val_set_size 0.1 --eval_steps=5", "--eval_split 0.1 --eval_steps 5"),
        ("--report_to None --bf16", ""),
        ("--max-seq-length 9", "--max_seq_length=9"),
        ("--loss_type dft", "--loss dft"),
        ("--use_lora --init_lora_weights True", "--use_lora --lora_init kaiming"),
        ("--max_train_steps None", ""),
    ] {
        assert_eq!(config(Task::Sft, given), config(Task::Sft, same), "{given}");
    }
    assert_eq!(config(Task::Sft, "--loss_type dft").loss, TokenLoss::Dft);
    let dpo = config(Task::Dpo, "--loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0 --beta 0.2");
    assert_eq!(dpo.dpo_loss_type, [LossType::Sigmoid, LossType::BcoPair, LossType::Sft]);
    assert_eq!((dpo.loss_weights, dpo.dpo_beta), (Some(vec![0.8, 0.2, 1.0]), 0.2));
    assert_eq!(config(Task::Dpo, "--dpo_loss_type=dpo_norm").dpo_loss_type, [LossType::SigmoidNorm]);
    assert_eq!(config(Task::Kto, "--kto_mismatch reversed").kto_mismatch, Mismatch::Reversed);
    let lists = yaml(
        Task::Sft,
        "datasets:\n- {path: a.jsonl, amount: 0.5}\n- {path: b.csv, format: alpaca, columns: {output: answer}}\nlr: 1e-4",
    );
    let lists = lists.unwrap().config;
    assert_eq!(lists.datasets[1].columns["output"], "answer");
    assert_eq!(lists.datasets[0].amount.as_deref(), Some("0.5"));
    let mixer = yaml(Task::Sft, "dataset_mixer: {a: 1.0, b: 200}\nuse_lora: false\nlora_rank: 3").unwrap();
    assert_eq!(mixer.config.dataset_mixer["b"], "200");
    assert_eq!(mixer.config.dataset_mixer["a"], "1.0", "a fraction stays one");
    assert_eq!(noted(&mixer), ["lora_rank"], "adapters are expressly off");
}

#[test]
fn flags_override_the_file_and_the_file_the_recipe() {
    let text = "recipe: olmoe_7b_finetune\nfinetune_lr: 3.0e-4\nseq_length: 512\ntokenizer_path: t";
    let read = |given: &str| FinetuneConfig::from_yaml(Task::Sft, Some(text), &flags(Task::Sft, given), &|_| None);
    let config = read("--seq_length 1024 --dir runs --name first").unwrap().config;
    assert_eq!((config.learning_rate, config.max_seq_length), (Some(3e-4), Some(1024)));
    assert_eq!((config.output_dir.as_str(), config.run_name.as_deref()), ("runs/first", Some("first")));
    assert_eq!(config.tokenizer_name.as_deref(), Some("t"));
    // Interpolations see keys by their own names.
    let text = "run_name: r\noutput_dir: runs/${run_name}-${seed}";
    assert_eq!(yaml(Task::Sft, text).unwrap().config.output_dir, "runs/r-42");
}

#[test]
fn the_recipe_of_megatron_bridge() {
    let read = |given: &str| line(Task::Sft, &format!("--recipe olmoe_7b_finetune_config {given}")).unwrap().config;
    let lora = read("");
    assert!(lora.use_lora && !lora.use_dora);
    assert_eq!((lora.lora_rank, lora.lora_alpha, lora.lora_init), (32, Some(32.0), LoraInit::Xavier));
    assert_eq!((lora.lora_sharing, lora.lora_target.len()), (ExpertSharing::Shared, 7));
    assert_eq!(
        (lora.max_train_steps, lora.global_batch_size, lora.per_device_train_batch_size),
        (Some(1000), Some(128), Some(1))
    );
    assert_eq!((lora.learning_rate, lora.min_lr, lora.warmup_steps), (Some(1e-4), 0.0, Some(50)));
    assert_eq!((lora.lr_scheduler_type, lora.weight_decay, lora.adam_beta2), (LrScheduler::Cosine, 0.1, Some(0.95)));
    assert_eq!((lora.packing, lora.max_seq_length, lora.seed), (PackingMode::BestFit, Some(4096), 5678));
    assert_eq!(lora.output_dir, "nemo_experiments/default");
    let dora = read("--peft dora --finetune_lr 2e-4 --train_iters 10 --lr_warmup_iters 1 --packed_sequence False");
    assert!(dora.use_lora && dora.use_dora);
    assert_eq!((dora.lora_alpha, dora.learning_rate, dora.max_train_steps), (Some(64.0), Some(2e-4), Some(10)));
    assert_eq!((dora.warmup_steps, dora.packing), (Some(1), PackingMode::Off));
    let full = read("--peft none --tensor_model_parallel_size 1 --expert_model_parallel_size 8");
    assert!(!full.use_lora);
    assert_eq!(full.learning_rate, Some(5e-6));
    assert_eq!(read("--epochs 2").max_train_steps, None, "a length that is given counts");
}

#[test]
fn the_files_of_the_repository() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut found = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let task = [("sft", Task::Sft), ("dpo", Task::Dpo), ("kto", Task::Kto)];
        let Some((_, task)) = task.into_iter().find(|(word, _)| name.split(['-', '.']).any(|part| part == *word))
        else {
            continue;
        };
        found += 1;
        let loaded = FinetuneConfig::read(task, Some(&path), &[]).unwrap();
        assert_eq!(loaded.notices, [], "{name}");
        // Written out whole it is the same again.
        let again = yaml(task, &loaded.config.to_yaml(task)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(again.config, loaded.config, "{name}");
    }
    assert!(found >= 5, "{found}");
    let read = |name: &str, task| FinetuneConfig::read(task, Some(&folder.join(name)), &[]).unwrap().config;
    let sft = read("olmoe-sft.yml", Task::Sft);
    assert_eq!(
        (sft.label_spans, sft.reduce_loss, sft.lr_scheduler_processes),
        (Some(LabelSpans::Released), Reduction::Sum, 32)
    );
    let kto = read("olmoe-kto.yml", Task::Kto);
    assert_eq!(
        (kto.max_seq_length, kto.max_prompt_length, kto.kto_mismatch),
        (Some(512), Some(128), Mismatch::Reversed)
    );
}

#[test]
fn every_key_can_be_shown() {
    for task in [Task::Sft, Task::Dpo, Task::Kto] {
        let mut names: Vec<&str> = keys(task).map(|(_, key)| key.name).collect();
        for (heading, key) in keys(task) {
            assert!(!heading.is_empty() && !key.doc.is_empty(), "{}", key.name);
            let first = key.doc[0].trim();
            assert!(first.ends_with('.') && first.len() > 10, "{}: {first}", key.name);
            assert_eq!(words(key.name, task), Some(key.words));
        }
        names.extend(further_names(task).map(|(name, _)| name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name means one thing");
    }
    assert_eq!(words("use_lora", Task::Sft), Some(Words::Flag));
    assert_eq!(words("bf16", Task::Sft), Some(Words::Flag));
    assert_eq!(words("sample_packing", Task::Sft), Some(Words::Flag));
    assert_eq!(words("target_modules", Task::Sft), Some(Words::Many));
    assert_eq!(words("deepspeed_anything", Task::Sft), Some(Words::One));
    assert_eq!(words("nothing", Task::Sft), None);
}
