//! The start of a run of fine-tuning: data, model, reference, and the checkpoint that it goes on from.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::disk::{Disk, LocalDisk};
use olmoe_data::counted;
use olmoe_data::instruct::{Example, LabelledExample, PairExample};
use olmoe_model::adapter::parameters_with;
use olmoe_model::config::{Auxiliary, ModelConfig};
use olmoe_model::model::{Activations, Held, Model, ModelError};
use olmoe_model::parameters::ParameterKind;
use olmoe_tensor::memory::available_bytes;

use super::base_model::BaseModel;
use super::dpo::Dpo;
use super::error::FinetuneError;
use super::examples::{CONVERSATIONS, Examples, FinetuneData, LABELLED, PAIRS, UnitOrder, cut};
use super::kto::{Answers, Kto};
use super::plan;
use super::reference::{self, References};
use super::routing::{Drift, most_used_experts};
use super::saved::FinetuneRecord;
use super::schedule::FinetuneSchedule;
use super::scores::UnitOf;
use super::selection::Selection;
use super::settings::{FinetuneSettings, Method, MicroBatch, ReferenceModel, ReferenceSettings, ReferenceTime};
use super::sft::Sft;
use super::task::{Finetuning, Learner, batches, steps};
use crate::config::{Duration, TokenizerConfig, TrainConfig};
use crate::optimizer::{Optimizer, Slices, UpdateRule};
use crate::preference::kto::{KlBatch, Kto as KtoLosses};
use crate::preference::{Mismatch, Preference};
use crate::trainer::{Beginning, CONFIG_FILE, Event, RunFolder, Samples, Start, TrainError, Trainer, saves, unshared};

/// A run of fine-tuning.
pub type Finetune<D = LocalDisk> = Trainer<D, Finetuning>;

/// The file of the reference's log-probabilities, in the folder of the run.
const REFERENCE_FILE: &str = "reference.bin";

