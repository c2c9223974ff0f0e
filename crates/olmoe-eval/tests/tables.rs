//! Tables against those of other programs and of papers.

mod shared;

use std::collections::BTreeMap;

use olmoe_eval::compare::{Resampling, TaskValues, compare};
use olmoe_eval::score::{MetricScore, TaskScore};
use olmoe_eval::statistics::{Average, QuestionValue};
use olmoe_eval::suites::dclm::Baselines;
use olmoe_eval::suites::olmes::aggregates;
use olmoe_eval::tables::adaptation::{COLUMNS, adaptation};
use olmoe_eval::tables::comparison::comparison;
use olmoe_eval::tables::dclm::dclm;
use olmoe_eval::tables::olmes::olmes;
use olmoe_eval::tables::results::results;
use olmoe_eval::tables::{Cell, Model, Table, write};
use serde_json::{Value, json};

/// The names that OLMoE's script gives the models of its files.
const NAMES: [(&str, &str); 4] = [
    ("OLMoE-7B-A1B-main", "OLMoE-1B-7B"),
    ("OLMoE-7B-A1B-step1220000-tokens5117B", "OLMoE-1B-7B step 1,220,000"),
    ("OLMoE-7B-A1B-step1223842-tokens5100B", "OLMoE-1B-7B step 1,223,842"),
    ("OLMo-1B-0724-hf", "OLMo-1B"),
];

#[test]
fn dclm_is_written_as_by_the_script_of_olmoe() {
    let golden = shared::golden().join("dclm");
    let read = |name: &str| std::fs::read_to_string(golden.join(name)).unwrap();
    let evaluations: Value = serde_json::from_str(&read("evaluations.json")).unwrap();
    let model = |(file, name): &(&str, &str)| {
        let results: BTreeMap<String, f64> = serde_json::from_value(evaluations[*file]["tasks"].clone()).unwrap();
        Model { name: (*name).to_owned(), results }
    };
    let models: Vec<Model> = NAMES.iter().map(model).collect();
    let table = dclm(&models, Baselines::V2);
    assert_eq!(write::tsv(&table), read("table.tsv"));
    assert_eq!(write::latex(&table), read("table.tex"));
    // With the baselines of the time the averages are others, the rest is not.
    let old = write::tsv(&dclm(&models, Baselines::V1));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(&old), lines(&read("table.tsv")));
    assert_eq!(old[..old.len() - 2], new[..new.len() - 2]);
    assert_eq!(old[old.len() - 2], "Core\t57.5\t57.8\t43.3\t44.1");
    // Without a task there are no averages.
    let mut part = models[..1].to_vec();
    part[0].results.remove("copa");
    let text = write::tsv(&dclm(&part, Baselines::V1));
    assert!(text.ends_with("Core\t\nExtended\t\n"), "{text}");
}

#[test]
fn olmes_takes_the_better_formulation() {
    // What OLMES reports of Pythia-1B.
    let reported = [
        ("arc_challenge", 31.4),
        ("arc_easy", 63.4),
        ("boolq", 56.8),
        ("csqa", 50.9),
        ("hellaswag", 48.0),
        ("mmlu", 31.1),
        ("openbookqa", 40.4),
        ("piqa", 68.9),
        ("socialiqa", 46.4),
        ("winogrande", 52.7),
    ];
    let mut model = Model { name: "Pythia-1B".into(), ..Model::default() };
    let tasks: Vec<String> = olmoe_eval::suites::olmes::list().into_iter().map(|listed| listed.name).collect();
    assert!(tasks.iter().any(|task| task.starts_with("olmes:arc_easy")));
    for aggregate in aggregates(None) {
        let name = aggregate.name.trim_start_matches("olmes:").to_owned();
        let Some((_, value)) = reported.iter().find(|(task, _)| *task == name) else { continue };
        // Every leaf of the better formulation has the value, of the other one 5 points less.
        let asked = std::cell::RefCell::new(Vec::new());
        let record = |task: &str| {
            asked.borrow_mut().push(task.to_owned());
            Some(0.0)
        };
        aggregate.compute(&record);
        for task in asked.into_inner() {
            let better = task.ends_with(if name == "boolq" { ":mc" } else { ":cf" });
            model.results.insert(task, (value - if better { 0.0 } else { 5.0 }) / 100.0);
        }
    }
    let table = olmes(&[model.clone()]);
    assert_eq!(table.columns.len(), 12);
    let row = &table.rows[0];
    for (task, value) in reported {
        let column = table.columns.iter().position(|column| column == task).unwrap();
        assert!(
            matches!(row[column], Cell::Number(number, 1) if (number - value).abs() < 1e-9),
            "{task}: {:?}",
            row[column]
        );
    }
    assert!(matches!(row[11], Cell::Number(number, 1) if (number - 49.0).abs() < 1e-9), "{:?}", row[11]);
    let lost = model.results.keys().next().unwrap().clone();
    model.results.remove(&lost);
    assert_eq!(olmes(&[model]).rows[0][11], Cell::Missing);
}

