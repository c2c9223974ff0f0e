//! OLMES' results: of a task the better one of its two formulations.

use super::{Cell, Model, Table};
use crate::score::Aggregate;
use crate::suites::olmes;

/// A row a model and a column a task, with the mean of all last. A task is missing until both of its formulations are there,
/// and the mean until all tasks are. As percentages with one digit.
pub fn olmes(models: &[Model]) -> Table {
    let aggregates = olmes::aggregates(None);
    let head = |aggregate: &Aggregate| match aggregate.name.split_once(':') {
        Some((_, task)) => task.to_owned(),
        None => "average".to_owned(),
    };
    let mut table = Table::new(["model".to_owned()].into_iter().chain(aggregates.iter().map(head)));
    for model in models {
        let value = |task: &str| model.results.get(task).copied();
        let cells = aggregates.iter().map(|aggregate| Cell::percentage(aggregate.compute(&value)));
        table.rows.push([Cell::text(&model.name)].into_iter().chain(cells).collect());
    }
    table
}
