//! A steady-state training step and a steady-state decoding step ask the system for no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, Precision};
use olmoe_tensor::memory;
use olmoe_train::config::OptimizerConfig;
use olmoe_train::loss::Loss;
use olmoe_train::optimizer::{Clip, Optimizer, Step};

/// The system's allocator, counting what it is asked for.
struct Counting;

static REQUESTS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests to the allocator, and those of the pool, which maps its large buffers past it.
fn requests() -> u64 {
    REQUESTS.load(Ordering::Relaxed) + memory::system_requests()
}

fn config() -> ModelConfig {
    let yaml = "
        d_model: 64
        n_heads: 4
        n_layers: 3
        mlp_hidden_size: 48
        block_type: moe
        rope: true
        moe_num_experts: 8
        moe_top_k: 2
        moe_loss_weight: 0.01
        moe_zloss_weight: 0.001
        attention_layer_norm: true
        layer_norm_type: rms
        attention_dropout: 0
        residual_dropout: 0
        embedding_dropout: 0
        include_bias: false
        weight_tying: false
        vocab_size: 500
        embedding_size: 512
        max_sequence_length: 96
        eos_token_id: 1
        pad_token_id: 0";
    ModelConfig::from_olmo_yaml(yaml).expect("a good configuration").config
}

/// Steps that may still fill the pool: the routing moves while the model learns, and threads meet in new ways.
const WARM_UP: usize = 150;

fn batch() -> Batch {
    let ids: Vec<u32> = (0..2 * 96).map(|i| i * 31 % 500).collect();
    Batch::uniform(&ids, 96).expect("two sequences")
}

// One test, because the counter is one for the process.
#[test]
fn steady_steps_allocate_nothing() {
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        for keep in [Keep::Everything, Keep::FeedForward, Keep::BlockInputs] {
            train(precision, keep);
        }
        decode(precision);
    }
}

fn train(precision: Precision, keep: Keep) {
    let mut model = Model::new(config(), precision, Held::Trained).expect("a model");
    model.initialize(1);
    let mut gradients = model.gradients();
    let mut optimizer = Optimizer::new(OptimizerConfig::release(), &model);
    let mut activations = Activations::new(keep);
    let batch = batch();
    let (targets, count) = batch.next_tokens();
    let mut number = 0;
    let mut step = || {
        number += 1;
        // The metrics of every parameter are recorded, too.
        let settings = Step { number, learning_rate: 1e-3, clip: Clip::Norm(1.0), record: number.is_multiple_of(4) };
        let before = requests();
        let losses = Loss::over(count as f64).step(&model, &batch, &targets, &mut activations, &mut gradients);
        let losses = losses.expect("a step");
        let report = optimizer.step(&mut model, &mut gradients, &settings);
        assert!(report.applied && losses.total().is_finite());
        requests() - before
    };
    let counts: Vec<u64> = (0..WARM_UP + 20).map(|_| step()).collect();
    assert!(counts[0] > 0, "the counter counts nothing");
    assert_eq!(counts[WARM_UP..], [0; 20], "{precision:?} {keep:?}: requests by step {counts:?}");
}

fn decode(precision: Precision) {
    let mut model = Model::new(config(), precision, Held::Inference).expect("a model");
    model.initialize(1);
    let mut activations = Activations::new(Keep::Nothing);
    let mut caches = [KvCache::new(&model, 96)];
    let mut counts = Vec::new();
    for position in 0..96u32 {
        let batch = Batch::uniform(&[position % 500], 1)
            .expect("a token")
            .continued_from(&[position as usize])
            .expect("its age");
        let before = requests();
        model.forward_cached(&batch, &mut caches, &mut activations).expect("a step");
        let logits = model.logits_of(activations.hidden());
        assert!(logits[0].is_finite());
        counts.push(requests() - before);
    }
    assert!(counts[0] > 0);
    assert_eq!(counts[48..].iter().sum::<u64>(), 0, "{precision:?}: requests by step {counts:?}");
}
