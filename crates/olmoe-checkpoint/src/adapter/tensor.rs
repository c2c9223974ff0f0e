//! The numbers of a tensor of an adapter.

use super::error::AdapterFileError;
use crate::error::CheckpointError;
use crate::open::{Contents, Stored, StoredType};
use crate::read_at::ReadAt;

/// The numbers of a tensor, all of them finite.
pub(super) fn numbers(contents: &Contents, tensor: &Stored) -> Result<Vec<f32>, CheckpointError> {
    let (path, file) = &contents.files[tensor.file];
    let bad = |found: String| CheckpointError::Encoding { path: path.clone(), tensor: tensor.name.clone(), found };
    let encoding = match &tensor.kind {
        StoredType::Known(encoding) => *encoding,
        StoredType::Other(name) => return Err(bad(name.clone())),
    };
    let count: usize = tensor.shape.iter().product();
    if encoding.bytes(count).map(|bytes| bytes as u64) != Some(tensor.bytes) {
        return Err(bad(format!("{encoding} of {} bytes", tensor.bytes)));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read_at(tensor.offset, &mut bytes).map_err(CheckpointError::io(path))?;
    let mut numbers = vec![0.0; count];
    encoding.decode(&bytes, &mut numbers);
    match numbers.iter().position(|x| !x.is_finite()) {
        None => Ok(numbers),
        Some(at) => {
            let problem = format!("number {at} is not finite; the file is damaged or the training diverged");
            Err(CheckpointError::adapter(path)(AdapterFileError::tensor(&tensor.name, problem)))
        }
    }
}
