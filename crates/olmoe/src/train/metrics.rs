//! `metrics.jsonl`: a line of JSON for each step.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};

const FILE: &str = "metrics.jsonl";
/// Most bytes of a line that is kept.
const MAX_LINE: usize = 16 << 20;

/// The metrics of a run.
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens those of a run that goes on after `step`: what was written of later steps, before an end without a save, is
    /// taken away, and so is a line that was cut off.
    pub(super) fn open(folder: &Path, step: u64) -> anyhow::Result<Metrics> {
        let path = folder.join(FILE);
        let failed = || format!("cannot write {}", path.display());
        let temporary = folder.join(format!("{FILE}.tmp"));
        let mut kept = File::create(&temporary).with_context(failed)?;
        if step > 0
            && let Ok(old) = File::open(&path)
        {
            let mut out = std::io::BufWriter::new(&kept);
            for line in BufReader::new(old).split(b'\n') {
                let line = line.with_context(failed)?;
                let value = serde_json::from_slice(&line).unwrap_or(Value::Null);
                if line.len() <= MAX_LINE && value["step"].as_u64().is_some_and(|at| at <= step) {
                    out.write_all(&line).and_then(|()| out.write_all(b"\n")).with_context(failed)?;
                }
            }
            out.flush().with_context(failed)?;
        }
        kept.flush().with_context(failed)?;
        std::fs::rename(&temporary, &path).with_context(failed)?;
        let file = File::options().append(true).open(&path).with_context(failed)?;
        Ok(Metrics { path, file })
    }

    /// Writes the metrics of a step; nothing if there are none. What is no finite number becomes null.
    pub(super) fn record(&mut self, step: u64, values: &[(String, f64)]) -> anyhow::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.extend(values.iter().map(|(name, value)| (name.clone(), Value::from(*value))));
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_forgets_what_came_after() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            metrics.record(step, &[("loss".into(), 1.0 / step as f64), ("bad".into(), f64::NAN)]).unwrap();
        }
        metrics.file.write_all(b"{\"step\": 2, \"lo").unwrap();
        let mut metrics = Metrics::open(folder.path(), 3).unwrap();
        metrics.record(4, &[("loss".into(), 7.5)]).unwrap();
        metrics.record(5, &[]).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert_eq!((&lines[3]["loss"], &lines[1]["bad"]), (&Value::from(7.5), &Value::Null));
        assert!(Metrics::open(&folder.path().join("none"), 0).is_err());
    }
}
