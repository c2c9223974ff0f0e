//! Panels of curves over one axis: loss, learning rate, expert load of one run or several.

use crate::axis::{Axis, Scale};
use crate::picture::{Anchor, Colour, Picture, PictureError, Stroke};

/// Most curves of a panel.
pub const MAX_CURVES: usize = 64;
/// Most panels of a picture.
pub const MAX_PANELS: usize = 16;

const WIDTH: f32 = 960.0;
const MARGIN: f32 = 24.0;
/// Height of the first panel and of the others, in pixels.
const HEIGHTS: (f32, f32) = (320.0, 170.0);
const TITLE: f32 = 18.0;
const NAME: f32 = 14.0;
const SMALL: f32 = 12.5;

/// Colours that people with colour blindness can tell apart, too, on white and in this order.
const COLOURS: [Colour; 8] = [
    Colour(0, 95, 184),
    Colour(213, 94, 0),
    Colour(0, 140, 100),
    Colour(170, 60, 150),
    Colour(70, 165, 225),
    Colour(215, 150, 0),
    Colour(110, 80, 60),
    Colour(75, 75, 85),
];
/// Dashes for curves beyond the number of colours.
const DASHES: [&[f32]; 4] = [&[], &[7.0, 3.5], &[2.0, 2.5], &[9.0, 3.0, 2.0, 3.0]];

/// Dashes of curves that coincide with another curve, so that all of them can be seen: for the first one that is drawn
/// over another, the second, and so on.
const OVERLAPS: [&[f32]; 3] = [&[9.0, 9.0], &[9.0, 18.0], &[9.0, 27.0]];

/// A picture of curves.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// The title above all panels; none if empty.
    pub title: String,
    /// The label of the x axis under the last panel, such as "steps".
    pub x_label: String,
    /// The scale of the x axis.
    pub x_scale: Scale,
    /// The legend: names of the curves, in the same order in every panel. A single name gets no legend.
    pub names: Vec<String>,
    /// The panels, from top to bottom.
    pub panels: Vec<Panel>,
}

/// One panel.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// The name of the quantity on the y axis, above the panel.
    pub name: String,
    /// The scale of the y axis.
    pub scale: Scale,
    /// One for each name of the legend, in its order; an empty one where there is nothing to show.
    pub curves: Vec<Curve>,
}

/// One curve, x in ascending order. Points that are not finite interrupt it.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// The points of the curve.
    pub points: Vec<(f64, f64)>,
    /// A curve that is drawn in a light colour behind it, such as the values before smoothing.
    pub behind: Vec<(f64, f64)>,
}

impl Curves {
    /// Draws the picture.
    ///
    /// # Errors
    /// [`PictureError::Count`]: no panel, or too many panels or curves.
    pub fn draw(&self) -> Result<Picture, PictureError> {
        let curves = self.panels.iter().map(|panel| panel.curves.len()).chain([self.names.len()]).max().unwrap_or(0);
        for (what, found, most) in [("panels", self.panels.len(), MAX_PANELS), ("curves", curves, MAX_CURVES)] {
            if !(1..=most).contains(&found) {
                let expected = format!("from 1 to {most} in one picture");
                return Err(PictureError::Count { what, found, expected });
            }
        }
        let points = |panel: &Panel| {
            panel.curves.iter().flat_map(|curve| curve.behind.iter().chain(&curve.points)).copied().collect::<Vec<_>>()
        };
        let all: Vec<Vec<(f64, f64)>> = self.panels.iter().map(points).collect();
        let x_axis = Axis::around(all.iter().flatten().map(|point| point.0), self.x_scale).of_counts();
        let y_axes: Vec<Axis> = (self.panels.iter().zip(&all))
            .map(|(panel, points)| Axis::around(points.iter().map(|point| point.1), panel.scale).with_room(0.06))
            .collect();
        let y_ticks: Vec<_> =
            y_axes.iter().enumerate().map(|(at, axis)| axis.ticks(if at == 0 { 7 } else { 4 })).collect();
        let widest = y_ticks.iter().flatten().map(|tick| Picture::text_width(&tick.label, SMALL)).fold(0.0, f32::max);

        let (left, right) = (MARGIN + widest + 10.0, WIDTH - MARGIN);
        let legend = if self.names.len() > 1 { legend(&self.names, right - left) } else { Vec::new() };
        let legend_rows = legend.last().map_or(0.0, |entry| entry.2 + 1.0);
        let heading = if self.title.is_empty() { 0.0 } else { 34.0 };
        let top = MARGIN - 6.0 + heading + legend_rows * 22.0;
        let panel_height = |at: usize| if at == 0 { HEIGHTS.0 } else { HEIGHTS.1 };
        let inner: f32 = (0..self.panels.len()).map(|at| panel_height(at) + 44.0).sum();
        let mut picture = Picture::new(WIDTH, top + inner + 34.0)?;

        if !self.title.is_empty() {
            let title = Picture::fitting(&self.title, TITLE, right - left);
            picture.text(&title, left, MARGIN + 12.0, TITLE, Anchor::Start, Colour::INK);
        }
        for (at, (name, x, row)) in legend.iter().enumerate() {
            let (x, y) = (left + x, MARGIN + 8.0 + heading + row * 22.0);
            picture.line(vec![(x, y - 4.5), (x + 26.0, y - 4.5)], stroke(at, 2.6));
            picture.text(name, x + 34.0, y, SMALL, Anchor::Start, Colour::INK);
        }

        let mut y = top;
        for (at, panel) in self.panels.iter().enumerate() {
            let area = Area { left, top: y + 28.0, width: right - left, height: panel_height(at) };
            picture.text(
                &Picture::fitting(&panel.name, NAME, area.width),
                left,
                y + 19.0,
                NAME,
                Anchor::Start,
                Colour::INK,
            );
            area.grid(&mut picture, (&x_axis, at + 1 == self.panels.len()), (&y_axes[at], &y_ticks[at]));
            for (number, curve) in panel.curves.iter().enumerate() {
                let mut faint = stroke(number, 1.0);
                faint.colour = faint.colour.mix(Colour::WHITE, 0.7);
                faint.dash = &[];
                area.curve(&mut picture, &curve.behind, (&x_axis, &y_axes[at]), &faint);
            }
            for (number, curve) in panel.curves.iter().enumerate() {
                let same = panel.curves[..number].iter().filter(|other| other.points == curve.points).count();
                let mut stroke = stroke(number, 1.9);
                if same > 0 {
                    stroke.dash = OVERLAPS[(same - 1) % OVERLAPS.len()];
                }
                area.curve(&mut picture, &curve.points, (&x_axis, &y_axes[at]), &stroke);
            }
            y = area.top + area.height + 16.0;
        }
        picture.text(&self.x_label, (left + right) / 2.0, y + 24.0, NAME, Anchor::Middle, Colour::INK);
        Ok(picture)
    }
}

