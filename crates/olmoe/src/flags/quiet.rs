//! `--quiet`, alike for all commands.

use clap::Args;

/// Whether only errors, warnings and results are printed.
#[derive(Args)]
pub(crate) struct Quiet {
    /// No progress, no notes and no summary
    // The program reads it once at its start, for all commands: see `crate::output`.
    #[arg(id = "quiet", long = "quiet", help_heading = "Output")]
    _quiet: bool,
}
