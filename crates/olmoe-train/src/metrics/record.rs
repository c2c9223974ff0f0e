//! The metrics of a step, and their line of JSON.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{EXPERT_LOAD, FILE_NAME, Line};

/// The key of the step in a line.
const STEP: &str = "step";

/// The metrics of a step, in the order in which they were added.
///
/// The JSON is `{"step":120,"train/CrossEntropyLoss":4.25}`. A finite number has enough digits to read the same bits
/// back. NaN and the infinities, which JSON lacks, are the strings `NaN`, `Infinity` and `-Infinity`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The step, from 1; 0 is before the first step.
    pub step: u64,
    values: Vec<(Cow<'static, str>, f64)>,
}

impl Record {
    /// A record without metrics.
    pub fn new(step: u64) -> Record {
        Record { step, values: Vec::new() }
    }

    /// Adds a metric. A name occurs once per record, and `step` is not a metric.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<f64>) -> &mut Record {
        self.values.push((name.into(), value.into()));
        self
    }

    /// Adds a metric and returns the record.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<f64>) -> Record {
        self.push(name, value);
        self
    }

    /// All metrics, in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The value of a metric.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values().find(|(held, _)| *held == name).map(|(_, value)| value)
    }

    /// The load of the busiest expert over the mean, in the worst layer: 1 is balanced, the number of experts is the
    /// worst.
    ///
    /// The value is [`EXPERT_LOAD`] if the record has it, else computed from
    /// `train/TokensPercentage/layer{l}/expert{e}`; None without either.
    pub fn expert_load(&self) -> Option<f64> {
        if let Some(said) = self.get(EXPERT_LOAD) {
            return Some(said);
        }
        // Layers come one after the other, so the present layer is the one added last.
        let mut layers: Vec<(&str, f64, f64, u32)> = Vec::new();
        for (name, percent) in self.values() {
            let Some((layer, _)) =
                name.strip_prefix("train/TokensPercentage/").and_then(|rest| rest.split_once("/expert"))
            else {
                continue;
            };
            match layers.last_mut() {
                Some((last, max, sum, experts)) if *last == layer => {
                    *max = max.max(percent);
                    *sum += percent;
                    *experts += 1;
                }
                _ => layers.push((layer, percent, percent, 1)),
            }
        }
        layers.iter().map(|(_, max, sum, experts)| max * f64::from(*experts) / sum).reduce(f64::max)
    }
}

impl Line for Record {
    const FILE_NAME: &str = FILE_NAME;
    const EXAMPLE: &str = r#"{"step":1,"train/CrossEntropyLoss":10.8}"#;

    fn step(&self) -> u64 {
        self.step
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len() + 1))?;
        map.serialize_entry(STEP, &self.step)?;
        for (name, value) in self.values() {
            match value {
                _ if value.is_finite() => map.serialize_entry(name, &value)?,
                _ if value.is_nan() => map.serialize_entry(name, "NaN")?,
                _ if value > 0.0 => map.serialize_entry(name, "Infinity")?,
                _ => map.serialize_entry(name, "-Infinity")?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_map(RecordVisitor)
    }
}

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = Record;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let (mut step, mut values) = (None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if name == STEP {
                if step.replace(map.next_value::<u64>()?).is_some() {
                    return Err(A::Error::custom("`step` occurs twice"));
                }
            } else {
                values.push((Cow::Owned(name), map.next_value::<Number>()?.0));
            }
        }
        let step = step.ok_or_else(|| A::Error::custom("it has no `step`"))?;
        Ok(Record { step, values })
    }
}

/// A number, or the string that stands for NaN or an infinity.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Number, E> {
        Ok(Number(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
        Ok(Number(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
        Ok(Number(value as f64))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        match text {
            "NaN" => Ok(Number(f64::NAN)),
            "Infinity" => Ok(Number(f64::INFINITY)),
            "-Infinity" => Ok(Number(f64::NEG_INFINITY)),
            // The string may have any length, so it is not quoted.
            _ => Err(E::invalid_type(serde::de::Unexpected::Other("another text"), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_with_its_bits() {
        let mut values = vec![0.0, -0.0, 1.0, 0.1, 4.0144e-5, 5e-324, f64::MAX, f64::MIN_POSITIVE, 123_456_789_012.0];
        values.extend((0..2000u64).map(|seed| f64::from_bits(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))));
        values.extend([f64::INFINITY, f64::NEG_INFINITY]);
        values.retain(|value| !value.is_nan());
        let mut record = Record::new(u64::MAX);
        for (at, value) in values.iter().enumerate() {
            record.push(format!("train/{at}"), *value);
        }
        let line = serde_json::to_vec(&record).unwrap();
        let read: Record = serde_json::from_slice(&line).unwrap();
        assert_eq!(read.step, u64::MAX);
        for ((_, read), value) in read.values().zip(&values) {
            assert_eq!(read.to_bits(), value.to_bits(), "{value}");
        }
        let read: Record = serde_json::from_value(serde_json::json!(Record::new(1).with("a", f64::NAN))).unwrap();
        assert!(read.get("a").unwrap().is_nan());
    }

    #[test]
    fn a_line_has_the_step_first_and_names_in_order() {
        let record = Record::new(3).with("train/b", 2.5).with("a \"quoted\"\n", f64::NAN).with("c", 7_u32);
        let expected = "{\"step\":3,\"train/b\":2.5,\"a \\\"quoted\\\"\\n\":\"NaN\",\"c\":7.0}";
        assert_eq!(serde_json::to_string(&record).unwrap(), expected);
    }

    #[test]
    fn the_load_is_that_of_the_worst_layer() {
        let share = |layer: usize, expert: usize| format!("train/TokensPercentage/layer{layer}/expert{expert}");
        let mut record = Record::new(1).with("train/CrossEntropyLoss", 1.0);
        assert_eq!(record.expert_load(), None);
        for (layer, shares) in [[25.0; 4], [10.0, 40.0, 30.0, 20.0], [25.0, 25.0, 20.0, 30.0]].iter().enumerate() {
            for (expert, percent) in shares.iter().enumerate() {
                record.push(share(layer, expert), *percent);
            }
        }
        assert_eq!(record.expert_load(), Some(1.6));
        assert_eq!(record.with(EXPERT_LOAD, 2.0).expert_load(), Some(2.0));
    }
}
