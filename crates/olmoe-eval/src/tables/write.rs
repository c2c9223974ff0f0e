//! The forms of a table.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Cell, Table};

/// The text of a cell without mathematics; `missing` for one of which nothing is known.
fn plain(cell: &Cell, missing: &str) -> String {
    match cell {
        Cell::Text(text) => text.replace("$^*$", "*"),
        Cell::Number(number, digits) => format!("{number:.digits$}"),
        Cell::Spread(number, spread, digits) => format!("{number:.digits$} ± {spread:.digits$}"),
        Cell::Missing => missing.to_owned(),
    }
}

/// Columns side by side, numbers at the right, for a terminal with a font of one width.
pub fn terminal(table: &Table) -> String {
    let mut lines: Vec<Vec<String>> = vec![table.columns.iter().map(|column| column.replace("$^*$", "*")).collect()];
    lines.extend(table.rows.iter().map(|row| row.iter().map(|cell| plain(cell, "–")).collect()));
    let width_of = |column: usize| {
        let widths = lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width_of).collect();
    let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)) + "\n";
    let numbers = numeric(table);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        if at == 1 || (table.summary > 0 && at + table.summary == lines.len()) {
            out += &rule;
        }
        let mut text = String::new();
        for ((cell, width), numeric) in line.iter().zip(&widths).zip(&numbers) {
            let width = *width;
            let _ = if *numeric { write!(text, "{cell:>width$}  ") } else { write!(text, "{cell:<width$}  ") };
        }
        out += text.trim_end();
        out.push('\n');
    }
    out
}

/// Which columns have numbers only.
fn numeric(table: &Table) -> Vec<bool> {
    let is_text = |column: usize| table.rows.iter().any(|row| matches!(row.get(column), Some(Cell::Text(_))));
    (0..table.columns.len()).map(|column| column > 0 && !is_text(column)).collect()
}

/// A table of Markdown.
pub fn markdown(table: &Table) -> String {
    let escaped = |text: String| text.replace('|', "\\|").replace('\n', " ");
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(table.columns.iter().map(|column| escaped(column.replace("$^*$", "\\*"))).collect());
    let rule = numeric(table).into_iter().map(|numeric| if numeric { "---:" } else { "---" });
    out += &format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => escaped(text.replace("$^*$", "\\*")),
        other => plain(other, "–"),
    };
    for row in &table.rows {
        out += &line(row.iter().map(cell).collect());
    }
    out
}

/// A `tabular` of LaTeX with the rules of the package `booktabs`, as pandas writes one. Text is taken as LaTeX already, so
/// that underscores in it are the caller's.
pub fn latex(table: &Table) -> String {
    let columns: String = numeric(table).into_iter().map(|numeric| if numeric { 'r' } else { 'l' }).collect();
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => text.clone(),
        Cell::Spread(number, spread, digits) => format!("{number:.digits$} $\\pm$ {spread:.digits$}"),
        other => plain(other, "NaN"),
    };
    let line = |cells: Vec<String>| cells.join(" & ") + " \\\\\n";
    let mut out = format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n", line(table.columns.clone()));
    for row in &table.rows {
        out += &line(row.iter().map(cell).collect());
    }
    out + "\\bottomrule\n\\end{tabular}\n"
}

/// Text for LaTeX: its special characters are escaped.
pub fn latex_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', letter]),
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '\\' => out += "\\textbackslash{}",
            other => out.push(other),
        }
    }
    out
}

/// Tab-separated values as pandas writes them: text as it is, cells of which nothing is known empty.
pub fn tsv(table: &Table) -> String {
    let line = |cells: Vec<String>| cells.join("\t").replace('\n', " ") + "\n";
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => text.replace('\t', " "),
        other => plain(other, ""),
    };
    let mut out = line(table.columns.clone());
    for row in &table.rows {
        out += &line(row.iter().map(cell).collect());
    }
    out
}

/// A list of objects with the columns as keys; the key of the first one is `name` if it has none. Numbers are whole, not
/// rounded; a spread is a list of both.
pub fn json(table: &Table) -> Value {
    let row = |row: &Vec<Cell>| {
        let mut object = Map::new();
        for (column, cell) in table.columns.iter().zip(row) {
            let key = if column.is_empty() { "name" } else { column };
            let value = match cell {
                Cell::Text(text) => json!(text.replace("$^*$", "*")),
                Cell::Number(number, _) => json!(number),
                Cell::Spread(number, spread, _) => json!([number, spread]),
                Cell::Missing => Value::Null,
            };
            object.insert(key.to_owned(), value);
        }
        Value::Object(object)
    };
    Value::Array(table.rows.iter().map(row).collect())
}
