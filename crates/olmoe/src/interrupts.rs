//! Handling of signals: the first one asks the program to stop, the second one ends it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

/// The exit status after an interrupt, as in shells.
pub(crate) const INTERRUPTED: u8 = 130;

/// A flag that any of these signals sets. A signal that arrives while the flag is set ends the program, with the exit
/// status that shells use for it.
pub(crate) fn interrupts(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        let shutdown = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.clone());
        let set = shutdown.and_then(|_| signal_hook::flag::register(signal, flag.clone()));
        set.context("cannot listen for signals")?;
    }
    Ok(flag)
}
