//! A tokenizer.json: what is read encodes and decodes any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_data::Tokenizer;

const TEXT: &str =
    "Once upon a time, he said: «naïve café» 12345 <|endoftext|>\n\n\ttwo  spaces 漢字 \u{1f600}e\u{301}";

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else { return };
    let Ok(ids) = tokenizer.encode(TEXT) else { return };
    let _ = tokenizer.decode(&ids, false);
    let _ = tokenizer.decode(&[0, 1, 257, u32::MAX], true);
    let _ = tokenizer.encode_with_offsets(TEXT);
});
