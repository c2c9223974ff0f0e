//! Exponential, logarithm, cosine and whole powers in f64 with the same bits on every machine; those of the system may differ in the last one.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E, PI, SQRT_2};

/// `ln 2` in two parts, the first with so few bits that its products with exponents are exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
/// Adding and taking it away again rounds to whole numbers.
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
/// Below it the exponential is taken for 0.
const LOWEST: f64 = -708.0;

/// `eˣ` for `x ≤ 0`; 0 below −708. `x = k·ln 2 + r` with `|r| ≤ ln 2 / 2`, `eʳ` by its series up to `r¹³`, whose remainder
/// is below 1e-17.
#[inline]
pub fn exp(x: f64) -> f64 {
    let inside = x.max(LOWEST);
    // The low bits of it are those of the whole number k.
    let shifted = inside * LOG2_E + ROUNDS;
    let k = shifted - ROUNDS;
    let r = (inside - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = SERIES[13];
    for factor in SERIES[..13].iter().rev() {
        sum = sum * r + factor;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < LOWEST { 0.0 } else { sum * power }
}

/// Natural logarithm of a positive normal number. `x = m·2ᵉ` with `m` in [√½, √2); `ln m = 2·atanh t`, `t = (m − 1)/(m + 1)`,
/// by its series up to `t²¹`, whose remainder is below 1e-17.
pub fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
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

/// `cos x` for `0 ≤ x ≤ π`. Folded to a quarter of a circle and then to an eighth, where the series of the cosine up to
/// `x¹⁶` and of the sine up to `x¹⁷` leave less than 1e-17.
pub fn cos(x: f64) -> f64 {
    /// What `PI` lacks of π.
    const PI_LOW: f64 = f64::from_bits(0x3ca1_a626_3314_5c07);
    let (x, sign) = if x > FRAC_PI_2 { ((PI - x) + PI_LOW, -1.0) } else { (x, 1.0) };
    // 1/n! of the even or the odd n below 18, the alternating signs with them.
    let series = |x: f64, last: u32| {
        let mut sum = 0.0;
        let mut n = last;
        while n > 1 {
            sum = (1.0 - sum) * x * x / f64::from(n * (n - 1));
            n -= 2;
        }
        1.0 - sum
    };
    if x > FRAC_PI_4 {
        let y = (FRAC_PI_2 - x) + 0.5 * PI_LOW;
        sign * y * series(y, 17)
    } else {
        sign * series(x, 16)
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
        assert_eq!((exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn cosines_and_powers_agree_with_those_of_the_system() {
        for i in 0..=100_000 {
            let x = PI * f64::from(i) / 100_000.0;
            assert!((cos(x) - x.cos()).abs() <= 2.3e-16, "cos({x}) = {}, not {}", cos(x), x.cos());
        }
        assert_eq!((cos(0.0), cos(PI)), (1.0, -1.0));
        for n in [0, 1, 2, 3, 10, 1000, 100_000] {
            for x in [0.9f64, 0.95, 0.999, 0.0] {
                let (own, system) = (power(x, n), x.powi(n as i32));
                assert!((own - system).abs() <= 1e-12 * system, "{x}^{n}: {own:e}, not {system:e}");
            }
        }
        assert_eq!(power(0.95, u64::MAX), 0.0);
    }
}
