//! Python pickles of protocols 2 to 5, read without executing anything.
//!
//! A pickle is a program for a small stack machine that can call any Python function. This machine has only the opcodes
//! that plain data needs, and the few globals in `GLOBALS`: some can only be named, the others can be "called", which
//! creates an inert [`PickleValue::Reduce`] node. Any other global is an error that names it.
//!
//! Values are in one flat list and refer to each other by index. So a value may contain itself, deep nesting needs no
//! deep call stack, neither for reading nor for dropping it, and shared values exist once. Strings and bytes are
//! borrowed from the pickle. Memory is a small multiple of the length of the pickle, and time is linear in it.

mod error;
mod value;

pub use error::PickleError;
pub(crate) use error::shortened;
use value::{GLOBALS, ORDERED_DICT};
pub use value::{Global, Id, Pickle, PickleValue};

/// Most bytes of a pickle.
pub const MAX_BYTES: usize = 8 << 20;
/// Most values pushed on the stack in all, shared ones counted each time; bounds what the tree takes.
pub const MAX_VALUES: usize = 1 << 17;
/// Most values on the stack at one time.
pub const MAX_STACK: usize = 1 << 16;
/// Most values remembered for later reference.
pub const MAX_MEMO: usize = 1 << 20;
/// Most groups (tuples, batches of a list or dict) that are open at one time.
pub const MAX_MARKS: usize = 256;

type Result<T> = std::result::Result<T, PickleError>;

/// Reads a pickle; nothing in it is executed.
pub fn parse(bytes: &[u8]) -> Result<Pickle<'_>> {
    if bytes.len() > MAX_BYTES {
        return Err(PickleError::TooLong { found: bytes.len(), limit: MAX_BYTES });
    }
    if bytes.first() != Some(&PROTO) {
        return Err(PickleError::NotAPickle);
    }
    let mut machine = Machine { bytes, ..Machine::default() };
    loop {
        if let Some(root) = machine.step()? {
            return Ok(Pickle { values: machine.values, root });
        }
    }
}

const PROTO: u8 = 0x80;

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    /// Next byte to read.
    at: usize,
    /// Where the current opcode lies.
    offset: usize,
    values: Vec<PickleValue<'a>>,
    pushed: usize,
    stack: Vec<Id>,
    /// Heights of the stack where groups begin, ascending.
    marks: Vec<usize>,
    memo: Vec<Id>,
}

