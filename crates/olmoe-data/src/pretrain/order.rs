//! The order of the instances of an epoch: NumPy's shuffle, as OLMo uses it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::DataError;
use crate::random::Pcg;

/// The name of an order's file on disk.
pub const GLOBAL_INDICES: &str = "global_indices.npy";

/// The settings of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderSettings {
    /// The seed of the data; where it is not set, the seed of the run.
    pub seed: u64,
    /// The epoch, from 0; the generator's seed is `seed + epoch`.
    pub epoch: u64,
    /// Whether instances are shuffled.
    pub shuffle: bool,
    /// Whether instances that do not divide evenly among the ranks are left out; if not, the first ones are repeated at
    /// the end.
    pub drop_last: bool,
    /// The number of ranks that each global batch is divided among.
    pub world_size: usize,
}

impl Default for OrderSettings {
    fn default() -> OrderSettings {
        OrderSettings { seed: 6198, epoch: 0, shuffle: true, drop_last: false, world_size: 1 }
    }
}

/// The instances in the order in which an epoch sees them, 4 bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    indices: Vec<u32>,
}

impl Order {
    /// The order of this many instances.
    ///
    /// # Errors
    /// No ranks, or more indices than fit 32 bits.
    pub fn new(instances: u32, settings: OrderSettings) -> Result<Order, DataError> {
        let OrderSettings { seed, epoch, shuffle, drop_last, world_size } = settings;
        if world_size == 0 {
            return Err(DataError::Setting { key: "world_size", value: "0".into(), expected: "at least 1" });
        }
        let (count, world) = (instances as usize, world_size);
        let total =
            if drop_last || count == 0 { count / world * world } else { count.div_ceil(world).saturating_mul(world) };
        if total >= u32::MAX as usize {
            return Err(DataError::TooMany { instances: total as u128 });
        }
        let mut indices: Vec<u32> = (0..instances).collect();
        if shuffle {
            Pcg::new(seed.wrapping_add(epoch)).shuffle(&mut indices);
        }
        indices.truncate(total);
        // Where ranks outnumber instances, instances are repeated more than once.
        while indices.len() < total {
            indices.extend_from_within(..(total - indices.len()).min(count));
        }
        Ok(Order { indices })
    }

    /// All indices.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The number of indices.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no indices.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Writes the order as `global_indices.npy` into a folder, which is created if needed: uint32 numbers without a
    /// header, as OLMo writes them. The file gets its name only when it is complete.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, DataError> {
        let path = folder.join(GLOBAL_INDICES);
        let failed = |action| {
            let path = path.clone();
            move |source| DataError::Order { action, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        let temporary = folder.join(format!("{GLOBAL_INDICES}.tmp"));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            self.pieces().try_for_each(|piece| file.write_all(&piece))?;
            file.sync_all()
        });
        written.map_err(failed("write"))?;
        fs::rename(&temporary, &path).map_err(failed("name"))?;
        Ok(path)
    }

    /// The bytes of the file, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        self.indices.chunks(1 << 18).map(|piece| piece.iter().flat_map(|index| index.to_le_bytes()).collect())
    }

    /// Reads a file that [`Order::write`] or OLMo has written.
    ///
    /// # Errors
    /// Errors of the system, or a size that is not a multiple of 4.
    pub fn read(path: &Path) -> Result<Order, DataError> {
        let bytes = fs::read(path);
        let bytes = bytes.map_err(|source| DataError::Order { action: "read", path: path.to_owned(), source })?;
        let (indices, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(DataError::OrderSize { path: path.to_owned(), bytes: bytes.len() as u64 });
        }
        if indices.len() >= u32::MAX as usize {
            return Err(DataError::TooMany { instances: indices.len() as u128 });
        }
        Ok(Order { indices: indices.iter().map(|index| u32::from_le_bytes(*index)).collect() })
    }
}
