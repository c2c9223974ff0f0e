//! `olmoe tokenize`

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use olmoe_checkpoint::companions::TOKENIZER_FILES;
use olmoe_data::documents::{Fields, IdType};
use olmoe_data::token_file::TokenType;
use olmoe_data::tokenize::{TokenizePlan, TokenizeSettings, TokenizeSummary, find};
use olmoe_data::{Tokenizer, counted};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::flags::{Quiet, Threads, input};
use crate::output::{is_quiet, note};
use crate::progress::Progress;
use crate::text::text_of;

/// How many malformed lines are printed.
const SHOWN: usize = 20;
/// The token that ends documents if none is given.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Make token files for pretraining from documents
///
/// Reads JSON Lines with a `text` and an `id`, plain, gzip (.gz) or zstd (.zst), and writes what `dolma tokens` writes:
/// DESTINATION/part-G-NNNNN.npy, token ids one after the other without a header, and beside each file a .csv.gz with
/// start, end, id, file and line of every document. Flags and defaults are dolma's; numbers may have underscores. The
/// order of documents depends on the seed, the inputs and the settings, never on the threads. DESTINATION appears when
/// it is complete.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe tokenize --documents 'data/*.jsonl.gz' --destination tokens \\
      --tokenizer.name_or_path tokenizer.json
  olmoe tokenize --documents data --destination tokens \\
      --tokenizer.name_or_path allenai/gpt-neox-olmo-dolma-v1_5 \\
      --tokenizer.eos_token_id 50279 --tokenizer.pad_token_id 1 --seed 0 \\
      --max_size 2_147_483_648 --processes 8
  olmoe tokenize -c tokens.yaml --dryrun

Differences from dolma: the seed has an effect; files of a pattern are ordered by name; a destination with files is not \
overwritten without --force; an archive that cannot be read to its end is an error; a line that is not UTF-8 is left \
out, and the rest of its file is kept.

Files: reads the documents, the tokenizer and the settings; writes DESTINATION.

Exit status: 0 done, 1 if an input could not be read or nothing was written, 2 for wrong usage.")]
pub(crate) struct TokenizeArgs {
    /// A YAML or JSON file with these settings, sections as objects; flags take precedence
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Replace DESTINATION if it holds nothing but token files
    #[arg(long, help_heading = "Output")]
    force: bool,

    /// Use only files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object: destination, parts, documents, tokens, malformed and empty
    #[arg(long, help_heading = "Output", conflicts_with = "dryrun")]
    json: bool,

    #[command(flatten)]
    _quiet: Quiet,
}

/// dolma's settings, from the command line or a file.
#[derive(Args, Clone, Default, Deserialize)]
#[command(next_help_heading = "Order and parts")]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Files, folders, or patterns with * ? [...] **
    #[arg(long, value_name = "PATTERN", num_args = 1.., help_heading = "Documents")]
    documents: Vec<String>,

    /// Folder to write
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    destination: Option<PathBuf>,

    #[command(flatten)]
    tokenizer: TokenizerOptions,

    #[command(flatten)]
    fields: FieldOptions,

    #[command(flatten)]
    work_dir: WorkOptions,

    /// Groups of files, each with its own part files, processed at once [default: 1]
    ///
    /// With one group, all threads encode its documents.
    #[arg(long, value_name = "N", value_parser = number::<usize>)]
    #[serde(deserialize_with = "with_underscores")]
    processes: Option<usize>,

    /// Most files of a group [default: all files, evenly divided]
    #[arg(long = "files_per_process", value_name = "N", value_parser = number::<usize>)]
    #[serde(deserialize_with = "with_underscores")]
    files_per_process: Option<usize>,

    /// Documents to shuffle together [default: 10000]
    #[arg(long = "batch_size", value_name = "N", value_parser = number::<usize>)]
    #[serde(deserialize_with = "with_underscores")]
    batch_size: Option<usize>,

    /// Open files, which yield a document each in turn [default: 8]
    #[arg(long = "ring_size", value_name = "N", value_parser = number::<usize>)]
    #[serde(deserialize_with = "with_underscores")]
    ring_size: Option<usize>,

    /// Open files yield documents at random, in proportion to their sizes, instead of in turn
    #[arg(long = "sample_ring_prop", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sample_ring_prop: Option<bool>,

    /// Limit of a part file's tokens, which it stays below [default: 1_073_741_824]
    ///
    /// dolma documents it in bytes, but counts tokens as well.
    #[arg(long = "max_size", value_name = "N", value_parser = number::<u64>)]
    #[serde(deserialize_with = "with_underscores")]
    max_size: Option<u64>,

    /// Number type of the part files: uint8, uint16, uint32 or uint64 [default: uint16]
    #[arg(long, value_name = "TYPE", help_heading = "Output")]
    dtype: Option<String>,

    /// Seed of the order [default: 3920]
    #[arg(long, value_name = "N", value_parser = number::<u64>)]
    #[serde(deserialize_with = "with_underscores")]
    seed: Option<u64>,

    /// Accepted without effect
    #[arg(long, hide = true)]
    debug: bool,

    /// Show what would be done, and do nothing
    #[arg(long, help_heading = "Output")]
    dryrun: bool,
}

