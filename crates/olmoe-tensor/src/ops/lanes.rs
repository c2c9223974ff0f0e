//! The loops that operations share: over the lanes of slices, and over ranges of outputs on all threads.

use std::ops::Range;

use crate::simd::Simd;
use crate::threads::{Shared, parallel_ranges};

/// The least number of elements of a task, for which it is worth waking a thread.
pub(super) const GRAIN: usize = 16 << 10;

/// Runs a body over slices of the same length, sixteen numbers at a time, the last ones padded with zeros.
///
/// Inside the body the name of a slice stands for its vector. Slices are `read`, `update`d or only written (`write`);
/// the body ends in the array of new vectors: the updated ones, then the written ones.
macro_rules! lanes {
    ($s:ident; read [$($r:ident),*]; $body:block) => {{
        $(let $r = $r.as_chunks::<{ $crate::simd::LANES }>();)*
        let (blocks, tail) = $crate::ops::lanes::common([$(($r.0.len(), $r.1.len())),*]);
        for i in 0..blocks {
            $(let $r = $s.load(&$r.0[i]);)*
            $body
        }
        if tail > 0 {
            $(let $r = $s.load_partial($r.1);)*
            $body
        }
    }};
    ($s:ident; read [$($r:ident),*]; update [$($u:ident),*]; write [$($w:ident),*]; $body:block) => {{
        $(let $r = $r.as_chunks::<{ $crate::simd::LANES }>();)*
        $(let $u = $u.as_chunks_mut::<{ $crate::simd::LANES }>();)*
        $(let $w = $w.as_chunks_mut::<{ $crate::simd::LANES }>();)*
        let (blocks, tail) = $crate::ops::lanes::common([
            $(($r.0.len(), $r.1.len()),)* $(($u.0.len(), $u.1.len()),)* $(($w.0.len(), $w.1.len()),)*
        ]);
        for i in 0..blocks {
            let mut new = {
                $(let $r = $s.load(&$r.0[i]);)*
                $(let $u = $s.load(&$u.0[i]);)*
                $body
            }
            .into_iter();
            $($s.store(new.next().expect("a vector for each output"), &mut $u.0[i]);)*
            $($s.store(new.next().expect("a vector for each output"), &mut $w.0[i]);)*
        }
        if tail > 0 {
            let mut new = {
                $(let $r = $s.load_partial($r.1);)*
                $(let $u = $s.load_partial($u.1);)*
                $body
            }
            .into_iter();
            $($s.store_partial(new.next().expect("a vector for each output"), $u.1);)*
            $($s.store_partial(new.next().expect("a vector for each output"), $w.1);)*
        }
    }};
}
pub(super) use lanes;

/// The number of whole vectors and of remaining numbers, which is the same for all slices.
#[inline(always)]
pub(super) fn common<const N: usize>(sizes: [(usize, usize); N]) -> (usize, usize) {
    for size in &sizes[1..] {
        assert_eq!(*size, sizes[0], "slices of one operation have the same length");
    }
    sizes[0]
}

/// Panics unless all slices of an operation have the same length.
pub(super) fn same_length<const N: usize>(lengths: [usize; N]) {
    assert!(lengths.iter().all(|n| *n == lengths[0]), "slices of one operation have the same length, not {lengths:?}");
}

/// `Σ x²`: four independent sums, added in a fixed order.
#[inline(always)]
pub(super) fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<64>();
    let mut sums = [s.zero(); 4];
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks::<16>().0) {
            let x = s.load(x);
            *sum = s.fma(x, x, *sum);
        }
    }
    let mut total = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
    lanes!(s; read [rest]; { total = s.fma(rest, rest, total); });
    s.reduce_add(total)
}

/// Runs `run` over disjoint ranges that cover `0..len`, on all threads, each with its part of the outputs: in an output
/// of width `w` the range `a..b` has the numbers from `a · w` to `b · w`; only the last range may have fewer. The
/// lengths of the ranges are multiples of `grain`, except the last.
///
/// # Panics
/// When an output has not `len` times its width numbers.
pub(super) fn split<const N: usize>(
    len: usize,
    grain: usize,
    outputs: [(&mut [f32], usize); N],
    run: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) {
    let outputs = outputs.map(|(y, width)| {
        let numbers = y.len();
        assert_eq!(numbers.div_ceil(width.max(1)), if width > 0 { len } else { 0 }, "{len} ranges of {width} numbers");
        (Shared::new(y), width, numbers)
    });
    parallel_ranges(len, grain, |range| {
        let parts = outputs.each_ref().map(|(y, width, numbers)| {
            // SAFETY: the ranges of the tasks are disjoint, and the slices are borrowed until this function returns.
            unsafe { y.range(range.start * width..(range.end * width).min(*numbers)) }
        });
        run(range, parts);
    });
}

/// [`split`] for an elementwise operation; up to [`GRAIN`] numbers stay on the calling thread.
pub(super) fn split_numbers<const N: usize>(
    outputs: [&mut [f32]; N],
    run: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) {
    let len = outputs[0].len();
    if len <= GRAIN {
        return run(0..len, outputs);
    }
    split(len, GRAIN, outputs.map(|y| (y, 1)), run);
}

/// The grain of a [`split`] into rows of `width` numbers.
pub(super) fn row_grain(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}
