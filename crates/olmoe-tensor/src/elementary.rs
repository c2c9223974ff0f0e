//! Exponential, logarithm, both near 0 and 1 as well, sine, cosine and integer powers in f64 with the same bits on every
//! machine. The functions of the system's C library may differ between systems in the last bit.

use std::f64::consts::{FRAC_2_PI, LN_2, LOG2_E, SQRT_2};

/// `ln 2` in two parts, the first with so few bits that its products with exponents are exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
/// `1.5 · 2⁵²`: adding it and subtracting it again rounds to the nearest integer.
const ROUNDS: f64 = 6_755_399_441_055_744.0;

/// `1 / n!`
const SERIES: [f64; 14] = {
    let (mut series, mut factorial, mut n) = ([1.0; 14], 1.0, 1);
    while n < series.len() {
        // 13! is below 2^53.
        factorial *= n as f64;
        series[n] = 1.0 / factorial;
        n += 1;
    }
    series
};
/// The exponential of a smaller number is 0; that of a number above `HIGHEST` is infinite.
const LOWEST: f64 = -708.0;
const HIGHEST: f64 = 709.0;
/// `π/2` in two parts, the first of 33 bits, so that its products with integers below 2²⁰ are exact.
const HALF_PI_HIGH: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
const HALF_PI_LOW: f64 = f64::from_bits(0x3dd0_b461_1a62_6331);

/// `eˣ`; 0 below −708, infinite above 709, NaN of NaN. `x = k·ln 2 + r` with `|r| ≤ ln 2 / 2`, `eʳ` by its series up to
/// `r¹³`, whose remainder is below 1e-17.
#[inline]
pub fn exp(x: f64) -> f64 {
    let inside = x.clamp(LOWEST, HIGHEST);
    // Its low bits are those of the integer k.
    let shifted = inside * LOG2_E + ROUNDS;
    let k = shifted - ROUNDS;
    let r = (inside - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = SERIES[13];
    for factor in SERIES[..13].iter().rev() {
        sum = sum * r + factor;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < LOWEST {
        0.0
    } else if x > HIGHEST {
        f64::INFINITY
    } else {
        sum * power
    }
}

/// Natural logarithm; −∞ of 0, NaN of negative numbers and of NaN. `x = m·2ᵉ` with `m` in [√½, √2);
/// `ln m = 2·atanh t`, `t = (m − 1)/(m + 1)`, by its series up to `t²¹`, whose remainder is below 1e-17.
pub fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    /// 2⁵⁴: makes a subnormal number a normal one.
    const LIFT: f64 = 18_014_398_509_481_984.0;
    if x < f64::MIN_POSITIVE {
        return match x {
            _ if x > 0.0 => ln(x * LIFT) - 54.0 * LN_2,
            _ if x < 0.0 => f64::NAN,
            _ => f64::NEG_INFINITY,
        };
    }
    if x.is_nan() || x == f64::INFINITY {
        return x;
    }
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & MANTISSA) | (1023 << 52));
    if m >= SQRT_2 {
        m *= 0.5;
        exponent += 1.0;
    }
    let t = (m - 1.0) / (m + 1.0);
    let square = t * t;
    let mut series = 1.0 / 21.0;
    for divisor in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / divisor;
    }
    exponent * LN_2 + 2.0 * t * series
}

/// `eˣ − 1` without the loss of digits near 0. What rounding makes of `u = eˣ` it makes of `ln u`, too, so the quotient of
/// `u − 1` and `ln u` is exact to a few roundings (Kahan).
pub fn exp_m1(x: f64) -> f64 {
    let u = exp(x);
    match u {
        _ if u == 1.0 => x,
        _ if u <= 0.0 || !u.is_finite() => u - 1.0,
        _ => (u - 1.0) * x / ln(u),
    }
}

/// `ln(1 + x)` without the loss of digits near 0: `ln u · x/(u − 1)` with `u = 1 + x` rounded (Kahan).
pub fn ln_1p(x: f64) -> f64 {
    let u = 1.0 + x;
    match u {
        _ if u == 1.0 => x,
        _ if u == f64::INFINITY => u,
        _ => ln(u) * x / (u - 1.0),
    }
}

