//! Programs as HumanEval asks for them.

/// What ends a completion: the beginnings of whatever follows a function (Chen et al. 2021, arXiv 2107.03374, section 2).
pub const STOPS: [&str; 5] = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

/// What ends it besides in a conversation, where the function stands between fences.
pub const FENCE: &str = "\n```";

/// The text before the first of the stops.
pub fn before_stops<'t>(text: &'t str, stops: &[impl AsRef<str>]) -> &'t str {
    let end = stops.iter().filter_map(|stop| text.find(stop.as_ref())).min();
    &text[..end.unwrap_or(text.len())]
}