#[derive(Args, Clone, Default, Deserialize)]
#[command(next_help_heading = "Tokenizer")]
#[serde(deny_unknown_fields, default)]
struct TokenizerOptions {
    /// A tokenizer.json, a folder that holds one, or a repository of the hub
    #[arg(long = "tokenizer.name_or_path", value_name = "PATH|REPO", id = "tokenizer.name_or_path")]
    name_or_path: Option<String>,

    /// Token before each document that does not begin with it [default: none]
    #[arg(long = "tokenizer.bos_token_id", value_name = "ID", value_parser = number::<u32>, id = "tokenizer.bos_token_id")]
    #[serde(deserialize_with = "with_underscores")]
    bos_token_id: Option<u32>,

    /// Token after each document that does not end with it [default: the tokenizer's <|endoftext|>, unless bos is
    /// given]
    #[arg(long = "tokenizer.eos_token_id", value_name = "ID", value_parser = number::<u32>, id = "tokenizer.eos_token_id")]
    #[serde(deserialize_with = "with_underscores")]
    eos_token_id: Option<u32>,

    /// Accepted without effect: documents are never padded
    #[arg(long = "tokenizer.pad_token_id", value_name = "ID", value_parser = number::<u32>, id = "tokenizer.pad_token_id")]
    #[serde(deserialize_with = "with_underscores")]
    pad_token_id: Option<u32>,

    /// Encode paragraphs one by one
    #[arg(long = "tokenizer.segment_before_tokenization", id = "tokenizer.segment_before_tokenization",
        value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    segment_before_tokenization: Option<bool>,

    /// Encode the text of a special token like any other text
    #[arg(long = "tokenizer.encode_special_tokens", id = "tokenizer.encode_special_tokens",
        value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    encode_special_tokens: Option<bool>,

    /// Accepted without effect: there is nothing to refresh
    #[arg(long = "tokenizer.refresh", value_name = "N", value_parser = number::<u64>, id = "tokenizer.refresh", hide = true)]
    #[serde(deserialize_with = "with_underscores")]
    refresh: Option<u64>,

    /// Accepted if true: there is only one kind of tokenizer
    #[arg(long = "tokenizer.fast", id = "tokenizer.fast", hide = true,
        value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fast: Option<bool>,
}

#[derive(Args, Clone, Default, Deserialize)]
#[command(next_help_heading = "Documents")]
#[serde(deny_unknown_fields, default)]
struct FieldOptions {
    /// Key of the text; dots lead into nested objects [default: text]
    #[arg(long = "fields.text_field_name", value_name = "KEY", id = "fields.text_field_name")]
    text_field_name: Option<String>,

    /// Type of the text: str [default: str]
    #[arg(long = "fields.text_field_type", value_name = "TYPE", id = "fields.text_field_type", hide = true)]
    text_field_type: Option<String>,

    /// Key of the name; null names documents after their file and line [default: id]
    #[arg(long = "fields.id_field_name", value_name = "KEY", id = "fields.id_field_name")]
    #[serde(deserialize_with = "key_or_null")]
    id_field_name: Option<String>,

    /// Type of the name: str or int [default: str]
    #[arg(long = "fields.id_field_type", value_name = "TYPE", id = "fields.id_field_type")]
    id_field_type: Option<String>,
}

