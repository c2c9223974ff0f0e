//! Answers of a model in memory: the same whatever is asked beside them, and those of the engine and the scorer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::conversation::ConversationTemplate;
use olmoe_data::{Message, SpecialTokens, Tokenizer, Vocabulary};
use olmoe_engine::{Engine, EngineConfig, Sampling, ScorerConfig};
use olmoe_eval::task::Prompt;
use olmoe_eval::{Answer, Backend, BackendError, Encoding, LocalBackend, LocalModel, Request};
use olmoe_model::config::ModelConfig;
use olmoe_model::intervention::{Intervention, SwitchedOff};
use olmoe_model::model::{Held, Model, Precision};
use serde_json::{Value, json};

const CONTEXT: usize = 128;

fn drawn() -> Model {
    let json = format!(
        r#"{{"model_type": "olmoe", "vocab_size": 300, "hidden_size": 40, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": {CONTEXT}, "pad_token_id": 1, "eos_token_id": 256, "initializer_range": 0.3}}"#
    );
    let config = ModelConfig::from_hf_json(&json).expect("a good configuration").config;
    let mut model = Model::new(config, Precision::AmpBf16, Held::Inference).expect("a model");
    model.initialize(7);
    model
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_vocabulary(&Vocabulary::bytes()).expect("a tokenizer"))
}

fn local(model: Model) -> LocalModel {
    let mut special = SpecialTokens { eos: Some(256), ..SpecialTokens::default() };
    special.add_end(256, "a test");
    let mut local = LocalModel::of(Arc::new(model), tokenizer(), &special, json!("seed 7"));
    let template = ConversationTemplate::of(&Companions::named("tiny"), None).expect("tulu");
    local.conversation = Some(template);
    local
}

fn backend() -> LocalBackend {
    LocalBackend::new(local(drawn()), ScorerConfig::default(), EngineConfig::default()).expect("a backend")
}

fn continuation(context: &str, continuation: &str, unconditional: Option<&str>) -> Request {
    Request::Continuation {
        context: context.to_owned(),
        continuation: continuation.to_owned(),
        unconditional: unconditional.map(str::to_owned),
    }
}

fn generation(prompt: Prompt, samples: usize, seed: u64) -> Request {
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() };
    let stop = vec!["q".to_owned()];
    Request::Generation { prompt, stop, max_tokens: 12, sampling, samples, seed }
}

fn requests() -> Vec<Request> {
    let mut all = Vec::new();
    for question in ["Why?", "Where to?", "And then, after all of this, what?"] {
        for choice in [" yes", " no", " yes, but"] {
            let context = format!("Question: Who?\nAnswer: me\nQuestion: {question}\nAnswer:");
            let dc = (choice != " no").then_some("Answer:");
            all.push(continuation(&context, choice, dc));
        }
    }
    all.push(continuation(&"long ".repeat(50), " end", Some("Answer:")));
    for seed in 0..4 {
        all.push(generation(Prompt::Text(format!("Once {seed}")), 1 + seed as usize % 3, seed));
    }
    let messages = vec![Message::new("user", "Hi")];
    all.push(generation(Prompt::Chat { messages: messages.clone(), begin: String::new() }, 2, 9));
    all.push(generation(Prompt::Chat { messages, begin: "Answer:".to_owned() }, 2, 9));
    all.push(generation(Prompt::Text("long ".repeat(50)), 1, 3));
    all
}

fn answers(backend: &mut LocalBackend, requests: &[&Request], encoding: Encoding) -> Vec<Answer> {
    let asked: Vec<_> = requests.iter().map(|request| (*request, encoding)).collect();
    let mut all = BTreeMap::new();
    let done = backend.answer(&asked, &AtomicBool::new(false), &mut |index, answer| {
        assert!(all.insert(index, answer).is_none(), "request {index} is answered once");
        Ok(())
    });
    done.expect("answers");
    assert_eq!(all.len(), requests.len());
    all.into_values().collect()
}

