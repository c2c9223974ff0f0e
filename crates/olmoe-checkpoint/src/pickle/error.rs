//! What can be wrong with a pickle, one variant per cause.

use thiserror::Error;

/// Why a pickle cannot be read. Offsets are those of the opcode.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// More bytes than [`super::MAX_BYTES`].
    #[error("the pickle has {found} bytes, more than the {limit} that are read; store tensors outside of it")]
    TooLong {
        /// Its bytes.
        found: usize,
        /// [`super::MAX_BYTES`].
        limit: usize,
    },
    /// Does not begin as pickles of protocols 2 and later do.
    #[error("not a pickle of protocol 2 to 5: it must begin with byte 0x80; save it again with pickle_protocol=2")]
    NotAPickle,
    /// A protocol that is not known.
    #[error("pickle protocol {found}, expected 2 to 5; save it again with pickle_protocol=2")]
    Protocol {
        /// The protocol.
        found: u8,
    },
    /// It ends too soon, or a length in it is wrong.
    #[error("pickle, byte {offset}: {needed} bytes expected, {left} are left; the file is cut short or damaged")]
    Truncated {
        /// Where.
        offset: usize,
        /// Bytes that should follow.
        needed: u64,
        /// Bytes that do.
        left: usize,
    },
    /// An opcode that plain data does not need.
    #[error(
        "pickle, byte {offset}: opcode 0x{opcode:02x} ({:?}) is not one that plain data needs; save plain tensors, numbers and dicts",
        char::from(*opcode)
    )]
    Opcode {
        /// Where.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// A class or function that is not known.
    #[error(
        "pickle, byte {offset}: it names `{module}.{name}`, which is not among the harmless globals of a state dict, and nothing was run; save the plain `state_dict()`"
    )]
    Forbidden {
        /// Where.
        offset: usize,
        /// The module, shortened.
        module: String,
        /// The name, shortened.
        name: String,
    },
    /// A call of what only stands as a name, or in a way that is not known.
    #[error("pickle, byte {offset}: a call of {found} {how}; nothing was run; save the plain `state_dict()`")]
    Call {
        /// Where.
        offset: usize,
        /// What is called.
        found: String,
        /// What is wrong with it.
        how: &'static str,
    },
    /// Another type than an opcode works on.
    #[error("pickle, byte {offset}: expected {expected}, found {found}; the file is damaged")]
    Type {
        /// Where.
        offset: usize,
        /// What the opcode works on.
        expected: &'static str,
        /// What it found.
        found: &'static str,
    },
    /// An opcode takes more values than there are.
    #[error("pickle, byte {offset}: the stack is empty; the file is damaged")]
    StackUnderflow {
        /// Where.
        offset: usize,
    },
    /// An opcode ends a group that was not begun.
    #[error("pickle, byte {offset}: the end of a group that was not begun; the file is damaged")]
    NoMark {
        /// Where.
        offset: usize,
    },
    /// Keys without a value.
    #[error("pickle, byte {offset}: a dict's key without a value; the file is damaged")]
    OddItems {
        /// Where.
        offset: usize,
    },
    /// A reference to a value that was not remembered.
    #[error("pickle, byte {offset}: refers to memo {index} of {count}; the file is damaged")]
    Memo {
        /// Where.
        offset: usize,
        /// The reference.
        index: usize,
        /// Values remembered so far.
        count: usize,
    },
    /// Text that is none.
    #[error("pickle, byte {offset}: a string that is not UTF-8; the file is damaged")]
    NotUtf8 {
        /// Where.
        offset: usize,
    },
    /// More of something than its named limit.
    #[error("pickle, byte {offset}: more than {limit} {what}; save plain tensors, few other values")]
    Limit {
        /// Where.
        offset: usize,
        /// Of what.
        what: &'static str,
        /// Most accepted.
        limit: usize,
    },
    /// Not exactly one value at the end, or bytes after it.
    #[error("pickle, byte {offset}: {values} values and {bytes} bytes are left over at the end; the file is damaged")]
    LeftOver {
        /// Where it stops.
        offset: usize,
        /// Values besides the result.
        values: usize,
        /// Bytes after the end.
        bytes: usize,
    },
}

/// The beginning of a text from a file, fit to be printed: at most 80 characters, escape sequences counted as they are
/// printed, and `…` where there is more.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    let (mut start, mut left) = (String::new(), MOST);
    for character in text.chars() {
        let escaped = character.escape_debug();
        let Some(less) = left.checked_sub(escaped.len()) else { return start + "…" };
        left = less;
        start.extend(escaped);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn escape_sequences_count_as_printed() {
        assert_eq!(shortened("a\nb"), "a\\nb");
        assert_eq!(shortened(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(shortened(&"x".repeat(81)), "x".repeat(80) + "…");
        // Six characters each: thirteen of them are 78.
        assert_eq!(shortened(&"\u{10}".repeat(200)), "\\u{10}".repeat(13) + "…");
    }
}