fn stroke(number: usize, width: f32) -> Stroke {
    let dash = DASHES[number / COLOURS.len() % DASHES.len()];
    Stroke { colour: COLOURS[number % COLOURS.len()], width, dash }
}

/// The names of the legend with their places: from the left, and the row.
fn legend(names: &[String], width: f32) -> Vec<(String, f32, f32)> {
    let (mut x, mut row) = (0.0, 0.0);
    let mut places = Vec::with_capacity(names.len());
    for name in names {
        let name = Picture::fitting(name, SMALL, width - 40.0);
        let needed = 34.0 + Picture::text_width(&name, SMALL);
        if x > 0.0 && x + needed > width {
            (x, row) = (0.0, row + 1.0);
        }
        places.push((name, x, row));
        x += needed + 22.0;
    }
    places
}

/// The area of the curves of a panel.
struct Area {
    left: f32,
    top: f32,
    width: f32,
    height: f32,
}

impl Area {
    fn grid(&self, picture: &mut Picture, x: (&Axis, bool), y: (&Axis, &[crate::axis::Tick])) {
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        let grid = Stroke { colour: Colour::GRID, width: 1.0, dash: &[] };
        for tick in y.1 {
            let Some(place) = y.0.place(tick.value) else { continue };
            let at = bottom - place * self.height;
            picture.line(vec![(self.left, at), (right, at)], grid.clone());
            picture.text(&tick.label, self.left - 8.0, at + 4.2, SMALL, Anchor::End, Colour::GREY);
        }
        let mut free = f32::NEG_INFINITY;
        for tick in x.0.ticks(8) {
            let Some(place) = x.0.place(tick.value) else { continue };
            let at = self.left + place * self.width;
            picture.line(vec![(at, self.top), (at, bottom)], grid.clone());
            let half = Picture::text_width(&tick.label, SMALL) / 2.0;
            if x.1 && !tick.label.is_empty() && at - half > free {
                picture.text(&tick.label, at, bottom + 18.0, SMALL, Anchor::Middle, Colour::GREY);
                free = at + half + 6.0;
            }
        }
        picture.frame(self.left, self.top, self.width, self.height, Stroke { colour: Colour::FRAME, ..grid });
    }

    fn curve(&self, picture: &mut Picture, points: &[(f64, f64)], axes: (&Axis, &Axis), stroke: &Stroke) {
        let place = |&(x, y): &(f64, f64)| {
            let (x, y) = (axes.0.place(x)?, axes.1.place(y)?);
            Some((self.left + x * self.width, self.top + (1.0 - y) * self.height))
        };
        let places: Vec<Option<(f32, f32)>> = points.iter().map(place).collect();
        for piece in places.split(Option::is_none) {
            let mut piece: Vec<(f32, f32)> = thinned(piece.iter().flatten().copied());
            if let [(x, y)] = piece[..] {
                piece.push((x + 0.1, y));
            }
            if !piece.is_empty() {
                picture.line(piece, stroke.clone());
            }
        }
    }
}

/// At most four points for each half pixel, which draw the same curve: the first, the lowest, the highest, the last.
fn thinned(points: impl Iterator<Item = (f32, f32)>) -> Vec<(f32, f32)> {
    let mut kept: Vec<(f32, f32)> = Vec::new();
    let mut column: Vec<(f32, f32)> = Vec::new();
    let mut number = i64::MIN;
    for point in points {
        let at = (point.0 * 2.0).floor() as i64;
        if at != number {
            kept.append(&mut column);
            number = at;
        }
        if column.len() < 4 {
            column.push(point);
            continue;
        }
        // In this order: first, lowest, highest, last.
        let last = column[3];
        if last.1 < column[1].1 {
            column[1] = last;
        }
        if last.1 > column[2].1 {
            column[2] = last;
        }
        column[3] = point;
    }
    kept.append(&mut column);
    kept
}