#[derive(Args, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkOptions {
    /// Accepted without effect: no working files are needed
    #[arg(long = "work_dir.input", value_name = "FOLDER", id = "work_dir.input", hide = true)]
    input: Option<PathBuf>,

    /// Accepted without effect: no working files are needed
    #[arg(long = "work_dir.output", value_name = "FOLDER", id = "work_dir.output", hide = true)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    args.threads.apply();
    let options = match &args.config {
        Some(path) => merged(args.options.clone(), read(path)?),
        None => args.options.clone(),
    };
    let inputs = find(&options.documents)?;
    inputs.unmatched.iter().for_each(|pattern| note(format_args!("no documents match {pattern}")));
    let Some(name) = &options.tokenizer.name_or_path else {
        bail!("no tokenizer is given; give --tokenizer.name_or_path with a tokenizer.json or a repository of the hub");
    };
    let mut tokenizer = Tokenizer::from_file(input(name, TOKENIZER_FILES, args.offline)?)?;
    tokenizer.notices().iter().for_each(note);
    if options.tokenizer.encode_special_tokens == Some(true) {
        tokenizer.encode_special_as_text();
    }
    let settings = settings(&options, &tokenizer)?;
    let plan = TokenizePlan::new(&tokenizer, settings.clone(), &inputs.files)?;
    if options.dryrun {
        println!("{}", Described { settings: &settings, plan: &plan, bytes: inputs.bytes, options: &options });
        return Ok(());
    }
    let Some(destination) = &options.destination else {
        bail!("no destination is given; give --destination with the folder to write");
    };
    let progress = Progress::new("tokenizing", inputs.bytes);
    let summary = plan.run(destination, args.force, &|bytes| progress.advance(bytes));
    drop(progress);
    let summary = summary?;
    name_malformed(&summary);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record(&summary, destination))?);
    } else if !is_quiet() {
        println!(
            "{}: part files {}, documents {}, tokens {}; left out: malformed lines {}, empty texts {}",
            destination.display(),
            summary.parts.len(),
            summary.documents,
            summary.tokens,
            summary.malformed,
            summary.empty
        );
    }
    Ok(())
}

/// What was written.
fn record(summary: &TokenizeSummary, destination: &Path) -> serde_json::Value {
    let parts: Vec<String> = summary.parts.iter().map(|path| path.display().to_string()).collect();
    serde_json::json!({
        "destination": destination.display().to_string(), "parts": parts, "documents": summary.documents,
        "tokens": summary.tokens, "malformed": summary.malformed, "empty": summary.empty,
    })
}

/// Prints the first malformed lines.
fn name_malformed(summary: &TokenizeSummary) {
    summary.named.iter().take(SHOWN).for_each(|malformed| eprintln!("left out: {malformed}"));
    if summary.malformed > SHOWN as u64 {
        eprintln!("left out: {} malformed lines in all, of which {SHOWN} are named", summary.malformed);
    }
}

/// The settings of the options.
fn settings(options: &Options, tokenizer: &Tokenizer) -> anyhow::Result<TokenizeSettings> {
    let default = TokenizeSettings::default();
    let TokenizerOptions { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad, .. } = options.tokenizer;
    if options.tokenizer.fast == Some(false) {
        bail!("`tokenizer.fast` is false, but there is only one kind of tokenizer; leave it out");
    }
    if let Some(pad) = pad.filter(|pad| *pad as usize >= tokenizer.size()) {
        bail!("`tokenizer.pad_token_id` is {pad}, but the tokenizer has {} ids", tokenizer.size());
    }
    let eos = match (eos, bos) {
        (None, None) => tokenizer.id_of(END_OF_TEXT),
        (eos, _) => eos,
    };
    if let Some(eos) = eos.filter(|eos| !tokenizer.is_special(*eos) && (*eos as usize) < tokenizer.size()) {
        let token = tokenizer.token(eos).unwrap_or("no token");
        note(format_args!("documents end with {eos}, which is {token:?} and not a special token of this tokenizer"));
    }
    for (key, given) in [
        ("tokenizer.refresh", options.tokenizer.refresh.is_some_and(|every| every > 0)),
        ("debug", options.debug),
        ("work_dir.input", options.work_dir.input.is_some()),
        ("work_dir.output", options.work_dir.output.is_some()),
    ] {
        if given {
            note(format_args!("`{key}` has no effect"));
        }
    }
    let FieldOptions { text_field_name, text_field_type, id_field_name, id_field_type } = &options.fields;
    if let Some(other) = text_field_type.as_ref().filter(|name| !matches!(name.as_str(), "str" | "string")) {
        bail!("`fields.text_field_type` is {other}; only str is supported");
    }
    let id_type = match id_field_type.as_deref() {
        None | Some("str" | "string") => IdType::Text,
        Some("int" | "integer") => IdType::Integer,
        Some(other) => bail!("`fields.id_field_type` is {other}; use str or int"),
    };
    let dtype = options.dtype.as_deref().unwrap_or(default.dtype.name());
    let unsigned = TokenType::from_name(dtype).filter(|_| dtype.starts_with('u'));
    Ok(TokenizeSettings {
        bos,
        eos,
        segment: options.tokenizer.segment_before_tokenization == Some(true),
        processes: options.processes.unwrap_or(default.processes),
        files_per_process: options.files_per_process,
        batch_size: options.batch_size.unwrap_or(default.batch_size),
        ring_size: options.ring_size.unwrap_or(default.ring_size),
        sample_ring_prop: options.sample_ring_prop == Some(true),
        max_size: options.max_size.unwrap_or(default.max_size),
        dtype: unsigned.with_context(|| format!("`dtype` is {dtype}; use uint8, uint16, uint32 or uint64"))?,
        seed: options.seed.unwrap_or(default.seed),
        fields: Fields {
            text: text_field_name.clone().unwrap_or(default.fields.text),
            id: match id_field_name.as_deref() {
                Some("null" | "") => None,
                Some(key) => Some(key.to_owned()),
                None => default.fields.id,
            },
            id_type,
        },
    })
}

