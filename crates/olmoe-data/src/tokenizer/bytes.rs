//! The printable alphabet of byte-level vocabularies: one character for each byte, as in GPT-2.
//!
//! Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 onwards in order.

use std::sync::LazyLock;

static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let printed = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printed { byte as u32 } else { next };
        next += u32::from(!printed);
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

static BYTE_OF: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut table = [None; 0x144];
    for (byte, letter) in (0..=255u8).zip(ALPHABET.iter()) {
        table[*letter as usize] = Some(byte);
    }
    table
});

/// The character that stands for a byte.
pub(super) fn letter(byte: u8) -> char {
    ALPHABET[usize::from(byte)]
}

/// The bytes that a string in the alphabet stands for; None if it has another character.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|letter| BYTE_OF.get(letter as usize).copied().flatten()).collect()
}

/// The bytes that a token decodes to: those that its characters stand for, or its own text where it has other
/// characters, as added tokens may.
pub(super) fn decoded(token: &str) -> Vec<u8> {
    bytes_of(token).unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_letter() {
        for byte in 0..=255 {
            assert_eq!(bytes_of(&letter(byte).to_string()), Some(vec![byte]));
        }
        assert_eq!((letter(b'a'), letter(b' '), letter(b'\n'), letter(0xAD)), ('a', 'Ġ', 'Ċ', 'Ń'));
        assert_eq!(bytes_of("Ġthe"), Some(b" the".to_vec()));
        assert_eq!(bytes_of("a b"), None);
        assert_eq!(decoded("  "), b"  ");
    }
}
