//! Fine-tuning data: from the rows of files to tokens with weights.
//!
//! | item | what it is |
//! |---|---|
//! | [`Rows`] | the rows of a JSON, CSV or Parquet file as they are |
//! | [`Records`] | the rows of such a file, in any of the [`Format`]s |
//! | [`Conversation`], [`Sample`], [`PreferencePair`], [`LabelledCompletion`] | the contents of a row |
//! | [`Encoder`] | rows to tokens: which are targets ([`Spans`], [`Trained`]), what is too long; an [`EncodeReport`] counts it all |
//! | [`Example`], [`PairExample`], [`LabelledExample`] | tokens with their weights as targets |
//! | [`pack`], [`packed`] | several examples in a sequence |
//! | [`collect`], [`held_out`] | the rows of sources for a [`Purpose`], mixed, and rows of them to evaluate on |
//! | [`shares`], [`mixture`], [`epoch_order`] | several sources in one, and the order of an epoch |
//! | [`cache_key`], [`store`], [`load`] | encoded rows in a cache on disk |
//! | [`preview`] | an example as a table |
//!
//! `weights[i]` is the weight of token `i` as a *target*, that is, of the loss of its prediction from the tokens before
//! it. The first token of a sequence, and of each document of a packed one, is never a target.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("chats.jsonl");
//! # std::fs::write(&file, r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#)?;
//! # let tokenizer = olmoe_data::Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizer.json"))?;
//! use olmoe_data::instruct::{EncodeOptions, Encoded, Encoder, ReadOptions, Records};
//! use olmoe_data::{ChatTemplate, ChatTokens, SpecialTokenSources, SpecialTokens, TULU};
//!
//! let template = ChatTemplate::new(TULU)?;
//! let end = "<|endoftext|>";
//! let tokens = ChatTokens { bos: Some(end), eos: Some(end), ..ChatTokens::default() };
//! let (special, _) = SpecialTokens::resolve(&tokenizer, &SpecialTokenSources::default())?;
//! let options = EncodeOptions::default();
//! let encoder = Encoder::new(&tokenizer, Some(&template), tokens, &special, &options)?;
//! let records = Records::open(&file, &ReadOptions::default())?.collect::<Result<Vec<_>, _>>()?;
//! let (encoded, report) = encoder.encode_all(&records)?;
//! println!("{report}");
//! for encoded in encoded {
//!     let Encoded::Example(example) = encoded else { unreachable!("no pairs are in this file") };
//!     assert!(example.num_targets() > 0);
//! }
//! # Ok(())
//! # }
//! ```

mod cache;
mod conversation;
mod convert;
mod encode;
mod error;
mod fields;
mod format;
mod json;
mod masks;
mod mix;
mod pack;
mod parquet;
mod preview;
mod reader;
mod report;
mod rows;
mod sources;
mod tokens;

pub use cache::{Key, cache_key, load, store};
pub use conversation::{
    Content, Conversation, Encoded, Example, LabelledCompletion, LabelledExample, PairExample, Place, PreferencePair,
    Record, Sample, Turn,
};
pub use encode::{EncodeOptions, Encoder, Overlong};
pub use error::InstructError;
pub use format::{AlpacaPrompt, Format, ReadOptions};
pub use json::Json;
pub use masks::{Spans, Trained};
pub use mix::{Amount, MixedRow, Share, epoch_order, mixture, shares};
pub use pack::{PackedExample, Packing, Part, pack, packed};
pub use preview::{PreviewRow, preview};
pub use reader::Records;
pub use report::EncodeReport;
pub use rows::{ENDINGS, MAX_JSON_BYTES, Rows};
pub use sources::{Collected, Purpose, Source, SourceReport, collect, files, held_out};
