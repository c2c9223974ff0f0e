//! Patterns of file names, as Python's `fnmatch` has them: `*` is any text, slashes too, `?` one character, `[a-c]` one
//! of a set, `[!a-c]` one outside it. A pattern that ends with a slash means everything in that folder.

/// Whether the whole name fits the pattern.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern: Vec<char> = pattern.chars().collect();
    if pattern.last() == Some(&'/') {
        pattern.push('*');
    }
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star did not fit: the star takes one character more.
    let mut retry = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            retry = Some((p + 1, n));
            p += 1;
            continue;
        }
        if n == name.len() && p == pattern.len() {
            return true;
        }
        match name.get(n).and_then(|&c| one(pattern.get(p..)?, c)) {
            Some(taken) => (p, n) = (p + taken, n + 1),
            None => match retry {
                Some((star, from)) if from < name.len() => {
                    retry = Some((star, from + 1));
                    (p, n) = (star, from + 1);
                }
                _ => return false,
            },
        }
    }
}

/// How many characters of the pattern stand for `c`, none if it begins otherwise.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => match set(pattern) {
            Some((length, inside)) => inside(c).then_some(length),
            None => (c == '[').then_some(1),
        },
        literal => (*literal == c).then_some(1),
    }
}

/// A set in brackets: its length in the pattern and what belongs to it. None if it is never closed.
fn set(pattern: &[char]) -> Option<(usize, impl Fn(char) -> bool)> {
    let negated = pattern.get(1) == Some(&'!');
    let begin = 1 + usize::from(negated);
    // A bracket right at the beginning is a member.
    let end = begin + 1 + pattern.get(begin + 1..)?.iter().position(|&c| c == ']')?;
    let members = pattern.get(begin..end)?;
    let inside = move |c| {
        let mut i = 0;
        let mut found = false;
        while let Some(&low) = members.get(i) {
            match (members.get(i + 1), members.get(i + 2)) {
                (Some('-'), Some(&high)) => {
                    found |= (low..=high).contains(&c);
                    i += 3;
                }
                _ => {
                    found |= low == c;
                    i += 1;
                }
            }
        }
        found != negated
    };
    Some((end + 1, inside))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.json", "config.json", true),
            ("*.json", "a/b/config.json", true),
            ("*.json", "config.json5", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("model-0000?-of-*.safetensors", "model-00001-of-00003.safetensors", true),
            ("model-0000?-of-*.safetensors", "model-00011-of-00013.safetensors", false),
            ("*a*b*c*", "xaybzcw", true),
            ("*a*b*c*", "xaybzw", false),
            ("*aab", "aaaab", true),
            ("**", "abc", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[!a-c]x", "ax", false),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            ("[", "[", true),
            ("[!]", "[!]", true),
            ("onnx/", "onnx/model.onnx", true),
            ("onnx/", "onnx", false),
            ("?", "é", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!matches(&format!("{}b", "*a".repeat(100)), &"a".repeat(1000)));
    }
}
