//! LionW (Chen et al., arXiv 2302.06675, with decoupled weight decay), in the order of operations of OLMo's optimizer.
//!
//! ```text
//! p ← p·(1 − lr·wd)
//! u = β₁·m + (1 − β₁)·g
//! p ← p − lr·sign(u)
//! m ← β₂·m + (1 − β₂)·g
//! ```

use super::adamw::{Leave, moved};
use super::lanes::lanes;
use crate::simd::{Simd, kernel};

/// The settings of a parameter group. Scalars are combined in f64 and then rounded, as torch does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Weight of the running mean of the gradient in the update.
    pub beta1: f64,
    /// Decay of the running mean of the gradient.
    pub beta2: f64,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f64,
    /// Where the gradient is 0, parameter and state are not changed.
    pub selective: bool,
}

/// The scalars of a step.
#[derive(Clone, Copy)]
struct LionWScalars {
    grad_scale: f32,
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    minus_lr: f32,
    selective: bool,
    leave: Leave,
}

/// A step of sixteen parameters: the new p, what is written to g, the new m.
#[inline(always)]
fn update<S: Simd>(s: S, c: &LionWScalars, p: S::V, g: S::V, m: S::V) -> [S::V; 3] {
    let g = s.mul(g, s.splat(c.grad_scale));
    let u = s.add(s.mul(m, s.splat(c.beta1)), s.mul(g, s.splat(c.one_minus_beta1)));
    // 0 has the sign 0, which is not that of IEEE 754.
    let negative = s.select_lt(u, s.zero(), s.splat(-1.0), s.zero());
    let sign = s.select_lt(s.zero(), u, s.splat(1.0), negative);
    let new = [
        s.fma(sign, s.splat(c.minus_lr), s.mul(p, s.splat(c.decay))),
        u,
        s.fma(s.splat(c.one_minus_beta2), g, s.mul(m, s.splat(c.beta2))),
    ];
    let [p, u, m] = if c.selective { moved(s, g, new, [p, s.zero(), m]) } else { new };
    [p, if c.leave == Leave::Update { u } else { s.zero() }, m]
}

kernel! {
    fn step[s: S](c: &LionWScalars, p: &mut [f32], g: &mut [f32], m: &mut [f32]) {
        lanes!(s; read []; update [p, g, m]; write []; { update(s, c, p, g, m) });
    }
}

impl LionW {
    /// A step of the parameters `p` with gradients `g`, which are multiplied by `grad_scale` (the clipping
    /// coefficient), and state `m`, zeros before the first step. One pass on the calling thread; `leave` says what is
    /// in `g` afterwards. The update that [`Leave::Update`] writes is `u`, before the sign is taken.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn step(&self, grad_scale: f32, p: &mut [f32], g: &mut [f32], m: &mut [f32], leave: Leave) {
        let scalars = LionWScalars {
            grad_scale,
            decay: (1.0 - self.lr * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            minus_lr: -self.lr as f32,
            selective: self.selective,
            leave,
        };
        self::step(&scalars, p, g, m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa, relative_error, wide};

    const SETTINGS: LionW = LionW { lr: 4e-3, beta1: 0.9, beta2: 0.95, weight_decay: 0.1, selective: false };

    #[test]
    fn ten_steps_agree_with_the_formula() {
        let n = 77;
        for selective in [false, true] {
            let mut p = numbers(1, n);
            let mut m = vec![0.0; n];
            let (mut p64, mut m64) = (wide(&p), vec![0.0; n]);
            for t in 1..=10 {
                let mut g = numbers(1 + t, n);
                g.iter_mut().step_by(3).for_each(|g| *g = 0.0);
                let mut u64 = vec![0.0; n];
                let LionW { lr, beta1, beta2, weight_decay, .. } = SETTINGS;
                for i in (0..n).filter(|i| !selective || g[*i] != 0.0) {
                    let g = 0.25 * f64::from(g[i]);
                    u64[i] = beta1 * m64[i] + (1.0 - beta1) * g;
                    p64[i] =
                        p64[i] * (1.0 - lr * weight_decay) - lr * if u64[i] == 0.0 { 0.0 } else { u64[i].signum() };
                    m64[i] = beta2 * m64[i] + (1.0 - beta2) * g;
                }
                let leave = if t % 2 == 0 { Leave::Zero } else { Leave::Update };
                LionW { selective, ..SETTINGS }.step(0.25, &mut p, &mut g, &mut m, leave);
                match leave {
                    Leave::Zero => assert!(g.iter().all(|g| *g == 0.0)),
                    Leave::Update => assert!(relative_error(&g, &u64) < 1e-6),
                }
            }
            assert!(relative_error(&p, &p64) < 1e-6);
            assert!(relative_error(&m, &m64) < 1e-6);
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_in_any_pieces() {
        for (n, selective) in [(0, false), (1, true), (33, true), (5000, false), (5000, true)] {
            let run = |piece: usize| {
                let [mut p, mut g, mut m] = [1, 2, 3].map(|seed| numbers(seed, n));
                g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
                for at in (0..n).step_by(piece) {
                    let range = at..(at + piece).min(n);
                    let [p, g, m] = [&mut p, &mut g, &mut m].map(|x| &mut x[range.clone()]);
                    LionW { selective, ..SETTINGS }.step(0.5, p, g, m, Leave::Update);
                }
                [p, g, m].concat()
            };
            let expected = on_every_isa(|| run(n.max(1)));
            assert_eq!(run(7), expected);
        }
    }
}
