//! The results of a run.

use super::{Cell, Table};
use crate::score::{Aggregate, TaskScore};

/// A row a task and metric, with the standard error and the number of questions; `aggregates` of the tasks' first metrics
/// follow. Values are as metrics have them, not percentages.
pub fn results(scores: &[(&str, &TaskScore)], aggregates: &[Aggregate], value: &dyn Fn(&str) -> Option<f64>) -> Table {
    let mut table = Table::new(["task", "metric", "value", "± error", "macro", "questions"]);
    for (task, score) in scores {
        for (at, metric) in score.metrics.iter().enumerate() {
            let known = |value: Option<f64>| value.map_or(Cell::Missing, |value| Cell::Number(value, 4));
            table.rows.push(vec![
                Cell::text(if at == 0 { *task } else { "" }),
                Cell::text(&metric.name),
                Cell::Number(metric.value, 4),
                known(metric.standard_error),
                known(metric.macro_average),
                Cell::Number(metric.count as f64, 0),
            ]);
        }
    }
    for aggregate in aggregates {
        let of_all = aggregate.compute(value).map_or(Cell::Missing, |value| Cell::Number(value, 4));
        let empty = || Cell::Missing;
        table.rows.push(vec![Cell::text(&aggregate.name), Cell::text(""), of_all, empty(), empty(), empty()]);
    }
    table.summary = aggregates.len();
    table
}
