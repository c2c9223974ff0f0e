//! `olmoe download`

use clap::Args;
use olmoe_checkpoint::hub::{Hub, ModelRef, RevisionKind};
use serde_json::json;

use crate::flags::Quiet;
use crate::hub_progress::Terminal;

/// Download a model from the Hugging Face hub
///
/// Files go to the cache that Python's huggingface_hub uses; files that are there already are not downloaded again. A
/// download that was stopped by a broken connection, a full disk or Ctrl-C is continued by the next call. Every file is
/// checked against its hash before it gets its name. The folder with the files is printed.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe download allenai/OLMoE-1B-7B-0924
  olmoe download allenai/OLMoE-1B-7B-0924 --list-revisions
  olmoe download allenai/OLMoE-1B-7B-0924 --revision step5000-tokens20B \\
      --include '*.json' --include '*.safetensors'

Files: writes the cache, by default ~/.cache/huggingface/hub/models--ORG--NAME. The folder printed holds links into it.

Environment:
  HF_HOME                   folder for the cache and the token [default: ~/.cache/huggingface]
  HF_HUB_CACHE              folder for the cache alone [default: $HF_HOME/hub]
  HF_TOKEN                  token for private and gated models [default: in $HF_HOME/token]
  HF_ENDPOINT               another hub [default: https://huggingface.co]
  HF_HUB_OFFLINE=1          as --offline
  HTTPS_PROXY, NO_PROXY     proxy, and the hosts to reach without it

Exit status: 0 if all files are there, 1 if one is not, 2 for wrong usage.")]
pub(crate) struct DownloadArgs {
    /// The model, and a branch, tag or commit of it [default: main]
    #[arg(value_name = "REPO[@REVISION]")]
    model: ModelRef,

    /// Branch, tag or commit
    #[arg(long)]
    revision: Option<String>,

    /// Print the branches and tags: name, kind, commit
    #[arg(long, conflicts_with_all = ["revision", "include"])]
    list_revisions: bool,

    /// Files to download [default: all]
    ///
    /// In a pattern * matches any text, slashes included, ? one character, [a-c] one of a set, [!a-c] one outside it.
    /// Can be given several times.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Use only files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,

    /// Print one JSON object: repo, revision and folder, or repo and revisions, an array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    _quiet: Quiet,
}

pub(crate) fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    let hub = Hub::from_environment()?.or_offline(args.offline);
    let progress = Terminal::new();
    let repo = &args.model.repo;
    if args.list_revisions {
        let mut list = Vec::new();
        for revision in hub.revisions(repo, &progress)? {
            let kind = match revision.kind {
                RevisionKind::Branch => "branch",
                RevisionKind::Tag => "tag",
            };
            if args.json {
                list.push(json!({ "name": revision.name, "kind": kind, "commit": revision.commit }));
            } else {
                println!("{:<40} {kind:<6} {}", revision.name, revision.commit);
            }
        }
        if args.json {
            println!("{}", serde_json::to_string_pretty(&json!({ "repo": repo.to_string(), "revisions": list }))?);
        }
        return Ok(());
    }
    let revision = match (&args.model.revision, &args.revision) {
        (Some(one), Some(other)) if one != other => {
            anyhow::bail!("two revisions are given, {one} after the @ and {other} after --revision; give one")
        }
        (_, Some(revision)) => revision,
        _ => args.model.revision(),
    };
    let include: Vec<&str> = args.include.iter().map(String::as_str).collect();
    let folder = hub.download(repo, revision, &include, &progress)?;
    if args.json {
        let folder = folder.display().to_string();
        println!("{}", json!({ "repo": repo.to_string(), "revision": revision, "folder": folder }));
    } else {
        println!("{}", folder.display());
    }
    Ok(())
}