impl<'a> Machine<'a> {
    /// Does one opcode; gives the result at the last.
    fn step(&mut self) -> Result<Option<Id>> {
        self.offset = self.at;
        let [opcode] = self.array()?;
        match opcode {
            PROTO => {
                let [protocol] = self.array()?;
                if !(2..=5).contains(&protocol) {
                    return Err(PickleError::Protocol { found: protocol });
                }
            }
            // A frame only says how much may be read at once.
            0x95 => {
                let length = u64::from_le_bytes(self.array()?);
                self.check_left(length)?;
            }
            b'.' => return self.stop().map(Some),

            b'N' => self.push(PickleValue::None)?,
            0x88 => self.push(PickleValue::Bool(true))?,
            0x89 => self.push(PickleValue::Bool(false))?,
            b'K' => {
                let [value] = self.array()?;
                self.push(PickleValue::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(value.into()))?;
            }
            0x8a => {
                let bytes = self.counted_1()?;
                self.push(integer(bytes))?;
            }
            0x8b => {
                let bytes = self.counted_4()?;
                self.push(integer(bytes))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(PickleValue::Float(value))?;
            }

            0x8c => {
                let bytes = self.counted_1()?;
                self.push_text(bytes)?;
            }
            b'X' => {
                let bytes = self.counted_4()?;
                self.push_text(bytes)?;
            }
            0x8d => {
                let bytes = self.counted_8()?;
                self.push_text(bytes)?;
            }
            b'C' => {
                let bytes = self.counted_1()?;
                self.push(PickleValue::Bytes(bytes))?;
            }
            b'B' => {
                let bytes = self.counted_4()?;
                self.push(PickleValue::Bytes(bytes))?;
            }
            0x8e | 0x96 => {
                let bytes = self.counted_8()?;
                self.push(PickleValue::Bytes(bytes))?;
            }

            b'(' => {
                self.limit(self.marks.len(), "open groups", MAX_MARKS)?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_group()?;
            }
            b'2' => {
                let id = self.top()?;
                self.push_id(id)?;
            }

            b')' => self.push(PickleValue::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_group()?;
                self.push(PickleValue::Tuple(items))?;
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(PickleValue::Tuple(items))?;
            }
            b']' => self.push(PickleValue::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_group()?;
                self.append(&items)?;
            }
            b'}' => self.push(PickleValue::Dict(Vec::new()))?,
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_group()?;
                self.insert(&items)?;
            }

            b'q' => {
                let [index] = self.array()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index as usize)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let [index] = self.array()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index as usize)?;
            }

            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_global(module, name)?;
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                self.push_global(module, name)?;
            }
            // Making an object of a class is calling the class.
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(PickleValue::Persistent(id))?;
            }
            _ => return Err(PickleError::Opcode { offset: self.offset, opcode }),
        }
        Ok(None)
    }

    fn check_left(&self, needed: u64) -> Result<()> {
        let left = self.bytes.len() - self.at;
        if needed > left as u64 {
            return Err(PickleError::Truncated { offset: self.offset, needed, left });
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        self.check_left(count)?;
        let bytes = &self.bytes[self.at..][..count as usize];
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// Bytes that follow their count.
    fn counted_1(&mut self) -> Result<&'a [u8]> {
        let [count] = self.array()?;
        self.take(count.into())
    }

    fn counted_4(&mut self) -> Result<&'a [u8]> {
        let count = u32::from_le_bytes(self.array()?);
        self.take(count.into())
    }

    fn counted_8(&mut self) -> Result<&'a [u8]> {
        let count = u64::from_le_bytes(self.array()?);
        self.take(count)
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            let needed = rest.len() as u64 + 1;
            return Err(PickleError::Truncated { offset: self.offset, needed, left: rest.len() });
        };
        self.at += length + 1;
        self.text(&rest[..length])
    }

    fn text(&self, bytes: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|_| PickleError::NotUtf8 { offset: self.offset })
    }

    /// An error if one more is too many.
    fn limit(&self, count: usize, what: &'static str, limit: usize) -> Result<()> {
        if count >= limit {
            return Err(PickleError::Limit { offset: self.offset, what, limit });
        }
        Ok(())
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        self.limit(self.stack.len(), "values on the stack", MAX_STACK)?;
        self.limit(self.pushed, "values", MAX_VALUES)?;
        self.pushed += 1;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: PickleValue<'a>) -> Result<()> {
        // Fits: there are at most MAX_VALUES values.
        self.push_id(Id(self.values.len() as u32))?;
        self.values.push(value);
        Ok(())
    }

    fn push_text(&mut self, bytes: &'a [u8]) -> Result<()> {
        let text = self.text(bytes)?;
        self.push(PickleValue::Str(text))
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        let known = GLOBALS.iter().find(|global| global.module == module && global.name == name);
        let global = known.ok_or_else(|| PickleError::Forbidden {
            offset: self.offset,
            module: shortened(module),
            name: shortened(name),
        })?;
        self.push(PickleValue::Global(global))
    }

    /// Height of the stack under the values of the innermost group.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        let ids = self.stack.get(self.floor()..).unwrap_or_default();
        ids.last().copied().ok_or(PickleError::StackUnderflow { offset: self.offset })
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_text(&mut self) -> Result<&'a str> {
        let id = self.pop()?;
        match self.value(id) {
            PickleValue::Str(text) => Ok(text),
            other => Err(self.wrong_type("a string", other)),
        }
    }

    fn pop_group(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or(PickleError::NoMark { offset: self.offset })?;
        Ok(self.stack.split_off(mark))
    }

    fn value(&self, id: Id) -> &PickleValue<'a> {
        &self.values[id.0 as usize]
    }

    fn wrong_type(&self, expected: &'static str, found: &PickleValue) -> PickleError {
        PickleError::Type { offset: self.offset, expected, found: found.kind() }
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        let list = self.top()?;
        match &mut self.values[list.0 as usize] {
            PickleValue::List(list) => list.extend_from_slice(items),
            _ => return Err(self.wrong_type("a list", self.value(list))),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(PickleError::OddItems { offset: self.offset });
        }
        let dict = self.top()?;
        match &mut self.values[dict.0 as usize] {
            PickleValue::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(self.wrong_type("a dict", self.value(dict))),
        }
        Ok(())
    }

    /// Picklers number what they remember from 0 on without gaps, so the memo cannot outgrow the pickle.
    fn remember(&mut self, index: usize) -> Result<()> {
        let id = self.top()?;
        if let Some(place) = self.memo.get_mut(index) {
            *place = id;
        } else if index == self.memo.len() {
            self.limit(index, "remembered values", MAX_MEMO)?;
            self.memo.push(id);
        } else {
            return Err(PickleError::Memo { offset: self.offset, index, count: self.memo.len() });
        }
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<()> {
        let found = self.memo.get(index).copied();
        let id = found.ok_or(PickleError::Memo { offset: self.offset, index, count: self.memo.len() })?;
        self.push_id(id)
    }

    fn call(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let refused = |found: String, how| Err(PickleError::Call { offset: self.offset, found, how });
        let function = match self.value(function) {
            PickleValue::Global(function) if function.callable => *function,
            PickleValue::Global(other) => {
                return refused(format!("{}.{}", other.module, other.name), "is not known, only its name");
            }
            other => return refused(other.kind().into(), "makes no sense"),
        };
        let PickleValue::Tuple(items) = self.value(arguments) else {
            return Err(self.wrong_type("a tuple of arguments", self.value(arguments)));
        };
        if *function != ORDERED_DICT {
            return self.push(PickleValue::Reduce { function, arguments });
        }
        if !items.is_empty() {
            return refused("collections.OrderedDict".into(), "with items is not known");
        }
        self.push(PickleValue::Dict(Vec::new()))
    }

    /// Attributes of a dict, such as the `_metadata` of a state dict, are dropped; other values have none.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let object = self.top()?;
        match self.value(object) {
            PickleValue::Dict(_) => Ok(()),
            other => Err(self.wrong_type("a dict to give attributes to", other)),
        }
    }

    fn stop(&mut self) -> Result<Id> {
        let root = self.pop()?;
        let (values, bytes) = (self.stack.len(), self.bytes.len() - self.at);
        if values > 0 || bytes > 0 || !self.marks.is_empty() {
            return Err(PickleError::LeftOver { offset: self.offset, values, bytes });
        }
        Ok(root)
    }
}

/// Two's complement, little-endian, of any length; empty is zero.
fn integer(bytes: &[u8]) -> PickleValue<'_> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut word = [if negative { 0xff } else { 0 }; 8];
    match word.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            PickleValue::Int(i64::from_le_bytes(word))
        }
        None => PickleValue::LongInt(bytes),
    }
}
