//! Adapters: which, and how much of each.

use std::path::Path;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::adapter::{ADAPTER_FILES, AdapterWeights};
use olmoe_checkpoint::weights::Weights;
use olmoe_data::expanded;

use super::model::input;
use crate::output::note;
use crate::usage::usage;

/// Which adapters.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct AdapterArg {
    /// An adapter of the model (LoRA, DoRA): a folder of peft's, a GGUF adapter, or one of the hub; and a factor on its
    /// effect, 1 unless given. Several add up
    #[arg(long = "adapter", value_name = "PATH|REPO[@FACTOR]")]
    adapters: Vec<String>,
}

impl AdapterArg {
    /// Whether any are given.
    pub(crate) fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// Reads the adapters of a model as one. Says what there is to be noticed.
    pub(crate) fn read(&self, checkpoint: &Checkpoint, offline: bool) -> anyhow::Result<Option<AdapterWeights>> {
        let mut all = Vec::with_capacity(self.adapters.len());
        for text in &self.adapters {
            let (name, factor) = split(text)?;
            let path = input(name, ADAPTER_FILES, offline)?;
            let adapter = AdapterWeights::read(&path, checkpoint.config())?;
            if let Some(text) = another_base(&adapter, checkpoint) {
                note(text);
            }
            all.push((adapter, factor));
        }
        if all.is_empty() {
            return Ok(None);
        }
        let adapter = AdapterWeights::combined(all)?;
        adapter.notices.iter().for_each(note);
        Ok(Some(adapter))
    }
}

impl AdapterArg {
    /// What the adapters of a model are recognised by: of each its numbers and its factor, in their order.
    pub(crate) fn fingerprints(&self, checkpoint: &Checkpoint, offline: bool) -> anyhow::Result<Vec<String>> {
        let fingerprint = |text: &String| {
            let (name, factor) = split(text)?;
            let adapter = AdapterWeights::read(&input(name, ADAPTER_FILES, offline)?, checkpoint.config())?;
            Ok(format!("{}@{factor}", adapter.fingerprint()))
        };
        self.adapters.iter().map(fingerprint).collect()
    }
}

/// The adapter and its factor. What exists is an adapter, whatever it is called.
fn split(text: &str) -> anyhow::Result<(&str, f32)> {
    let Some((name, factor)) = text.rsplit_once('@').filter(|_| !expanded(Path::new(text)).exists()) else {
        return Ok((text, 1.0));
    };
    match factor.parse::<f32>() {
        Ok(factor) if factor.is_finite() && !name.is_empty() => Ok((name, factor)),
        Ok(_) => Err(usage(format_args!("--adapter {text}: expected a finite factor behind the @"))),
        // A revision of the hub.
        Err(_) => Ok((text, 1.0)),
    }
}

/// What to say if an adapter names another base than the model.
fn another_base(adapter: &AdapterWeights, checkpoint: &Checkpoint) -> Option<String> {
    let base = adapter.base.as_deref().filter(|base| !base.is_empty())?;
    let path = Weights::origin(checkpoint);
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let last = base.trim_end_matches('/').rsplit('/').next().unwrap_or(base);
    // In the cache of the hub the repository is the name of a folder above.
    let repository = format!("models--{}", base.replace('/', "--"));
    let known = path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part == last || part == repository || part.strip_suffix(".gguf") == Some(last)
    });
    let (adapter, model) = (adapter.path().display(), path.display());
    (!known)
        .then(|| format!("{adapter} was made for {base}, and the model is {model}; it fits only if they are the same"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_follows_the_last_at() {
        for (text, expected) in [
            ("a", ("a", 1.0)),
            ("a@0.5", ("a", 0.5)),
            ("org/name@main", ("org/name@main", 1.0)),
            ("org/name@main@-2", ("org/name@main", -2.0)),
            ("src/main.rs", ("src/main.rs", 1.0)),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
        assert!(split("a@inf").unwrap_err().to_string().contains("finite"));
    }
}
