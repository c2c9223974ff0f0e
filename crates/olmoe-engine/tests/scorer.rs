//! The log-probabilities of a pair depend on the model and the pair alone, bit for bit, and are those of the model.

mod tiny;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use olmoe_engine::{EngineError, Pair, ScoreError, ScoredTokens, Scorer, ScorerConfig};
use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward};
use olmoe_model::model::{Activations, Held, Keep, Model, Precision};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::threads::{num_threads, set_num_threads};
use tiny::*;

/// The number of threads is one for the process: one test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

type Owned = (Vec<u32>, Vec<u32>);

/// Questions of two tasks with examples before them, choices of one to several tokens, some the beginning of others; pairs
/// that occur twice; contexts that are too long; pairs without anything in common with others.
fn pairs() -> Vec<Owned> {
    let mut all = Vec::new();
    for task in 0..2 {
        let shots = ids(60 + 20 * task, task + 3);
        for question in 0..4 {
            let context = [&shots[..], &ids(3 + 5 * question, 10 + question)].concat();
            for choice in 0..4 {
                all.push((context.clone(), ids(1 + choice * 2 % 5, 40 + choice)));
            }
            all.push((context.clone(), ids(7, 41)));
        }
    }
    all.push(all[3].clone());
    // The context of one is the other with a part of its continuation.
    let (context, continuation) = all[4].clone();
    all.push(([&context[..], &continuation[..3]].concat(), continuation[3..].to_vec()));
    all.push((ids(1, 1), ids(1, 2)));
    all.push((ids(CONTEXT + 30, 6), ids(5, 7)));
    all.push((ids(CONTEXT, 6), ids(CONTEXT, 8)));
    all.push((ids(2, 1), ids(CONTEXT, 8)));
    for (i, pair) in ["Answer:"; 3].iter().enumerate() {
        all.push((pair.bytes().map(u32::from).collect(), ids(1, i % 2)));
    }
    all
}

fn borrowed(pairs: &[Owned]) -> Vec<Pair<'_>> {
    pairs.iter().map(|(context, continuation)| Pair { context, continuation }).collect()
}

fn scores(model: &Arc<Model>, config: ScorerConfig, pairs: &[Owned]) -> Vec<ScoredTokens> {
    let mut scorer = Scorer::new(model.clone(), config).expect("a scorer");
    let borrowed = borrowed(pairs);
    let plan = scorer.plan(&borrowed).expect("a plan");
    let mut all = vec![None; pairs.len()];
    let whole = scorer.run(&plan, &AtomicBool::new(false), |pair, score| {
        assert!(all[pair].replace(score).is_none(), "pair {pair} is scored once");
        ControlFlow::Continue(())
    });
    assert!(whole.expect("a run"));
    all.into_iter().map(|score| score.expect("every pair is scored")).collect()
}

/// Each pair alone, in one pass.
fn alone(model: &Arc<Model>, pairs: &[Owned], cache_type: Option<CacheType>) -> Vec<ScoredTokens> {
    let config = ScorerConfig { step_tokens: 4096, cache_type, ..ScorerConfig::default() };
    pairs.iter().flat_map(|pair| scores(model, config.clone(), std::slice::from_ref(pair))).collect()
}

/// By one pass of the model without a cache over context and continuation.
fn by_the_model(model: &Model, (context, continuation): &Owned) -> ScoredTokens {
    let all = [&context[..], continuation].concat();
    let query = &all[(all.len() - 1).saturating_sub(model.config().max_sequence_length)..all.len() - 1];
    let mut activations = Activations::new(Keep::Nothing);
    let logits = model.logits(&Batch::uniform(query, query.len()).expect("a batch"), &mut activations).expect("logits");
    let first = query.len() - continuation.len();
    let rows: Vec<u32> = (first as u32..).take(continuation.len()).collect();
    let log_probs = model.log_probs_at(&activations, &rows, continuation).expect("log-probabilities").logp_t.to_vec();
    let best = |row: &u32| {
        let row = logits.row(*row as usize);
        (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("logits") as u32
    };
    let greedy = rows.iter().zip(continuation).map(|(row, id)| best(row) == *id).collect();
    ScoredTokens { log_probs, greedy }
}

#[test]
fn scores_are_those_of_the_model() {
    let _turn = turn();
    let pairs = pairs();
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let model = model(precision);
        let expected: Vec<_> = pairs.iter().map(|pair| by_the_model(&model, pair)).collect();
        assert_eq!(alone(&model, &pairs, None), expected, "{precision:?}");
        assert!(expected.iter().any(|score| score.greedy.contains(&true)));
        assert_eq!(expected.iter().map(|score| score.log_probs.len()).max(), Some(CONTEXT));
        // The sum, and one token that is not the likeliest.
        let score = ScoredTokens { log_probs: vec![-0.5, -1.25], greedy: vec![true, false] };
        assert_eq!((score.sum(), score.is_greedy()), (-1.75, false));
    }
}

