//! The index of a Megatron data set beside a file of 64 bytes: what is read leads nowhere outside of them.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use olmoe_data::token_file::Megatron;

static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = std::env::temp_dir().join(format!("olmoe-fuzz-{}", std::process::id()));
    std::fs::write(base.with_extension("bin"), [1; 64]).expect("a temporary file");
    base
});

fuzz_target!(|bytes: &[u8]| {
    let index = BASE.with_extension("idx");
    if std::fs::write(&index, bytes).is_err() {
        return;
    }
    let Ok(set) = Megatron::open(&index) else { return };
    for sequence in 0..set.num_sequences().min(100) {
        if let Ok(Some(ids)) = set.sequence(sequence, 1 << 20) {
            assert_eq!(Some(ids.len()), set.length(sequence));
        }
        let _ = set.mode(sequence);
    }
    for document in 0..=set.num_documents().min(100) {
        if let Some(sequences) = set.document(document) {
            assert!(sequences.start <= sequences.end && sequences.end <= set.num_sequences());
        }
    }
});
