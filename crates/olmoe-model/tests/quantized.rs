//! Models whose matrices are held as quantised blocks: close to the numbers that the blocks stand for, and the same
//! bits however a text is cut, batched and divided among threads.

use std::convert::Infallible;

use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, Precision};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::quant::{BlockFormat, dequantize, quantize};
use olmoe_tensor::threads::set_num_threads;

fn config(dense: bool) -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (256, 2, 4, 2, 64);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (97, 97, 64);
    (config.pad_token_id, config.eos_token_id) = (None, None);
    let mlp = Mlp { width: 256, activation: Activation::SwiGlu };
    match &mut config.feed_forward {
        _ if dense => config.feed_forward = FeedForward::Dense(mlp),
        FeedForward::Moe(moe) => (moe.num_experts, moe.top_k, moe.expert) = (8, 2, mlp),
        FeedForward::Dense(_) => {}
    }
    (config.tie_embeddings, config.qk_norm) = (dense, if dense { None } else { config.qk_norm });
    config
}

/// A mixture, a dense model, and one whose first layer is dense and whose second a mixture.
fn configs() -> [(&'static str, ModelConfig); 3] {
    let even = Some(Mlp { width: 512, activation: Activation::SwiGlu });
    [
        ("mixture", config(false)),
        ("dense", config(true)),
        ("in turn", ModelConfig { even_layers: even, ..config(false) }),
    ]
}

/// A model of blocks, and one of the numbers that these stand for.
fn models(config: &ModelConfig, format: BlockFormat) -> (Model, Model) {
    let mut drawn = Model::new(config.clone(), Precision::Fp32, Held::Trained).unwrap();
    drawn.initialize(3);
    let count = drawn.parameters().len();
    let encodings = vec![Some(Encoding::Blocks(format)); count];
    let mut blocks = Model::for_inference(config.clone(), Precision::Fp32, &encodings).unwrap();
    let mut numbers = Model::new(config.clone(), Precision::Fp32, Held::Inference).unwrap();
    let mut held = 0;
    for id in 0..count {
        let mut value = drawn.value(id).unwrap().to_vec();
        if blocks.encoding(id).is_some() {
            held += 1;
            let mut bytes = vec![0; format.bytes(value.len()).unwrap()];
            quantize(format, &value, &mut bytes);
            dequantize(format, &bytes, &mut value);
            let place = |number: usize| number / format.block_len() * format.block_bytes();
            let Ok(()) = blocks.fill_encoded(id, |range, out| {
                out.copy_from_slice(&bytes[place(range.start)..place(range.end)]);
                Ok::<_, Infallible>(())
            });
        }
        if blocks.takes_numbers(id) {
            let Ok(()) = blocks.fill(id, |range, out| {
                out.copy_from_slice(&value[range]);
                Ok::<(), Infallible>(())
            });
        }
        let Ok(()) = numbers.fill(id, |range, out| {
            out.copy_from_slice(&value[range]);
            Ok::<(), Infallible>(())
        });
    }
    // Query, key, value and output, the experts or the MLP, the embedding, and the head unless that is the embedding.
    assert_eq!(held, 2 * 7 + 1 + usize::from(!config.tie_embeddings));
    assert_eq!(blocks.bytes() as u64, config.inference_bytes(Precision::Fp32, &encodings));
    let all: usize = (0..count).flat_map(|id| blocks.held_mut(id).map(|bytes| bytes.len()).collect::<Vec<_>>()).sum();
    assert_eq!(blocks.bytes() - all, 64 * 64 * 4, "all but the cosines and sines of 64 positions");
    (blocks, numbers)
}

fn ids(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 31 + seed * 13 + 5) % 97) as u32).collect()
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let batch = Batch::uniform(ids, ids.len()).unwrap();
    model.logits(&batch, &mut Activations::new(Keep::Nothing)).unwrap().to_vec()
}

