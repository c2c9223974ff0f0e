//! What has to be found out about generated texts elsewhere: programs are run, judges are asked.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use olmoe_eval::judge::{Judge, Protocol};
use olmoe_eval::sandbox::{Limits, Sandbox};
use olmoe_eval::score::Verdicts;
use olmoe_eval::{Answer, Task, programs};

use crate::output::note;
use crate::usage::usage;

/// A sandbox and a judge, as far as the tasks of a run need them.
pub(super) struct Verifiers {
    sandbox: Option<Sandbox>,
    judge: Option<Judge>,
}

impl Verifiers {
    /// Fails before any work where a task needs what is not there.
    pub(super) fn of(tasks: &[Task], execute: bool, judge: Option<Judge>) -> anyhow::Result<Verifiers> {
        if let (Some(task), None) = (tasks.iter().find(|task| Protocol::of(task).is_some()), &judge) {
            return Err(usage(format_args!(
                "{} needs a judge; give its server and model with --judge and --judge-model",
                task.name
            )));
        }
        let sandbox = match tasks.iter().find(|task| programs::needed(task)) {
            None => None,
            Some(_) if execute => Some(Sandbox::new(Limits::default())?),
            Some(task) => {
                return Err(usage(format_args!(
                    "{} runs programs that the model wrote, in a sandbox; allow it with --execute",
                    task.name
                )));
            }
        };
        Ok(Verifiers { sandbox, judge })
    }

    /// The verdicts on the answers to a task, where it needs any; `None` if `interrupt` was set before the end.
    pub(super) fn verdicts(
        &self,
        task: &Task,
        answers: &[Vec<Answer>],
        file: &Path,
        interrupt: &AtomicBool,
    ) -> anyhow::Result<Option<Option<Verdicts>>> {
        if let Some(sandbox) = self.sandbox.as_ref().filter(|_| programs::needed(task)) {
            return Ok(programs::verdicts(task, answers, sandbox, file, interrupt, |_, _| ())?.map(Some));
        }
        let Some(judge) = self.judge.as_ref().filter(|_| Protocol::of(task).is_some()) else { return Ok(Some(None)) };
        let Some(judged) = judge.verdicts(task, answers, file, interrupt, &mut |_, _| ())? else { return Ok(None) };
        if judged.failures > 0 {
            note(format_args!(
                "{}: the judge gave no verdict on {} answers; they are left out",
                task.name, judged.failures
            ));
        }
        Ok(Some(Some(judged.verdicts)))
    }
}
