//! The arguments of a call, by position or by name, as a Python function takes them.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

/// The arguments of a function.
pub(super) struct Arguments<'a> {
    function: &'a str,
    places: &'a [Value],
    names: Kwargs,
    next: usize,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(function: &'a str, args: &'a [Value]) -> Result<Arguments<'a>, Error> {
        let (places, names): (&[Value], Kwargs) = from_args(args)?;
        Ok(Arguments { function, places, names, next: 0 })
    }

    /// The next argument, which may also be given by name.
    pub(super) fn value(&mut self, name: &str) -> Result<Option<Value>, Error> {
        self.next += 1;
        match self.places.get(self.next - 1) {
            Some(_) if self.names.has(name) => Err(self.wrong(format!("{name} is given twice"))),
            Some(value) => Ok(Some(value.clone())),
            None if self.names.has(name) => self.names.get(name).map(Some),
            None => Ok(None),
        }
    }

    /// As [`value`](Self::value); None counts as an argument that is left out.
    pub(super) fn some(&mut self, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.value(name)?.filter(|value| !value.is_none()))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        self.some(name)?.map(|value| self.as_text(name, &value)).transpose()
    }

    /// A string argument that must be given.
    pub(super) fn needed_text(&mut self, name: &str) -> Result<String, Error> {
        let value = self.needed(name)?;
        self.as_text(name, &value)
    }

    pub(super) fn needed(&mut self, name: &str) -> Result<Value, Error> {
        self.value(name)?.ok_or_else(|| self.wrong(format!("{name} is missing")))
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let Some(value) = self.some(name)? else { return Ok(None) };
        let integer = i64::try_from(value.clone())
            .ok()
            .filter(|_| value.is_integer() || value.kind() == minijinja::value::ValueKind::Bool);
        integer.map(Some).ok_or_else(|| self.wrong(format!("{name} is {value:?}, expected a whole number")))
    }

    pub(super) fn needed_integer(&mut self, name: &str) -> Result<i64, Error> {
        self.integer(name)?.ok_or_else(|| self.wrong(format!("{name} is missing")))
    }

    /// Whether a flag is given and true, as Python sees it.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.value(name)?.map_or(default, |value| value.is_true()))
    }

    /// Fails if there are further arguments.
    pub(super) fn end(self) -> Result<(), Error> {
        if self.places.len() > self.next {
            let (found, most) = (self.places.len(), self.next);
            return Err(self.wrong(format!("there are {found} arguments, expected {most} at most")));
        }
        self.names.assert_all_used()
    }

    pub(super) fn wrong(&self, message: String) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}: {message}", self.function))
    }

    fn as_text(&self, name: &str, value: &Value) -> Result<String, Error> {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| self.wrong(format!("{name} is {value:?}, expected a string")))
    }
}
