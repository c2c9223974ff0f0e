//! Notices about keys of OLMo that have no effect here, or another effect than in OLMo.

use std::fmt;

use olmoe_model::model::Keep;
use serde_json::Value;

use super::field::Field;
use super::schema::{ActivationCheckpointing, OptimizerName, TrainConfig};

/// A setting that was accepted and has no effect here, or another effect than in OLMo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The key with the sections it is in.
    pub key: String,
    /// The effect of the setting here.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.text)
    }
}

/// Keys that do nothing here or something else, with what happens instead. They are worth a word where they are not as
/// OLMo has them by default.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("remote_save_folder", "nothing is uploaded; checkpoints stay in `save_folder`"),
    ("canceled_check_interval", "no effect; a signal is seen after every step"),
    ("save_interval_unsharded", "every checkpoint is whole: one more interval to save at"),
    ("force_save_unsharded", "every checkpoint is whole: one is saved as soon as another was loaded"),
    ("load_path_sharded_checkpointer", "no effect; what wrote a checkpoint is seen from its files"),
    ("sharded_checkpointer", "no effect; checkpoints are this program's own, whole and verified"),
    ("new_style_checkpoints", "no effect; checkpoints are this program's own, whole and verified"),
    ("device_train_batch_size", "no effect; it follows from `global_train_batch_size`"),
    ("device_train_grad_accum", "no effect; it follows from `device_train_microbatch_size`"),
    ("wandb", "nothing is sent anywhere; metrics are written in the folder of the run, every `log_interval` steps"),
    ("speed_monitor.gpu_flops_available", "no effect; the speed is compared with the measured peak of the machine"),
    ("gen1_gc_interval", "no effect; there is no garbage collector"),
    ("compile", "no effect; kernels are compiled already"),
    ("distributed_strategy", "no effect; one process computes the whole batch"),
    ("fsdp", "no effect; one process holds all parameters, and gradients are summed in f32"),
    ("ddp", "no effect; one process computes the whole batch"),
    ("single", "no effect; the model is trained on the processor"),
    ("extra_steps_after_cancel", "no effect; a run that is cancelled saves and ends, and goes on with the same bits"),
    ("python_profiling", "no effect; `olmoe bench train` measures"),
    ("torch_profiling", "no effect; `olmoe bench train` measures"),
    ("fused_loss", "no effect; the loss is always computed with the head, a part of the logits at a time"),
    ("hf_datasets_cache_dir", "no effect; evaluation sets are read from where they are"),
    ("module_outputs_save_steps", "no effect; intermediate results are not written down"),
    ("data.num_workers", "no effect; data is read ahead by one thread"),
    ("data.pin_memory", "no effect; nothing is copied to an accelerator"),
    ("data.prefetch_factor", "no effect; data is read ahead by one thread"),
    ("data.persistent_workers", "no effect; data is read ahead by one thread"),
    ("data.timeout", "no effect; data is read ahead by one thread"),
];

impl TrainConfig {
    /// What is set that does nothing here or something else; show it once, where a run begins. What
    /// [`read`](Self::read) says beside that it has noticed is not repeated.
    pub fn notices(&self) -> Vec<Notice> {
        let (own, olmo) = (self.tree().value(), TrainConfig::default().tree().value());
        let at = |value: &Value, path: &str| {
            path.split('.').try_fold(value, |value, key| value.get(key)).cloned().unwrap_or(Value::Null)
        };
        let mut notices = Vec::new();
        let mut note = |key: &str, text: &str| notices.push(Notice { key: key.to_owned(), text: text.to_owned() });
        for (key, text) in WITHOUT_EFFECT {
            let found = at(&own, key);
            if !found.is_null() && found != at(&olmo, key) {
                note(key, text);
            }
        }
        use ActivationCheckpointing::*;
        match self.activation_checkpointing {
            Some(OneInTwo | OneInThree | OneInFour | OneInEight | TwoInThree | ThreeInFour) => note(
                "activation_checkpointing",
                "as `fine_grained`: norms and attention of every block are computed again, the experts' results are kept",
            ),
            Some(WholeLayer | FineGrained) | None => {}
        }
        if self.optimizer.name == OptimizerName::LionW && self.optimizer.eps != 1e-5 {
            note("optimizer.eps", "no effect; LionW has none");
        }
        if self.auxiliary_loss_multiplier != TrainConfig::default().auxiliary_loss_multiplier {
            match self.softmax_auxiliary_loss {
                true => {
                    note("auxiliary_loss_multiplier", "taken as it is; OLMo pays no heed to it and multiplies by 1e-4")
                }
                false => note("auxiliary_loss_multiplier", "no effect without `softmax_auxiliary_loss`"),
            }
        }
        if self.optimizer.name == OptimizerName::RmsProp {
            note("optimizer.betas", "RMSprop has the second alone, as its α; torch's default is 0.99");
        }
        if !self.data.drop_last {
            note("data.drop_last", "taken as true, which OLMo asks for, too: a step has whole batches");
        }
        let begins_anew = self.reset_optimizer_state || self.reset_trainer_state;
        if begins_anew && self.load_path.is_none() && !self.try_load_latest_save {
            note("load_path", "not set, so that there is no state to be reset");
        }
        if self.reset_trainer_state && self.fast_forward_batches.is_some() {
            note("fast_forward_batches", "no effect, because `reset_trainer_state` begins the data anew, as in OLMo");
        }
        notices
    }

    /// What a forward pass keeps for the backward pass, as `activation_checkpointing` asks.
    pub fn keep(&self) -> Keep {
        match self.activation_checkpointing {
            None => Keep::Everything,
            Some(ActivationCheckpointing::WholeLayer) => Keep::BlockInputs,
            Some(_) => Keep::FeedForward,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_with_a_remark_is_a_key() {
        let all = TrainConfig::default().tree().value();
        for (key, _) in WITHOUT_EFFECT {
            let found = key.split('.').try_fold(&all, |value, key| value.get(key));
            assert!(found.is_some(), "{key}");
        }
    }

    #[test]
    fn recomputation_maps_to_what_there_is() {
        for (mode, keep, notices) in [
            (None, Keep::Everything, 0),
            (Some(ActivationCheckpointing::WholeLayer), Keep::BlockInputs, 0),
            (Some(ActivationCheckpointing::FineGrained), Keep::FeedForward, 0),
            (Some(ActivationCheckpointing::OneInFour), Keep::FeedForward, 1),
        ] {
            let mut config = TrainConfig { activation_checkpointing: mode, ..TrainConfig::default() };
            config.data.drop_last = true;
            assert_eq!((config.keep(), config.notices().len()), (keep, notices), "{mode:?}");
        }
    }
}
