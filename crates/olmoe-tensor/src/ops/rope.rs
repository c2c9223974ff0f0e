//! Rotary position embedding, in halves (Su et al., arXiv 2104.09864; the pairing of GPT-NeoX and transformers).
//!
//! In each head of width `2h`, the pair `(x_j, x_{j+h})` of the token at position `p` turns by the angle `p·ω_j`,
//! `ω_j = θ^(−j/h)`: `y_j = x_j·cos − x_{j+h}·sin`, `y_{j+h} = x_{j+h}·cos + x_j·sin`. The backward pass turns back.
//!
//! T tokens, H heads, P positions, h half a head: x_t(H·2h), in place; tables cos_ph, sin_ph.
//!
//! Angles are computed as in transformers' `OlmoeRotaryEmbedding`: exponent, frequency and angle are each rounded to
//! f32. Cosine and sine of the rounded angle are computed in f64 and rounded to f32.

use super::lanes::{lanes, row_grain, split};
use crate::elementary::{exp, ln, sin_cos};
use crate::simd::kernel;
use crate::tensor::Tensor;

/// The cosines and sines of every position.
#[derive(Clone, Debug)]
pub struct RopeTables {
    cos_ph: Tensor,
    sin_ph: Tensor,
}

kernel! {
    /// Rotates every head of a row; with `back`, by the negative angle.
    fn turn[s: S](x: &mut [f32], cos: &[f32], sin: &[f32], back: bool) {
        let sign = s.splat(if back { -1.0 } else { 1.0 });
        for head in x.chunks_exact_mut(2 * cos.len()) {
            let (a, b) = head.split_at_mut(cos.len());
            lanes!(s; read [cos, sin]; update [a, b]; write []; {
                let sin = s.mul(sin, sign);
                let minus_b = s.sub(s.zero(), b);
                [s.fma(minus_b, sin, s.mul(a, cos)), s.fma(a, sin, s.mul(b, cos))]
            });
        }
    }
}

