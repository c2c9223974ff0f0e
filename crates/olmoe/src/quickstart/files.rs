//! What the tour starts from: texts, tokenizer and configuration, which the program carries.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, ensure};

/// A kind of text.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// What a text of the kind begins with.
    pub(super) prompt: &'static str,
}

/// The kinds.
pub(super) const KINDS: [Kind; 3] = [
    Kind { name: "prose", prompt: "Once upon a time, there was a little girl named Lily." },
    Kind { name: "code", prompt: "Write a function to find the maximum of two numbers." },
    Kind { name: "maths", prompt: "Tom has 5 apples. He buys 3 more." },
];

const FILES: [(&str, &[u8]); 8] = [
    ("text/README.md", include_bytes!("../../quickstart/README.md")),
    ("text/prose.jsonl.gz", include_bytes!("../../quickstart/prose.jsonl.gz")),
    ("text/prose-held-out.jsonl.gz", include_bytes!("../../quickstart/prose-held-out.jsonl.gz")),
    ("text/code.jsonl.gz", include_bytes!("../../quickstart/code.jsonl.gz")),
    ("text/code-held-out.jsonl.gz", include_bytes!("../../quickstart/code-held-out.jsonl.gz")),
    ("text/maths.jsonl.gz", include_bytes!("../../quickstart/maths.jsonl.gz")),
    ("text/maths-held-out.jsonl.gz", include_bytes!("../../quickstart/maths-held-out.jsonl.gz")),
    ("tokenizer.json", include_bytes!("../../quickstart/tokenizer.json")),
];
const CONFIG: &str = include_str!("../../quickstart/train.yml");
/// Steps of the configuration.
const STEPS: u32 = 1100;

/// Writes them, unless they are there; the steps of the run. Fails if the folder holds another run.
pub(super) fn write(folder: &Path, steps: Option<u32>) -> anyhow::Result<u64> {
    let name = folder.to_str().context("the folder's name is no UTF-8 text; choose another")?;
    ensure!(
        !name.contains(['"', '\\', '\n', '$']),
        "the folder {name:?}: choose a name without \" \\ $ and line breaks"
    );
    let steps = steps.unwrap_or(STEPS).min(STEPS);
    let config = CONFIG.replace("quickstart/", &format!("{name}/")).replace("1100", &steps.to_string());
    let path = folder.join("train.yml");
    match std::fs::read_to_string(&path) {
        Ok(found) => ensure!(
            found == config,
            "{}: not the configuration of this run; another number of steps, or it was changed. Delete the folder or choose \
             another one; `olmoe train` runs a changed configuration",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    for (name, bytes) in FILES.into_iter().chain([("train.yml", config.as_bytes())]) {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| match std::fs::read(&path) {
                Ok(found) if found == bytes => Ok(()),
                _ => std::fs::write(&path, bytes),
            })
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    Ok(u64::from(steps))
}
