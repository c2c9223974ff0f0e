//! Stand-ins: what lies in the place of a file that was not downloaded, such as a pointer of Git-LFS, a web page, a message
//! of a server, an archive, a link to nothing.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::read_at::ReadAt;

/// Bytes that tell what a file is.
const HEAD: u64 = 512;

/// How it begins, what it is, and what to do.
const TEXTS: [(&[u8], &str, &str); 11] = [
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git-LFS pointer",
        "run `git lfs pull` in its repository, or download the file",
    ),
    (b"version https://hawser.github.com/spec/", "a Git-LFS pointer", "run `git lfs pull` in its repository"),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` in its repository"),
    (b"<!doctype html", HTML, WHERE),
    (b"<html", HTML, WHERE),
    (b"<?xml", "an XML document, the message of a server", WHERE),
    (b"{\"error\":", "the message of a server", WHERE),
    (b"Entry not found", "the message of a server", WHERE),
    (b"Repository not found", "the message of a server", WHERE),
    (b"Invalid username or password", "the message of a server", "log in and download the file again"),
    (b"Access to model", "the message of a server", "ask for access to the model and download the file again"),
];
const ARCHIVES: [(&[u8], &str); 4] = [
    (b"\x1f\x8b\x08", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
];
const HTML: &str = "an HTML page";
const WHERE: &str = "download the file itself: on the hub its address has /resolve/ in it, not /blob/";

/// Checks that a file that was opened is no stand-in.
pub(crate) fn check(path: &Path, file: &(impl ReadAt + ?Sized)) -> Result<(), CheckpointError> {
    let length = file.len().map_err(CheckpointError::io(path))?.min(HEAD);
    let mut head = vec![0; length as usize];
    file.read_at(0, &mut head).map_err(CheckpointError::io(path))?;
    let text = head.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    // The length of a safetensors header, with the header behind it, may look like the beginning of an archive.
    let archive = ARCHIVES.iter().find(|kind| head.starts_with(kind.0) && head.get(8) != Some(&b'{'));
    let (what, advice) = match (TEXTS.iter().find(|kind| begins(kind.0)), archive) {
        (Some((_, what, advice)), _) => (*what, *advice),
        (None, Some((_, what))) => (*what, "unpack it"),
        (None, None) => return Ok(()),
    };
    Err(CheckpointError::StandIn { path: path.to_owned(), what, advice })
}

/// Checks the same of a file that another reader opens; one that cannot be opened is that reader's to report.
pub(crate) fn check_path(path: &Path) -> Result<(), CheckpointError> {
    check_link(path)?;
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => match std::fs::File::open(path) {
            Ok(file) => check(path, &file),
            Err(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Checks that a path is no link to nothing.
pub(crate) fn check_link(path: &Path) -> Result<(), CheckpointError> {
    match dangling(path) {
        None => Ok(()),
        Some(target) => Err(CheckpointError::Dangling { path: path.to_owned(), target }),
    }
}

/// Whether there is a file; a link to nothing is an error.
pub(crate) fn is_file(path: &Path) -> Result<bool, CheckpointError> {
    check_link(path).map(|()| path.is_file())
}

/// Where a link leads to if nothing is there.
fn dangling(path: &Path) -> Option<PathBuf> {
    let missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    std::fs::metadata(path).err().filter(missing)?;
    std::fs::read_link(path).ok()
}

/// What a folder holds that cannot be read here, by the names of its files; empty if there is nothing to say.
pub(crate) fn other_weights(names: &[String]) -> &'static str {
    let has = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    if has(&|name| name.starts_with("adapter_model.") || name == "adapter_config.json") {
        "; a LoRA adapter, which changes a model: give the model, and this with --adapter"
    } else if has(&|name| name.starts_with("model-00") && name.ends_with(".safetensors")) {
        "; there are shards, but their index model.safetensors.index.json is missing: get it, too"
    } else if has(&|name| name.starts_with("pytorch_model") || name.ends_with(".pth")) {
        "; PyTorch's pickled weights of this format are not read: save them as safetensors, with transformers' \
         save_pretrained"
    } else if has(&|name| name.ends_with(".h5") || name.ends_with(".msgpack") || name.ends_with(".onnx")) {
        "; weights of another framework are not read: get the safetensors files"
    } else {
        ""
    }
}
