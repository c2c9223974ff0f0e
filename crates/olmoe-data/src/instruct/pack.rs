//! Packing: several examples in one sequence, to fill it.
//!
//! Rows are taken by falling length, equal ones in order of arrival. Each goes into the sequence that it fills best;
//! where none has room, a new sequence is begun. This is "best fit decreasing" of trl's `pack_dataset`, and of Ding et
//! al. (2024), "Fewer Truncations Improve Language Modeling". The lengths of a sequence's documents are kept, so that
//! none attends to another.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::conversation::Example;
use super::error::InstructError;

/// Into which of the sequences that have room a row goes, and what happens to rows that are longer than a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// The sequence that the row fills best; longer rows are truncated (trl's `bfd`).
    #[default]
    BestFit,
    /// The sequence that the row fills best; longer rows are split (trl's `bfd_split`).
    BestFitSplit,
    /// The first sequence with room; longer rows are truncated.
    FirstFit,
}

/// A part of a row in a sequence, which is a document of its own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The index of the row.
    pub row: usize,
    /// The first token of the part in the row.
    pub start: usize,
    /// The number of tokens.
    pub length: usize,
}

/// The parts of each sequence, for rows of the given lengths. `order` names the rows to pack, each once; of equally
/// long rows the one earlier in `order` comes first, so another order packs other rows together. Rows without tokens
/// are left out.
///
/// # Errors
/// A capacity of 0, or an index in `order` that is not a row.
pub fn pack(
    order: &[u32],
    lengths: &[usize],
    capacity: usize,
    packing: Packing,
) -> Result<Vec<Vec<Part>>, InstructError> {
    let setting =
        |key, value: usize, expected: String| InstructError::Setting { key, value: value.to_string(), expected };
    if capacity == 0 {
        return Err(setting("max_length", 0, "at least 1".to_owned()));
    }
    let mut parts = Vec::with_capacity(order.len());
    for row in order {
        let row = *row as usize;
        let length = lengths.get(row);
        let length = *length.ok_or_else(|| setting("order", row, format!("below the {} rows", lengths.len())))?;
        let kept = if packing == Packing::BestFitSplit { length } else { length.min(capacity) };
        let starts = (0..kept).step_by(capacity);
        parts.extend(starts.map(|start| Part { row, start, length: capacity.min(kept - start) }));
    }
    parts.sort_by_key(|part| std::cmp::Reverse(part.length));
    Ok(match packing {
        Packing::BestFit | Packing::BestFitSplit => best_fit(&parts, capacity),
        Packing::FirstFit => first_fit(&parts, capacity),
    })
}

fn best_fit(parts: &[Part], capacity: usize) -> Vec<Vec<Part>> {
    let mut sequences: Vec<Vec<Part>> = Vec::new();
    // Maps the room that is left to the sequences that have it, the earliest first.
    let mut rooms: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for part in parts {
        let found = rooms.range_mut(part.length..).next().and_then(|(room, of)| Some((*room, of.pop_front()?)));
        let (room, sequence) = found.unwrap_or_else(|| {
            sequences.push(Vec::new());
            (capacity, sequences.len() - 1)
        });
        if rooms.get(&room).is_some_and(VecDeque::is_empty) {
            rooms.remove(&room);
        }
        sequences[sequence].push(*part);
        if room > part.length {
            rooms.entry(room - part.length).or_default().push_back(sequence);
        }
    }
    sequences
}

/// Finds the first sequence with room for a part in a segment tree, whose nodes hold the most room below them.
fn first_fit(parts: &[Part], capacity: usize) -> Vec<Vec<Part>> {
    let leaves = parts.len().next_power_of_two();
    let mut rooms = vec![capacity; 2 * leaves];
    let mut sequences: Vec<Vec<Part>> = Vec::new();
    for part in parts {
        let mut at = 1;
        while at < leaves {
            at = if rooms[2 * at] >= part.length { 2 * at } else { 2 * at + 1 };
        }
        // There are as many leaves as parts, so there is room at the first leaf without a part.
        let sequence = at - leaves;
        if sequence >= sequences.len() {
            sequences.push(Vec::new());
        }
        sequences[sequence].push(*part);
        rooms[at] -= part.length;
        while at > 1 {
            at /= 2;
            rooms[at] = rooms[2 * at].max(rooms[2 * at + 1]);
        }
    }
    sequences
}

/// Several examples in one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedExample {
    /// The tokens of all examples, one after the other.
    pub ids: Vec<u32>,
    /// Their weights as targets; 0 for the first token of each document.
    pub weights: Vec<f32>,
    /// The number of tokens of each document.
    pub lengths: Vec<usize>,
}

/// The sequence of these parts of examples; parts that do not exist are left out.
pub fn packed(examples: &[Example], parts: &[Part]) -> PackedExample {
    let mut sequence = PackedExample::default();
    for part in parts {
        let range = part.start..part.start.saturating_add(part.length);
        let Some(example) = examples.get(part.row) else { continue };
        let (Some(ids), Some(weights)) = (example.ids.get(range.clone()), example.weights.get(range)) else { continue };
        let start = sequence.weights.len();
        sequence.ids.extend_from_slice(ids);
        sequence.weights.extend_from_slice(weights);
        sequence.lengths.push(ids.len());
        if let Some(first) = sequence.weights.get_mut(start) {
            *first = 0.0;
        }
    }
    sequence
}
