//! The tasks of DCLM: `eval/heavy.yaml` with both tables of random baselines, `eval_meta_data_v1.csv` and
//! `eval_meta_data.csv` (<https://github.com/mlfoundations/dclm>), as a table.
//!
//! A line of `tasks.tsv` has: the name; the file in the folder `local_data` of LLM Foundry; the type; the number of shots;
//! what stands between a question and its answer; whether accuracy is averaged over the categories of the rows; whether the
//! task is one of the 22 of the core; the random baseline in thousandths, of the first and of the second table; and the name
//! in the table of OLMoE's paper.

const TASKS: &str = include_str!("tasks.tsv");

/// A type of LLM Foundry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One context, several continuations.
    MultipleChoice,
    /// Several contexts, one continuation.
    Schema,
    /// One continuation, which has to be the most likely text.
    LanguageModeling,
    /// Text from the model, which has to begin with an answer.
    Generation,
}

/// A table of what guessing gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baselines {
    /// Of results before September 2025, OLMoE's among them.
    V1,
    /// The corrected one.
    V2,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name.
    pub name: &'static str,
    /// The file in `local_data`.
    pub file: &'static str,
    /// The type.
    pub kind: Kind,
    /// The number of shots.
    pub shots: usize,
    /// Before each question.
    pub before: &'static str,
    /// Between a question and its answer.
    pub delimiter: &'static str,
    /// Between a chain of thought and the answer; empty without one.
    pub chain_delimiter: &'static str,
    /// What ends a generated answer.
    pub stop: &'static [&'static str],
    /// Whether the rows have categories, each with its own shots, and the result is the mean of theirs.
    pub categories: bool,
    /// Whether it is one of the 22 tasks of the core.
    pub core: bool,
    /// The name in the table of OLMoE's paper.
    pub label: &'static str,
    thousandths: [u16; 2],
}

impl Line {
    /// The random baseline in thousandths.
    pub fn baseline(&self, baselines: Baselines) -> u16 {
        self.thousandths[baselines as usize]
    }
}

/// All tasks in the order of DCLM; `None` stands for a line that is none, which a test excludes.
pub fn lines() -> impl Iterator<Item = Line> {
    TASKS.lines().filter_map(line)
}

fn line(line: &'static str) -> Option<Line> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [name, file, kind, shots, delimiter, categories, core, first, second, label] = columns[..] else { return None };
    let kind = match kind {
        "multiple_choice" => Kind::MultipleChoice,
        "schema" => Kind::Schema,
        "language_modeling" => Kind::LanguageModeling,
        "generation" => Kind::Generation,
        _ => return None,
    };
    let delimiter = match delimiter {
        "space" => " ",
        "answer" => "\nAnswer: ",
        "answer_only" => "Answer: ",
        "steps" => "\nA: Let's think step by step. ",
        "formula" => "\nUsing the formula below:\n",
        _ => return None,
    };
    let chain = kind == Kind::Generation && delimiter != " ";
    Some(Line {
        name,
        file,
        kind,
        shots: shots.parse().ok()?,
        before: if chain { "Q: " } else { "" },
        delimiter,
        chain_delimiter: if chain { " #### " } else { "" },
        stop: if chain { &["\n\n", "Q:", "Q: "] } else { &[] },
        categories: categories == "categories",
        core: core == "core",
        label,
        thousandths: [first.parse().ok()?, second.parse().ok()?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_task() {
        assert_eq!(lines().count(), 53);
        assert_eq!(TASKS.lines().count(), 53);
        assert_eq!(lines().filter(|line| line.core).count(), 22);
        let of = |kind| lines().filter(|line| line.kind == kind).count();
        let counts = [Kind::MultipleChoice, Kind::Schema, Kind::LanguageModeling, Kind::Generation].map(of);
        assert_eq!(counts, [33, 2, 13, 5]);
        let categories: Vec<&str> = lines().filter(|line| line.categories).map(|line| line.name).collect();
        assert_eq!(categories, ["mmlu_zeroshot", "jeopardy", "mmlu_fewshot", "bbq"]);
    }
}
