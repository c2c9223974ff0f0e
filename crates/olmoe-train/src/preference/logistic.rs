//! The logistic function and its relatives, in f64, without the loss of digits or overflow.

use olmoe_tensor::elementary::{exp, exp_m1, ln, ln_1p};

/// `σ(z) = 1/(1 + e⁻ᶻ)`
pub(super) fn sigmoid(z: f64) -> f64 {
    // The exponential is of a number that is not positive.
    let e = exp(-z.abs());
    if z < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

/// `log σ(z)`
pub(super) fn log_sigmoid(z: f64) -> f64 {
    z.min(0.0) - ln_1p(exp(-z.abs()))
}

/// `log(1 − eˣ)` for `x < 0`.
pub(super) fn log_1m_exp(x: f64) -> f64 {
    // Near 0 the difference is what is small, elsewhere the exponential is.
    if x > -std::f64::consts::LN_2 { ln(-exp_m1(x)) } else { ln_1p(-exp(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_arguments() {
        assert_eq!((sigmoid(0.0), sigmoid(1e4), sigmoid(-1e4)), (0.5, 1.0, 0.0));
        assert_eq!((log_sigmoid(1e4), log_sigmoid(-1e4)), (0.0, -1e4));
        assert_eq!(log_sigmoid(0.0), -std::f64::consts::LN_2);
        for i in -300..=300 {
            let z = f64::from(i) * 0.1;
            let reference = 1.0 / (1.0 + (-z).exp());
            assert!((sigmoid(z) - reference).abs() <= 1e-15, "{z}");
            assert!((log_sigmoid(z) + (-z).exp().ln_1p()).abs() <= 1e-14 * (1.0 + z.abs()), "{z}");
            assert!((sigmoid(z) + sigmoid(-z) - 1.0).abs() <= 3e-16, "{z}");
        }
        for x in [-1e-12, -1e-3, -0.5, -0.69, -0.7, -2.0, -40.0f64] {
            let reference = if x > -0.1 { (-x.exp_m1()).ln() } else { (1.0 - x.exp()).ln() };
            assert!((log_1m_exp(x) - reference).abs() <= 1e-14 * reference.abs().max(1e-2), "{x}");
        }
        assert!(sigmoid(f64::NAN).is_nan() && log_sigmoid(f64::NAN).is_nan() && log_1m_exp(f64::NAN).is_nan());
    }
}
