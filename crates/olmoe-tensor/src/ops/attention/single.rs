//! Products of a single query with keys and values, at the speed of memory.
//!
//! The chains are those of `gemm::micro` for one row. Keys and values are one stream, so what follows in memory is
//! fetched during the product, whether it belongs to this panel or the next; the prefetcher of the processor stops at
//! every page.

use crate::gemm::{Operand, PANEL_COLS};
use crate::quant::product::kernel::AHEAD;
use crate::simd::{LANES, Simd, fetch, kernel};

kernel! {
    /// `c[n] (+)= Σ_u a[u]·b[u, n]` for whole panels of `b` that begin `stride` units apart, as many as `c` has.
    pub(super) fn multiply_row[s: S](operand: Operand, a: &[f32], b: &[f32], stride: usize, c: &mut [f32], accumulate: bool) {
        for (c, panel) in c.chunks_exact_mut(PANEL_COLS).zip(b.chunks(stride)) {
            match operand {
                Operand::F32 => multiply_panel::<S, false>(s, a, panel, c, accumulate),
                Operand::Bf16 => multiply_panel::<S, true>(s, a, panel, c, accumulate),
            }
        }
    }
}

/// The same for one panel.
#[inline(always)]
fn multiply_panel<S: Simd, const BF16: bool>(s: S, a: &[f32], panel: &[f32], c: &mut [f32], accumulate: bool) {
    let (lo, hi) = c.split_at_mut(LANES);
    let (mut first, mut second) = if accumulate { (s.load(lo), s.load(hi)) } else { (s.zero(), s.zero()) };
    let units = panel.as_chunks::<PANEL_COLS>().0;
    for (a, unit) in a.iter().zip(&units[..a.len()]) {
        let ahead = unit.as_ptr().cast::<u8>().wrapping_add(AHEAD);
        fetch(ahead);
        fetch(ahead.wrapping_add(64));
        let (a, b, d) = (s.splat(*a), s.load(&unit[..LANES]), s.load(&unit[LANES..]));
        if BF16 {
            (first, second) = (s.bf16_dot(a, b, first), s.bf16_dot(a, d, second));
        } else {
            (first, second) = (s.fma(a, b, first), s.fma(a, d, second));
        }
    }
    s.store(first, lo);
    s.store(second, hi);
}

kernel! {
    /// Packs pairs of numbers, rounded to bf16, as the units of a row.
    pub(super) fn pack_row[s: S](x: &[f32], units: &mut [f32]) {
        for (x, units) in x.chunks(2 * LANES).zip(units.chunks_mut(LANES)) {
            let (lo, hi) = x.split_at(x.len().min(LANES));
            s.store_partial(s.bf16_pairs(s.load_partial(lo), s.load_partial(hi)), units);
        }
    }
}
