//! Runs lists of requests to their end.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::completion::Completion;
use crate::engine::Engine;
use crate::event::{Event, EventKind};
use crate::request::{Request, RequestId, SubmitError};

impl Engine {
    /// Runs a list of requests, which is read no faster than the queue has room. `on` is called with every event and
    /// the index of its request in the list, and with every request that is refused; the others continue.
    ///
    /// `interrupt` is read before every step. When it is set, or `on` breaks, all running requests are cancelled and no
    /// further request is begun; `on` is still called with the last events of those that had begun. Returns whether the
    /// list was completed without interruption.
    ///
    /// Requests that were submitted before run at the same time; the next [`step`](Engine::step) returns their events.
    pub fn run_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        interrupt: &AtomicBool,
        mut on: impl FnMut(usize, Result<Event, SubmitError>) -> ControlFlow<()>,
    ) -> bool {
        let mut requests = requests.into_iter().enumerate().fuse().peekable();
        // The requests that have begun: their indices in the list, and the number of samples that have not ended.
        let mut begun: BTreeMap<RequestId, (usize, usize)> = BTreeMap::new();
        let (mut of_others, mut stopped) = (Vec::new(), false);
        loop {
            if !stopped && interrupt.load(Ordering::Relaxed) {
                stopped = true;
                begun.keys().for_each(|id| _ = self.cancel(*id));
            }
            // A request that never fits is refused as soon as no other request waits before it.
            let fits =
                |engine: &Engine, request: &Request| request.samples <= engine.room() || engine.load().waiting == 0;
            while !stopped && let Some((place, request)) = requests.next_if(|(_, request)| fits(self, request)) {
                let samples = request.samples;
                match self.submit(request) {
                    Ok(id) => _ = begun.insert(id, (place, samples)),
                    Err(error) => stopped |= on(place, Err(error)).is_break(),
                }
                if stopped {
                    begun.keys().for_each(|id| _ = self.cancel(*id));
                }
            }
            if begun.is_empty() && (stopped || requests.peek().is_none()) {
                self.between.extend(of_others);
                return !stopped;
            }
            for event in self.step() {
                let Some((place, left)) = begun.get_mut(&event.request) else {
                    of_others.push(event);
                    continue;
                };
                let (place, id) = (*place, event.request);
                if matches!(event.kind, EventKind::Finished(_)) {
                    *left -= 1;
                    if *left == 0 {
                        begun.remove(&id);
                    }
                }
                if on(place, Ok(event)).is_break() && !stopped {
                    stopped = true;
                    begun.keys().for_each(|id| _ = self.cancel(*id));
                }
            }
        }
    }

    /// Runs a list of requests and returns the completions of each, or why it was refused. `None` if `interrupt` was
    /// set before the end.
    pub fn complete_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        interrupt: &AtomicBool,
    ) -> Option<Vec<Result<Vec<Completion>, SubmitError>>> {
        let mut all = Vec::new();
        let whole = self.run_all(requests, interrupt, |place, what| {
            if all.len() <= place {
                all.resize_with(place + 1, || Ok(Vec::new()));
            }
            match (&mut all[place], what) {
                (Ok(samples), Ok(event)) => {
                    if samples.len() <= event.sample {
                        samples.resize_with(event.sample + 1, Completion::default);
                    }
                    samples[event.sample].add(event.kind);
                }
                (request, Err(error)) => *request = Err(error),
                (Err(_), Ok(_)) => {}
            }
            ControlFlow::Continue(())
        });
        whole.then_some(all)
    }
}
