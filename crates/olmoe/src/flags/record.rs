//! The report of what was written, as text or as JSON.

use std::fmt::Display;
use std::path::Path;

use clap::Args;
use olmoe_checkpoint::convert::Written;
use serde_json::json;

/// How the report of a written checkpoint is printed.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct RecordArg {
    /// Print one JSON object: path, tensors, bytes and kinds, with the error of each kind of tensor
    #[arg(long)]
    json: bool,
}

impl RecordArg {
    /// Prints the report: the object, or the text unless --quiet was given.
    pub(crate) fn show(&self, path: &Path, written: &Written, text: impl Display) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&record(path, written))?);
        } else if !crate::output::is_quiet() {
            println!("{text}");
        }
        Ok(())
    }
}

fn record(path: &Path, written: &Written) -> serde_json::Value {
    let kinds = written.kinds.iter().map(|(kind, fidelity)| {
        json!({
            "kind": kind, "types": fidelity.encodings, "numbers": fidelity.numbers,
            "bytes_before": fidelity.bytes_before, "bytes_after": fidelity.bytes_after,
            "rmse": fidelity.rmse(), "relative_error": fidelity.relative(), "max_error": fidelity.max_error,
        })
    });
    json!({
        "path": path.display().to_string(), "tensors": written.tensors, "bytes": written.bytes,
        "kinds": kinds.collect::<Vec<_>>(),
    })
}
