//! A picture as PNG.

use tiny_skia::{FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, StrokeDash, Transform};

use super::{Anchor, Colour, Picture, PictureError, Shape, font};

pub(super) fn write(picture: &Picture, scale: f32) -> Result<Vec<u8>, PictureError> {
    let (width, height) = ((picture.width * scale).ceil(), (picture.height * scale).ceil());
    let mut pixels = Pixmap::new(width as u32, height as u32)
        .ok_or(PictureError::Size { width: picture.width, height: picture.height })?;
    pixels.fill(tiny_skia::Color::WHITE);
    let page = Transform::from_scale(scale, scale);
    for shape in &picture.shapes {
        draw(shape, page, &mut pixels);
    }
    pixels.encode_png().map_err(|error| PictureError::Encode { reason: error.to_string() })
}

fn paint(colour: Colour) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(colour.0, colour.1, colour.2, 255);
    paint
}

/// Draws a shape; one without a place, such as a shape at infinity, is left out.
fn draw(shape: &Shape, page: Transform, pixels: &mut Pixmap) {
    match shape {
        Shape::Rectangle { x, y, width, height, fill } => {
            if let Some(rectangle) = Rect::from_xywh(*x, *y, *width, *height) {
                let mut paint = paint(*fill);
                // Neighbours of a heat map meet at whole pixels or show the page between them.
                paint.anti_alias = false;
                pixels.fill_rect(rectangle, &paint, page, None);
            }
        }
        Shape::Line { points, stroke } => {
            let mut path = PathBuilder::new();
            for (at, (x, y)) in points.iter().enumerate() {
                if at == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
            }
            let how = tiny_skia::Stroke {
                width: stroke.width,
                line_cap: if stroke.dash.is_empty() { LineCap::Round } else { LineCap::Butt },
                line_join: LineJoin::Round,
                dash: StrokeDash::new(stroke.dash.to_vec(), 0.0),
                ..tiny_skia::Stroke::default()
            };
            if let Some(path) = path.finish() {
                pixels.stroke_path(&path, &paint(stroke.colour), &how, page, None);
            }
        }
        Shape::Text { text, x, y, size, anchor, colour, turned } => {
            let Some(path) = font::outline(text, *size) else { return };
            let before = match anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => font::width(text, *size) / 2.0,
                Anchor::End => font::width(text, *size),
            };
            let place = page.pre_translate(*x, *y);
            let place = if *turned { place.pre_rotate(-90.0) } else { place }.pre_translate(-before, 0.0);
            let (paint, bolder) = (paint(*colour), size * font::WEIGHT);
            pixels.fill_path(&path, &paint, FillRule::Winding, place, None);
            let stroke = tiny_skia::Stroke { width: bolder, ..tiny_skia::Stroke::default() };
            pixels.stroke_path(&path, &paint, &stroke, place, None);
        }
    }
}
