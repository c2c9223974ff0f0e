//! Ticks and their labels, linear and logarithmic.

/// How values are mapped to places on an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences have equal distances.
    #[default]
    Linear,
    /// Equal ratios have equal distances; values that are not above 0 have no place.
    Log,
}

impl Scale {
    fn holds(self, value: f64) -> bool {
        value.is_finite() && (self == Scale::Linear || value > 0.0)
    }
}

/// A place on an axis with a line of the grid; minor lines have an empty label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    pub(crate) label: String,
}

/// A range of values, mapped to places from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Whether the values are counts, between which there are no ticks.
    counts: bool,
}

impl Axis {
    /// An axis with all values that have a place; from 0 to 1 if none has.
    pub(crate) fn around(values: impl Iterator<Item = f64>, scale: Scale) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| scale.holds(*value)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = if scale == Scale::Log { (1.0, 10.0) } else { (0.0, 1.0) };
        } else if low == high {
            // A constant is placed in the middle.
            let away = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = if scale == Scale::Log { (low / 2.0, high * 2.0) } else { (low - away, high + away) };
        }
        // The difference of the largest numbers is infinite.
        Axis { scale, low: low.max(f64::MIN / 4.0), high: high.min(f64::MAX / 4.0), counts: false }
    }

    /// The axis for counts: it begins at 0 where the values begin a little above 0.
    pub(crate) fn of_counts(self) -> Axis {
        let from_zero = self.scale == Scale::Linear && self.low > 0.0 && self.low < self.high * 0.05;
        Axis { low: if from_zero { 0.0 } else { self.low }, counts: true, ..self }
    }

    /// With room at both ends, as a share of the length.
    pub(crate) fn with_room(self, share: f64) -> Axis {
        match self.scale {
            Scale::Linear => {
                let room = (self.high - self.low) * share;
                // Where no value is below 0, neither is the axis.
                let low = if self.low >= 0.0 { (self.low - room).max(0.0) } else { self.low - room };
                Axis { low, high: self.high + room, ..self }
            }
            Scale::Log => {
                let room = (self.high / self.low).powf(share);
                Axis { low: (self.low / room).max(f64::MIN_POSITIVE), high: (self.high * room).min(f64::MAX), ..self }
            }
        }
    }

    /// The place from 0 to 1; `None` for a value that the axis cannot show.
    pub(crate) fn place(&self, value: f64) -> Option<f32> {
        if !self.scale.holds(value) {
            return None;
        }
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
        };
        share.is_finite().then_some(share.clamp(0.0, 1.0) as f32)
    }

    /// About `wanted` labelled ticks.
    pub(crate) fn ticks(&self, wanted: usize) -> Vec<Tick> {
        // A range within a part of a decade is better labelled at round differences.
        match self.scale {
            Scale::Log if self.high / self.low > 3.0 => self.log_ticks(wanted),
            _ => self.linear_ticks(wanted),
        }
    }

    fn linear_ticks(&self, wanted: usize) -> Vec<Tick> {
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let step = if self.counts { step.max(1.0) } else { step };
        if !(step.is_finite() && step > 0.0) {
            return Vec::new();
        }
        let (first, last) = ((self.low / step - 1e-9).ceil(), (self.high / step + 1e-9).floor());
        if last - first >= 1000.0 {
            return Vec::new();
        }
        let values: Vec<f64> = (0..=(last - first) as usize).map(|at| (first + at as f64) * step).collect();
        let largest = values.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        values.into_iter().map(|value| Tick { value, label: label(value, step, largest) }).collect()
    }

    fn log_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let decades = (last - first).max(1) as usize;
        let every = decades.div_ceil(wanted.max(1)) as i32;
        let labelled: &[u32] = match self.high / self.low {
            ratio if ratio < 30.0 => &[1, 2, 3, 5, 7],
            ratio if ratio < 300.0 => &[1, 2, 5],
            _ => &[1],
        };
        let mut ticks = Vec::new();
        for decade in first..=last {
            for digit in 1..10 {
                let value = f64::from(digit) * 10f64.powi(decade);
                if !(self.low * 0.999_999..=self.high * 1.000_001).contains(&value) {
                    continue;
                }
                let says = labelled.contains(&digit) && (decade - first) % every == 0;
                if says || every == 1 {
                    let label = if says { label(value, value, value) } else { String::new() };
                    ticks.push(Tick { value, label });
                }
            }
        }
        ticks
    }
}

/// The least number that is 1, 2 or 5 times a power of ten and at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|round| *round >= step * 0.999_999)
        .unwrap_or(step)
}