impl RopeTables {
    /// Bytes that the tables of [`RopeTables::new`] take.
    pub fn table_bytes(head_dim: usize, max_positions: usize) -> u64 {
        (max_positions as u64).saturating_mul(head_dim as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// Tables for the positions below `max_positions`, in heads `head_dim` wide with base `theta`.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0.
    pub fn new(head_dim: usize, theta: f32, max_positions: usize) -> RopeTables {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rotary heads have an even width, not {head_dim}");
        let half = head_dim / 2;
        let [mut cos_ph, mut sin_ph] = [(); 2].map(|_| Tensor::scratch(&[max_positions, half]));
        let frequency = |j: usize| {
            let exponent = (2 * j) as f32 / head_dim as f32;
            1.0 / exp(f64::from(exponent) * ln(f64::from(theta))) as f32
        };
        let outputs = [(&mut *cos_ph, half), (&mut *sin_ph, half)];
        split(max_positions, row_grain(100 * half), outputs, |range, [cos, sin]| {
            for j in 0..half {
                let frequency = frequency(j);
                for (i, position) in range.clone().enumerate() {
                    let angle = f64::from(position as f32 * frequency);
                    let (sine, cosine) = sin_cos(angle);
                    cos[i * half + j] = cosine as f32;
                    sin[i * half + j] = sine as f32;
                }
            }
        });
        RopeTables { cos_ph, sin_ph }
    }

    /// Positions in the tables.
    pub fn max_positions(&self) -> usize {
        self.cos_ph.rows()
    }

    /// Rotates each row of x_t(H·2h), which holds `heads` heads, by the angles of its position.
    ///
    /// # Panics
    /// When the shapes do not fit, or a position is not below [`RopeTables::max_positions`]: callers check lengths
    /// where they enter.
    pub fn apply(&self, x: &mut Tensor, heads: usize, positions: &[u32]) {
        self.turn(x, heads, positions, false);
    }

    /// Rotates by the negative angles: turns dy into dx, in place.
    ///
    /// # Panics
    /// As [`RopeTables::apply`].
    pub fn apply_inverse(&self, x: &mut Tensor, heads: usize, positions: &[u32]) {
        self.turn(x, heads, positions, true);
    }

    fn turn(&self, x: &mut Tensor, heads: usize, positions: &[u32], back: bool) {
        let (rows, width) = (x.rows(), x.cols());
        assert_eq!(width, heads * 2 * self.cos_ph.cols(), "numbers in a row of {heads} heads");
        assert_eq!(positions.len(), rows, "a position for each row");
        if width == 0 {
            return;
        }
        split(rows, row_grain(width), [(&mut *x, width)], |range, [x]| {
            for (x, position) in x.chunks_exact_mut(width).zip(&positions[range]) {
                let position = *position as usize;
                turn(x, self.cos_ph.row(position), self.sin_ph.row(position), back);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa_and_threads, relative_error, wide};

    /// The formula, in f64 throughout.
    fn naive(x: &[f64], heads: usize, head_dim: usize, positions: &[u32]) -> Vec<f64> {
        let half = head_dim / 2;
        let mut y = x.to_vec();
        for (y, p) in y.chunks_mut(heads * head_dim).zip(positions) {
            for head in y.chunks_mut(head_dim) {
                for j in 0..half {
                    let angle = f64::from(*p) * 10000f64.powf(-(2.0 * j as f64) / head_dim as f64);
                    let (a, b) = (head[j], head[half + j]);
                    head[j] = a * angle.cos() - b * angle.sin();
                    head[half + j] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        y
    }

    #[test]
    fn agrees_with_the_formula_and_its_differences() {
        let (heads, head_dim, positions) = (3, 22, [0, 1, 5, 1]);
        let n = positions.len() * heads * head_dim;
        let (x, dy) = (numbers(1, n), numbers(2, n));
        let rope = RopeTables::new(head_dim, 10000.0, 6);
        let shape = [positions.len(), heads * head_dim];
        let mut y = Tensor::new(&x, &shape);
        rope.apply(&mut y, heads, &positions);
        assert!(relative_error(&y, &naive(&wide(&x), heads, head_dim, &positions)) < 1e-6);
        let mut dx = Tensor::new(&dy, &shape);
        rope.apply_inverse(&mut dx, heads, &positions);
        let loss =
            |x: &[f64]| naive(x, heads, head_dim, &positions).iter().zip(&dy).map(|(y, g)| y * f64::from(*g)).sum();
        assert!(relative_error(&dx, &finite_differences(&wide(&x), loss)) < 1e-6);
    }

    #[test]
    fn there_and_back_at_far_positions() {
        let (heads, head_dim) = (16, 128);
        let positions: Vec<u32> = (0..40).map(|t| t * 97 % 4096).collect();
        let x = numbers(1, 40 * heads * head_dim);
        let rope = RopeTables::new(head_dim, 10000.0, 4096);
        let mut y = Tensor::new(&x, &[40, heads * head_dim]);
        rope.apply(&mut y, heads, &positions);
        // The f32 angle of a far position is off by up to 4096·2⁻²⁴, as in transformers.
        assert!(relative_error(&y, &naive(&wide(&x), heads, head_dim, &positions)) < 1e-4);
        rope.apply_inverse(&mut y, heads, &positions);
        assert!(relative_error(&y, &wide(&x)) < 1e-6);
    }

    /// The values of torch 2.15, of which transformers makes its frequencies:
    /// `inv = 1/(10000.0**(torch.arange(0,128,2,dtype=torch.int64).float()/128)); (inv*4095).cos()` and `.sin()`.
    #[test]
    fn tables_are_those_of_transformers() {
        let rope = RopeTables::new(128, 10000.0, 4096);
        let torch: [(usize, f32, f32); 7] = [
            (0, -0.065_975_994, -0.997_821_2),
            (1, -0.742_445_7, 0.669_906_2),
            (5, -0.711_437_34, 0.702_749_55),
            (17, -0.925_817_3, 0.377_971_38),
            (30, -0.361_771_37, -0.932_266_83),
            (41, 0.216_526_1, -0.976_276_8),
            (63, 0.890_258_85, 0.455_454_98),
        ];
        for (j, cos, sin) in torch {
            assert!((rope.cos_ph.row(4095)[j] - cos).abs() < 1.2e-7, "{j}");
            assert!((rope.sin_ph.row(4095)[j] - sin).abs() < 1.2e-7, "{j}");
        }
        assert_eq!((rope.cos_ph.row(0), rope.sin_ph.row(0)), (&[1.0; 64][..], &[0.0; 64][..]));
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_number_of_threads() {
        for (rows, heads, head_dim) in [(0, 2, 4), (1, 1, 2), (3, 5, 34), (50, 16, 128)] {
            let run = || {
                let rope = RopeTables::new(head_dim, 10000.0, 64);
                let positions: Vec<u32> = (0..rows as u32).rev().collect();
                let mut x = Tensor::new(&numbers(1, rows * heads * head_dim), &[rows, heads * head_dim]);
                rope.apply(&mut x, heads, &positions);
                let mut all = x.to_vec();
                rope.apply_inverse(&mut x, heads, &positions);
                all.extend(&x[..]);
                all
            };
            on_every_isa_and_threads(run);
        }
    }

    #[test]
    #[should_panic]
    fn positions_beyond_the_tables_panic() {
        RopeTables::new(4, 10000.0, 8).apply(&mut Tensor::zeros(&[1, 4]), 1, &[8]);
    }
}
