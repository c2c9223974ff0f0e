//! Adapters, dropout and noise through the loop: what changes, where losses begin, and what a resumed run comes to.

mod tuning;

use olmoe_data::instruct::Packing;
use olmoe_model::adapter::{Adapter, AdapterInit, Sharing};
use olmoe_model::model::{Keep, Model, Precision};
use olmoe_model::parameters::{ModulePart, ParameterKind, parameters};
use olmoe_train::finetune::{
    self, BaseModel, DpoSettings, Examples, FinetuneData, FinetuneSettings, KtoTraining, Method, MicroBatch,
    PackingSettings, ReferenceSettings, ReferenceTime, RunLength, ScheduleSettings, ScheduleShape, SftSettings,
};
use olmoe_train::preference::kto::KtoSettings;
use olmoe_train::preference::{LossType, PreferenceSettings};
use std::sync::atomic::AtomicBool;
use tuning::{Desk, Log, bits, conversation_data, conversations, files, labelled, model, pairs, train, train_until};

/// Adapters of every matrix; DoRA where it can be, if it is asked for.
fn everywhere(dora: bool, dropout: f32) -> Vec<Adapter> {
    let matrix = |kind| {
        use ParameterKind::{Embedding, Expert, Linear, Router};
        matches!(kind, Embedding | Expert | Linear | Router)
    };
    let adapter = |module: olmoe_model::parameters::ModuleId| {
        let dora = dora && !matches!(module.part, ModulePart::Embedding | ModulePart::Head);
        Adapter {
            module,
            rank: 2,
            scale: 2.0,
            dora,
            share: Sharing::PerExpert,
            dropout: if dora { 0.0 } else { dropout },
            init: AdapterInit::Kaiming,
        }
    };
    parameters(&tuning::config())
        .into_iter()
        .filter(|spec| matrix(spec.kind))
        .map(|spec| adapter(spec.module))
        .collect()
}

fn adapted(desk: &Desk, name: &str, method: Method) -> FinetuneSettings {
    let mut settings = desk.settings(name, method);
    (settings.train, settings.adapters) = (Vec::new(), everywhere(false, 0.0));
    settings
}

fn sft() -> Method {
    Method::Sft(SftSettings::default())
}

fn dpo(when: ReferenceTime) -> Method {
    let reference = ReferenceSettings { when, ..ReferenceSettings::default() };
    Method::Dpo(DpoSettings { preference: PreferenceSettings::default(), reference })
}

fn pair_data(count: u32) -> FinetuneData {
    FinetuneData { train: Examples::Pairs(pairs(count)), evaluation: None }
}

#[test]
fn adapters_change_and_the_model_under_them_does_not() {
    let desk = Desk::new();
    for dora in [false, true] {
        let mut settings = adapted(&desk, &format!("run-{dora}"), sft());
        settings.adapters = everywhere(dora, 0.0);
        let (log, trainer) = train(settings, conversation_data(9));
        let (whole, _) = train(desk.sft(&format!("whole-{dora}")), conversation_data(9));
        assert_eq!(log.losses()[0].to_bits(), whole.losses()[0].to_bits(), "adapters begin as nothing");
        assert!(log.losses()[3] < log.losses()[0], "{:?}", log.losses());
        let (start, after) = (model(), trainer.model());
        for id in 0..start.parameters().len() {
            let same = after.value(id).is_none_or(|value| value[..] == start.value(id).unwrap()[..]);
            assert!(same, "{}", start.parameters()[id].name);
        }
        for spec in &after.parameters()[start.parameters().len()..] {
            let value = after.value(after.find(&spec.name).unwrap()).unwrap();
            let changed = match spec.kind {
                ParameterKind::LoraB => value.iter().any(|x| *x != 0.0),
                _ => true,
            };
            assert!(changed, "{} is what it was", spec.name);
        }
        let folder = desk.path(&format!("run-{dora}/step-4"));
        let bytes = std::fs::read(folder.join("trained-00001-of-00001.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.names().iter().all(|name| name.contains(".lora_")));
        assert_eq!(tensors.len(), after.parameters().len() - start.parameters().len());
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("finetune.json")).unwrap()).unwrap();
        assert_eq!(record["adapters"][1]["rank"], 2);
    }
}

