//! Rows that hold tokens already.

use super::conversation::Example;
use super::error::InstructError;
use super::fields::Fields;
use super::json::Json;

/// The label of a token that is no target, as in PyTorch's cross-entropy.
const MASKED: i64 = -100;

/// `input_ids` with `labels`, `completion_mask` and `attention_mask`; without any of these, all tokens are targets.
pub(super) fn example(fields: &Fields) -> Result<Example, InstructError> {
    let ids = numbers(fields, "input_ids", 0, i64::from(u32::MAX), "a list of token ids")?.unwrap_or_default();
    if ids.is_empty() {
        return Err(fields.wrong("input_ids", "a list of at least one token id", fields.get("input_ids")));
    }
    let mut ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let mut weights = vec![1.0; ids.len()];
    let same_length = |field: &'static str, numbers: Vec<i64>| match numbers.len() == ids.len() {
        true => Ok(numbers),
        false => Err(fields.wrong(field, "a list as long as input_ids", fields.get(field))),
    };
    if let Some(labels) = numbers(fields, "labels", MASKED, i64::from(u32::MAX), "a list of token ids or -100")? {
        for (at, label) in same_length("labels", labels)?.into_iter().enumerate() {
            if label == MASKED {
                weights[at] = 0.0;
            } else if label != i64::from(ids[at]) {
                let expected = "-100 or the token at the same position of input_ids; labels are not shifted by one";
                return Err(fields.wrong(format!("labels[{at}]"), expected, Some(&Json::Number(label.into()))));
            }
        }
    }
    if let Some(mask) = numbers(fields, "completion_mask", 0, 1, "a list of 0 and 1")? {
        let mask = same_length("completion_mask", mask)?;
        weights.iter_mut().zip(mask).filter(|(_, mask)| *mask == 0).for_each(|(weight, _)| *weight = 0.0);
    }
    if let Some(mask) = numbers(fields, "attention_mask", 0, 1, "a list of 0 and 1")? {
        let mask = same_length("attention_mask", mask)?;
        // Tokens that are not attended to are padding at one of the ends.
        let start = mask.iter().position(|mask| *mask == 1).unwrap_or(mask.len());
        let length = mask[start..].iter().take_while(|mask| **mask == 1).count();
        if mask.contains(&0) && (length == 0 || mask[start + length..].contains(&1)) {
            let expected = "one run of ones, with zeros before or after it only";
            return Err(fields.wrong("attention_mask", expected, fields.get("attention_mask")));
        }
        ids = ids[start..start + length].to_vec();
        weights = weights[start..start + length].to_vec();
    }
    weights[0] = 0.0;
    Ok(Example { ids, weights })
}

/// A list of whole numbers within limits; None if the field is missing.
fn numbers(
    fields: &Fields,
    field: &str,
    least: i64,
    most: i64,
    expected: &'static str,
) -> Result<Option<Vec<i64>>, InstructError> {
    let Some(value) = fields.get(field) else { return Ok(None) };
    let wrong = || fields.wrong(field, expected, Some(value));
    let within = value.text().and_then(Json::within);
    let items = within.as_ref().unwrap_or(value).list().ok_or_else(wrong)?;
    let mut numbers = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let number = match item {
            Json::Number(number) => number.as_i64(),
            // Masks may be written as booleans.
            Json::Bool(truth) => Some(i64::from(*truth)),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        numbers.push(number.ok_or_else(|| fields.wrong(format!("{field}[{at}]"), expected, Some(item)))?);
    }
    Ok(Some(numbers))
}
