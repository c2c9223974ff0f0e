//! The suites of the field, by their names.
//!
//! | name | tasks |
//! |---|---|
//! | `in-loop` | what OLMoE's pretraining was watched with; `in-loop:all` is every label of OLMo's evaluation in the training loop, and a label alone is its task |
//! | `olmes` | OLMES v0.1: ten tasks in two formulations; `olmes:arc_easy` is one of them, `olmes:arc_easy:mc` one formulation |
//! | `adaptation` | what OLMoE was judged by after adaptation; `adaptation:gsm8k` is one of its tasks |
//! | `dclm` | the 22 tasks of DCLM's core; `dclm:extended` has all 53, `dclm:copa` is one of them; `core-nanochat` is the core as nanochat asks it |
//! | a file ending in `.yaml` or `.yml` | a task of one's own, or one of lm-evaluation-harness |

use std::path::Path;

use olmoe_model::config::closest;

use crate::error::EvalError;
use crate::score::Aggregate;
use crate::source::{DataFile, Roots};
use crate::task::{self, Options, Task};

pub mod adaptation;
pub mod dclm;
pub mod harness;
pub mod in_loop;
pub mod mmlu;
pub mod olmes;
pub mod requests;

/// A name that [`tasks`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// What it is, in a line.
    pub about: String,
}

/// All names of suites and tasks.
pub fn list() -> Vec<Listed> {
    let mut list = in_loop::list();
    list.extend(olmes::list());
    list.extend(adaptation::list());
    list.extend(dclm::list());
    list
}

/// The tasks of a suite, a task by its name, or the task that a file describes.
///
/// # Errors
/// [`EvalError`] if there is nothing with this name, its data is missing, or a row does not give a question.
pub fn tasks(name: &str, roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let (suite, part) = name.split_once(':').map_or((name, None), |(suite, part)| (suite, Some(part)));
    match (suite, part) {
        (in_loop::NAME, None) => in_loop::tasks(&in_loop::RELEASE, roots, options),
        (in_loop::NAME, Some("all")) => in_loop::tasks(&in_loop::labels().collect::<Vec<_>>(), roots, options),
        (in_loop::NAME, Some(label)) if in_loop::labels().any(|known| known == label) => {
            in_loop::tasks(&[label], roots, options)
        }
        (label, None) if in_loop::labels().any(|known| known == label) => in_loop::tasks(&[label], roots, options),
        (olmes::NAME, part) if olmes::is_part(part) => olmes::tasks(part, roots, options),
        (adaptation::NAME, part) if adaptation::is_part(part) => adaptation::tasks(part, roots, options),
        (dclm::NAME, part) if dclm::is_part(part) => dclm::tasks(part, roots, options, None),
        (dclm::NANOCHAT, None) => dclm::nanochat_tasks(roots, options),
        _ if name.ends_with(".yaml") || name.ends_with(".yml") => Ok(vec![described(Path::new(name), roots, options)?]),
        _ => {
            let list = list();
            let known: Vec<&str> = list.iter().map(|listed| listed.name.as_str()).collect();
            Err(EvalError::Name { name: name.to_owned(), suggestion: closest(name, &known).map(str::to_owned) })
        }
    }
}

/// The numbers that a suite makes of those of its tasks.
pub fn aggregates(name: &str) -> Vec<Aggregate> {
    match name.split_once(':').map_or((name, None), |(suite, part)| (suite, Some(part))) {
        (olmes::NAME, part) if olmes::is_part(part) => olmes::aggregates(part),
        (adaptation::NAME, part) if adaptation::is_part(part) => adaptation::aggregates(part),
        (dclm::NAME, part) if dclm::is_part(part) => dclm::aggregates(part),
        _ => Vec::new(),
    }
}

/// The task that a file describes: one of this program, or of lm-evaluation-harness.
fn described(path: &Path, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let text = DataFile::at(path).text()?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = path.display().to_string();
    let description = match harness::is_harness(&text) {
        true => return harness::task(&file, &text, folder, roots, options),
        false => task::parse(&file, &text)?,
    };
    Ok(task::build(&description, folder, roots, options)?)
}
