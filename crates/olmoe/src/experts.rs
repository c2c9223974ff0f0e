//! `olmoe experts`

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use olmoe_analysis::{ExpertCounts, HeatMap, Picture, specialisation};
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::documents::{Documents, Fields};
use olmoe_data::{counted, expanded};
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, KvCache, Model};
use serde_json::{Value, json};

use crate::flags::{List, LoadingArgs, OnePrecision, Quiet, Threads, beside, layers, positive};
use crate::output::note;
use crate::progress::Progress;
use crate::text::text_of;
use crate::usage::usage;

/// How many experts are named for each layer and text.
const SHOWN: usize = 4;

/// Show which experts are chosen for which kind of text
///
/// Runs the model over the texts and counts, layer by layer, how often each expert is chosen. A text is a file: JSON
/// Lines of documents with a `text` (.jsonl, .json, also .gz and .zst), or plain text. It is read in independent pieces
/// of --context tokens, up to --tokens in total.
///
/// The table has the busiest experts with the share of the text's tokens that chose them; if all experts were chosen
/// alike, each share would be top_k over the number of experts. Evenness is the entropy of the choices over its
/// maximum. The last column shows how much the texts of a layer prefer different experts: half of the sum of the
/// differences from the mean over the texts, from 0 to 1.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe experts -m model.gguf prose=stories.jsonl.gz code=main.rs --plot experts.svg
  olmoe experts OLMoE-1B-7B-0924 novel.txt --layers 0,7,15 --json

Exit status: 0 done, 1 if a text could not be read or the model has no experts, 2 for wrong usage.")]
pub(crate) struct ExpertsArgs {
    /// The model, unless --model gives it; and texts, each a file with an optional name [default: the file's name]
    #[arg(value_names = ["MODEL", "[NAME=]FILE"], num_args = 1.., required = true)]
    words: Vec<String>,

    #[command(flatten)]
    loading: LoadingArgs,

    /// Tokens to read of each text
    #[arg(long, value_name = "N", default_value = "204800", value_parser = positive, help_heading = "Text")]
    tokens: usize,

    /// Tokens per piece [default: 2048, or the model's context if that is shorter]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Text")]
    context: Option<usize>,

    /// Layers to show, counted from 0 [default: all]
    #[arg(long, value_name = "N,…", value_parser = layers, help_heading = "Output")]
    layers: Option<List<usize>>,

    /// Draw a map of the shares into this file, .svg or .png
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    plot: Option<PathBuf>,

    /// Print one JSON object: `texts`, an array with the counts of every expert
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Precision of the matrix products
    #[arg(long, value_enum, default_value = "amp_bf16", help_heading = "Model")]
    precision: OnePrecision,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    _quiet: Quiet,
}

/// A tokenized text.
struct Text {
    name: String,
    ids: Vec<u32>,
}

