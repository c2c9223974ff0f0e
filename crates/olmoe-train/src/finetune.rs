//! Fine-tuning with the loop of pretraining: supervised, by pairs of answers, by labelled answers; of all parameters, of some,
//! of single experts, or of adapters.
//!
//! | file | what it holds |
//! |---|---|
//! | [`config`] | its configuration: open-instruct's flags as keys of a file and of a command line |
//! | `settings` | the settings of a run |
//! | `base` | the model that it begins with |
//! | `examples` | the data, its order, and how it is divided into steps and passes |
//! | `selection` | which parameters are trained |
//! | `routing` | the experts that the data uses most, and the drift of the routers |
//! | `schedule` | the learning rate over time |
//! | `stack` | sequences as a batch of the model, prompts that they have in common, randomness |
//! | `scores` | forward passes over sequences |
//! | `plan` | the memory of a run |
//! | `reference` | the log-probabilities of the reference model |
//! | `sft`, `dpo`, `kto` | what a step learns and an evaluation measures |
//! | `task` | all of it as a task of the loop |
//! | `begin` | the start of a run |
//! | `saved` | what checkpoints have beside their tensors |
//! | `tuned` | the model that a run of chosen parameters made |
//! | `error` | what can be wrong |
//!
//! [`begin()`] makes a run ready, and [`Trainer::run`](crate::trainer::Trainer::run) trains it:
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use olmoe_train::finetune::{self, BaseModel, Examples, FinetuneData, FinetuneSettings, Method, SftSettings};
//! use olmoe_train::trainer::Event;
//!
//! # let rows = Vec::new();
//! let settings = FinetuneSettings::new(Method::Sft(SftSettings::default()), "runs/tuned");
//! let base = BaseModel::open(Path::new("OLMoE-1B-7B-0924"))?;
//! let data = FinetuneData { train: Examples::of(rows)?, evaluation: None };
//! let interrupt = AtomicBool::new(false);
//! let mut log = |event: Event<'_>| {
//!     if let Event::Step(report, _) = event {
//!         eprintln!("step {}: loss {:.4}", report.step, report.cross_entropy);
//!     }
//! };
//! let mut trainer = finetune::begin(settings, base, data, &interrupt, &mut log)?;
//! trainer.run(&interrupt, &mut log)?;
//! # Ok::<(), olmoe_train::trainer::TrainError>(())
//! ```

mod base_model;
mod begin;
pub mod config;
mod dpo;
mod error;
mod examples;
mod kto;
mod plan;
mod reference;
mod routing;
mod saved;
mod schedule;
mod scores;
mod selection;
mod settings;
mod sft;
mod stack;
mod task;
mod tuned;

pub use base_model::BaseModel;
pub use begin::{Finetune, begin, begin_on};
pub use error::FinetuneError;
pub use examples::{Examples, FinetuneData, UnitOrder};
pub use plan::{MemoryPlan, activation_bytes, plan};
pub use routing::{ChosenExperts, most_used_experts};
pub use saved::{AdapterRecord, FINETUNE_FILE, FinetuneRecord, TRAINED_GROUP, TrainedRecord};
pub use schedule::FinetuneSchedule;
pub use selection::Selection;
pub use settings::{
    DpoSettings, EsftScore, EsftSettings, EvaluationSettings, FinetuneSettings, KtoTraining, Method, MicroBatch,
    PackingSettings, ReferenceModel, ReferenceSettings, ReferenceTime, RunLength, SaveSettings, ScheduleSettings,
    ScheduleShape, SftSettings, Warmup,
};
pub use task::{Finetuning, UnitBatch};
pub use tuned::Tuned;
