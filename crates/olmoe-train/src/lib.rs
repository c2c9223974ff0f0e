//! Training.
//!
//! | module | contents |
//! |---|---|
//! | [`config`] | the configuration of a run: OLMo's YAML files |
//! | [`schedule`] | the learning rate and the bound on the gradients over time |
//! | [`metrics`] | the metrics of a run, as JSON lines and event files |
//! | [`loss`] | the loss of a batch and its parts |
//! | [`preference`] | the objectives of preference tuning: DPO, KTO and their relatives |
//! | [`names`] | enums whose values have names |
//! | [`optimizer`] | AdamW, LionW and RMSprop, clipping, metrics, saving and restoring |
//! | [`state`] | the progress of a run, and its position in the data |
//! | [`trainer`] | the loop: steps, checkpoints, evaluations, from a configuration to a trained model |
//! | [`finetune`] | fine-tuning with the same loop: supervised, by pairs of answers, by labelled answers |
//! | [`plan`] | the resources and the length of a run, computed before it begins |
//!
//! [`trainer::Trainer`] is the loop. The parts of its step, for a loop of one's own:
//!
//! ```
//! use olmoe_model::batch::Batch;
//! use olmoe_model::model::{Activations, Held, Model};
//! use olmoe_train::config::TrainConfig;
//! use olmoe_train::loss::Loss;
//! use olmoe_train::optimizer::{Optimizer, Step};
//! use olmoe_train::schedule::Schedule;
//! use olmoe_train::state::TrainerState;
//!
//! let yaml = "
//! model: {d_model: 16, n_heads: 2, n_layers: 1, mlp_hidden_size: 16, block_type: moe, moe_num_experts: 4, rope: true,
//!         attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 64, embedding_size: 64,
//!         eos_token_id: 0, pad_token_id: 1, max_sequence_length: 8}
//! optimizer: {name: adamw, learning_rate: 1e-3}
//! scheduler: {name: linear_with_warmup, t_warmup: 2, alpha_f: 0}
//! precision: fp32
//! max_grad_norm: 1.0";
//! let loaded = TrainConfig::from_yaml(yaml, &["--max_duration=4", "--global_train_batch_size=2"], &|_| None)?;
//! loaded.notices.iter().for_each(|notice| eprintln!("note: {notice}"));
//! let config = loaded.config;
//!
//! let mut model = Model::new(config.model.clone(), config.precision().expect("set above"), Held::Trained)?;
//! model.initialize(config.seed);
//! let mut gradients = model.gradients();
//! let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
//! let mut activations = Activations::new(config.keep());
//! let schedule = Schedule::new(&config);
//! let mut state = TrainerState::start(&config);
//! let batch = Batch::uniform(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], 8)?;
//!
//! let batches_per_epoch = 100;
//! while state.step < config.max_steps(&state.progress(batches_per_epoch)) {
//!     let before = config.schedule_position(&state.progress(batches_per_epoch));
//!     state.count_batch(&config);
//!     let at = state.progress(batches_per_epoch);
//!     let (targets, _) = batch.next_tokens();
//!     // OLMo divides by all tokens of the batch, though the last of a sequence has no target.
//!     let tokens = batch.tokens() as f64;
//!     Loss::over(tokens).step(&model, &batch, &targets, &mut activations, &mut gradients)?;
//!     let step = Step {
//!         number: state.step,
//!         learning_rate: schedule.learning_rate(config.schedule_position(&at), config.schedule_end(&at)),
//!         clip: schedule.clip(before),
//!         record: config.records_metrics(state.step),
//!     };
//!     assert!(optimizer.step(&mut model, &mut gradients, &step).applied);
//! }
//! assert_eq!((state.step, optimizer.steps()), (4, 4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
pub mod finetune;
pub mod loss;
pub mod metrics;
pub mod names;
pub mod optimizer;
pub mod plan;
pub mod preference;
pub mod schedule;
pub mod state;
pub mod trainer;
