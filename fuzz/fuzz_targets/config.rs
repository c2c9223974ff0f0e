//! A configuration, of Hugging Face, OLMo or this program: what is read is valid.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_model::config::ModelConfig;

fuzz_target!(|text: &str| {
    let read = [ModelConfig::from_hf_json(text), ModelConfig::from_olmo_yaml(text)];
    for loaded in read.into_iter().flatten() {
        loaded.config.validate().expect("a configuration that was read");
    }
    if let Ok(config) = ModelConfig::from_json(text) {
        config.validate().expect("a configuration that was read");
    }
});
