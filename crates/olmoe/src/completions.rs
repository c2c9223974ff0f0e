//! `olmoe completions`

use clap::Args;
use clap_complete::Shell;

use crate::output::print;

/// Print a script that completes commands and flags in a shell
///
/// The script completes commands, flags, values from a list, and file names. It belongs to this version of the program:
/// generate it again after an update.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe completions bash > ~/.local/share/bash-completion/completions/olmoe
  olmoe completions zsh > ~/.zfunc/_olmoe
  olmoe completions fish > ~/.config/fish/completions/olmoe.fish

For zsh, ~/.zfunc has to be in fpath before compinit runs. For elvish and PowerShell, let the profile evaluate the \
script.

Exit status: 0 done, 1 if the script could not be written, 2 for wrong usage.")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::command(), "olmoe", &mut script);
    print(&String::from_utf8(script)?)
}
