//! The instances of each step: `data-indices/rank0.tsv.gz`, in OLMo's format.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use olmoe_checkpoint::disk::{Disk, make_folders, write_whole};

use super::error::TrainError;

/// The file, with a line a step: its number and the instances, between tabs. Each line is packed by itself, so that a
/// run which ends at any time leaves lines that can be read.
pub(super) struct Indices<D: Disk> {
    path: PathBuf,
    file: D::File,
}

impl<D: Disk> Indices<D> {
    /// Opens the file of a run that goes on after `step`, without the lines of later steps.
    pub(super) fn open(disk: &D, run_dir: &Path, step: u64) -> Result<Indices<D>, TrainError> {
        let folder = run_dir.join("data-indices");
        make_folders(disk, &folder).map_err(TrainError::io("make the folder", &folder))?;
        let path = folder.join("rank0.tsv.gz");
        let old = if step > 0 { File::open(&path).ok() } else { None };
        let file = write_whole(disk, &path, |out| match old {
            Some(old) => copy_lines(old, step, out),
            None => Ok(()),
        });
        Ok(Indices { file: file.map_err(TrainError::io("write", &path))?, path })
    }

    /// Writes the line of a step.
    pub(super) fn record(&mut self, disk: &D, step: u64, indices: &[u32]) -> Result<(), TrainError> {
        let line = indices.iter().fold(step.to_string(), |line, index| format!("{line}\t{index}")) + "\n";
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed.write_all(line.as_bytes()).and_then(|()| packed.finish());
        let written = packed.and_then(|bytes| disk.write(&mut self.file, &bytes));
        written.map_err(TrainError::io("write", &self.path))
    }

    /// Returns when all lines would survive a loss of power: before the checkpoint of their step does.
    pub(super) fn sync(&self, disk: &D) -> Result<(), TrainError> {
        disk.sync_file(&self.file).map_err(TrainError::io("sync", &self.path))
    }
}

/// Copies the lines up to a step.
fn copy_lines(old: File, step: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut out = GzEncoder::new(out, Compression::fast());
    // The line that was being written when a run was killed cannot be read, and nothing follows it.
    for line in BufReader::new(MultiGzDecoder::new(BufReader::new(old))).lines().map_while(Result::ok) {
        if line.split('\t').next().and_then(|at| at.parse().ok()).is_some_and(|at: u64| at <= step) {
            writeln!(out, "{line}")?;
        }
    }
    out.finish().map(drop)
}
