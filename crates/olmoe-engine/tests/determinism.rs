//! What a request gets depends on the model and the request alone, bit for bit.

mod tiny;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use olmoe_engine::sampling::random::Stream;
use olmoe_engine::{Completion, Engine, EngineConfig, Request, Sampling};
use olmoe_model::model::{Model, Precision};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::threads::{num_threads, set_num_threads};
use tiny::*;

const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::AmpBf16];

/// The number of threads is one for the process: one test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests of all kinds: prompts of 1 to 80 tokens, some of which begin alike.
fn requests() -> Vec<Request> {
    let base = ids(80, 3);
    let prompts = [1, 2, 31, 32, 33, 47, 80, 64, 65, 5, 40].into_iter().enumerate().map(|(i, len)| match i % 3 {
        0 => ids(len, i + 10),
        _ => base[..len].to_vec(),
    });
    let settings = [
        Sampling::greedy(),
        Sampling { temperature: 0.9, top_k: 50, top_p: 0.95, min_p: 0.01, ..Sampling::default() },
        Sampling::default(),
        Sampling { repetition_penalty: 1.3, frequency_penalty: 0.2, presence_penalty: 0.1, ..Sampling::default() },
        Sampling { typical_p: 0.8, logit_bias: vec![(5, 2.0), (7, f32::NEG_INFINITY)], ..Sampling::default() },
    ];
    prompts
        .enumerate()
        .map(|(i, prompt)| Request {
            max_tokens: Some([9, 14, 1, 20, 6][i % 5]),
            sampling: settings[i % settings.len()].clone(),
            seed: Some(i as u64),
            samples: 1 + usize::from(i % 4 == 3) * 2,
            logprobs: Some(i % 4),
            experts: i % 2 == 0,
            stop: if i % 3 == 0 { vec!["e".into(), "真谛".into()] } else { vec![] },
            special: i % 2 == 1,
            ..Request::new(prompt)
        })
        .collect()
}

/// What each gets alone, one list of samples a request.
fn expected(model: &Arc<Model>, requests: &[Request]) -> Vec<Vec<Completion>> {
    let tokenizer = tokenizer();
    requests.iter().map(|request| alone(model, Some(&tokenizer), request)).collect()
}

#[track_caller]
fn assert_same(outcomes: Outcomes, expected: &[Vec<Completion>], what: &str) {
    let mut found: Vec<Vec<Completion>> = Vec::new();
    for ((request, _), outcome) in outcomes {
        found.resize_with(found.len().max(request.0 as usize + 1), Vec::new);
        found[request.0 as usize].push(without_reuse(outcome));
    }
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "{what}: request {at}");
    }
}

fn limits(max_running: usize, step_tokens: usize, kept_tokens: usize) -> EngineConfig {
    EngineConfig { max_running, step_tokens, kept_tokens, ends: vec![256], ..EngineConfig::default() }
}

#[test]
fn alone_and_in_batches_of_2_to_16_in_every_order() {
    let _turn = turn();
    let (tokenizer, requests) = (tokenizer(), requests());
    for precision in PRECISIONS {
        let model = model(precision);
        let expected = expected(&model, &requests);
        assert!(expected.iter().flatten().any(|outcome| outcome.tokens.len() > 8), "there is something to compare");
        for batch in 2..=16 {
            let mut engine = Engine::new(model.clone(), Some(tokenizer.clone()), limits(batch, 512, 0)).unwrap();
            requests.iter().for_each(|request| _ = engine.submit(request.clone()).unwrap());
            assert_same(drain(&mut engine), &expected, &format!("{precision:?}, {batch} at once"));
        }
        // They come and go at any step.
        let mut engine = Engine::new(model.clone(), Some(tokenizer.clone()), limits(6, 32, 0)).unwrap();
        let mut outcomes = Outcomes::new();
        for (i, request) in requests.iter().enumerate() {
            engine.submit(request.clone()).unwrap();
            (0..i % 4).for_each(|_| step(&mut engine, &mut outcomes));
        }
        while !engine.is_idle() {
            step(&mut engine, &mut outcomes);
        }
        assert_same(outcomes, &expected, &format!("{precision:?}, one after the other"));
    }
}

