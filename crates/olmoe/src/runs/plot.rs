//! Runs as curves.

use std::path::PathBuf;

use olmoe_analysis::{Curve, Curves, Panel, Picture, Scale};
use olmoe_train::metrics::{EXPERT_LOAD, LEARNING_RATE, LOSS, TOTAL_TOKENS};

use super::run::{Run, Series, smoothed};
use super::{LogAxis, XAxis};

/// A panel for each metric with a curve for each run. A metric that no run has is left out.
pub(super) fn draw(
    runs: &[Run],
    metrics: &[String],
    smooth: usize,
    title: String,
    x: XAxis,
    log: &[LogAxis],
) -> anyhow::Result<Picture> {
    if let (XAxis::Tokens, Some(run)) = (x, runs.iter().find(|run| run.tokens.is_none())) {
        anyhow::bail!("{}: its records have no {TOTAL_TOKENS}; draw over steps: --x steps", run.folder.display());
    }
    let scale = |axis: LogAxis| if log.contains(&axis) { Scale::Log } else { Scale::Linear };
    let series = |name: &String| -> Vec<Option<&Series>> {
        runs.iter().map(|run| run.series.iter().find(|series| series.name == *name)).collect()
    };
    let mut panels = Vec::new();
    for name in metrics {
        let series = series(name);
        if series.iter().flatten().all(|series| series.values.is_empty()) {
            continue;
        }
        let curves = series.iter().map(|series| series.map_or_else(Curve::default, |series| curve(series, smooth, x)));
        panels.push(Panel { name: heading(name), scale: scale(LogAxis::Y), curves: curves.collect() });
    }
    if panels.is_empty() {
        anyhow::bail!("the runs have no records of {}; choose others with --metric", metrics.join(", "));
    }
    let x_label = match x {
        XAxis::Steps => "step",
        XAxis::Tokens => "tokens",
    };
    let names = names(runs);
    // A single run has no legend, so its name goes into the title.
    let title = if title.is_empty() && names.len() == 1 { names[0].clone() } else { title };
    Ok(Curves { title, x_label: x_label.to_owned(), x_scale: scale(LogAxis::X), names, panels }.draw()?)
}

fn curve(series: &Series, smooth: usize, x: XAxis) -> Curve {
    let values: Vec<f64> = series.values.iter().map(|(_, _, value)| *value).collect();
    let place = |at: usize| {
        let (step, tokens, _) = series.values[at];
        if x == XAxis::Tokens { tokens.unwrap_or(f64::NAN) } else { step as f64 }
    };
    let at = |(at, value): (usize, f64)| (place(at), value);
    // A learning rate schedule has no noise to smooth.
    if smooth == 1 || series.name.starts_with("optim/learning_rate") {
        return Curve { points: values.into_iter().enumerate().map(at).collect(), behind: Vec::new() };
    }
    Curve {
        points: smoothed(&values, smooth).into_iter().enumerate().map(at).collect(),
        behind: values.into_iter().enumerate().map(at).collect(),
    }
}

/// The description of a metric, or its name.
fn heading(name: &str) -> String {
    match name {
        LOSS => "loss (cross-entropy of the batch)".to_owned(),
        LEARNING_RATE => "learning rate".to_owned(),
        EXPERT_LOAD => "load of the busiest expert (1 is balanced)".to_owned(),
        _ => name.to_owned(),
    }
}

/// Names that distinguish the runs: their paths without their common folders.
fn names(runs: &[Run]) -> Vec<String> {
    let parts = |run: &Run| run.folder.components().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let paths: Vec<Vec<_>> = runs.iter().map(parts).collect();
    let shortest = paths.iter().map(Vec::len).min().unwrap_or(0);
    let same = |at: usize| paths.iter().all(|path| path[at] == paths[0][at]);
    let shared = (0..shortest.saturating_sub(1)).take_while(|at| same(*at)).count();
    paths.iter().map(|path| path[shared..].iter().collect::<PathBuf>().display().to_string()).collect()
}
