//! Keys of configurations on the command line: they look like flags.

use std::ffi::OsString;

use clap::{Args, Command};
use olmoe_train::config::Words;
use olmoe_train::finetune::config::{PackingMode, Task, words};

use crate::finetune::OWN_FLAGS;
use crate::train::TrainArgs;

/// Scripts of other programs whose command lines are taken as they stand, whatever launches them.
const SCRIPTS: [&str; 6] = ["finetune.py", "dpo_tune.py", "dpo_tune_cache.py", "sft.py", "dpo.py", "kto.py"];

/// Arguments as clap takes them.
pub(crate) fn arranged(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let arguments = arguments.collect::<Vec<_>>();
    match arguments.get(1).and_then(|command| command.to_str()) {
        Some("train") => keys_last(arguments),
        Some("sft") => flags_joined(arguments, Task::Sft),
        Some("dpo") => flags_joined(arguments, Task::Dpo),
        Some("kto") => flags_joined(arguments, Task::Kto),
        _ => arguments,
    }
}

/// Sets keys of pretraining apart from the flags: `--` comes before them, at the end.
fn keys_last(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let rest = arguments.split_off(2);
    let command = TrainArgs::augment_args(Command::new("train"));
    let is_flag = |text: &str| {
        let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        name == "help" || command.get_arguments().any(|argument| argument.get_long() == Some(name))
    };
    let is_key = |argument: &OsString| {
        argument.to_str().is_some_and(|text| text.starts_with("--") && text.len() > 2 && !is_flag(text))
    };
    let (keys, others): (Vec<_>, Vec<_>) = rest.into_iter().filter(|argument| argument != "--").partition(is_key);
    arguments.extend(others);
    if !keys.is_empty() {
        arguments.push("--".into());
        arguments.extend(keys);
    }
    arguments
}

/// Joins keys that are true or false with the word that says so, writes keys with underscores, and leaves out what launches a
/// script, up to its name; the launcher's own flags stay.
fn flags_joined(arguments: Vec<OsString>, task: Task) -> Vec<OsString> {
    let script = arguments
        .iter()
        .skip(2)
        .position(|word| word.to_str().is_some_and(|word| SCRIPTS.contains(&word.rsplit('/').next().unwrap_or(word))));
    let script = script.map(|at| at + 2);
    let is_launcher = |at: usize, word: &str| {
        script.is_some_and(|end| {
            at == end || at < end && matches!(word, "accelerate" | "launch" | "python" | "torchrun" | "deepspeed")
        })
    };
    let mut joined: Vec<OsString> = Vec::with_capacity(arguments.len());
    let mut open = None;
    for (at, word) in arguments.into_iter().enumerate() {
        let Some(text) = word.to_str().filter(|_| at >= 2) else {
            joined.push(word);
            continue;
        };
        if is_launcher(at, text) {
            open = None;
            continue;
        }
        if let (Some(key), true) = (open.take(), is_truth(text)) {
            joined.pop();
            joined.push(format!("{key}={text}").into());
            continue;
        }
        let Some(flag) = text.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            joined.push(word);
            continue;
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let key = name.replace('-', "_");
        let words = words(&key, task).filter(|_| !OWN_FLAGS.contains(&name));
        let Some(words) = words else {
            joined.push(word);
            continue;
        };
        let key = format!("--{key}");
        joined.push(value.map_or(key.clone(), |value| format!("{key}={value}")).into());
        open = (words == Words::Flag && value.is_none()).then_some(key);
    }
    joined
}

/// Whether a word says how a key is meant that may be alone.
fn is_truth(text: &str) -> bool {
    PackingMode::NAMES.contains(&text)
        || matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "yes" | "no" | "on" | "off" | "0" | "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_flags_come_in_any_order() {
        for (given, expected) in [
            ("olmoe train c.yml", "olmoe train c.yml"),
            ("olmoe train c.yml --a.b=1 --quiet --c", "olmoe train c.yml --quiet -- --a.b=1 --c"),
            (
                "olmoe train --a=--b c.yml --threads 2 --export=hf",
                "olmoe train c.yml --threads 2 --export=hf -- --a=--b",
            ),
            ("olmoe train c.yml -- --a=1 -h", "olmoe train c.yml -h -- --a=1"),
            ("olmoe bench --a=1", "olmoe bench --a=1"),
            ("olmoe", "olmoe"),
            ("olmoe sft --use_lora c.yml", "olmoe sft --use_lora c.yml"),
            ("olmoe sft --use-lora False --lr 1", "olmoe sft --use_lora=False --lr 1"),
            ("olmoe sft --max-seq-length=8 --threads 2", "olmoe sft --max_seq_length=8 --threads 2"),
            ("olmoe sft --use_lora --add_bos true x", "olmoe sft --use_lora --add_bos=true x"),
            ("olmoe sft --packing bfd --lr 1", "olmoe sft --packing=bfd --lr 1"),
            ("olmoe sft --dry-run --xyz a", "olmoe sft --dry-run --xyz a"),
            (
                "olmoe dpo accelerate launch --mixed_precision bf16 --use_deepspeed open_instruct/dpo_tune.py --lr 1",
                "olmoe dpo --mixed_precision bf16 --use_deepspeed --lr 1",
            ),
        ] {
            let arranged = arranged(given.split(' ').map(Into::into));
            let text: Vec<&str> = arranged.iter().filter_map(|argument| argument.to_str()).collect();
            assert_eq!(text.join(" "), expected);
        }
    }
}
