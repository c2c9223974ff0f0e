//! The model against itself: the same bits, however they are computed.
//!
//! A capacity makes an expert's tokens depend on the whole batch, so such a model is not asked for the same bits alone
//! and in a batch, or cached.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, KvCache, Model, ModelError, Precision};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads;

use crate::check::{Check, Kind, different_bits};
use crate::golden::Golden;
use crate::pass::{Pass, Task, VerifyError, build};

/// Numbers of threads that have to give the same bits.
const THREADS: [usize; 3] = [1, 2, 3];

/// The settings of the process while a check changes them; restored on drop. One check at a time.
struct Settings {
    isa: Isa,
    threads: usize,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Settings {
    fn hold() -> Settings {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Settings { isa: Isa::current(), threads: threads::num_threads(), _turn: turn }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        self.isa.select();
        threads::set_num_threads(self.threads);
    }
}

pub(crate) fn check(golden: &Golden, precision: Precision, report: &mut dyn FnMut(Check)) -> Result<(), VerifyError> {
    let error = VerifyError::of(golden);
    let settings = Settings::hold();
    let mut answer = |what: &str, difference: Difference| {
        let of = (golden.name.as_str(), precision.name());
        let worst = difference.count as f64;
        report(Check::new(of, Kind::Determinism, what, worst, 0.0, difference.detail()));
    };
    let task = Task::of(golden);
    let model = build(golden, precision)?;
    let expected = Pass::run(&model, &task, Keep::Everything).map_err(&error)?;

    let mut difference = Difference::default();
    for n in THREADS {
        threads::set_num_threads(n);
        let found = Pass::run(&model, &task, Keep::Everything).map_err(&error)?;
        difference.passes(&format!("{n} threads"), &found, &expected, &model);
    }
    threads::set_num_threads(settings.threads);
    answer("same bits: 1, 2 and 3 threads", difference);

    let mut difference = Difference::default();
    let mut names = Vec::new();
    for isa in Isa::available() {
        isa.select();
        // Built anew, so that its weights are packed by the same instruction set.
        let found = Pass::run(&build(golden, precision)?, &task, Keep::Everything).map_err(&error)?;
        difference.passes(isa.name(), &found, &expected, &model);
        names.push(isa.name());
    }
    settings.isa.select();
    answer(&format!("same bits: {}", names.join(", ")), difference);

    for (keep, what) in [
        (Keep::FeedForward, "same bits: attention recomputed"),
        (Keep::BlockInputs, "same bits: whole blocks recomputed"),
    ] {
        let mut difference = Difference::default();
        difference.passes("", &Pass::run(&model, &task, keep).map_err(&error)?, &expected, &model);
        answer(what, difference);
    }

    let mut difference = Difference::default();
    let mut activations = Activations::new(Keep::Nothing);
    let inference = model.logits(&task.batch, &mut activations).map_err(&error)?;
    difference.tensors("logits", &inference, &expected.logits);
    answer("same bits: inference and training", difference);

    if golden.config.moe().is_none_or(|moe| moe.capacity_factor.is_none()) {
        let alone = |s: usize| model.logits(&golden.batch_of(s..s + 1), &mut Activations::new(Keep::Nothing));
        let mut difference = Difference::default();
        for s in 0..golden.tokens() / golden.length {
            let expected = expected.logits.row_range(s * golden.length..(s + 1) * golden.length);
            difference.tensors(&format!("sequence {s}"), &alone(s).map_err(&error)?, expected);
        }
        answer("same bits: a sequence alone and in the batch", difference);

        // A cache continues whole sequences, so documents and padding do not come into it.
        let whole = Batch::uniform(&golden.ids, golden.length).expect("the ids were read as whole sequences");
        let expected = model.logits(&whole, &mut activations).map_err(&error)?;
        for (steps, what) in [
            (&[usize::MAX][..], "same bits: prefill at once into the cache"),
            (&[1], "same bits: token by token from the cache"),
            (&[4, 1, 7, 2], "same bits: in chunks from the cache"),
        ] {
            let mut difference = Difference::default();
            let found = cached(&model, golden, steps).map_err(&error)?;
            difference.tensors("logits", &found, &expected);
            answer(what, difference);
        }
    }
    Ok(())
}

/// The logits of all tokens by way of caches. Every pass continues all sequences that are not yet done, the first by
/// `steps[0]` tokens, the second by `steps[1]`, and each by the next number in the following pass, so that they are at
/// different lengths.
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
        // A finished sequence takes no part.
        let running: Vec<_> = (0..sequences).filter(|s| !chunks[*s].is_empty()).collect();
        if running.is_empty() {
            break;
        }
        let tokens: Vec<usize> = running.iter().flat_map(|s| chunks[*s].clone().map(move |t| s * length + t)).collect();
        let ids: Vec<u32> = tokens.iter().map(|t| golden.ids[*t]).collect();
        let lengths: Vec<usize> = running.iter().map(|s| chunks[*s].len()).collect();
        let held: Vec<usize> = running.iter().map(|s| chunks[*s].start).collect();
        let batch = Batch::new(&ids, &lengths).and_then(|batch| batch.continued_from(&held));
        let batch = batch.expect("the lengths and ages are those of the chunks");
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

/// Numbers with other bits, and where the first is.
#[derive(Default)]
struct Difference {
    count: usize,
    first: Option<String>,
}

impl Difference {
    fn tensors(&mut self, name: &str, found: &[f32], expected: &[f32]) {
        let (count, first) = different_bits(found, expected);
        self.count += count;
        if let (None, Some(at)) = (&self.first, first) {
            self.first = Some(format!("{name}[{at}]: {:e} and {:e}", found[at], expected[at]));
        }
    }

    /// Logits, losses and all gradients.
    fn passes(&mut self, how: &str, found: &Pass, expected: &Pass, model: &Model) {
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
