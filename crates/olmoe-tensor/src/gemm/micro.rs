//! The innermost loop: a tile of C in registers.
//!
//! `C[r, n] (+)= Σ_u A[u, r] · B[u, n]` over units `u`, for up to [`PANEL_ROWS`] rows of a packed left panel and the
//! [`PANEL_COLS`] columns of a packed right panel. Each number of C is one chain of fused multiply-adds in the order of
//! `u`, whatever the number of rows: that is what makes a row's bits independent of its batch.
//!
//! A unit of bf16 factors is two steps of the contraction, the odd one first. Where one instruction multiplies pairs of bf16
//! at full speed, left panels hold such pairs. Elsewhere they hold the rounded numbers as f32, the odd ones of a unit's rows
//! and then the even ones, and a unit is two multiply-adds, with the halves of the right panel's pairs moved into place
//! once for all rows. Both are the same chain.

#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Scalar, Simd, fetch};

use super::{Form, PANEL_COLS, PANEL_ROWS};

/// `C (+)= A·B` for one pair of panels.
///
/// Arguments: units, left panel, its rows, right panel, C, its row stride, columns of C (1..=32), whether C is added to,
/// what to fetch ahead.
pub(crate) type Kernel = unsafe fn(usize, *const u32, usize, *const u32, *mut f32, usize, usize, bool, Ahead);

/// How many bytes before their use the numbers of a right panel are fetched: more than a page, so that the hardware's own
/// prefetching, which stops at every page, finds the next one begun.
const AHEAD: usize = 6144;

/// Memory to bring into the second-level cache during a product, some lines with every few units. The hardware's own
/// prefetching stops at every 4 KiB page, so panels that come from memory would stall the loop there.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// The product's own right panel, and no more: it is read but once.
    within: bool,
    left: *const u8,
    /// Bytes further on for each unit.
    left_step: usize,
    right: *const u8,
    right_step: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a unit of a right panel.
const UNIT_BYTES: usize = PANEL_COLS * size_of::<u32>();

/// Brings in a tile of C: `rows` rows of one right panel's columns.
#[inline(always)]
pub(super) fn fetch_tile(c: *const f32, rows: usize, ldc: usize) {
    for r in 0..rows {
        let at = c.wrapping_add(r * ldc).cast::<u8>();
        fetch(at);
        fetch(at.wrapping_add(64));
    }
}

impl Ahead {
    /// Nothing more than what is at hand.
    pub(crate) fn nothing(at: *const u32) -> Ahead {
        Ahead { within: false, left: at.cast(), left_step: 0, right: at.cast(), right_step: 0 }
    }

    /// What the product itself will need of the right panel at `panel`, and after its end what lies behind it.
    pub(super) fn within(panel: *const u32) -> Ahead {
        Ahead { within: true, ..Ahead::nothing(panel) }
    }

    /// Part `part` of `parts` of `units` units of the right panel at `panel`, in a product of `steps` times as many units.
    pub(super) fn right(panel: *const u32, units: usize, steps: usize, part: usize, parts: usize) -> Ahead {
        let right = panel.cast::<u8>().wrapping_add(units * UNIT_BYTES * part / parts);
        Ahead { right, right_step: UNIT_BYTES.div_ceil(parts * steps), ..Ahead::nothing(panel) }
    }

    /// And the left panel of `words` words a unit at `panel`.
    pub(super) fn and_left(self, panel: *const u32, words: usize) -> Ahead {
        Ahead { left: panel.cast(), left_step: words * size_of::<u32>(), ..self }
    }

    /// Part `part` of `parts` of what is to be fetched during `units` units.
    #[inline(always)]
    fn part(self, units: usize, part: usize, parts: usize) -> Ahead {
        let (left_step, right_step) = (self.left_step.div_ceil(parts), self.right_step.div_ceil(parts));
        Ahead {
            left: self.left.wrapping_add(units * left_step * part),
            left_step,
            right: self.right.wrapping_add(units * right_step * part),
            right_step,
            ..self
        }
    }

