//! A GGUF file as a user opens it: header, model, vocabulary, weights.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::open::Contents;
use olmoe_checkpoint::{Checkpoint, companions, gguf};
use olmoe_model::model::Precision;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("olmoe-fuzz-{}.gguf", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    // Most damage is found here, without a file.
    if gguf::container::read(bytes).is_err() || std::fs::write(&*PATH, bytes).is_err() {
        return;
    }
    let Ok(contents) = Contents::read(&PATH) else { return };
    if let Ok(Some(tokenizer)) = companions::tokenizer(&contents) {
        let ids = tokenizer.encode("Once upon a time, <|endoftext|> 12345 days ago.").unwrap_or_default();
        let _ = tokenizer.decode(&ids, true);
    }
    // Tables of positions are as long as the file says, up to a limit: they would take most of the time.
    let short = contents.config.as_ref().is_some_and(|loaded| loaded.config.max_sequence_length <= 1 << 12);
    if let Ok(checkpoint) = Checkpoint::new(contents)
        && short
    {
        for keep_blocks in [false, true] {
            let _ = checkpoint.load(&Loading::new(Precision::Fp32, keep_blocks), &|_| ());
        }
    }
});
