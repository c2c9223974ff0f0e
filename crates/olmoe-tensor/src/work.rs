//! The division of grouped products among threads.
//!
//! Rows are sorted by group, and every factor of a product has panels of weights for each group. The rows of a group
//! are divided into tiles; a kernel multiplies one tile with one panel at a time. The work is ordered as the panels lie
//! in memory: factor after factor, group after group, panel after panel. Threads take consecutive shares of that order,
//! so that each thread streams weights without a break, with one row as with many.

use std::ops::Range;

use crate::threads::{num_threads, parallel};

/// The smallest share is the work of a thread divided by this number.
const LEAST_SHARE: usize = 12;

/// The products of a call, to be divided among threads.
pub(crate) struct GroupedWork<'a> {
    /// Where the rows of each group begin, and where the last group ends; a group may be empty.
    pub(crate) offsets: &'a [u32],
    /// The number of panels of each factor for one group.
    pub(crate) panels: &'a [usize],
    /// The number of tiles for a number of rows.
    pub(crate) tiles: fn(usize) -> usize,
    /// Most tiles of a piece: their rows stay in the second-level cache while the panels are read.
    pub(crate) piece_tiles: usize,
    /// Panels of a piece where a group has more than `piece_tiles` tiles: the panels stay in a cache while the rows are
    /// read.
    pub(crate) piece_panels: usize,
}

/// A piece of the work: some tiles of a group times some panels of a factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkPiece {
    pub(crate) factor: usize,
    pub(crate) group: usize,
    pub(crate) tiles: Range<usize>,
    pub(crate) panels: Range<usize>,
}

impl GroupedWork<'_> {
    /// Runs over all pieces, on all threads.
    pub(crate) fn run(&self, run: impl Fn(WorkPiece) + Sync) {
        let groups = 0..self.offsets.len().saturating_sub(1);
        let one: usize = groups.map(|group| self.cut(group).tiles).sum();
        let total = one * self.panels.iter().sum::<usize>();
        // Read once: if the number changed, the tasks would divide the work in different ways.
        let threads = num_threads();
        parallel(shares(total, threads).count(), |task| {
            if let Some(share) = shares(total, threads).nth(task) {
                self.pieces(share, &run);
            }
        });
    }

    fn cut(&self, group: usize) -> Cut {
        let tiles = (self.tiles)((self.offsets[group + 1] - self.offsets[group]) as usize);
        Cut { tiles, parts: tiles.div_ceil(self.piece_tiles) }
    }

    /// Runs over the pieces that begin in a share of the cost; the cost of a piece is its tiles times its panels.
    fn pieces(&self, share: Range<usize>, mut run: impl FnMut(WorkPiece)) {
        let mut before = 0;
        for (factor, panels) in self.panels.iter().copied().enumerate() {
            for group in 0..self.offsets.len() - 1 {
                let cut = self.cut(group);
                let cost = cut.tiles * panels;
                if cost > 0 && before < share.end && before + cost > share.start {
                    let share = share.start.saturating_sub(before)..(share.end - before).min(cost);
                    cut.pieces(share, panels, self.piece_panels, |tiles, panels| {
                        run(WorkPiece { factor, group, tiles, panels });
                    });
                }
                before += cost;
            }
        }
    }
}

/// How the tiles of a group are divided.
#[derive(Clone, Copy)]
struct Cut {
    tiles: usize,
    /// Parts of the tiles that are computed one after the other.
    parts: usize,
}

impl Cut {
    /// Runs over the pieces (tiles, panels) of a group that begin in a share of its cost.
    fn pieces(
        self,
        share: Range<usize>,
        panels: usize,
        piece_panels: usize,
        mut run: impl FnMut(Range<usize>, Range<usize>),
    ) {
        let Cut { tiles, parts } = self;
        if parts == 1 {
            let at = |cost: usize| cost.div_ceil(tiles);
            if at(share.start) < at(share.end) {
                run(0..tiles, at(share.start)..at(share.end));
            }
            return;
        }
        for first in (0..panels).step_by(piece_panels) {
            let columns = first..(first + piece_panels).min(panels);
            for part in 0..parts {
                let own = tiles * part / parts..tiles * (part + 1) / parts;
                if share.contains(&(first * tiles + own.start * columns.len())) {
                    run(own, columns.clone());
                }
            }
        }
    }
}

/// Divides work into shares that threads take one after the other: large ones first, so that weights stream without a
/// break, then smaller ones, so that no thread waits long at the end.
fn shares(total: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    let least = total.div_ceil(LEAST_SHARE * threads);
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = total - start;
        let share = if threads == 1 { rest } else { (rest * 2 / (3 * threads)).max(least).min(rest) };
        start += share;
        (share > 0).then(|| start - share..start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every division, each tile of each panel is in exactly one piece.
    #[test]
    fn every_tile_of_every_panel_is_in_one_piece() {
        let tiles = |rows: usize| rows.div_ceil(3);
        let cases: [(&[u32], &[usize]); 6] = [
            (&[0], &[4]),
            (&[0, 0, 0], &[4, 2]),
            (&[0, 1], &[1]),
            (&[0, 1, 1, 2, 40, 41], &[5, 1]),
            (&[0, 100], &[7, 7, 3]),
            (&[0, 9, 9, 12, 200], &[19, 0, 4]),
        ];
        for (offsets, panels) in cases {
            for (piece_tiles, piece_panels) in [(1, 1), (2, 3), (4, 8), (100, 4)] {
                let work = GroupedWork { offsets, panels, tiles, piece_tiles, piece_panels };
                let groups = offsets.len() - 1;
                let rows = |group: usize| (offsets[group + 1] - offsets[group]) as usize;
                let total: usize =
                    (0..groups).map(|group| tiles(rows(group))).sum::<usize>() * panels.iter().sum::<usize>();
                for threads in [1, 2, 3, 7] {
                    let mut seen = std::collections::HashSet::new();
                    let mut end = 0;
                    for share in shares(total, threads) {
                        assert_eq!(share.start, end);
                        end = share.end;
                        work.pieces(share, |piece| {
                            assert!(piece.tiles.len() <= piece_tiles && !piece.panels.is_empty(), "{piece:?}");
                            for tile in piece.tiles.clone() {
                                for panel in piece.panels.clone() {
                                    let new = seen.insert((piece.factor, piece.group, tile, panel));
                                    assert!(new && tile < tiles(rows(piece.group)) && panel < panels[piece.factor]);
                                }
                            }
                        });
                    }
                    assert_eq!((end, seen.len()), (total, total), "{offsets:?} {panels:?} {threads}");
                }
            }
        }
    }
}