pub(crate) fn run(args: &ExpertsArgs) -> anyhow::Result<()> {
    args.threads.apply();
    if let Some(path) = &args.plot {
        Picture::check_name(path)?;
    }
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let files = args.loading.rest(&words)?;
    if files.is_empty() {
        return Err(usage(format_args!("no text is given; name one after {}", words[0])));
    }
    let checkpoint = args.loading.open(&words)?;
    let name = checkpoint.contents().path.display();
    let config = Weights::config(&checkpoint);
    let Some(moe) = config.moe() else { bail!("{name}: a dense model has no experts") };
    let (experts, mixtures) = (moe.num_experts, config.mixture_layers().collect::<Vec<_>>());
    let longest = config.max_sequence_length;
    let context = args.context.unwrap_or(2048.min(longest));
    ensure!(context <= longest, "--context {context}: {name} holds {} at most", counted(longest, "token"));

    let chosen = chosen(args.layers.as_ref().map_or(&[][..], |list| &list.0[..]), &mixtures)?;
    let companions = Companions::of(&checkpoint, None, false)?;
    let end = companions.special_tokens().and_then(|special| special.eos).or(config.eos_token_id);
    ensure!(companions.tokenizer().is_some(), "{name}: it has no tokenizer, so it cannot read a text");
    let mut texts = Vec::new();
    for text in files {
        let (name, path) = split(text);
        let ids = read(&path, &companions, end, args.tokens)?;
        ensure!(!ids.is_empty(), "{}: the file has no text", path.display());
        texts.push(Text { name, ids });
    }
    let precision = args.precision.into();
    let kept = args.precision == OnePrecision::AmpBf16;
    let caches = (KvCache::default_type(precision), &[][..]);
    let beside = beside(&checkpoint, (precision, kept), caches, (context, 0));
    let model = args.loading.load(&checkpoint, precision, kept, beside)?;
    let mut counted: Vec<_> = texts.iter().map(|_| ExpertCounts::new(mixtures.clone(), experts)).collect();
    count(&model, &texts, &mut counted, context)?;
    if args.json {
        println!("{}", serde_json::to_string(&json(&texts, &counted, &chosen))?);
    } else {
        table(&texts, &counted, &chosen);
    }
    if let Some(path) = &args.plot {
        map(&texts, &counted, &chosen).draw()?.write(path)?;
        if !args.json {
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// The indices of the layers asked for among those with experts; all of them if none is asked for.
fn chosen(asked: &[usize], mixtures: &[usize]) -> anyhow::Result<Vec<usize>> {
    let place = |layer: &usize| {
        let found = mixtures.iter().position(|mixture| mixture == layer);
        found.with_context(|| format!("--layers {layer}: the layers with experts of this model are {mixtures:?}"))
    };
    if asked.is_empty() { Ok((0..mixtures.len()).collect()) } else { asked.iter().map(place).collect() }
}

/// Splits `NAME=FILE`; a FILE alone gets its own name. If a file exists under the whole text, that file is meant.
fn split(text: &str) -> (String, PathBuf) {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !Path::new(text).exists() => {
            (name.to_owned(), expanded(Path::new(path)))
        }
        _ => {
            let path = expanded(Path::new(text));
            let name = path.file_name().map_or(text.to_owned(), |name| name.to_string_lossy().into_owned());
            (name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or(&name).to_owned(), path)
        }
    }
}

/// The tokens of a text, at most `most`; every document ends with `end`.
fn read(path: &Path, companions: &Companions, end: Option<u32>, most: usize) -> anyhow::Result<Vec<u32>> {
    let encode = |text: &str| anyhow::Ok(companions.encode(text).context("this model has no tokenizer")??);
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let unpacked = name.trim_end_matches(".gz").trim_end_matches(".zst");
    let is_documents = unpacked.ends_with(".jsonl") || unpacked.ends_with(".json") || unpacked.len() < name.len();
    let mut ids = Vec::new();
    if is_documents {
        let fields = Fields::default();
        let place = || format!("cannot read {}", path.display());
        let mut documents = Documents::open(path, &fields, &|_| {}).with_context(place)?;
        let mut malformed = None;
        while ids.len() < most {
            let Some(document) = documents.next(&mut |line| _ = malformed.get_or_insert(line)).with_context(place)?
            else {
                break;
            };
            ids.extend(encode(&document.text)?);
            ids.extend(end);
        }
        if let Some(line) = malformed {
            note(format_args!("{line}; left out"));
        }
    } else {
        ids = encode(&text_of(path)?)?;
    }
    ids.truncate(most);
    Ok(ids)
}

fn count(model: &Model, texts: &[Text], counted: &mut [ExpertCounts], context: usize) -> anyhow::Result<()> {
    let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    let progress = Progress::new("reading", (tokens * size_of::<u32>()) as u64);
    let mut activations = Activations::new(Keep::Nothing);
    for (text, counts) in texts.iter().zip(counted) {
        for piece in text.ids.chunks(context) {
            let place = || format!("reading {}", text.name);
            model.forward(&Batch::uniform(piece, piece.len())?, &mut activations).with_context(place)?;
            let layers = activations.routing.layers.iter().map(|layer| &layer.routing.ids_tk[..]);
            counts.add(piece.len() as u64, layers);
            progress.advance(size_of_val(piece) as u64);
        }
    }
    Ok(())
}

fn table(texts: &[Text], counted: &[ExpertCounts], mixtures: &[usize]) {
    let (experts, top_k) = (counted[0].experts(), counted[0].top_k());
    let width = texts.iter().map(|text| text.name.chars().count()).max().unwrap_or(0).max(4);
    for text in texts {
        println!("{:<width$}  {}", text.name, olmoe_data::counted(text.ids.len(), "token"));
    }
    let uniform = 100.0 * top_k as f64 / experts as f64;
    println!(
        "{top_k} of {experts} experts for each token; {uniform:.1} % of the tokens each, if all were chosen alike\n"
    );
    println!("layer  {:<width$}  evenness    used  busiest, with their share of the tokens     apart", "text");
    for &mixture in mixtures {
        let layer = counted[0].layers()[mixture];
        for (at, (text, counts)) in texts.iter().zip(counted).enumerate() {
            let shares = counts.shares_of_tokens(mixture);
            let busiest = counts.busiest(mixture).into_iter().take(SHOWN);
            let busiest: String = busiest.map(|e| format!("  {e:>3} {:>4.0} %", 100.0 * shares[e])).collect();
            let apart = match at {
                0 if texts.len() > 1 => format!("  {:>5.2}", specialisation(counted, mixture)),
                _ => String::new(),
            };
            let used = format!("{}/{experts}", counts.used(mixture));
            let evenness = 100.0 * counts.evenness(mixture);
            println!("{layer:>5}  {:<width$}  {evenness:>6.1} %  {used:>6}{busiest:<44}{apart}", text.name);
        }
    }
}

fn json(texts: &[Text], counted: &[ExpertCounts], mixtures: &[usize]) -> Value {
    let number = |mixture: usize| counted[0].layers()[mixture];
    let of = |(text, counts): (&Text, &ExpertCounts)| {
        let layers = mixtures.iter().map(|&mixture| {
            json!({
                "layer": number(mixture), "counts": counts.choices(mixture), "evenness": counts.evenness(mixture),
                "used": counts.used(mixture),
            })
        });
        json!({"name": text.name, "tokens": counts.tokens(), "layers": layers.collect::<Vec<_>>()})
    };
    let apart = |&mixture: &usize| json!({"layer": number(mixture), "apart": specialisation(counted, mixture)});
    json!({
        "experts": counted[0].experts(), "top_k": counted[0].top_k(),
        "texts": texts.iter().zip(counted).map(of).collect::<Vec<_>>(),
        "specialisation": mixtures.iter().map(apart).collect::<Vec<_>>(),
    })
}

/// A row for each layer and text; an expert with the share of a uniform choice is white.
fn map(texts: &[Text], counted: &[ExpertCounts], mixtures: &[usize]) -> HeatMap {
    let first = &counted[0];
    let rows = mixtures.iter().flat_map(|&mixture| texts.iter().zip(counted).map(move |text| (mixture, text)));
    HeatMap {
        title: "Which experts take which kind of text".to_owned(),
        row_label: "layer and text".to_owned(),
        rows: rows.clone().map(|(mixture, (text, _))| format!("{} {}", first.layers()[mixture], text.name)).collect(),
        column_label: "expert".to_owned(),
        columns: (0..first.experts()).map(|expert| expert.to_string()).collect(),
        values: rows
            .flat_map(|(mixture, (_, counts))| counts.shares_of_tokens(mixture))
            .map(|share| 100.0 * share)
            .collect(),
        value_label: "% of the text's tokens".to_owned(),
        middle: Some(100.0 * first.top_k() as f64 / first.experts() as f64),
        decimals: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_a_name() {
        for (given, name, path) in [
            ("code=src/lib.rs", "code", "src/lib.rs"),
            ("data/prose.jsonl.gz", "prose", "data/prose.jsonl.gz"),
            ("=odd", "=odd", "=odd"),
            ("a=b=c", "a", "b=c"),
            ("Cargo.toml", "Cargo", "Cargo.toml"),
        ] {
            assert_eq!(split(given), (name.to_owned(), PathBuf::from(path)), "{given}");
        }
    }
}