/// The flags, and the file's values for flags that are not given.
fn merged(flags: Options, file: Options) -> Options {
    let (t, u) = (flags.tokenizer, file.tokenizer);
    let (f, g) = (flags.fields, file.fields);
    Options {
        documents: if flags.documents.is_empty() { file.documents } else { flags.documents },
        destination: flags.destination.or(file.destination),
        tokenizer: TokenizerOptions {
            name_or_path: t.name_or_path.or(u.name_or_path),
            bos_token_id: t.bos_token_id.or(u.bos_token_id),
            eos_token_id: t.eos_token_id.or(u.eos_token_id),
            pad_token_id: t.pad_token_id.or(u.pad_token_id),
            segment_before_tokenization: t.segment_before_tokenization.or(u.segment_before_tokenization),
            encode_special_tokens: t.encode_special_tokens.or(u.encode_special_tokens),
            refresh: t.refresh.or(u.refresh),
            fast: t.fast.or(u.fast),
        },
        fields: FieldOptions {
            text_field_name: f.text_field_name.or(g.text_field_name),
            text_field_type: f.text_field_type.or(g.text_field_type),
            id_field_name: f.id_field_name.or(g.id_field_name),
            id_field_type: f.id_field_type.or(g.id_field_type),
        },
        work_dir: WorkOptions {
            input: flags.work_dir.input.or(file.work_dir.input),
            output: flags.work_dir.output.or(file.work_dir.output),
        },
        processes: flags.processes.or(file.processes),
        files_per_process: flags.files_per_process.or(file.files_per_process),
        batch_size: flags.batch_size.or(file.batch_size),
        ring_size: flags.ring_size.or(file.ring_size),
        sample_ring_prop: flags.sample_ring_prop.or(file.sample_ring_prop),
        max_size: flags.max_size.or(file.max_size),
        dtype: flags.dtype.or(file.dtype),
        seed: flags.seed.or(file.seed),
        debug: flags.debug || file.debug,
        dryrun: flags.dryrun || file.dryrun,
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = text_of(path)?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not a configuration of tokenize", path.display()))
}

/// A key, or null for none, which differs from a key that is left out.
fn key_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Some(Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
}

/// A whole number as YAML has it, or with underscores.
fn with_underscores<'de, D: serde::Deserializer<'de>, T: std::str::FromStr>(from: D) -> Result<Option<T>, D::Error> {
    match Option::<serde_json::Value>::deserialize(from)? {
        None => Ok(None),
        Some(serde_json::Value::String(text)) => number(&text).map(Some).map_err(serde::de::Error::custom),
        Some(other) => number(&other.to_string()).map(Some).map_err(serde::de::Error::custom),
    }
}

/// A whole number, which may have underscores.
fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    let digits = text.replace('_', "");
    digits.parse().map_err(|_| format!("expected a whole number that is not too large, found {text:?}"))
}

/// The output of a dry run.
struct Described<'a> {
    settings: &'a TokenizeSettings,
    plan: &'a TokenizePlan<'a>,
    bytes: u64,
    options: &'a Options,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenizeSettings { bos, eos, processes, batch_size, ring_size, max_size, dtype, seed, .. } = self.settings;
        let id = |id: &Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
        let destination = self.options.destination.as_deref().unwrap_or(Path::new("none"));
        writeln!(f, "destination {}", destination.display())?;
        writeln!(f, "tokenizer {}", self.options.tokenizer.name_or_path.as_deref().unwrap_or("none"))?;
        writeln!(f, "eos_token_id {}, bos_token_id {}, dtype {dtype}", id(eos), id(bos))?;
        writeln!(
            f,
            "seed {seed}, processes {processes}, batch_size {batch_size}, ring_size {ring_size}, max_size {max_size}"
        )?;
        let groups = self.plan.groups();
        write!(
            f,
            "{}, {}, in {}",
            counted(groups.iter().map(Vec::len).sum::<usize>(), "file"),
            counted(self.bytes, "byte"),
            counted(groups.len(), "group")
        )?;
        for (number, paths) in groups.iter().enumerate() {
            for path in paths.iter().rev() {
                write!(f, "\ngroup {number}: {}", path.display())?;
            }
        }
        Ok(())
    }
}
