//! `olmoe inspect`

use std::collections::BTreeMap;

use clap::Args;
use olmoe_checkpoint::companions::{self, Companions};
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::open::{Contents, Stored};
use olmoe_data::{EndToken, counted};
use olmoe_model::config::ModelConfig;
use olmoe_model::parameters::ParameterCount;
use serde::Serialize;

use crate::flags::{input, model_first, no_more};

/// Show the content of a checkpoint, of one of its files, or of a configuration
///
/// Tensors whose names differ only in numbers (layers, experts) share a line; --tensors lists each. Only headers are
/// read.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe inspect OLMoE-1B-7B-0924
  olmoe inspect olmoe-q4_0.gguf --json
  olmoe inspect configs/olmoe-1b-7b.yml

Files: reads the headers of *.safetensors, *.gguf or an OLMo checkpoint, config.json, and the tokenizer.

Exit status: 0 if it could be read, 1 if not, 2 for wrong usage.")]
pub(crate) struct InspectArgs {
    /// A folder, a file, or a model of the hub (REPO or REPO@REVISION)
    #[arg(value_name = "PATH")]
    path: Option<String>,

    /// PATH as a flag, as in other commands
    #[arg(short, long, value_name = "PATH")]
    model: Option<String>,

    /// Print a line for every tensor
    #[arg(long)]
    tensors: bool,

    /// Print one JSON object: path, format, config, parameters_total, parameters_active, tokenizer, ends, tensors, …
    #[arg(long)]
    json: bool,

    /// Use only files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    path: String,
    format: &'static str,
    config: Option<&'a ModelConfig>,
    parameters_total: Option<u64>,
    parameters_active: Option<u64>,
    tokenizer: Option<TokenizerReport>,
    /// The tokens that end a text.
    ends: Vec<EndReport>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, String>,
    tensors: Vec<TensorReport<'a>>,
    bytes: u64,
    notices: Vec<String>,
}

/// A token that ends a text.
#[derive(Serialize)]
struct EndReport {
    id: u32,
    token: Option<String>,
    /// The sources that name it.
    sources: Vec<String>,
}

#[derive(Serialize)]
struct TokenizerReport {
    /// The number of tokens, or why the tokenizer cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct TensorReport<'a> {
    name: &'a str,
    dtype: &'a str,
    shape: &'a [usize],
    bytes: u64,
}

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let words: Vec<&str> = args.path.iter().map(String::as_str).collect();
    let (path, rest) = model_first(args.model.as_deref(), &words)?;
    no_more(&rest)?;
    let contents = Contents::read(&input(path, MODEL_FILES, args.offline)?)?;
    let config = contents.config.as_ref().map(|loaded| &loaded.config);
    let count = config.map(ParameterCount::of).transpose()?;
    let beside = config.map(|config| Companions::of_contents(&contents, config, None, false));
    let (companions, mut error) = match beside {
        Some(Ok(companions)) => (companions, None),
        Some(Err(error)) => (Companions::default(), Some(error.to_string())),
        None => (Companions::default(), None),
    };
    let tokenizer = match companions::tokenizer(&contents) {
        Ok(tokenizer) => tokenizer.map(|tokenizer| TokenizerReport { size: Some(tokenizer.size()), error: None }),
        // The error is printed once.
        Err(broken) => Some(TokenizerReport { size: None, error: Some(error.take().unwrap_or(broken.to_string())) }),
    };
    let notices = contents.notices.iter().chain(&companions.notices).cloned().chain(error);
    let report = Report {
        path: contents.path.display().to_string(),
        format: contents.format.name(),
        config,
        parameters_total: count.map(|count| count.total),
        parameters_active: count.map(|count| count.active),
        // A tokenizer that cannot be used does not keep the rest from being shown.
        tokenizer,
        ends: ends(&companions),
        metadata: match &contents.gguf {
            Some(header) => header.metadata.iter().map(|(key, value)| (key, value.to_string())).collect(),
            None => BTreeMap::new(),
        },
        tensors: contents.tensors.iter().map(tensor).collect(),
        bytes: contents.tensors.iter().map(|tensor| tensor.bytes).sum(),
        notices: notices.collect(),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, args.tensors);
    }
    Ok(())
}

