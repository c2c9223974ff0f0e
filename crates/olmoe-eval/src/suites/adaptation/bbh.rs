//! BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks with demonstrations that reason.

use std::collections::BTreeMap;

use olmoe_data::random::Mersenne;
use olmoe_data::white_space::stripped;
use serde_json::{Value, json};

use super::asked::{SEED, only_shots, question, reply, task, text, wrong};
use super::tar;
use crate::answers::Grading;
use crate::error::EvalError;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::source::{DataFile, FileHash, Roots, Row, SourceError};
use crate::task::{Gold, Options, Task};

const GET: &str = "get it with `git clone https://github.com/suzgunmirac/BIG-Bench-Hard bbh`, and give the folder that bbh is \
                   in with --data";
/// Where the repository is: its folder, or an archive of it.
const ARCHIVES: [&str; 2] = ["raw/bbh.tar.gz", "bbh.tar.gz"];
/// How many questions of each task are drawn.
const QUESTIONS: usize = 40;
const NUM_SHOTS: usize = 3;

/// The tasks, sorted: the sample of one goes on where that of the task before ended.
pub(super) const TASKS: [&str; 27] = [
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
];

/// The name of a task in results.
pub(super) fn task_name(task: &str) -> String {
    format!("adaptation:bbh:{task}")
}

/// The files of the repository that are needed, by their names without folders.
struct Repository {
    texts: BTreeMap<String, String>,
    hashes: Vec<FileHash>,
}

impl Repository {
    fn open(roots: &Roots) -> Result<Repository, EvalError> {
        if let Some(archive) = roots.file(&ARCHIVES)? {
            let hashes = vec![archive.hash()?];
            let unreadable = |source| SourceError::Unreadable { file: archive.shown().to_owned(), source };
            let texts = tar::texts(archive.path()).map_err(unreadable)?;
            let named = texts.into_iter().filter_map(|(path, text)| Some((path.rsplit('/').next()?.to_owned(), text)));
            return Ok(Repository { texts: named.collect(), hashes });
        }
        let (mut texts, mut hashes) = (BTreeMap::new(), Vec::new());
        for task in TASKS {
            for (name, folders) in
                [(format!("{task}.json"), ["bbh/bbh", "bbh/tasks"]), (format!("{task}.txt"), ["bbh/cot-prompts"; 2])]
            {
                let paths = folders.map(|folder| format!("{folder}/{name}"));
                let found: Option<DataFile> = roots.file(&[&paths[0], &paths[1]])?;
                let found = found.ok_or_else(|| roots.missing(&paths[0], GET))?;
                hashes.push(found.hash()?);
                texts.insert(name, found.text()?);
            }
        }
        Ok(Repository { texts, hashes })
    }

    fn text(&self, roots: &Roots, name: &str) -> Result<&str, EvalError> {
        let missing = || EvalError::Source(roots.missing(format!("{name} of BIG-Bench Hard"), GET));
        self.texts.get(name).map(String::as_str).ok_or_else(missing)
    }
}

pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    only_shots("adaptation:bbh", options, NUM_SHOTS)?;
    let repository = Repository::open(roots)?;
    let mut random = Mersenne::python(SEED);
    let mut tasks = Vec::with_capacity(TASKS.len());
    for name in TASKS {
        let full = task_name(name);
        let file = format!("{name}.json");
        let content = |found: String| SourceError::Content {
            file: file.clone(),
            expected: "an object with the list `examples` of objects".to_owned(),
            found,
        };
        let json: Value =
            serde_json::from_str(repository.text(roots, &file)?).map_err(|error| content(error.to_string()))?;
        let rows: Option<Vec<&Row>> =
            json["examples"].as_array().and_then(|rows| rows.iter().map(Value::as_object).collect());
        let rows = rows.ok_or_else(|| content("something else".to_owned()))?;
        // The first two lines are a warning not to train on the file.
        let demonstrations = repository.text(roots, &format!("{name}.txt"))?.splitn(3, '\n').nth(2).unwrap_or_default();
        let demonstrations = stripped(demonstrations);
        let mut questions = Vec::with_capacity(QUESTIONS);
        if rows.len() < QUESTIONS {
            return Err(wrong(&full, rows.len(), "examples", None, &format!("{QUESTIONS} questions or more")).into());
        }
        for place in random.sample(rows.len(), QUESTIONS) {
            let row = rows[place];
            let gold = Gold::Texts(vec![text(&full, place, row, "target")?.to_owned()]);
            let request = reply(format!("{demonstrations}\n\nQ: {}", text(&full, place, row, "input")?), "A:", 512);
            questions.push(question(place, place.to_string(), row.clone(), gold, request));
        }
        let metrics = [Grading::Ai2, Grading::Strict].map(|grading| Metric::Checked(Checker::Phrase(grading))).to_vec();
        let how = json!({"sample": QUESTIONS, "seed": SEED, "order": "tasks sorted by name", "shots": NUM_SHOTS});
        tasks.push(task(full, questions, metrics, &repository.hashes, how, options));
    }
    Ok(tasks)
}
