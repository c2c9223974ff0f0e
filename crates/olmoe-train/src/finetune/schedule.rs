//! The learning rate of fine-tuning over time, as transformers computes it, with warm-up w and length n, at p:
//!
//! ```text
//! p < w          lr · (p / max(1, w))
//! linear         lr · max(0, (n − p) / max(1, n − w))
//! cosine         lr · max(0, ½·(1 + cos(π·(p − w) / max(1, n − w))))
//! constant       lr
//! ```
//!
//! The rate of a step is that of the position before it: the first step of a warm-up has 0, as with torch's `LambdaLR`.

use std::f64::consts::PI;

use olmoe_tensor::elementary::sin_cos;

use super::settings::{ScheduleSettings, ScheduleShape, Warmup};

/// The schedule of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinetuneSchedule {
    shape: ScheduleShape,
    learning_rate: f64,
    stride: u64,
    warmup: u64,
    total: u64,
}

impl FinetuneSchedule {
    /// The schedule of a run of so many steps.
    pub fn new(settings: &ScheduleSettings, learning_rate: f64, steps: u64) -> FinetuneSchedule {
        let total = settings.total.unwrap_or(steps.saturating_mul(settings.stride));
        let share = |ratio: f64| total as f64 * ratio;
        let warmup = match settings.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => share(ratio) as u64,
            Warmup::RatioUp(ratio) => share(ratio).ceil() as u64,
        };
        FinetuneSchedule { shape: settings.shape, learning_rate, stride: settings.stride, warmup, total }
    }

    /// The learning rate after so many steps: that of the next one.
    pub fn rate_after(&self, steps: u64) -> f64 {
        let position = steps.saturating_mul(self.stride);
        let (p, w, n) = (position as f64, self.warmup as f64, self.total as f64);
        let left = f64::max(1.0, n - w);
        let factor = match self.shape {
            _ if position < self.warmup => p / f64::max(1.0, w),
            ScheduleShape::Constant => 1.0,
            ScheduleShape::Linear => f64::max(0.0, (n - p) / left),
            // Half a period, also where steps that are counted several times run past the end.
            ScheduleShape::Cosine => f64::max(0.0, 0.5 * (1.0 + sin_cos(PI * (((p - w) / left).clamp(0.0, 1.0))).1)),
        };
        self.learning_rate * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: ScheduleShape, warmup: Warmup, steps: u64) -> FinetuneSchedule {
        FinetuneSchedule::new(&ScheduleSettings { shape, warmup, ..ScheduleSettings::default() }, 2.0, steps)
    }

    #[test]
    fn courses() {
        let linear = schedule(ScheduleShape::Linear, Warmup::Steps(2), 10);
        let rates: Vec<f64> = (0..=11).map(|steps| linear.rate_after(steps)).collect();
        assert_eq!(rates, [0.0, 1.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        let cosine = schedule(ScheduleShape::Cosine, Warmup::Steps(0), 4);
        for (steps, expected) in [(0, 2.0), (1, 1.0 + 0.5f64.sqrt()), (2, 1.0), (4, 0.0), (5, 0.0)] {
            assert!((cosine.rate_after(steps) - expected).abs() < 1e-15, "{steps}");
        }
        let constant = schedule(ScheduleShape::Constant, Warmup::Steps(4), 8);
        assert_eq!([0, 1, 4, 100].map(|steps| constant.rate_after(steps)), [0.0, 0.5, 2.0, 2.0]);
        for shape in ScheduleShape::ALL {
            for (warmup, steps) in [(Warmup::Steps(0), 0), (Warmup::Steps(9), 3), (Warmup::Ratio(1.0), 5)] {
                let schedule = schedule(*shape, warmup, steps);
                assert!((0..20).all(|steps| (0.0..=2.0).contains(&schedule.rate_after(steps))), "{schedule:?}");
            }
        }
    }

    #[test]
    fn shares_are_rounded_as_they_say() {
        let down = schedule(ScheduleShape::Linear, Warmup::Ratio(0.03), 50);
        let up = schedule(ScheduleShape::Linear, Warmup::RatioUp(0.03), 50);
        assert_eq!((down.warmup, up.warmup), (1, 2));
    }
}