/// Makes a run ready: checks settings and data, locks the folder, loads the model, computes what the reference gives, and
/// goes on from the newest checkpoint if there is one.
///
/// # Errors
/// Whatever keeps the run from its first step; nothing that was saved has changed.
pub fn begin(
    settings: FinetuneSettings,
    base: BaseModel<'_>,
    data: FinetuneData,
    interrupt: &AtomicBool,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Finetune, TrainError> {
    begin_on(settings, base, data, LocalDisk, interrupt, on)
}

/// As [`begin`], with all files of the run on a disk of the caller's.
///
/// # Errors
/// As [`begin`].
pub fn begin_on<D: Disk>(
    settings: FinetuneSettings,
    mut base: BaseModel<'_>,
    data: FinetuneData,
    disk: D,
    interrupt: &AtomicBool,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Finetune<D>, TrainError> {
    settings.check()?;
    let model_config = with_auxiliary(&base.config, settings.auxiliary);
    check_data(&settings, &data, &model_config)?;
    let order = UnitOrder::new(&settings, &data.train, fixes_order(&settings.method));
    let lengths: Vec<usize> =
        (0..data.train.len()).map(|row| data.train.sequences(row).iter().map(|one| one.ids.len()).sum()).collect();
    let longest = |row: usize| data.train.sequences(row).iter().map(|one| one.ids.len()).max().unwrap_or(0);
    let longest: Vec<usize> = (0..data.train.len()).map(longest).collect();
    let units = order.count(&lengths)?;
    if batches(&settings, units) == 0 {
        let expected = if settings.drop_last { settings.batch_size } else { 1 };
        return Err(FinetuneError::TooLittleData { what: "training", found: units as usize, expected }.into());
    }
    if let Some(packing) = &settings.packing {
        let cut = cut(&lengths, packing);
        if cut > 0 {
            let text = format!(
                "packing: {} longer than {}, whose ends are left out",
                counted(cut as u64, "example"),
                packing.length
            );
            on(Event::Notice(&text));
        }
    }
    let steps = steps(&settings, units);
    let config = run_config(&settings, &model_config, steps);
    let samples = Samples::open(&config)?;
    let folder = RunFolder::open(&config, disk)?;
    let beginning = Beginning::find(&config, &folder, &order, on)?;
    let then = beginning.own().map(FinetuneRecord::read).transpose()?;

    let specs = parameters_with(&model_config, &settings.adapters).map_err(ModelError::from)?;
    let mut selection = Selection::resolve(&settings.train, &model_config, &specs)?;
    match (&settings.esft, &then) {
        (None, _) => {}
        // A run that goes on trains the experts that it began with.
        (Some(_), Some(then)) => {
            for (layer, experts) in then.experts(&specs) {
                selection.add_experts(layer, experts.iter().copied(), &specs);
            }
        }
        (Some(esft), None) => {
            let held = vec![Held::Inference; specs.len()];
            let model =
                base.model(&model_config, settings.precision, held, &settings.adapters, &|_| false, settings.seed)?;
            let rows = order.rows(0)?;
            let most = if esft.examples == 0 { rows.len() } else { esft.examples };
            let examples: Vec<&Example> =
                rows.iter().take(most).flat_map(|row| data.train.sequences(*row as usize)).collect();
            for chosen in most_used_experts(&model, &examples, esft, interrupt)? {
                selection.add_experts(chosen.layer, chosen.experts.iter().copied(), &specs);
                let text = format!(
                    "layer {}: {} trained, {:.1} % of the data's use: {:?}",
                    chosen.layer,
                    counted(chosen.experts.len() as u64, "expert"),
                    100.0 * chosen.score,
                    chosen.experts
                );
                on(Event::Notice(&text));
            }
        }
    }
    if selection.is_empty() {
        return Err(FinetuneError::NothingTrained.into());
    }
    let plan = plan::of(&settings, &base, &data.train, &specs, &selection)?;
    if let Some(limit) = settings.max_memory.or_else(available_bytes).filter(|limit| plan.total() > *limit) {
        let (needed, parameters) = (plan.total(), plan.trained.iter().map(|(_, trained, _)| trained).sum());
        return Err(TrainError::Memory { parameters, needed, available: limit });
    }
    let keep = plan.keep;
    let held = plan::held(&specs, &model_config, &selection);
    let is_trained = |id: usize| selection.is_trained(id);
    let mut model =
        base.model(&model_config, settings.precision, held, &settings.adapters, &is_trained, settings.seed)?;
    let record = FinetuneRecord::new(settings.method.name(), (&base.name, &base.fingerprint), &model, &selection);
    beginning.claim(&config, &folder, on)?;

    let (drift, train, evaluation) = {
        let mut set_up = SetUp {
            settings: &settings,
            base: &mut base,
            config: &model_config,
            selection: &selection,
            folder: &folder,
            record: &record,
            interrupt,
            on,
        };
        let drift = match settings.drift_tokens {
            0 => None,
            tokens => {
                let rows = 0..data.train.len();
                let examples: Vec<&Example> = rows.flat_map(|row| data.train.sequences(row)).collect();
                Some(Drift::new(&model, &examples, tokens)?)
            }
        };
        let train = set_up.learner(&mut model, data.train, &order, "train")?;
        let evaluation = match data.evaluation {
            Some(examples) => {
                let order = UnitOrder::new(&settings, &examples, true);
                Some(set_up.learner(&mut model, examples, &order, "eval")?)
            }
            None => None,
        };
        (drift, train, evaluation)
    };

    let rule = |id: usize| UpdateRule {
        rate: if specs[id].kind == ParameterKind::LoraB { settings.lora_plus } else { 1.0 },
        slices: selection.experts(id).map(Slices::new),
    };
    let mut optimizer = Optimizer::with_rules(settings.optimizer.clone(), &model, rule);
    if let Some(found) = beginning.own() {
        record.restore(found, &mut model)?;
        optimizer.restore(model.parameters(), found)?;
    }
    if saves(&config) && steps > beginning.state.step {
        let trained: u64 =
            (0..specs.len()).filter(|id| is_trained(*id)).map(|id| specs[id].num_elements() as u64).sum();
        folder.check_space(beginning.state.step, 4 * trained + optimizer.state_bytes())?;
    }
    if !settings.configuration.is_empty() {
        folder.write(CONFIG_FILE, |out| out.write_all(settings.configuration.as_bytes()))?;
    }
    let mut model = Arc::new(model);
    samples.iter().try_for_each(|samples| samples.check(&model))?;
    let _ = unshared(&mut model);
    let task = Finetuning {
        schedule: FinetuneSchedule::new(&settings.schedule, settings.optimizer.learning_rate, steps),
        learner: train,
        evaluation,
        order,
        lengths,
        longest,
        units,
        epoch: None,
        steps,
        selection: selection.clone(),
        drift,
        record,
        plan,
        base_config: base.config.clone(),
        settings: settings.clone(),
    };
    let activations = Activations::new(keep);
    Ok(Trainer::start(Start { config, task, model, optimizer, activations, samples, folder, beginning }))
}

/// The model's configuration with the auxiliary losses of the run.
fn with_auxiliary(config: &ModelConfig, auxiliary: Option<Auxiliary>) -> ModelConfig {
    let off = Auxiliary { load_balancing_weight: 0.0, z_weight: 0.0, ..config.auxiliary };
    ModelConfig { auxiliary: auxiliary.unwrap_or(off), ..config.clone() }
}

/// Whether each epoch has the same order, since mismatched answers come in blocks of it.
fn fixes_order(method: &Method) -> bool {
    match method {
        Method::Kto(training) => (training.kto.kl_batch, training.kto.mismatch) != (KlBatch::Step, Mismatch::Rotated),
        Method::Sft(_) | Method::Dpo(_) => false,
    }
}

fn check_data(settings: &FinetuneSettings, data: &FinetuneData, config: &ModelConfig) -> Result<(), FinetuneError> {
    let expected = match settings.method {
        Method::Sft(_) => CONVERSATIONS,
        Method::Dpo(_) => PAIRS,
        Method::Kto(_) => LABELLED,
    };
    for (what, examples) in [("training", Some(&data.train)), ("evaluation", data.evaluation.as_ref())] {
        let Some(examples) = examples else { continue };
        if examples.is_empty() {
            return Err(FinetuneError::TooLittleData { what, found: 0, expected: 1 });
        }
        if examples.kind() != expected {
            return Err(FinetuneError::OtherData { method: settings.method.name(), expected, found: examples.kind() });
        }
        let longest = match settings.packing.filter(|_| what == "training") {
            // What is longer is cut.
            Some(packing) if packing.length <= config.max_sequence_length => usize::MAX,
            _ => config.max_sequence_length,
        };
        examples.check(what, config.embedding_size, longest)?;
    }
    Ok(())
}

/// The settings of the loop.
fn run_config(settings: &FinetuneSettings, model: &ModelConfig, steps: u64) -> TrainConfig {
    let defaults = TrainConfig::default();
    let identifier = settings.tokenizer.as_ref().map(|path| path.display().to_string());
    TrainConfig {
        seed: settings.seed,
        model: model.clone(),
        optimizer: settings.optimizer.clone(),
        max_duration: Duration::Steps(steps),
        stop_at: Some(steps),
        eval_interval: settings.evaluation.interval.unwrap_or(u64::MAX),
        save_folder: settings.saving.folder.display().to_string(),
        save_interval: settings.saving.interval,
        save_num_checkpoints_to_keep: settings.saving.keep,
        save_overwrite: settings.saving.overwrite,
        try_load_latest_save: settings.saving.resume,
        no_pre_train_checkpoint: true,
        global_train_batch_size: settings.batch_size as u64,
        time_limit: settings.time_limit,
        samples: settings.samples.clone(),
        tokenizer: TokenizerConfig { identifier: identifier.unwrap_or_default(), ..defaults.tokenizer.clone() },
        ..defaults
    }
}

/// What learners are made with.
struct SetUp<'s, 'b, D: Disk> {
    settings: &'s FinetuneSettings,
    base: &'s mut BaseModel<'b>,
    config: &'s ModelConfig,
    selection: &'s Selection,
    folder: &'s RunFolder<D>,
    record: &'s FinetuneRecord,
    interrupt: &'s AtomicBool,
    on: &'s mut dyn FnMut(Event<'_>),
}

impl<D: Disk> SetUp<'_, '_, D> {
    /// Examples with what is known of them under the reference; `policy` is the model at the start.
    fn learner(
        &mut self,
        policy: &mut Model,
        examples: Examples,
        order: &UnitOrder,
        what: &'static str,
    ) -> Result<Learner, TrainError> {
        let settings = self.settings;
        match (&settings.method, examples) {
            (Method::Sft(sft), Examples::Conversations(rows)) => Ok(Learner::Sft(Sft { settings: *sft, rows })),
            (Method::Dpo(dpo), Examples::Pairs(rows)) => {
                let preference = Preference::new(dpo.preference.clone())?;
                // The routers' losses count each token once, so that a prompt has to be there twice for them.
                let share_prompts = settings.share_prompts && settings.auxiliary.is_none();
                let mut learner = Dpo { preference, rows, share_prompts, references: References::None };
                if learner.preference.needs_reference() {
                    let (rows, split) = (learner.rows.len(), learner.splits());
                    let pairs: &[PairExample] = &learner.rows;
                    let unit = |row: usize| Dpo::unit(pairs, true, row);
                    let key = self.key(&dpo.reference, order, what, split, &[])?;
                    learner.references = self.references(policy, &dpo.reference, key, rows, &unit, split, what)?;
                }
                Ok(Learner::Dpo(learner))
            }
            (Method::Kto(training), Examples::Labelled(rows)) => {
                let kto = KtoLosses::new(training.kto)?;
                if what == "train" {
                    let good = rows.iter().filter(|row| row.desirable).count() as u64;
                    if let Some(imbalance) = kto.imbalance(good, rows.len() as u64 - good) {
                        (self.on)(Event::Notice(&imbalance.to_string()));
                    }
                }
                let partners = match kto.needs_kl() {
                    true => self.partners(&kto, &rows, order)?,
                    false => Vec::new(),
                };
                let longest = settings.max_length.unwrap_or(usize::MAX).min(self.config.max_sequence_length);
                let answers = Answers { rows, partners, longest };
                let count = answers.rows.len();
                let key = self.key(&training.reference, order, what, false, &answers.partners)?;
                let unit = |row: usize| answers.both(row);
                let references = self.references(policy, &training.reference, key, count, &unit, false, what)?;
                Ok(Learner::Kto(Kto { kto, answers, references }))
            }
            (method, examples) => {
                let expected = match method {
                    Method::Sft(_) => CONVERSATIONS,
                    Method::Dpo(_) => PAIRS,
                    Method::Kto(_) => LABELLED,
                };
                let found = examples.kind();
                Err(FinetuneError::OtherData { method: method.name(), expected, found }.into())
            }
        }
    }

    /// The row whose answer each row's prompt is scored with.
    fn partners(&self, kto: &KtoLosses, rows: &[LabelledExample], order: &UnitOrder) -> Result<Vec<u32>, TrainError> {
        let settings = self.settings;
        let micro = match settings.micro_batch {
            MicroBatch::Examples(size) => size,
            MicroBatch::Tokens(_) if kto.settings().kl_batch == KlBatch::Step => 1,
            MicroBatch::Tokens(tokens) => {
                let found = format!("{tokens} tokens");
                let expected = "a number of examples: `kl_batch: micro` compares within micro-batches of one size";
                return Err(FinetuneError::Setting { key: "micro_batch", found, expected }.into());
            }
        };
        let blocks = fixes_order(&settings.method);
        let of_place = kto.mismatched(rows.len(), micro, settings.batch_size)?;
        if !blocks {
            return Ok(of_place.into_iter().map(|row| row as u32).collect());
        }
        // Blocks are of the order in which the rows come.
        let order = order.rows(0)?;
        let mut partners = vec![0; rows.len()];
        for (place, row) in order.iter().enumerate() {
            partners[*row as usize] = order[of_place[place]];
        }
        Ok(partners)
    }

    /// What the log-probabilities of the reference depend on.
    fn key(
        &self,
        settings: &ReferenceSettings,
        order: &UnitOrder,
        what: &str,
        split: bool,
        partners: &[u32],
    ) -> Result<[u8; 32], TrainError> {
        let model = match &settings.model {
            ReferenceModel::Start => self.record.fingerprint.clone(),
            ReferenceModel::Checkpoint(path) => BaseModel::open(path)?.fingerprint,
        };
        let trained: Vec<&str> = self.record.trained.iter().map(|one| one.name.as_str()).collect();
        let longest = if partners.is_empty() { None } else { self.settings.max_length };
        let parts = serde_json::json!([
            model,
            self.settings.precision.name(),
            what,
            order.hash(),
            split,
            self.record.whole,
            trained,
            partners,
            longest,
        ]);
        Ok(*blake3::hash(parts.to_string().as_bytes()).as_bytes())
    }

    /// The reference of so many rows.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn references(
        &mut self,
        policy: &mut Model,
        reference: &ReferenceSettings,
        key: [u8; 32],
        rows: usize,
        unit: &UnitOf<'_>,
        split: bool,
        what: &str,
    ) -> Result<References, TrainError> {
        let (settings, interrupt) = (self.settings, self.interrupt);
        let by = settings.evaluation.micro_batch;
        let only_adapters = self.selection_is_adapters(policy);
        if reference.when == ReferenceTime::Live {
            if reference.model == ReferenceModel::Start && only_adapters && !self.base.has_adapters() {
                return Ok(References::AdaptersOff);
            }
            return Ok(References::Model(Box::new(self.other(&reference.model)?)));
        }
        let path = match (&reference.cache, what) {
            (None, "train") => self.folder.path().join(REFERENCE_FILE),
            (None, what) => self.folder.path().join(Path::new(REFERENCE_FILE).with_extension(format!("{what}.bin"))),
            (Some(path), "train") => path.clone(),
            (Some(path), what) => path.with_extension(format!("{what}.bin")),
        };
        let other = match &reference.model {
            ReferenceModel::Start => None,
            model @ ReferenceModel::Checkpoint(_) => Some(model),
        };
        let disk = self.folder.disk();
        let mut made = None;
        let (sums, notice) = reference::before(disk, &path, &key, rows, |all| {
            let model = match other {
                None => &*policy,
                Some(model) => made.insert(Self::other_of(self.base, self.config, settings, self.selection, model)?),
            };
            reference::compute(model, all, unit, split, by, interrupt)
        })?;
        notice.iter().for_each(|text| (self.on)(Event::Notice(text)));
        Ok(References::Before(sums))
    }

    /// Whether nothing but adapters is trained.
    fn selection_is_adapters(&self, model: &Model) -> bool {
        (0..model.base_parameters().len()).all(|id| !self.selection.is_trained(id)) && !model.adapters().is_empty()
    }

    fn other(&mut self, model: &ReferenceModel) -> Result<Model, TrainError> {
        Self::other_of(self.base, self.config, self.settings, self.selection, model)
    }

    /// Another model, held for inference in the forms in which the policy has its parameters.
    fn other_of(
        base: &mut BaseModel<'_>,
        config: &ModelConfig,
        settings: &FinetuneSettings,
        selection: &Selection,
        model: &ReferenceModel,
    ) -> Result<Model, TrainError> {
        let is_trained = |id: usize| selection.is_trained(id);
        let make = |base: &mut BaseModel<'_>, config: &ModelConfig, adapters: &[_]| {
            let specs = parameters_with(config, adapters).map_err(ModelError::from)?;
            let held = vec![Held::Inference; specs.len()];
            base.model(config, settings.precision, held, adapters, &is_trained, settings.seed)
        };
        match model {
            ReferenceModel::Start if base.has_adapters() => make(base, config, &settings.adapters),
            ReferenceModel::Start => make(base, config, &[]),
            ReferenceModel::Checkpoint(path) => {
                let mut other = BaseModel::open(path)?;
                let own = with_auxiliary(&other.config, settings.auxiliary);
                make(&mut other, &own, &[])
            }
        }
    }
}
