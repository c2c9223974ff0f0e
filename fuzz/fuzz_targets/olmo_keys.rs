//! A tensor's name in OLMo's safetensors files: what is read can be written, and is then read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::olmo_keys;

fuzz_target!(|name: &str| {
    let Ok(key) = olmo_keys::decode(name) else { return };
    let path: Vec<&str> = key.path.iter().map(String::as_str).collect();
    assert_eq!(olmo_keys::decode(&olmo_keys::encode(&path, key.is_pickled)).expect("a name that was written"), key);
});
