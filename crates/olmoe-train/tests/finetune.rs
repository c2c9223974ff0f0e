//! Supervised fine-tuning through the loop: what a step learns, which parameters change, and what a resumed run comes to.

mod tuning;

use std::collections::BTreeMap;

use olmoe_data::instruct::Packing;
use olmoe_model::model::{Held, Model, Precision};
use olmoe_model::parameters::ParameterKind;
use olmoe_train::config::OptimizerName;
use olmoe_train::finetune::{
    EsftScore, EsftSettings, Examples, FinetuneData, FinetuneError, FinetuneSchedule, MicroBatch, PackingSettings,
    RunLength, ScheduleSettings, ScheduleShape, SftSettings, Warmup,
};
use olmoe_train::loss::{Reduction, TokenLoss};
use olmoe_train::trainer::{Outcome, TrainError};
use tuning::{Desk, bits, conversation_data, conversations, files, model, train, train_until};

#[test]
fn the_loss_does_not_depend_on_how_a_step_is_divided() {
    let desk = Desk::new();
    for reduction in [Reduction::Token, Reduction::SequenceMean] {
        for token_loss in TokenLoss::ALL {
            let mut found = Vec::new();
            for (i, by) in
                [MicroBatch::Examples(1), MicroBatch::Examples(3), MicroBatch::Examples(4), MicroBatch::Tokens(11)]
                    .into_iter()
                    .enumerate()
            {
                let mut settings = desk.sft(&format!("{reduction}-{token_loss}-{i}"));
                settings.micro_batch = by;
                settings.length = RunLength::Steps(2);
                let olmoe_train::finetune::Method::Sft(sft) = &mut settings.method else { unreachable!() };
                *sft = SftSettings { reduction, token_loss: *token_loss };
                let (log, _) = train(settings, conversation_data(9));
                found.push((log.losses(), log.metric("grad_norm")));
            }
            for (losses, norms) in &found[1..] {
                assert_eq!(losses[0].to_bits(), found[0].0[0].to_bits(), "{reduction}: the first loss, to the bit");
                assert!((losses[1] - found[0].0[1]).abs() < 1e-5 * losses[1].abs(), "{losses:?} {found:?}");
                assert!((norms[0] - found[0].1[0]).abs() < 1e-5 * norms[0], "{norms:?}");
            }
        }
    }
}

#[test]
fn the_logged_loss_is_that_of_the_tokens() {
    let desk = Desk::new();
    let mut settings = desk.sft("run");
    (settings.batch_size, settings.shuffle, settings.length) = (3, false, RunLength::Steps(1));
    let (log, _) = train(settings, conversation_data(3));
    let (model, rows) = (model(), conversations(3));
    let (mut sum, mut count) = (0.0, 0);
    let (mut correct, mut entropy) = (0, 0.0);
    for row in &rows {
        let batch = olmoe_model::batch::Batch::new(&row.ids, &[row.ids.len()]).unwrap();
        let mut activations = olmoe_model::model::Activations::new(olmoe_model::model::Keep::Nothing);
        let logits = model.logits(&batch, &mut activations).unwrap();
        for t in 1..row.ids.len() {
            if row.weights[t] != 0.0 {
                let own = logits.row(t - 1);
                let sum_exp: f64 = own.iter().map(|x| f64::from(*x).exp()).sum();
                sum += sum_exp.ln() - f64::from(own[row.ids[t] as usize]);
                count += 1;
                let logps: Vec<f64> = own.iter().map(|x| f64::from(*x) - sum_exp.ln()).collect();
                entropy -= logps.iter().map(|logp| logp.exp() * logp).sum::<f64>();
                correct += usize::from(logps.iter().all(|logp| *logp <= logps[row.ids[t] as usize]));
            }
        }
    }
    let (found, expected) = (log.losses()[0], sum / f64::from(count));
    assert!((found - expected).abs() < 1e-6 * expected, "{found} {expected}");
    assert_eq!(log.metric("loss"), log.losses());
    assert_eq!(log.metric("mean_token_accuracy"), [correct as f64 / f64::from(count)]);
    assert!((log.metric("entropy")[0] - entropy / f64::from(count)).abs() < 1e-5, "{:?}", log.metric("entropy"));
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    assert_eq!((log.metric("num_tokens"), log.metric("epoch")), (vec![tokens as f64], vec![1.0]));
}

