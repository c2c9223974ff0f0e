//! The experts that were chosen for an answer.

use std::fmt::Write;

use olmoe_analysis::ExpertCounts;
use olmoe_data::counted;

/// How many experts are named for each layer.
const SHOWN: usize = 4;

/// A row for each mixture-of-experts layer; None if nothing was counted.
pub(super) fn table(counts: &ExpertCounts) -> Option<String> {
    if counts.tokens() == 0 || counts.layers().is_empty() {
        return None;
    }
    let experts = counts.experts();
    let tokens = counted(counts.tokens(), "token");
    let mut table = format!("{tokens}, {} of {experts} experts each\n", counts.top_k());
    let _ = writeln!(table, "layer  evenness  chosen  busiest, with their share of the choices");
    for (at, layer) in counts.layers().iter().enumerate() {
        let used = format!("{}/{experts}", counts.used(at));
        // Writing to a string does not fail.
        let _ = write!(table, "{layer:>5}  {:>6.1} %  {used:>6}", 100.0 * counts.evenness(at));
        let shares = counts.shares_of_choices(at);
        for expert in counts.busiest(at).into_iter().take(SHOWN) {
            let _ = write!(table, "  {expert:>3} {:>5.1} %", 100.0 * shares[expert]);
        }
        table.push('\n');
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_evenness() {
        let mut counted = ExpertCounts::new(0..2, 4);
        assert_eq!(table(&counted), None);
        counted.add(1, [[0, 1].as_slice(), &[3, 2]]);
        counted.add(1, [[2, 3].as_slice(), &[3, 0]]);
        let expected = "2 tokens, 2 of 4 experts each\n\
            layer  evenness  chosen  busiest, with their share of the choices\n    \
            0   100.0 %     4/4    0  25.0 %    1  25.0 %    2  25.0 %    3  25.0 %\n    \
            1    75.0 %     3/4    3  50.0 %    0  25.0 %    2  25.0 %\n";
        assert_eq!(table(&counted).unwrap(), expected);
        // The layer before it is dense.
        let mut one = ExpertCounts::new([1], 4);
        one.add(1, [[3].as_slice()]);
        assert!(table(&one).unwrap().contains("    1     0.0 %     1/4    3 100.0 %\n"), "{:?}", table(&one));
    }
}
