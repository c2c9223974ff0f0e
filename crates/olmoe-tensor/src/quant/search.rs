//! The search for the scale and the minimum with the least squared error.
//!
//! Numbers `x` are stored as integers `q` between two limits and read as `d·q + m`. Sixteen blocks are fitted at a
//! time, one in each lane, so the result for a block does not depend on its neighbours. From each start of a list, the
//! search chooses the quants, solves for the `d` and `m` with the least squared error for those quants, rounds both as
//! they will be stored, chooses the quants again, and computes the squared error. The start with the least error is
//! refined a few more times in the same way.
//!
//! A column is the numbers at one place of the sixteen blocks. All functions here are inlined into one kernel and have
//! no closures over vectors: a closure that is not inlined is compiled without the instruction set of the kernel and
//! runs at a fiftieth of its speed.

use crate::simd::{LANES, Simd};

/// The numbers at one place of sixteen blocks.
pub(super) type Column = [f32; LANES];

/// Starts that are tried side by side, so that their sums overlap: the additions of a single sum wait for each other.
pub(super) const ABREAST: usize = 2;

/// Larger than every number that a block can hold, with a square that is far below infinity.
const LARGEST: f32 = 1e10;

/// The lowest and the highest quant.
#[derive(Clone, Copy)]
pub(super) struct Levels<V> {
    pub(super) lo: V,
    pub(super) hi: V,
}

/// Scale, minimum and the squared error with the nearest quants.
#[derive(Clone, Copy)]
pub(super) struct Fit<V> {
    pub(super) d: V,
    pub(super) m: V,
    pub(super) error: V,
}

/// Sums over the numbers of a block; `r = x − (d·q + m)`.
#[derive(Clone, Copy)]
pub(super) struct Moments<V> {
    pub(super) r: V,
    pub(super) q: V,
    pub(super) rq: V,
    pub(super) qq: V,
}

/// Scale, minimum and limits with which quants are chosen.
#[derive(Clone, Copy)]
pub(super) struct Grid<V> {
    d: V,
    m: V,
    inverse: V,
    shift: V,
}

impl<V: Copy> Grid<V> {
    #[inline(always)]
    pub(super) fn new<S: Simd<V = V>>(s: S, d: V, m: V) -> Grid<V> {
        let inverse = s.select_lt(s.zero(), abs(s, d), s.div(s.splat(1.0), d), s.zero());
        Grid { d, m, inverse, shift: s.mul(s.sub(s.zero(), m), inverse) }
    }

    /// The nearest quant; the lowest where the scale is so small that its inverse is infinite.
    #[inline(always)]
    pub(super) fn quant<S: Simd<V = V>>(&self, s: S, x: V, levels: Levels<V>) -> V {
        s.round(s.min(s.max(s.fma(x, self.inverse, self.shift), levels.lo), levels.hi))
    }

    /// `x − (d·q + m)`. The product of a stored scale and a quant is exact, so this is the error of what will be read.
    #[inline(always)]
    fn rest<S: Simd<V = V>>(&self, s: S, x: V, q: V) -> V {
        s.sub(x, s.fma(self.d, q, self.m))
    }
}

/// `|x|`
#[inline(always)]
pub(super) fn abs<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(x, s.sub(s.zero(), x))
}

/// The nearest f16; numbers beyond the largest f16 become the largest. NaN becomes a finite number.
#[inline(always)]
pub(super) fn round_f16<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.min(s.max(x, s.splat(-65504.0)), s.splat(65504.0));
    // Adding and subtracting a number whose last place is the wanted one rounds to it: 2^13 + 1 times x for the 11 bits
    // of a normal f16, and 3/4 for the subnormal ones, which are multiples of 2^-24.
    let high = s.mul(x, s.splat(8193.0));
    let normal = s.add(high, s.sub(x, high));
    let subnormal = s.sub(s.add(x, s.splat(0.75)), s.splat(0.75));
    s.select_lt(abs(s, x), s.splat(6.103_515_6e-5), subnormal, normal)
}

/// As [`round_f16`], but a scale that is not zero does not become zero: the smallest f16 has no larger error than zero.
#[inline(always)]
pub(super) fn round_scale<S: Simd>(s: S, x: S::V) -> S::V {
    let smallest = 2f32.powi(-24);
    let up = s.select_lt(s.zero(), x, s.splat(smallest), s.splat(-smallest));
    let tiny = s.select_lt(s.zero(), abs(s, x), up, s.zero());
    s.select_lt(abs(s, x), s.splat(smallest), tiny, round_f16(s, x))
}