#[test]
fn adaptation_is_averaged_as_in_the_paper() {
    let model = |name: &str, values: [f64; 7]| {
        let results =
            COLUMNS.iter().zip(values).map(|((name, _), value)| ((*name).to_owned(), value / 100.0)).collect();
        Model { name: name.to_owned(), results }
    };
    let mut base = model("base", [49.8, 3.0, 33.6, 22.4, 0.0, 59.7, 16.6]);
    base.results.remove("alpaca_eval");
    let models = [
        base,
        model("+SFT", [51.4, 40.5, 38.0, 51.6, 69.2, 84.1, 43.3]),
        model("+DPO", [51.9, 45.5, 37.0, 54.8, 84.0, 82.6, 48.1]),
    ];
    let expected = "\
| model | MMLU | GSM8K | BBH | HumanEval P@10 | AlpacaEval 1.0 | XSTest F1 | IFEval | average |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| base | 49.8 | 3.0 | 33.6 | 22.4 | – | 59.7 | 16.6 | – |
| +SFT | 51.4 | 40.5 | 38.0 | 51.6 | 69.2 | 84.1 | 43.3 | 54.0 |
| +DPO | 51.9 | 45.5 | 37.0 | 54.8 | 84.0 | 82.6 | 48.1 | 57.7 |
";
    assert_eq!(write::markdown(&adaptation(&models)), expected);
}

fn sample() -> Table {
    let mut table = Table::new(["", "accuracy", "what"]);
    table.rows.push(vec![Cell::text("a$^*$"), Cell::Number(0.25, 2), Cell::text("x|y")]);
    table.rows.push(vec![Cell::text("größer"), Cell::Spread(12.5, 0.75, 1), Cell::text("")]);
    table.rows.push(vec![Cell::text("all"), Cell::Missing, Cell::text("z")]);
    table.summary = 1;
    table
}

#[test]
fn tables_have_five_forms() {
    let table = sample();
    let terminal = "        accuracy    what
──────────────────────
a*            0.25  x|y
größer  12.5 ± 0.8
──────────────────────
all              –  z
";
    let found = write::terminal(&table);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&found).len(), words(terminal).len());
    let lines: Vec<&str> = found.lines().collect();
    assert!(lines[2].starts_with("a*            0.25  x|y") && lines[3] == "größer  12.5 ± 0.8", "{found}");
    assert!(lines[1].starts_with('─') && lines[4].starts_with('─'), "{found}");
    assert_eq!(lines[5], "all              –  z");
    assert_eq!(
        write::markdown(&table),
        "|  | accuracy | what |\n|---|---:|---|\n| a\\* | 0.25 | x\\|y |\n| größer | 12.5 ± 0.8 |  |\n| all | – | z |\n"
    );
    assert_eq!(
        write::latex(&table),
        "\\begin{tabular}{lrl}\n\\toprule\n & accuracy & what \\\\\n\\midrule\na$^*$ & 0.25 & x|y \\\\\n\
         größer & 12.5 $\\pm$ 0.8 &  \\\\\nall & NaN & z \\\\\n\\bottomrule\n\\end{tabular}\n"
    );
    assert_eq!(write::tsv(&table), "\taccuracy\twhat\na$^*$\t0.25\tx|y\ngrößer\t12.5 ± 0.8\t\nall\t\tz\n");
    assert_eq!(
        write::json(&table),
        json!([
            {"name": "a*", "accuracy": 0.25, "what": "x|y"},
            {"name": "größer", "accuracy": [12.5, 0.75], "what": ""},
            {"name": "all", "accuracy": null, "what": "z"},
        ])
    );
    assert_eq!(write::latex_text("50 % of a_b & {c}"), "50 \\% of a\\_b \\& \\{c\\}");
    let empty = Table::new(["a"]);
    assert_eq!(write::terminal(&empty), "a\n");
    assert_eq!(write::json(&empty), json!([]));
}

#[test]
fn results_and_comparisons_have_rows() {
    let metric = |name: &str, value| MetricScore {
        name: name.into(),
        value,
        standard_error: Some(0.1),
        count: 20,
        macro_average: None,
    };
    let score = TaskScore { metrics: vec![metric("acc", 0.2), metric("soft", 0.25)], questions: Vec::new() };
    let table = results(&[("arc_easy", &score)], &olmoe_eval::suites::aggregates("dclm"), &|_| Some(0.5));
    let text = write::terminal(&table);
    assert!(text.contains("arc_easy") && text.contains("0.2000") && text.contains("core_v2"), "{text}");
    assert_eq!(table.rows.len(), 4);
    let values = |right: usize| -> Vec<QuestionValue> {
        (0..50).map(|id| QuestionValue { id, group: None, value: f64::from(u8::from((id as usize) < right)) }).collect()
    };
    let (first, second) = (values(20), values(30));
    let run = |values| TaskValues { task: "arc_easy", metric: "acc", average: Average::Questions, values };
    let one = compare(&run(&first), &run(&second), Resampling { resamples: 200, seed: 1 }).unwrap();
    let text = write::markdown(&comparison(&[one]));
    assert!(text.contains("| arc_easy | acc | 0.4000 | 0.6000 | 0.2000 ± 0.0571 |"), "{text}");
    assert!(text.contains("| 10 | 0 | 50 |"), "{text}");
}
