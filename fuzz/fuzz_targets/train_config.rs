//! A training configuration: what is read is written, and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_train::config::TrainConfig;

fuzz_target!(|text: &str| {
    let none = &[""; 0];
    let Ok(loaded) = TrainConfig::from_yaml(text, none, &|_| None) else { return };
    let Ok(written) = loaded.config.to_yaml() else { return };
    let again = TrainConfig::from_yaml(&written, none, &|_| None).expect("a configuration that was written");
    assert_eq!(again.config, loaded.config);
});