#[test]
fn prompts_in_pieces_of_every_size() {
    let _turn = turn();
    let (tokenizer, requests) = (tokenizer(), requests());
    for precision in PRECISIONS {
        let model = model(precision);
        let expected = expected(&model, &requests);
        for chunk in 1..=81 {
            // Alone for the exact size, together where all kinds of pieces meet.
            let together = 1 + chunk % 5;
            let mut engine =
                Engine::new(model.clone(), Some(tokenizer.clone()), limits(together.min(chunk), chunk, 0)).unwrap();
            requests.iter().for_each(|request| _ = engine.submit(request.clone()).unwrap());
            assert_same(drain(&mut engine), &expected, &format!("{precision:?}, {chunk} tokens a step"));
        }
    }
}

#[test]
fn keys_and_values_of_others() {
    let _turn = turn();
    let (tokenizer, requests) = (tokenizer(), requests());
    for precision in PRECISIONS {
        let model = model(precision);
        let expected = expected(&model, &requests);
        for (running, kept) in [(1, 4096), (3, 4096), (1, 100), (4, 60)] {
            let mut engine = Engine::new(model.clone(), Some(tokenizer.clone()), limits(running, 16, kept)).unwrap();
            for round in 0..2 {
                for request in &requests {
                    engine.submit(request.clone()).unwrap();
                }
                let outcomes = drain(&mut engine);
                let reused: usize =
                    outcomes.values().map(|outcome| outcome.end.as_ref().unwrap().usage.reused_tokens).sum();
                assert!(reused > 50, "{reused} tokens reused");
                assert!(engine.load().kept_tokens <= kept);
                let first = round * requests.len() as u64;
                let outcomes = outcomes.into_iter();
                let renumbered =
                    outcomes.map(|((id, sample), outcome)| ((olmoe_engine::RequestId(id.0 - first), sample), outcome));
                assert_same(renumbered.collect(), &expected, &format!("{precision:?}, {running} at once, {kept} kept"));
            }
        }
    }
}

#[test]
fn every_length_of_a_common_beginning() {
    let _turn = turn();
    for precision in PRECISIONS {
        let model = model(precision);
        let prompt = ids(70, 3);
        for common in 1..70 {
            let mut other = prompt.clone();
            other[common..].iter_mut().for_each(|id| *id = (*id + 1) % ROWS as u32);
            let request = Request {
                max_tokens: Some(3),
                sampling: Sampling::greedy(),
                logprobs: Some(2),
                ..Request::new(prompt.clone())
            };
            let expected = alone(&model, None, &request);
            let mut engine = Engine::new(model.clone(), None, limits(2, 512, 4096)).unwrap();
            engine.submit(Request { max_tokens: Some(1), ..Request::new(other) }).unwrap();
            drain(&mut engine);
            engine.submit(request).unwrap();
            let found = drain(&mut engine).into_values().next().unwrap();
            assert_eq!(found.end.as_ref().unwrap().usage.reused_tokens, common);
            assert_eq!([without_reuse(found)], expected[..], "{precision:?}, {common} tokens in common");
        }
    }
}

#[test]
fn every_type_of_cache_and_of_weights() {
    let _turn = turn();
    let (tokenizer, requests, before) = (tokenizer(), requests(), num_threads());
    let formats = BlockFormat::ALL.map(|format| (Precision::AmpBf16, Some(format)));
    let weights = [(Precision::Fp32, None), (Precision::AmpBf16, None)].into_iter().chain(formats);
    let mut batch = 1;
    for (precision, format) in weights {
        let model = wide_model(precision, format);
        let mut all: Vec<Vec<Vec<Completion>>> = Vec::new();
        for kind in CacheType::ALL {
            let cache_type = Some(kind);
            set_num_threads(1);
            let alone = |request| alone_with(&model, Some(&tokenizer), request, cache_type);
            let expected: Vec<_> = requests.iter().map(alone).collect();
            // Every size of a batch comes up twice.
            batch = batch % 16 + 1 + usize::from(batch == 16);
            let runs = [(1, 1, 0, 2), (3, 3, 0, 1), (5, 7, 0, 2), (batch, 64, 0, 2), (batch, 512, 1000, 1)];
            for (running, tokens, kept, threads) in runs {
                set_num_threads(threads);
                let config = EngineConfig { cache_type, ..limits(running, tokens, kept) };
                let mut engine = Engine::new(model.clone(), Some(tokenizer.clone()), config).unwrap();
                requests.iter().for_each(|request| _ = engine.submit(request.clone()).unwrap());
                let what = format!(
                    "{precision:?}, {:?}, {} cache, {running} at once, {tokens} tokens a step, {kept} kept, {threads} threads",
                    format.map(BlockFormat::name),
                    kind.name()
                );
                assert_same(drain(&mut engine), &expected, &what);
            }
            assert!(!all.contains(&expected), "the type of the cache shows");
            all.push(expected);
        }
        let plain: Vec<_> = requests.iter().map(|request| alone(&model, Some(&tokenizer), request)).collect();
        assert_eq!(all.iter().position(|one| *one == plain), Some(usize::from(precision == Precision::AmpBf16)));
        set_num_threads(before);
    }
}

