//! Two runs side by side.

use super::{Cell, Table};
use crate::compare::Comparison;

/// A row a task: both results, the difference with the standard error of pairs and its interval by the bootstrap, the
/// mid-p value of McNemar's test or else the bootstrap's p, and how many questions were gained and lost.
pub fn comparison(comparisons: &[Comparison]) -> Table {
    let columns = ["task", "metric", "first", "second", "difference", "from", "to", "p", "gained", "lost", "questions"];
    let mut table = Table::new(columns);
    for one in comparisons {
        let count = |count: Option<u64>| count.map_or(Cell::Missing, |count| Cell::Number(count as f64, 0));
        let difference = match one.difference.standard_error {
            Some(error) => Cell::Spread(one.difference.mean, error, 4),
            None => Cell::Number(one.difference.mean, 4),
        };
        table.rows.push(vec![
            Cell::text(&one.task),
            Cell::text(&one.metric),
            Cell::Number(one.first.mean, 4),
            Cell::Number(one.second.mean, 4),
            difference,
            Cell::Number(one.bootstrap.interval[0], 4),
            Cell::Number(one.bootstrap.interval[1], 4),
            Cell::Number(one.mcnemar.map_or(one.bootstrap.p, |test| test.mid_p), 4),
            count(one.mcnemar.map(|test| test.gained)),
            count(one.mcnemar.map(|test| test.lost)),
            Cell::Number(one.difference.questions as f64, 0),
        ]);
    }
    table
}
