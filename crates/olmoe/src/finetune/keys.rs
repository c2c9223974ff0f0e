//! The keys of a configuration of fine-tuning as flags of a command.

use std::marker::PhantomData;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use olmoe_train::config::Words;
use olmoe_train::finetune::config::{Flag, Task, default_of, further_names, keys};

/// A command, by what it learns from.
pub(crate) trait OfTask {
    /// That.
    const TASK: Task;
}

/// `olmoe sft`
pub(crate) struct Sft;
/// `olmoe dpo`
pub(crate) struct Dpo;
/// `olmoe kto`
pub(crate) struct Kto;

impl OfTask for Sft {
    const TASK: Task = Task::Sft;
}

impl OfTask for Dpo {
    const TASK: Task = Task::Dpo;
}

impl OfTask for Kto {
    const TASK: Task = Task::Kto;
}

/// Keys that `-h` shows; `--help` has all.
const SHOWN: [&str; 26] = [
    "model_name_or_path",
    "tokenizer_name",
    "chat_template_name",
    "dataset_mixer_list",
    "train_file",
    "max_seq_length",
    "train_on",
    "packing",
    "use_lora",
    "use_dora",
    "lora_rank",
    "lora_target",
    "train",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_train_steps",
    "learning_rate",
    "reduce_loss",
    "dpo_loss_type",
    "dpo_beta",
    "kto_beta",
    "eval_file",
    "eval_split",
    "output_dir",
    "recipe",
];

/// The keys that were given.
pub(crate) struct Keys<T> {
    pub(crate) given: Vec<Flag>,
    task: PhantomData<T>,
}

/// A flag of a key.
fn argument(name: &'static str, words: Words) -> Arg {
    let arg = Arg::new(name).long(name).allow_hyphen_values(false);
    match words {
        Words::Flag => {
            let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
            arg.value_name("true|false").action(ArgAction::Set)
        }
        Words::One => arg.value_name("VALUE").action(ArgAction::Set).allow_negative_numbers(true),
        Words::Many => arg.value_name("VALUE").action(ArgAction::Append).num_args(1..),
    }
}

impl<T: OfTask> Args for Keys<T> {
    fn augment_args(mut command: Command) -> Command {
        for (heading, key) in keys(T::TASK) {
            let text = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            let text = text.trim_end_matches('.');
            let text = match default_of(key.name) {
                Some(default) => format!("{text} [default: {default}]"),
                None => text.to_owned(),
            };
            let mut arg = argument(key.name, key.words).help(StyledStr::from(text)).help_heading(heading);
            arg = match key.name {
                "model_name_or_path" => arg.short('m').visible_alias("model").value_name("PATH|REPO[@REVISION]"),
                "train_file" | "eval_file" => arg.value_name("FILE"),
                "output_dir" => arg.value_name("DIR"),
                "packing" => arg.value_name("HOW"),
                _ => arg,
            };
            command = command.arg(arg.hide_short_help(!SHOWN.contains(&key.name)));
        }
        for (name, words) in further_names(T::TASK).filter(|(name, _)| *name != "model") {
            command = command.arg(argument(name, words).hide(true));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: OfTask> FromArgMatches for Keys<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let own = keys(T::TASK).map(|(_, key)| key.name);
        let names = own.chain(further_names(T::TASK).map(|(name, _)| name).filter(|name| *name != "model"));
        let given = names.filter_map(|name| {
            let values = matches.get_many::<String>(name)?;
            Some((name.to_owned(), values.cloned().collect()))
        });
        Ok(Keys { given: given.collect(), task: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