    /// A line of the left panel and one or two of the right one, for the next `units`; the hardware follows with their
    /// neighbours.
    #[inline(always)]
    fn fetch(&mut self, units: usize) {
        fetch(self.left);
        fetch(self.right);
        if units > 1 {
            fetch(self.right.wrapping_add(LINE));
        }
        self.left = self.left.wrapping_add(self.left_step * units);
        self.right = self.right.wrapping_add(self.right_step * units);
    }
}

/// How a unit is multiplied: in one step, or in several with other parts of the words of the right panel.
trait Product: 'static {
    /// Steps of a unit, and words of it for each row of a left panel.
    const STEPS: usize;
    /// Units between two fetches: each takes the place of a load, so short units must not have one each.
    const FETCH_UNITS: usize;

    /// What step `step` takes of words of the right panel.
    fn right<S: Simd>(s: S, words: S::V, step: usize) -> S::V;

    /// `c` and the product of a step.
    ///
    /// # Safety
    /// As [`Simd::bf16_pair_dot`].
    unsafe fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

/// One number.
struct F32;
impl Product for F32 {
    const STEPS: usize = 1;
    const FETCH_UNITS: usize = 4;

    #[inline(always)]
    fn right<S: Simd>(_: S, words: S::V, _: usize) -> S::V {
        words
    }

    #[inline(always)]
    unsafe fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

/// A pair of bf16; by one instruction only where `FAST`, which a set without one must not be asked for.
struct Bf16Pair<const FAST: bool>;
impl<const FAST: bool> Product for Bf16Pair<FAST> {
    const STEPS: usize = 1;
    const FETCH_UNITS: usize = 4;

    #[inline(always)]
    fn right<S: Simd>(_: S, words: S::V, _: usize) -> S::V {
        words
    }

    #[inline(always)]
    unsafe fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: by the caller's promise.
        if FAST { unsafe { s.bf16_pair_dot(a, b, c) } } else { s.bf16_dot(a, b, c) }
    }
}

/// A pair of bf16, of which the left ones are f32 already: first the odd numbers, then the even ones.
struct Bf16Halves;
impl Product for Bf16Halves {
    const STEPS: usize = 2;
    const FETCH_UNITS: usize = 1;

    #[inline(always)]
    fn right<S: Simd>(s: S, words: S::V, step: usize) -> S::V {
        if step == 0 { s.bf16_odd(words) } else { s.bf16_even(words) }
    }

