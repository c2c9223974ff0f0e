//! Continues several texts at once.
//!
//! `cargo run --release --example several -- MODEL 'Bitcoin is' 'The capital of France is'`

use std::path::PathBuf;

use anyhow::Context;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::inference::Loading;
use olmoe_data::SpecialTokens;
use olmoe_engine::{Engine, EngineConfig, EventKind, Request, Sampling};
use olmoe_model::model::Precision;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().context("give a model, then texts")?);
    let checkpoint = Checkpoint::open(&path)?;
    let companions = Companions::of(&checkpoint, None, false)?;
    let tokenizer = companions.tokenizer().context("this model comes without a tokenizer")?;
    let model = checkpoint.load(&Loading::new(Precision::AmpBf16, true), &|_| {})?.model;

    let ends = companions.special_tokens().map(SpecialTokens::end_ids).unwrap_or_default();
    let mut engine = Engine::new(&model, Some(tokenizer), EngineConfig { ends, ..EngineConfig::default() })?;
    let mut texts = Vec::new();
    for prompt in arguments {
        let sampling = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() };
        let ids = tokenizer.encode(&prompt)?;
        // Requests are numbered from 0.
        engine.submit(Request { max_tokens: Some(64), sampling, ..Request::new(ids) })?;
        texts.push(prompt);
    }
    while !engine.is_idle() {
        for event in engine.step() {
            let text = &mut texts[event.request.0 as usize];
            match event.kind {
                EventKind::Token(token) => text.push_str(&token.text),
                EventKind::Finished(end) => {
                    text.push_str(&end.text);
                    println!("{text}\n({}, {} tokens)\n", end.reason.name(), end.usage.completion_tokens);
                }
            }
        }
    }
    Ok(())
}
