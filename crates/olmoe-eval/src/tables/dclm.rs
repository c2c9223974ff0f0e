//! DCLM's results as Table 13 of OLMoE's paper has them: its script `scripts/make_table.py` (<https://github.com/allenai/OLMoE>).

use std::collections::BTreeSet;

use super::{Cell, Model, Table};
use crate::suites::dclm::{self, Baselines, lines};

/// Of results by the names of DCLM's tasks: a column a model and a row a task, in the order of the tasks' names; then Core and Extended with these baselines, which
/// are missing where a result is. All as percentages with one digit; tasks of the core have a star. The paper's numbers are
/// by [`Baselines::V1`].
pub fn dclm(models: &[Model], baselines: Baselines) -> Table {
    let mut table = Table::new([String::new()].into_iter().chain(models.iter().map(|model| model.name.clone())));
    let label = |task: &str| match lines().find(|line| line.name == task) {
        Some(line) => line.label.to_owned() + if line.core { "$^*$" } else { "" },
        None => task.to_owned(),
    };
    let tasks: BTreeSet<&String> = models.iter().flat_map(|model| model.results.keys()).collect();
    let mut named: Vec<(String, &String)> = tasks.into_iter().map(|task| (label(task), task)).collect();
    named.sort();
    for (label, task) in named {
        let cells = models.iter().map(|model| Cell::percentage(model.results.get(task).copied()));
        table.rows.push([Cell::Text(label)].into_iter().chain(cells).collect());
    }
    let wanted = match baselines {
        Baselines::V1 => ["core_v1", "extended_v1"],
        Baselines::V2 => ["core_v2", "extended_v2"],
    };
    for (name, label) in wanted.into_iter().zip(["Core", "Extended"]) {
        let of = |model: &Model| {
            let value = |task: &str| model.results.get(task.split_once(':').map_or(task, |parts| parts.1)).copied();
            let aggregate = dclm::aggregates(Some("extended")).into_iter().find(|aggregate| aggregate.name == name);
            Cell::percentage(aggregate.and_then(|aggregate| aggregate.compute(&value)))
        };
        table.rows.push([Cell::text(label)].into_iter().chain(models.iter().map(of)).collect());
    }
    table.summary = 2;
    table
}
