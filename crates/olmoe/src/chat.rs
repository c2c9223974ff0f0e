//! `olmoe chat`

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use olmoe_analysis::ExpertCounts;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::conversation::ConversationTemplate;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::{MAX_TEMPLATE_BYTES, counted, expanded};
use olmoe_engine::{Completion, Engine, EventKind, FinishReason, Finished, Request, Stop};
use olmoe_model::config::closest;
use olmoe_model::model::Model;
use signal_hook::consts::SIGINT;

use crate::flags::{Generator, SettingsArgs, Work, no_more, settings};
use crate::interrupts::interrupts;
use crate::output::{is_quiet, note, print, warn};
use crate::text::utf8;

mod conversation;
mod experts;
mod input;

use conversation::{Conversation, Prompt};
use input::{Input, Source};

/// How many tokens of a prompt are read between two checks for an interrupt.
const STEP_TOKENS: usize = 256;
/// How many tokens of the context are left for an answer when turns are dropped.
const ANSWER_TOKENS: usize = 256;

const COMMANDS: [&str; 9] = ["/help", "/reset", "/save", "/load", "/system", "/set", "/experts", "/exit", "/quit"];

const HELP: &str = "\
/help             this list
/reset            clear the conversation; the system message stays
/save FILE        write the messages into a JSON file
/load FILE        continue with the messages of such a file
/system [TEXT]    show or set the system message; `none` removes it
/set [NAME VALUE] list the settings of generation, or change one
/experts          the experts chosen most often in the last answer, by layer
/exit             end; so does Ctrl-D

A line that ends in \\ goes on with the next one. A message that begins with \"\"\" goes on to the line that ends with
\"\"\"; it is never a command. Ctrl-C stops an answer, or clears the line.
";

/// Talk with a model
///
/// Each line is a message, and the model's answer is printed as it is generated. The conversation is rendered by the
/// chat template that comes with the model, or, if it has none, by tulu, the template of OLMoE's fine-tuning. Earlier
/// turns are not read again. When the conversation outgrows the model's context, its oldest turns are dropped with a
/// note; the system message stays.
///
/// A line that ends in \ goes on with the next one. A message that begins with """ goes on to the line that ends with
/// """. Lines that begin with / are commands; /help lists them. Ctrl-C stops an answer, whose text so far stays in the
/// conversation, or clears the line. Ctrl-D or /exit ends.
///
/// If standard input is not a terminal, every line is a turn as well: answers go to standard output, everything else to
/// standard error.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe chat allenai/OLMoE-1B-7B-0924-Instruct
  olmoe chat -m model.gguf --system 'Answer in one sentence.' --temp 0 -n 200
  printf '%s\\n' 'What is a mixture of experts?' /experts | olmoe chat -m model.gguf --quiet

