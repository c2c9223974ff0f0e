//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), in the order of operations of `torch.optim.AdamW`.
//!
//! ```text
//! p ← p·(1 − lr·wd)
//! m ← m + (1 − β₁)·(g − m)            (β₁ ≤ ½: g − β₁·(g − m), as torch's lerp)
//! v ← β₂·v + (1 − β₂)·g²
//! p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
//! ```

use super::lanes::lanes;
use crate::elementary::power;
use crate::simd::{Simd, kernel};

/// The settings of a parameter group. Scalars are combined in f64 and then rounded, as torch does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the running mean of the gradient.
    pub beta1: f64,
    /// Decay of the running mean of the squared gradient.
    pub beta2: f64,
    /// ε, added to the root of the mean squared gradient.
    pub eps: f64,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f64,
    /// Where the gradient is 0, parameter and state are not changed (OLMo's `selective_updates`).
    pub selective: bool,
}

/// What a step writes to the buffer of the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Zeros, for the next step to add to.
    Zero,
    /// The update, for its statistics.
    Update,
}

/// The first vector in lanes where `g` is not 0, the second in the others.
#[inline(always)]
pub(super) fn moved<S: Simd, const N: usize>(s: S, g: S::V, new: [S::V; N], old: [S::V; N]) -> [S::V; N] {
    let size = s.max(g, s.sub(s.zero(), g));
    let mut chosen = old;
    for i in 0..N {
        chosen[i] = s.select_lt(s.zero(), size, new[i], old[i]);
    }
    chosen
}

/// The scalars of a step.
#[derive(Clone, Copy)]
struct AdamWScalars {
    grad_scale: f32,
    decay: f32,
    /// Whether the first moment is computed from the gradient rather than from the old moment: from the one with the
    /// larger weight, as torch does.
    from_gradient: bool,
    lerp: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_bc2: f32,
    eps: f32,
    minus_step_size: f32,
    selective: bool,
    leave: Leave,
}

/// A step of sixteen parameters: the new p, what is written to g, the new m and v.
#[inline(always)]
fn update<S: Simd>(s: S, c: &AdamWScalars, p: S::V, g: S::V, m: S::V, v: S::V) -> [S::V; 4] {
    let old = [p, s.zero(), m, v];
    let g = s.mul(g, s.splat(c.grad_scale));
    let p = s.mul(p, s.splat(c.decay));
    let m = s.fma(s.splat(c.lerp), s.sub(g, m), if c.from_gradient { g } else { m });
    let v = s.fma(s.mul(s.splat(c.one_minus_beta2), g), g, s.mul(v, s.splat(c.beta2)));
    let denominator = s.add(s.div(s.sqrt(v), s.splat(c.root_bc2)), s.splat(c.eps));
    let u = s.div(s.mul(s.splat(c.minus_step_size), m), denominator);
    let new = [s.add(p, u), u, m, v];
    let [p, u, m, v] = if c.selective { moved(s, g, new, old) } else { new };
    [p, if c.leave == Leave::Update { u } else { s.zero() }, m, v]
}

kernel! {
    fn step[s: S](c: &AdamWScalars, p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        lanes!(s; read []; update [p, g, m, v]; write []; { update(s, c, p, g, m, v) });
    }
}

