//! A picture as SVG.

use std::fmt::Write;

use super::{Anchor, Colour, Picture, Shape};

/// The fonts of texts: that of the PNG where it is installed, else fonts of about the same width.
const FONTS: &str = "Ubuntu, 'Noto Sans', 'Segoe UI', 'Helvetica Neue', Arial, sans-serif";

pub(super) fn write(picture: &Picture) -> String {
    let (width, height) = (number(picture.width), number(picture.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"{FONTS}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for shape in &picture.shapes {
        element(shape, &mut out);
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

/// Writing to a string does not fail.
fn element(shape: &Shape, out: &mut String) {
    match shape {
        Shape::Rectangle { x, y, width, height, fill } => {
            let (x, y, width, height) = (number(*x), number(*y), number(*width), number(*height));
            let fill = colour(*fill);
            let _ = write!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\" shape-rendering=\"crispEdges\"/>"
            );
        }
        Shape::Line { points, stroke } => {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
            let (points, width, ink) = (points.join(" "), number(stroke.width), colour(stroke.colour));
            let _ = write!(
                out,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{ink}\" stroke-width=\"{width}\" \
                 stroke-linejoin=\"round\""
            );
            if stroke.dash.is_empty() {
                out.push_str(" stroke-linecap=\"round\"");
            } else {
                let dash: Vec<String> = stroke.dash.iter().map(|length| number(*length)).collect();
                let _ = write!(out, " stroke-dasharray=\"{}\"", dash.join(" "));
            }
            out.push_str("/>");
        }
        Shape::Text { text, x, y, size, anchor, colour: ink, turned } => {
            let (x, y, size) = (number(*x), number(*y), number(*size));
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let turn = if *turned { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
            let (ink, text) = (colour(*ink), escaped(text));
            let _ = write!(
                out,
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{ink}\"{turn}>{text}</text>"
            );
        }
    }
}

/// A number with two decimals, which are finer than any screen.
fn number(value: f32) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn colour(colour: Colour) -> String {
    format!("#{:02x}{:02x}{:02x}", colour.0, colour.1, colour.2)
}

/// Escapes a text; control characters are left out, because XML cannot contain most of them.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            letter if letter.is_control() => out.push('\u{FFFD}'),
            letter => out.push(letter),
        }
    }
    out
}
