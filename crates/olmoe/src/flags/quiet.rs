//! `--quiet`, which means the same everywhere.

use clap::Args;

/// Whether only errors, warnings and results are shown.
#[derive(Args)]
pub(crate) struct Quiet {
    /// No progress, no notes and no summary
    // Read where the program begins, for all commands alike: see `crate::output`.
    #[arg(id = "quiet", long = "quiet", help_heading = "Output")]
    _quiet: bool,
}
