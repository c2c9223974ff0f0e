//! RMSprop (Hinton, lecture 6 of "Neural Networks for Machine Learning"), in the order of operations of
//! `torch.optim.RMSprop` without momentum and without centring.
//!
//! ```text
//! g ← g + wd·p                        (L2 regularisation: not decoupled, unlike AdamW)
//! v ← α·v + (1 − α)·g²
//! p ← p − lr · g / (√v + ε)
//! ```

use super::adamw::{Leave, moved};
use super::lanes::lanes;
use crate::simd::{Simd, kernel};

/// The settings of a parameter group. Scalars are combined in f64 and then rounded, as torch does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the mean squared gradient; torch's default is 0.99.
    pub alpha: f64,
    /// ε, added to the root of the mean squared gradient; torch's default is 1e-8.
    pub eps: f64,
    /// Factor on the parameter in the gradient.
    pub weight_decay: f64,
    /// Where the gradient is 0, parameter and state stay as they are.
    pub selective: bool,
}

/// The scalars of a step.
#[derive(Clone, Copy)]
struct Scalars {
    grad_scale: f32,
    decay: f32,
    alpha: f32,
    one_minus_alpha: f32,
    eps: f32,
    minus_lr: f32,
    selective: bool,
    leave: Leave,
}

/// Sixteen parameters: new p, what is left of g, new v.
#[inline(always)]
fn update<S: Simd>(s: S, c: &Scalars, p: S::V, g: S::V, v: S::V) -> [S::V; 3] {
    let own = s.mul(g, s.splat(c.grad_scale));
    let g = s.fma(s.splat(c.decay), p, own);
    let new_v = s.fma(s.mul(s.splat(c.one_minus_alpha), g), g, s.mul(v, s.splat(c.alpha)));
    let u = s.div(s.mul(s.splat(c.minus_lr), g), s.add(s.sqrt(new_v), s.splat(c.eps)));
    let new = [s.add(p, u), u, new_v];
    let [p, u, v] = if c.selective { moved(s, own, new, [p, s.zero(), v]) } else { new };
    [p, if c.leave == Leave::Update { u } else { s.zero() }, v]
}

kernel! {
    fn step[s: S](c: &Scalars, p: &mut [f32], g: &mut [f32], v: &mut [f32]) {
        lanes!(s; read []; update [p, g, v]; write []; { update(s, c, p, g, v) });
    }
}

impl RmsProp {
    /// A step of the parameters `p` with gradients `g`, which count `grad_scale` times (the clipping coefficient), and state
    /// `v`, zeros before the first step. One pass on the calling thread; `leave` says what is in `g` afterwards.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn step(&self, grad_scale: f32, p: &mut [f32], g: &mut [f32], v: &mut [f32], leave: Leave) {
        let scalars = Scalars {
            grad_scale,
            decay: self.weight_decay as f32,
            alpha: self.alpha as f32,
            one_minus_alpha: (1.0 - self.alpha) as f32,
            eps: self.eps as f32,
            minus_lr: -self.lr as f32,
            selective: self.selective,
            leave,
        };
        self::step(&scalars, p, g, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa, relative_error, wide};

    const SETTINGS: RmsProp = RmsProp { lr: 4e-3, alpha: 0.99, eps: 1e-8, weight_decay: 0.1, selective: false };

    #[test]
    fn ten_steps_agree_with_the_formula() {
        let n = 77;
        for selective in [false, true] {
            let mut p = numbers(1, n);
            let mut v = vec![0.0; n];
            let (mut p64, mut v64) = (wide(&p), vec![0.0; n]);
            for t in 1..=10 {
                let mut g = numbers(1 + t, n);
                g.iter_mut().step_by(3).for_each(|g| *g = 0.0);
                let mut u64 = vec![0.0; n];
                let RmsProp { lr, alpha, eps, weight_decay, .. } = SETTINGS;
                for i in (0..n).filter(|i| !selective || g[*i] != 0.0) {
                    let g = 0.25 * f64::from(g[i]) + weight_decay * p64[i];
                    v64[i] = alpha * v64[i] + (1.0 - alpha) * g * g;
                    u64[i] = -lr * g / (v64[i].sqrt() + eps);
                    p64[i] += u64[i];
                }
                let leave = if t % 2 == 0 { Leave::Zero } else { Leave::Update };
                RmsProp { selective, ..SETTINGS }.step(0.25, &mut p, &mut g, &mut v, leave);
                match leave {
                    Leave::Zero => assert!(g.iter().all(|g| *g == 0.0)),
                    Leave::Update => assert!(relative_error(&g, &u64) < 1e-5),
                }
            }
            assert!(relative_error(&p, &p64) < 1e-5);
            assert!(relative_error(&v, &v64) < 1e-5);
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_in_any_pieces() {
        for (n, selective) in [(0, false), (1, true), (33, true), (5000, false), (5000, true)] {
            let run = |piece: usize| {
                let [mut p, mut g, mut v] = [1, 2, 3].map(|seed| numbers(seed, n));
                v.iter_mut().for_each(|v| *v = v.abs());
                g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
                for at in (0..n).step_by(piece) {
                    let range = at..(at + piece).min(n);
                    let [p, g, v] = [&mut p, &mut g, &mut v].map(|x| &mut x[range.clone()]);
                    RmsProp { selective, ..SETTINGS }.step(0.5, p, g, v, Leave::Update);
                }
                [p, g, v].concat()
            };
            let expected = on_every_isa(|| run(n.max(1)));
            assert_eq!(run(7), expected);
        }
    }
}