/// The blocks of `LEN` numbers in `x`, at most sixteen, as columns. The lanes of missing blocks are zero.
#[inline(always)]
pub(super) fn columns<S: Simd, const LEN: usize>(s: S, x: &[[f32; LEN]], out: &mut [Column; LEN]) {
    // NaN and infinity are replaced by finite numbers, so that no sum sees them.
    let (lowest, largest) = (s.splat(-LARGEST), s.splat(LARGEST));
    for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut rows = [s.zero(); LANES];
        for (row, x) in rows.iter_mut().zip(x) {
            *row = s.min(s.max(s.load(&x[i * LANES..]), lowest), largest);
        }
        s.transpose(&mut rows);
        for (row, out) in rows.into_iter().zip(out) {
            s.store(row, out);
        }
    }
}

/// The least and the greatest number of each block.
#[inline(always)]
pub(super) fn extent<S: Simd>(s: S, x: &[Column]) -> (S::V, S::V) {
    let (mut least, mut greatest) = (s.splat(LARGEST), s.splat(-LARGEST));
    for x in x {
        let x = s.load(x);
        least = s.min(x, least);
        greatest = s.max(x, greatest);
    }
    (least, greatest)
}

/// The number of the greatest magnitude, with its sign.
#[inline(always)]
pub(super) fn peak<S: Simd>(s: S, x: &[Column]) -> S::V {
    let (least, greatest) = extent(s, x);
    s.select_lt(greatest, s.sub(s.zero(), least), least, greatest)
}

/// The squared errors of several scales and minima.
#[inline(always)]
pub(super) fn errors<S: Simd, const N: usize>(
    s: S,
    x: &[Column],
    grids: &[Grid<S::V>; N],
    levels: Levels<S::V>,
) -> [S::V; N] {
    let mut sums = [s.zero(); N];
    for x in x {
        let x = s.load(x);
        for (sum, grid) in sums.iter_mut().zip(grids) {
            let rest = grid.rest(s, x, grid.quant(s, x, levels));
            *sum = s.fma(rest, rest, *sum);
        }
    }
    sums
}

/// The sums from which several scales and minima are solved for.
#[inline(always)]
pub(super) fn moments<S: Simd, const N: usize>(
    s: S,
    x: &[Column],
    grids: &[Grid<S::V>; N],
    levels: Levels<S::V>,
) -> [Moments<S::V>; N] {
    let zero = s.zero();
    let mut sums = [Moments { r: zero, q: zero, rq: zero, qq: zero }; N];
    for x in x {
        let x = s.load(x);
        for (sum, grid) in sums.iter_mut().zip(grids) {
            let q = grid.quant(s, x, levels);
            let r = grid.rest(s, x, q);
            *sum = Moments { r: s.add(sum.r, r), q: s.add(sum.q, q), rq: s.fma(r, q, sum.rq), qq: s.fma(q, q, sum.qq) };
        }
    }
    sums
}

/// What minima a format can store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Minimum {
    /// None.
    Zero,
    /// Any f16.
    Half,
    /// Any f32 that is not above zero.
    NotAboveZero,
}

/// How the scale and the minimum of a block are searched for.
#[derive(Clone, Copy)]
pub(super) struct FitSearch<V> {
    pub(super) levels: Levels<V>,
    /// Whether the scale is rounded to f16; otherwise it is f32.
    pub(super) half_scale: bool,
    pub(super) minimum: Minimum,
    /// Whether scale and minimum are solved for from each start; otherwise each start is evaluated as it is.
    pub(super) solve: bool,
}

impl<V: Copy> FitSearch<V> {
    #[inline(always)]
    fn scale<S: Simd<V = V>>(&self, s: S, d: V) -> V {
        if self.half_scale { round_scale(s, d) } else { d }
    }

    #[inline(always)]
    fn minimum<S: Simd<V = V>>(&self, s: S, m: V) -> V {
        match self.minimum {
            Minimum::Zero => s.zero(),
            Minimum::Half => round_f16(s, m),
            Minimum::NotAboveZero => s.min(m, s.zero()),
        }
    }

    /// The best scale and minimum from the starts `(steps, shift)`: `d = width / steps` and `m = origin + shift·d`.
    #[inline(always)]
    pub(super) fn fit<S: Simd<V = V>>(
        &self,
        s: S,
        x: &[Column],
        width: V,
        origin: V,
        starts: &[(f32, f32)],
        rounds: usize,
    ) -> Fit<V> {
        let minimum = self.minimum(s, origin);
        let [error] = errors(s, x, &[Grid::new(s, s.zero(), minimum)], self.levels);
        let mut best = Fit { d: s.zero(), m: minimum, error };
        for starts in starts.as_chunks::<ABREAST>().0 {
            let mut grids = [Grid::new(s, s.zero(), minimum); ABREAST];
            for (grid, (steps, shift)) in grids.iter_mut().zip(starts) {
                let d = self.scale(s, s.mul(width, s.splat(1.0 / steps)));
                *grid = Grid::new(s, d, self.minimum(s, s.fma(d, s.splat(*shift), origin)));
            }
            let grids = if self.solve { self.solved(s, x, &grids) } else { grids };
            self.keep(s, x, &grids, &mut best);
        }
        for _ in 0..rounds {
            let grid = Grid::new(s, best.d, best.m);
            self.keep(s, x, &self.solved(s, x, &[grid]), &mut best);
        }
        best
    }

