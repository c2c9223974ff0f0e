//! Requests from the first event to the last: ends, cancellation, errors, memory.

mod tiny;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::Tokenizer;
use olmoe_engine::{
    Completion, Engine, EngineConfig, EngineError, EventKind, FinishReason, GenerationError, Request, Sampling, Stop,
    SubmitError,
};
use olmoe_model::model::{Model, Precision};
use tiny::*;

fn config() -> EngineConfig {
    EngineConfig { max_running: 4, step_tokens: 16, ends: vec![256], ..EngineConfig::default() }
}

fn engine(model: &Arc<Model>, tokenizer: Option<&Arc<Tokenizer>>) -> Engine {
    Engine::new(model.clone(), tokenizer.cloned(), config()).unwrap()
}

/// The outcome of one request.
fn one(engine: &mut Engine, request: Request) -> Completion {
    engine.submit(request).unwrap();
    let mut outcomes = drain(engine);
    assert_eq!(outcomes.len(), 1);
    outcomes.pop_first().unwrap().1
}

/// Settings under which a token always comes.
fn only(id: u32) -> Sampling {
    Sampling { logit_bias: vec![(id, 1e6)], ..Sampling::greedy() }
}

#[test]
fn length_context_and_stop_tokens() {
    let (model, tokenizer) = (model(Precision::Fp32), tokenizer());
    let engine = &mut engine(&model, Some(&tokenizer));
    let prompt = ids(10, 1);
    let a = Request { sampling: only(b'a'.into()), ..Request::new(prompt.clone()) };

    let outcome = one(engine, Request { max_tokens: Some(3), ..a.clone() });
    assert_eq!((outcome.text().as_str(), reason(&outcome)), ("aaa", &FinishReason::Length));
    let usage = outcome.end.unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (10, 3));
    // As far as the context goes.
    for max_tokens in [None, Some(usize::MAX)] {
        let outcome = one(engine, Request { max_tokens, ..a.clone() });
        assert_eq!((outcome.tokens.len(), reason(&outcome)), (CONTEXT - 10, &FinishReason::Length));
    }
    let outcome = one(engine, Request { prompt: ids(CONTEXT - 1, 1), max_tokens: Some(5), ..a.clone() });
    assert_eq!((outcome.tokens.len(), reason(&outcome)), (1, &FinishReason::Length));

    let end = Request { sampling: only(256), max_tokens: Some(6), ..Request::new(prompt.clone()) };
    let outcome = one(engine, end.clone());
    assert_eq!(
        (outcome.ids(), outcome.text(), reason(&outcome)),
        (vec![256], String::new(), &FinishReason::Stop(Stop::Id(256)))
    );
    let outcome = one(engine, Request { ignore_eos: true, ..end.clone() });
    assert_eq!((outcome.ids(), outcome.text(), reason(&outcome)), (vec![256; 6], String::new(), &FinishReason::Length));
    let outcome = one(engine, Request { ignore_eos: true, special: true, max_tokens: Some(2), ..end.clone() });
    assert_eq!(outcome.text(), "<|endoftext|><|endoftext|>");
    let outcome = one(engine, Request { ignore_eos: true, stop_ids: vec![256], ..end.clone() });
    assert_eq!(reason(&outcome), &FinishReason::Stop(Stop::Id(256)));
    // Not before its time, and then at once.
    let outcome = one(engine, Request { min_tokens: 4, ..end });
    assert_eq!((outcome.tokens.len(), reason(&outcome)), (4, &FinishReason::Stop(Stop::Id(256))));
    assert!(outcome.ids()[..3].iter().all(|id| *id != 256));
    let outcome = one(engine, Request { stop_ids: vec![b'a'.into()], ..a });
    assert_eq!((outcome.tokens.len(), outcome.text().as_str()), (1, ""));
}

#[test]
fn stop_strings_in_generated_text() {
    let (model, tokenizer) = (model(Precision::Fp32), tokenizer());
    let engine = &mut engine(&model, Some(&tokenizer));
    let a = Request { sampling: only(b'a'.into()), max_tokens: Some(9), ..Request::new(ids(10, 1)) };
    let outcome = one(engine, Request { stop: vec!["aaaa".into()], ..a.clone() });
    assert_eq!((outcome.tokens.len(), outcome.text().as_str()), (4, ""));
    assert_eq!(reason(&outcome), &FinishReason::Stop(Stop::Text("aaaa".into())));
    // What was held back and was no stop string after all comes at the end.
    let outcome = one(engine, Request { stop: vec!["aaaab".into()], ..a.clone() });
    assert_eq!((outcome.text().as_str(), reason(&outcome)), ("aaaaaaaaa", &FinishReason::Length));
    assert_eq!(outcome.end.unwrap().text, "aaaa");
    let outcome = one(engine, Request { stop: vec!["aa".into()], min_tokens: 5, ..a });
    assert_eq!((outcome.tokens.len(), outcome.text().as_str()), (6, "aaaa"));
    // A character of three bytes, a token each, that is never completed: one U+FFFD, which may be a stop string.
    let half = Request { sampling: only(0xe7), max_tokens: Some(1), ..Request::new(ids(10, 1)) };
    let outcome = one(engine, half.clone());
    assert_eq!((outcome.tokens[0].text.as_str(), outcome.text().as_str()), ("", "\u{fffd}"));
    let outcome = one(engine, Request { stop: vec!["\u{fffd}".into()], ..half });
    assert_eq!((outcome.text().as_str(), reason(&outcome).name()), ("", "stop"));
}

