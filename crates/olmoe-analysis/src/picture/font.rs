//! The font of the program: widths and outlines of texts.
//!
//! The font has a light weight; its outlines are drawn a little wider, which gives a regular weight.

use std::sync::OnceLock;

use tiny_skia::{Path, PathBuilder};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

/// How much wider than its outlines the font is drawn, as a share of its size.
pub(super) const WEIGHT: f32 = 0.028;

fn face() -> &'static Face<'static> {
    static FACE: OnceLock<Face<'static>> = OnceLock::new();
    FACE.get_or_init(|| {
        Face::parse(epaint_default_fonts::UBUNTU_LIGHT, 0).expect("the font that is part of the program can be parsed")
    })
}

/// The glyph of a letter; a letter that the font lacks is an empty box.
fn glyph(letter: char) -> GlyphId {
    face().glyph_index(letter).unwrap_or(GlyphId(0))
}

fn advance(glyph: GlyphId) -> f32 {
    face().glyph_hor_advance(glyph).map_or(0.0, f32::from)
}

fn scale(size: f32) -> f32 {
    size / f32::from(face().units_per_em())
}

/// The length of a text.
pub(super) fn width(text: &str, size: f32) -> f32 {
    text.chars().map(|letter| advance(glyph(letter))).sum::<f32>() * scale(size)
}

/// The outlines of a text that begins at 0 with its baseline at 0; `None` if nothing of it is visible.
pub(super) fn outline(text: &str, size: f32) -> Option<Path> {
    let mut outline = Outline { path: PathBuilder::new(), x: 0.0, scale: scale(size) };
    for letter in text.chars() {
        let glyph = glyph(letter);
        face().outline_glyph(glyph, &mut outline);
        outline.x += advance(glyph) * outline.scale;
    }
    outline.path.finish()
}

struct Outline {
    path: PathBuilder,
    x: f32,
    scale: f32,
}

impl Outline {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
