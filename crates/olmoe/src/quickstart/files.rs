//! The initial files of the tour: texts, tokenizer and configuration, which the program contains.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::instructions;
use crate::files::write_whole;

/// A kind of text.
pub(super) struct TextKind {
    pub(super) name: &'static str,
    /// The beginning of a text of the kind.
    pub(super) prompt: &'static str,
}

/// The kinds of text.
pub(super) const KINDS: [TextKind; 3] = [
    TextKind { name: "prose", prompt: "Once upon a time, there was a little girl named Lily." },
    TextKind { name: "code", prompt: "Write a function to find the maximum of two numbers." },
    TextKind { name: "maths", prompt: "Tom has 5 apples. He buys 3 more." },
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
/// What the steps of the tour make in its folder.
const MADE: [&str; 7] = ["tokens", "run", "tuned", "model-hf", "model-q8_0.gguf", "experts.svg", "loss.svg"];
const CONFIG: &str = include_str!("../../quickstart/train.yml");

/// The size of a run. Each size has one fixed configuration, whose losses have the same bits everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Size {
    /// Seconds of a fast machine, for those without AVX2
    Smallest,
    /// For one fast or two slow processors with AVX2
    Small,
    /// For two processors with AVX2
    Medium,
    /// For two fast processors with AVX-512, or four with AVX2
    Full,
}

/// The values that differ between the sizes.
struct Shape {
    /// The least multiply-add operations per second, as in training, with which the run takes less than five minutes.
    peak: f64,
    d_model: usize,
    /// The number of sequences, of 256 tokens each, in a step.
    batch: usize,
    steps: u32,
    learning_rate: &'static str,
    /// Steps of tuning, of sixteen conversations.
    tuning: u32,
    /// Its learning rate.
    tuning_rate: &'static str,
    /// Batches of eight sequences, taken from all held-out texts together, so few of them may leave out a text; `None` for
    /// all sequences.
    evaluation: Option<usize>,
}

impl Size {
    /// The sizes, the largest first.
    const ALL: [Size; 4] = [Size::Full, Size::Medium, Size::Small, Size::Smallest];

    fn shape(self) -> Shape {
        match self {
            Size::Full => Shape {
                peak: 600e9,
                d_model: 192,
                batch: 4,
                steps: 1100,
                learning_rate: "2.0e-3",
                tuning: 250,
                tuning_rate: "2e-3",
                evaluation: None,
            },
            Size::Medium => Shape {
                peak: 170e9,
                d_model: 96,
                batch: 2,
                steps: 1000,
                learning_rate: "3.0e-3",
                tuning: 350,
                tuning_rate: "3e-3",
                evaluation: None,
            },
            Size::Small => Shape {
                peak: 80e9,
                d_model: 64,
                batch: 2,
                steps: 500,
                learning_rate: "4.0e-3",
                tuning: 500,
                tuning_rate: "4e-3",
                evaluation: Some(4),
            },
            Size::Smallest => Shape {
                peak: 0.0,
                d_model: 32,
                batch: 1,
                steps: 80,
                learning_rate: "6.0e-3",
                tuning: 500,
                tuning_rate: "6e-3",
                evaluation: Some(4),
            },
        }
    }

    /// The largest size that this machine trains within minutes.
    pub(super) fn for_speed(peak: f64) -> Size {
        let fits = |size: &Size| size.shape().peak <= peak;
        Size::ALL.into_iter().find(fits).unwrap_or(Size::Smallest)
    }

    /// The size's name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Size::Full => "full",
            Size::Medium => "medium",
            Size::Small => "small",
            Size::Smallest => "smallest",
        }
    }

    /// The number of steps of the run.
    pub(super) fn steps(self) -> u32 {
        self.shape().steps
    }

    /// Steps of tuning, and its learning rate.
    pub(super) fn tuning(self) -> (u32, &'static str) {
        let Shape { tuning, tuning_rate, .. } = self.shape();
        (tuning, tuning_rate)
    }

    /// The configuration for a folder.
    fn config(self, folder: &str, steps: u32) -> String {
        let Shape { d_model, batch, learning_rate, evaluation, .. } = self.shape();
        let last = |of: u32| (steps / of).max(1).to_string();
        let batches = evaluation.map_or(String::new(), |n| format!("\n    subset_num_batches: {n}"));
        let (d_model, batch) = (d_model.to_string(), batch.to_string());
        let values = [
            ("FOLDER", folder),
            ("D_MODEL", &d_model),
            ("BATCH", &batch),
            ("LEARNING_RATE", learning_rate),
            ("WARMUP", &last(11)),
            ("QUARTER", &last(4)),
            ("HALF", &last(2)),
            ("STEPS", &steps.to_string()),
            ("SUBSET", &batches),
        ];
        values.iter().fold(CONFIG.to_owned(), |config, (name, value)| config.replace(&format!("<{name}>"), value))
    }
}

