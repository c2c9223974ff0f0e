//! A chat template: it ends, with a text or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_data::{ChatTemplate, ChatTokens, Message};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Hi\n"), Message::new("assistant", "")];
    let tokens = ChatTokens { bos: Some("<s>"), ..ChatTokens::default() };
    for end in [true, false] {
        let _ = template.render(&messages, tokens, end);
    }
});