    #[inline(always)]
    unsafe fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

/// Adds the products of a unit to a tile: `a` are the unit's words of a left panel of `a_rows` rows, `b` those of the tile's
/// columns in a right panel.
///
/// # Safety
/// `a` and `b` hold what the tile reads; the rest as [`Product::mul_add`].
#[inline(always)]
unsafe fn unit<S: Simd, P: Product, const R: usize, const C: usize>(
    s: S,
    a: *const u32,
    a_rows: usize,
    b: *const u32,
    acc: &mut [[S::V; C]; R],
) {
    let mut b = b.cast::<f32>();
    // SAFETY: by the caller's promise.
    unsafe {
        for step in 0..P::STEPS {
            if step > 0 {
                // Loaded once more: there is no register to keep the words in.
                b = s.again(b);
            }
            let mut right = [s.zero(); C];
            for v in 0..C {
                right[v] = P::right(s, s.load_ptr(b.add(v * LANES)), step);
            }
            for r in 0..R {
                let left = s.splat_ptr(a.add(step * a_rows + r));
                for v in 0..C {
                    acc[r][v] = P::mul_add(s, left, right[v], acc[r][v]);
                }
            }
        }
    }
}

/// A tile of `R` rows of a left panel of `a_rows` and `C` vectors of columns of a right one of [`PANEL_COLS`].
///
/// # Safety
/// `a`, `b` and `c` hold what the shape says; `cols <= C * LANES`.
#[inline(always)]
unsafe fn tile<S: Simd, P: Product, const R: usize, const C: usize>(
    s: S,
    units: usize,
    a: *const u32,
    a_rows: usize,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    cols: usize,
    accumulate: bool,
    mut ahead: Ahead,
) {
    // SAFETY: all offsets are inside the panels and the tile of C, by the caller's promise.
    unsafe {
        let whole = cols == C * LANES;
        let mut acc = [[s.zero(); C]; R];
        if accumulate {
            for r in 0..R {
                for v in 0..C {
                    let at = c.add(r * ldc + v * LANES);
                    acc[r][v] = if whole { s.load_ptr(at) } else { s.load_partial(rest(c, r * ldc, v, cols)) };
                }
            }
        }
        let (mut a, mut b) = (a, b);
        let mut left = units;
        if ahead.within {
            for _ in 0..units {
                let next = b.cast::<u8>().wrapping_add(AHEAD);
                fetch(next);
                fetch(next.wrapping_add(LINE));
                unit::<_, P, R, C>(s, a, a_rows, b, &mut acc);
                a = a.add(a_rows * P::STEPS);
                b = b.add(PANEL_COLS);
            }
            left = 0;
        }
        while left >= P::FETCH_UNITS {
            ahead.fetch(P::FETCH_UNITS);
            for _ in 0..P::FETCH_UNITS {
                unit::<_, P, R, C>(s, a, a_rows, b, &mut acc);
                a = a.add(a_rows * P::STEPS);
                b = b.add(PANEL_COLS);
            }
            left -= P::FETCH_UNITS;
        }
        for _ in 0..left {
            unit::<_, P, R, C>(s, a, a_rows, b, &mut acc);
            a = a.add(a_rows * P::STEPS);
            b = b.add(PANEL_COLS);
        }
        for r in 0..R {
            for v in 0..C {
                if whole {
                    s.store_ptr(acc[r][v], c.add(r * ldc + v * LANES));
                } else {
                    s.store_partial(acc[r][v], rest(c, r * ldc, v, cols));
                }
            }
        }
    }
}

/// The columns of a row that vector `v` covers: the last may be short or empty.
///
/// # Safety
/// `cols` writable numbers at `c + row`.
#[inline(always)]
unsafe fn rest<'a>(c: *mut f32, row: usize, v: usize, cols: usize) -> &'a mut [f32] {
    let start = (v * LANES).min(cols);
    let end = ((v + 1) * LANES).min(cols);
    // SAFETY: inside the row.
    unsafe { std::slice::from_raw_parts_mut(c.add(row + start), end - start) }
}

/// All rows and columns of a panel pair, by tiles of few vectors: six sums, one of B and one of A. With AVX2 these are 12,
/// 2 and 1 of 16 registers (a vector is two), with NEON 24, 4 and 1 of 32. A row or two take all columns at once, so that
/// the right panel is read once.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn narrow<S: Simd, P: Product>(
    s: S,
    units: usize,
    a: *const u32,
    rows: usize,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: as promised, narrowed to parts of the panels and of the tile of C.
    unsafe {
        match rows {
            1 => return tile::<_, P, 1, 2>(s, units, a, rows, b, c, ldc, cols, accumulate, ahead),
            2 => return tile::<_, P, 2, 2>(s, units, a, rows, b, c, ldc, cols, accumulate, ahead),
            _ => {}
        }
        // Each tile fetches its part.
        let (tiles, mut tile_number) = (cols.div_ceil(LANES) * rows.div_ceil(NARROW_ROWS), 0);
        for column in (0..cols).step_by(LANES) {
            let width = (cols - column).min(LANES);
            let mut row = 0;
            while row < rows {
                // Even parts, so that no tile is left with a row or two.
                let count = (rows - row).div_ceil((rows - row).div_ceil(NARROW_ROWS));
                let (a, b, c) = (a.add(row), b.add(column), c.add(row * ldc + column));
                let ahead = ahead.part(units, tile_number, tiles);
                match count {
                    1 => tile::<_, P, 1, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                    2 => tile::<_, P, 2, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                    3 => tile::<_, P, 3, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                    4 => tile::<_, P, 4, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                    5 => tile::<_, P, 5, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                    _ => tile::<_, P, NARROW_ROWS, 1>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),
                }
                row += count;
                tile_number += 1;
            }
        }
    }
}

/// Most rows of a tile of [`narrow`].
const NARROW_ROWS: usize = 6;

