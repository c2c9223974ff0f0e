//! A folder with a small random model, and a command that is run with it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use olmoe_data::{Tokenizer, Vocabulary};
use serde_json::{Value, json};

use super::{Done, PROGRAM, olmoe};

/// The folder.
pub(crate) struct Desk {
    folder: tempfile::TempDir,
    verb: &'static str,
}

impl Desk {
    /// For a command, and a model with a context of so many tokens.
    pub(crate) fn new(verb: &'static str, context: usize) -> Desk {
        let desk = Desk { folder: tempfile::tempdir().unwrap(), verb };
        let config = json!({
            "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 32, "vocab_size": 260,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 16,
            "num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": context, "pad_token_id": 1,
            "eos_token_id": 256, "initializer_range": 0.3,
        });
        std::fs::write(desk.path("config.json"), config.to_string()).unwrap();
        std::fs::write(desk.path("tokenizer.json"), tokenizer().json()).unwrap();
        let paths = ["config.json", "hf", "tokenizer.json"].map(|name| desk.path(name).to_str().unwrap().to_owned());
        let [config, hf, tokenizer] = paths.each_ref().map(String::as_str);
        let done = olmoe(&["init", "--config", config, "--seed", "1", hf, "--tokenizer", tokenizer], &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        desk
    }

    /// A file of the folder; `hf` is the model.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command with its model, in the folder.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args([self.verb, "-m"]).arg(self.path("hf")).args(words).env_remove("OLMOE_ISA");
        command.current_dir(self.folder.path());
        command
    }

    /// Starts it with pipes.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, words: &[&str], input: &str) -> Done {
        let mut child = self.start(words);
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let done = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
    }

    /// Its standard output; it has to succeed.
    pub(crate) fn done(&self, words: &[&str]) -> String {
        let done = self.run(words, "");
        assert_eq!(done.code, 0, "{words:?}: {}", done.err);
        done.out
    }

    /// The JSON that it prints.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.done(words)).unwrap()
    }
}

/// The bytes, then an end of text.
fn tokenizer() -> Tokenizer {
    Tokenizer::from_vocabulary(&Vocabulary { pad: Some(1), ..Vocabulary::bytes() }).unwrap()
}
