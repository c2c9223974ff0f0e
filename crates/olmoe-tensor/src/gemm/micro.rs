//! The innermost loop: a tile of C in registers.
//!
//! `C[r, n] (+)= Σ_u A[u, r] · B[u, n]` over units `u`, for up to [`PANEL_ROWS`] rows of a packed left panel and the
//! [`PANEL_COLS`] columns of a packed right panel. Each number of C is one chain of fused multiply-adds in the order of
//! `u`, whatever the number of rows: that is what makes a row's bits independent of its batch.

use crate::simd::{Avx2, Avx512, Isa, LANES, Scalar, Simd};

use super::{Operand, PANEL_COLS, PANEL_ROWS};

/// `C (+)= A·B` for one pair of panels.
///
/// Arguments: units, left panel, its rows, right panel, C, its row stride, columns of C (1..=32), whether C is added to,
/// what to fetch ahead.
pub(crate) type Kernel = unsafe fn(usize, *const u32, usize, *const u32, *mut f32, usize, usize, bool, Ahead);

/// How many bytes before their use the numbers of a right panel are fetched: more than a page, so that the hardware's own
/// prefetching, which stops at every page, finds the next one begun.
const AHEAD: usize = 6144;

/// Memory to bring into the second-level cache during a product, so many bytes further with each unit. The hardware's own
/// prefetching stops at every 4 KiB page, so panels that come from memory would stall the loop there.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    left: *const u8,
    left_step: usize,
    right: *const u8,
    right_step: usize,
}

/// Asks for a line of memory in the second-level cache.
#[inline(always)]
pub(super) fn fetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
}

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
        Ahead { left: at.cast(), left_step: 0, right: at.cast(), right_step: 0 }
    }

    /// What the product itself will need of the right panel at `panel`, and after its end what lies behind it.
    pub(super) fn within(panel: *const u32) -> Ahead {
        let right = panel.cast::<u8>().wrapping_add(AHEAD);
        // A unit is two lines.
        let step = PANEL_COLS * size_of::<u32>();
        Ahead { left: right.wrapping_add(step / 2), left_step: step, right, right_step: step }
    }

    /// Part `part` of `parts` of `units` units of the right panel at `panel`.
    pub(super) fn right(panel: *const u32, units: usize, part: usize, parts: usize) -> Ahead {
        let bytes = PANEL_COLS * size_of::<u32>();
        let right = panel.cast::<u8>().wrapping_add(units * bytes * part / parts);
        Ahead { left: right, left_step: 0, right, right_step: bytes.div_ceil(parts) }
    }

    /// And the left panel of `rows` rows at `panel`, when there are several.
    pub(super) fn and_left(self, panel: *const u32, rows: usize) -> Ahead {
        Ahead { left: panel.cast(), left_step: rows * size_of::<u32>(), ..self }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        fetch(self.left);
        fetch(self.right);
        self.left = self.left.wrapping_add(self.left_step);
        self.right = self.right.wrapping_add(self.right_step);
    }
}

/// How a unit is multiplied: one f32, or two bf16 at once.
trait Product: 'static {
    fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

struct F32;
impl Product for F32 {
    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

struct Bf16;
impl Product for Bf16 {
    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.bf16_dot(a, b, c)
    }
}

/// A tile of `R` rows and `C` vectors of columns, `a_rows` units apart in A and [`PANEL_COLS`] in B.
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
        for _ in 0..units {
            ahead.fetch();
            let mut right = [s.zero(); C];
            for v in 0..C {
                right[v] = s.load_ptr(b.add(v * LANES).cast());
            }
            for r in 0..R {
                let left = s.splat_ptr(a.add(r));
                for v in 0..C {
                    acc[r][v] = P::mul_add(s, left, right[v], acc[r][v]);
                }
            }
            a = a.add(a_rows);
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

/// All rows and columns of a panel pair by tiles of at most `R` rows (picked by `tiles`) and `C` vectors.
macro_rules! by_tiles {
    ($name:ident, $features:literal, $isa:ty, $columns:literal, [$($rows:literal),*], $most:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<P: Product>(
            units: usize, a: *const u32, rows: usize, b: *const u32, c: *mut f32, ldc: usize, cols: usize, accumulate: bool, ahead: Ahead,
        ) {
            // SAFETY: this set of kernels is handed out only where the processor has its features.
            let s = unsafe { <$isa>::assume() };
            let mut column = 0;
            while column < cols {
                let width = (cols - column).min($columns * LANES);
                let mut row = 0;
                while row < rows {
                    // Even parts, so that no tile is left with a row or two.
                    let count = (rows - row).div_ceil((rows - row).div_ceil($most));
                    // SAFETY: the caller's panels and tile of C, narrowed.
                    unsafe {
                        let (a, b, c) = (a.add(row), b.add(column), c.add(row * ldc + column));
                        match count {
                            $($rows => tile::<_, P, $rows, $columns>(s, units, a, rows, b, c, ldc, width, accumulate, ahead),)*
                            _ => unreachable!("a tile has 1..={} rows", $most),
                        }
                    }
                    row += count;
                }
                column += $columns * LANES;
            }
        }
    };
}

// 16 registers: 12 sums (each vector is two), 2 of B, 1 of A.
by_tiles!(avx2, "avx2,fma", Avx2, 1, [1, 2, 3, 4, 5, 6], 6);

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
    for row in 0..rows {
        // SAFETY: the caller's panels and tile of C, narrowed to a row.
        unsafe {
            tile::<_, P, 1, 2>(
                Scalar::new(),
                units,
                a.add(row),
                rows,
                b,
                c.add(row * ldc),
                ldc,
                cols,
                accumulate,
                ahead,
            );
        }
    }
}

/// 32 registers: 28 sums, 2 of B, 1 of A. The number of rows is a constant, so all offsets are too.
///
/// # Safety
/// As [`tile`], `rows == R`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn avx512<P: Product, const R: usize>(
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

/// The kernels for 1..=14 rows on the current instruction set.
pub(crate) fn kernels(operand: Operand) -> [Kernel; PANEL_ROWS + 1] {
    fn pick<P: Product>() -> [Kernel; PANEL_ROWS + 1] {
        match Isa::current() {
            Isa::Avx512(_) => [
                avx512::<P, 1>,
                avx512::<P, 1>,
                avx512::<P, 2>,
                avx512::<P, 3>,
                avx512::<P, 4>,
                avx512::<P, 5>,
                avx512::<P, 6>,
                avx512::<P, 7>,
                avx512::<P, 8>,
                avx512::<P, 9>,
                avx512::<P, 10>,
                avx512::<P, 11>,
                avx512::<P, 12>,
                avx512::<P, 13>,
                avx512::<P, 14>,
            ],
            Isa::Avx2(_) => [avx2::<P>; PANEL_ROWS + 1],
            Isa::Scalar(_) => [scalar::<P>; PANEL_ROWS + 1],
        }
    }
    match operand {
        Operand::F32 => pick::<F32>(),
        Operand::Bf16 => pick::<Bf16>(),
    }
}
