//! Rows of Arrow files: streams, which the `datasets` library writes, and files with a footer.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType};
use serde_json::{Number, Value};

use super::Row;
use super::error::SourceError;

/// The first bytes of a file with a footer.
const MAGIC: &[u8] = b"ARROW1";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// The rows of a file; `shown` is what messages call it.
pub(super) fn arrow_rows(
    shown: &str,
    mut input: BufReader<File>,
) -> Result<impl Iterator<Item = Result<Row, SourceError>> + use<>, SourceError> {
    let unreadable = |source| SourceError::Unreadable { file: shown.to_owned(), source };
    let with_footer = input.fill_buf().map_err(unreadable)?.starts_with(MAGIC);
    let mut batches = guarded(shown, move || {
        Ok(match with_footer {
            true => Box::new(FileReader::try_new(input, None)?) as Batches,
            false => Box::new(StreamReader::try_new(input, None)?),
        })
    })?;
    let shown = shown.to_owned();
    let mut rows = Vec::new().into_iter();
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some(row) = rows.next() {
                return Some(Ok(row));
            }
            if ended {
                return None;
            }
            match guarded(&shown, || batches.next().map(|batch| rows_of(&batch?)).transpose()) {
                Ok(Some(read)) => rows = read.into_iter(),
                Ok(None) => return None,
                Err(error) => {
                    ended = true;
                    return Some(Err(error));
                }
            }
        }
    }))
}

/// Runs a call into the arrow crates, so that their errors and their panics on damaged files become errors here.
fn guarded<R>(shown: &str, run: impl FnOnce() -> Result<R, ArrowError>) -> Result<R, SourceError> {
    let reason = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the file is damaged".to_owned(),
    };
    Err(SourceError::Arrow { file: shown.to_owned(), reason })
}

fn rows_of(batch: &RecordBatch) -> Result<Vec<Row>, ArrowError> {
    let mut rows = vec![Row::new(); batch.num_rows()];
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        for (row, value) in rows.iter_mut().zip(values(column.as_ref())?) {
            row.insert(field.name().clone(), value);
        }
    }
    Ok(rows)
}

/// The values of an array as JSON.
fn values(array: &dyn Array) -> Result<Vec<Value>, ArrowError> {
    /// The values of an array of numbers.
    macro_rules! numbers {
        ($type:ty, $number:expr) => {
            array.as_primitive::<$type>().iter().map(|value| value.map_or(Value::Null, $number)).collect()
        };
    }
    let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    Ok(match array.data_type() {
        DataType::Null => vec![Value::Null; array.len()],
        DataType::Boolean => array.as_boolean().iter().map(Value::from).collect(),
        DataType::Int8 => numbers!(Int8Type, Value::from),
        DataType::Int16 => numbers!(Int16Type, Value::from),
        DataType::Int32 => numbers!(Int32Type, Value::from),
        DataType::Int64 => numbers!(Int64Type, Value::from),
        DataType::UInt8 => numbers!(UInt8Type, Value::from),
        DataType::UInt16 => numbers!(UInt16Type, Value::from),
        DataType::UInt32 => numbers!(UInt32Type, Value::from),
        DataType::UInt64 => numbers!(UInt64Type, Value::from),
        DataType::Float16 => numbers!(Float16Type, |value| float(f64::from(value))),
        DataType::Float32 => numbers!(Float32Type, |value| float(f64::from(value))),
        DataType::Float64 => numbers!(Float64Type, float),
        DataType::Utf8 => array.as_string::<i32>().iter().map(Value::from).collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().map(Value::from).collect(),
        DataType::Utf8View => array.as_string_view().iter().map(Value::from).collect(),
        DataType::List(_) => lists(array.as_list::<i32>().iter())?,
        DataType::LargeList(_) => lists(array.as_list::<i64>().iter())?,
        DataType::FixedSizeList(..) => lists(array.as_fixed_size_list().iter())?,
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let mut objects = vec![Row::new(); array.len()];
            for (field, column) in fields.iter().zip(columns.columns()) {
                for (object, value) in objects.iter_mut().zip(values(column.as_ref())?) {
                    object.insert(field.name().clone(), value);
                }
            }
            let objects = objects.into_iter().enumerate();
            objects.map(|(i, object)| if columns.is_null(i) { Value::Null } else { Value::Object(object) }).collect()
        }
        other => {
            return Err(ArrowError::NotYetImplemented(format!("a column has the type {other}, which is not read")));
        }
    })
}

fn lists(arrays: impl Iterator<Item = Option<arrow_array::ArrayRef>>) -> Result<Vec<Value>, ArrowError> {
    arrays
        .map(|array| match array {
            Some(array) => values(array.as_ref()).map(Value::Array),
            None => Ok(Value::Null),
        })
        .collect()
}
