//! Results as tables: on a terminal, as JSON, Markdown, LaTeX and tab-separated values.
//!
//! A [`Table`] is cells; [`mod@write`] has the forms. What is in it comes from [`results`], [`comparison`] and the tables of the
//! field: [`dclm`], [`olmes`] and [`adaptation`].

pub mod adaptation;
pub mod comparison;
pub mod dclm;
pub mod olmes;
pub mod results;
pub mod write;

use std::collections::BTreeMap;

/// Cells in rows and columns. The first column names the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What the columns are; the first one may be empty.
    pub columns: Vec<String>,
    /// The rows, each with as many cells as there are columns.
    pub rows: Vec<Vec<Cell>>,
    /// The number of rows at the end that summarise the others.
    pub summary: usize,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text. It may have mathematics in LaTeX between dollar signs, which only LaTeX is given.
    Text(String),
    /// A number with so many digits after the point.
    Number(f64, usize),
    /// A number with the standard error or half the interval behind it.
    Spread(f64, f64, usize),
    /// Nothing is known.
    Missing,
}

impl Cell {
    /// Text.
    pub fn text(text: impl Into<String>) -> Cell {
        Cell::Text(text.into())
    }

    /// A share as a percentage with one digit; nothing for none and NaN.
    pub fn percentage(share: Option<f64>) -> Cell {
        share.filter(|share| !share.is_nan()).map_or(Cell::Missing, |share| Cell::Number(share * 100.0, 1))
    }
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Table {
        Table { columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new(), summary: 0 }
    }
}

/// Results of a model: values from 0 to 1 by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// The name of the model.
    pub name: String,
    /// The results.
    pub results: BTreeMap<String, f64>,
}