impl AdamW {
    /// Step `step` (the first is 1) of the parameters `p` with gradients `g`, which are multiplied by `grad_scale` (the
    /// clipping coefficient), and state `m` and `v`, zeros before the first step. One pass on the calling thread;
    /// `leave` says what is in `g` afterwards.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn step(
        &self,
        step: u64,
        grad_scale: f32,
        p: &mut [f32],
        g: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        leave: Leave,
    ) {
        let bc1 = 1.0 - power(self.beta1, step);
        let bc2 = 1.0 - power(self.beta2, step);
        let weight = (1.0 - self.beta1) as f32;
        let from_gradient = weight >= 0.5;
        let scalars = AdamWScalars {
            grad_scale,
            decay: (1.0 - self.lr * self.weight_decay) as f32,
            from_gradient,
            lerp: if from_gradient { weight - 1.0 } else { weight },
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            root_bc2: bc2.sqrt() as f32,
            eps: self.eps as f32,
            minus_step_size: -(self.lr / bc1) as f32,
            selective: self.selective,
            leave,
        };
        self::step(&scalars, p, g, m, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa, relative_error, wide};

    const SETTINGS: AdamW = AdamW { lr: 4e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, selective: false };

    #[test]
    fn ten_steps_agree_with_the_formula() {
        let n = 77;
        for (selective, beta1) in [(false, 0.9), (true, 0.9), (false, 0.3), (true, 0.0)] {
            let settings = AdamW { selective, beta1, ..SETTINGS };
            let mut p = numbers(1, n);
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            let (mut p64, mut m64, mut v64) = (wide(&p), vec![0.0; n], vec![0.0; n]);
            for t in 1..=10 {
                let mut g = numbers(1 + t, n);
                g.iter_mut().step_by(3).for_each(|g| *g = 0.0);
                let mut u64 = vec![0.0; n];
                let AdamW { lr, beta2, eps, weight_decay, .. } = settings;
                for i in (0..n).filter(|i| !selective || g[*i] != 0.0) {
                    let g = 0.25 * f64::from(g[i]);
                    p64[i] -= lr * weight_decay * p64[i];
                    m64[i] = beta1 * m64[i] + (1.0 - beta1) * g;
                    v64[i] = beta2 * v64[i] + (1.0 - beta2) * g * g;
                    let m_hat = m64[i] / (1.0 - beta1.powi(t as i32));
                    let v_hat = v64[i] / (1.0 - beta2.powi(t as i32));
                    u64[i] = -lr * m_hat / (v_hat.sqrt() + eps);
                    p64[i] += u64[i];
                }
                let leave = if t % 2 == 0 { Leave::Zero } else { Leave::Update };
                settings.step(t as u64, 0.25, &mut p, &mut g, &mut m, &mut v, leave);
                match leave {
                    Leave::Zero => assert!(g.iter().all(|g| *g == 0.0)),
                    Leave::Update => assert!(relative_error(&g, &u64) < 2e-6),
                }
            }
            assert!(relative_error(&p, &p64) < 1e-6);
            assert!(relative_error(&m, &m64) < 1e-6);
            assert!(relative_error(&v, &v64) < 1e-6);
        }
    }

    /// The state has the bits of torch 2.15.0 on the CPU; the parameters cannot, because torch's square root (of MKL)
    /// is not correctly rounded.
    /// ```text
    /// p = torch.nn.Parameter(torch.tensor([0.5, -1.25, 2.0, 1e-3]))
    /// o = torch.optim.AdamW([p], lr=4e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False, fused=False)
    /// for t in range(10):
    ///     p.grad = torch.tensor([0.3*(t+1), -0.02*(t-4.5), 1e-4*(-1)**t, 2.0-t]); o.step()
    /// p, o.state[p]['exp_avg'], o.state[p]['exp_avg_sq']   # .view(torch.int32)
    /// ```
    #[test]
    fn ten_steps_give_the_state_of_torch() {
        let mut p = [0.5, -1.25, 2.0, 1e-3];
        let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
        for t in 0..10 {
            let x = f64::from(t);
            let sign = if t % 2 == 0 { 1.0 } else { -1.0 };
            let mut g = [0.3 * (x + 1.0), -0.02 * (x - 4.5), 1e-4 * sign, 2.0 - x].map(|g| g as f32);
            SETTINGS.step(t as u64 + 1, 1.0, &mut p, &mut g, &mut m, &mut v, Leave::Zero);
        }
        let torch = [0x3eeb_6ead, 0xbfa2_3d42, 0x3ffe_306a, 0x3b4b_9f5e].map(f32::from_bits);
        assert!(p.iter().zip(torch).all(|(p, torch)| (p - torch).abs() <= 1.2e-7 * torch.abs().max(0.1)), "p {p:?}");
        assert_eq!(m.map(f32::to_bits), [0x3f9e_e73c, 0xbc36_2304, 0xb666_0cba, 0xc00b_c8f8], "m {m:?}");
        assert_eq!(v.map(f32::to_bits), [0x3fc7_b5bb, 0x3aaf_036e, 0x3189_df79, 0x40d6_1f00], "v {v:?}");
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_in_any_pieces() {
        for (n, selective) in [(0, false), (1, true), (33, true), (5000, false), (5000, true)] {
            let run = |piece: usize| {
                let [mut p, mut g, mut m] = [1, 2, 3].map(|seed| numbers(seed, n));
                g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
                let mut v: Vec<f32> = numbers(4, n).iter().map(|v| v * v).collect();
                for at in (0..n).step_by(piece) {
                    let range = at..(at + piece).min(n);
                    let [p, g, m, v] = [&mut p, &mut g, &mut m, &mut v].map(|x| &mut x[range.clone()]);
                    AdamW { selective, ..SETTINGS }.step(7, 0.5, p, g, m, v, Leave::Update);
                }
                [p, g, m, v].concat()
            };
            let expected = on_every_isa(|| run(n.max(1)));
            assert_eq!(run(7), expected);
        }
    }
}