/// [`narrow`] on a set whose vectors are several registers.
macro_rules! narrow {
    ($name:ident, $token:ident, $features:literal) => {
        /// # Safety
        /// As [`tile`]; the processor has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<P: Product>(
            units: usize,
            a: *const u32,
            rows: usize,
            b: *const u32,
            c: *mut f32,
            ldc: usize,
            cols: usize,
            accumulate: bool,
            ahead: Ahead,
        ) {
            // SAFETY: this set of kernels is handed out only where the processor has its features; the rest as promised.
            unsafe { narrow::<_, P>($token::assume(), units, a, rows, b, c, ldc, cols, accumulate, ahead) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
narrow!(avx2, Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
narrow!(neon, Neon, "neon");

/// The scalar tile: one row at a time.
///
/// # Safety
/// As [`tile`].
unsafe fn scalar<P: Product>(
    units: usize,
    a: *const u32,
    rows: usize,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    let s = Scalar::new();
    for row in 0..rows {
        // SAFETY: the caller's panels and tile of C, narrowed to a row.
        unsafe { tile::<_, P, 1, 2>(s, units, a.add(row), rows, b, c.add(row * ldc), ldc, cols, accumulate, ahead) }
    }
}

/// 32 registers: 24 sums, 2 of B, 1 of A. The number of rows is a constant, so all offsets are too.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($name:ident, $features:literal) => {
        /// # Safety
        /// As [`tile`], `rows == R`; the processor has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<P: Product, const R: usize>(
            units: usize,
            a: *const u32,
            rows: usize,
            b: *const u32,
            c: *mut f32,
            ldc: usize,
            cols: usize,
            accumulate: bool,
            ahead: Ahead,
        ) {
            debug_assert_eq!(rows, R);
            // SAFETY: this set of kernels is handed out only where the processor has its features; the rest as promised.
            unsafe { tile::<_, P, R, 2>(Avx512::assume(), units, a, R, b, c, ldc, cols, accumulate, ahead) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
avx512!(avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma");
#[cfg(target_arch = "x86_64")]
avx512!(avx512_bf16, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma");

/// The kernels of an instruction set and form of the left panels.
#[derive(Clone, Copy)]
pub(crate) struct Kernels(&'static [Kernel; PANEL_ROWS + 1]);

/// Whether tiles are so small that moving the halves of bf16 pairs into place takes a good part of their time.
pub(crate) fn widening_pays() -> bool {
    !Isa::current().is_wide()
}

impl Kernels {
    /// The kernel for 1..=12 rows.
    #[inline(always)]
    pub(crate) fn of(self, rows: usize) -> Kernel {
        self.0[rows]
    }
}

/// The kernels on the current instruction set for left panels of a form.
pub(crate) fn kernels(left: Form) -> Kernels {
    #[cfg(target_arch = "x86_64")]
    macro_rules! by_rows {
        ($name:ident, $product:ty) => {
            &[
                $name::<$product, 1> as Kernel,
                $name::<$product, 1>,
                $name::<$product, 2>,
                $name::<$product, 3>,
                $name::<$product, 4>,
                $name::<$product, 5>,
                $name::<$product, 6>,
                $name::<$product, 7>,
                $name::<$product, 8>,
                $name::<$product, 9>,
                $name::<$product, 10>,
                $name::<$product, 11>,
                $name::<$product, 12>,
            ]
        };
    }
    fn pick<P: Product>() -> &'static [Kernel; PANEL_ROWS + 1] {
        match Isa::current() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) | Isa::Avx512Bf16(_) => by_rows!(avx512, P),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) | Isa::AvxVnni(_) => &[avx2::<P>; PANEL_ROWS + 1],
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => &[neon::<P>; PANEL_ROWS + 1],
            Isa::Scalar(_) => &[scalar::<P>; PANEL_ROWS + 1],
        }
    }
    let by_rows: &'static [Kernel; PANEL_ROWS + 1] = match (left, Isa::current()) {
        (Form::F32, _) => pick::<F32>(),
        (Form::Bf16Halves, _) => pick::<Bf16Halves>(),
        #[cfg(target_arch = "x86_64")]
        (Form::Bf16Pairs, Isa::Avx512Bf16(_)) => by_rows!(avx512_bf16, Bf16Pair<true>),
        // Packed before the instruction set was changed.
        (Form::Bf16Pairs, _) => &[scalar::<Bf16Pair<false>>; PANEL_ROWS + 1],
    };
    Kernels(by_rows)
}
