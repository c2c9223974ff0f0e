//! The `olmoe` program: flags and dispatch, with a file for each command.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage, 75 stopped with all work saved, 130 and 143 after a signal.

#[macro_use]
mod output;

mod bench;
mod chat;
mod completions;
mod convert;
mod download;
mod eval;
mod experts;
mod files;
mod finetune;
mod flags;
mod generate;
mod help;
mod hub_progress;
mod init;
mod inspect;
mod interrupts;
mod keys;
mod live;
mod logits;
mod man;
mod merge;
mod progress;
mod quantize;
mod quickstart;
mod runs;
mod soup;
mod text;
mod tokenize;
mod tokens;
mod train;
mod upcycle;
mod usage;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use olmoe_tensor::simd::Isa;

/// The OLMoE mixture-of-experts language models on the CPU: right, deterministic, fast.
///
/// The same forward pass serves training and inference, and a result never depends on the number of threads, on the
/// rest of the batch, or on the instruction set: `olmoe verify` shows it on your machine.
#[derive(Parser)]
#[command(
    name = "olmoe",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    after_long_help = "\
Examples:
  olmoe download allenai/OLMoE-1B-7B-0924-Instruct
  olmoe chat -m allenai/OLMoE-1B-7B-0924-Instruct
  olmoe quantize allenai/OLMoE-1B-7B-0924 olmoe.gguf --type q4_k_m
  olmoe generate -m olmoe.gguf -p 'Bitcoin is' -n 64
  olmoe help bench decode

Results go to standard output; progress, notes, warnings and errors to standard error, where --quiet leaves warnings and \
errors only. Progress bars and colours appear on terminals only.

Environment:
  OLMOE_ISA    instruction set to use: scalar, avx2, avx_vnni, avx512, avx512_bf16 or neon
               [default: the processor's fastest]
  HF_HOME      folder for models of the hub and the token; see `olmoe help download`
  NO_COLOR     not empty: no colours in help and errors

Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped with all work saved, 130 after an interrupt (Ctrl-C), 143 \
after SIGTERM. It is no error if a reader such as head closes standard output early."
)]
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
    Merge(merge::MergeArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Logits(logits::LogitsArgs),
    Experts(experts::ExpertsArgs),
    Tokens(tokens::TokensArgs),
    Tokenize(tokenize::TokenizeArgs),
    Train(train::TrainArgs),
    Sft(finetune::SftArgs),
    Dpo(finetune::DpoArgs),
    Kto(finetune::KtoArgs),
    Eval(eval::EvalArgs),
    Verify(verify::VerifyArgs),
    Runs(runs::RunsArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

fn main() -> ExitCode {
    execute(std::env::args_os()).unwrap_or_else(|error| {
        eprintln!("error: {}", with_causes(&error));
        if error.downcast_ref::<usage::Usage>().is_none() {
            return ExitCode::FAILURE;
        }
        eprintln!("\nFor more information, try '--help'.");
        ExitCode::from(2)
    })
}

/// Runs a command line. Ends the program if it is wrong.
fn execute(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let arguments = keys::arranged(arguments);
    let matches = command().try_get_matches_from(&arguments);
    let matches = matches.unwrap_or_else(|error| {
        let mut program = command();
        program.build();
        usage::explained(error, &program, &arguments).exit()
    });
    output::be_quiet(asks_for_quiet(&matches));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
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
        Command::Eval(args) => eval::run(args),
        Command::Sft(args) => finetune::run(&args.run),
        Command::Dpo(args) => finetune::run(&args.run),
        Command::Kto(args) => finetune::run(&args.run),
        Command::Download(args) => done(download::run(args)),
        Command::Inspect(args) => done(inspect::run(args)),
        Command::Convert(args) => done(convert::run(args)),
        Command::Quantize(args) => done(quantize::run(args)),
        Command::Init(args) => done(init::run(args)),
        Command::Upcycle(args) => done(upcycle::run(args)),
        Command::Soup(args) => done(soup::run(args)),
        Command::Merge(args) => done(merge::run(args)),
        Command::Logits(args) => done(logits::run(args)),
        Command::Experts(args) => done(experts::run(args)),
        Command::Tokens(args) => done(tokens::run(args)),
        Command::Tokenize(args) => done(tokenize::run(args)),
        Command::Bench(args) => done(bench::run(args)),
        Command::Completions(args) => done(completions::run(args)),
        Command::Man(args) => done(man::run(args)),
    }
}

/// The program's flags.
fn command() -> clap::Command {
    flags::with_expanded_paths(help::grouped(Cli::command()))
}

/// Whether the called command, at any depth, was given --quiet.
fn asks_for_quiet(matches: &ArgMatches) -> bool {
    matches.subcommand().is_some_and(|(_, below)| {
        below.try_get_one::<bool>("quiet").is_ok_and(|quiet| quiet == Some(&true)) || asks_for_quiet(below)
    })
}

/// An error and its causes on one line; a cause whose text is already there is not repeated.
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
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn causes_are_named_once() {
        let error = anyhow::anyhow!("disk full").context("a.bin: disk full").context("saving");
        assert_eq!(with_causes(&error), "saving: a.bin: disk full");
    }
}
