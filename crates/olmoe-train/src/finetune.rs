//! Fine-tuning.

pub mod config;
mod error;
mod settings;

pub use error::FinetuneError;
pub use settings::{
    DpoSettings, EsftScore, EsftSettings, EvaluationSettings, FinetuneSettings, KtoTraining, Method, MicroBatch,
    PackingSettings, ReferenceModel, ReferenceSettings, ReferenceTime, RunLength, SaveSettings, ScheduleSettings,
    ScheduleShape, SftSettings, Warmup,
};
