//! Files that are no adapter of the model, and settings that are not followed.

use serde_json::json;

use super::*;

#[test]
fn settings_that_change_what_an_adapter_means_are_refused_by_name() {
    let desk = Desk::new();
    for (key, value, reason) in [
        ("alora_invocation_tokens", json!([3]), "certain tokens"),
        ("arrow_config", json!({"top_k": 2}), "a router of its own"),
        ("kasa_config", json!({"x": 1}), "KaSA"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "several times"),
        ("use_qalora", json!(true), "QALoRA"),
        ("use_bdlora", json!({"nblocks": 2}), "diagonal blocks"),
        ("lora_bias", json!(true), "biases"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("trainable_token_indices", json!([1]), "rows of the embedding"),
        ("bias", json!("all"), "biases of the base"),
        ("peft_type", json!("LOHA"), "only LoRA"),
        ("init_lora_weights", json!("pissa_niter_4"), "a base that this initialisation has changed"),
        ("init_lora_weights", json!("olora"), "path_initial_model_for_weight_conversion"),
        ("use_new_thing", json!(true), "not known here"),
        ("r", json!(0), "expected a whole number"),
        ("lora_alpha", json!("x"), "expected a number"),
        ("use_rslora", json!("yes"), "expected true or false"),
        ("rank_pattern", json!({"(": 2}), "cannot be used"),
        ("rank_pattern", json!({"q_proj": -1}), "rank_pattern.q_proj"),
        ("target_modules", json!([1]), "a list of names"),
        ("layers_to_transform", json!("x"), "numbers of layers"),
    ] {
        let folder = desk.copy("separate");
        set(&folder, key, value);
        let text = error(&folder);
        assert!(text.contains(key) && text.contains(reason), "{key}: {text}");
    }
    for (key, value) in
        [("use_new_thing", json!(false)), ("init_lora_weights", json!("gaussian")), ("lora_dropout", json!(0.5))]
    {
        let folder = desk.copy("separate");
        set(&folder, key, value);
        AdapterWeights::read(&folder, &config()).unwrap();
    }
}

/// sglang#25528: a tensor without a place is an error that names it, never left out.
#[test]
fn every_tensor_of_a_file_has_a_place_or_is_an_error() {
    let desk = Desk::new();
    let with = |name: &str, new: &str| {
        let folder = desk.copy("separate");
        change(&folder, |tensors| {
            let at = tensors.iter().position(|(tensor, ..)| tensor.ends_with(name)).unwrap();
            tensors[at].0 = format!("base_model.model.{new}");
        });
        error(&folder)
    };
    let q = "layers.0.self_attn.q_proj.lora_A.weight";
    for (new, expected) in [
        ("model.layers.0.self_attn.qkv_proj.lora_A.weight", "no matrix model.layers.0.self_attn.qkv_proj"),
        ("model.layers.2.self_attn.q_proj.lora_A.weight", "no matrix model.layers.2"),
        ("model.layers.0.mlp.experts.4.up_proj.lora_A.weight", "no matrix"),
        ("model.layers.0.self_attn.q_proj.lora_C.weight", "nothing is left out in silence"),
        ("lm_head.weight", "modules_to_save does not name it"),
        ("model.layers.0.self_attn.q_proj.lora_embedding_A", "has no lora_A.weight"),
    ] {
        let text = with(q, new);
        assert!(text.contains(expected) && text.contains("adapter_model.safetensors"), "{new}: {text}");
    }
}

/// Automodel#3284, #1755: settings and tensors that contradict each other.
#[test]
fn settings_and_tensors_have_to_agree() {
    let desk = Desk::new();
    for (key, value, expected) in [
        ("r", json!(4), "has the rank 3, but by r and rank_pattern it is 4"),
        ("rank_pattern", json!({"o_proj": 2}), "has the rank 3, but by r and rank_pattern it is 2"),
        ("target_modules", json!(["q_proj"]), "the settings do not choose it"),
        ("target_modules", json!([".*"]), "the settings do not choose it"),
        ("exclude_modules", json!(["q_proj"]), "self_attn.q_proj is in the file"),
        ("layers_to_transform", json!([1]), "the settings do not choose it"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save names \"lm_head\""),
        ("use_dora", json!(true), "no magnitudes"),
    ] {
        let folder = desk.copy("separate");
        set(&folder, key, value);
        let text = error(&folder);
        assert!(text.contains(expected), "{key}: {text}");
    }
    let folder = desk.copy("separate_one_expert");
    set(&folder, "target_modules", json!(["lm_head", "down_proj"]));
    let text = error(&folder);
    assert!(text.contains("experts.0.down_proj is chosen by its settings, but has no tensors"), "{text}");
    let folder = desk.copy("separate_dora");
    set(&folder, "use_dora", json!(false));
    assert!(error(&folder).contains("use_dora is false"));
    // A pattern, and every matrix by its kind.
    for targets in [json!("all-linear"), json!(r"model\.layers\.\d+\.(self_attn|mlp)\..*")] {
        let folder = desk.copy("separate");
        set(&folder, "target_modules", targets);
        AdapterWeights::read(&folder, &config()).unwrap();
    }
}

#[test]
fn shapes_and_numbers_are_checked() {
    let desk = Desk::new();
    let with = |name: &str, edit: &dyn Fn(&mut Vec<usize>, &mut Vec<f32>)| {
        let folder = desk.copy("separate");
        change(&folder, |tensors| {
            let at = tensors.iter().position(|(tensor, ..)| tensor.ends_with(name)).unwrap();
            let (_, shape, numbers) = &mut tensors[at];
            edit(shape, numbers);
        });
        error(&folder)
    };
    let text = with("layers.0.mlp.gate.lora_B.weight", &|shape, _| *shape = vec![3, 4]);
    assert!(text.contains("[3, 4], expected [4, 3]"), "{text}");
    let text = with("layers.0.mlp.gate.lora_B.weight", &|_, numbers| numbers[5] = f32::NAN);
    assert!(text.contains("number 5 is not finite"), "{text}");
    let text = with("layers.0.mlp.gate.lora_A.weight", &|shape, numbers| {
        (*shape, *numbers) = (vec![0, 24], Vec::new());
    });
    assert!(text.contains("rank of 1 at least"), "{text}");
    let folder = desk.copy("fused");
    change(&folder, |tensors| {
        let at = tensors.iter().position(|(tensor, ..)| tensor.ends_with("experts.lora_A.weight")).unwrap();
        tensors[at].1 = vec![20, 12];
    });
    let text = error(&folder);
    assert!(text.contains("that of no stack of this model's experts"), "{text}");
    // Another model.
    let mut other = config();
    other.n_layers = 1;
    let text = AdapterWeights::read(&golden("separate"), &other).unwrap_err().to_string();
    assert!(text.contains("is it another model's adapter?"), "{text}");
}

#[test]
fn what_is_no_adapter_is_named() {
    let desk = Desk::new();
    assert!(error(&golden("base")).contains("no adapter here"));
    let folder = desk.copy("separate");
    std::fs::remove_file(folder.join("adapter_model.safetensors")).unwrap();
    assert!(error(&folder).contains("adapter_config.json without adapter_model.safetensors"));
    let folder = desk.copy("separate");
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap();
    assert!(error(&folder).contains("adapter_config.json is missing"));
    let folder = desk.copy("separate");
    std::fs::write(folder.join("adapter_config.json"), "{").unwrap();
    assert!(error(&folder).contains("the file is damaged"));
    std::fs::write(folder.join("adapter_config.json"), "[1]").unwrap();
    assert!(error(&folder).contains("expected an object"));
    assert!(error(&desk.path("none")).contains("none"));
    let model = desk.write(&base(), F32, "model.gguf");
    assert!(error(&model).contains("a GGUF file of another kind"));
    let text = Checkpoint::open(&golden("separate")).map(drop).unwrap_err().to_string();
    assert!(text.contains("--adapter"), "{text}");
}

/// Random damage: an error or an adapter, never a panic.
#[test]
fn damaged_files_do_not_crash_it() {
    let desk = Desk::new();
    let folder = desk.copy("fused_down");
    let gguf = desk.path("a.gguf");
    read("fused_down").write_gguf(&gguf, false).unwrap();
    let mut random = 1u64;
    for path in [folder.join("adapter_model.safetensors"), folder.join("adapter_config.json"), gguf.clone()] {
        let good = std::fs::read(&path).unwrap();
        let of = if path == gguf { &gguf } else { &folder };
        for round in 0..600 {
            let mut bytes = good.clone();
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize % bytes.len().min(1200);
            match round % 3 {
                0 => bytes[at] ^= 1 << (random % 8),
                1 => bytes[at] = random as u8,
                _ => bytes.truncate(at),
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = AdapterWeights::read(of, &config());
        }
        std::fs::write(&path, good).unwrap();
        AdapterWeights::read(of, &config()).unwrap();
    }
}