/// lm-evaluation-harness #531: the size of a batch changes no answer.
#[test]
fn answers_do_not_depend_on_other_requests() {
    let requests = requests();
    let mut backend = backend();
    for encoding in [Encoding::Separate, Encoding::Joint, Encoding::Foundry] {
        let all: Vec<&Request> = requests.iter().collect();
        let expected: Vec<Answer> =
            all.iter().flat_map(|request| answers(&mut backend, &[*request], encoding)).collect();
        assert_eq!(answers(&mut backend, &all, encoding), expected);
        let reversed: Vec<&Request> = all.iter().rev().copied().collect();
        let found = answers(&mut backend, &reversed, encoding);
        assert!(found.iter().rev().eq(&expected));
        let scorer = ScorerConfig { step_tokens: 17, share: false, ..ScorerConfig::default() };
        let engine = EngineConfig { max_running: 3, step_tokens: 5, ..EngineConfig::default() };
        let mut other = LocalBackend::new(local(drawn()), scorer, engine).expect("a backend");
        assert_eq!(answers(&mut other, &all, encoding), expected);
        assert_eq!(other.identity(), backend.identity(), "limits that change no answer");
    }
}

#[test]
fn answers_are_those_of_scorer_and_engine() {
    let requests = requests();
    let mut backend = backend();
    let found = answers(&mut backend, &requests.iter().collect::<Vec<_>>(), Encoding::Separate);
    let tokenizer = tokenizer();
    for (request, found) in requests.iter().zip(&found) {
        match (request, found) {
            (Request::Continuation { continuation, unconditional, .. }, Answer::Continuation(scored)) => {
                assert_eq!(scored.tokens, tokenizer.encode(continuation).expect("ids").len());
                assert!(scored.log_prob < 0.0);
                assert_eq!(scored.unconditional.is_some(), unconditional.is_some());
            }
            (Request::Generation { samples, .. }, Answer::Generation { texts }) => {
                assert_eq!(texts.len(), *samples);
                assert!(texts.iter().all(|text| !text.contains('q')));
            }
            other => panic!("{other:?}"),
        }
    }
    // The unconditional log-probability is that of the continuation after the other context.
    let [one, other] = [continuation("x", " yes", Some("Answer:")), continuation("Answer:", " yes", None)];
    let both = answers(&mut backend, &[&one, &other], Encoding::Separate);
    let [Answer::Continuation(one), Answer::Continuation(other)] = &both[..] else { panic!("{both:?}") };
    assert_eq!(one.unconditional, Some(other.log_prob));
    // The conversation as tulu has it, and the beginning of the answer behind it.
    let texts = |prompt| {
        let Request::Generation { stop, max_tokens, sampling, samples, seed, .. } =
            generation(Prompt::Text(String::new()), 2, 9)
        else {
            unreachable!()
        };
        let sampling = Sampling { below: u32::try_from(tokenizer.size()).ok(), ..sampling };
        let config = EngineConfig { ends: vec![256], ..EngineConfig::default() };
        let mut engine = Engine::new(Arc::new(drawn()), Some(tokenizer.clone()), config).expect("an engine");
        let request = olmoe_engine::Request {
            max_tokens: Some(max_tokens),
            sampling,
            samples,
            seed: Some(seed),
            stop,
            ..olmoe_engine::Request::new(tokenizer.encode(prompt).expect("ids"))
        };
        let mut done = engine.complete_all([request], &AtomicBool::new(false)).expect("no interrupt");
        let samples = done.remove(0).expect("a good request");
        Answer::Generation { texts: samples.iter().map(olmoe_engine::Completion::text).collect() }
    };
    let chat =
        requests.iter().position(|request| matches!(request, Request::Generation { prompt: Prompt::Chat { .. }, .. }));
    let chat = chat.expect("a conversation");
    assert_eq!(found[chat], texts("<|user|>\nHi\n<|assistant|>\n"));
    assert_eq!(found[chat + 1], texts("<|user|>\nHi\n<|assistant|>\nAnswer:"));
}