#[test]
fn a_run_of_adapters_goes_on_at_any_step_with_dropout_noise_and_packing() {
    let desk = Desk::new();
    let settings = |name: &str| {
        let mut settings = adapted(&desk, name, sft());
        (settings.adapters, settings.neftune_alpha) = (everywhere(false, 0.2), Some(5.0));
        settings.packing = Some(PackingSettings { length: 20, rule: Packing::BestFit });
        (settings.batch_size, settings.length, settings.lora_plus) = (2, RunLength::Epochs(2.0), 4.0);
        (settings.saving.interval, settings.saving.keep) = (Some(1), -1);
        settings
    };
    let (whole, trainer) = train(settings("whole"), conversation_data(9));
    let steps = trainer.task().steps();
    for last in 1..steps {
        let name = format!("part-{last}");
        train_until(settings(&name), &model(), conversation_data(9), last).unwrap();
        let (rest, _) = train(settings(&name), conversation_data(9));
        assert_eq!(rest.losses(), whole.losses()[last as usize..], "{last}");
        let of = |name: &str| files(&desk.path(&format!("{name}/step-{steps}")));
        assert!(of(&name) == of("whole"), "interrupted after {last}");
    }
}

#[test]
fn randomness_is_of_the_token_and_in_training_alone() {
    let desk = Desk::new();
    let run = |name: &str, by: usize, dropout: f32, alpha: Option<f64>, keep: Keep| {
        let mut settings = adapted(&desk, name, sft());
        // Adapters that are something, so that their dropout shows.
        settings.train = vec!["all".to_owned()];
        (settings.adapters, settings.neftune_alpha) = (everywhere(false, dropout), alpha);
        (settings.micro_batch, settings.keep, settings.length) =
            (MicroBatch::Examples(by), Some(keep), RunLength::Steps(2));
        settings.evaluation.at_start = true;
        let mut data = conversation_data(9);
        data.evaluation = Some(Examples::Conversations(conversations(12)[9..].to_vec()));
        train(settings, data).0
    };
    let plain = run("plain", 2, 0.0, None, Keep::Everything);
    let noisy = run("noisy", 2, 0.3, Some(5.0), Keep::Everything);
    let dropped = run("dropped", 2, 0.3, None, Keep::Everything);
    assert_ne!(plain.losses()[0], noisy.losses()[0]);
    // The adapters are nothing in the first step.
    assert_eq!(plain.losses()[0], dropped.losses()[0]);
    assert_ne!(plain.losses()[1], dropped.losses()[1]);
    assert_eq!(plain.evaluated("eval_loss")[0], noisy.evaluated("eval_loss")[0]);
    for (by, keep) in [(1, Keep::Everything), (3, Keep::FeedForward), (4, Keep::BlockInputs)] {
        let other = run(&format!("noisy-{by}"), by, 0.3, Some(5.0), keep);
        assert_eq!(other.losses()[0].to_bits(), noisy.losses()[0].to_bits(), "{by}");
        assert!((other.losses()[1] - noisy.losses()[1]).abs() < 1e-5 * noisy.losses()[1], "{by}");
    }
}

#[test]
fn lora_b_has_its_own_rate() {
    let desk = Desk::new();
    let b_after_a_step = |name: &str, factor: f64| {
        let mut settings = adapted(&desk, name, sft());
        (settings.lora_plus, settings.length) = (factor, RunLength::Steps(1));
        settings.schedule = ScheduleSettings { shape: ScheduleShape::Constant, ..ScheduleSettings::default() };
        let (_, trainer) = train(settings, conversation_data(9));
        let of = |name: &str| trainer.model().value(trainer.model().find(name).unwrap()).unwrap().to_vec();
        (of("layers.0.attention.q_proj.lora_a"), of("layers.0.attention.q_proj.lora_b"))
    };
    let ((a, b), (other_a, other_b)) = (b_after_a_step("one", 1.0), b_after_a_step("eight", 8.0));
    assert_eq!(a, other_a);
    for (b, other) in b.iter().zip(&other_b) {
        assert!((other - 8.0 * b).abs() <= 1e-6 && *b != 0.0, "{b} {other}");
    }
}

