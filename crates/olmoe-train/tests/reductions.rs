//! What tokens count in the loss of fine-tuning: reductions, weights and dynamic fine-tuning, through a small model.

use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Gradients, Held, Keep, Model, Precision};
use olmoe_tensor::ops::cross_entropy::IGNORE;
use olmoe_train::loss::{Loss, Losses, Reduction, StepCounts, TokenLoss, neftune_amplitude};

fn model() -> Model {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 16,
        "pad_token_id": 1, "eos_token_id": 2, "router_aux_loss_coef": 0.0
    }"#;
    let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    let mut model = Model::new(config, Precision::Fp32, Held::Trained).expect("a model");
    model.initialize(3);
    model
}

/// Three sequences, of which 4, 1 and no tokens are learned.
const SEQUENCES: [(&[u32], &[u32]); 3] = [
    (&[5, 9, 3, 7, 11, 2], &[IGNORE, 3, 7, 11, 2, IGNORE]),
    (&[5, 4, 8], &[IGNORE, 8, IGNORE]),
    (&[6, 6], &[IGNORE, IGNORE]),
];

struct Micro {
    batch: Batch,
    targets: Vec<u32>,
}

/// The sequences in micro-batches of these numbers of sequences.
fn split(sizes: &[usize]) -> Vec<Micro> {
    let mut rest = &SEQUENCES[..];
    let micro = |size: &usize| {
        let (own, after) = rest.split_at(*size);
        rest = after;
        let ids: Vec<u32> = own.iter().flat_map(|(ids, _)| ids.iter().copied()).collect();
        let lengths: Vec<usize> = own.iter().map(|(ids, _)| ids.len()).collect();
        let targets = own.iter().flat_map(|(_, targets)| targets.iter().copied()).collect();
        Micro { batch: Batch::new(&ids, &lengths).expect("a batch"), targets }
    };
    sizes.iter().map(micro).collect()
}

fn step(reduction: Reduction, token_loss: TokenLoss, sizes: &[usize]) -> (f64, Vec<f32>) {
    let model = model();
    let micros = split(sizes);
    let mut counts = StepCounts::default();
    micros.iter().for_each(|micro| counts.add(&micro.targets, &micro.batch.segments));
    assert_eq!(counts, StepCounts { tokens: 5, sequences: 2, micro_batches: sizes.len() as u64 });
    let (mut losses, mut gradients) = (Losses::default(), model.gradients());
    let mut activations = Activations::new(Keep::Everything);
    for Micro { batch, targets } in &micros {
        let weights = reduction.weights(&counts, targets, &batch.segments);
        let loss = Loss { token_loss, ..Loss::over(1.0) };
        let found = loss.weighted_step(&model, batch, targets, Some(&weights), &mut activations, &mut gradients);
        losses += found.expect("a step");
    }
    (losses.cross_entropy, all(&gradients))
}

fn all(gradients: &Gradients) -> Vec<f32> {
    gradients.iter().flat_map(|(_, g)| g.to_vec()).collect()
}

/// Cross-entropies of the learned tokens of each sequence.
fn surprises() -> Vec<Vec<f64>> {
    let model = model();
    let mut activations = Activations::new(Keep::Nothing);
    let of = |(ids, targets): &(&[u32], &[u32])| {
        let batch = Batch::new(ids, &[ids.len()]).expect("a batch");
        model.forward(&batch, &mut activations).expect("a pass");
        let found = model.log_probs(&activations, targets).expect("log-probabilities");
        let learned = found.logp_t.iter().zip(*targets).filter(|(_, target)| **target != IGNORE);
        learned.map(|(logp, _)| -f64::from(*logp)).collect()
    };
    SEQUENCES.iter().map(of).collect()
}

fn near(a: f64, b: f64, what: &str) {
    assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {a}, not {b}");
}

fn near_all(a: &[f32], b: &[f32], what: &str) {
    let size = b.iter().fold(0f32, |size, x| size.max(x.abs()));
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * size), "{what}");
}

