//! olmoe
fn main() {}