#[test]
fn preferences_begin_at_zero_with_adapters_and_every_reference_is_the_same() {
    let desk = Desk::new();
    let run = |name: &str, method: Method, data: FinetuneData| {
        let mut settings = adapted(&desk, name, method);
        settings.adapters = everywhere(false, 0.2);
        let (log, trainer) = train(settings, data);
        (log.losses(), log.metric("rewards/margins"), bits(trainer.model()))
    };
    let [before, live] =
        [ReferenceTime::Before, ReferenceTime::Live].map(|when| run(&format!("dpo-{when}"), dpo(when), pair_data(9)));
    assert_eq!((before.0[0], before.1[0]), (2f64.ln(), 0.0));
    assert!(before == live, "{:?} {:?}", before.0, live.0);
    let kto = |when| {
        let reference = ReferenceSettings { when, ..ReferenceSettings::default() };
        Method::Kto(KtoTraining { kto: KtoSettings::default(), reference })
    };
    let data = || FinetuneData { train: Examples::Labelled(labelled(9)), evaluation: None };
    let [before, live] =
        [ReferenceTime::Before, ReferenceTime::Live].map(|when| run(&format!("kto-{when}"), kto(when), data()));
    assert_eq!(before.0[0], 0.5);
    assert!(before == live);
}

/// Preference tuning that goes on with adapters compares with the model that these make, not with the one under them.
#[test]
fn the_reference_of_a_continued_adapter_is_the_adapter() {
    let desk = Desk::new();
    let (_, first) = train(adapted(&desk, "first", sft()), conversation_data(9));
    let (under, tuned) = (model(), first.model());
    let fill = |other: &mut Model| {
        for id in under.parameters().len()..tuned.parameters().len() {
            let spec = &tuned.parameters()[id];
            other.set(&spec.name, &spec.shape, tuned.value(id).expect("adapters are numbers"))?;
        }
        Ok(())
    };
    for when in [ReferenceTime::Before, ReferenceTime::Live] {
        let (mut log, interrupt) = (Log::default(), AtomicBool::new(false));
        let settings = adapted(&desk, &format!("second-{when}"), dpo(when));
        let base = BaseModel::of(&under).with_adapters("first", fill);
        let mut trainer =
            finetune::begin(settings, base, pair_data(9), &interrupt, &mut |event| log.take(&event)).unwrap();
        let start = bits(trainer.model());
        trainer.run(&interrupt, &mut |event| log.take(&event)).unwrap();
        assert_eq!((log.losses()[0], log.metric("rewards/margins")[0]), (2f64.ln(), 0.0), "{when}");
        // It goes on training: every adapter changes.
        assert!(log.losses()[3] < log.losses()[0] && start != bits(trainer.model()));
    }
}

#[test]
fn prompts_computed_once_have_the_bits_of_two_sequences() {
    let desk = Desk::new();
    let run = |name: &str, share: bool, loss: LossType| {
        let reference = ReferenceSettings::default();
        let preference = PreferenceSettings::of(loss);
        let mut settings = desk.settings(name, Method::Dpo(DpoSettings { preference, reference }));
        settings.share_prompts = share;
        let (log, _) = train(settings, pair_data(9));
        (log.losses(), log.metric("logps/chosen"), log.metric("logps/rejected"), log.metric("entropy"))
    };
    for loss in [LossType::Sigmoid, LossType::Simpo, LossType::Wpo, LossType::Aot] {
        let (one, two) = (run(&format!("{loss}-one"), true, loss), run(&format!("{loss}-two"), false, loss));
        for (a, b) in [(&one.0, &two.0), (&one.1, &two.1), (&one.2, &two.2), (&one.3, &two.3)] {
            assert_eq!(a[0].to_bits(), b[0].to_bits(), "{loss}");
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs().max(1.0)), "{loss}: {a:?} {b:?}");
        }
    }
}

#[test]
fn the_plan_counts_what_a_run_holds() {
    let desk = Desk::new();
    let under = model();
    let data = conversation_data(9);
    let cases: [(&str, &[&str], Vec<Adapter>); 4] = [
        ("all", &["all"], Vec::new()),
        ("router", &["router"], Vec::new()),
        ("expert", &["layers.0.experts.1"], Vec::new()),
        ("lora", &[], everywhere(true, 0.0)),
    ];
    for (name, patterns, adapters) in cases {
        let mut settings = desk.sft(name);
        settings.train = patterns.iter().map(ToString::to_string).collect();
        settings.adapters = adapters;
        let plan = finetune::plan(&settings, &BaseModel::of(&under), &data.train).unwrap();
        let (_, trainer) = train(settings.clone(), data.clone());
        assert_eq!(plan.parameters, trainer.model().bytes() as u64, "{name}");
        assert_eq!(plan.gradients, trainer.model().gradients().bytes() as u64, "{name}");
        let saved: u64 = files(&desk.path(&format!("{name}/step-4")))
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert!((plan.checkpoint..plan.checkpoint + 30_000).contains(&saved), "{name}: {plan:?}, {saved}");
        assert!(plan.to_string().contains("activations of"), "{plan}");
        assert_eq!(trainer.task().plan(), &plan);
        // Less memory, less kept; too little is refused before anything is made.
        let tight = FinetuneSettings { max_memory: Some(plan.total() - 1), ..settings.clone() };
        let less = finetune::plan(&tight, &BaseModel::of(&under), &data.train).unwrap();
        assert!(less.keep != Keep::Everything && less.activations < plan.activations, "{less:?}");
        let mut none = FinetuneSettings { max_memory: Some(1000), ..settings };
        none.saving.folder = desk.path("none");
        let error = train_until(none, &under, data.clone(), 1).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("GB are free"), "{error}");
    }
}

