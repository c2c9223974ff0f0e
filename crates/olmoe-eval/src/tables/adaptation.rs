//! Results after adaptation, as OLMoE's paper has them: seven numbers and their mean.

use super::{Cell, Model, Table};

/// The columns of the paper, by their names here: MMLU, GSM8K, BBH, HumanEval with 10 samples, AlpacaEval 1, F1 of XSTest,
/// and prompts of IFEval that are followed, loosely judged.
pub const COLUMNS: [(&str, &str); 7] = [
    ("mmlu", "MMLU"),
    ("gsm8k", "GSM8K"),
    ("bbh", "BBH"),
    ("codex_humaneval", "HumanEval P@10"),
    ("alpaca_eval", "AlpacaEval 1.0"),
    ("xstest", "XSTest F1"),
    ("ifeval", "IFEval"),
];

/// Of results by the names of [`COLUMNS`]: a row a model, as percentages with one digit; the mean is missing where a result is.
pub fn adaptation(models: &[Model]) -> Table {
    let heads = ["model"].into_iter().chain(COLUMNS.iter().map(|(_, head)| *head)).chain(["average"]);
    let mut table = Table::new(heads);
    for model in models {
        let values: Vec<Option<f64>> = COLUMNS.iter().map(|(name, _)| model.results.get(*name).copied()).collect();
        let all: Option<Vec<f64>> = values.iter().copied().collect();
        let mean = all.map(|all| all.iter().sum::<f64>() / all.len() as f64);
        let cells = values.into_iter().chain([mean]).map(Cell::percentage);
        table.rows.push([Cell::text(&model.name)].into_iter().chain(cells).collect());
    }
    table
}
