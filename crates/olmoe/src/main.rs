//! The `olmoe` program: flags and dispatch; every command is a file.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 75 saved before the end.

mod arguments;
#[macro_use]
mod output;

mod bench;
mod chat;
mod convert;
mod download;
mod experts;
mod generate;
mod generator;
mod init;
mod inspect;
mod interrupts;
mod live;
mod loading;
mod logits;
mod progress;
mod quantize;
mod quickstart;
mod runs;
mod settings;
mod soup;
mod tokenize;
mod tokens;
mod train;
mod upcycle;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use olmoe_tensor::simd::Isa;

/// The OLMoE mixture-of-experts language models on the CPU: right, deterministic, fast.
///
/// The same forward pass serves training and inference, and a result never depends on the number of threads, on the
/// rest of the batch, or on the instruction set: `olmoe verify` shows it on your machine.
///
/// Environment: OLMOE_ISA=scalar|avx2|avx512 forces one instruction set; without it the best one that the processor has
/// is used. Exit status: 0 done, 1 failed, 2 wrong usage, 75 training saved before its end.
#[derive(Parser)]
#[command(name = "olmoe", version, arg_required_else_help = true, subcommand_required = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quickstart(quickstart::QuickstartArgs),
    Download(download::DownloadArgs),
    Inspect(inspect::InspectArgs),
    Convert(convert::ConvertArgs),
    Quantize(quantize::QuantizeArgs),
    Init(init::InitArgs),
    Upcycle(upcycle::UpcycleArgs),
    Soup(soup::SoupArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Logits(logits::LogitsArgs),
    Experts(experts::ExpertsArgs),
    Tokens(tokens::TokensArgs),
    Tokenize(tokenize::TokenizeArgs),
    Train(train::TrainArgs),
    Verify(verify::VerifyArgs),
    Runs(runs::RunsArgs),
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    execute(std::env::args_os()).unwrap_or_else(|error| {
        eprintln!("error: {}", with_causes(&error));
        ExitCode::FAILURE
    })
}

/// Runs a command line. Ends the program if it is wrong.
fn execute(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli = Cli::parse_from(train::keys_last(arguments));
    if let Err(error) = Isa::from_environment() {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(2));
    }
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    match &cli.command {
        Command::Quickstart(args) => quickstart::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Train(args) => train::run(args),
        Command::Download(args) => done(download::run(args)),
        Command::Inspect(args) => done(inspect::run(args)),
        Command::Convert(args) => done(convert::run(args)),
        Command::Quantize(args) => done(quantize::run(args)),
        Command::Init(args) => done(init::run(args)),
        Command::Upcycle(args) => done(upcycle::run(args)),
        Command::Soup(args) => done(soup::run(args)),
        Command::Logits(args) => done(logits::run(args)),
        Command::Experts(args) => done(experts::run(args)),
        Command::Tokens(args) => done(tokens::run(args)),
        Command::Tokenize(args) => done(tokenize::run(args)),
        Command::Bench(args) => done(bench::run(args)),
    }
}

/// An error and its causes on one line; a cause that a text already holds is not repeated.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_named_once() {
        let error = anyhow::anyhow!("disk full").context("a.bin: disk full").context("saving");
        assert_eq!(with_causes(&error), "saving: a.bin: disk full");
    }
}