#[test]
fn blocks_compute_what_their_numbers_do() {
    for (what, config) in configs() {
        for format in BlockFormat::ALL {
            let (blocks, numbers) = models(&config, format);
            let ids = ids(33, 1);
            let (ours, expected) = (logits(&blocks, &ids), logits(&numbers, &ids));
            // Of a mixture, only tokens whose experts are the same can be compared.
            let rows = ours.chunks(97).zip(expected.chunks(97)).map(|(a, b)| {
                let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                (error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
            });
            let mut errors: Vec<f64> = rows.collect();
            errors.sort_by(f64::total_cmp);
            let median = errors[errors.len() / 2];
            assert!((1e-5..2e-2).contains(&median), "{} {what}: {median}", format.name());
        }
    }
}

#[test]
fn the_same_bits_however_a_text_is_cut() {
    for (_, config) in configs() {
        for format in BlockFormat::ALL {
            let (model, _) = models(&config, format);
            let (first, second) = (ids(20, 1), ids(13, 2));
            let expected = logits(&model, &first);
            for threads in [1, 2, 3] {
                set_num_threads(threads);
                assert_eq!(logits(&model, &first), expected, "{} {threads} threads", format.name());
            }
            set_num_threads(2);
            let mut activations = Activations::new(Keep::Nothing);
            let both = Batch::new(&[&second[..], &first].concat(), &[13, 20]).unwrap();
            let together = model.logits(&both, &mut activations).unwrap();
            assert_eq!(together.row_range(13..33), expected, "{} in a batch", format.name());
            for chunk in [1, 7] {
                let mut caches = [KvCache::new(&model, 20)];
                let mut got = Vec::new();
                for (held, piece) in first.chunks(chunk).enumerate() {
                    let batch = Batch::uniform(piece, piece.len()).unwrap().continued_from(&[held * chunk]).unwrap();
                    model.forward_cached(&batch, &mut caches, &mut activations).unwrap();
                    got.extend_from_slice(&model.logits_of(activations.hidden()));
                }
                assert_eq!(got, expected, "{} in pieces of {chunk}", format.name());
            }
            let targets: Vec<u32> = first[1..].iter().copied().chain([0]).collect();
            let batch = Batch::uniform(&first, 20).unwrap();
            model.forward(&batch, &mut activations).unwrap();
            let log_probs = model.log_probs(&activations, &targets).unwrap();
            for (t, row) in expected.chunks(97).enumerate() {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                let logp = f64::from(row[targets[t] as usize]) - sum.ln();
                assert!((f64::from(log_probs.logp_t[t]) - logp).abs() < 1e-5);
            }
        }
    }
}

/// The embedding alone is held as a file has it; everything else is the same.
#[test]
fn an_embedding_is_what_its_bytes_stand_for() {
    for tied in [false, true] {
        let mut config = config(false);
        config.tie_embeddings = tied;
        let mut drawn = Model::new(config.clone(), Precision::AmpBf16, Held::Trained).unwrap();
        drawn.initialize(3);
        let embedding = drawn.find("embed_tokens.weight").unwrap();
        let plain = [Encoding::F32, Encoding::BF16, Encoding::F16];
        for encoding in plain.into_iter().chain(BlockFormat::ALL.map(Encoding::Blocks)) {
            if tied && encoding.is_quantized() {
                // The head would be quantised, too; see above.
                continue;
            }
            let mut encodings = vec![None; drawn.parameters().len()];
            encodings[embedding] = Some(encoding);
            let mut held = Model::for_inference(config.clone(), Precision::AmpBf16, &encodings).unwrap();
            let mut numbers = Model::new(config.clone(), Precision::AmpBf16, Held::Inference).unwrap();
            for id in 0..encodings.len() {
                let mut value = drawn.value(id).unwrap().to_vec();
                if id == embedding {
                    let mut bytes = vec![0; encoding.bytes(value.len()).unwrap()];
                    encoding.encode(&value, &mut bytes);
                    encoding.decode(&bytes, &mut value);
                    let place = |number: usize| number / encoding.block_len() * encoding.block_bytes();
                    assert_eq!((held.encoding(id), held.takes_numbers(id)), (Some(encoding), tied));
                    let Ok(()) = held.fill_encoded(id, |range, out| {
                        out.copy_from_slice(&bytes[place(range.start)..place(range.end)]);
                        Ok::<_, Infallible>(())
                    });
                }
                for model in [&mut held, &mut numbers] {
                    if model.takes_numbers(id) {
                        let Ok(()) = model.fill(id, |range, out| {
                            out.copy_from_slice(&value[range]);
                            Ok::<(), Infallible>(())
                        });
                    }
                }
            }
            assert_eq!(logits(&held, &ids(9, 1)), logits(&numbers, &ids(9, 1)), "{encoding} tied: {tied}");
            assert_eq!(held.bytes() as u64, config.inference_bytes(Precision::AmpBf16, &encodings));
            let saved = encoding.bytes(97 * 256).unwrap();
            assert_eq!(numbers.bytes() - held.bytes(), 97 * 256 * 4 - saved, "{encoding} tied: {tied}");
            let error = held.fill_encoded(embedding, |range, _| if range.start == 0 { Err("bad") } else { Ok(()) });
            assert_eq!(error, Err("bad"));
        }
    }
}
