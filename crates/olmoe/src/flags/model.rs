//! Which model: a file, a folder, or a name of the hub.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};
use olmoe_checkpoint::hub::{Hub, Location, MODEL_FILES, locate};
use olmoe_data::expanded;

use super::words::model_first;
use crate::hub_progress::Terminal;

/// Which model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArg {
    /// A file or folder, or a model of the Hugging Face hub, which is downloaded unless it has been before
    #[arg(short, long, value_name = "PATH|REPO[@REVISION]")]
    model: Option<String>,

    /// Use files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    pub(super) offline: bool,
}

impl ModelArg {
    /// Where its files are, and which of the words are left; the first one is the model unless the flag gives it.
    pub(crate) fn resolve<'a>(&'a self, words: &[&'a str]) -> anyhow::Result<(PathBuf, Vec<&'a str>)> {
        let (model, rest) = model_first(self.model.as_deref(), words)?;
        Ok((input(model, MODEL_FILES, self.offline)?, rest))
    }

    /// The words that are no model.
    pub(crate) fn rest<'a>(&'a self, words: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
        Ok(model_first(self.model.as_deref(), words)?.1)
    }
}

/// Where the files of a model are: an existing path as it is, else the folder of a download.
///
/// Of a model of the hub, `files` are downloaded: name patterns.
pub(crate) fn input(model: &str, files: &[&str], offline: bool) -> anyhow::Result<PathBuf> {
    let path = expanded(Path::new(model));
    let found = match locate(path.to_str().unwrap_or(model))? {
        Location::Path(path) => return Ok(path),
        Location::Hub(found) => found,
    };
    let hub = Hub::from_environment()?.or_offline(offline);
    hub.download(&found.repo, found.revision(), files, &Terminal::new())
        .with_context(|| format!("there is no file or folder {model}, and as a model of the hub"))
}

/// A command whose paths are [`expanded`]: behind `--flag=` no shell does it.
pub(crate) fn with_expanded_paths(command: clap::Command) -> clap::Command {
    let path = std::any::TypeId::of::<PathBuf>();
    let parser = || PathBufValueParser::new().map(|path| expanded(&path));
    let command =
        command.mut_args(|arg| if arg.get_value_parser().type_id() == path { arg.value_parser(parser()) } else { arg });
    command.mut_subcommands(with_expanded_paths)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        model: ModelArg,
    }

    #[test]
    fn a_model_is_a_path_first() {
        let resolve = |arguments: &[&str]| Program::parse_from(arguments).model.resolve(&[]).map(|found| found.0);
        assert_eq!(resolve(&["olmoe", "-m", "src/main.rs"]).unwrap(), PathBuf::from("src/main.rs"));
        let error = resolve(&["olmoe", "--model", "no-such-file"]).unwrap_err().to_string();
        assert!(error.contains("neither an existing file or folder nor a model"), "{error}");
        let error = resolve(&["olmoe", "-m", "no-such-org-/name", "--offline"]).unwrap_err().to_string();
        assert!(error.contains("begins or ends"), "{error}");
        let error = resolve(&["olmoe", "-m", "no-such-org/no-such-model", "--offline"]).unwrap_err();
        assert!(format!("{error:#}").contains("no file or folder no-such-org/no-such-model"), "{error:#}");
        assert!(format!("{error:#}").contains("offline"), "{error:#}");
    }
}
