//! `olmoe quickstart`

mod files;
mod instructions;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use olmoe_data::token_file::{TokenFile, TokenType};
use olmoe_data::{NGrams, counted};
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::peak_flops;
use olmoe_tensor::simd::Isa;
use olmoe_tensor::threads::num_threads;
use olmoe_train::config::TrainConfig;
use olmoe_train::metrics::{FILE_NAME, Reader};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::Threads;
use crate::interrupts::{INTERRUPTED, interrupts};
use crate::live::duration;
use files::{KINDS, Size, TextKind};

/// From text to a trained mixture-of-experts model: all steps on a small scale
///
/// Makes a folder with a small corpus of stories, programs and word problems, and OLMoE's tokenizer, all of which this
/// program carries, and runs the other commands on it, each shown as you would type it: the text becomes tokens, a
/// small OLMoE (64 experts, 8 for each token) is trained and evaluated on text that it has not seen, exported to
/// Hugging Face and to GGUF, asked to write, looked into, and tuned to answer questions. Two to five minutes: the speed
/// of this machine is measured, and the largest of four fixed sizes taken that it trains in that time. No network is
/// needed.
///
/// Files that exist are not made again: after an interruption, give the same command again to continue.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe quickstart
  olmoe quickstart /tmp/first --steps 100
  olmoe quickstart /tmp/full --size full                       # whatever the machine

Exit status: 0 done, 1 if a step failed, 2 for wrong usage, 75 if training saved after a signal, 130 if another step was
interrupted.")]
pub(crate) struct QuickstartArgs {
    /// Folder for all files
    #[arg(value_name = "DIR", default_value = "quickstart")]
    folder: PathBuf,

    /// Train for fewer steps, to see all steps of the tour sooner
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,

    /// Size of the model and of the run [default: by the speed of this machine]
    #[arg(long, value_enum, value_name = "SIZE")]
    size: Option<Size>,

    #[command(flatten)]
    threads: Threads,
}

/// The commands that are run, and their folder.
struct Tour<'a> {
    folder: &'a Path,
    interrupted: Arc<AtomicBool>,
    began: Instant,
    /// The number of the present step, from 1.
    step: usize,
}

/// For how long the speed of the machine is measured.
const SPEED_TIME: Duration = Duration::from_millis(200);

/// Headings.
const STEPS: usize = 7;

/// Why a tour stops early.
enum Stop {
    Error(anyhow::Error),
    /// A command ended with this exit status.
    Status(ExitCode),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.into())
    }
}

pub(crate) fn run(args: &QuickstartArgs) -> anyhow::Result<ExitCode> {
    args.threads.apply();
    let folder = &args.folder;
    let (size, steps) = files::write(folder, args.size, args.steps, || {
        let peak = peak_flops(Operand::Bf16, SPEED_TIME);
        let size = Size::for_speed(peak);
        let (threads, isa) = (num_threads(), Isa::current().name());
        let threads = counted(threads, "thread");
        println!("{:.0} GFLOP/s with {threads} and {isa}: size {}", peak / 1e9, size.name());
        size
    })?;
    if args.size.is_none() && size != Size::Full {
        println!("The full size takes longer here: olmoe quickstart OTHER-FOLDER --size full");
    }
    let interrupted = interrupts(&[SIGINT, SIGTERM])?;
    let mut tour = Tour { folder, interrupted, began: Instant::now(), step: 0 };
    match tour.run(size, steps) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Stop::Status(status)) => {
            println!("\ninterrupted; the same command goes on from here");
            Ok(status)
        }
        Err(Stop::Error(error)) => Err(error),
    }
}