/// A reply is scored after the conversation as the template writes it, and what begins the reply.
#[test]
fn replies_are_continuations_of_conversations() {
    let mut backend = backend();
    let reply = |begin: &str| Request::Reply {
        messages: vec![Message::new("user", "Which?")],
        begin: begin.to_owned(),
        continuation: " A".to_owned(),
    };
    let (whole, begun) = (reply(""), reply("The answer is:"));
    let written = |begin: &str| continuation(&format!("<|user|>\nWhich?\n<|assistant|>\n{begin}"), " A", None);
    let (plain, plain_begun) = (written(""), written("The answer is:"));
    let found = answers(&mut backend, &[&whole, &begun, &plain, &plain_begun], Encoding::Separate);
    assert_eq!(found[..2], found[2..]);
    assert_ne!(found[0], found[1]);
    let silent = LocalModel { conversation: None, ..local(drawn()) };
    let mut silent = LocalBackend::new(silent, ScorerConfig::default(), EngineConfig::default()).expect("a backend");
    let error =
        silent.answer(&[(&whole, Encoding::Separate)], &AtomicBool::new(false), &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
}

#[test]
fn refusals_name_the_request() {
    let good = continuation("x", " yes", None);
    let mut backend = backend();
    let mut refused = |request: Request, part: &str| {
        let asked = [(&good, Encoding::Joint), (&request, Encoding::Joint)];
        let error = backend.answer(&asked, &AtomicBool::new(false), &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, BackendError::Refused { index: 1, .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(continuation("x", "", None), "has no tokens");
    refused(continuation("x", &"y".repeat(CONTEXT + 1), None), "129 tokens, which are never cut");
    let with = |max_tokens, temperature| {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let prompt = Prompt::Text("x".to_owned());
        Request::Generation { prompt, stop: Vec::new(), max_tokens, sampling, samples: 1, seed: 0 }
    };
    refused(with(CONTEXT, 1.0), "up to 128 tokens are to be generated");
    refused(with(3, -1.0), "temperature is -1");
    refused(with(0, 1.0), "max_tokens is 0");
    let mut silent = LocalModel { conversation: None, ..local(drawn()) };
    let chat = generation(Prompt::Chat { messages: vec![Message::new("user", "Hi")], begin: String::new() }, 1, 1);
    silent.weights = Value::Null;
    let mut silent = LocalBackend::new(silent, ScorerConfig::default(), EngineConfig::default()).expect("a backend");
    let error = silent.answer(&[(&chat, Encoding::Joint)], &AtomicBool::new(false), &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
    // Weights that are not numbers.
    let mut damaged = drawn();
    let id = damaged.find("norm.weight").expect("a parameter");
    let Ok(()) = damaged.fill(id, |_, out| {
        out.fill(f32::NAN);
        Ok::<_, std::convert::Infallible>(())
    });
    let mut damaged =
        LocalBackend::new(local(damaged), ScorerConfig::default(), EngineConfig::default()).expect("a backend");
    for (request, part) in [(&good, "log-probability of token 0"), (&with(3, 1.0), "logits")] {
        let error =
            damaged.answer(&[(request, Encoding::Joint)], &AtomicBool::new(false), &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, BackendError::Refused { index: 0, .. }) && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn an_interrupt_and_an_error_of_the_caller_end_it() {
    let requests = requests();
    let asked: Vec<_> = requests.iter().map(|request| (request, Encoding::Separate)).collect();
    let scorer = ScorerConfig { step_tokens: 40, ..ScorerConfig::default() };
    let engine = EngineConfig { max_running: 1, ..EngineConfig::default() };
    let mut backend = LocalBackend::new(local(drawn()), scorer, engine).expect("a backend");
    for after in [1, 5, 11, 13] {
        let (interrupt, mut count) = (AtomicBool::new(false), 0);
        let done = backend.answer(&asked, &interrupt, &mut |_, _| {
            count += 1;
            interrupt.store(count >= after, Ordering::Relaxed);
            Ok(())
        });
        done.expect("no error");
        assert!((after..asked.len()).contains(&count), "{count} answers, interrupted after {after}");
        let mut count = 0;
        let error = backend.answer(&asked, &AtomicBool::new(false), &mut |_, _| {
            count += 1;
            match count == after {
                true => Err(BackendError::Kept(std::io::Error::other("the disk is full"))),
                false => Ok(()),
            }
        });
        assert_eq!(error.unwrap_err().to_string(), "answers could not be kept: the disk is full");
        assert_eq!(count, after);
    }
}

#[test]
fn identities_tell_models_apart() {
    let plain = backend().identity();
    assert_eq!(plain, backend().identity());
    let with = |local: LocalModel, scorer: ScorerConfig, engine: EngineConfig| {
        LocalBackend::new(local, scorer, engine).expect("a backend").identity()
    };
    let mut off = drawn();
    off.set_interventions(&[Intervention { layer: 0, expert: 3, how: SwitchedOff::Banned }]).expect("an expert");
    let other =
        ConversationTemplate::of(&Companions::named("tiny"), Some("{{ messages[0].content }}")).expect("a template");
    let fp32 = Model::new(drawn().config().clone(), Precision::Fp32, Held::Inference).expect("a model");
    let cut = ScorerConfig { max_tokens: Some(64), ..ScorerConfig::default() };
    let others = [
        with(
            LocalModel { weights: json!("seed 8"), ..local(drawn()) },
            ScorerConfig::default(),
            EngineConfig::default(),
        ),
        with(local(off), ScorerConfig::default(), EngineConfig::default()),
        with(
            LocalModel { conversation: Some(other), ..local(drawn()) },
            ScorerConfig::default(),
            EngineConfig::default(),
        ),
        with(local(fp32), ScorerConfig::default(), EngineConfig::default()),
        with(local(drawn()), cut, EngineConfig::default()),
    ];
    for (i, one) in others.iter().enumerate() {
        assert!(*one != plain && !others[..i].contains(one), "{one}");
    }
}

#[test]
fn experts_are_counted_for_each_request_as_if_it_were_alone() {
    let requests = requests();
    let mut backend = backend();
    assert!(backend.take_expert_counts().is_none(), "not asked for");
    backend.count_experts();
    let mut sums = BTreeMap::new();
    let mut tokens = 0;
    for request in &requests {
        answers(&mut backend, &[request], Encoding::Separate);
        let counts = backend.take_expert_counts().expect("counts");
        tokens += counts.tokens();
        for mixture in 0..2 {
            for (expert, count) in counts.choices(mixture).iter().enumerate() {
                *sums.entry((mixture, expert)).or_insert(0) += count;
            }
            assert!((0.0..=1.0).contains(&counts.evenness(mixture)));
        }
    }
    answers(&mut backend, &requests.iter().collect::<Vec<_>>(), Encoding::Separate);
    let all = backend.take_expert_counts().expect("counts");
    assert_eq!((all.tokens(), all.top_k(), all.layers()), (tokens, 2, &[0, 1][..]));
    assert!(sums.into_iter().all(|((mixture, expert), count)| all.choices(mixture)[expert] == count));
    assert_eq!(backend.take_expert_counts().expect("counts").tokens(), 0);
    // An expert that is banned is used by none.
    let mut model = drawn();
    model.set_interventions(&[Intervention { layer: 1, expert: 2, how: SwitchedOff::Banned }]).expect("an expert");
    let mut without =
        LocalBackend::new(local(model), ScorerConfig::default(), EngineConfig::default()).expect("a backend");
    without.count_experts();
    answers(&mut without, &requests.iter().collect::<Vec<_>>(), Encoding::Separate);
    let counts = without.take_expert_counts().expect("counts");
    assert_eq!(counts.choices(1)[2], 0);
    assert!(counts.choices(0)[2] > 0 && all.choices(1)[2] > 0);
}
