//! `olmoe verify`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use olmoe_data::counted;
use olmoe_verify::{Check, CheckKind, CheckSummary};
use serde::Serialize;

use crate::flags::{Precisions, Threads};

/// Check on this machine that the model computes correctly
///
/// Runs small models of every variant and compares logits, losses, routing and the gradient of every parameter with
/// those of the reference implementations (the golden states, which are part of the program). Then it checks that the
/// same bits come out with 1, 2 and 3 threads, on every instruction set of the processor, for a sequence alone and in a
/// batch, with and without a key/value cache, and with and without activation checkpointing. Last it makes known
/// mistakes of OLMoE implementations on purpose, such as a query norm per head or swapped gate and up projections; each
/// has to be detected.
///
/// Each check has a line: golden state, precision, quantity, worst error, bound, verdict, remarks. The last line has
/// the counts.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe verify
  olmoe verify --precision fp32 --threads 4
  olmoe verify --golden tests/golden --json > checks.json

Files: reads none but those of --golden; writes none.

Exit status: 0 if every check passed, 1 if one failed or a file could not be read, 2 for wrong usage.")]
pub(crate) struct VerifyArgs {
    /// Read the golden states of this folder instead of those in the program
    ///
    /// Every *.safetensors in the folder is read. A mistake is tried if the golden state that reveals it is there, by
    /// its name.
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,

    /// Precision of the matrix products to check
    ///
    /// The f64 reference and the mistakes are checked with fp32 only.
    #[arg(long, value_enum, default_value = "all")]
    precision: Precisions,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object: `checks`, an array, and `summary`
    #[arg(long)]
    json: bool,

    /// Print only the failed checks and the counts
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    summary: CheckSummary,
}

pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    args.threads.apply();
    let goldens = match &args.golden {
        Some(folder) => olmoe_verify::read_directory(folder)?,
        None => olmoe_verify::embedded()?,
    };
    let mut report = Report { checks: Vec::new(), summary: CheckSummary::default() };
    olmoe_verify::verify(&goldens, &args.precision.list(), |check| {
        report.summary.add(&check);
        if args.json {
            report.checks.push(check);
        } else if !check.passed || !args.quiet {
            println!("{}", line(&check));
        }
    })?;
    let summary = report.summary;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let CheckSummary { checks, passed, mistakes, detected } = summary;
        let (checks, mistakes) = (counted(checks, "check"), counted(mistakes, "mistake"));
        println!("{checks}, {passed} passed; {detected} of {mistakes} detected");
    }
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(check: &Check) -> String {
    let number = |x: f64| if check.bound == 0.0 || x == 0.0 { format!("{x}") } else { format!("{x:.1e}") };
    let within = check.passed != (check.kind == CheckKind::Mistake);
    let sign = if within { "≤" } else { ">" };
    let verdict = match (check.passed, check.kind) {
        (false, _) => "FAIL",
        (true, CheckKind::Mistake) => "detected",
        (true, _) => "ok",
    };
    let text = format!(
        "{:<17} {:<9} {:<52} {:>8} {sign} {:<7} {verdict:<8}  {}",
        check.model,
        check.precision,
        check.what,
        number(check.worst),
        number(check.bound),
        check.detail
    );
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_on_which_side_of_the_bound() {
        let mut check = Check {
            model: "toy".into(),
            kind: CheckKind::Agreement,
            what: "logits".into(),
            precision: "fp32",
            worst: 2.57e-7,
            bound: 1e-5,
            passed: true,
            detail: String::new(),
        };
        let words = |check: &Check| line(check).split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
        assert_eq!(words(&check), "2.6e-7 ≤ 1.0e-5 ok");
        (check.worst, check.passed) = (f64::NAN, false);
        assert_eq!(words(&check), "NaN > 1.0e-5 FAIL");
        (check.kind, check.worst) = (CheckKind::Mistake, 1e-7);
        assert_eq!(words(&check), "1.0e-7 ≤ 1.0e-5 FAIL");
        (check.worst, check.passed) = (0.5, true);
        assert_eq!(words(&check), "5.0e-1 > 1.0e-5 detected");
        (check.kind, check.worst, check.bound, check.passed) = (CheckKind::Determinism, 12.0, 0.0, false);
        assert_eq!(words(&check), "12 > 0 FAIL");
    }
}