#[test]
fn packed_sequences_have_the_bits_of_single_ones() {
    let desk = Desk::new();
    let rows = conversations(8);
    let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let mut packed = desk.sft("packed");
    packed.packing = Some(PackingSettings { length: 20, rule: Packing::BestFit });
    // All of the data is one step, and one pass.
    (packed.batch_size, packed.micro_batch, packed.shuffle) = (100, MicroBatch::Examples(100), false);
    packed.length = RunLength::Steps(2);
    let (log, one) = train(packed.clone(), conversation_data(8));
    // The same documents in the same order, each a sequence of its own.
    let order: Vec<u32> = (0..8).collect();
    let parts = olmoe_data::instruct::pack(&order, &lengths, 20, Packing::BestFit).unwrap();
    let rows: Vec<_> = parts.iter().flatten().map(|part| rows[part.row].clone()).collect();
    assert!(parts.len() > 1 && parts.iter().any(|own| own.len() > 1), "{parts:?}");
    let mut single = packed;
    (single.packing, single.saving.folder) = (None, desk.path("single"));
    let data = FinetuneData { train: Examples::Conversations(rows), evaluation: None };
    let (other, two) = train(single, data);
    assert_eq!(log.losses(), other.losses());
    assert_eq!(log.metric("grad_norm"), other.metric("grad_norm"));
    assert_eq!(bits(one.model()), bits(two.model()));
}

#[test]
fn documents_of_a_packed_sequence_do_not_see_each_other() {
    let desk = Desk::new();
    let loss = |name: &str, change: bool| {
        let mut rows = conversations(4);
        if change {
            // Of the first row only the prompt changes, and it is in one sequence with the others.
            rows[0].ids[0] ^= 1;
            rows[0].weights.iter_mut().for_each(|weight| *weight = 0.0);
            rows[0].weights[1] = 1.0;
        } else {
            rows[0].weights.iter_mut().for_each(|weight| *weight = 0.0);
            rows[0].weights[1] = 1.0;
        }
        let mut settings = desk.sft(name);
        settings.packing = Some(PackingSettings { length: 24, rule: Packing::FirstFit });
        (settings.batch_size, settings.length) = (8, RunLength::Steps(1));
        let data = FinetuneData { train: Examples::Conversations(rows[1..].to_vec()), evaluation: None };
        let without = train(settings.clone(), data).0.losses()[0];
        settings.saving.folder = desk.path(&format!("{name}-all"));
        let data = FinetuneData { train: Examples::Conversations(rows), evaluation: None };
        (without, train(settings, data).0.losses()[0])
    };
    let ((a, with_a), (b, with_b)) = (loss("one", false), loss("two", true));
    assert_eq!(a, b);
    assert_ne!(with_a, with_b, "what is predicted from the changed token changes");
}

#[test]
fn every_epoch_has_each_row_once_in_an_order_of_its_own() {
    let desk = Desk::new();
    for packing in [None, Some(PackingSettings { length: 20, rule: Packing::BestFit })] {
        let mut settings = desk.sft(&format!("run-{}", packing.is_some()));
        (settings.packing, settings.batch_size, settings.length) = (packing, 2, RunLength::Epochs(3.0));
        let (log, trainer) = train(settings, conversation_data(11));
        let epochs = epochs(&trainer.config().save_folder, &log);
        assert_eq!(epochs.len(), 3);
        for rows in &epochs {
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<u32>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2], "{epochs:?}");
    }
}

/// The rows of each epoch, as the folder of a run has them.
fn epochs(folder: &str, log: &tuning::Log) -> Vec<Vec<u32>> {
    use std::io::Read;
    let file = std::fs::File::open(std::path::Path::new(folder).join("data-indices/rank0.tsv.gz")).unwrap();
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut all: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (line, report) in text.lines().zip(&log.reports) {
        let rows = line.split('\t').skip(1).map(|row| row.parse::<u32>().unwrap());
        all.entry(report.epoch).or_default().extend(rows);
    }
    all.into_values().collect()
}

