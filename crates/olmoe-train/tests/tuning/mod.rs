//! A small model, small data, and runs over them.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::instruct::{Example, LabelledExample, PairExample};
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Model, Precision};
use olmoe_train::finetune::{
    BaseModel, Examples, Finetune, FinetuneData, FinetuneSettings, Method, MicroBatch, RunLength, SftSettings, begin,
};
use olmoe_train::trainer::{Event, Outcome, StepReport, TrainError};
use tempfile::TempDir;

pub(crate) fn config() -> ModelConfig {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 48, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 24,
        "pad_token_id": 1, "eos_token_id": 2, "router_aux_loss_coef": 0.01
    }"#;
    let mut config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    config.init.std = 0.3;
    config
}

/// The model that runs begin with.
pub(crate) fn model() -> Model {
    let mut model = Model::new(config(), Precision::Fp32, Held::Trained).expect("a model");
    model.initialize(3);
    model
}

/// Tokens of which those from `prompt` on are learned.
pub(crate) fn example(seed: u32, prompt: usize, length: usize) -> Example {
    let id = |i: usize| 3 + (seed.wrapping_mul(2_654_435_761).wrapping_add(i as u32 * 40_503) >> 7) % 45;
    let ids = (0..length).map(id).collect();
    let weights = (0..length).map(|i| if i >= prompt { 1.0 } else { 0.0 }).collect();
    Example { ids, weights }
}

/// Conversations of different lengths.
pub(crate) fn conversations(count: u32) -> Vec<Example> {
    (0..count).map(|i| example(i + 1, 1 + i as usize % 3, 4 + (i as usize * 5) % 7)).collect()
}

/// Pairs with a prompt in common.
pub(crate) fn pairs(count: u32) -> Vec<PairExample> {
    let side = |prompt: &Example, answer: &Example| Example {
        ids: prompt.ids.iter().chain(&answer.ids).copied().collect(),
        weights: prompt.ids.iter().map(|_| 0.0).chain(answer.ids.iter().map(|_| 1.0)).collect(),
    };
    let pair = |i: u32| {
        let prompt = example(100 + i, 0, 2 + i as usize % 3);
        let answers = [example(200 + i, 0, 2 + i as usize % 4), example(300 + i, 0, 3 + i as usize % 2)];
        PairExample::new(side(&prompt, &answers[0]), side(&prompt, &answers[1]))
    };
    (0..count).map(pair).collect()
}

/// Answers of both kinds.
pub(crate) fn labelled(count: u32) -> Vec<LabelledExample> {
    let of = |i: u32| {
        let prompt = 1 + i as usize % 3;
        let example = example(400 + i, prompt, prompt + 2 + i as usize % 4);
        LabelledExample { example, desirable: i.is_multiple_of(2), prompt }
    };
    (0..count).map(of).collect()
}

pub(crate) fn conversation_data(count: u32) -> FinetuneData {
    FinetuneData { train: Examples::Conversations(conversations(count)), evaluation: None }
}

/// What a run reported.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) reports: Vec<StepReport>,
    pub(crate) metrics: Vec<(u64, Vec<(String, f64)>)>,
    pub(crate) evaluations: Vec<(u64, Vec<(String, f64)>)>,
    pub(crate) notices: Vec<String>,
    pub(crate) saved: Vec<u64>,
}

impl Log {
    pub(crate) fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(report, metrics) => {
                self.reports.push((*report).clone());
                self.metrics.push((report.step, metrics.to_vec()));
            }
            Event::Evaluated(step, metrics) => self.evaluations.push((*step, metrics.to_vec())),
            Event::Notice(text) => self.notices.push((*text).to_owned()),
            Event::Saved(saved, _) => self.saved.push(saved.step),
            Event::Sampled(_) => {}
        }
    }

    pub(crate) fn losses(&self) -> Vec<f64> {
        self.reports.iter().map(|report| report.cross_entropy).collect()
    }

    /// A metric of each step that has it.
    pub(crate) fn metric(&self, name: &str) -> Vec<f64> {
        let of = |metrics: &Vec<(String, f64)>| metrics.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
        self.metrics.iter().filter_map(|(_, metrics)| of(metrics)).collect()
    }

    /// A metric of each evaluation.
    pub(crate) fn evaluated(&self, name: &str) -> Vec<f64> {
        let of = |metrics: &Vec<(String, f64)>| metrics.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
        self.evaluations.iter().filter_map(|(_, metrics)| of(metrics)).collect()
    }
}

/// A folder for runs.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new() -> Desk {
        Desk(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Settings of a run in f32 that is saved at its end.
    pub(crate) fn settings(&self, name: &str, method: Method) -> FinetuneSettings {
        let mut settings = FinetuneSettings::new(method, self.path(name));
        settings.precision = Precision::Fp32;
        settings.batch_size = 4;
        settings.micro_batch = MicroBatch::Examples(2);
        settings.length = RunLength::Steps(4);
        settings.optimizer.learning_rate = 1e-2;
        settings
    }

    pub(crate) fn sft(&self, name: &str) -> FinetuneSettings {
        self.settings(name, Method::Sft(SftSettings::default()))
    }
}

/// Trains to the end, or until a step.
pub(crate) fn train_until(
    settings: FinetuneSettings,
    model: &Model,
    data: FinetuneData,
    last: u64,
) -> Result<(Log, Outcome, Finetune), TrainError> {
    let (mut log, interrupt) = (Log::default(), AtomicBool::new(false));
    let mut trainer = begin(settings, BaseModel::of(model), data, &interrupt, &mut |event| log.take(&event))?;
    let outcome = trainer.run(&interrupt, &mut |event| {
        log.take(&event);
        if let Event::Step(report, _) = &event {
            interrupt.fetch_or(report.step >= last, Ordering::Relaxed);
        }
    })?;
    Ok((log, outcome, trainer))
}

/// Trains to the end.
pub(crate) fn train(settings: FinetuneSettings, data: FinetuneData) -> (Log, Finetune) {
    let (log, outcome, trainer) = train_until(settings, &model(), data, u64::MAX).expect("a good run");
    assert_eq!(outcome, Outcome::Finished);
    (log, trainer)
}

/// The bits of all parameters that are held as numbers.
pub(crate) fn bits(model: &Model) -> Vec<Vec<u32>> {
    let of = |id: usize| model.value(id).map_or(Vec::new(), |value| value.iter().map(|x| x.to_bits()).collect());
    (0..model.parameters().len()).map(of).collect()
}

/// The files of a folder with their bytes.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            (path.file_name().expect("a name").to_string_lossy().into_owned(), std::fs::read(&path).expect("a file"))
        })
        .collect();
    all.sort();
    all
}
