//! A coloured table: experts by layers, experts by kinds of text.

use crate::axis::{Axis, Scale};
use crate::picture::{Anchor, Colour, Picture, PictureError, Stroke};

/// Most cells of a picture.
pub const MAX_CELLS: usize = 1 << 16;

const MARGIN: f32 = 24.0;
const TITLE: f32 = 18.0;
const NAME: f32 = 14.0;
const SMALL: f32 = 12.5;
const TINY: f32 = 10.5;
/// The largest width of the label of a row, in pixels.
const LABEL: f32 = 200.0;

/// From the lowest value to the highest.
const SEQUENTIAL: [Colour; 5] =
    [Colour(250, 251, 253), Colour(190, 218, 238), Colour(90, 165, 212), Colour(22, 100, 170), Colour(8, 40, 90)];
/// From the lowest value through the middle to the highest.
const DIVERGING: [Colour; 5] =
    [Colour(20, 80, 150), Colour(130, 180, 220), Colour(250, 250, 250), Colour(240, 150, 110), Colour(165, 25, 35)];

/// A table of numbers, drawn as colours.
#[derive(Clone, Debug, Default)]
pub struct HeatMap {
    /// The title above the table.
    pub title: String,
    /// The label of all rows.
    pub row_label: String,
    /// The names of the rows, from the top.
    pub rows: Vec<String>,
    /// The label of all columns.
    pub column_label: String,
    /// The names of the columns; where there is no room for all, some are left out.
    pub columns: Vec<String>,
    /// The values, row by row. NaN and infinity are drawn in grey.
    pub values: Vec<f64>,
    /// The label of the values, beside the colour bar.
    pub value_label: String,
    /// The neutral value, such as a uniform share: it is drawn in white, lower values in blue, higher ones in red.
    /// Without it, higher values are darker.
    pub middle: Option<f64>,
    /// Decimal places of the values written into the cells, where there is room; `None` leaves the cells without text.
    pub decimals: Option<usize>,
}

impl HeatMap {
    /// Draws the table.
    ///
    /// # Errors
    /// [`PictureError::Count`]: no cell, too many, or another number than rows times columns; [`PictureError::Size`].
    pub fn draw(&self) -> Result<Picture, PictureError> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let cells = rows.saturating_mul(columns);
        if !(1..=MAX_CELLS).contains(&cells) {
            let expected = format!("rows times columns from 1 to {MAX_CELLS} in one picture");
            return Err(PictureError::Count { what: "cells", found: cells, expected });
        }
        if self.values.len() != cells {
            let expected = format!("{rows} rows of {columns}, {cells} in all");
            return Err(PictureError::Count { what: "values", found: self.values.len(), expected });
        }
        let texts: Vec<String> = match self.decimals {
            Some(decimals) => self.values.iter().map(|value| format!("{value:.decimals$}")).collect(),
            None => Vec::new(),
        };
        let text_width = texts.iter().map(|text| Picture::text_width(text, TINY)).fold(0.0, f32::max);
        let cell_width = (820.0 / columns as f32).floor().clamp(6.0, 48.0);
        let cell_height = (560.0 / rows as f32).floor().clamp(6.0, 30.0);
        let writes = text_width + 4.0 <= cell_width && TINY + 3.0 <= cell_height;

        let names: Vec<String> = self.rows.iter().map(|name| Picture::fitting(name, SMALL, LABEL)).collect();
        let widest = names.iter().map(|name| Picture::text_width(name, SMALL)).fold(0.0, f32::max);
        // Cells begin at whole pixels.
        let left = (MARGIN + widest + 10.0 + if self.row_label.is_empty() { 0.0 } else { 22.0 }).ceil();
        let top = MARGIN + if self.title.is_empty() { 0.0 } else { 30.0 };
        let (width, height) = (cell_width * columns as f32, cell_height * rows as f32);

        let range = self.range();
        // Where no value is negative, the bar does not show values below 0, although the colours extend there.
        let negative = self.values.iter().any(|value| *value < 0.0);
        let bottom = if negative { range.0 } else { range.0.max(0.0) };
        let bar = Axis::around([bottom, range.1].into_iter(), Scale::Linear);
        // Ticks whose labels begin with the same digits need more of them than the height suggests.
        let ticks = bar.ticks((height / 45.0).clamp(2.0, 8.0) as usize);
        let bar_height = height.max(80.0);
        let bar_labels = ticks.iter().map(|tick| Picture::text_width(&tick.label, SMALL)).fold(0.0, f32::max);
        let bar_left = left + width + 26.0;
        let page = bar_left + 16.0 + 8.0 + bar_labels + if self.value_label.is_empty() { 0.0 } else { 26.0 } + MARGIN;
        // Long names of columns are written upwards.
        let column_width = self.columns.iter().map(|name| Picture::text_width(name, SMALL)).fold(0.0, f32::max);
        let numbered = self.columns.iter().all(|name| name.chars().count() <= 3);
        let turned = !numbered && column_width + 6.0 > cell_width;
        let under = if turned { column_width.min(LABEL) + 14.0 } else { 22.0 };
        let label_under = if self.column_label.is_empty() { 0.0 } else { 24.0 };
        let mut picture = Picture::new(page, top + bar_height.max(height + under + label_under) + MARGIN)?;