Files: reads the model and the template; /save writes and /load reads a list of messages, [{\"role\": \"user\", \
\"content\": \"…\"}, …], with the roles system (the first one only), user and assistant. If the last message is the \
user's, it is answered at once.

Turn i, from 0, has the seed of the settings plus i, so the same messages with the same seed get the same answers.

Exit status: 0 done, 1 failed, or a line from other input than a terminal failed, 2 for wrong usage, 130 after an \
interrupt between two answers.")]
pub(crate) struct ChatArgs {
    /// The model, unless --model gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    #[command(flatten)]
    generator: Generator,

    /// System message before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    system: Option<String>,

    /// A file with a Jinja template to use instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    chat_template: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let words: Vec<&str> = args.first.iter().map(String::as_str).collect();
    no_more(&args.generator.rest(&words)?)?;
    let (checkpoint, companions) = args.generator.open(&words)?;
    let name = checkpoint.contents().path.display();
    let no_tokenizer = "it has no tokenizer, which a chat needs; convert it with --tokenizer";
    let tokenizer = companions.tokenizer().with_context(|| format!("{name}: {no_tokenizer}"))?;
    let template = template(args, &companions)?;
    let mut conversation = Conversation::new(&template.template, template.tokens(), tokenizer);
    conversation.check(&[])?;
    conversation.set_system(args.system.as_deref())?;

    let interactive = stdin().is_terminal() && stdout().is_terminal();
    let source = if interactive { Source::terminal()? } else { Source::plain() };
    let context = Weights::config(&checkpoint).max_sequence_length;
    // The engine runs one answer at a time, and keeps the conversation before it.
    let work =
        Work { running: 1, step_tokens: STEP_TOKENS, kept_tokens: context, samples: vec![(context, STEP_TOKENS)] };
    let (config, beside) = args.generator.limits(&checkpoint, &companions, work);
    let model = Arc::new(args.generator.load(&checkpoint, beside)?);
    let interrupted = interrupts(&[SIGINT])?;
    // Between answers an interrupt ends the program; while a terminal is being read, Ctrl-C arrives as a key instead.
    interrupted.store(true, Ordering::Relaxed);
    let mut request = args.settings.request(vec![0], Some(tokenizer.size()), args.settings.seed());
    request.experts = model.config().moe().is_some();
    let engine = Engine::new(model.clone(), Some(tokenizer.clone()), config)?;
    engine.check(&request)?;
    if interactive && !is_quiet() {
        eprintln!("/help lists the commands; Ctrl-D ends.");
    }
    let ends_answer = conversation.ends_answer();
    let stop_strings = companions.stop_strings().to_vec();
    let chat = Chat { model, engine, conversation, request, ends_answer, stop_strings, experts: None, interrupted };
    chat.talk(source, interactive)
}

/// The template from the arguments, the model or OLMoE's fine-tuning.
fn template(args: &ChatArgs, companions: &Companions) -> anyhow::Result<ConversationTemplate> {
    if let Some(path) = &args.chat_template {
        let name = path.display();
        let mut bytes = Vec::new();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        let read = file.take(MAX_TEMPLATE_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read {name}"))?;
        let source = utf8(bytes, &name.to_string())?;
        return ConversationTemplate::of(companions, Some(&source)).with_context(|| name.to_string());
    }
    if companions.chat_template().is_none() {
        note("this model has no chat template; tulu, the template of OLMoE's fine-tuning, is used");
    }
    let advice = "give another one with --chat-template";
    ConversationTemplate::of(companions, None)
        .with_context(|| format!("the model's own template cannot be used; {advice}"))
}

/// A conversation with a model.
struct Chat<'a> {
    model: Arc<Model>,
    engine: Engine,
    conversation: Conversation<'a>,
    /// How answers are generated; its prompt is unused.
    request: Request,
    /// The token that ends an answer in this template.
    ends_answer: Option<u32>,
    /// The texts that end an answer in the model's own settings.
    stop_strings: Vec<String>,
    /// The experts of the last answer.
    experts: Option<ExpertCounts>,
    interrupted: Arc<AtomicBool>,
}

impl Chat<'_> {
    /// Reads and answers until the user ends the program.
    fn talk(mut self, mut source: Source, interactive: bool) -> anyhow::Result<ExitCode> {
        let mut failed = false;
        loop {
            let input = source.next()?;
            match self.turn(input) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    failed = true;
                    let _ = writeln!(stderr(), "error: {}", crate::with_causes(&error));
                }
            }
        }
        Ok(ExitCode::from(u8::from(failed && !interactive)))
    }

    /// Handles an input. Returns false if it was the command to end.
    fn turn(&mut self, input: Input) -> anyhow::Result<bool> {
        match input {
            Input::Nothing => {}
            Input::Bad(problem) => bail!("{problem}"),
            Input::End => return Ok(false),
            Input::Message(text) => {
                self.conversation.ask(text);
                self.answer()?;
            }
            Input::Command(line) => return self.command(&line),
        }
        Ok(true)
    }

    /// Prints a note that is not part of an answer.
    fn note(&self, text: &str) {
        note(text);
    }

    fn command(&mut self, line: &str) -> anyhow::Result<bool> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => bail!("{name} needs a file name"),
            path => Ok(expanded(Path::new(path))),
        };
        if matches!(name, "/help" | "/reset" | "/experts" | "/exit" | "/quit") {
            ensure!(rest.is_empty(), "{name} takes no argument, found {rest:?}");
        }
        match name {
            "/help" => print(HELP)?,
            "/exit" | "/quit" => return Ok(false),
            "/reset" => {
                self.conversation.reset();
                self.experts = None;
                self.note("the conversation was cleared");
            }
            "/save" => {
                let messages = self.conversation.save(&file()?)?;
                self.note(&format!("{rest} holds {}", counted(messages, "message")));
            }
            "/load" => {
                let messages = self.conversation.load(&file()?)?;
                self.experts = None;
                self.note(&format!("{} of {rest}", counted(messages, "message")));
                if self.conversation.waits() {
                    self.answer()?;
                }
            }
            "/system" => match rest {
                "" => print(&format!("{}\n", self.conversation.system().unwrap_or("none")))?,
                "none" => self.conversation.set_system(None)?,
                text => self.conversation.set_system(Some(text))?,
            },
            "/set" => self.set(rest)?,
            "/experts" => {
                ensure!(self.model.config().moe().is_some(), "this model is dense: it has no experts");
                let table = self.experts.as_ref().and_then(experts::table);
                print(&table.context("there is no answer yet to show the experts of")?)?;
            }
            _ => {
                let meant = closest(name, &COMMANDS).map(|name| format!(", did you mean {name}?")).unwrap_or_default();
                bail!("there is no command {name}{meant} (/help lists them; a block in \"\"\" is never a command)");
            }
        }
        Ok(true)
    }

    /// Lists the settings, or changes one.
    fn set(&mut self, rest: &str) -> anyhow::Result<()> {
        if rest.is_empty() {
            let lines = settings::values(&self.request).map(|(name, value)| format!("{name:<20} {value}\n"));
            return print(&lines.concat());
        }
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            bail!("/set takes a name and a value, such as /set temperature 0.5; without them it lists the settings")
        };
        let mut request = self.request.clone();
        settings::set(&mut request, name, value.trim())?;
        self.engine.check(&request)?;
        self.request = request;
        Ok(())
    }

    /// Answers the user's last message; if that fails, removes the message again.
    fn answer(&mut self) -> anyhow::Result<()> {
        let answered = self.prompt().and_then(|prompt| self.generate(prompt));
        if answered.is_err() && self.conversation.waits() {
            self.conversation.take_back();
        }
        answered
    }

    /// The prompt for the model, with room for an answer: the oldest turns are dropped until there is room.
    fn prompt(&mut self) -> anyhow::Result<Prompt> {
        let context = self.model.config().max_sequence_length;
        let room = self.request.max_tokens.unwrap_or(ANSWER_TOKENS).min(context / 4).max(1);
        let mut dropped = 0;
        let prompt = loop {
            let prompt = self.conversation.prompt()?;
            if prompt.ids.len() + room <= context {
                break prompt;
            }
            match self.conversation.drop_oldest() {
                0 if prompt.ids.len() < context => break prompt,
                0 => bail!(
                    "this message has {} with its template, but the model's context is {context} for the \
                     messages and the answer; make it shorter",
                    counted(prompt.ids.len(), "token")
                ),
                messages => dropped += messages,
            }
        };
        if dropped > 0 {
            // The user still sees turns that the model no longer knows, so a note says so.
            warn(format_args!(
                "the conversation has outgrown the model's context of {context} tokens; dropped from its beginning: {}",
                counted(dropped, "message")
            ));
        }
        Ok(prompt)
    }

    /// Generates an answer and prints it as it is generated.
    fn generate(&mut self, prompt: Prompt) -> anyhow::Result<()> {
        let seed = self.request.seed.map(|seed| seed.wrapping_add(self.conversation.turns()));
        let mut request = Request { prompt: prompt.ids.clone(), seed, ..self.request.clone() };
        if !request.ignore_eos {
            request.stop_ids.extend(self.ends_answer);
            request.stop.extend_from_slice(&self.stop_strings);
        }
        self.interrupted.store(false, Ordering::Relaxed);
        let (start, mut first) = (Instant::now(), None);
        let (mut answer, mut refused, mut shown) = (Completion::default(), None, Ok(()));
        let config = self.model.config();
        let mut experts = ExpertCounts::new(config.mixture_layers(), config.moe().map_or(0, |moe| moe.num_experts));
        self.engine.run_all([request], &self.interrupted, |_, what| {
            let kind = match what {
                Ok(event) => event.kind,
                Err(error) => {
                    refused = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let piece = match &kind {
                EventKind::Token(token) => {
                    first.get_or_insert_with(Instant::now);
                    experts.add(1, token.experts.iter().map(Vec::as_slice));
                    &token.text
                }
                EventKind::Finished(end) => &end.text,
            };
            if !piece.is_empty() && shown.is_ok() {
                shown = print(piece);
            }
            answer.add(kind);
            if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        self.interrupted.store(true, Ordering::Relaxed);
        if let Some(error) = refused {
            return Err(error.into());
        }
        shown.and_then(|()| print("\n"))?;
        let (text, ids) = (answer.text(), answer.ids());
        let Finished { reason, usage, .. } = answer.end.context("the engine ended without an answer")?;
        let whole = match &reason {
            FinishReason::Error(error) => bail!("{error}"),
            FinishReason::Stop(Stop::Text(_)) => None,
            FinishReason::Stop(Stop::Id(_)) => Some(&ids[..ids.len().saturating_sub(1)]),
            FinishReason::Length | FinishReason::Cancelled => Some(&ids[..]),
        };
        self.conversation.answered(prompt, text, whole);
        self.experts = Some(experts);
        match reason {
            FinishReason::Cancelled => self.note("the answer was stopped"),
            FinishReason::Length if self.request.max_tokens.is_none_or(|most| usage.completion_tokens < most) => {
                self.note("the model's context is full; the answer ends here");
            }
            FinishReason::Length => self.note("the answer has reached max_tokens"),
            _ => {}
        }
        if !is_quiet() {
            let reading = first.map_or(start.elapsed(), |first| first - start).as_secs_f64();
            let writing = start.elapsed().as_secs_f64() - reading;
            // If standard output is closed, the answer still enters the conversation.
            let _ = writeln!(
                stderr(),
                "{} read, {} known; {} generated, {:.1} tokens/s",
                counted(usage.prompt_tokens - usage.reused_tokens, "token"),
                usage.reused_tokens,
                usage.completion_tokens,
                usage.completion_tokens.saturating_sub(1) as f64 / writing.max(1e-9)
            );
        }
        Ok(())
    }
}
