//! DCLM's questions against the ids of LLM Foundry's classes, its numbers against published ones, and its table against that
//! of OLMoE's script: `tools/reference/make_golden_dclm.py`, `make_golden_dclm_table.py`.

mod shared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use olmoe_data::Tokenizer;
use olmoe_eval::aliases::{begins_with_one, normalized};
use olmoe_eval::answer::{Answer, Scored};
use olmoe_eval::encoding::{Beginning, encode};
use olmoe_eval::score::score;
use olmoe_eval::suites::dclm::{self, Kind, Line, lines, rebuilt};
use olmoe_eval::suites::{aggregates, tasks};
use olmoe_eval::task::{Options, Prompt, Question, Request, Task};
use olmoe_eval::{Encoding, Gold, Roots};
use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    shared::golden().join("dclm")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tokenizer() -> Option<Tokenizer> {
    shared::data("tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json").map(|file| Tokenizer::from_file(file).unwrap())
}

/// The files lie in folders as in LLM Foundry.
fn roots() -> (tempfile::TempDir, Roots) {
    let place = tempfile::tempdir().unwrap();
    for line in lines() {
        let from = folder().join(Path::new(line.file).file_name().unwrap());
        if from.exists() {
            let to = place.path().join("local_data").join(line.file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        }
    }
    let roots = Roots::new(&[place.path()]).unwrap();
    (place, roots)
}

fn made(name: &str, roots: &Roots, tokenizer: &Tokenizer) -> Task {
    let count = |text: &str| tokenizer.encode(text).unwrap().len();
    dclm::tasks(Some(name), roots, &Options::default(), Some(&count)).unwrap().remove(0)
}

/// Contexts and continuations of a question as they are encoded and cut.
fn ids(question: &Question, tokenizer: &Tokenizer) -> Vec<[Vec<u32>; 2]> {
    let pair = |request: &Request| match request {
        Request::Continuation { context, continuation, .. } => {
            let mut pair = encode(tokenizer, Encoding::Foundry, context, continuation, &Beginning::default()).unwrap();
            pair.cut(Encoding::Foundry, dclm::CONTEXT);
            [pair.context, pair.continuation]
        }
        Request::Generation { prompt: Prompt::Text(prompt), max_tokens, .. } => {
            let mut ids = tokenizer.encode(prompt).unwrap();
            ids.drain(..ids.len().saturating_sub(dclm::CONTEXT - max_tokens));
            [ids, Vec::new()]
        }
        other => panic!("{other:?}"),
    };
    question.requests.iter().map(pair).collect()
}

fn hash(pairs: &[[Vec<u32>; 2]]) -> String {
    let mut sha = Sha256::new();
    for ids in pairs.iter().flatten() {
        sha.update((ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| sha.update(id.to_le_bytes()));
    }
    sha.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Compares the first questions of a task, and returns how many.
fn compare(line: &Line, questions: &[&Question], expected: &Value, tokenizer: &Tokenizer) -> usize {
    let hashes: Vec<&str> = expected["hashes"].as_str().unwrap().split(' ').collect();
    assert_eq!(questions.len() as u64, expected["rows"].as_u64().unwrap(), "{}", line.name);
    let pairs = |question: &Question| ids(question, tokenizer);
    let listed = |value: &Value| -> Vec<[Vec<u32>; 2]> { serde_json::from_value(value.clone()).unwrap() };
    for (key, at) in [("first", 0), ("last", hashes.len() - 1)] {
        if expected[key].is_array() {
            assert_eq!(pairs(questions[at]), listed(&expected[key]), "{}, question {at}", line.name);
        }
    }
    for (at, expected) in hashes.iter().enumerate() {
        assert_eq!(hash(&pairs(questions[at])), *expected, "{}, question {at}", line.name);
    }
    if line.kind == Kind::Generation {
        let Request::Generation { max_tokens, .. } = &questions[0].requests[0] else { panic!("no generation") };
        assert_eq!(*max_tokens as u64, expected["max_new_tokens"].as_u64().unwrap(), "{}", line.name);
    }
    hashes.len()
}

fn compare_all(golden: &Value, roots: &Roots, tokenizer: &Tokenizer) -> Vec<(&'static str, usize)> {
    let mut compared = Vec::new();
    for line in lines() {
        let expected = &golden["tasks"][line.name];
        if expected.is_null() {
            continue;
        }
        let task = made(line.name, roots, tokenizer);
        let count = match expected["categories"].as_object() {
            None => compare(&line, &task.questions.iter().collect::<Vec<_>>(), expected, tokenizer),
            Some(categories) => {
                let of = |(category, expected): (&String, &Value)| {
                    let own = |question: &&Question| question.group.as_ref() == Some(category);
                    compare(&line, &task.questions.iter().filter(own).collect::<Vec<_>>(), expected, tokenizer)
                };
                categories.iter().map(of).sum()
            }
        };
        compared.push((line.name, count));
    }
    compared
}

#[test]
fn ids_are_those_of_llm_foundry() {
    let Some(tokenizer) = tokenizer() else { return };
    let (_place, roots) = roots();
    let compared = compare_all(&json(&folder().join("ids.json")), &roots, &tokenizer);
    println!("{compared:?}");
    let whole = compared.iter().filter(|(_, count)| *count == 200).count();
    assert!(compared.len() == 7 && whole >= 5, "{compared:?}");
}

/// With all files: `OLMOE_DCLM` is a folder with `local_data` and the `ids.json` made from it.
#[test]
fn ids_of_all_tasks_are_those_of_llm_foundry() {
    let Some(folder) = std::env::var_os("OLMOE_DCLM").map(PathBuf::from) else {
        println!("skipped: OLMOE_DCLM is not a folder with local_data and ids.json");
        return;
    };
    let Some(tokenizer) = tokenizer() else { return };
    let compared = compare_all(&json(&folder.join("ids.json")), &Roots::new(&[&folder]).unwrap(), &tokenizer);
    println!("{} tasks, {} questions: {compared:?}", compared.len(), compared.iter().map(|one| one.1).sum::<usize>());
    assert!(compared.len() > 20);
}

#[test]
fn generated_answers_count_as_in_llm_foundry() {
    let golden = json(&folder().join("ids.json"));
    let rows = golden["generation"].as_array().unwrap();
    assert!(rows.len() > 20);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let aliases: Vec<String> = serde_json::from_value(row["aliases"].clone()).unwrap();
        assert_eq!(normalized(text), row["normal"].as_str().unwrap(), "{row}");
        let right = begins_with_one(text, row["delimiter"].as_str().unwrap(), &aliases);
        assert_eq!(u64::from(right), row["right"].as_u64().unwrap(), "{row}");
    }
}

/// Old and corrected baselines give different averages: https://github.com/mlfoundations/dclm/issues/114 and
/// https://github.com/karpathy/nanochat/issues/321
#[test]
fn averages_are_the_published_ones() {
    let golden = json(&folder().join("evaluations.json"));
    let mut count = 0;
    for (model, published) in golden.as_object().unwrap() {
        let value = |task: &str| published["tasks"][task.strip_prefix("dclm:").unwrap()].as_f64();
        for aggregate in aggregates("dclm:extended") {
            let name = aggregate.name.replace("core", "Core").replace("extended", "Extended");
            let (found, expected) = (aggregate.compute(&value).unwrap(), published[&name].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-12, "{model}: {name} is {found}, published {expected}");
            count += 1;
        }
        // Without a task there is no average.
        let without = |task: &str| if task == "dclm:copa" { None } else { value(task) };
        assert!(aggregates("dclm").iter().all(|aggregate| aggregate.compute(&without).is_none()));
    }
    assert_eq!(count, 16);
}

fn answer(log_prob: f64, tokens: usize) -> Answer {
    Answer::Continuation(Scored { log_prob, tokens, greedy: false, unconditional: None })
}

#[test]
fn the_lowest_mean_cross_entropy_is_chosen() {
    let Some(tokenizer) = tokenizer() else { return };
    let (_place, roots) = roots();
    let mut task = made("winograd", &roots, &tokenizer);
    task.questions.truncate(3);
    let golds: Vec<usize> =
        task.questions.iter().map(|question| if let Gold::Choice(gold) = question.gold { gold } else { 9 }).collect();
    assert_eq!(golds, [0, 1, 0]);
    // By the mean the second choice; of equal means the first.
    let answers = vec![
        vec![answer(-3.0, 1), answer(-4.0, 2)],
        vec![answer(-3.0, 1), answer(-4.0, 2)],
        vec![answer(-2.0, 1), answer(-4.0, 2)],
    ];
    let scored = score(&task, &answers).unwrap();
    let values: Vec<f64> = scored.questions.iter().map(|question| question.values[0]).collect();
    assert_eq!(values, [0.0, 1.0, 1.0]);
    // The result of a task with categories is the mean of theirs.
    let task = made("jeopardy", &roots, &tokenizer);
    let of = |question: &Question| {
        let greedy = question.group.as_deref() == Some("capitals");
        vec![Answer::Continuation(Scored { log_prob: -1.0, tokens: 1, greedy, unconditional: None })]
    };
    let scored = score(&task, &task.questions.iter().map(of).collect::<Vec<_>>()).unwrap();
    assert!((dclm::value(&scored).unwrap() - 1.0 / 3.0).abs() < 1e-15);
    assert!((scored.metrics[0].value - 12.0 / 29.0).abs() < 1e-15);
}

#[test]
fn settings_change_the_task_and_errors_name_the_cure() {
    let (place, roots) = roots();
    let options = Options { limit: Some(3), shots: Some(0) };
    let task = tasks("dclm:arc_easy", &roots, &options).unwrap().remove(0);
    assert_eq!(task.questions.len(), 3);
    let Request::Continuation { context, continuation, .. } = &task.questions[0].requests[0] else { panic!() };
    assert!(context.starts_with("Question: Which statement best explains") && context.ends_with("\nAnswer:"));
    assert_eq!(continuation, "Sunlight is the source of energy for nearly all ecosystems.");
    assert_eq!(task.questions[0].native_id, "world_knowledge/arc_easy.jsonl:1");
    let generated = tasks("dclm:svamp_cot", &roots, &Options::default()).unwrap().remove(0);
    let Request::Generation { stop, max_tokens, .. } = &generated.questions[0].requests[0] else { panic!() };
    assert_eq!((stop.len(), *max_tokens), (3, 31));
    let error = |name: &str, roots: &Roots| tasks(name, roots, &Options::default()).unwrap_err().to_string();
    let missing = error("dclm:squad", &roots);
    assert!(missing.contains("reading_comprehension/squad.jsonl") && missing.contains("llm-foundry"), "{missing}");
    assert!(error("dclm:gpqa_main", &roots).contains("gpqa_data"));
    assert!(error("dclm:arc_eazy", &roots).contains("dclm:arc_easy"));
    let file = place.path().join("local_data/commonsense_reasoning/copa.jsonl");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    for (row, expected) in [
        (r#"{"query": "a", "choices": ["b"], "gold": 1}"#, "`gold` gives 1, expected the number of a choice"),
        (r#"{"query": 5, "choices": ["b"], "gold": 0}"#, "`query` gives 5, expected a text"),
        (r#"{"query": "a", "choices": [], "gold": 0}"#, "`choices` gives [], expected a list of texts"),
        (r#"{"choices": ["b"], "gold": 0}"#, "`query` gives nothing"),
    ] {
        std::fs::write(&file, format!("{row}\n")).unwrap();
        let error = error("dclm:copa", &Roots::new(&[place.path()]).unwrap());
        assert!(error.contains("line 1 of commonsense_reasoning/copa.jsonl") && error.contains(expected), "{error}");
    }
}

#[test]
fn nanochat_asks_otherwise() {
    let (_place, roots) = roots();
    // Only some files of the core are here.
    let error = tasks("core-nanochat", &roots, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("local_data"), "{error}");
    // Python: d = list(range(2376)); random.Random(1337).shuffle(d); d[:2], and the shots of question 1,
    // random.Random(1235).sample([i for i in range(2376) if i != 1], 10).
    let line = lines().find(|line| line.name == "arc_easy").unwrap();
    let rows: Vec<Value> = std::fs::read_to_string(folder().join("arc_easy.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let rows = rows.iter().map(|row| row.as_object().unwrap().clone()).collect();
    let questions = dclm::nanochat_questions(&line, rows, 10, 2).unwrap();
    let found: Vec<u64> = questions.iter().map(|question| question.id).collect();
    assert_eq!(found, NANOCHAT_ORDER);
    let Request::Continuation { context, .. } = &questions[1].requests[0] else { panic!() };
    assert_eq!(context.matches("\n\n").count(), 10);
    assert!(context.starts_with(NANOCHAT_FIRST_SHOT), "{context}");
    assert!(context.ends_with("\nAnswer: "));
}

const NANOCHAT_ORDER: [u64; 2] = [1556, 952];
const NANOCHAT_FIRST_SHOT: &str =
    "Question: Jagged mountains would most likely become rounded hills through which process?\nAnswer: erosion\n\n";

/// The name that git gives the content of a file.
fn git_blob(content: &str) -> String {
    let digest = Sha1::digest(format!("blob {}\0{content}", content.len()).as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `json.dumps(row, ensure_ascii=False)`.
fn python_json(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Object(row) => {
            format!(
                "{{{}}}",
                list(row.iter().map(|(key, value)| format!("\"{key}\": {}", python_json(value))).collect())
            )
        }
        Value::Array(items) => format!("[{}]", list(items.iter().map(python_json).collect())),
        other => other.to_string(),
    }
}

#[test]
fn two_files_are_rebuilt_byte_by_byte() {
    let Some(wheel) = shared::wheel() else { return };
    let roots = Roots::new(&[wheel]).unwrap();
    for (file, keys, blob) in [
        ("language_understanding/hellaswag.jsonl", ["query", "choices", "gold"].as_slice(), HELLASWAG),
        ("reading_comprehension/coqa.jsonl", &["context", "continuation"], COQA),
    ] {
        let rows = rebuilt::rows(file, &roots).unwrap().unwrap();
        let row = |row: &serde_json::Map<String, Value>| {
            // The order of keys is that of the file.
            let fields = keys.iter().map(|key| format!("\"{key}\": {}", python_json(&row[*key])));
            format!("{{{}}}\n", fields.collect::<Vec<_>>().join(", "))
        };
        let text: String = rows.rows.iter().map(row).collect();
        assert_eq!(git_blob(&text), blob, "{file}");
    }
}

const HELLASWAG: &str = "448321079fdc140bd8566b16b24eda9ceacd3501";
const COQA: &str = "028bd4e51326cc43f8394987ae47fbb271aeba9d";

#[test]
fn every_task_is_in_the_list() {
    let listed: BTreeMap<String, String> =
        olmoe_eval::suites::list().into_iter().map(|listed| (listed.name, listed.about)).collect();
    for line in lines() {
        assert!(listed.contains_key(&format!("dclm:{}", line.name)), "{}", line.name);
    }
    assert!(listed.contains_key("dclm") && listed.contains_key("core-nanochat"));
}
