//! Continues several texts at once.
//!
//! `cargo run --release --example several -- MODEL 'Bitcoin is' 'The capital of France is'`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::inference::Loading;
use olmoe_data::SpecialTokens;
use olmoe_engine::{Engine, EngineConfig, Request, Sampling};
use olmoe_model::model::Precision;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().context("give a model, then texts")?);
    let checkpoint = Checkpoint::open(&path)?;
    let companions = Companions::of(&checkpoint, None, false)?;
    let tokenizer = companions.tokenizer().context("this model comes without a tokenizer")?;
    let model = checkpoint.load(&Loading::new(Precision::AmpBf16, true), &|_| {})?.model;

    let ends = companions.special_tokens().map(SpecialTokens::end_ids).unwrap_or_default();
    let config = EngineConfig { ends, ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::new(model), Some(tokenizer.clone()), config)?;
    let prompts: Vec<String> = arguments.collect();
    let request = |prompt: &String| {
        let sampling = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() };
        Ok(Request { max_tokens: Some(64), sampling, ..Request::new(tokenizer.encode(prompt)?) })
    };
    let requests = prompts.iter().map(request).collect::<anyhow::Result<Vec<Request>>>()?;
    let done = engine.complete_all(requests, &AtomicBool::new(false)).context("nothing interrupts it")?;
    for (prompt, samples) in prompts.iter().zip(done) {
        for sample in samples? {
            let reason = sample.end.as_ref().map_or("", |end| end.reason.name());
            println!("{prompt}{}\n({reason}, {} tokens)\n", sample.text(), sample.tokens.len());
        }
    }
    Ok(())
}