#[test]
fn cancelling_frees_the_place_at_once() {
    let model = model(Precision::Fp32);
    let mut engine = engine(&model, None);
    let long = Request { max_tokens: Some(100), ignore_eos: true, ..Request::new(ids(30, 1)) };
    let several = engine.submit(Request { samples: 3, ..long.clone() }).unwrap();
    let running = engine.submit(long.clone()).unwrap();
    let mut outcomes = Outcomes::new();
    (0..8).for_each(|_| step(&mut engine, &mut outcomes));
    let waiting = engine.submit(long.clone()).unwrap();
    step(&mut engine, &mut outcomes);
    assert_eq!((engine.load().running, engine.load().waiting), (4, 1));
    assert!(engine.cancel(several) && engine.cancel(waiting));
    assert!(!engine.cancel(several), "it is gone");
    assert_eq!((engine.load().running, engine.load().waiting, engine.load().cache_tokens), (1, 0, 130));
    let before = outcomes[&(running, 0)].tokens.len();
    step(&mut engine, &mut outcomes);
    for (of, samples) in [(several, 3), (waiting, 1)] {
        for sample in 0..samples {
            assert_eq!(reason(&outcomes[&(of, sample)]), &FinishReason::Cancelled);
        }
    }
    assert_eq!(outcomes[&(waiting, 0)].tokens.len(), 0);
    assert_eq!(outcomes[&(running, 0)].tokens.len(), before + 1, "the others go on");
    // While its prompt is read.
    let reading = engine.submit(Request { prompt: ids(90, 4), max_tokens: Some(10), ..long.clone() }).unwrap();
    step(&mut engine, &mut outcomes);
    assert!(engine.cancel(reading));
    while !engine.is_idle() {
        step(&mut engine, &mut outcomes);
    }
    assert_eq!(reason(&outcomes[&(reading, 0)]), &FinishReason::Cancelled);
    let expected =
        alone(&model, None, &Request { seed: Some(olmoe_engine::sampling::random::derive(0, running.0)), ..long });
    assert_eq!(without_reuse(outcomes.remove(&(running, 0)).unwrap()), expected[0]);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let (model, tokenizer) = (model(Precision::Fp32), tokenizer());
    let limits = EngineConfig { queue: 3, cache_tokens: 120, ..config() };
    let mut engine = Engine::new(model.clone(), None, limits).unwrap();
    let good = Request { max_tokens: Some(4), ..Request::new(vec![1, 2, 3]) };
    let rows = ROWS;
    for (request, expected) in [
        (Request::new(vec![]), SubmitError::EmptyPrompt),
        (Request::new(ids(CONTEXT, 1)), SubmitError::PromptTooLong { tokens: CONTEXT, context: CONTEXT }),
        (Request::new(vec![1, 300]), SubmitError::PromptId { at: 1, id: 300, rows }),
        (Request { stop_ids: vec![u32::MAX], ..good.clone() }, SubmitError::StopId { id: u32::MAX, rows }),
        (Request { max_tokens: Some(0), ..good.clone() }, SubmitError::NoTokens),
        (Request { min_tokens: 5, ..good.clone() }, SubmitError::MinAboveMax { min: 5, max: 4 }),
        (Request { samples: 0, ..good.clone() }, SubmitError::NoSamples),
        (Request { samples: 4, ..good.clone() }, SubmitError::QueueFull { waiting: 0, asked: 4, room: 3 }),
        (
            Request { samples: usize::MAX, ..good.clone() },
            SubmitError::QueueFull { waiting: 0, asked: usize::MAX, room: 3 },
        ),
        (Request { stop: vec!["x".into()], ..good.clone() }, SubmitError::NoText),
        (Request { stop: vec![String::new()], ..good.clone() }, SubmitError::StopLength { bytes: 0 }),
        (Request { stop: vec!["x".repeat(5000)], ..good.clone() }, SubmitError::StopLength { bytes: 5000 }),
        (Request { stop: vec!["x".into(); 65], ..good.clone() }, SubmitError::TooManyStops { found: 65 }),
        (Request { max_tokens: Some(118), ..good.clone() }, SubmitError::CacheTooSmall { needed: 121, room: 120 }),
        (Request { max_tokens: None, ..good.clone() }, SubmitError::CacheTooSmall { needed: CONTEXT, room: 120 }),
    ] {
        let error = engine.submit(request).unwrap_err();
        assert_eq!(error, expected, "{error}");
    }
    let cold = Sampling { temperature: -1.0, ..Sampling::default() };
    let error = engine.submit(Request { sampling: cold, ..good.clone() }).unwrap_err().to_string();
    assert_eq!(error, "temperature is -1, expected 0 or more");
    assert!(engine.is_idle());
    (0..3).for_each(|_| _ = engine.submit(good.clone()).unwrap());
    assert_eq!(engine.submit(good), Err(SubmitError::QueueFull { waiting: 3, asked: 1, room: 3 }));
    assert_eq!(drain(&mut engine).len(), 3);

    let refused = |config: EngineConfig| Engine::new(model.clone(), Some(tokenizer.clone()), config).err();
    assert_eq!(refused(EngineConfig { max_running: 0, ..config() }), Some(EngineError::NothingRuns));
    let small = EngineError::StepTooSmall { step_tokens: 3, max_running: 4 };
    assert_eq!(refused(EngineConfig { step_tokens: 3, ..config() }), Some(small));
    assert_eq!(refused(EngineConfig { ends: vec![300], ..config() }), Some(EngineError::EndId { id: 300, rows }));
}

