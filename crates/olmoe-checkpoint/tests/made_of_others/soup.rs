use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::soup::{Soup, SoupError};
use olmoe_model::config::Moe;
use olmoe_tensor::dtype::bf16;

use super::*;

fn mixture() -> ModelConfig {
    let moe = Moe {
        num_experts: 4,
        top_k: 2,
        expert: Mlp { width: 32, activation: Activation::SwiGlu },
        ..ModelConfig::release().moe().unwrap().clone()
    };
    ModelConfig { feed_forward: FeedForward::Moe(moe), ..dense() }
}

fn opened(checkpoints: &[&Checkpoint]) -> Vec<Checkpoint> {
    checkpoints.iter().map(|checkpoint| Checkpoint::open(&checkpoint.contents().path).unwrap()).collect()
}

/// Numbers at the ends of what types hold, among others.
fn extremes(dtype: DType) -> impl Fn(&str, usize, &mut [f32]) {
    let (largest, smallest) = match dtype {
        DType::F32 => (f32::MAX, f32::from_bits(1)),
        DType::Bf16 => (bf16::MAX.to_f32(), f32::from_bits(1 << 16)),
        DType::F16 => (65504.0, 2f32.powi(-24)),
    };
    move |_, _, numbers| {
        let ends = [largest, -largest, smallest, -smallest, 0.0, -0.0, 1.0 + f32::EPSILON, -1.0 / 3.0];
        numbers[..ends.len()].copy_from_slice(&ends);
    }
}

#[test]
fn equal_checkpoints_give_themselves() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let desk = Desk::new();
        let source = Edited(Random::new(mixture(), 1, dtype), extremes(dtype));
        let forms = [HF, OLMO, GGUF, FUSED].map(|target| desk.write(&source, target));
        for (count, target) in [(1, HF), (3, OLMO), (5, HF), (7, HF)] {
            let chosen: Vec<&Checkpoint> = (0..count).map(|at| &forms[at % 4]).collect();
            assert_same(&forms[0], &desk.write(&Soup::new(opened(&chosen), &[], None).unwrap(), target));
        }
        // Other weights are rounded in f64, and that is gone in a type of half the width.
        let chosen = [&forms[1], &forms[0], &forms[3], &forms[1], &forms[0]];
        let soup = Soup::new(opened(&chosen), &[0.1, 0.7, 1.0 / 3.0, 2.0, 1e-9], None).unwrap();
        assert_same(&forms[0], &desk.write(&soup, HF));
        // A GGUF file has vectors in f32; they become what they were.
        let chosen = [&forms[2], &forms[0], &forms[1]];
        assert_same(&forms[0], &desk.write(&Soup::new(opened(&chosen), &[], None).unwrap(), HF));
        assert_same(&forms[2], &desk.write(&Soup::new(opened(&chosen), &[], None).unwrap(), GGUF));
    }
}

#[test]
fn it_is_the_average_rounded_once() {
    let desk = Desk::new();
    let drawn = [1, 2, 3].map(|seed| Random::new(mixture(), seed, DType::F32));
    let forms = [desk.write(&drawn[0], HF), desk.write(&drawn[1], OLMO), desk.write(&drawn[2], GGUF)];
    let all = [&forms[0], &forms[1], &forms[2]];
    for weights in [&[][..], &[1.0, 1.0, 1.0], &[7.0, 7.0, 7.0], &[1.0, 2.0, 5.0], &[1e300, 1e-300, 1e-320]] {
        let soup = desk.write(&Soup::new(opened(&all), weights, None).unwrap(), OLMO);
        let half = desk.write(&Soup::new(opened(&all), weights, Some(DType::Bf16)).unwrap(), HF);
        let largest = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let w: Vec<f64> = (0..3).map(|at| weights.get(at).map_or(1.0, |weight| weight / largest)).collect();
        for (name, slab, parameter) in slabs(&soup) {
            assert_eq!(half.encoding(parameter, slab), Encoding::BF16);
            let x: Vec<Vec<f32>> = drawn.iter().map(|random| numbers(random, parameter, slab)).collect();
            let (found, rounded) = (numbers(&soup, parameter, slab), numbers(&half, parameter, slab));
            for at in 0..found.len() {
                let term = |which: usize| w[which] * f64::from(x[which][at]);
                let average = (term(0) + term(1) + term(2)) / (w[0] + w[1] + w[2]);
                assert_eq!(found[at].to_bits(), (average as f32).to_bits(), "{name} {slab} {at}");
                // No bf16 is nearer.
                let bits = bf16::from_f32(rounded[at]).to_bits();
                let distance = |bits: u16| (f64::from(bf16::from_bits(bits).to_f32()) - average).abs();
                assert!(distance(bits) <= distance(bits + 1) && (bits == 0 || distance(bits) <= distance(bits - 1)));
            }
        }
    }
    // Equal weights are no weights, and the order of equal ones matters only to the last bit.
    let same = |weights: &[f64]| desk.write(&Soup::new(opened(&all), weights, None).unwrap(), HF);
    assert_same(&same(&[]), &same(&[0.3, 0.3, 0.3]));
    // The type is that of the first, a quantised other is read for what it stands for.
    let narrow = desk.write(&drawn[0], Target::HuggingFace { experts: Experts::Separate, dtype: Some(DType::Bf16) });
    let quantised = desk.write(&drawn[1], Target::Gguf { mix: Some(Mix::Q8_0) });
    let soup = desk.write(&Soup::new(opened(&[&narrow, &quantised]), &[], None).unwrap(), HF);
    assert_eq!(soup.encoding(0, 0), Encoding::BF16);
    let (found, a, b) = (numbers(&soup, 0, 0), numbers(&narrow, 0, 0), numbers(&quantised, 0, 0));
    assert!((0..found.len()).all(|at| found[at] == bf16::from_f32((a[at] + b[at]) / 2.0).to_f32()));
}

