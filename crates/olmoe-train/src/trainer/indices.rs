//! Which instances each step learned from: `data-indices/rank0.tsv.gz`, as OLMo has it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::error::TrainError;

/// The file, with a line a step: its number and the instances, between tabs. Each line is packed by itself, so that a run
/// which ends at any time leaves lines that can be read.
pub(super) struct Indices {
    path: PathBuf,
    file: File,
}

impl Indices {
    /// Opens the file of a run that goes on after `step`, without the lines of later steps.
    pub(super) fn open(run_dir: &Path, step: u64) -> Result<Indices, TrainError> {
        let folder = run_dir.join("data-indices");
        std::fs::create_dir_all(&folder).map_err(TrainError::io("make the folder", &folder))?;
        let (path, temporary) = (folder.join("rank0.tsv.gz"), folder.join("rank0.tsv.gz.tmp"));
        let file = File::create(&temporary).map_err(TrainError::io("make", &temporary))?;
        if step > 0
            && let Ok(old) = File::open(&path)
        {
            let mut out = GzEncoder::new(BufWriter::new(&file), Compression::fast());
            // The line that was being written when a run was killed cannot be read, and nothing follows it.
            for line in BufReader::new(MultiGzDecoder::new(BufReader::new(old))).lines().map_while(Result::ok) {
                if line.split('\t').next().and_then(|at| at.parse().ok()).is_some_and(|at: u64| at <= step) {
                    writeln!(out, "{line}").map_err(TrainError::io("write", &temporary))?;
                }
            }
            let flushed = out.finish().and_then(|mut out| out.flush());
            flushed.map_err(TrainError::io("write", &temporary))?;
        }
        std::fs::rename(&temporary, &path).map_err(TrainError::io("name", &path))?;
        let file = File::options().append(true).open(&path).map_err(TrainError::io("open", &path))?;
        Ok(Indices { path, file })
    }

    /// Writes the line of a step.
    pub(super) fn record(&mut self, step: u64, indices: &[u32]) -> Result<(), TrainError> {
        let line = indices.iter().fold(step.to_string(), |line, index| format!("{line}\t{index}")) + "\n";
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed.write_all(line.as_bytes()).and_then(|()| packed.finish());
        packed.and_then(|bytes| self.file.write_all(&bytes)).map_err(TrainError::io("write", &self.path))
    }
}
