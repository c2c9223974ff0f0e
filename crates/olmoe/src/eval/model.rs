//! Who answers: a model of this program, or a server; and who judges.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use olmoe_checkpoint::conversation::ConversationTemplate;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::{SpecialTokenSources, SpecialTokens, Tokenizer};
use olmoe_engine::ScorerConfig;
use olmoe_eval::backend::local::SUITES_CONTEXT;
use olmoe_eval::backend::server::ServerSettings;
use olmoe_eval::endpoint::Endpoint;
use olmoe_eval::judge::Judge;
use olmoe_eval::{Backend, Beginning, LocalBackend, LocalModel, ServerBackend, encode};
use olmoe_model::intervention::{Intervention, SwitchedOff};
use serde_json::json;

use crate::flags::{Generator, Work, positive};

/// Tokens of finished texts that are kept for prompts with a common beginning.
const KEPT_TOKENS: usize = 4096;
/// Most tokens of a generated answer for which room is planned.
const ANSWER_TOKENS: usize = 1024;

/// The longest time of a request to a server.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Who answers, beside the flags of a model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(super) struct Answerer {
    /// A file with a Jinja template to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// Most texts to generate at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    parallel: usize,

    /// Most tokens of a pass that scores continuations
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    step_tokens: usize,

    /// Most tokens of a context with its continuation: longer contexts are cut from the left. The model's own context is the
    /// most that there can be
    #[arg(long, value_name = "N", default_value_t = SUITES_CONTEXT, value_parser = positive)]
    context: usize,

    /// Count which experts each task uses, and report them
    #[arg(long)]
    routing: bool,

    /// Switch an expert off: the router never chooses it, and the next one of a token takes its place; may be given several
    /// times. Layers and experts count from 0
    #[arg(long, value_name = "LAYER:EXPERT", value_parser = expert)]
    ban_expert: Vec<(usize, usize)>,

    /// Switch an expert off: it is chosen as before, and its output is left out; may be given several times
    #[arg(long, value_name = "LAYER:EXPERT", value_parser = expert)]
    zero_expert: Vec<(usize, usize)>,
}

/// A server that answers in place of a model.
#[derive(Args)]
#[command(next_help_heading = "Server")]
pub(super) struct Server {
    /// Ask the model of a server with OpenAI's protocol, such as http://localhost:8000
    #[arg(long, value_name = "URL", conflicts_with_all = ["first", "model"])]
    server: Option<String>,

    /// The name of its model [default: the only one that it lists]
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,

    /// Its model's tokenizer.json: continuations are then sent as tokens, as tasks encode them
    #[arg(long, value_name = "FILE", requires = "server")]
    server_tokenizer: Option<PathBuf>,

    /// Tokens of its model's context [default: what it says]
    #[arg(long, value_name = "N", requires = "server", value_parser = positive)]
    server_context: Option<usize>,

    /// The environment variable with the key of servers
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    key_env: String,

    /// The server of a judge, for AlpacaEval and XSTest
    #[arg(long, value_name = "URL", requires = "judge_model")]
    judge: Option<String>,

    /// The judge's model
    #[arg(long, value_name = "NAME", requires = "judge")]
    judge_model: Option<String>,
}

impl Server {
    fn endpoint(&self, address: &str) -> anyhow::Result<Endpoint> {
        let key = std::env::var(&self.key_env).ok().filter(|key| !key.is_empty());
        Ok(Endpoint::new(address, key, TIMEOUT)?)
    }

    /// The server that answers, and a name for its results, if one was given.
    pub(super) fn backend(&self, interrupt: &AtomicBool) -> anyhow::Result<Option<(Box<dyn Backend>, String)>> {
        let Some(address) = &self.server else { return Ok(None) };
        let settings =
            ServerSettings { context: self.server_context.or(ServerSettings::default().context), ..Default::default() };
        let endpoint = self.endpoint(address)?;
        let mut backend = ServerBackend::connect(endpoint, self.server_model.as_deref(), settings, interrupt)?;
        if let Some(path) = &self.server_tokenizer {
            let tokenizer = Tokenizer::from_file(path)?;
            let hash = olmoe_eval::record::hash(tokenizer.json());
            let special = SpecialTokens::resolve(&tokenizer, &SpecialTokenSources::default())?.0;
            let before = tokenizer.before_text().to_vec();
            let beginning = Beginning { before, bos: special.bos, eos: special.eos };
            let encode = move |encoding, context: &str, continuation: &str| {
                encode(&tokenizer, encoding, context, continuation, &beginning).map_err(|error| error.to_string())
            };
            backend = backend.encode(Box::new(encode), json!(hash));
        }
        let name = backend.model().rsplit('/').next().unwrap_or("server").to_owned();
        Ok(Some((Box::new(backend), name)))
    }

    /// The judge, if one was given.
    pub(super) fn judge(&self) -> anyhow::Result<Option<Judge>> {
        let (Some(address), Some(model)) = (&self.judge, &self.judge_model) else { return Ok(None) };
        Ok(Some(Judge { endpoint: self.endpoint(address)?, model: model.clone() }))
    }
}

fn expert(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once(':').and_then(|(layer, expert)| Some((layer.parse().ok()?, expert.parse().ok()?)));
    parsed.ok_or_else(|| "expected LAYER:EXPERT, such as 3:17".to_owned())
}

impl Answerer {
    /// The model of the flags, and a name for its results.
    pub(super) fn local(&self, generator: &Generator, words: &[&str]) -> anyhow::Result<(Box<dyn Backend>, String)> {
        let (checkpoint, companions) = generator.open(words)?;
        let source = self
            .chat_template
            .as_ref()
            .map(|path| std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display())));
        let conversation = companions
            .tokenizer()
            .is_some()
            .then(|| ConversationTemplate::of(&companions, source.transpose()?.as_deref()).map_err(anyhow::Error::from))
            .transpose()?;
        let context = Weights::config(&checkpoint).max_sequence_length;
        let samples = vec![(context, context.saturating_sub(ANSWER_TOKENS).max(context / 2)); self.parallel];
        let work = Work {
            running: self.parallel,
            step_tokens: self.step_tokens.max(self.parallel),
            kept_tokens: KEPT_TOKENS,
            samples,
        };
        let (limits, beside) = generator.limits(&checkpoint, &companions, work);
        let mut model = generator.load(&checkpoint, beside)?;
        let off = |how| move |&(layer, expert): &(usize, usize)| Intervention { layer, expert, how };
        let banned = self.ban_expert.iter().map(off(SwitchedOff::Banned));
        let off: Vec<_> = banned.chain(self.zero_expert.iter().map(off(SwitchedOff::Silent))).collect();
        model.set_interventions(&off)?;
        let weights = json!({
            "checkpoint": checkpoint.fingerprint()?,
            "adapters": generator.adapters(&checkpoint)?,
        });
        let local = LocalModel::with_companions(Arc::new(model), &companions, conversation, weights)?;
        let scorer =
            ScorerConfig { step_tokens: self.step_tokens, max_tokens: Some(self.context), ..ScorerConfig::default() };
        let mut backend = LocalBackend::new(local, scorer, limits)?;
        if self.routing {
            backend.count_experts();
        }
        let path = Weights::origin(&checkpoint);
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok((Box::new(backend), name))
    }
}