#[test]
fn alone_in_any_batch_with_and_without_sharing_in_steps_of_every_size() {
    let _turn = turn();
    let pairs = pairs();
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let model = model(precision);
        let expected = alone(&model, &pairs, None);
        for step_tokens in [1, 2, 3, 5, 7, 16, 31, 32, 33, 64, 100, 127, 128, 129, 300, 512, 10_000] {
            for share in [true, false] {
                let config = ScorerConfig { step_tokens, share, ..ScorerConfig::default() };
                assert_eq!(scores(&model, config, &pairs), expected, "{precision:?}, {step_tokens}, {share}");
            }
        }
        // In other company, and in another order.
        for start in 0..pairs.len() {
            let some: Vec<usize> = (start..pairs.len()).step_by(1 + start % 4).rev().collect();
            let own: Vec<Owned> = some.iter().map(|at| pairs[*at].clone()).collect();
            let found = scores(&model, ScorerConfig { step_tokens: 50, ..ScorerConfig::default() }, &own);
            assert!(some.iter().zip(&found).all(|(at, score)| *score == expected[*at]), "{precision:?}, from {start}");
        }
    }
}

#[test]
fn every_type_of_weights_and_of_cache_on_any_number_of_threads() {
    let _turn = turn();
    let (pairs, before) = (pairs(), num_threads());
    let formats = BlockFormat::ALL.map(|format| (Precision::AmpBf16, Some(format)));
    for (precision, format) in [(Precision::Fp32, None), (Precision::AmpBf16, None)].into_iter().chain(formats) {
        let model = wide_model(precision, format);
        for kind in CacheType::ALL {
            set_num_threads(1);
            let expected = alone(&model, &pairs, Some(kind));
            for (threads, step_tokens, share) in [(1, 60, true), (2, 200, true), (2, 37, false)] {
                set_num_threads(threads);
                let config = ScorerConfig { step_tokens, share, cache_type: Some(kind), ..ScorerConfig::default() };
                let what = format!("{precision:?}, {:?}, {}", format.map(BlockFormat::name), kind.name());
                assert_eq!(scores(&model, config, &pairs), expected, "{what}");
            }
        }
        set_num_threads(before);
    }
}

/// A model without experts, and one with a shared expert whose weights are normalised.
#[test]
fn other_models() {
    let _turn = turn();
    let (mut dense, mut shared) = (config(), config());
    if let FeedForward::Moe(moe) = &mut shared.feed_forward {
        dense.feed_forward = FeedForward::Dense(moe.expert);
        moe.shared_expert = Some(moe.expert);
        moe.normalize_top_k = true;
    }
    assert!(dense.moe().is_none());
    for config in [dense, shared] {
        let mut model = Model::new(config, Precision::AmpBf16, Held::Inference).expect("a model");
        model.initialize(3);
        let (model, pairs) = (Arc::new(model), pairs());
        let expected = alone(&model, &pairs, None);
        for step_tokens in [9, 80, 700] {
            let config = ScorerConfig { step_tokens, ..ScorerConfig::default() };
            assert_eq!(scores(&model, config, &pairs), expected);
        }
    }
}

