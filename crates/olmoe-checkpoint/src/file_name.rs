//! Names of files: which of those found inside files may become paths, and which belong to a checkpoint.

/// File of a tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Files beside the weights that a conversion takes along as they are.
pub(crate) const COMPANIONS: [&str; 8] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS_MAP,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
/// File names of the formats.
pub(crate) const SAFETENSORS: &str = "model.safetensors";
/// File of the index of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
pub(crate) const HF_CONFIG: &str = "config.json";
pub(crate) const OLMO_CONFIG: &str = "config.yaml";
pub(crate) const TORCH: &str = "model.pt";

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_SAFETENSORS: &str = "adapter_model.safetensors";
pub(crate) const ADAPTER_TORCH: &str = "adapter_model.bin";

/// Longest name of a file, in bytes, on the usual file systems.
pub const MAX_FILE_NAME: usize = 255;

/// Whether `name` names a file of the folder itself on every system: no separators, no drive, no `..`, no control
/// characters.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_FILE_NAME
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

/// Whether a folder of a Hugging Face or an OLMo checkpoint has a file of that name.
pub(crate) fn is_of_checkpoint(name: &str) -> bool {
    const WEIGHTS: [&str; 5] = [SAFETENSORS, INDEX_FILE, HF_CONFIG, OLMO_CONFIG, TORCH];
    let shard = || name.strip_suffix(".safetensors").and_then(numbered).is_some_and(|(stem, ..)| stem == "model");
    COMPANIONS.contains(&name) || WEIGHTS.contains(&name) || shard()
}

/// Whether a folder of an adapter has a file of that name.
pub(crate) fn is_of_adapter(name: &str) -> bool {
    [ADAPTER_CONFIG, ADAPTER_SAFETENSORS].contains(&name)
}

/// The stem, the number from 1 and the count in a name without its extension such as `model-00001-of-00003`.
pub(crate) fn numbered(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits =
        |text: &str| (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok());
    Some((stem, digits(number)??, digits(count)??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_checkpoint_have_fixed_names() {
        for name in ["config.json", "config.yaml", "model.pt", "tokenizer.json", "model-00001-of-00002.safetensors"] {
            assert!(is_of_checkpoint(name), "{name}");
        }
        for name in ["README.md", "LICENSE", "model.gguf", "my-00001-of-00002.safetensors", "model-1-of-2.safetensors"]
        {
            assert!(!is_of_checkpoint(name), "{name}");
        }
    }

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["a", "model-00001-of-00002.safetensors", "..a", "a b", "ä"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(MAX_FILE_NAME + 1);
        for name in ["", ".", "..", "/a", "a/b", "../a", "a\\b", "C:a", "a\0", "a\n", &long] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
