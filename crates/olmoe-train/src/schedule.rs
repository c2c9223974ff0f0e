//! The learning rate, and the bound on the gradients, over time: OLMo's schedules.
//!
//! `s` is the position, in steps or tokens, the current batch counted: the first step has 1, or the tokens of a batch. `w` is
//! `t_warmup`, `M` is `t_max` or else the end of the run, `lr` the learning rate, `a = alpha_f·lr`, `p = (s − w)/(M − w)`.
//!
//! ```text
//! warm-up (s < w)             min + (lr − min)·s/w                 min = warmup_min_lr, or lr/10
//! cosine_with_warmup          a + (lr − a)·(1 + cos πp)/2          a from M on
//! linear_with_warmup          lr − (lr − a)·p                      a from M on
//! cosine_linear_envelope      a + (1 − p)·(lr − a)·(1 + cos πp)/2  a from M on
//! inverse_sqrt_with_warmup    lr·√(w/s)
//! max_scheduler               the larger of cosine_with_warmup and inverse_sqrt_with_warmup
//! constant                    lr, without warm-up
//! constant_with_warmup        lr
//! ```
//!
//! The last step of every formula is as OLMo computes it; the cosine is our own, so that every machine has the same bits.

use std::f64::consts::PI;

use olmoe_tensor::elementary::sin_cos;

use crate::config::{SchedulerName, TrainConfig};
use crate::optimizer::Clip;

/// The schedule of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    name: SchedulerName,
    learning_rate: f64,
    warmup: u64,
    warmup_min_lr: f64,
    t_max: Option<u64>,
    alpha_f: f64,
    /// Until which position, and how many times the bound.
    clip_warmup: Option<(u64, f64)>,
    clip: Clip,
    /// A second warm-up, from and to.
    bolt_on: Option<(u64, u64)>,
}

impl Schedule {
    /// The schedule of a configuration that was [read](TrainConfig::read), which has checked it.
    pub fn new(config: &TrainConfig) -> Schedule {
        let (scheduler, learning_rate) = (&config.scheduler, config.optimizer.learning_rate);
        Schedule {
            name: scheduler.name,
            learning_rate,
            warmup: scheduler.t_warmup.0,
            warmup_min_lr: scheduler.warmup_min_lr.unwrap_or(learning_rate * 0.1),
            t_max: scheduler.t_max.map(|count| count.0),
            alpha_f: scheduler.alpha_f,
            clip_warmup: scheduler
                .grad_clip_warmup_steps
                .zip(scheduler.grad_clip_warmup_factor)
                .map(|(steps, factor)| (steps.0, factor)),
            clip: match (config.max_grad_norm_ratio, config.max_grad_norm) {
                (Some(ratio), _) => Clip::Ratio(ratio),
                (None, Some(norm)) => Clip::Norm(norm),
                (None, None) => Clip::Off,
            },
            bolt_on: None,
        }
    }

    /// The same with a warm-up of its own that begins at `start` with 0 and ends `t_warmup` later where the schedule is
    /// then: for a run that goes on with a fresh optimizer (`reset_optimizer_state` without `reset_trainer_state`).
    ///
    /// `start` is in the units of the schedule. OLMo counts it in steps even where the schedule counts tokens, so that the
    /// warm-up is long over when such a run goes on; that is not repeated here.
    pub fn with_new_warmup(self, start: u64) -> Schedule {
        Schedule { bolt_on: Some((start, start.saturating_add(self.warmup))), ..self }
    }

    /// The learning rate at a position, of a run that ends at `end`; both in the units of the schedule.
    pub fn learning_rate(&self, position: u64, end: u64) -> f64 {
        match self.bolt_on {
            Some((start, _)) if position < start => 0.0,
            Some((start, until)) if position < until => {
                self.shape(self.name, until, end) * (position - start) as f64 / (until - start) as f64
            }
            _ => self.shape(self.name, position, end),
        }
    }

    fn shape(&self, name: SchedulerName, position: u64, end: u64) -> f64 {
        use SchedulerName::*;
        let (lr, warmup) = (self.learning_rate, self.warmup);
        let end = self.t_max.unwrap_or(end);
        let least = lr * self.alpha_f;
        if name == MaxScheduler {
            let [cosine, root] = [CosineWithWarmup, InverseSqrtWithWarmup].map(|name| self.shape(name, position, end));
            return cosine.max(root);
        }
        if name != Constant && position < warmup {
            let min = self.warmup_min_lr;
            return min + (lr - min) * position as f64 / warmup as f64;
        }
        // Only where it is used is the position before the end, and both are past the warm-up.
        let done = position.saturating_sub(warmup) as f64;
        let whole = end.saturating_sub(warmup) as f64;
        let half_cosine = || (lr - least) * (1.0 + sin_cos((PI * done / whole).clamp(0.0, PI)).1) / 2.0;
        match name {
            CosineWithWarmup | LinearWithWarmup | CosineLinearEnvelope if position >= end => least,
            CosineWithWarmup => least + half_cosine(),
            LinearWithWarmup => lr - (lr - least) * (done / whole),
            CosineLinearEnvelope => least + (1.0 - done / whole) * half_cosine(),
            InverseSqrtWithWarmup => lr * (warmup as f64 / position.max(warmup).max(1) as f64).sqrt(),
            Constant | ConstantWithWarmup | MaxScheduler => lr,
        }
    }

