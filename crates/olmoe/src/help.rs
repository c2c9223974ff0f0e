//! The help of the program: its commands in groups, in the order of a model's life.

use clap::Command;

/// The groups; every command belongs to one.
const GROUPS: [(&str, &[&str]); 8] = [
    ("First", &["quickstart"]),
    ("Models", &["download", "inspect", "convert", "quantize", "init", "upcycle", "soup", "merge"]),
    ("Text", &["generate", "chat", "logits", "tokens"]),
    ("Training", &["tokenize", "train", "sft", "dpo", "kto", "runs"]),
    ("Evaluation", &["eval"]),
    ("Inside", &["experts"]),
    ("This machine", &["verify", "bench"]),
    ("This program", &["completions", "man", "help"]),
];

/// Adds the groups of commands to a program's help.
pub(crate) fn grouped(command: Command) -> Command {
    let styles = command.get_styles().clone();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (group, names) in GROUPS {
        text.push_str(&format!("\n{header}{group}:{header:#}\n"));
        for name in names {
            let about = match command.find_subcommand(name).and_then(Command::get_about) {
                Some(about) => about.to_string(),
                // clap adds the `help` command later.
                None => "Print the help of a command".to_owned(),
            };
            text.push_str(&format!("  {literal}{name:<11}{literal:#}  {about}\n"));
        }
    }
    text.push_str(&format!("\n{header}Options:{header:#}\n{{options}}{{after-help}}"));
    command.help_template(text)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Command;
    use clap::error::ErrorKind;

    use super::GROUPS;
    use crate::man::HEADINGS;

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let program = crate::command();
        let mut names: Vec<&str> = program.get_subcommands().map(Command::get_name).chain(["help"]).collect();
        grouped.sort_unstable();
        names.sort_unstable();
        assert_eq!(grouped, names, "GROUPS of help.rs has to name every command once");
    }

    /// Every command that can be run, and its path from the program on.
    fn leaves(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        let path = format!("{path}{}", command.get_name());
        if !command.is_subcommand_required_set() {
            found.push((path.clone(), command.clone()));
        }
        command.get_subcommands().for_each(|below| leaves(below, &format!("{path} "), found));
    }

    fn commands() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        leaves(&crate::command(), "", &mut found);
        found
    }

    /// The calls of the program in a line of a shell, each as its arguments.
    fn calls(line: &str) -> Vec<Vec<OsString>> {
        let words = shlex::split(line).unwrap_or_else(|| panic!("quotes: {line}"));
        let calls = words.split(|word| word == "|").filter(|words| words.first().is_some_and(|word| word == "olmoe"));
        calls.map(|words| words.iter().take_while(|word| *word != ">").map(Into::into).collect()).collect()
    }

    #[test]
    fn every_example_can_be_run() {
        for (path, command) in commands().into_iter().chain([("olmoe".to_owned(), crate::command())]) {
            let text = command.get_after_long_help().unwrap_or_else(|| panic!("{path} has no examples")).to_string();
            let examples = text.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{path}: examples come first"));
            let examples = examples.split("\n\n").next().unwrap_or_default().replace("\\\n", " ");
            let mut own = 0;
            for line in examples.lines() {
                let calls = calls(line);
                assert!(!calls.is_empty(), "{path}: {line}");
                for call in calls {
                    let words: Vec<&str> = call.iter().filter_map(|word| word.to_str()).collect();
                    own += usize::from(words.join(" ").starts_with(&path));
                    let parsed = crate::command().try_get_matches_from(crate::keys::arranged(call.into_iter()));
                    if let Err(error) = parsed {
                        assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{path}: {line}\n{error}");
                    }
                }
            }
            assert!(own > 0, "{path} has no example of its own");
            let status = text.split("\n\n").last().unwrap_or_default();
            assert!(status.starts_with("Exit status: 0 "), "{path}: the exit status comes last");
        }
    }

    #[test]
    fn help_fits_the_width_and_is_written_alike() {
        let mut all = commands();
        all.extend([("olmoe".to_owned(), crate::command())]);
        for (path, command) in all {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.') || path == "olmoe", "{path}: {about}");
            let mut command = command.max_term_width(100);
            for help in [command.render_help(), command.render_long_help()] {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 100, "{path}: {line}");
                }
            }
            // An example that is broken into two lines cannot be copied.
            let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines().filter(|line| line.starts_with("  ")) {
                assert!(line.chars().count() <= 100, "{path}: {line}");
            }
            for paragraph in text.split("\n\n") {
                let first = paragraph.lines().next().unwrap_or_default();
                let heading =
                    first.split_once(':').filter(|(heading, _)| heading.len() < 20).map(|(heading, _)| heading);
                assert!(heading.is_none_or(|heading| HEADINGS.contains(&heading)), "{path}: {first}");
            }
        }
    }

    #[test]
    fn the_same_words_for_the_same_thing() {
        for (path, command) in commands() {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else { continue };
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let (short, begins) = match long {
                    "model" => (Some('m'), &[""][..]),
                    "threads" => (None, &["Threads to use [default: one for each processor]"][..]),
                    "seed" => (None, &["Seed of "][..]),
                    "out" => (
                        Some('o'),
                        &["File to write", "Folder (hf, olmo) or file (gguf) to write; must not exist yet"][..],
                    ),
                    "json" => (None, &["Print one JSON object"][..]),
                    "quiet" => (
                        None,
                        &["No progress, no notes and no summary", "Print only the failed checks and the counts"][..],
                    ),
                    "offline" => {
                        (None, &["Use only files of the hub downloaded before; an error if one is missing"][..])
                    }
                    "force" => (None, &["Replace "][..]),
                    _ => continue,
                };
                assert!(begins.iter().any(|begin| help.starts_with(begin)), "{path} --{long}: {help}");
                assert_eq!(argument.get_short(), short, "{path} --{long}");
            }
        }
    }
}
