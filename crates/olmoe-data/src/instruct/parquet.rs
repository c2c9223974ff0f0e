//! Rows of Parquet files.
//!
//! The parquet crate reads the format. Its support for Zstandard needs a C compiler, so Zstandard is decoded here: the
//! crate hands out the pages of such columns compressed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Number;

use super::error::InstructError;
use super::json::Json;
use crate::lines::zstd_frames;

/// Most bytes of a decompressed page.
const MAX_PAGE_BYTES: u64 = 1 << 30;
/// The last four bytes of a file.
const MAGIC: &[u8; 4] = b"PAR1";

/// The rows of a file, one row group read at a time.
pub(super) struct ParquetRows {
    path: PathBuf,
    file: Arc<File>,
    reader: SerializedFileReader<File>,
    group: usize,
    rows: std::vec::IntoIter<Json>,
}

impl ParquetRows {
    pub(super) fn open(path: &Path) -> Result<ParquetRows, InstructError> {
        let mut file = File::open(path).map_err(InstructError::unreadable(path))?;
        let mut end = [0; 4];
        let ended = file.seek(SeekFrom::End(-4)).and_then(|_| file.read_exact(&mut end));
        if ended.is_err() || end != *MAGIC {
            let message = "it does not end with \"PAR1\"".to_owned();
            return Err(InstructError::Parquet { path: path.to_owned(), message });
        }
        let file = Arc::new(file);
        let copy = file.try_clone().map_err(InstructError::unreadable(path))?;
        let reader = guarded(path, || SerializedFileReader::new(copy))?;
        Ok(ParquetRows { path: path.to_owned(), file, reader, group: 0, rows: Vec::new().into_iter() })
    }

    fn read_group(&self) -> Result<Vec<Json>, InstructError> {
        guarded(&self.path, || {
            let group = self.reader.get_row_group(self.group)?;
            let group = Unpacked { group: group.as_ref(), file: self.file.clone() };
            RowIter::from_row_group(None, &group)?.map(|row| object(row?)).collect()
        })
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Json, InstructError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            if self.group >= self.reader.num_row_groups() {
                return None;
            }
            match self.read_group() {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(error) => return Some(Err(error)),
            }
            self.group += 1;
        }
    }
}

/// Runs a call into the parquet crate, so that its errors and its panics on damaged files become errors here.
fn guarded<R>(path: &Path, run: impl FnOnce() -> ParquetResult<R>) -> Result<R, InstructError> {
    let message = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the file is damaged".to_owned(),
    };
    Err(InstructError::Parquet { path: path.to_owned(), message })
}

/// A row group whose columns may have any supported compression.
struct Unpacked<'a> {
    group: &'a dyn RowGroupReader,
    file: Arc<File>,
}

impl RowGroupReader for Unpacked<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, column: usize) -> ParquetResult<Box<dyn PageReader>> {
        let metadata = self.metadata().column(column);
        if !matches!(metadata.compression(), Compression::ZSTD(_)) {
            return self.group.get_column_page_reader(column);
        }
        let plain: ColumnChunkMetaData =
            metadata.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(self.metadata().num_rows())?;
        let pages = SerializedPageReader::new(self.file.clone(), &plain, rows, None)?;
        Ok(Box::new(ZstdPages { pages }))
    }

    fn get_column_bloom_filter(&self, column: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(column)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> ParquetResult<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// Pages that are compressed with Zstandard.
struct ZstdPages {
    pages: SerializedPageReader<File>,
}

impl ZstdPages {
    fn unpacked(mut page: Page) -> ParquetResult<Page> {
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = unpack(buf, 0)?,
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. } => {
                if *is_compressed {
                    *buf = unpack(buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)?;
                    *is_compressed = false;
                }
            }
        }
        Ok(page)
    }
}

/// Decompresses a page whose first `levels` bytes are not compressed.
fn unpack(bytes: &[u8], levels: usize) -> ParquetResult<Bytes> {
    let general = |message: String| ParquetError::General(message);
    let packed = bytes
        .get(levels..)
        .ok_or_else(|| general("a page is shorter than its repetition and definition levels".to_owned()))?;
    let mut out = bytes[..levels].to_vec();
    if !packed.is_empty() {
        let read = zstd_frames(packed).take(MAX_PAGE_BYTES + 1).read_to_end(&mut out);
        read.map_err(|error| general(format!("a page cannot be decompressed: {error}")))?;
    }
    if out.len() as u64 > MAX_PAGE_BYTES {
        return Err(general(format!("a page has more than {MAX_PAGE_BYTES} bytes")));
    }
    Ok(out.into())
}

impl Iterator for ZstdPages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for ZstdPages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        match self.pages.get_next_page()? {
            Some(page) => Self::unpacked(page).map(Some),
            None => Ok(None),
        }
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.pages.skip_next_page()
    }
}

fn object(row: Row) -> ParquetResult<Json> {
    let columns = row.into_columns().into_iter();
    Ok(Json::Object(columns.map(|(name, field)| Ok((name, json(&field)?))).collect::<ParquetResult<_>>()?))
}

fn json(field: &Field) -> ParquetResult<Json> {
    let float = |number: f64| Number::from_f64(number).map_or(Json::Null, Json::Number);
    Ok(match field {
        Field::Null => Json::Null,
        Field::Bool(truth) => Json::Bool(*truth),
        Field::Byte(number) => Json::Number((*number).into()),
        Field::Short(number) => Json::Number((*number).into()),
        Field::Int(number) => Json::Number((*number).into()),
        Field::Long(number) => Json::Number((*number).into()),
        Field::UByte(number) => Json::Number((*number).into()),
        Field::UShort(number) => Json::Number((*number).into()),
        Field::UInt(number) => Json::Number((*number).into()),
        Field::ULong(number) => Json::Number((*number).into()),
        Field::Float16(number) => float(f64::from(*number)),
        Field::Float(number) => float(f64::from(*number)),
        Field::Double(number) => float(*number),
        Field::Str(text) => Json::Text(text.clone()),
        Field::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes.data());
            Json::Text(
                text.map_err(|_| ParquetError::General("a column of bytes is not UTF-8 text".to_owned()))?.to_owned(),
            )
        }
        Field::ListInternal(list) => Json::List(list.elements().iter().map(json).collect::<ParquetResult<_>>()?),
        Field::Group(group) => {
            let columns = group.get_column_iter();
            Json::Object(columns.map(|(name, field)| Ok((name.clone(), json(field)?))).collect::<ParquetResult<_>>()?)
        }
        Field::MapInternal(map) => {
            let entry = |(key, value): &(Field, Field)| {
                let key = match json(key)? {
                    Json::Text(text) => text,
                    _ => return Err(ParquetError::General("a map has keys that are not strings".to_owned())),
                };
                Ok((key, json(value)?))
            };
            Json::Object(map.entries().iter().map(entry).collect::<ParquetResult<_>>()?)
        }
        // Dates and decimals, which no field of fine-tuning data has.
        other => Json::Text(other.to_string()),
    })
}
