//! The rows of a run as tokens.

use std::path::Path;

use anyhow::{Context, bail};
use olmoe_data::counted;
use olmoe_data::instruct::{
    EncodeOptions, Encoded, Encoder, MixedRow, Record, Report, Source, cache_key, collect, files, held_out, load, store,
};
use olmoe_train::config::TrainConfigError;
use olmoe_train::finetune::config::{FinetuneConfig, Task};

use super::opening::Opened;
use crate::output::{is_quiet, note, warn};

/// Folder of encoded rows in the folder of a run.
const FOLDER: &str = "encoded";

/// Rows to learn from, and to evaluate on.
pub(super) struct Rows {
    pub(super) train: Vec<Encoded>,
    pub(super) evaluation: Option<Vec<Encoded>>,
}

/// Encodes the data of a configuration, or takes what was encoded before. With `keep`, what is encoded is kept in the folder of
/// the run.
pub(super) fn rows(
    task: Task,
    config: &FinetuneConfig,
    opened: &Opened,
    options: &EncodeOptions,
    keep: bool,
) -> anyhow::Result<Rows> {
    let encoding = Encoding { task, config, opened, options, keep };
    let sources = config.sources(task)?;
    let mut sets = encoding.set("training", &sources, config.eval_split)?;
    let train = sets.remove(0);
    let evaluation = config.evaluation_sources()?;
    let evaluation = match (sets.pop(), &evaluation[..]) {
        (held, []) => held,
        (held, files) => {
            let mut more = encoding.set("evaluation", files, None)?.remove(0);
            let mut all = held.unwrap_or_default();
            all.append(&mut more);
            Some(all)
        }
    };
    if train.is_empty() {
        bail!("no row is left to learn from; look at the warnings above, and with --preview 1 at what is learned");
    }
    Ok(Rows { train, evaluation })
}

/// How rows are encoded.
struct Encoding<'a> {
    task: Task,
    config: &'a FinetuneConfig,
    opened: &'a Opened,
    options: &'a EncodeOptions,
    keep: bool,
}

impl Encoding<'_> {
    /// The rows of sources, and those held out of them.
    fn set(&self, what: &str, sources: &[Source], split: Option<f64>) -> anyhow::Result<Vec<Vec<Encoded>>> {
        let config = self.config;
        let mut all = Vec::new();
        for source in sources {
            all.extend(files(&source.path)?);
        }
        let parts = if split.is_some() { 2 } else { 1 };
        let shares: Vec<_> = sources.iter().map(|source| (&source.amount, &source.options)).collect();
        let special = self.opened.special();
        let decides = (
            (self.task.purpose(), self.options, shares, config.seed),
            (config.max_train_samples.filter(|_| what == "training"), split, special.bos, special.eos),
        );
        let tokenizer = &self.opened.tokenizer;
        let key = cache_key(&all, &self.opened.source, tokenizer, &decides)?;
        let folder = olmoe_data::expanded(Path::new(&config.output_dir)).join(FOLDER);
        let name: String = key.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = |part: usize| folder.join(format!("{name}-{part}.rows"));
        let mut found = Vec::new();
        for part in 0..parts {
            if config.overwrite_cache {
                break;
            }
            match load(&path(part), &key) {
                Ok(Some(rows)) => found.push(rows),
                Ok(None) => break,
                Err(error) => {
                    note(format_args!("{error}"));
                    break;
                }
            }
        }
        if found.len() == parts {
            say(format_args!("{what} data: encoded before, {}", folder.display()));
        } else {
            found = self.encode(what, sources, split)?;
            if self.keep {
                std::fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make the folder {}", folder.display()))?;
                for (part, (rows, report)) in found.iter().enumerate() {
                    // Without them the next start takes longer, no more.
                    if let Err(error) = store(&path(part), &key, rows, report) {
                        warn(error);
                        break;
                    }
                }
            }
        }
        let mut sets = Vec::new();
        for (part, (rows, report)) in found.into_iter().enumerate() {
            let what = if part == 0 { what } else { "held-out" };
            say(format_args!("{what} data: {report}"));
            report.warnings().iter().for_each(|text| warn(format_args!("{what} data: {text}")));
            sets.push(rows);
        }
        Ok(sets)
    }

    fn encode(
        &self,
        what: &str,
        sources: &[Source],
        split: Option<f64>,
    ) -> anyhow::Result<Vec<(Vec<Encoded>, Report)>> {
        let config = self.config;
        let (mut mixed, records, reports) = collect(sources, self.task.purpose(), config.seed)?;
        for report in &reports {
            let format = report.format.map_or("none".to_owned(), |format| format.to_string());
            let files = if report.files == 1 { String::new() } else { format!(" in {} files", report.files) };
            let unfit = match report.unfit {
                0 => String::new(),
                rows => format!(", {rows} without a use here"),
            };
            say(format_args!(
                "{}: format {format}, {}{files}{unfit}, {} taken",
                report.path.display(),
                counted(u64::from(report.rows), "row"),
                report.taken
            ));
            if !report.unused.is_empty() {
                say(format_args!("{}: columns not read: {}", report.path.display(), report.unused.join(", ")));
            }
        }
        if mixed.is_empty() {
            let found = sources.iter().map(|source| source.path.display().to_string()).collect::<Vec<_>>().join(", ");
            let problem = "there are no rows in it; name data that has some";
            let path = if what == "training" { "train_file" } else { "eval_file" };
            return Err(TrainConfigError::Value { path: path.to_owned(), found, problem }.into());
        }
        if let Some(most) = config.max_train_samples.filter(|_| what == "training") {
            mixed.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        }
        let mut sets = Vec::new();
        match split {
            None => sets.push(mixed),
            Some(split) => {
                let (rest, held) = held_out(mixed, split, config.seed)?;
                sets.extend([rest, held]);
            }
        }
        let special = self.opened.special();
        let (tokenizer, template) = (&self.opened.tokenizer, Some(&self.opened.template));
        let encoder = Encoder::new(tokenizer, template, self.opened.tokens(), &special, self.options)?;
        let pick = |rows: &[MixedRow]| -> Vec<Record> {
            rows.iter().filter_map(|row| records.get(row.source as usize)?.get(row.row as usize).cloned()).collect()
        };
        sets.iter().map(|rows| Ok(encoder.encode_all(&pick(rows))?)).collect()
    }
}

/// Says what there is, unless --quiet was given.
fn say(text: impl std::fmt::Display) {
    if !is_quiet() {
        eprintln!("{text}");
    }
}
