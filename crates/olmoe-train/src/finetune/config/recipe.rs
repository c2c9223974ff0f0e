//! Recipes: settings by a name, under those of a file and of flags.
//!
//! Megatron-Bridge's `olmoe_7b_finetune_config`, with its arguments and their defaults
//! (`src/megatron/bridge/recipes/olmoe/olmoe_7b.py`): low-rank adapters of rank 32 on the linear layers, those of the experts
//! of a layer in common; `peft: dora` with alpha 64; `peft: none` for all weights.

use olmoe_model::config::closest;
use serde_json::{Map, Value, json};

use crate::config::{Notice, TrainConfigError};

/// The names, with those that newer versions split the recipe into.
const NAMES: &[&str] = &["olmoe_7b_finetune", "olmoe_7b_sft", "olmoe_7b_peft"];
/// The folder of runs and the name of one, where nothing is said.
const FOLDER: &str = "nemo_experiments";
const RUN: &str = "default";

/// A recipe.
pub(super) struct Recipe {
    name: &'static str,
}

impl Recipe {
    /// The recipe of a name.
    ///
    /// # Errors
    /// A name that there is not.
    pub(super) fn named(name: &str) -> Result<Recipe, TrainConfigError> {
        let short = name.strip_suffix("_config").unwrap_or(name);
        match NAMES.iter().find(|known| **known == short) {
            Some(name) => Ok(Recipe { name }),
            None => Err(TrainConfigError::UnknownName {
                path: "recipe".to_owned(),
                found: match closest(short, NAMES) {
                    Some(meant) => format!("{name} (did you mean {meant}?)"),
                    None => name.to_owned(),
                },
                allowed: NAMES,
            }),
        }
    }

    /// The recipe's folder, from its own arguments, which are taken out.
    pub(super) fn folder(layer: &mut Map<String, Value>) -> Result<(), TrainConfigError> {
        let mut text = |key: &str| match layer.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TrainConfigError::Value {
                path: key.to_owned(),
                found: "no text".to_owned(),
                problem: "it is the name of a folder",
            }),
        };
        let (folder, name) = (text("dir")?, text("name")?);
        if folder.is_some() || name.is_some() {
            let name = name.as_deref().unwrap_or(RUN);
            let path = format!("{}/{name}", folder.as_deref().unwrap_or(FOLDER));
            layer.entry("output_dir").or_insert(path.into());
            layer.entry("run_name").or_insert(name.into());
        }
        Ok(())
    }

    /// The recipe's values of the keys that neither the file nor a flag sets; `given` has the keys of both.
    pub(super) fn defaults(&self, given: &Map<String, Value>, notices: &mut Vec<Notice>) -> Map<String, Value> {
        let said = |key: &str| given.get(key).map(|value| *value == Value::Bool(true) || *value == json!("true"));
        let dora = said("use_dora") == Some(true);
        let adapters = dora || said("use_lora").unwrap_or(self.name != "olmoe_7b_sft");
        let mut settings = json!({
            "output_dir": format!("{FOLDER}/{RUN}"),
            "run_name": RUN,
            "packing": "best_fit",
            "max_seq_length": 4096,
            "max_train_steps": 1000,
            "global_batch_size": 128,
            "per_device_train_batch_size": 1,
            "learning_rate": if adapters { 1e-4 } else { 5e-6 },
            "min_lr": 0.0,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 50,
            "weight_decay": 0.1,
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-8,
            "clip_grad_norm": 1.0,
            "reduce_loss": "micro_mean",
            "eval_steps": 50,
            "checkpointing_steps": "50",
            "seed": 5678,
            "use_lora": adapters,
        });
        if adapters {
            let own = json!({
                "lora_rank": 32,
                "lora_alpha": if dora { 64.0 } else { 32.0 },
                "lora_dropout": 0.0,
                "lora_init": "xavier",
                "lora_sharing": "shared",
                "lora_target": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            });
            if let (Value::Object(settings), Value::Object(own)) = (&mut settings, own) {
                settings.extend(own);
            }
            notices.push(Notice {
                key: "recipe".to_owned(),
                text: "adapters of q, k and v, and of gate and up, are apart; Megatron's fused layers have one A for each group"
                    .to_owned(),
            });
        }
        match settings {
            Value::Object(mut map) => {
                for (key, other) in
                    [("global_batch_size", "gradient_accumulation_steps"), ("max_train_steps", "num_train_epochs")]
                {
                    if given.contains_key(other) && !given.contains_key(key) {
                        map.remove(key);
                    }
                }
                map
            }
            _ => Map::new(),
        }
    }
}
