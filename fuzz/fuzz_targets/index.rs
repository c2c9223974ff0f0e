//! An index of shards: no name leaves the folder, and what is read can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::file_name;
use olmoe_checkpoint::safetensors::ShardIndex;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = ShardIndex::parse(bytes) else { return };
    assert!(index.files().into_iter().all(file_name::is_plain));
    let text = index.to_json().expect("an index that was read");
    assert_eq!(ShardIndex::parse(text.as_bytes()).expect("an index that was written"), index);
});
