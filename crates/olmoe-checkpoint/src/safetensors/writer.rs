//! Writing a safetensors file piece by piece.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use super::limits::{MAX_HEADER, MAX_METADATA, MAX_RANK, MAX_TENSOR_NAME, MAX_TENSORS};
use super::{SafeType, SafetensorsError};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: SafeType,
    /// The shape, outermost axis first.
    pub shape: Vec<usize>,
}

impl Spec {
    /// A tensor of this name, format and shape.
    pub fn new(name: impl Into<String>, dtype: SafeType, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// The size of the tensor in bytes.
    ///
    /// # Errors
    /// [`SafetensorsError::Overflow`].
    pub fn bytes(&self) -> Result<u64, SafetensorsError> {
        self.dtype.bytes(&self.shape).ok_or_else(|| self.overflow())
    }

    fn overflow(&self) -> SafetensorsError {
        let shape = self.shape.iter().map(|&extent| extent as u64).collect();
        SafetensorsError::Overflow { tensor: self.name.clone(), shape }
    }
}

/// Writes a file: the header first, then the numbers of all tensors in the order of the specs.
///
/// The bytes are those that the reference library writes for the same order. That library orders tensors by descending
/// alignment of their formats, then by name; any order is valid.
pub struct Writer<W> {
    inner: W,
    written: u64,
    /// The name and the end of each tensor.
    ends: Vec<(String, u64)>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Specs that make no valid file, or an error of `inner`.
    pub fn new(mut inner: W, specs: &[Spec], metadata: &BTreeMap<String, String>) -> Result<Self, SafetensorsError> {
        let (header, ends) = header(specs, metadata)?;
        inner.write_all(&header)?;
        let ends = specs.iter().zip(ends).map(|(spec, end)| (spec.name.clone(), end)).collect();
        Ok(Self { inner, written: 0, ends })
    }

    /// Writes the next bytes of the tensors; a call may pass part of a tensor or several tensors.
    ///
    /// # Errors
    /// [`SafetensorsError::TooMuch`], or an error of the inner writer.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SafetensorsError> {
        let expected = self.expected();
        let found = self.written.saturating_add(bytes.len() as u64);
        if found > expected {
            return Err(SafetensorsError::TooMuch { found, expected });
        }
        self.inner.write_all(bytes)?;
        self.written = found;
        Ok(())
    }

    /// Checks that all bytes were written, and returns the inner writer without flushing it.
    ///
    /// # Errors
    /// [`SafetensorsError::TooLittle`].
    pub fn finish(self) -> Result<W, SafetensorsError> {
        let (found, expected) = (self.written, self.expected());
        match self.ends.into_iter().find(|(_, end)| *end > found) {
            Some((tensor, _)) => Err(SafetensorsError::TooLittle { found, expected, tensor }),
            None => Ok(self.inner),
        }
    }

    fn expected(&self) -> u64 {
        self.ends.last().map_or(0, |(_, end)| *end)
    }
}

/// The size of the file with these tensors.
///
/// # Errors
/// Specs that make no valid file.
pub fn file_bytes(specs: &[Spec], metadata: &BTreeMap<String, String>) -> Result<u64, SafetensorsError> {
    let (header, ends) = header(specs, metadata)?;
    Ok(header.len() as u64 + ends.last().copied().unwrap_or(0))
}

/// Length and header, padded to 8 bytes; and the end of each tensor in the data.
fn header(specs: &[Spec], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<u64>), SafetensorsError> {
    if specs.len() > MAX_TENSORS {
        return Err(SafetensorsError::TooManyTensors);
    }
    if metadata.len() > MAX_METADATA {
        return Err(SafetensorsError::TooMuchMetadata);
    }
    let json = |text: &str| serde_json::to_string(text).map_err(SafetensorsError::Json);
    let mut names = HashSet::with_capacity(specs.len());
    let mut members = Vec::with_capacity(specs.len() + 1);
    let mut ends = Vec::with_capacity(specs.len());
    if !metadata.is_empty() {
        let text = serde_json::to_string(metadata).map_err(SafetensorsError::Json)?;
        members.push(format!("\"__metadata__\":{text}"));
    }
    let mut begin = 0u64;
    for spec in specs {
        let Spec { name, dtype, shape } = spec;
        if name.len() > MAX_TENSOR_NAME {
            return Err(SafetensorsError::NameTooLong { found: name.len() });
        }
        if name == "__metadata__" {
            return Err(SafetensorsError::ReservedName);
        }
        if !names.insert(name) {
            return Err(SafetensorsError::Duplicate { tensor: name.clone() });
        }
        if shape.len() > MAX_RANK {
            return Err(SafetensorsError::Rank { tensor: name.clone() });
        }
        let end = begin.checked_add(spec.bytes()?).ok_or_else(|| spec.overflow())?;
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        members.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":[{shape}],\"data_offsets\":[{begin},{end}]}}",
            json(name)?,
            dtype.name()
        ));
        ends.push(end);
        begin = end;
    }
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(format!("{{{}}}", members.join(",")).as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let length = bytes.len() as u64 - 8;
    if length > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLong { found: length });
    }
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    Ok((bytes, ends))
}