impl Tour<'_> {
    fn run(&mut self, size: Size, steps: u64) -> Result<(), Stop> {
        let (run, gguf) = (self.path("run"), self.path("model-q8_0.gguf"));
        let held_out = |kind: &TextKind| self.path(&format!("text/{}-held-out.jsonl.gz", kind.name));
        let texts: Vec<String> = KINDS.iter().map(|kind| format!("{}={}", kind.name, held_out(kind))).collect();

        self.heading("Text becomes tokens");
        let names: Vec<String> =
            KINDS.iter().flat_map(|kind| [kind.name.to_owned(), format!("{}-held-out", kind.name)]).collect();
        for (at, name) in names.iter().enumerate() {
            self.tokenize(name, at == 0)?;
        }
        println!("and the same for {}", names[1..].join(", "));

        self.heading("Training: 64 experts in each of 4 layers, 8 of them for each token");
        let config = self.path("train.yml");
        self.command(&["train", &config, "--try_load_latest_save"])?;
        self.baselines()?;

        self.heading("The model for other programs");
        let checkpoint = format!("{run}/step-{steps}");
        let huggingface = self.path("model-hf");
        self.once(&huggingface, &["convert", &checkpoint, &huggingface, "--to", "hf", "--dtype", "bf16", "--quiet"])?;
        self.once(&gguf, &["quantize", &checkpoint, &gguf, "--type", "q8_0", "--quiet"])?;

        self.heading("The quantised model writes");
        for kind in &KINDS {
            let sampling = ["-n", "70", "--temp", "0.7", "--top-p", "0.9", "--seed", "3", "--quiet"];
            let model = ["generate", "-m", &gguf, "-p", kind.prompt];
            self.command(&[&model[..], &sampling].concat())?;
        }

        self.heading("Which experts are chosen for which text");
        let map = self.path("experts.svg");
        let texts = texts.iter().map(String::as_str);
        let experts: Vec<&str> = ["experts", "-m", &gguf].into_iter().chain(texts).collect();
        self.command(&[&experts[..], &["--plot", &map, "--quiet"]].concat())?;

        self.heading("Tuning: the model learns to answer questions");
        self.tune(size, steps, &checkpoint)?;

        self.heading("How training went");
        let curve = self.path("loss.svg");
        self.command(&["runs", &run, "--plot", &curve])?;

        println!("\nDone in {}. What there is now:", duration(self.began.elapsed()));
        for (path, what) in [
            ("run", "checkpoints, metrics.jsonl, and the same for TensorBoard"),
            ("loss.svg", "loss, learning rate and load of the experts"),
            ("experts.svg", "which experts take stories, programs and word problems"),
            ("model-hf", "for transformers: OlmoeForCausalLM.from_pretrained"),
            ("tuned/model", "the same, tuned to answer questions: for `olmoe chat`"),
            ("model-q8_0.gguf", "for llama.cpp, and for `olmoe generate`"),
            ("train.yml", "the configuration, with OLMo's keys"),
        ] {
            println!("  {:<32} {what}", self.path(path));
        }
        println!("\nWhat to try next:");
        // The program is named as it was called: a new user has no `olmoe` on the path.
        let olmoe = std::env::args().next().unwrap_or_else(|| "olmoe".to_owned());
        for command in [
            format!("generate -m {gguf} -p 'One day, a little' -n 60"),
            format!("train {config} --save_folder={run}-2 --optimizer.learning_rate=1e-3"),
            format!("runs {run} {run}-2"),
            format!("chat -m {}", self.path("tuned/model")),
            "download allenai/OLMoE-1B-7B-0924-Instruct".to_owned(),
            "chat -m allenai/OLMoE-1B-7B-0924-Instruct".to_owned(),
            "help".to_owned(),
        ] {
            println!("  {olmoe} {command}");
        }
        Ok(())
    }

    /// A file or folder of the tour, as it would be typed.
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn heading(&mut self, text: &str) {
        self.step += 1;
        println!("\n{}/{STEPS}  {text}", self.step);
    }

    /// Prints a command and runs it.
    fn command(&self, arguments: &[&str]) -> Result<(), Stop> {
        println!("$ {}", typed(arguments));
        self.quietly(arguments)
    }

    /// Runs a command.
    fn quietly(&self, arguments: &[&str]) -> Result<(), Stop> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Stop::Status(ExitCode::from(INTERRUPTED)));
        }
        let arguments_after = arguments.iter().map(Into::into);
        match crate::execute(["olmoe".into()].into_iter().chain(arguments_after)).with_context(|| typed(arguments))? {
            status if status == ExitCode::SUCCESS => Ok(()),
            status => Err(Stop::Status(status)),
        }
    }

    /// Prints a command and runs it, unless its result exists.
    fn once(&self, made: &str, arguments: &[&str]) -> Result<(), Stop> {
        match Path::new(made).exists() {
            true => {
                println!("{made} exists already");
                Ok(())
            }
            false => self.command(arguments),
        }
    }

    fn tokenize(&self, name: &str, shown: bool) -> Result<(), Stop> {
        let (documents, tokens) = (self.path(&format!("text/{name}.jsonl.gz")), self.path(&format!("tokens/{name}")));
        let tokenizer = self.path("tokenizer.json");
        let arguments = ["tokenize", "--documents", &documents, "--destination", &tokens];
        let special = ["--tokenizer.name_or_path", &tokenizer, "--tokenizer.eos_token_id", "50279", "--quiet"];
        let arguments = [&arguments[..], &special].concat();
        match shown {
            true => self.once(&tokens, &arguments),
            false if Path::new(&tokens).exists() => Ok(()),
            false => self.quietly(&arguments),
        }
    }

    /// Tunes the model to answer questions, and shows how many answers are right before and after.
    fn tune(&self, size: Size, steps: u64, checkpoint: &str) -> Result<(), Stop> {
        let (rows, tuned) = (self.path("text/instructions.jsonl"), self.path("tuned"));
        let (most, rate) = size.tuning();
        // A tour that is cut short is so here, too.
        let short = steps < u64::from(size.steps());
        let most = if short { steps.min(u64::from(most)) } else { u64::from(most) }.to_string();
        let what = ["sft", "-m", checkpoint, "--train_file", &rows, "--output_dir", &tuned];
        let how = ["--max_train_steps", &most, "--per_device_train_batch_size", "16", "--learning_rate", rate];
        let rest = ["--max_seq_length", "64", "--clip_grad_norm", "1", "--logging_steps", "50"];
        self.command(&[&what[..], &how, &rest].concat())?;
        let (_, held_out) = instructions::rows();
        let right = |model: &str| match instructions::right(Path::new(model), &held_out, &self.interrupted)? {
            Some(count) => Ok(count),
            None => Err(Stop::Status(ExitCode::from(INTERRUPTED))),
        };
        let (before, after) = (right(checkpoint)?, right(&self.path("tuned/model"))?);
        let asked = &held_out[0];
        println!("\nquestions that it has not seen, such as {:?} -> {:?}", asked.instruction, asked.answer);
        println!("  answers that are right to the letter, of {}: {before} before, {after} after", held_out.len());
        Ok(())
    }

    /// The losses of the run beside those of counting.
    fn baselines(&self) -> anyhow::Result<()> {
        let config = TrainConfig::read(self.folder.join("train.yml"), &[] as &[&str])?.config;
        let (length, vocabulary) = (config.model.max_sequence_length, config.model.vocab_size);
        let read = |name: &str| {
            let file = self.folder.join("tokens").join(name).join("part-0-00000.npy");
            let file = TokenFile::open(&file, TokenType::U16)?;
            let mut ids = vec![0; usize::try_from(file.len())?];
            file.read(0, &mut ids, u32::try_from(vocabulary)?, &mut Vec::new())?;
            Ok::<_, anyhow::Error>(ids)
        };
        let mut counted = NGrams::new(vocabulary);
        for kind in &KINDS {
            counted.count(&read(kind.name)?);
        }
        let mut records = Reader::open(&self.folder.join("run").join(FILE_NAME))?;
        let mut losses = [None; KINDS.len()];
        while let Some(record) = records.next().transpose()? {
            for (loss, kind) in losses.iter_mut().zip(&KINDS) {
                *loss = record.get(&format!("eval/{}/CrossEntropyLoss", kind.name)).or(*loss);
            }
        }
        println!("\nheld-out loss, nats a token   single tokens   pairs of tokens   this model   its perplexity");
        for (kind, loss) in KINDS.iter().zip(losses) {
            let held_out = read(&format!("{}-held-out", kind.name))?;
            let (Some(loss), Some((unigram, bigram))) = (loss, counted.losses(&held_out, length)) else {
                bail!("{}: no evaluation of {}", self.path("run"), kind.name);
            };
            println!("  {:<26} {unigram:>14.2} {bigram:>17.2} {loss:>12.2} {:>16.1}", kind.name, loss.exp());
        }
        Ok(())
    }
}

/// A command as it would be typed.
fn typed(arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!("olmoe {}", arguments.join(" "))
}

/// An argument, quoted for a shell where necessary.
fn quoted(argument: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,%+@".contains(letter);
    match argument {
        _ if !argument.is_empty() && argument.chars().all(plain) => argument.to_owned(),
        _ => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_can_be_typed() {
        for (argument, typed) in [
            ("--top-p", "--top-p"),
            ("code=a/b.rs", "code=a/b.rs"),
            ("Once upon", "'Once upon'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(argument), typed);
        }
    }
}