#[test]
fn threads() {
    let _turn = turn();
    let (tokenizer, requests, before) = (tokenizer(), requests(), num_threads());
    for precision in PRECISIONS {
        let model = model(precision);
        set_num_threads(1);
        let expected = expected(&model, &requests);
        for threads in [1, 2] {
            set_num_threads(threads);
            let mut engine = Engine::new(model.clone(), Some(tokenizer.clone()), limits(5, 24, 1000)).unwrap();
            requests.iter().for_each(|request| _ = engine.submit(request.clone()).unwrap());
            assert_same(drain(&mut engine), &expected, &format!("{precision:?}, {threads} threads"));
        }
        set_num_threads(before);
    }
}

#[test]
fn the_prompt_of_several_samples_is_read_once() {
    let _turn = turn();
    let model = model(Precision::Fp32);
    let request = Request { max_tokens: Some(12), samples: 6, seed: Some(1), ..Request::new(ids(50, 2)) };
    let mut engine = Engine::new(model.clone(), None, limits(6, 32, 0)).unwrap();
    engine.submit(request.clone()).unwrap();
    let outcomes = drain(&mut engine);
    let reused: Vec<usize> =
        outcomes.values().map(|outcome| outcome.end.as_ref().unwrap().usage.reused_tokens).collect();
    assert_eq!(reused, [0, 49, 49, 49, 49, 49]);
    let mut texts: Vec<Vec<u32>> = outcomes.values().map(Completion::ids).collect();
    // The first sample of several is the sample of one.
    assert_eq!(texts[0], alone(&model, None, &Request { samples: 1, ..request.clone() })[0].ids());
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 6, "each sample has draws of its own");
    let other = alone(&model, None, &Request { seed: Some(2), ..request });
    assert!(other.iter().all(|outcome| !texts.contains(&outcome.ids())), "another seed gives other texts");
    assert_ne!(Stream::new(1, 0).uniform(), Stream::new(1, 1).uniform());
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let _turn = turn();
    use olmoe_model::batch::Batch;
    use olmoe_model::model::{Activations, Keep};
    for precision in PRECISIONS {
        let model = model(precision);
        // Settings that change the choice change no log-probability.
        let sampling =
            Sampling { temperature: 1.7, repetition_penalty: 1.5, logit_bias: vec![(3, 5.0)], ..Sampling::default() };
        let request =
            Request { max_tokens: Some(30), sampling, logprobs: Some(4), experts: true, ..Request::new(ids(20, 5)) };
        let outcome = &alone(&model, None, &request)[0];
        let all = [request.prompt.clone(), outcome.ids()].concat();
        let mut activations = Activations::new(Keep::Nothing);
        let batch = Batch::uniform(&all, all.len()).unwrap();
        let logits = model.logits(&batch, &mut activations).unwrap();
        let targets: Vec<u32> = all[1..].iter().copied().chain([0]).collect();
        let log_probs = model.log_probs(&activations, &targets).unwrap();
        for (i, token) in outcome.tokens.iter().enumerate() {
            let row = 19 + i;
            assert!((token.logprob.unwrap() - f64::from(log_probs.logp_t[row])).abs() < 1e-5);
            let mut order: Vec<u32> = (0..ROWS as u32).collect();
            order.sort_by(|a, b| logits.row(row)[*b as usize].total_cmp(&logits.row(row)[*a as usize]));
            assert_eq!(token.alternatives.iter().map(|x| x.id).collect::<Vec<_>>(), order[..4]);
            let experts: Vec<_> =
                activations.routing.layers.iter().map(|layer| layer.routing.ids_tk.row(row).to_vec()).collect();
            assert_eq!(token.experts, experts, "the experts of the pass that chose the token");
        }
    }
}
