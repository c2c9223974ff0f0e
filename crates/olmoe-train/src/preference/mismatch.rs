//! Prompts with the answers of other rows: what KTO estimates the divergence from the reference by.

use super::error::PreferenceError;
use crate::names::names;

names! {
    "rule for mismatched answers";
    /// Which row's answer a prompt gets, within a block of rows.
    pub enum Mismatch {
        /// That of the row before, the first that of the last: trl 1.16's.
        Rotated = "rotated",
        /// The answers in reverse order: that of trl 0.9.6, which OLMoE's models were tuned with.
        Reversed = "reversed",
    }
}

/// The row whose answer each of `rows` rows is scored with, within consecutive blocks of `block` rows.
///
/// No row gets its own: where the middle row of an odd block would by reversal, it and the row before take the answers of
/// their next rows, so that each answer is still taken once; and a last block of one row is joined with the block before.
///
/// # Errors
/// [`PreferenceError::NoOther`] for fewer than two rows, or blocks of fewer.
pub fn mismatched(rows: usize, block: usize, rule: Mismatch) -> Result<Vec<usize>, PreferenceError> {
    if rows < 2 && rows != 0 || block < 2 {
        return Err(PreferenceError::NoOther { rows, block });
    }
    let mut answers = Vec::with_capacity(rows);
    while answers.len() < rows {
        let start = answers.len();
        let left = rows - start;
        let count = if left <= block || left == block.saturating_add(1) { left } else { block };
        answers.extend((0..count).map(|at| {
            start
                + match rule {
                    Mismatch::Rotated => (at + count - 1) % count,
                    Mismatch::Reversed if count % 2 == 1 && (at == count / 2 || at + 1 == count / 2) => at + 1,
                    Mismatch::Reversed => count - 1 - at,
                }
        }));
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_blocks_are_those_of_trl() {
        assert_eq!(mismatched(8, 4, Mismatch::Rotated).expect("rows"), [3, 0, 1, 2, 7, 4, 5, 6]);
        assert_eq!(mismatched(8, 4, Mismatch::Reversed).expect("rows"), [3, 2, 1, 0, 7, 6, 5, 4]);
        assert_eq!(mismatched(6, 4, Mismatch::Rotated).expect("rows"), [3, 0, 1, 2, 5, 4]);
    }

    #[test]
    fn no_row_has_its_own_answer_and_each_answer_is_taken_once() {
        for rule in Mismatch::ALL.iter().copied() {
            for rows in (0..40).filter(|rows| *rows != 1) {
                for block in 2..10 {
                    let mut answers = mismatched(rows, block, rule).expect("rows");
                    assert!(answers.iter().enumerate().all(|(row, answer)| row != *answer), "{rule} {rows} {block}");
                    answers.sort_unstable();
                    assert!(answers.into_iter().eq(0..rows), "{rule} {rows} {block}");
                }
            }
            assert_eq!(mismatched(1, 4, rule), Err(PreferenceError::NoOther { rows: 1, block: 4 }));
            assert_eq!(mismatched(4, 1, rule), Err(PreferenceError::NoOther { rows: 4, block: 1 }));
            assert_eq!(mismatched(5, usize::MAX, rule).expect("rows").len(), 5);
        }
    }
}