    /// The bound on the gradients of a step, given the position *before* it, which is 0 at the first.
    ///
    /// OLMo sets the bound after it has clipped, so that a step has that of the position before, and the first step of a run
    /// the plain one. A run that goes on has the bound of the run that was never interrupted.
    pub fn clip(&self, position_before: u64) -> Clip {
        let factor = match self.clip_warmup {
            Some((until, factor)) if position_before > 0 && position_before <= until => factor,
            _ => 1.0,
        };
        match self.clip {
            Clip::Off => Clip::Off,
            Clip::Norm(norm) => Clip::Norm(factor * norm),
            Clip::Ratio(ratio) => Clip::Ratio(factor * ratio),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Count;

    /// Written by tools/reference/make_golden_optimizer.py.
    const GOLDEN: &str = include_str!("../tests/golden/schedules.tsv");

    fn config(settings: &str) -> TrainConfig {
        let overrides: Vec<&str> = settings.split(' ').collect();
        let text = "model: {rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0}";
        TrainConfig::from_yaml(text, &overrides, &|_| None).expect("a good configuration").config
    }

    #[test]
    fn learning_rates_are_those_of_the_reference() {
        let (mut schedule, mut rows, mut lr) = (None, 0, 0.0);
        for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
            let columns: Vec<&str> = line.split('\t').collect();
            match columns[..] {
                ["schedule", settings, start] => {
                    let config = config(settings);
                    let new = Schedule::new(&config);
                    lr = config.optimizer.learning_rate;
                    schedule = Some(start.parse().map_or(new, |start| new.with_new_warmup(start)));
                }
                [position, end, expected] => {
                    let schedule: Schedule = schedule.expect("a schedule comes first");
                    let expected: f64 = expected.parse().expect("a number");
                    let got = schedule.learning_rate(position.parse().unwrap(), end.parse().unwrap());
                    // A few roundings.
                    assert!(
                        (got - expected).abs() <= 1e-15 * lr,
                        "{schedule:?} at {position}: {got:e}, not {expected:e}"
                    );
                    rows += 1;
                }
                _ => panic!("no row: {line}"),
            }
        }
        assert!(rows > 200, "{rows} rows");
    }

    #[test]
    fn the_release_begins_at_a_tenth() {
        let config = config(
            "optimizer.learning_rate=4.0e-4 scheduler.units=tokens scheduler.t_warmup=10485760000 scheduler.t_max=5e12",
        );
        let schedule = Schedule::new(&config);
        let at = |tokens| schedule.learning_rate(tokens, u64::MAX);
        assert_eq!(format!("{:.4e}", at(1024 * 4096)), "4.0144e-5");
        assert_eq!(at(10_485_760_000), 4e-4);
        assert_eq!(at(5_000_000_000_000), 4e-5);
    }

    #[test]
    fn clipping_warms_up_one_step_late() {
        let yaml = "max_grad_norm=1.0 scheduler.grad_clip_warmup_steps=100.5 scheduler.grad_clip_warmup_factor=5";
        let schedule = Schedule::new(&config(yaml));
        for (before, bound) in [(0, 1.0), (1, 5.0), (100, 5.0), (101, 1.0)] {
            assert_eq!(schedule.clip(before), Clip::Norm(bound), "after {before}");
        }
        let schedule = Schedule::new(&config(&format!("{yaml} max_grad_norm_ratio=2")));
        assert_eq!((schedule.clip(7), schedule.clip(0)), (Clip::Ratio(10.0), Clip::Ratio(2.0)));
        assert_eq!(Schedule::new(&TrainConfig::default()).clip(3), Clip::Off);
    }

    #[test]
    fn no_position_is_no_number() {
        let mut config = TrainConfig::default();
        use SchedulerName::*;
        for name in [
            CosineWithWarmup,
            LinearWithWarmup,
            InverseSqrtWithWarmup,
            MaxScheduler,
            Constant,
            CosineLinearEnvelope,
            ConstantWithWarmup,
        ] {
            for (warmup, t_max) in [(0, None), (0, Some(0)), (10, Some(5)), (10, Some(10)), (u64::MAX, None)] {
                config.scheduler.name = name;
                (config.scheduler.t_warmup, config.scheduler.t_max) = (Count(warmup), t_max.map(Count));
                for schedule in [Schedule::new(&config), Schedule::new(&config).with_new_warmup(3)] {
                    for position in [0, 1, 4, 9, 10, 11, u64::MAX] {
                        for end in [0, 10, 11, u64::MAX] {
                            let lr = schedule.learning_rate(position, end);
                            assert!(
                                (0.0..=1.000_000_000_001e-4).contains(&lr),
                                "{schedule:?} at {position} of {end}: {lr}"
                            );
                        }
                    }
                }
            }
        }
    }
}
