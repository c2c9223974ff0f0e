//! What a signal does: the first one asks, the second one ends.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

/// Exit status after an interrupt, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// A flag that any of these signals sets; one that comes while it is set ends the program, with the status that shells have
/// for it.
pub(crate) fn interrupts(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        let shutdown = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.clone());
        let set = shutdown.and_then(|_| signal_hook::flag::register(signal, flag.clone()));
        set.context("cannot listen for signals")?;
    }
    Ok(flag)
}