fn ends(companions: &Companions) -> Vec<EndReport> {
    let ends = companions.special_tokens().map(|special| special.ends.as_slice()).unwrap_or_default();
    let report = |end: &EndToken| EndReport {
        id: end.id,
        token: companions.tokenizer().and_then(|tokenizer| tokenizer.token(end.id)).map(str::to_owned),
        sources: end.sources.clone(),
    };
    ends.iter().map(report).collect()
}

fn tensor(stored: &Stored) -> TensorReport<'_> {
    TensorReport { name: &stored.name, dtype: stored.kind.name(), shape: &stored.shape, bytes: stored.bytes }
}

fn print(report: &Report<'_>, each: bool) {
    println!("{}: {}", report.path, report.format);
    if let Some(config) = report.config {
        println!(
            "model: {}, width {}, {} of {} ({} for keys and values), {} rows of vocabulary, context {}",
            counted(config.n_layers, "layer"),
            config.d_model,
            counted(config.n_heads, "head"),
            config.head_dim,
            config.n_kv_heads,
            config.embedding_size,
            config.max_sequence_length
        );
        match config.moe() {
            Some(moe) => {
                let dense = config.even_layers.map(|mlp| format!("; even layers are dense, of width {}", mlp.width));
                let (experts, width, each) = (moe.num_experts, moe.expert.width, moe.top_k);
                println!("experts: {experts} of width {width}, {each} a token{}", dense.unwrap_or_default());
            }
            None => println!("experts: none, the model is dense"),
        }
    }
    if let (Some(total), Some(active)) = (report.parameters_total, report.parameters_active) {
        println!("parameters: {total}, {active} of them active for a token");
    }
    match &report.tokenizer {
        None => {}
        Some(TokenizerReport { size: Some(size), .. }) => println!("tokenizer: {}", counted(size, "token")),
        Some(TokenizerReport { error, .. }) => println!("tokenizer: {}", error.as_deref().unwrap_or("unreadable")),
    }
    for EndReport { id, token, sources } in &report.ends {
        let token = token.as_ref().map(|token| format!(" {token:?}")).unwrap_or_default();
        println!("ends a text: {id}{token} ({})", sources.join("; "));
    }
    for (key, value) in &report.metadata {
        println!("{key} = {value}");
    }
    report.notices.iter().for_each(|notice| println!("note: {notice}"));
    if report.tensors.is_empty() {
        return;
    }
    println!("tensors: {}, {}", report.tensors.len(), counted(report.bytes, "byte"));
    if each {
        for tensor in &report.tensors {
            println!(
                "  {:<56} {:<6} {:<18} {}",
                tensor.name,
                tensor.dtype,
                format!("{:?}", tensor.shape),
                tensor.bytes
            );
        }
        return;
    }
    for (Line { name, dtype, shape }, (count, bytes)) in lines(&report.tensors) {
        println!("  {count:>5} × {name:<52} {dtype:<6} {:<18} {bytes}", format!("{shape:?}"));
    }
}

/// Tensors that share a line.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Line<'a> {
    name: String,
    dtype: &'a str,
    shape: &'a [usize],
}

/// Lines in the order of their first tensors, with their numbers of tensors and bytes.
fn lines<'a>(tensors: &[TensorReport<'a>]) -> Vec<(Line<'a>, (usize, u64))> {
    let mut lines: Vec<(Line<'_>, (usize, u64))> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for tensor in tensors {
        let numbered = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let name = tensor.name.split('.').map(|part| if numbered(part) { "*" } else { part });
        let line = Line { name: name.collect::<Vec<_>>().join("."), dtype: tensor.dtype, shape: tensor.shape };
        let place = *places.entry(line.clone()).or_insert_with(|| {
            lines.push((line, (0, 0)));
            lines.len() - 1
        });
        lines[place].1.0 += 1;
        lines[place].1.1 += tensor.bytes;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_experts_share_lines() {
        let tensor = |name, dtype| TensorReport { name, dtype, shape: &[2, 3], bytes: 12 };
        let tensors = [
            tensor("a.0.e.10.w", "bf16"),
            tensor("b", "bf16"),
            tensor("a.1.e.2.w", "bf16"),
            tensor("a.2.e.2.w", "f32"),
        ];
        let lines = lines(&tensors);
        let shown: Vec<_> = lines.iter().map(|(line, counts)| (line.name.as_str(), line.dtype, *counts)).collect();
        assert_eq!(shown, [("a.*.e.*.w", "bf16", (2, 24)), ("b", "bf16", (1, 12)), ("a.*.e.*.w", "f32", (1, 12))]);
    }
}
