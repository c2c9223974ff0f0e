//! The header of a safetensors file: what is read can be written, and is then read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::safetensors::{Spec, Writer, read_header};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = read_header(bytes) else { return };
    let specs: Vec<Spec> =
        header.entries.iter().map(|entry| Spec::new(&entry.name, entry.dtype, entry.shape.clone())).collect();
    let mut writer = Writer::new(Vec::new(), &specs, &header.metadata).expect("a header that was read");
    for entry in &header.entries {
        let (start, end) = (entry.offset as usize, (entry.offset + entry.bytes) as usize);
        writer.write(&bytes[start..end]).expect("the bytes of its shape");
    }
    let written = writer.finish().expect("all tensors");
    let again = read_header(&written[..]).expect("a header that was written");
    assert_eq!(again.metadata, header.metadata);
    let of = |header: &olmoe_checkpoint::safetensors::SafetensorsHeader| {
        let mut all: Vec<_> = header.entries.iter().map(|e| (e.name.clone(), e.dtype, e.shape.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(of(&again), of(&header));
});