#[test]
fn a_request_whose_logits_are_no_numbers_fails_alone() {
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let mut broken = drawn(precision);
        // The last row of the embedding becomes NaN.
        let embedding = broken.find("embed_tokens.weight").unwrap();
        let mut numbers = broken.value(embedding).unwrap().to_vec();
        numbers[299 * WIDTH..].fill(f32::NAN);
        broken.set("embed_tokens.weight", &[ROWS, WIDTH], &numbers).unwrap();
        let broken = Arc::new(broken);
        let good = Request {
            max_tokens: Some(20),
            logprobs: Some(3),
            seed: Some(3),
            sampling: Sampling { below: Some(299), ..Sampling::default() },
            ..Request::new(vec![5; 9])
        };
        let expected = alone(&broken, None, &good);
        assert_eq!(expected[0].tokens.len(), 20);
        let mut engine = engine(&broken, None);
        for round in 0..3 {
            let bad = engine.submit(Request { prompt: vec![5, 5, 5, 299, 7], samples: 2, ..good.clone() }).unwrap();
            let fine = engine.submit(good.clone()).unwrap();
            let mut outcomes = drain(&mut engine);
            for sample in 0..2 {
                let error = GenerationError::NotFinite { tokens: 5, nan: true };
                let outcome = &outcomes[&(bad, sample)];
                assert_eq!((outcome.tokens.len(), reason(outcome)), (0, &FinishReason::Error(error)));
            }
            // Also in the memory that the bad one left.
            let found = without_reuse(outcomes.remove(&(fine, 0)).unwrap());
            assert_eq!(found, expected[0], "{precision:?}, round {round}");
        }
        let none = Sampling { below: Some(0), ..Sampling::default() };
        let outcome = one(&mut engine, Request { sampling: none, ..good });
        assert_eq!(reason(&outcome), &FinishReason::Error(GenerationError::NothingLeft { tokens: 9 }));
        assert_eq!(engine.load().running, 0);
    }
}

#[test]
fn an_engine_lives_in_a_thread_of_its_own() {
    let (model, tokenizer) = (model(Precision::Fp32), tokenizer());
    let mut engine = engine(&model, Some(&tokenizer));
    drop((model, tokenizer));
    let request = Request { sampling: only(b'a'.into()), max_tokens: Some(3), ..Request::new(ids(4, 1)) };
    let thread = std::thread::spawn(move || one(&mut engine, request).text());
    assert_eq!(thread.join().unwrap(), "aaa");
}

