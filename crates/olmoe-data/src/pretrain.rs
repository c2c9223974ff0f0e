//! Training batches from token files, in the order of OLMo's trainer.
//!
//! | type | what it is |
//! |---|---|
//! | [`DataSet`] | token files cut into instances of one length |
//! | [`Order`] | the instances of an epoch, shuffled: OLMo's `global_indices.npy` |
//! | [`Loader`] | the batches of an epoch from any example on, read ahead by a thread |
//! | [`Batch`] | token ids and their masks; [`Batch::targets`] are the labels for the loss |
//! | [`RepetitionFilter`] | which instances are kept out of the loss |
//!
//! An epoch's order depends on the seed, the epoch and the number of instances. What a batch holds depends on the order
//! and on the position of its first example. A run that saved [`Batch::next`] and resumes from there sees the batches
//! that it would have seen. OLMo's `num_workers` and `prefetch_factor` change none of this and have no counterpart.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let tokens = folder.path().join("part-0-00000.npy");
//! # std::fs::write(&tokens, (0..100u16).flat_map(u16::to_le_bytes).collect::<Vec<_>>())?;
//! use std::sync::Arc;
//!
//! use olmoe_data::pretrain::{DataSet, DataSettings, Loader, LoaderSettings, Order, OrderSettings};
//!
//! let settings = DataSettings { vocabulary: 50_280, doc_lengths: Some(50_279), ..DataSettings::new(vec![tokens], 8) };
//! let data = Arc::new(DataSet::open(settings)?);
//! let (seed, mut epoch, mut examples_seen) = (6198, 0, 0);
//! let mut steps = 0;
//! while epoch < 2 {
//!     let order = Order::new(data.len(), OrderSettings { seed, epoch, drop_last: true, ..OrderSettings::default() })?;
//!     order.write(&folder.path().join("train_data"))?;
//!     let batches = LoaderSettings { batch_size: 4, start: examples_seen, drop_last: true, ..LoaderSettings::default() };
//!     for batch in Loader::new(data.clone(), Arc::new(order), batches)? {
//!         let batch = batch?;
//!         let targets = batch.targets();
//!         // A step, with `batch.ids` and `targets`, both [batch.size, 8]; a checkpoint keeps `epoch` and `examples_seen`.
//!         assert_eq!(targets.len(), batch.ids.len());
//!         examples_seen = batch.next;
//!         steps += 1;
//!     }
//!     (epoch, examples_seen) = (epoch + 1, 0);
//! }
//! assert_eq!(steps, 2 * (100 / 8 / 4));
//! # Ok(())
//! # }
//! ```

mod batch;
mod data_set;
mod error;
mod loader;
mod order;
mod repetition;

pub use batch::{Batch, document_lengths};
pub use data_set::{DataSet, DataSettings};
pub use error::DataError;
pub use loader::{Loader, LoaderSettings};
pub use order::{GLOBAL_INDICES, Order, OrderSettings};
pub use repetition::{Repetition, RepetitionFilter};
