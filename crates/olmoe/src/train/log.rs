//! What a run writes down.

use std::path::Path;
use std::time::SystemTime;

use olmoe_train::metrics::{EventFile, MAX_STEPS, MetricsError, MetricsLog, Record, Sample, SampleLog};
use olmoe_train::trainer::Event;

use crate::output::warn;

/// What a run writes down of its steps, as lines of JSON and for TensorBoard.
pub(crate) struct RunLog {
    lines: MetricsLog,
    samples: Option<SampleLog>,
    events: EventFile,
    /// The steps of the run, until they are written.
    max_steps: Option<u64>,
    failed: bool,
}

impl RunLog {
    /// Goes on after `step`, and after the texts of the step `sampled` if the run has any: what was written of later steps,
    /// before an end without a save, is taken away.
    pub(crate) fn open(folder: &Path, step: u64, sampled: Option<u64>, max_steps: u64) -> Result<RunLog, MetricsError> {
        let lines = MetricsLog::open(folder, step)?;
        let events = EventFile::create(folder, step, SystemTime::now())?;
        let samples = sampled.map(|step| SampleLog::open(folder, step)).transpose()?;
        Ok(RunLog { lines, samples, events, max_steps: Some(max_steps), failed: false })
    }

    /// Writes down what happens.
    pub(crate) fn observe(&mut self, event: &Event<'_>) {
        let recorded = match event {
            Event::Step(report, values) => self.record(report.step, values),
            Event::Evaluated(step, values) => self.record(*step, values),
            Event::Sampled(samples) => self.record_samples(samples),
            Event::Saved(..) => self.sync(),
            Event::Notice(_) => Ok(()),
        };
        // A full disk must not cost the run more than its log.
        if let (Err(error), false) = (recorded, self.failed) {
            warn(format_args!("{error}; metrics are not written any more"));
            self.failed = true;
        }
    }

    fn record_samples(&mut self, samples: &[Sample]) -> Result<(), MetricsError> {
        for (i, sample) in samples.iter().enumerate() {
            self.samples.as_mut().map_or(Ok(()), |log| log.append(sample))?;
            self.events.append_text(&format!("samples/{i}"), sample, SystemTime::now())?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), MetricsError> {
        self.lines.sync()?;
        self.samples.as_ref().map_or(Ok(()), SampleLog::sync)
    }

    fn record(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), MetricsError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut record = Record::new(step);
        for (name, value) in values {
            record.push(name.clone(), *value);
        }
        if let Some(steps) = self.max_steps.take() {
            record.push(MAX_STEPS, steps as f64);
        }
        self.lines.append(&record)?;
        self.events.append(&record, SystemTime::now())
    }
}