/// A value in the shortest form that differs from the next tick: `2.5`, `1.5k`, `4e-4`.
pub(crate) fn label(value: f64, step: f64, largest: f64) -> String {
    if value.abs() < step * 1e-6 {
        return "0".to_owned();
    }
    let places = |unit: f64| (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 12.0) as usize;
    let units = [(1e15, ""), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    if !(1e-2..1e15).contains(&largest) {
        let digits = (value.abs().log10().floor() - step.log10().floor()).clamp(0.0, 12.0) as usize;
        return format!("{value:.digits$e}");
    }
    let (unit, name) = match largest {
        _ if largest < 1e4 => (1.0, ""),
        _ => units.into_iter().find(|(unit, _)| largest >= *unit).unwrap_or((1.0, "")),
    };
    format!("{:.*}{name}", places(unit), value / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, scale: Scale, wanted: usize) -> Vec<String> {
        let ticks = Axis::around([low, high].into_iter(), scale).ticks(wanted);
        ticks.into_iter().map(|tick| tick.label).filter(|label| !label.is_empty()).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 3000.0, Scale::Linear, 6), ["0", "500", "1000", "1500", "2000", "2500", "3000"]);
        assert_eq!(labels(0.0, 25_000.0, Scale::Linear, 5), ["0", "5k", "10k", "15k", "20k", "25k"]);
        assert_eq!(labels(2.13, 4.0, Scale::Linear, 4), ["2.5", "3.0", "3.5", "4.0"]);
        assert_eq!(labels(4e-5, 4e-4, Scale::Linear, 4), ["1e-4", "2e-4", "3e-4", "4e-4"]);
        assert_eq!(labels(0.0, 4e-4, Scale::Linear, 8)[..3], ["0", "5e-5", "1.0e-4"]);
        assert_eq!(labels(-1.0, 1.0, Scale::Linear, 2), ["-1", "0", "1"]);
        assert_eq!(labels(0.0, 5.1e12, Scale::Linear, 3), ["0", "2T", "4T"]);
        assert_eq!(labels(1.0, 1e6, Scale::Log, 8), ["1", "10", "100", "1000", "10k", "100k", "1M"]);
        assert_eq!(labels(2.0, 50.0, Scale::Log, 8), ["2", "3", "5", "7", "10", "20", "30", "50"]);
        assert_eq!(labels(4e-6, 4e-4, Scale::Log, 4), ["5e-6", "1e-5", "2e-5", "5e-5", "1e-4", "2e-4"]);
        assert_eq!(labels(1e-8, 1.0, Scale::Log, 4), ["1e-8", "1e-6", "1e-4", "0.01", "1"]);
        assert_eq!(labels(2.0, 4.0, Scale::Log, 4), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
    }

    #[test]
    fn counts_are_whole_and_begin_at_zero() {
        let labels = |low: f64, high: f64| -> Vec<String> {
            let ticks = Axis::around([low, high].into_iter(), Scale::Linear).of_counts().ticks(8);
            ticks.into_iter().map(|tick| tick.label).collect()
        };
        assert_eq!(labels(1.0, 3.0), ["1", "2", "3"]);
        assert_eq!(labels(1.0, 400.0)[..3], ["0", "50", "100"]);
        assert_eq!(labels(300.0, 400.0)[..2], ["300", "320"]);
        assert_eq!(labels(4096.0, 1.2e7)[..3], ["0", "2M", "4M"]);
    }

    #[test]
    fn any_values_have_an_axis() {
        let extremes = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MIN,
            f64::MAX,
            5e-324,
            -0.0,
            0.0,
            1.0,
            1.0 + f64::EPSILON,
        ];
        for scale in [Scale::Linear, Scale::Log] {
            for low in extremes {
                for high in extremes {
                    let axis = Axis::around([low, high].into_iter(), scale).with_room(0.05);
                    assert!(axis.ticks(6).len() < 1500, "{low} {high}");
                    for value in extremes {
                        assert!(
                            axis.place(value).is_none_or(|place| (0.0..=1.0).contains(&place)),
                            "{low} {high} {value}"
                        );
                    }
                }
            }
        }
        assert_eq!(Axis::around([3.0, 3.0].into_iter(), Scale::Linear).place(3.0), Some(0.5));
        assert_eq!(Axis::around([1.0, 100.0].into_iter(), Scale::Log).place(10.0), Some(0.5));
        assert_eq!(Axis::around([1.0, 100.0].into_iter(), Scale::Log).place(0.0), None);
    }
}
