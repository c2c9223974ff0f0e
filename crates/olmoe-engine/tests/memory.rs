//! Requests that come, go and are cancelled leave no memory behind. One test, because the counters are the process's.

mod tiny;

use olmoe_engine::{Engine, EngineConfig, EventKind, Load, Request};
use olmoe_model::model::Precision;
use olmoe_tensor::memory;
use olmoe_tensor::threads::set_num_threads;
use tiny::*;

#[test]
fn ten_thousand_requests_leave_nothing() {
    // Ten rounds of the same work on one thread take the same memory, unless something stays.
    set_num_threads(1);
    let model = model(Precision::Fp32);
    let mut engine = Engine::new(
        model,
        None,
        EngineConfig { max_running: 4, step_tokens: 16, kept_tokens: 200, queue: 8, ..EngineConfig::default() },
    )
    .unwrap();
    let mut finished = 0;
    let mut count = |engine: &mut Engine| {
        let ends = engine.step().into_iter().filter(|event| matches!(event.kind, EventKind::Finished(_)));
        finished += ends.count();
    };
    let (mut submitted, mut requests, mut peaks) = (0, Vec::new(), Vec::new());
    for cycle in (0..10).flat_map(|_| 0..1000usize) {
        let request = Request {
            max_tokens: Some(1 + cycle % 7),
            seed: Some(cycle as u64),
            samples: 1 + usize::from(cycle % 50 == 0),
            ..Request::new(ids(1 + cycle * 7 % 23, cycle % 5))
        };
        let samples = request.samples;
        if let Ok(id) = engine.submit(request) {
            submitted += samples;
            if cycle % 3 == 0 {
                if cycle % 2 == 0 {
                    count(&mut engine);
                }
                engine.cancel(id);
            }
        }
        count(&mut engine);
        if cycle == 999 {
            while !engine.is_idle() {
                count(&mut engine);
            }
            let load = engine.load();
            assert_eq!(Load { kept_tokens: 0, ..load }, Load::default());
            assert!(load.kept_tokens <= 200);
            requests.push(memory::system_requests());
            engine.forget();
            peaks.push(memory::peak_bytes());
        }
    }
    assert_eq!(finished, submitted);
    assert!(submitted > 9000, "{submitted} of the requests ran");
    assert_eq!(peaks[..], [peaks[0]; 10], "the most bytes in buffers at once");
    assert_eq!(requests[1..], [requests[1]; 9], "requests to the system");
}