    /// The scales and minima with the least squared error for the quants of `grids`.
    #[inline(always)]
    fn solved<S: Simd<V = V>, const N: usize>(&self, s: S, x: &[Column], grids: &[Grid<V>; N]) -> [Grid<V>; N] {
        let sums = moments(s, x, grids, self.levels);
        let mut next = *grids;
        for ((next, grid), sums) in next.iter_mut().zip(grids).zip(sums) {
            // Least squares for both, of which only the minimum is kept and rounded; then least squares for the scale
            // with that minimum.
            let count = s.splat(x.len() as f32);
            let spread = s.sub(s.mul(count, sums.qq), s.mul(sums.q, sums.q));
            let both = s.div(s.sub(s.mul(sums.r, sums.qq), s.mul(sums.rq, sums.q)), spread);
            let alone = s.div(sums.r, count);
            let m = self.minimum(s, s.add(grid.m, s.select_lt(s.zero(), spread, both, alone)));
            let change = s.div(s.fma(s.sub(grid.m, m), sums.q, sums.rq), sums.qq);
            let d = self.scale(s, s.add(grid.d, s.select_lt(s.zero(), sums.qq, change, s.zero())));
            *next = Grid::new(s, d, m);
        }
        next
    }

    /// Replaces the best fit where the new one has a smaller error.
    #[inline(always)]
    fn keep<S: Simd<V = V>, const N: usize>(&self, s: S, x: &[Column], grids: &[Grid<V>; N], best: &mut Fit<V>) {
        for (grid, error) in grids.iter().zip(errors(s, x, grids, self.levels)) {
            best.d = s.select_lt(error, best.error, grid.d, best.d);
            best.m = s.select_lt(error, best.error, grid.m, best.m);
            best.error = s.min(error, best.error);
        }
    }
}

/// Starts that put the greatest magnitude at a number of steps: for each `(count, first, gap)`, `count` numbers of
/// steps from `first` on, `gap` apart.
pub(super) const fn peak_starts<const N: usize>(lists: &[(usize, f32, f32)]) -> [(f32, f32); N] {
    let mut starts = [(0.0, 0.0); N];
    let (mut list, mut n) = (0, 0);
    while list < lists.len() {
        let (count, first, gap) = lists[list];
        let mut i = 0;
        while i < count {
            starts[n] = (first + gap * i as f32, 0.0);
            n += 1;
            i += 1;
        }
        list += 1;
    }
    assert!(n == N && N.is_multiple_of(ABREAST));
    starts
}

/// Starts for a scale and a minimum: whole steps from the highest quant downwards, and `around` numbers of steps `gap`
/// apart, each with the least number, the greatest number or the middle of both fixed.
pub(super) const fn extent_starts<const N: usize>(highest: f32, around: usize, gap: f32) -> [(f32, f32); N] {
    assert!(N.is_multiple_of(ABREAST));
    let mut starts = [(0.0, 0.0); N];
    let mut n = 0;
    while n < N - 3 * around {
        starts[n] = (highest - n as f32, 0.0);
        n += 1;
    }
    let mut i = 0;
    while i < around {
        let beyond = gap * (i as f32 - 0.5 * (around - 1) as f32);
        starts[n] = (highest + beyond, 0.0);
        starts[n + 1] = (highest + beyond, 0.5 * beyond);
        starts[n + 2] = (highest + beyond, beyond);
        n += 3;
        i += 1;
    }
    starts
}

/// Writes the nearest quants plus `offset` to the bytes of the blocks, negative ones in two's complement.
#[inline(always)]
pub(super) fn write_quants<S: Simd, const LEN: usize>(
    s: S,
    x: &[Column],
    grid: &Grid<S::V>,
    levels: Levels<S::V>,
    offset: f32,
    first: usize,
    quants: &mut [[u8; LEN]; LANES],
) {
    // The last place of 1.5 · 2^23 is one, so the lowest bits of the sum are the integer.
    let whole = s.splat(12_582_912.0 + offset);
    for (i, x) in x.iter().enumerate() {
        let mut column = [0.0; LANES];
        s.store(s.add(grid.quant(s, s.load(x), levels), whole), &mut column);
        for (quants, q) in quants.iter_mut().zip(column) {
            quants[first + i] = q.to_bits() as u8;
        }
    }
}

/// The lanes of a vector.
#[inline(always)]
pub(super) fn lanes_of<S: Simd>(s: S, v: S::V) -> Column {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}
