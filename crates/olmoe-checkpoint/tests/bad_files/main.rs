//! Whole checkpoints that are not what they should be: from good ones of every format, damaged in one place each.
//!
//! Every row is a typed error whose text names the path and what is wrong, found at once and in little memory.
#![cfg(unix)]

#[path = "../archive/mod.rs"]
mod archive;
mod flips;
mod gguf;
mod gguf_file;
mod good;
mod huggingface;
mod memory;
mod olmo;
mod special;
mod table;
mod training;