/// A base in the blocks of a GGUF file stays in them.
#[test]
fn adapters_are_trained_over_quantised_blocks() {
    use olmoe_checkpoint::companions::Companions;
    use olmoe_checkpoint::convert::{Conversion, Target};
    use olmoe_checkpoint::gguf::mix::Mix;
    use olmoe_checkpoint::weights::Random;
    let desk = Desk::new();
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 24,
        "pad_token_id": 1, "eos_token_id": 2
    }"#;
    let mut config = olmoe_model::config::ModelConfig::from_hf_json(json).unwrap().config;
    config.init.std = 0.2;
    let path = desk.path("base.gguf");
    let (random, companions) =
        (Random::new(config.clone(), 7, olmoe_tensor::dtype::DType::F32), Companions::named("toy"));
    let target = Target::Gguf { mix: Some(Mix::Q8_0) };
    Conversion::plan(&random, &companions, target).unwrap().run(&path, false, &|_| {}).unwrap();
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        for patterns in [&[][..], &["router"]] {
            let run = |when: ReferenceTime, last: u64| {
                let name = format!("{}-{}-{when}", precision.name(), patterns.len());
                let mut settings = adapted(&desk, &name, dpo(when));
                settings.precision = precision;
                settings.train = patterns.iter().map(ToString::to_string).collect();
                let (mut log, interrupt) = (Log::default(), AtomicBool::new(false));
                let base = BaseModel::open(&path).unwrap();
                let plan = finetune::plan(&settings, &base, &pair_data(9).train).unwrap();
                let mut trainer =
                    finetune::begin(settings, base, pair_data(9), &interrupt, &mut |event| log.take(&event)).unwrap();
                trainer
                    .run(&interrupt, &mut |event| {
                        log.take(&event);
                        if let olmoe_train::trainer::Event::Step(report, _) = &event {
                            interrupt.fetch_or(report.step >= last, std::sync::atomic::Ordering::Relaxed);
                        }
                    })
                    .unwrap();
                let model = trainer.model();
                let experts = model.find("layers.0.moe.experts.gate_proj.weight").unwrap();
                assert!(model.encoding(experts).is_some() && model.value(experts).is_none());
                if when == ReferenceTime::Before {
                    assert_eq!(plan.parameters, model.bytes() as u64, "{plan:?}");
                }
                (log.losses(), bits(model))
            };
            let before = run(ReferenceTime::Before, u64::MAX);
            assert_eq!(before.0[0], 2f64.ln());
            assert!(before.0[3] < before.0[0], "{:?}", before.0);
            let first = run(ReferenceTime::Live, 2);
            let rest = run(ReferenceTime::Live, u64::MAX);
            assert_eq!([first.0, rest.0].concat(), before.0);
            assert!(rest.1 == before.1);
        }
    }
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    let desk = Desk::new();
    let mut found = Vec::new();
    for threads in [1, 2, 3] {
        olmoe_tensor::threads::set_num_threads(threads);
        let mut settings = adapted(&desk, &format!("sft-{threads}"), sft());
        (settings.adapters, settings.neftune_alpha) = (everywhere(true, 0.1), Some(5.0));
        settings.train = vec!["layers.1".to_owned()];
        settings.packing = Some(PackingSettings { length: 20, rule: Packing::BestFit });
        train(settings, conversation_data(9));
        train(adapted(&desk, &format!("dpo-{threads}"), dpo(ReferenceTime::Before)), pair_data(9));
        found.push(["sft", "dpo"].map(|name| files(&desk.path(&format!("{name}-{threads}/step-4")))));
    }
    assert!(found[0] == found[1] && found[0] == found[2]);
}
