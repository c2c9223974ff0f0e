//! The tokens that the post-processor of a `tokenizer.json` puts around a text.

use serde_json::Value;

use super::error::TokenizerError;

/// The tokens before and after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: Vec<u32>,
    pub(super) behind: Vec<u32>,
}

impl Around {
    /// The tokens that a post-processor adds to a single text.
    pub(super) fn read(processor: &Value) -> Result<Around, TokenizerError> {
        let wrong = |message: &str| TokenizerError::Syntax { message: format!("in `post_processor`: {message}") };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match processor["type"].as_str() {
            None if processor.is_null() => Ok(Around::default()),
            Some("ByteLevel") => Ok(Around::default()),
            Some("Sequence") => {
                let mut around = Around::default();
                for step in processor["processors"].as_array().ok_or_else(|| wrong("`processors` is no list"))? {
                    let step = Around::read(step)?;
                    around.before.splice(0..0, step.before);
                    around.behind.extend(step.behind);
                }
                Ok(around)
            }
            Some("BertProcessing" | "RobertaProcessing") => {
                let one =
                    |key: &str| id(&processor[key][1]).ok_or_else(|| wrong(&format!("`{key}` is no token with an id")));
                Ok(Around { before: vec![one("cls")?], behind: vec![one("sep")?] })
            }
            Some("TemplateProcessing") => {
                let mut around = Around::default();
                let mut behind = false;
                for piece in processor["single"].as_array().ok_or_else(|| wrong("`single` is no list"))? {
                    let Some(name) = piece["SpecialToken"]["id"].as_str() else {
                        behind |= piece.get("Sequence").is_some();
                        continue;
                    };
                    let ids = processor["special_tokens"][name]["ids"].as_array();
                    let ids: Option<Vec<u32>> = ids.and_then(|ids| ids.iter().map(id).collect());
                    let ids = ids.ok_or_else(|| wrong(&format!("{name:?} has no ids in `special_tokens`")))?;
                    if behind { &mut around.behind } else { &mut around.before }.extend(ids);
                }
                Ok(around)
            }
            _ => Err(wrong(
                "its type is none of ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing and Sequence",
            )),
        }
    }
}