        let title = Picture::fitting(&self.title, TITLE, page - left - MARGIN);
        picture.text(&title, left, MARGIN + 10.0, TITLE, Anchor::Start, Colour::INK);
        for (at, value) in self.values.iter().enumerate() {
            let (x, y) = (left + cell_width * (at % columns) as f32, top + cell_height * (at / columns) as f32);
            let colour = self.colour(*value, range);
            picture.rectangle(x, y, cell_width, cell_height, colour);
            if let (true, Some(text)) = (writes, texts.get(at)) {
                let ink = if colour.lightness() > 0.55 { Colour::INK } else { Colour::WHITE };
                picture.text(text, x + cell_width / 2.0, y + cell_height / 2.0 + 3.8, TINY, Anchor::Middle, ink);
            }
        }
        let frame = Stroke { colour: Colour::FRAME, width: 1.0, dash: &[] };
        picture.frame(left, top, width, height, frame.clone());

        let every = ((SMALL + 3.0) / cell_height).ceil().max(1.0) as usize;
        for (at, name) in names.iter().enumerate().step_by(every) {
            let y = top + cell_height * (at as f32 + 0.5) + 4.2;
            picture.text(name, left - 8.0, y, SMALL, Anchor::End, Colour::INK);
        }
        let needed = if turned { SMALL + 3.0 } else { column_width + 6.0 };
        let every = round_every((needed / cell_width).ceil().max(1.0) as usize);
        for (at, name) in self.columns.iter().enumerate().step_by(every) {
            let x = left + cell_width * (at as f32 + 0.5);
            match turned {
                true => {
                    let name = Picture::fitting(name, SMALL, LABEL);
                    picture.text_upwards(&name, x + 4.2, top + height + 8.0, SMALL, Anchor::End, Colour::INK);
                }
                false => picture.text(name, x, top + height + 17.0, SMALL, Anchor::Middle, Colour::INK),
            }
        }
        let (middle_x, middle_y) = (left + width / 2.0, top + height / 2.0);
        picture.text(&self.column_label, middle_x, top + height + under + 17.0, NAME, Anchor::Middle, Colour::INK);
        picture.text_upwards(&self.row_label, MARGIN + 10.0, middle_y, NAME, Anchor::Middle, Colour::INK);

        // The bar, in strips of a pixel or so.
        let strips = 128;
        for strip in 0..strips {
            let share = (strip as f64 + 0.5) / f64::from(strips);
            let height = bar_height / strips as f32;
            let y = top + bar_height - height * (strip + 1) as f32;
            let colour = self.colour(bottom + (range.1 - bottom) * share, range);
            picture.rectangle(bar_left, y, 16.0, height + 0.5, colour);
        }
        picture.frame(bar_left, top, 16.0, bar_height, frame);
        for tick in &ticks {
            let Some(place) = bar.place(tick.value) else { continue };
            let y = top + bar_height * (1.0 - place);
            picture.text(&tick.label, bar_left + 24.0, y + 4.2, SMALL, Anchor::Start, Colour::GREY);
        }
        let x = bar_left + 16.0 + 8.0 + bar_labels + 20.0;
        picture.text_upwards(&self.value_label, x, top + bar_height / 2.0, NAME, Anchor::Middle, Colour::INK);
        Ok(picture)
    }

    /// The values of the first and the last colour, at the same distance from the middle if there is one.
    fn range(&self) -> (f64, f64) {
        let finite = || self.values.iter().copied().filter(|value| value.is_finite());
        let limit = |value: f64| value.clamp(f64::MIN / 8.0, f64::MAX / 8.0);
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        match self.middle.filter(|middle| middle.is_finite()) {
            _ if low > high => (0.0, 1.0),
            Some(middle) => {
                let middle = limit(middle);
                let away = (limit(high) - middle).abs().max((middle - limit(low)).abs());
                let away = if away > 0.0 { away } else { 1.0 };
                (middle - away, middle + away)
            }
            None if low == 0.0 && high == 0.0 => (0.0, 1.0),
            None if low == high => (limit(low).min(0.0), limit(high).max(0.0)),
            // Counts and shares begin at 0.
            None => (limit(low).min(0.0), limit(high)),
        }
    }

    fn colour(&self, value: f64, range: (f64, f64)) -> Colour {
        let share = (value - range.0) / (range.1 - range.0);
        if !share.is_finite() {
            return Colour::FRAME;
        }
        let colours = if self.middle.is_some() { DIVERGING } else { SEQUENTIAL };
        let place = share.clamp(0.0, 1.0) as f32 * (colours.len() - 1) as f32;
        let below = (place as usize).min(colours.len() - 2);
        colours[below].mix(colours[below + 1], place - below as f32)
    }
}

/// Rounds the distance of the names that are shown up to a number that is easy to count by.
fn round_every(every: usize) -> usize {
    [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100].into_iter().find(|round| *round >= every).unwrap_or(every)
}