#[test]
fn what_is_in_common_is_computed_once_and_scores_come_early_and_in_order() {
    let _turn = turn();
    let model = model(Precision::Fp32);
    let mut scorer =
        Scorer::new(model.clone(), ScorerConfig { step_tokens: 40, ..ScorerConfig::default() }).expect("a scorer");
    let shots = ids(50, 1);
    let owned: Vec<Owned> = (0..12).map(|i| ([&shots[..], &[100 + i / 4, 7]].concat(), vec![200 + i % 4, 5])).collect();
    let pairs = borrowed(&owned);
    let plan = scorer.plan(&pairs).expect("a plan");
    // Three questions of two tokens, and four choices each of which one token is read.
    assert_eq!((plan.computed_tokens(), plan.pair_tokens(), plan.scored_tokens()), (50 + 3 * (2 + 4), 12 * 53, 24));
    let mut order = Vec::new();
    let whole = scorer.run(&plan, &AtomicBool::new(false), |pair, _| {
        order.push(pair);
        if order.len() == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(!whole.expect("a run"));
    assert_eq!(order, (0..7).collect::<Vec<_>>());
    // Interrupted after the first of several passes.
    let interrupt = AtomicBool::new(false);
    let mut passes = 0;
    let whole = scorer.run_routed(
        &plan,
        &interrupt,
        |_, _| ControlFlow::Continue(()),
        |_| {
            passes += 1;
            interrupt.store(true, Ordering::Relaxed);
        },
    );
    assert!(!whole.expect("a run"));
    assert_eq!(passes, 1);
    assert_eq!(scorer.plan(&[]).map(|plan| plan.computed_tokens()).expect("nothing"), 0);
    assert!(scores(&model, ScorerConfig::default(), &[]).is_empty());
}

/// The experts of each pair as if it were alone, whatever is shared.
#[test]
fn routing_counts_each_pair() {
    let _turn = turn();
    let model = model(Precision::AmpBf16);
    let owned = pairs();
    let count = |config: ScorerConfig, owned: &[Owned]| {
        let mut scorer = Scorer::new(model.clone(), config).expect("a scorer");
        let pairs = borrowed(owned);
        let plan = scorer.plan(&pairs).expect("a plan");
        let (mut counts, mut tokens) = (BTreeMap::new(), 0);
        let scored = |_, _| ControlFlow::Continue(());
        let whole = scorer.run_routed(&plan, &AtomicBool::new(false), scored, |routing| {
            tokens += routing.rows.len() as u64 * routing.pairs;
            for layer in &routing.record.layers {
                for row in routing.rows.clone() {
                    for expert in layer.routing.ids_tk.row(row) {
                        *counts.entry((layer.layer, *expert)).or_insert(0) += routing.pairs;
                    }
                }
            }
        });
        assert!(whole.expect("a run"));
        assert_eq!(tokens as usize, plan.pair_tokens());
        counts
    };
    let mut expected = BTreeMap::new();
    for pair in &owned {
        for (key, more) in count(ScorerConfig::default(), std::slice::from_ref(pair)) {
            *expected.entry(key).or_insert(0) += more;
        }
    }
    for step_tokens in [7, 64, 4096] {
        assert_eq!(count(ScorerConfig { step_tokens, ..ScorerConfig::default() }, &owned), expected);
    }
}

#[test]
fn what_cannot_be_scored() {
    let _turn = turn();
    let model = model(Precision::Fp32);
    let scorer = Scorer::new(model.clone(), ScorerConfig::default()).expect("a scorer");
    let long = vec![3; CONTEXT + 1];
    let refused = |scorer: &Scorer, context: &[u32], continuation: &[u32]| {
        let good = Pair { context: &[1], continuation: &[2] };
        let error = scorer.plan(&[good, Pair { context, continuation }]).map(|_| ()).unwrap_err();
        assert_eq!(error.pair(), Some(1), "{error}");
        error.to_string()
    };
    assert!(refused(&scorer, &[], &[1]).contains("pair 1: the context has no tokens"));
    assert!(refused(&scorer, &[1], &[]).contains("pair 1: the continuation has no tokens"));
    assert!(refused(&scorer, &[1], &long).contains("161 tokens, which are never cut, but at most 160"));
    assert!(refused(&scorer, &[1, 300], &[1]).contains("id 300 is outside the model's vocabulary of 300"));
    assert!(refused(&scorer, &[1], &[1, 9999]).contains("id 9999"));
    let short = Scorer::new(model.clone(), ScorerConfig { max_tokens: Some(5), ..ScorerConfig::default() });
    let short = short.expect("a scorer");
    assert!(refused(&short, &[1], &[1; 6]).contains("at most 5"));
    assert!(
        matches!(short.plan(&[Pair { context: &[1; 9], continuation: &[1; 5] }]), Ok(plan) if plan.pair_tokens() == 5)
    );

    let zero = |config| Scorer::new(model.clone(), config).map(|_| ()).unwrap_err();
    let config = ScorerConfig { step_tokens: 0, ..ScorerConfig::default() };
    assert_eq!(zero(config), EngineError::NoTokens { limit: "step_tokens" });
    let config = ScorerConfig { max_tokens: Some(0), ..ScorerConfig::default() };
    assert_eq!(zero(config), EngineError::NoTokens { limit: "max_tokens" });
    let mut capacity = tiny::config();
    if let FeedForward::Moe(moe) = &mut capacity.feed_forward {
        moe.capacity_factor = Some(1.5);
        moe.expert.activation = Activation::Gelu;
    }
    let dropping = Arc::new(Model::new(capacity, Precision::Fp32, Held::Inference).expect("a model"));
    let error = Scorer::new(dropping, ScorerConfig::default()).map(|_| ()).unwrap_err();
    assert_eq!(error, EngineError::Capacity { factor: 1.5 });
    assert_eq!(ScoreError::TooMany.pair(), None);
}

/// A limit on the tokens cuts contexts as a smaller context of the model does.
#[test]
fn a_limit_on_tokens_cuts_the_context() {
    let _turn = turn();
    let model = model(Precision::Fp32);
    let (context, continuation) = (ids(80, 2), ids(6, 9));
    let config = ScorerConfig { max_tokens: Some(30), ..ScorerConfig::default() };
    let found = scores(&model, config, &[(context.clone(), continuation.clone())]);
    // 25 tokens of the context and 5 of the continuation are read.
    let expected = by_the_model(&model, &(context[55..].to_vec(), continuation));
    assert_eq!(found, [expected]);
}