/// Writes the files unless they exist, and returns the size and the steps of the run. If the folder holds a run
/// already, its size is used where none is asked for; else `choose` gives the size. Fails if the folder holds another
/// run.
pub(super) fn write(
    folder: &Path,
    size: Option<Size>,
    steps: Option<u32>,
    choose: impl FnOnce() -> Size,
) -> anyhow::Result<(Size, u64)> {
    let name = folder.to_str().context("the folder's name is not valid UTF-8; choose another")?;
    ensure!(
        !name.contains(['"', '\\', '\n', '$']),
        "the folder {name:?}: choose a name without \" \\ $ and line breaks"
    );
    let steps_of = |size: Size| steps.unwrap_or(size.steps()).min(size.steps());
    let path = folder.join("train.yml");
    let found = match std::fs::read_to_string(&path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let there = |found: &String| Size::ALL.into_iter().find(|size| size.config(name, steps_of(*size)) == *found);
    let size = size.or(found.as_ref().and_then(there)).unwrap_or_else(choose);
    let config = size.config(name, steps_of(size));
    ensure!(
        found.as_ref().is_none_or(|found| *found == config),
        "{}: not the configuration of this run: the size or the number of steps differs, or the file was changed. Delete the folder or \
         choose another one; `olmoe train` runs a changed configuration",
        path.display()
    );
    let (train, held_out) = instructions::rows();
    let (train, held_out) = (instructions::file(&train), instructions::file(&held_out));
    let generated = [
        ("text/instructions.jsonl", &train[..]),
        ("text/instructions-held-out.jsonl", &held_out),
        ("train.yml", config.as_bytes()),
    ];
    let ours = FILES.into_iter().chain(generated);
    // Before anything is written: what lies here under a name of the tour is somebody's, unless it is the same.
    let is_other = |(name, bytes): &(&str, &[u8])| {
        let path = folder.join(name);
        path.exists() && !std::fs::read(&path).is_ok_and(|found| found == *bytes)
    };
    let other = ours.clone().find(is_other).map(|(name, _)| name);
    let made = || MADE.into_iter().find(|name| folder.join(name).exists()).filter(|_| found.is_none());
    if let Some(name) = other.or_else(made) {
        bail!(
            "{}: it exists already and does not belong to this tour; choose another folder",
            folder.join(name).display()
        );
    }
    for (name, bytes) in ours {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| if path.exists() { Ok(()) } else { write_whole(&path, bytes) })
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    Ok((size, u64::from(steps_of(size))))
}

#[cfg(test)]
mod tests {
    use olmoe_train::config::TrainConfig;

    use super::*;

    #[test]
    fn sizes_grow_with_the_speed() {
        for (peak, size) in [
            (0.0, Size::Smallest),
            (79e9, Size::Smallest),
            (80e9, Size::Small),
            (180e9, Size::Medium),
            (600e9, Size::Full),
            (1e15, Size::Full),
        ] {
            assert_eq!(Size::for_speed(peak), size, "{peak}");
        }
    }

    #[test]
    fn files_of_others_stay() {
        for name in ["tokenizer.json", "text/README.md", "loss.svg", "run"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "mine").unwrap();
            let error = write(folder.path(), Some(Size::Smallest), None, || Size::Smallest).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("choose another folder"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), b"mine");
            assert!(!folder.path().join("train.yml").exists(), "nothing is written beside it");
        }
        let folder = tempfile::tempdir().unwrap();
        let again = || write(folder.path(), Some(Size::Smallest), None, || Size::Smallest).unwrap();
        let first = again();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        assert_eq!(again(), first);
    }

    #[test]
    fn every_size_is_a_run() {
        let folder = tempfile::tempdir().unwrap();
        for size in Size::ALL {
            let text = size.config("folder", size.steps());
            assert!(!text.contains(['<', '>']), "{text}");
            let path = folder.path().join(size.name());
            std::fs::write(&path, text).unwrap();
            let config = TrainConfig::read(&path, &[] as &[&str]).unwrap().config;
            assert_eq!(config.model.d_model, size.shape().d_model);
            assert_eq!(config.evaluators.len(), 1);
        }
    }
}
