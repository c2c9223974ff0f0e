//! Bytes changed at random in good checkpoints: whatever comes of it, it is a result or an error that names the path.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use olmoe_checkpoint::open::Contents;
use proptest::prelude::*;

use crate::good::good;
use crate::table::{copy, whole};

/// Copies of the good ones, to be damaged; each with the file that is.
fn victims() -> &'static [(PathBuf, PathBuf)] {
    static VICTIMS: OnceLock<(tempfile::TempDir, Vec<(PathBuf, PathBuf)>)> = OnceLock::new();
    let made = VICTIMS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let good = good();
        let mut victims = Vec::new();
        let folders: [(&Path, &[&str]); 6] = [
            (&good.huggingface, &["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]),
            (&good.sharded, &["model-00001-of-00002.safetensors", "model.safetensors.index.json"]),
            (&good.fused, &["model.safetensors"]),
            (&good.olmo, &["model.safetensors", "config.yaml"]),
            (&good.torch, &["model.pt"]),
            (&good.training, &["manifest.json", "config.json"]),
        ];
        for (number, (from, files)) in folders.into_iter().enumerate() {
            let to = folder.path().join(format!("victim-{number}"));
            copy(from, &to);
            victims.extend(files.iter().map(|file| (to.clone(), to.join(file))));
        }
        for from in [&good.gguf, &good.quantized] {
            let to = folder.path().join(from.file_name().unwrap());
            fs::copy(from, &to).unwrap();
            victims.extend(vec![(to.clone(), to); 3]);
        }
        (folder, victims)
    });
    &made.1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(
        victim in 0..victims().len(),
        // Half of the damage is done in the first kilobytes, where the headers are.
        flips in prop::collection::vec((any::<bool>(), 0.0..1.0f64, any::<u8>()), 1..4),
    ) {
        let (path, file) = &victims()[victim];
        let bytes = fs::read(file).unwrap();
        let mut bad = bytes.clone();
        for (early, place, flip) in flips {
            let range = if early { bad.len().min(4096) } else { bad.len() };
            bad[(place * range as f64) as usize] ^= flip;
        }
        fs::write(file, &bad).unwrap();
        // Tables for a context of millions of positions are what such a configuration asks for.
        let config = Contents::read(path).ok().and_then(|contents| contents.config);
        let long = config.is_some_and(|loaded| loaded.config.max_sequence_length > 1 << 14);
        let result = if long { Ok(()) } else { whole(path) };
        fs::write(file, &bytes).unwrap();
        if let Err(error) = result {
            let text = error.to_string();
            prop_assert!(text.contains(&*path.to_string_lossy()), "{text}");
        }
    }
}
