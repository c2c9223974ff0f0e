//! A pickle.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::pickle;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = pickle::parse(bytes) {
        assert!(error.to_string().len() < 1000, "{error}");
    }
});