#[test]
fn a_run_that_goes_on_at_any_step_is_the_uninterrupted_one() {
    let desk = Desk::new();
    for packing in [None, Some(PackingSettings { length: 20, rule: Packing::BestFit })] {
        let settings = |name: &str| {
            let mut settings = desk.sft(&format!("{name}-{}", packing.is_some()));
            (settings.packing, settings.batch_size, settings.length) = (packing, 2, RunLength::Epochs(2.5));
            (settings.saving.interval, settings.saving.keep) = (Some(1), -1);
            settings.train = vec!["layers.1".to_owned(), "layers.0.experts.2".to_owned(), "norms".to_owned()];
            settings.configuration = "method: sft\n".to_owned();
            settings
        };
        let (whole, trainer) = train(settings("whole"), conversation_data(9));
        let steps = trainer.task().steps();
        assert_eq!((whole.reports.len() as u64, whole.saved.len() as u64), (steps, steps));
        for last in 1..steps {
            let name = format!("part-{last}");
            let (_, outcome, _) = train_until(settings(&name), &model(), conversation_data(9), last).unwrap();
            assert_eq!(outcome, Outcome::Interrupted);
            let (rest, _) = train(settings(&name), conversation_data(9));
            assert_eq!(rest.losses(), whole.losses()[last as usize..], "{last}");
            for step in 1..=steps {
                let of = |name: &str| files(&settings(name).saving.folder.join(format!("step-{step}")));
                assert!(of(&name) == of("whole"), "step {step} of a run that was interrupted after {last}");
            }
        }
    }
}

#[test]
fn only_the_chosen_experts_change() {
    let desk = Desk::new();
    for (i, name) in OptimizerName::ALL.iter().enumerate() {
        let mut settings = desk.sft(&format!("run-{i}"));
        settings.train = vec!["layers.1.experts.2".to_owned()];
        settings.optimizer.name = *name;
        settings.optimizer.weight_decay = 0.1;
        let (log, trainer) = train(settings, conversation_data(9));
        let (before, after) = (model(), trainer.model());
        for (id, spec) in before.parameters().iter().enumerate() {
            let Some(now) = after.value(id) else { continue };
            let each = spec.num_elements() / 4;
            let chosen = spec.kind == ParameterKind::Expert && spec.module.layer == Some(1);
            for at in 0..spec.num_elements() {
                let same = before.value(id).unwrap()[at].to_bits() == now[at].to_bits();
                assert_eq!(same, !(chosen && at / each == 2), "{} {at}", spec.name);
            }
        }
        assert!(log.metric("grad_norm").iter().all(|norm| *norm > 0.0));
        // Moments of that expert alone, of three matrices.
        let expert = 3 * 16 * 12 * 4;
        let moments = if *name == OptimizerName::AdamW { 2 } else { 1 };
        let bytes: u64 = files(&desk.path(&format!("run-{i}/step-4")))
            .iter()
            .filter(|(name, _)| name.starts_with("optimizer-"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert!((moments * expert..moments * expert + 2000).contains(&bytes), "{bytes}");
    }
}

/// The norm by which gradients are clipped is that of the trained experts alone: their update is that of a model in which
/// all others have no gradient.
#[test]
fn the_gradients_of_other_experts_do_not_count_in_the_norm() {
    let desk = Desk::new();
    let norm = |name: &str, train_: &[&str]| {
        let mut settings = desk.sft(name);
        settings.train = train_.iter().map(ToString::to_string).collect();
        settings.length = RunLength::Steps(1);
        train(settings, conversation_data(9)).0.metric("grad_norm")[0]
    };
    let each: Vec<f64> = (0..4).map(|e| norm(&format!("e{e}"), &[&format!("layers.0.experts.{e}")])).collect();
    let all = norm("all", &["layers.0.experts"]);
    let together = each.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
    assert!((all - together).abs() < 1e-6 * all, "{all} {each:?}");
}

#[test]
fn checkpoints_hold_what_is_trained_and_where_the_rest_is() {
    let desk = Desk::new();
    let mut settings = desk.sft("part");
    settings.train = vec!["router".to_owned()];
    settings.configuration = "x: 1\n".to_owned();
    let (_, trainer) = train(settings.clone(), conversation_data(9));
    let found = files(&desk.path("part/step-4"));
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "config.yaml",
            "data.json",
            "finetune.json",
            "manifest.json",
            "optimizer-00001-of-00001.safetensors",
            "optimizer.json",
            "trained-00001-of-00001.safetensors"
        ]
    );
    let tensors = safetensors::SafeTensors::deserialize(&found[7].1).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    assert_eq!(names, ["layers.0.moe.router.weight", "layers.1.moe.router.weight"]);
    let record: serde_json::Value = serde_json::from_slice(&found[3].1).unwrap();
    assert_eq!(record["fingerprint"], trainer.task().record().fingerprint);
    assert_eq!(record["trained"][1]["name"], "layers.1.moe.router.weight");
    assert_eq!(std::fs::read(desk.path("part/config.yaml")).unwrap(), b"x: 1\n");

    drop(trainer);

    // Another model, or other parameters, are refused with what differs.
    settings.length = RunLength::Steps(6);
    let mut other = Model::new(tuning::config(), Precision::Fp32, Held::Trained).unwrap();
    other.initialize(4);
    let error = train_until(settings.clone(), &other, conversation_data(9), 9).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("the run began with a model of fingerprint"), "{error}");
    settings.train = vec!["norms".to_owned()];
    let error = train_until(settings.clone(), &model(), conversation_data(9), 9).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the run trained 2 parameters (layers.0.moe.router.weight"), "{error}");
    // And so is other data.
    settings.train = vec!["router".to_owned()];
    let error = train_until(settings.clone(), &model(), conversation_data(8), 9).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the number of examples was 9 and is 8"), "{error}");

    // All parameters are a checkpoint as of pretraining.
    train(desk.sft("whole"), conversation_data(9));
    let checkpoint = olmoe_checkpoint::Checkpoint::open(&desk.path("whole/latest")).unwrap();
    let mut loaded = Model::new(tuning::config(), Precision::Fp32, Held::Trained).unwrap();
    checkpoint.load_into(&mut loaded, &|_| {}).unwrap();
    let shards = files(&desk.path("whole/step-4"));
    assert!(shards.iter().any(|(name, _)| name == "model-00001-of-00001.safetensors"));
    assert_ne!(bits(&loaded), bits(&model()));
}

