//! Determinism of the model: the same bits for any number of threads, instruction set, batch and cache.
//!
//! With a capacity, the tokens of an expert depend on the whole batch, so for such a model the bits of a sequence alone
//! or with a cache are not compared with those in a batch.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, KvCache, Model, ModelError, Precision};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads;

use crate::check::{Check, CheckKind, different_bits};
use crate::golden::Golden;
use crate::pass::{PassTask, TrainingPass, VerifyError, build};

/// Numbers of threads that have to give the same bits.
const THREADS: [usize; 3] = [1, 2, 3];

/// The settings of the process, which are restored on drop after a check has changed them. Only one check runs at a
/// time.
struct ProcessSettings {
    isa: Isa,
    threads: usize,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl ProcessSettings {
    fn hold() -> ProcessSettings {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        ProcessSettings { isa: Isa::current(), threads: threads::num_threads(), _turn: turn }
    }
}

impl Drop for ProcessSettings {
    fn drop(&mut self) {
        self.isa.select();
        threads::set_num_threads(self.threads);
    }
}

pub(crate) fn check(golden: &Golden, precision: Precision, report: &mut dyn FnMut(Check)) -> Result<(), VerifyError> {
    let error = VerifyError::of(golden);
    let settings = ProcessSettings::hold();
    let mut answer = |what: &str, difference: BitDifferences| {
        let of = (golden.name.as_str(), precision.name());
        let worst = difference.count as f64;
        report(Check::new(of, CheckKind::Determinism, what, worst, 0.0, difference.detail()));
    };
    let task = PassTask::of(golden);
    let model = build(golden, precision)?;
    let expected = TrainingPass::run(&model, &task, Keep::Everything).map_err(&error)?;

    let mut difference = BitDifferences::default();
    for n in THREADS {
        threads::set_num_threads(n);
        let found = TrainingPass::run(&model, &task, Keep::Everything).map_err(&error)?;
        difference.passes(&format!("{n} threads"), &found, &expected, &model);
    }
    threads::set_num_threads(settings.threads);
    answer("same bits: 1, 2 and 3 threads", difference);

    let mut difference = BitDifferences::default();
    let mut names = Vec::new();
    for isa in Isa::available() {
        isa.select();
        // The model is built again, so that its weights are packed for the same instruction set.
        let found = TrainingPass::run(&build(golden, precision)?, &task, Keep::Everything).map_err(&error)?;
        difference.passes(isa.name(), &found, &expected, &model);
        names.push(isa.name());
    }
    settings.isa.select();
    answer(&format!("same bits: {}", names.join(", ")), difference);

    for (keep, what) in [
        (Keep::FeedForward, "same bits: attention recomputed"),
        (Keep::BlockInputs, "same bits: whole blocks recomputed"),
    ] {
        let mut difference = BitDifferences::default();
        difference.passes("", &TrainingPass::run(&model, &task, keep).map_err(&error)?, &expected, &model);
        answer(what, difference);
    }

    let mut difference = BitDifferences::default();
    let mut activations = Activations::new(Keep::Nothing);
    let inference = model.logits(&task.batch, &mut activations).map_err(&error)?;
    difference.tensors("logits", &inference, &expected.logits);
    answer("same bits: inference and training", difference);

    if golden.config.moe().is_none_or(|moe| moe.capacity_factor.is_none()) {
        let alone = |s: usize| model.logits(&golden.batch_of(s..s + 1), &mut Activations::new(Keep::Nothing));
        let mut difference = BitDifferences::default();
        for s in 0..golden.tokens() / golden.length {
            let expected = expected.logits.row_range(s * golden.length..(s + 1) * golden.length);
            difference.tensors(&format!("sequence {s}"), &alone(s).map_err(&error)?, expected);
        }
        answer("same bits: a sequence alone and in the batch", difference);

        // A cache continues whole sequences, so attention is not restricted to documents or padding here.
        let whole = Batch::uniform(&golden.ids, golden.length).expect("the ids were read as whole sequences");
        let expected = model.logits(&whole, &mut activations).map_err(&error)?;
        for (steps, what) in [
            (&[usize::MAX][..], "same bits: prefill at once into the cache"),
            (&[1], "same bits: token by token from the cache"),
            (&[4, 1, 7, 2], "same bits: in chunks from the cache"),
        ] {
            let mut difference = BitDifferences::default();
            let found = cached(&model, golden, steps).map_err(&error)?;
            difference.tensors("logits", &found, &expected);
            answer(what, difference);
        }
    }
    Ok(())
}

/// The logits of all tokens, computed with caches. Every pass continues all unfinished sequences. In the first pass the
/// first sequence takes `steps[0]` tokens and the second takes `steps[1]`; in each following pass every sequence takes
/// the next number, so that the sequences have different lengths.
fn cached(model: &Model, golden: &Golden, steps: &[usize]) -> Result<Tensor, ModelError> {
    let (length, rows) = (golden.length, golden.config.embedding_size);
    let sequences = golden.tokens() / length;
    let mut caches: Vec<_> = (0..sequences).map(|_| KvCache::new(model, length)).collect();
    let mut activations = Activations::new(Keep::Nothing);
    let mut logits = Tensor::zeros(&[golden.tokens(), rows]);
    for pass in 0..length {
        // The tokens of each sequence that this pass takes, and where each sequence is.
        let chunk = |s: usize, cache: &KvCache| -> Range<usize> {
            let step = steps[(pass + s) % steps.len()];
            cache.len()..cache.len().saturating_add(step).min(length)
        };
        let chunks: Vec<_> = caches.iter().enumerate().map(|(s, cache)| chunk(s, cache)).collect();
        // Finished sequences do not take part.
        let running: Vec<_> = (0..sequences).filter(|s| !chunks[*s].is_empty()).collect();
        if running.is_empty() {
            break;
        }
        let tokens: Vec<usize> = running.iter().flat_map(|s| chunks[*s].clone().map(move |t| s * length + t)).collect();
        let ids: Vec<u32> = tokens.iter().map(|t| golden.ids[*t]).collect();
        let lengths: Vec<usize> = running.iter().map(|s| chunks[*s].len()).collect();
        let held: Vec<usize> = running.iter().map(|s| chunks[*s].start).collect();
        let batch = Batch::new(&ids, &lengths).and_then(|batch| batch.continued_from(&held));
        let batch = batch.expect("the lengths of the tokens and of the caches are those of the chunks");
        let (mut taken, mut waiting) = (Vec::new(), Vec::new());
        for (s, cache) in caches.drain(..).enumerate() {
            if running.contains(&s) { taken.push(cache) } else { waiting.push((s, cache)) }
        }
        model.forward_cached(&batch, &mut taken, &mut activations)?;
        caches = taken;
        for (s, cache) in waiting {
            caches.insert(s, cache);
        }
        let found = model.logits_of(activations.hidden());
        for (row, t) in tokens.iter().enumerate() {
            logits.row_mut(*t).copy_from_slice(found.row(row));
        }
    }
    Ok(logits)
}

/// How many numbers have different bits, and the place of the first one.
#[derive(Default)]
struct BitDifferences {
    count: usize,
    first: Option<String>,
}

impl BitDifferences {
    fn tensors(&mut self, name: &str, found: &[f32], expected: &[f32]) {
        let (count, first) = different_bits(found, expected);
        self.count += count;
        if let (None, Some(at)) = (&self.first, first) {
            self.first = Some(format!("{name}[{at}]: {:e} and {:e}", found[at], expected[at]));
        }
    }

    /// Compares logits, losses and all gradients.
    fn passes(&mut self, how: &str, found: &TrainingPass, expected: &TrainingPass, model: &Model) {
        let of = |what: &str| if how.is_empty() { what.to_owned() } else { format!("{how}: {what}") };
        self.tensors(&of("logits"), &found.logits, &expected.logits);
        if found.losses != expected.losses {
            self.count += 1;
            self.first.get_or_insert_with(|| of(&format!("losses: {:?} and {:?}", found.losses, expected.losses)));
        }
        let gradients = found.gradients.iter().zip(expected.gradients.iter());
        for ((id, found), (_, expected)) in gradients {
            self.tensors(&of(&format!("gradient of {}", model.parameters()[id].name)), found, expected);
        }
    }

    fn detail(&self) -> String {
        self.first.clone().unwrap_or_default()
    }
}
