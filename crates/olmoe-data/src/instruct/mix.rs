//! Mixing several sources, and the order of an epoch.
//!
//! A mixture is chosen once: the rows of each source are shuffled with the seed of the mixture, in the order of
//! `Dataset.shuffle` of Hugging Face's datasets, and the first ones are taken, as open-instruct does. An epoch sees all rows
//! of the mixture in the order of [`epoch_order`], which is a function of the seed, the epoch and the number of rows.

use std::str::FromStr;

use serde::Serialize;

use super::error::InstructError;
use crate::pretrain::{DataError, Order, OrderSettings};
use crate::random::Pcg;

/// How much of a source a mixture takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// This many rows, at most as many as the source has.
    Rows(u64),
    /// This fraction of the rows, from 0 to 1, rounded down.
    Fraction(f64),
    /// All rows this many times; the fractional part adds that share of the rows, rounded down.
    Epochs(f64),
}

/// A source and how much of it is taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The path or name of the source.
    pub source: String,
    /// How much.
    pub amount: Amount,
}

/// A row of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MixedRow {
    /// The index of the source in the list.
    pub source: u32,
    /// The row of that source, from 0.
    pub row: u32,
}

/// The amounts of a mixture as they are written.
enum Written {
    Whole(u64),
    Part(f64),
    Times(f64),
}

impl FromStr for Written {
    type Err = ();

    fn from_str(text: &str) -> Result<Written, ()> {
        let positive = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
        if let Some(times) = text.strip_suffix('x') {
            return positive(times).map(Written::Times).ok_or(());
        }
        if text.contains('.') {
            return positive(text).map(Written::Part).ok_or(());
        }
        text.parse().map(Written::Whole).map_err(|_| ())
    }
}

/// Reads the list of a mixture: names and amounts in turn, as in open-instruct's `dataset_mixer_list`. An amount with a
/// decimal point is a fraction, one without a number of rows; where no amount is above 1, all are fractions. `2x` and
/// `0.5x` are epochs and may stand beside either.
///
/// # Errors
/// A name without an amount, an invalid amount, or fractions beside numbers of rows.
pub fn shares(list: &[impl AsRef<str>]) -> Result<Vec<Share>, InstructError> {
    let setting = |value: String, expected: &str| InstructError::Setting {
        key: "dataset_mixer_list",
        value,
        expected: expected.to_owned(),
    };
    let (pairs, rest) = list.as_chunks::<2>();
    if let [name] = rest {
        return Err(setting(format!("{:?} without an amount", name.as_ref()), "names and amounts in turn"));
    }
    let mut written = Vec::with_capacity(pairs.len());
    for [_, amount] in pairs {
        let expected = "a fraction such as 0.5, a number of rows such as 1000, or epochs such as 2x";
        let number =
            amount.as_ref().parse::<Written>().map_err(|()| setting(format!("{:?}", amount.as_ref()), expected))?;
        written.push(number);
    }
    let counts = written.iter().any(|number| match number {
        Written::Whole(number) => *number > 1,
        Written::Part(number) => *number > 1.0,
        Written::Times(_) => false,
    });
    let part = written.iter().find_map(|number| if let Written::Part(part) = number { Some(*part) } else { None });
    if let Some(part) = part.filter(|_| counts) {
        let expected =
            "all fractions from 0 to 1, or all numbers of rows; more than a whole source is written as epochs, 2.5x";
        return Err(setting(format!("the fraction {part:?} beside a number above 1"), expected));
    }
    let shares = pairs.iter().zip(written).map(|([source, _], number)| Share {
        source: source.as_ref().to_owned(),
        amount: match number {
            Written::Whole(rows) if counts => Amount::Rows(rows),
            Written::Whole(whole) => Amount::Fraction(whole as f64),
            Written::Part(part) => Amount::Fraction(part),
            Written::Times(times) => Amount::Epochs(times),
        },
    });
    Ok(shares.collect())
}

/// The rows of a mixture, source by source; `rows` are the numbers of rows of the sources.
///
/// # Errors
/// More rows than a source has or than fit 32 bits; a fraction above 1; an amount that is negative, NaN or infinite.
pub fn mixture(amounts: &[Amount], rows: &[u32], seed: u64) -> Result<Vec<MixedRow>, InstructError> {
    let setting = |key, value: String, expected: String| InstructError::Setting { key, value, expected };
    if amounts.len() != rows.len() {
        return Err(setting(
            "sources",
            amounts.len().to_string(),
            format!("as many as there are sets, {}", rows.len()),
        ));
    }
    let mut mixed = Vec::new();
    for (source, (amount, count)) in amounts.iter().zip(rows).enumerate() {
        let wrong = |value: String, expected: &str| {
            Err(setting("amount", format!("{value} of source {source}"), format!("{expected}; it has {count} rows")))
        };
        let total = f64::from(*count);
        let taken = match *amount {
            Amount::Rows(taken) if taken > u64::from(*count) => {
                return wrong(taken.to_string(), "at most the rows that there are; more is written as epochs, 2.5x");
            }
            Amount::Rows(taken) => taken as f64,
            Amount::Fraction(part) if (0.0..=1.0).contains(&part) => (part * total).floor(),
            Amount::Fraction(part) => return wrong(part.to_string(), "from 0 to 1"),
            Amount::Epochs(times) if times.is_finite() && times >= 0.0 => {
                times.floor() * total + (times.fract() * total).floor()
            }
            Amount::Epochs(times) => return wrong(times.to_string(), "a number that is not negative"),
        };
        if mixed.len() as f64 + taken >= f64::from(u32::MAX) {
            return wrong(taken.to_string(), "fewer than 4294967295 rows together");
        }
        let mut order: Vec<u32> = (0..*count).collect();
        Pcg::new(seed).shuffle(&mut order);
        let taken = order.iter().cycle().take(if order.is_empty() { 0 } else { taken as usize });
        mixed.extend(taken.map(|row| MixedRow { source: source as u32, row: *row }));
    }
    Ok(mixed)
}

/// The order in which an epoch, counted from 0, sees each row once. It depends on these arguments alone, so a run that
/// resumes within an epoch sees the rest of it unchanged.
///
/// # Errors
/// More rows than fit 32 bits.
pub fn epoch_order(rows: u32, seed: u64, epoch: u64, shuffle: bool) -> Result<Vec<u32>, DataError> {
    let settings = OrderSettings { seed, epoch, shuffle, ..OrderSettings::default() };
    Ok(Order::new(rows, settings)?.indices().to_vec())
}