#[test]
fn each_reduction_is_its_formula() {
    let nll = surprises();
    let sum = |own: &[f64]| own.iter().sum::<f64>();
    let mean = |own: &[f64]| sum(own) / own.len().max(1) as f64;
    let (a, b) = (&nll[0], &nll[1]);
    let together = [&a[..], &b[..]].concat();
    let expected = [
        (Reduction::Sum, [2, 1].as_slice(), sum(&together) / 2.0),
        (Reduction::Sum, &[3], sum(&together)),
        (Reduction::Token, &[2, 1], mean(&together)),
        (Reduction::Token, &[1, 1, 1], mean(&together)),
        (Reduction::MicroMean, &[3], mean(&together)),
        (Reduction::MicroMean, &[1, 2], (mean(a) + mean(b)) / 2.0),
        (Reduction::MicroMean, &[1, 1, 1], (mean(a) + mean(b)) / 3.0),
        (Reduction::SequenceMean, &[3], (mean(a) + mean(b)) / 2.0),
        (Reduction::SequenceMean, &[1, 2], (mean(a) + mean(b)) / 2.0),
    ];
    for (reduction, sizes, expected) in expected {
        let (loss, gradients) = step(reduction, TokenLoss::Nll, sizes);
        near(loss, expected, &format!("{reduction} {sizes:?}"));
        assert!(gradients.iter().all(|g| g.is_finite()), "a micro-batch without learned tokens is no NaN");
    }
}

#[test]
fn means_over_tokens_and_sequences_do_not_depend_on_the_split() {
    for token_loss in TokenLoss::ALL.iter().copied() {
        for reduction in [Reduction::Token, Reduction::SequenceMean] {
            let (loss, gradients) = step(reduction, token_loss, &[3]);
            for sizes in [[1, 2].as_slice(), &[2, 1], &[1, 1, 1]] {
                let (other, others) = step(reduction, token_loss, sizes);
                near(other, loss, reduction.name());
                near_all(&others, &gradients, reduction.name());
            }
        }
    }
    let (whole, _) = step(Reduction::MicroMean, TokenLoss::Nll, &[3]);
    let (parts, _) = step(Reduction::MicroMean, TokenLoss::Nll, &[1, 2]);
    assert!((whole - parts).abs() > 1e-4, "short sequences count more: {whole} {parts}");
}

#[test]
fn weights_of_a_mean_over_tokens_are_the_plain_loss() {
    let model = model();
    let [micro] = <[Micro; 1]>::try_from(split(&[3])).ok().expect("one");
    let mut gradients = model.gradients();
    let mut activations = Activations::new(Keep::Everything);
    let plain = Loss::over(5.0).step(&model, &micro.batch, &micro.targets, &mut activations, &mut gradients);
    let (loss, weighted) = step(Reduction::Token, TokenLoss::Nll, &[3]);
    near(loss, plain.expect("a step").cross_entropy, "the loss");
    assert_eq!(weighted, all(&gradients));
}

#[test]
fn dynamic_fine_tuning_weighs_by_the_probability_without_its_gradient() {
    let nll = surprises().concat();
    let expected = nll.iter().map(|nll| (-nll).exp() * nll).sum::<f64>() / 5.0;
    let (loss, gradients) = step(Reduction::Token, TokenLoss::Dft, &[3]);
    near(loss, expected, "Σ p·nll / n");
    // The same as constant weights.
    let model = model();
    let [micro] = <[Micro; 1]>::try_from(split(&[3])).ok().expect("one");
    let mut rest = nll.iter();
    let weights: Vec<f64> = micro
        .targets
        .iter()
        .map(|target| if *target == IGNORE { 0.0 } else { (-rest.next().expect("one a target")).exp() })
        .collect();
    let mut constant = model.gradients();
    let mut activations = Activations::new(Keep::Everything);
    let found = Loss::over(5.0).weighted_step(
        &model,
        &micro.batch,
        &micro.targets,
        Some(&weights),
        &mut activations,
        &mut constant,
    );
    near(loss, found.expect("a step").cross_entropy, "constant weights");
    near_all(&gradients, &all(&constant), "constant weights");
}

#[test]
fn names_and_amplitudes() {
    assert_eq!(("mean".parse(), "dft".parse()), (Ok(Reduction::MicroMean), Ok(TokenLoss::Dft)));
    let error = "tokens".parse::<Reduction>().expect_err("a typo").to_string();
    assert!(error.starts_with("reduction of the loss \"tokens\" is not known, did you mean \"token\"?"), "{error}");
    // transformers.integrations.neftune: neftune_noise_alpha / torch.sqrt(torch.tensor(L * D)).
    assert!((neftune_amplitude(5.0, 512, 2048) - 0.004_882_812_5).abs() < 1e-15);
    assert_eq!(neftune_amplitude(5.0, 0, 2048), 0.0);
}
