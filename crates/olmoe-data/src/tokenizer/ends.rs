//! Tokens that always end a text, known by their text. The list is that of llama.cpp (`llama-vocab.cpp`, where the set
//! of end-of-generation tokens is made); vocabularies of chat models share it.

/// The end of a turn, of a message or of a text.
const ENDS: [&str; 20] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
];
/// The end of infilled code: padding, the name of a repository, the next file.
const FILLED: [&str; 11] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Whether a text is one of these tokens.
pub(super) fn is_known(text: &str) -> bool {
    ENDS.contains(&text) || FILLED.contains(&text)
}

/// The ids of these tokens in a vocabulary, in order.
pub(super) fn known(id_of: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    let has = |text: &str| id_of(text).is_some();
    // In these two families the token is used inside texts.
    let ends_messages =
        has("<|call|>") && has("<|return|>") || (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
    let inside = |text: &str| match text {
        "<|end|>" => ends_messages,
        "</s>" => has("<|tool_response>"),
        _ => false,
    };
    let known = ENDS.iter().chain(&FILLED).filter(|text| !inside(text));
    let mut ids: Vec<u32> = known.filter_map(|text| id_of(text)).collect();
    ids.sort_unstable();
    ids
}
