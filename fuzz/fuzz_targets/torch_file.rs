//! A file of torch.save: an archive, and in it a pickle. Every tensor lies inside the file.
//!
//! Bytes that are no archive are taken for the pickle of a good one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use olmoe_checkpoint::torch;

fuzz_target!(|bytes: &[u8]| {
    let archive = if bytes.starts_with(b"PK") { bytes.to_vec() } else { archive(bytes) };
    let Ok(dict) = torch::read_from(&archive[..]) else { return };
    for tensor in &dict.tensors {
        assert!(tensor.offset.checked_add(tensor.bytes).is_some_and(|end| end <= archive.len() as u64), "{tensor:?}");
    }
});

/// Two entries: the pickle, and a storage of 24 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let entries: [(&[u8], &[u8]); 2] = [(b"a/data.pkl", pickle), (b"a/data/0", &[7; 24])];
    for (name, data) in entries {
        let (offset, bytes) = ((file.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes());
        let name_len = (name.len() as u16).to_le_bytes();
        file.extend([b"PK\x03\x04", &[0; 22][..], &name_len, &[0; 2], name, data].concat());
        directory.extend([b"PK\x01\x02", &[0; 16][..], &bytes, &bytes, &name_len, &[0; 12], &offset, name].concat());
    }
    let (at, len) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    file.extend(directory);
    file.extend([b"PK\x05\x06", &[0; 4][..], &[2, 0, 2, 0], &len, &at, &[0; 2]].concat());
    file
}