#[test]
fn a_parameter_of_several_pieces_is_averaged_to_its_end() {
    // 1.2 million numbers in the embedding, more than are averaged at a time.
    let desk = Desk::new();
    let config = ModelConfig { vocab_size: 20_001, embedding_size: 20_001, n_layers: 1, ..mixture() };
    let forms = [1, 2].map(|seed| desk.write(&Random::new(config.clone(), seed, DType::Bf16), HF));
    let soup = Soup::new(opened(&[&forms[0], &forms[1]]), &[], None).unwrap();
    let (found, a, b) = (numbers(&soup, 0, 0), numbers(&forms[0], 0, 0), numbers(&forms[1], 0, 0));
    assert_eq!(found.len(), 20_001 * 64);
    assert!((0..found.len()).all(|at| found[at] == bf16::from_f32((a[at] + b[at]) / 2.0).to_f32()));
}

#[test]
fn what_has_no_average_is_refused() {
    let desk = Desk::new();
    let good = desk.write(&Random::new(mixture(), 1, DType::F32), HF);
    let other = |change: &dyn Fn(&mut ModelConfig)| {
        let mut config = mixture();
        change(&mut config);
        desk.write(&Random::new(config, 1, DType::F32), OLMO)
    };
    let top_k = |config: &mut ModelConfig| match &mut config.feed_forward {
        FeedForward::Moe(moe) => moe.top_k = 3,
        FeedForward::Dense(_) => panic!("a mixture"),
    };
    #[rustfmt::skip]
    let cases = [
        (other(&|config| config.n_layers = 2), "`num_hidden_layers` (OLMo: `n_layers`) is 3 in {first} and 2 in {path}"),
        (other(&top_k), "`num_experts_per_tok` (OLMo: `moe_top_k`) is 2 in {first} and 3"),
        (other(&|config| config.rope.theta = 500.0), "`rope_theta` is 10000.0 in {first} and 500.0"),
        (other(&|config| *config = dense()), "`model_type` (OLMo: `block_type`) is"),
    ];
    for (other, expected) in &cases {
        let error = Soup::new(opened(&[&good, &good, other]), &[], None).map(drop).unwrap_err().to_string();
        let (path, first) = (other.contents().path.display(), good.contents().path.display());
        let expected = expected.replace("{first}", &first.to_string()).replace("{path}", &path.to_string());
        assert!(
            error.contains(&expected) && error.contains(&format!("{path} cannot be averaged with {first}")),
            "{error}"
        );
    }
    let refused =
        |weights: &[f64]| Soup::new(opened(&[&good, &good]), weights, None).map(drop).unwrap_err().to_string();
    assert!(refused(&[1.0]).contains("1 weight for 2 checkpoints"));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(&[1.0, bad]).contains("weight 2 is"), "{bad}");
    }
    assert!(matches!(Soup::new(Vec::new(), &[], None), Err(SoupError::Empty)));
    let quantised = desk.write(&good, Target::Gguf { mix: Some(Mix::Q8_0) });
    let error = Soup::new(opened(&[&quantised, &good]), &[], None).map(drop).unwrap_err().to_string();
    assert!(error.contains("--dtype"), "{error}");
    desk.write(&Soup::new(opened(&[&quantised, &good]), &[], Some(DType::Bf16)).unwrap(), HF);
}

#[test]
fn a_number_that_is_none_is_named_with_its_file() {
    let desk = Desk::new();
    let good = desk.write(&Random::new(mixture(), 1, DType::F32), HF);
    for (bad, target, file) in
        [(f32::NAN, HF, "model.safetensors"), (f32::INFINITY, OLMO, "model.safetensors"), (f32::NAN, GGUF, "")]
    {
        let broken = Edited(Random::new(mixture(), 2, DType::F32), |name: &str, slab, numbers: &mut [f32]| {
            if name == "layers.1.moe.experts.down_proj.weight" && slab == 2 {
                numbers[77] = bad;
            }
        });
        let broken = desk.write(&broken, target);
        let soup = Soup::new(opened(&[&good, &broken]), &[], None).unwrap();
        let before = std::fs::read_dir(desk.folder.path()).unwrap().count();
        let error = desk.try_write(&soup, HF).unwrap_err().to_string();
        let path = broken.contents().path.join(file);
        let path = path.to_str().unwrap().trim_end_matches('/');
        let expected = "parameter layers.1.moe.experts.down_proj.weight: number 77 of matrix 2 is not finite";
        assert!(error.contains(expected) && error.starts_with(&format!("{path}:")), "{error}");
        assert_eq!(std::fs::read_dir(desk.folder.path()).unwrap().count(), before, "nothing is left");
    }
}