#[test]
fn evaluation_does_not_depend_on_its_batches() {
    let desk = Desk::new();
    let mut found = Vec::new();
    for (i, by) in [1, 3, 7].into_iter().enumerate() {
        let mut settings = desk.sft(&format!("run-{i}"));
        settings.evaluation.micro_batch = MicroBatch::Examples(by);
        (settings.evaluation.interval, settings.evaluation.at_start) = (Some(2), true);
        settings.drift_tokens = 30;
        let mut data = conversation_data(9);
        data.evaluation = Some(Examples::Conversations(conversations(16)[9..].to_vec()));
        let (log, _) = train(settings, data);
        let steps: Vec<u64> = log.evaluations.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [0, 2, 4]);
        assert_eq!(log.evaluated("routing/drift")[0], 0.0);
        assert!(log.evaluated("routing/drift/layer1")[2] > 0.0, "{:?}", log.evaluations);
        found.push(log.evaluated("eval_loss").iter().map(|loss| loss.to_bits()).collect::<Vec<_>>());
    }
    assert!(found[0] == found[1] && found[1] == found[2], "{found:?}");
}

#[test]
fn a_run_ends_when_evaluations_do_not_improve_and_its_best_checkpoint_stays() {
    let desk = Desk::new();
    let settings = |name: &str| {
        let mut settings = desk.sft(name);
        // Far too fast: the loss on other data rises.
        (settings.optimizer.learning_rate, settings.length) = (0.3, RunLength::Steps(40));
        settings.schedule = ScheduleSettings { shape: ScheduleShape::Constant, ..ScheduleSettings::default() };
        settings.evaluation.interval = Some(2);
        (settings.evaluation.patience, settings.evaluation.keep_best) = (Some(3), true);
        (settings.saving.interval, settings.saving.keep) = (Some(3), 1);
        settings
    };
    let data = || {
        let mut data = conversation_data(9);
        data.evaluation = Some(Examples::Conversations(conversations(16)[9..].to_vec()));
        data
    };
    let (log, outcome, trainer) = train_until(settings("whole"), &model(), data(), u64::MAX).unwrap();
    assert_eq!(outcome, Outcome::EarlyStop);
    let losses = log.evaluated("eval_loss");
    let best = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    assert_eq!(losses.len(), best + 4, "{losses:?}");
    let (step, last) = (log.evaluations[best].0, log.evaluations.last().unwrap().0);
    assert_eq!(trainer.state().evaluation.unwrap().best_step, step);
    let mut steps: Vec<u64> = std::fs::read_dir(desk.path("whole"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_string_lossy().strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    assert_eq!(steps, [step, last]);
    // It ends there again, wherever it was interrupted.
    for at in 1..last {
        let name = format!("part-{at}");
        train_until(settings(&name), &model(), data(), at).unwrap();
        let (_, outcome, _) = train_until(settings(&name), &model(), data(), u64::MAX).unwrap();
        assert_eq!(outcome, Outcome::EarlyStop);
        let of = |name: &str| files(&desk.path(&format!("{name}/step-{last}")));
        assert!(of(&name) == of("whole"), "interrupted after {at}");
    }
}

/// The learning rates of AI2's own runs, all of them to the last digit. What was logged for a step is the rate after it.
#[test]
fn learning_rates_are_those_of_the_released_runs() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/training_curves");
    for (name, rate, share, total, steps) in
        [("olmoe_sft_ai2.csv", 2e-5, 0.03, 303_976, 9_500), ("olmoe_dpo_ai2.csv", 5e-7, 0.1, 182_751, 5_712)]
    {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else {
            eprintln!("skipped: {} is not there", folder.join(name).display());
            continue;
        };
        let settings = ScheduleSettings {
            shape: ScheduleShape::Linear,
            warmup: Warmup::Ratio(share),
            stride: 32,
            total: Some(total),
        };
        let schedule = FinetuneSchedule::new(&settings, rate, steps);
        let mut rows = 0;
        for line in text.lines().skip(1) {
            let mut columns = line.split(',');
            let mut next = || columns.next().expect("a column");
            let (step, expected): (u64, f64) = (next().parse().unwrap(), next().parse().unwrap());
            assert_eq!(schedule.rate_after(step), expected, "{name}, step {step}");
            rows += 1;
        }
        assert_eq!(rows, steps);
    }
}

#[test]
fn the_rate_of_a_step_is_that_before_it() {
    let desk = Desk::new();
    let mut settings = desk.sft("run");
    settings.schedule.warmup = Warmup::Steps(2);
    let (log, trainer) = train(settings, conversation_data(9));
    assert_eq!(log.metric("learning_rate"), [0.0, 0.005, 0.01, 0.005]);
    assert_eq!(trainer.task().steps(), 4);
}

#[test]
fn experts_are_chosen_by_the_data_and_stay_chosen() {
    let desk = Desk::new();
    let settings = |name: &str, score| {
        let mut settings = desk.sft(name);
        (settings.train, settings.saving.interval) = (Vec::new(), Some(2));
        settings.esft = Some(EsftSettings { score, threshold: 0.4, examples: 0 });
        settings
    };
    for score in EsftScore::ALL {
        let name = format!("{score}");
        let (log, whole) = train(settings(&name, *score), conversation_data(9));
        assert_eq!(
            log.notices.iter().filter(|text| text.contains("of the data's use")).count(),
            2,
            "{:?}",
            log.notices
        );
        let trained = &whole.task().record().trained;
        assert_eq!(trained.len(), 6);
        assert!(trained.iter().all(|one| (1..4).contains(&one.experts.as_ref().map_or(0, Vec::len))), "{trained:?}");
        // A run that goes on does not choose anew: its data is not even looked at.
        let part = format!("{score}-part");
        train_until(settings(&part, *score), &model(), conversation_data(9), 2).unwrap();
        let (log, _) = train(settings(&part, *score), conversation_data(9));
        assert!(log.notices.is_empty(), "{:?}", log.notices);
        let of = |name: &str| files(&desk.path(&format!("{name}/step-4")));
        assert!(of(&part) == of(&name));
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let desk = Desk::new();
    let run = |change: &dyn Fn(&mut olmoe_train::finetune::FinetuneSettings, &mut FinetuneData)| {
        let (mut settings, mut data) = (desk.sft("run"), conversation_data(9));
        change(&mut settings, &mut data);
        train_until(settings, &model(), data, 1).map(|_| ()).unwrap_err()
    };
    let error = run(&|_, data| data.train = Examples::Pairs(tuning::pairs(3)));
    assert!(
        error.to_string().contains("sft learns from conversations, and the data holds pairs of answers"),
        "{error}"
    );
    let error = run(&|settings, _| settings.train.clear());
    assert!(matches!(&error, TrainError::Finetune(error) if **error == FinetuneError::NothingTrained), "{error}");
    let error = run(&|settings, _| settings.train = vec!["layers.9".to_owned()]);
    assert!(error.to_string().contains("means no parameter"), "{error}");
    let error = run(&|_, data| data.train = Examples::Conversations(Vec::new()));
    assert!(error.to_string().contains("the training data holds 0"), "{error}");
    let masked = |weights: f32| {
        let mut rows = conversations(3);
        rows[1].weights.fill(weights);
        rows
    };
    let error = run(&|_, data| data.train = Examples::Conversations(masked(0.0)));
    assert!(error.to_string().contains("example 1 of the training data: no token is learned"), "{error}");
    let error = run(&|_, data| {
        let mut rows = conversations(3);
        rows[2].ids[1] = 48;
        data.evaluation = Some(Examples::Conversations(rows));
    });
    assert!(error.to_string().contains("example 2 of the evaluation data: the token 48"), "{error}");
    let error = run(&|_, data| data.train = Examples::Conversations(vec![tuning::example(1, 1, 25)]));
    assert!(error.to_string().contains("25 tokens, and the model's longest sequence has 24"), "{error}");
    let error = run(&|settings, _| (settings.drop_last, settings.batch_size) = (true, 10));
    assert!(error.to_string().contains("the training data holds 9 of at least 10"), "{error}");
}

/// The weights of a run of chosen parts, to be converted as any others: what it trained over its base.
#[test]
fn a_run_of_chosen_parts_is_read_over_its_base() {
    use olmoe_checkpoint::weights::Weights;
    let desk = Desk::new();
    // The base on disk: a run of all parameters.
    train(desk.sft("base"), conversation_data(9));
    let base = olmoe_checkpoint::Checkpoint::open(&desk.path("base/latest")).unwrap();
    let mut under = Model::new(tuning::config(), Precision::Fp32, Held::Trained).unwrap();
    base.load_into(&mut under, &|_| {}).unwrap();
    let mut settings = desk.sft("part");
    settings.train = vec!["layers.1.experts.2".to_owned(), "norms".to_owned()];
    let (_, _, trainer) = train_until(settings, &under, conversation_data(9), u64::MAX).unwrap();
    let tuned = olmoe_train::finetune::Tuned::open(&desk.path("part/latest"), &base).unwrap();
    let mut changed = 0;
    for (id, spec) in base.parameters().to_vec().iter().enumerate() {
        let slabs = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
        for slab in 0..slabs {
            let bytes = tuned.read(id, slab).unwrap();
            let found: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|own| f32::from_le_bytes(*own)).collect();
            let len = spec.num_elements() / slabs;
            if let Some(value) = trainer.model().value(id) {
                assert_eq!(found[..], value[slab * len..(slab + 1) * len], "{} {slab}", spec.name);
            }
            changed += usize::from(bytes[..] != base.read(id, slab).unwrap()[..]);
        }
    }
    // One expert of three matrices, and the norms: two and two of each layer, and the last.
    assert_eq!(changed, 3 + 2 * 4 + 1);
    let error = olmoe_train::finetune::Tuned::open(&desk.path("base/latest"), &base).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("it holds all parameters"), "{error}");
}

#[test]
fn what_is_no_number_ends_the_run_and_is_named() {
    let desk = Desk::new();
    let interrupt = std::sync::atomic::AtomicBool::new(false);
    let base = model();
    let begin = |name: &str| {
        let (settings, data) = (desk.sft(name), conversation_data(9));
        let base = olmoe_train::finetune::BaseModel::of(&base);
        olmoe_train::finetune::begin(settings, base, data, &interrupt, &mut |_| {}).unwrap()
    };
    let mut trainer = begin("run");
    let id = trainer.model().find("layers.1.attention.k_proj.weight").unwrap();
    trainer.model_mut().update(id, |_, x| x.iter_mut().step_by(3).for_each(|x| *x = f32::NAN));
    let error = trainer.run(&interrupt, &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 1, .. }), "{error}");
    assert!(
        error.to_string().contains("the parameter layers.1.attention.k_proj.weight (layer 1) holds NaN"),
        "{error}"
    );
    assert!(!desk.path("run/step-0").exists() && !desk.path("run/step-1").exists());
    // One process at a time.
    let _held = begin("held");
    let error = train_until(desk.sft("held"), &base, conversation_data(9), 1).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Locked { .. }), "{error}");
}
