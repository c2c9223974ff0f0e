//! A number and what it counts.

/// A count with its noun in the singular or the plural: 1 token, 2 tokens. For nouns whose plural adds only an s.
pub fn counted(count: impl std::fmt::Display, noun: &str) -> String {
    let count = count.to_string();
    let hissing = ["tch", "sh", "s", "x"].iter().any(|ending| noun.ends_with(ending));
    let ending = match (&*count, hissing) {
        ("1", _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "token")), ["0 tokens", "1 token", "2 tokens"]);
        assert_eq!([1, 2].map(|count| counted(count, "batch")), ["1 batch", "2 batches"]);
        assert_eq!(counted(2, "epoch"), "2 epochs");
    }
}
