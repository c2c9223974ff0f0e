//! Rectangles, lines and texts on a white page, written as SVG or PNG.
//!
//! Lengths are in pixels of the SVG; y goes down. The same shapes make both files, so they look alike.

mod font;
mod png;
mod svg;

use std::path::{Path, PathBuf};

/// The longest side of a page, in pixels.
pub const MAX_SIDE: f32 = 8192.0;
/// Pixels of a PNG for each pixel of the page, along each side, for dense screens and print.
const PNG_SCALE: f32 = 2.0;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

impl Colour {
    /// The colour of the page.
    pub const WHITE: Colour = Colour(255, 255, 255);
    /// The colour of texts.
    pub const INK: Colour = Colour(38, 38, 44);
    /// The colour of less important texts.
    pub const GREY: Colour = Colour(96, 98, 108);
    /// The colour of frames.
    pub const FRAME: Colour = Colour(168, 170, 178);
    /// The colour of grids.
    pub const GRID: Colour = Colour(228, 229, 234);

    /// A colour between this one at 0 and another at 1.
    pub fn mix(self, other: Colour, share: f32) -> Colour {
        let mix = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * share).round() as u8;
        Colour(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }

    /// The lightness, from 0 to 1.
    pub(crate) fn lightness(self) -> f32 {
        (0.299 * f32::from(self.0) + 0.587 * f32::from(self.1) + 0.114 * f32::from(self.2)) / 255.0
    }
}

/// How a line is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Stroke {
    /// Its colour.
    pub colour: Colour,
    /// Its width in pixels.
    pub width: f32,
    /// Lengths that are drawn and left out in turn; empty for a solid line.
    pub dash: &'static [f32],
}

/// The part of a text that is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

#[derive(Clone, Debug)]
enum Shape {
    Rectangle { x: f32, y: f32, width: f32, height: f32, fill: Colour },
    Line { points: Vec<(f32, f32)>, stroke: Stroke },
    Text { text: String, x: f32, y: f32, size: f32, anchor: Anchor, colour: Colour, turned: bool },
}

/// Why a picture could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// A name that ends neither in .svg nor in .png.
    #[error("{}: a picture is written as .svg or .png; give the file a name with one of these endings", path.display())]
    Extension {
        /// The name.
        path: PathBuf,
    },
    /// A page with a side that is too short or too long.
    #[error("a picture of {width} by {height} pixels, expected sides from 1 to {MAX_SIDE}; draw less in one picture")]
    Size {
        /// Pixels across.
        width: f32,
        /// Pixels down.
        height: f32,
    },
    /// Nothing to draw, or more than can be distinguished.
    #[error("{what}: {found}; expected {expected}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The number found.
        found: usize,
        /// The numbers that are allowed.
        expected: String,
    },
    /// The encoder failed.
    #[error("cannot encode the PNG: {reason}")]
    Encode {
        /// The message of the encoder.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// A page and the shapes on it, in the order in which they are drawn.
#[derive(Clone, Debug)]
pub struct Picture {
    width: f32,
    height: f32,
    shapes: Vec<Shape>,
}

impl Picture {
    /// An empty page.
    ///
    /// # Errors
    /// [`PictureError::Size`].
    pub fn new(width: f32, height: f32) -> Result<Picture, PictureError> {
        let fits = |side: f32| (1.0..=MAX_SIDE).contains(&side);
        if !(fits(width) && fits(height)) {
            return Err(PictureError::Size { width, height });
        }
        Ok(Picture { width: width.ceil(), height: height.ceil(), shapes: Vec::new() })
    }

    /// Fills a rectangle.
    pub fn rectangle(&mut self, x: f32, y: f32, width: f32, height: f32, fill: Colour) {
        self.shapes.push(Shape::Rectangle { x, y, width, height, fill });
    }

    /// Draws a line through points.
    pub fn line(&mut self, points: Vec<(f32, f32)>, stroke: Stroke) {
        self.shapes.push(Shape::Line { points, stroke });
    }

    /// Draws the sides of a rectangle.
    pub fn frame(&mut self, x: f32, y: f32, width: f32, height: f32, stroke: Stroke) {
        let (right, bottom) = (x + width, y + height);
        self.line(vec![(x, y), (right, y), (right, bottom), (x, bottom), (x, y)], stroke);
    }

    /// Writes a text with its baseline at `y`.
    pub fn text(&mut self, text: &str, x: f32, y: f32, size: f32, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Text { text: text.to_owned(), x, y, size, anchor, colour, turned: false });
    }

    /// Writes a text upwards, with its baseline at `x`.
    pub fn text_upwards(&mut self, text: &str, x: f32, y: f32, size: f32, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Text { text: text.to_owned(), x, y, size, anchor, colour, turned: true });
    }

    /// The width of a text, with a margin for other fonts.
    pub fn text_width(text: &str, size: f32) -> f32 {
        font::width(text, size) * 1.06
    }

    /// The text, cut to a width with an ellipsis where it is longer.
    pub fn fitting(text: &str, size: f32, width: f32) -> String {
        if Picture::text_width(text, size) <= width {
            return text.to_owned();
        }
        let mut kept = String::new();
        for letter in text.chars() {
            kept.push(letter);
            if Picture::text_width(&kept, size) + Picture::text_width("…", size) > width {
                kept.pop();
                break;
            }
        }
        kept + "…"
    }

    /// The picture as SVG; the same picture gives the same bytes.
    pub fn to_svg(&self) -> String {
        svg::write(self)
    }

    /// The picture as PNG, with two pixels for each pixel of the page along each side.
    ///
    /// # Errors
    /// [`PictureError::Encode`].
    pub fn to_png(&self) -> Result<Vec<u8>, PictureError> {
        png::write(self, PNG_SCALE)
    }

    /// Writes a file, as SVG or PNG by the ending of its name.
    ///
    /// # Errors
    /// [`PictureError::Extension`], [`PictureError::Encode`], [`PictureError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), PictureError> {
        let bytes = match Picture::check_name(path)? {
            true => self.to_png()?,
            false => self.to_svg().into_bytes(),
        };
        std::fs::write(path, bytes).map_err(|source| PictureError::Io { path: path.to_owned(), source })
    }

    /// Checks that [`write`](Self::write) accepts a name, before there is a picture; returns whether it is a PNG.
    ///
    /// # Errors
    /// [`PictureError::Extension`].
    pub fn check_name(path: &Path) -> Result<bool, PictureError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("png") => Ok(true),
            Some("svg") => Ok(false),
            _ => Err(PictureError::Extension { path: path.to_owned() }),
        }
    }
}
