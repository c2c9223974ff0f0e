//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, ValueEnum};
use olmoe_checkpoint::hub::{Hub, Location, MODEL_FILES, locate};
use olmoe_data::expanded;
use olmoe_model::model::{KvCache, Precision};
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::threads::{MAX_THREADS, set_num_threads};

use crate::download::Terminal;

/// Which model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArg {
    /// A file or folder, or a model of the Hugging Face hub, which is downloaded unless it has been before
    #[arg(short, long, value_name = "PATH|REPO[@REVISION]")]
    model: String,

    /// Use files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,
}

impl ModelArg {
    /// Where its files are.
    pub(crate) fn resolve(&self) -> anyhow::Result<PathBuf> {
        input(&self.model, MODEL_FILES, self.offline)
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

/// How many threads.
#[derive(Args)]
pub(crate) struct Threads {
    /// Threads to use [default: one for each processor]
    ///
    /// The results are the same bits for any number.
    #[arg(long, value_name = "N", value_parser = number_of_threads)]
    threads: Option<usize>,
}

impl Threads {
    /// Sets them for the process.
    pub(crate) fn apply(&self) {
        if let Some(threads) = self.threads {
            set_num_threads(threads);
        }
    }
}

/// How keys and values are kept.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct CacheArg {
    /// How keys and values are kept: f32, bf16 or q8_0 [default: that of the precision, f32 or bf16]
    ///
    /// q8_0 takes 8.5 bits a number, a little more than half of bf16.
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub(crate) cache_type: Option<CacheType>,
}

impl CacheArg {
    /// The type for a model of this precision.
    pub(crate) fn kind(&self, precision: Precision) -> CacheType {
        self.cache_type.unwrap_or(KvCache::default_type(precision))
    }
}

fn cache_type(name: &str) -> Result<CacheType, String> {
    CacheType::by_name(name).ok_or_else(|| {
        let names = CacheType::ALL.map(CacheType::name);
        format!("expected one of {}", names.join(", "))
    })
}

fn number_of_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a whole number from 1 to {MAX_THREADS}")),
    }
}

/// A number of bytes: 5GB, 500MB, 4GiB, 2G as llama.cpp has it, or the number itself.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1e0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => 0.0,
    };
    let bytes = number.parse::<f64>().unwrap_or(0.0) * factor;
    // Whole bytes far below what a double holds exactly.
    if (1.0..1e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected a size such as 5GB, 500MB or 4GiB".to_owned())
    }
}

/// A whole number above 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

/// A number to add to the logit of a token: `ID=X`, or `ID+X` and `ID-X`, as llama.cpp has it.
pub(crate) fn bias(text: &str) -> Result<(u32, f32), String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (id, number) = text.split_at(digits);
    let number = number.strip_prefix('=').unwrap_or(number);
    match (id.parse(), number.parse()) {
        (Ok(id), Ok(number)) => Ok((id, number)),
        _ => Err("expected a token id, = and a number, such as 42=-1.5 or 42=-inf".to_owned()),
    }
}

/// One precision of the matrix products.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum OnePrecision {
    /// f32 throughout
    Fp32,
    /// bf16 factors, f32 sums; everything else in f32
    #[value(alias = "bf16")]
    AmpBf16,
}

impl From<OnePrecision> for Precision {
    fn from(precision: OnePrecision) -> Precision {
        match precision {
            OnePrecision::Fp32 => Precision::Fp32,
            OnePrecision::AmpBf16 => Precision::AmpBf16,
        }
    }
}

/// One precision or all.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Precisions {
    /// f32 throughout
    Fp32,
    /// bf16 factors, f32 sums; everything else in f32
    AmpBf16,
    /// Both, one after the other
    All,
}

impl Precisions {
    /// Those meant.
    pub(crate) fn list(self) -> Vec<Precision> {
        match self {
            Precisions::Fp32 => vec![Precision::Fp32],
            Precisions::AmpBf16 => vec![Precision::AmpBf16],
            Precisions::All => vec![Precision::Fp32, Precision::AmpBf16],
        }
    }
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
    fn biases_are_an_id_and_a_number() {
        assert_eq!(bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(bias("42-1"), Ok((42, -1.0)));
        assert_eq!(bias("0+2.5"), Ok((0, 2.5)));
        assert_eq!(bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        for bad in ["", "42", "=1", "x=1", "42=", "42=x", "-1=2", "99999999999=1"] {
            assert!(bias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_model_is_a_path_first() {
        let resolve = |arguments: &[&str]| Program::parse_from(arguments).model.resolve();
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
