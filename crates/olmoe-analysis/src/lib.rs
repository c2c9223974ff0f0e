//! Statistics of routing, and pictures of routing and of training runs.
//!
//! | file | contents |
//! |---|---|
//! | `picture` | rectangles, lines and texts, written as SVG or PNG; text needs no font of the machine |
//! | `axis` | ticks and their labels, linear and logarithmic |
//! | `curves` | panels of curves over one axis: loss, learning rate, expert load |
//! | `expert_counts` | how often each expert was chosen, and statistics of these counts |
//! | `heat_map` | a coloured table: experts by layers, experts by kinds of text |

mod axis;
mod curves;
mod expert_counts;
mod heat_map;
mod picture;

pub use axis::Scale;
pub use curves::{Curve, Curves, MAX_CURVES, MAX_PANELS, Panel};
pub use expert_counts::{ExpertCounts, specialisation};
pub use heat_map::{HeatMap, MAX_CELLS};
pub use picture::{Anchor, Colour, MAX_SIDE, Picture, PictureError, Stroke};
