//! Expansion of `~` and of variables in paths that the shell has not expanded.

use std::path::{Path, PathBuf};

/// Expands `~` at the beginning and `$NAME` and `${NAME}` anywhere, as Python's `expanduser` and `expandvars` do. It is
/// for paths that no shell has seen, such as those in a file or after `--flag=`. A path that exists as written is left
/// alone, and so is the name of a variable that is not set.
pub fn expanded(path: &Path) -> PathBuf {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    expanded_with(path, home.as_deref(), &|name| std::env::var(name).ok())
}

fn expanded_with(path: &Path, home: Option<&Path>, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let Some(text) = path.to_str().filter(|text| text.starts_with('~') || text.contains('$')) else {
        return path.to_owned();
    };
    if path.exists() {
        return path.to_owned();
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, length) = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
                let name = &after[..end.unwrap_or(after.len())];
                (name, name.len())
            }
        };
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&format!("${}", &after[..length])),
        }
        rest = &after[length..];
    }
    out.push_str(rest);
    match (Path::new(&out).strip_prefix("~"), home) {
        (Ok(inside), Some(home)) => home.join(inside),
        _ => out.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_python_expands_them() {
        let variable = |name: &str| (name == "DATA").then(|| "/d".to_owned());
        let expand = |text: &str| expanded_with(Path::new(text), Some(Path::new("/home/me")), &variable);
        for (path, expected) in [
            ("~", "/home/me"),
            ("~/x/y", "/home/me/x/y"),
            ("~other/x", "~other/x"),
            ("x/~", "x/~"),
            ("$DATA/x", "/d/x"),
            ("a${DATA}b", "a/db"),
            ("$DATA_2/x", "$DATA_2/x"),
            ("${NOTHING}/x$", "${NOTHING}/x$"),
            ("${DATA", "${DATA"),
            ("plain", "plain"),
        ] {
            assert_eq!(expand(path), Path::new(expected), "{path}");
        }
        assert_eq!(expanded_with(Path::new("~/x"), None, &variable), Path::new("~/x"));
    }
}