#[test]
fn a_list_is_run_to_its_end_beside_other_work() {
    let model = model(Precision::Fp32);
    let limits = EngineConfig { queue: 3, ..config() };
    let mut engine = Engine::new(model.clone(), None, limits).unwrap();
    let good = |seed: usize, samples: usize| Request {
        max_tokens: Some(5 + seed % 3),
        seed: Some(seed as u64),
        samples,
        ..Request::new(ids(3 + seed, seed))
    };
    // Longer than the list: it goes on afterwards.
    let other = Request { max_tokens: Some(80), ignore_eos: true, seed: Some(3), ..Request::new(ids(5, 9)) };
    let before = engine.submit(other.clone()).unwrap();
    // More than the queue holds, more samples than it ever holds, and one that nothing can be done with.
    let mut requests: Vec<Request> = (0..9).map(|seed| good(seed, 1 + seed % 3)).collect();
    requests.insert(4, Request::new(vec![]));
    requests.insert(6, good(0, 4));
    let done = engine.complete_all(requests.clone(), &AtomicBool::new(false)).unwrap();
    assert_eq!(done.len(), requests.len());
    for (place, (found, request)) in done.into_iter().zip(&requests).enumerate() {
        match place {
            4 => assert_eq!(found, Err(SubmitError::EmptyPrompt)),
            6 => assert!(matches!(found, Err(SubmitError::QueueFull { asked: 4, room: 3, .. })), "{found:?}"),
            _ => {
                let found: Vec<Completion> = found.unwrap().into_iter().map(without_reuse).collect();
                assert_eq!(found, alone(&model, None, request), "request {place}");
            }
        }
    }
    let outcome = drain(&mut engine).remove(&(before, 0)).unwrap();
    assert_eq!(without_reuse(outcome), alone(&model, None, &other)[0]);
    assert_eq!(engine.complete_all([], &AtomicBool::new(false)), Some(Vec::new()));
}

#[test]
fn a_list_ends_early_when_it_is_interrupted() {
    let model = model(Precision::Fp32);
    let request = Request { max_tokens: Some(100), ignore_eos: true, ..Request::new(ids(6, 1)) };
    for by_flag in [true, false] {
        let mut engine = engine(&model, None);
        let (interrupt, mut tokens, mut ended) = (AtomicBool::new(false), 0, Vec::new());
        let whole = engine.run_all(vec![request.clone(); 3000], &interrupt, |place, what| {
            match what.unwrap().kind {
                EventKind::Token(_) => tokens += 1,
                EventKind::Finished(end) => ended.push((place, end.reason)),
            }
            let enough = tokens == 10;
            interrupt.fetch_or(by_flag && enough, Ordering::Relaxed);
            if enough && !by_flag { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(!whole && engine.is_idle());
        // All that had begun are told to have ended, each once, and the rest was never begun.
        ended.sort_by_key(|(place, _)| *place);
        assert!(ended.iter().map(|(place, _)| *place).eq(0..ended.len()), "{ended:?}");
        assert!((4..3000).contains(&ended.len()) && ended.iter().all(|(_, reason)| *reason == FinishReason::Cancelled));
        assert_eq!(engine.complete_all([request.clone()], &AtomicBool::new(true)), None);
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_those_that_generate() {
    let model = model(Precision::Fp32);
    let mut engine = engine(&model, None);
    let generating =
        engine.submit(Request { max_tokens: Some(60), ignore_eos: true, ..Request::new(ids(3, 1)) }).unwrap();
    let mut outcomes = Outcomes::new();
    step(&mut engine, &mut outcomes);
    let long = engine.submit(Request { max_tokens: Some(5), ..Request::new(ids(100, 2)) }).unwrap();
    let mut steps = 0;
    while !outcomes.contains_key(&(long, 0)) {
        let before = outcomes[&(generating, 0)].tokens.len();
        step(&mut engine, &mut outcomes);
        assert_eq!(outcomes[&(generating, 0)].tokens.len(), before + 1);
        steps += 1;
    }
    // 16 tokens a step, one of them the other's.
    assert_eq!(steps, 100usize.div_ceil(15));
}

#[test]
fn text_follows_the_prompt() {
    let (model, tokenizer) = (model(Precision::Fp32), tokenizer());
    let engine = &mut engine(&model, Some(&tokenizer));
    // The ids are the bytes: the answer completes a character that the prompt begins.
    let prompt = vec![b'a'.into(), 0xE7, 0x9C];
    let request = Request { sampling: only(0x9F), max_tokens: Some(1), ..Request::new(prompt) };
    assert_eq!(one(engine, request.clone()).text(), "真");
    assert_eq!(one(engine, Request { sampling: only(b'b'.into()), ..request }).text(), "b");
}

#[test]
fn a_check_says_what_submitting_would() {
    let model = model(Precision::Fp32);
    let engine = engine(&model, None);
    assert_eq!(engine.check(&Request::new(vec![1])), Ok(()));
    assert_eq!(engine.check(&Request::new(vec![])), Err(SubmitError::EmptyPrompt));
    assert!(engine.is_idle());
}