/// `(sin x, cos x)` for `|x| ≤ 2²⁰`. `x = k·π/2 + r` with `|r| ≤ π/4`, where the series of the cosine up to `r¹⁶` and
/// of the sine up to `r¹⁷` leave less than 1e-17.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let k = x * FRAC_2_PI + ROUNDS - ROUNDS;
    let r = (x - k * HALF_PI_HIGH) - k * HALF_PI_LOW;
    // 1/n! of the even or the odd n below 18, the alternating signs with them.
    let series = |last: u32| {
        let mut sum = 0.0;
        let mut n = last;
        while n > 1 {
            sum = (1.0 - sum) * r * r / f64::from(n * (n - 1));
            n -= 2;
        }
        1.0 - sum
    };
    let (sin, cos) = (r * series(17), series(16));
    match k as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// `xⁿ` by repeated squaring; the relative error is about `n` roundings.
pub fn power(x: f64, n: u64) -> f64 {
    let (mut result, mut square, mut n) = (1.0, x, n);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    #[test]
    fn they_agree_with_those_of_the_system() {
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.003_531;
            let (own, system) = (exp(x), x.exp());
            assert!((own - system).abs() <= 6e-16 * system, "exp({x}) = {own:e}, not {system:e}");
            let x = 1.0 + f64::from(i) * 0.73;
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().max(1.0), "ln({x}) = {}, not {}", ln(x), x.ln());
        }
        for x in [0.5, 10.0, 88.7, 600.0, 709.0f64] {
            assert!((exp(x) - x.exp()).abs() <= 1e-15 * x.exp(), "exp({x})");
        }
        assert_eq!((exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(710.0), exp(f64::INFINITY)), (f64::INFINITY, f64::INFINITY));
        assert_eq!((ln(1.0), ln(0.0), ln(-0.0)), (0.0, f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan() && ln(f64::NAN).is_nan() && ln(-1.0).is_nan());
        let subnormal = f64::from_bits(12_345);
        // Two neighbours are 1.1e-13 apart there.
        let (own, system) = (ln(subnormal), subnormal.ln());
        assert!((own - system).abs() <= 4e-16 * system.abs(), "ln({subnormal:e}) = {own}, not {system}");
    }

    #[test]
    fn near_zero_and_one_they_agree_with_those_of_the_system() {
        for i in -400..400 {
            for x in [f64::from(i) * 0.05, f64::from(i) * 1e-3, f64::from(i) * 1e-12] {
                let (own, system) = (exp_m1(x), x.exp_m1());
                assert!((own - system).abs() <= 2e-15 * system.abs(), "exp_m1({x}) = {own:e}, not {system:e}");
                let (own, system) = (ln_1p(x), x.ln_1p());
                let agree = own.is_nan() && system.is_nan() || (own - system).abs() <= 2e-15 * system.abs();
                assert!(agree || own == system, "ln_1p({x}) = {own:e}, not {system:e}");
            }
        }
        assert_eq!((exp_m1(-800.0), exp_m1(800.0), exp_m1(-50.0)), (-1.0, f64::INFINITY, -1.0));
        assert_eq!((ln_1p(-1.0), ln_1p(f64::INFINITY)), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(exp_m1(f64::NAN).is_nan() && ln_1p(f64::NAN).is_nan() && ln_1p(-2.0).is_nan());
    }

    #[test]
    fn sines_cosines_and_powers_agree_with_those_of_the_system() {
        for i in 0..=100_000 {
            for x in [PI * f64::from(i) / 100_000.0, f64::from(i) * 10.485_3, -f64::from(i)] {
                let (sin, cos) = sin_cos(x);
                let (s, c) = x.sin_cos();
                assert!((cos - c).abs() <= 2.3e-16, "cos({x}) = {cos}, not {c}");
                assert!((sin - s).abs() <= 2.3e-16, "sin({x}) = {sin}, not {s}");
            }
        }
        assert_eq!((sin_cos(0.0), sin_cos(PI).1), ((0.0, 1.0), -1.0));
        for n in [0, 1, 2, 3, 10, 1000, 100_000] {
            for x in [0.9f64, 0.95, 0.999, 0.0] {
                let (own, system) = (power(x, n), x.powi(n as i32));
                assert!((own - system).abs() <= 1e-12 * system, "{x}^{n}: {own:e}, not {system:e}");
            }
        }
        assert_eq!(power(0.95, u64::MAX), 0.0);
    }
}
