//! `olmoe man`: the help of every command as a manual page.

use std::fs::create_dir_all;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use olmoe_data::counted;

use crate::files::write_whole;
use crate::flags::Quiet;
use crate::output::is_quiet;

/// Write the manual pages
///
/// Writes one page for the program and one for each command: olmoe.1, olmoe-generate.1, olmoe-bench-decode.1, and so
/// on. Their content is that of --help. Existing pages of these names in DIR are replaced.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe man ~/.local/share/man/man1
  olmoe man pages

A page is shown by `man -l pages/olmoe-generate.1`, and by `man olmoe-generate` once the folder is one that man searches.

Files: writes DIR, which is made if it is missing, and a file for each command in it.

Exit status: 0 if all pages are written, 1 if one is not, 2 for wrong usage.")]
pub(crate) struct ManArgs {
    /// Folder to write
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    #[command(flatten)]
    _quiet: Quiet,
}

pub(crate) fn run(args: &ManArgs) -> anyhow::Result<()> {
    let folder = &args.folder;
    create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut program = without_help(crate::command());
    program.build();
    let pages = write(&program, folder, None)?;
    if !is_quiet() {
        println!("{}: {}", folder.display(), counted(pages, "page"));
    }
    Ok(())
}

/// clap's own help command needs no page.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// Writes the page of a command and those of its subcommands; returns their number.
fn write(command: &Command, folder: &Path, parent: Option<&str>) -> anyhow::Result<usize> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = folder.join(format!("{name}.1"));
    let page = page(command, parent).with_context(|| format!("the page of {name}"))?;
    write_whole(&path, &page).with_context(|| format!("cannot write {}", path.display()))?;
    let mut pages = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages += write(below, folder, Some(name))?;
    }
    Ok(pages)
}

fn page(command: &Command, parent: Option<&str>) -> std::io::Result<Vec<u8>> {
    let source = format!("olmoe {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("olmoe");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help() {
        extra(&text.to_string()).to_writer(&mut page)?;
    }
    if let Some(parent) = parent {
        let mut also = Roff::new();
        also.control("SH", ["SEE ALSO"]);
        also.text([bold(parent), roman("(1)")]);
        also.to_writer(&mut page)?;
    }
    Ok(page)
}

/// The usage, as in the help.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (number, line) in usage.trim_start_matches("Usage:").trim().lines().enumerate() {
        if number > 0 {
            roff.control("br", []);
        }
        roff.text([roman(line.trim())]);
    }
    roff
}

/// The text of the help after the flags. A paragraph that begins with a heading and a colon is a section; others are
/// notes.
fn extra(text: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n") {
        let (heading, body) = match paragraph.split_once(':') {
            Some((heading, body)) if HEADINGS.contains(&heading) => (heading, body),
            _ => ("Notes", paragraph),
        };
        roff.control("SH", [heading.to_uppercase().as_str()]);
        let lines: Vec<&str> = body.trim_matches('\n').lines().collect();
        // Indented lines are printed unfilled.
        let as_it_is = lines.iter().any(|line| line.starts_with("  "));
        if as_it_is {
            roff.control("nf", []);
        }
        for line in lines {
            roff.text([roman(if as_it_is { line.strip_prefix("  ").unwrap_or(line) } else { line.trim() })]);
        }
        if as_it_is {
            roff.control("fi", []);
        }
    }
    roff
}

/// The headings of paragraphs after the flags.
pub(crate) const HEADINGS: [&str; 4] = ["Examples", "Files", "Environment", "Exit status"];
