//! Templates and expressions over rows.

use std::sync::LazyLock;

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use olmoe_data::random::Mersenne;

use super::error::TaskError;
use crate::source::Row;

/// An environment for the templates of tasks: Jinja as Python programs set it up, where what is missing is an error.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the syntax of Jinja is one"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("index", index);
    environment.add_filter("shuffled", shuffled);
    environment.add_filter("regex_replace", regex_replace);
    environment.add_filter("unbracketed", |text: &str, joined: Option<bool>| unbracketed(text, joined == Some(true)));
    environment.add_filter("detokenized", |text: &str| detokenized(text));
    let letters: Vec<String> = ('A'..='Z').map(String::from).collect();
    environment.add_global("letters", Jinja::from_iter(letters));
    environment
}

/// The place of a value in a list.
fn index(list: &Jinja, value: &Jinja) -> Result<usize, Error> {
    let found = list.try_iter()?.position(|item| item == *value);
    found.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{value} is not in {list}")))
}

/// A list after `random.Random(seed).shuffle(list)` of Python.
fn shuffled(list: &Jinja, seed: u64) -> Result<Vec<Jinja>, Error> {
    let mut items: Vec<Jinja> = list.try_iter()?.collect();
    Mersenne::python(seed).shuffle(&mut items);
    Ok(items)
}

/// All matches of a regular expression replaced; in the replacement, `\1` is the first group, as in Python.
fn regex_replace(text: &str, pattern: &str, replacement: &str) -> Result<String, Error> {
    let wrong = |error: fancy_regex::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let pattern = Regex::new(pattern).map_err(wrong)?;
    // A dollar sign is one, and `\1` is `${1}`.
    let mut own = String::new();
    let mut rest = replacement.chars().peekable();
    while let Some(letter) = rest.next() {
        match (letter, rest.peek().copied()) {
            ('$', _) => own.push_str("$$"),
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                own.push_str(&format!("${{{digit}}}"));
                rest.next();
            }
            _ => own.push(letter),
        }
    }
    Ok(pattern.try_replacen(text, 0, own.as_str()).map_err(wrong)?.into_owned())
}

/// A text of HellaSwag without the marks of WikiHow, as OLMo's evaluation takes them out: trimmed, ` [title]` a full stop,
/// other brackets left out, and pairs of spaces single ones. OLMES has a full stop before ` [title]` `joined` with the new one.
fn unbracketed(text: &str, joined: bool) -> String {
    static BRACKETS: LazyLock<regex::Regex> =
        LazyLock::new(|| regex::Regex::new(r"\[.*?\]").expect("the expression is valid"));
    let text = text.trim();
    let text = if joined { text.replace(". [title]", " [title]") } else { text.to_owned() };
    let text = text.replace(" [title]", ". ");
    BRACKETS.replace_all(&text, "").replace("  ", " ")
}

/// A sentence of GLUE without the spaces that a tokenizer put before contractions and punctuation, as OLMo's evaluation takes
/// them out.
fn detokenized(text: &str) -> String {
    static SPACES: LazyLock<regex::Regex> =
        LazyLock::new(|| regex::Regex::new(r" (['.,])").expect("the expression is valid"));
    let text = text.replace(" n't", "n't").replace(" )", ")").replace("( ", "(");
    SPACES.replace_all(&text.replace("\" ", "\"").replace(" \"", "\""), "$1").into_owned()
}

/// What templates and expressions see of a row, which is at a place of its data set.
pub(crate) fn context(row: &Row, place: usize) -> Jinja {
    let own = Jinja::from(Serde(row));
    // A column of the same name is not hidden.
    minijinja::context! { ..own.clone(), ..minijinja::context! { row => own, number => place } }
}

/// A template or expression of a task, ready for rows.
pub(crate) struct Pattern<'a> {
    task: &'a str,
    key: String,
    source: &'a str,
}

impl<'a> Pattern<'a> {
    pub(crate) fn new(task: &'a str, key: impl Into<String>, source: &'a str) -> Pattern<'a> {
        Pattern { task, key: key.into(), source }
    }

    fn wrong(&self, row: &str, error: &Error) -> TaskError {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            reason.push_str(&format!(": {source}"));
            cause = source.source();
        }
        TaskError::Template { task: self.task.to_owned(), row: row.to_owned(), key: self.key.clone(), reason }
    }

    /// The text of the template for a row.
    pub(crate) fn render(
        &self,
        environment: &Environment<'_>,
        row: &str,
        context: &Jinja,
    ) -> Result<String, TaskError> {
        // Most templates have no more than a few replacements; parsing one again takes microseconds.
        environment.render_str(self.source, context).map_err(|error| self.wrong(row, &error))
    }

    /// The value of the expression for a row.
    pub(crate) fn evaluate(
        &self,
        environment: &Environment<'_>,
        row: &str,
        context: &Jinja,
    ) -> Result<Jinja, TaskError> {
        let expression = environment.compile_expression(self.source).map_err(|error| self.wrong(row, &error))?;
        expression.eval(context).map_err(|error| self.wrong(row, &error))
    }

    /// Whether the expression is true for a row.
    pub(crate) fn holds(&self, environment: &Environment<'_>, row: &str, context: &Jinja) -> Result<bool, TaskError> {
        Ok(self.evaluate(environment, row, context)?.is_true())
    }

    /// The error for a value that is not as expected.
    pub(crate) fn unfit(&self, row: &str, found: impl ToString, expected: &str) -> TaskError {
        TaskError::Row {
            task: self.task.to_owned(),
            row: row.to_owned(),
            key: self.key.clone(),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }
}

/// The texts of a list.
pub(crate) fn texts(value: &Jinja) -> Option<Vec<String>> {
    // A part of a list is an iterable.
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return None;
    }
    Some(value.try_iter().ok()?.map(|item| item.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let environment = environment();
        // Python's re.sub, and the functions of OLMo's evaluation.
        for (template, text, expected) in [
            (r#"{{ text | regex_replace("\\[.*?\\]", "") }}"#, "open [ and [closed]", "open "),
            (r#"{{ text | regex_replace("(a)(b)", "\\2$1\\1") }}"#, "ab-ab", "b$1a-b$1a"),
            ("{{ text | unbracketed }}", " How [title] a [step] b.", "How. a b."),
            ("{{ text | unbracketed(true) }}", "How. [title] a", "How. a"),
            ("{{ text | unbracketed }}", "How. [title] a", "How.. a"),
            ("{{ text | unbracketed }}", "[header] Cut  it [substeps] in   two", " Cut it in  two"),
            ("{{ text | unbracketed }}", "two\n[a\nb] [c]", "two\n[a\nb] "),
            ("{{ text | unbracketed }}", "[[a]]", "]"),
            ("{{ text | detokenized }}", "It does n't ( \" so \" ) , he said . 's", "It doesn't (\"so\"), he said.'s"),
        ] {
            let context = minijinja::context! { text };
            assert_eq!(environment.render_str(template, &context).unwrap(), expected);
        }
        let context = minijinja::context! { list => ["A", "B"], key => "B" };
        let row = Pattern::new("t", "gold", "list | index(key)");
        assert_eq!(row.evaluate(&environment, "row 1", &context).unwrap().to_string(), "1");
        let error = Pattern::new("t", "gold", "list | index('C')").evaluate(&environment, "row 1", &context);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("task t, row 1: `gold` cannot be rendered") && error.contains("C is not in"), "{error}");
        let error = Pattern::new("t", "prompt", "{{ missing }}").render(&environment, "row 1", &context);
        assert!(error.unwrap_err().to_string().contains("undefined value"));
    }
}
