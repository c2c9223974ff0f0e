//! Adapters merged into weights of every type.

use olmoe_checkpoint::gguf::mix::Mix;

use super::references::ROUNDING;
use super::*;

/// peft#2368, #1388: computed in f32 and rounded once, and the share of the change that is left is told.
#[test]
fn a_merge_rounds_once_and_tells_what_is_left_of_the_change() {
    let desk = Desk::new();
    let (base, adapter) = (base(), read("separate"));
    let exact = Tensors(std::fs::read(desk.merged(&adapter, HF).join("model.safetensors")).unwrap());
    let merged = Merged::new(&base, &adapter, MergedType::Written).unwrap();
    let path = desk.write(&merged, BF16, "bf16");
    let rounded = std::fs::read(path.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&rounded).unwrap();
    for (name, view) in file.tensors() {
        let found: Vec<u16> = view.data().as_chunks().0.iter().map(|x| u16::from_le_bytes(*x)).collect();
        let expected: Vec<u16> =
            exact.get(&name).iter().map(|x| olmoe_tensor::dtype::bf16::from_f32(*x).to_bits()).collect();
        assert_eq!(found, expected, "{name}");
    }
    let survival = merged.survival();
    let names: Vec<&str> = survival.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 8);
    let experts = &survival["moe.experts.down_proj"];
    assert_eq!(experts.matrices, 2 * 4);
    assert!(experts.kept() > 0.99 && experts.kept() < 1.01 && experts.rounding() > 1e-4, "{experts:?}");
    // A change far below the steps of bf16 is lost, and in f32 it is kept.
    let bf16 = Checkpoint::open(&desk.write(&base, BF16, "base")).unwrap();
    let tiny = AdapterWeights::combined(vec![(adapter.clone(), 1e-6)]).unwrap();
    let lost = Merged::new(&bf16, &tiny, MergedType::Kept).unwrap();
    desk.write(&lost, HF, "lost");
    assert!(lost.survival().values().all(|kind| kind.kept() < 0.2), "{:?}", lost.survival());
    let kept = Merged::new(&bf16, &tiny, MergedType::Written).unwrap();
    desk.write(&kept, F32, "kept.gguf");
    assert!(kept.survival().values().all(|kind| kind.kept() > 0.9), "{:?}", kept.survival());
}

/// peft#2321, qlora#28, #254, unsloth-zoo#810: an adapter merged into quantised weights belongs to the numbers that they stand
/// for. peft#3531: the base is left as it is.
#[test]
fn a_quantised_base_is_merged_as_the_numbers_that_it_stands_for() {
    let desk = Desk::new();
    let mut config = config();
    // Rows of whole blocks.
    (config.d_model, config.n_heads, config.n_kv_heads, config.head_dim) = (32, 2, 2, 16);
    let olmoe_model::config::FeedForward::Moe(moe) = &mut config.feed_forward else { panic!() };
    moe.expert.width = 64;
    let random = olmoe_checkpoint::weights::Random::new(config.clone(), 5, DType::F32);
    let q8 = Target::Gguf { mix: Some(Mix::by_name("q8_0").unwrap()) };
    let path = desk.write(&random, q8, "q8.gguf");
    let before = std::fs::read(&path).unwrap();
    let quantised = Checkpoint::open(&path).unwrap();
    let f32_base = Checkpoint::open(&desk.write(&quantised, F32, "f32.gguf")).unwrap();
    // An adapter of this model.
    let settings = olmoe_model::adapter::settings::AdapterSettings::default();
    let adapters = settings.resolve(&config).unwrap();
    let count = olmoe_model::adapter::parameters_with(&config, &adapters).unwrap().len();
    let held = vec![olmoe_model::model::Held::Trained; count];
    let mut model = Model::with_adapters(config, Precision::Fp32, held, &[], &adapters).unwrap();
    model.initialize(3);
    for id in 0..count {
        if model.parameters()[id].kind.is_of_adapter() {
            model.update(id, |range, x| {
                x.iter_mut().zip(range).for_each(|(x, at)| *x = 0.05 * ((at * 37 % 101) as f32 / 50.0 - 1.0));
            });
        }
    }
    let mut adapter = AdapterWeights::of(&model).unwrap();
    assert!(!adapter.replaced.is_empty(), "all of the model is trained");
    adapter.replaced.clear();
    let exact = logits(&desk.write(&Merged::new(&f32_base, &adapter, MergedType::Kept).unwrap(), F32, "exact.gguf"));
    let merged = Merged::new(&quantised, &adapter, MergedType::Written).unwrap();
    let found = logits(&desk.write(&merged, F32, "merged.gguf"));
    assert_eq!(found, exact);
    // Into the blocks of the base, and into others.
    let original = Merged::new(&quantised, &adapter, MergedType::Kept).unwrap();
    let path = desk.write(&original, Target::Gguf { mix: None }, "original.gguf");
    assert!(Checkpoint::open(&path).unwrap().main_encoding().name() == "q8_0");
    let experts = original.survival()["moe.experts.up_proj"];
    assert!(experts.kept() > 0.5 && experts.rounding() < 1.0, "{experts:?}");
    assert!(difference(&logits(&path), &exact) < 0.1 * exact.iter().fold(0.0, |most, x| x.abs().max(most)));
    let q4 = Target::Gguf { mix: Some(Mix::by_name("q4_0").unwrap()) };
    let path = desk.write(&merged, q4, "q4.gguf");
    assert!(Checkpoint::open(&path).unwrap().main_encoding().name() == "q4_0");
    assert_eq!(std::fs::read(desk.path("q8.gguf")).unwrap(), before);
}

#[test]
fn an_adapter_of_another_model_is_not_merged() {
    let mut other = config();
    other.n_layers = 1;
    let base = base();
    let desk = Desk::new();
    let path = desk.path("a.gguf");
    let one = AdapterWeights::read(&golden("fused_down"), &config()).unwrap();
    one.write_gguf(&path, false).unwrap();
    let text = AdapterWeights::read(&path, &other).unwrap_err().to_string();
    assert!(text.contains("belongs to no tensor of this model"), "{text}");
    let merged = Merged::new(&base, &one, MergedType::Kept).unwrap();
    let found = logits(&desk.write(&merged, HF, "merged"));
    assert!(difference(&found, &Tensors::of("fused").get("logits.fused_down")) < ROUNDING);
}
