//! Values of flags.

/// A whole number above 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

/// A number of bytes: 5GB, 500MB, 4GiB, 2G as llama.cpp has it, or the number itself.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1e0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => 0.0,
    };
    let bytes = number.parse::<f64>().unwrap_or(0.0) * factor;
    // Whole bytes far below what a double holds exactly.
    if (1.0..1e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected a size such as 5GB, 500MB or 4GiB".to_owned())
    }
}
