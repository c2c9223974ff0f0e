//! Encoding speed: `encoding_speed TOKENIZER DOCUMENTS.jsonl.gz [THREADS] [ROUNDS]`, documents `{"text": …}`, one a line.
//!
//! Prints the best and the median megabytes a second, for this crate and for the tokenizers library.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use olmoe_data::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(tokenizer), Some(documents)) = (arguments.next(), arguments.next()) else {
        return Err("usage: encoding_speed TOKENIZER DOCUMENTS.jsonl.gz [THREADS] [ROUNDS]".into());
    };
    let threads = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let own = Tokenizer::from_file(&tokenizer)?;
    let library = tokenizers::Tokenizer::from_file(&tokenizer)?;
    let file = flate2::read::MultiGzDecoder::new(std::fs::File::open(&documents)?);
    let mut texts = Vec::new();
    for line in BufReader::new(file).lines() {
        let document: serde_json::Value = serde_json::from_str(&line?)?;
        texts.push(document["text"].as_str().unwrap_or("").to_owned());
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    olmoe_tensor::threads::set_num_threads(threads);
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let mut speeds = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let start = Instant::now();
        let ids = own.encode_batch(&texts)?;
        speeds[0].push(bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
        let start = Instant::now();
        let expected = library.encode_batch_fast(texts.iter().map(String::as_str).collect(), false)?;
        speeds[1].push(bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
        let same = ids.iter().zip(&expected).all(|(ids, expected)| ids == expected.get_ids());
        println!("{} tokens, the same: {same}", ids.iter().map(Vec::len).sum::<usize>());
    }
    for (name, speeds) in ["olmoe-data", "tokenizers"].iter().zip(&mut speeds) {
        speeds.sort_by(f64::total_cmp);
        println!("{name}: {:.1} MB/s, median {:.1}", speeds[speeds.len() - 1], speeds[speeds.len() / 2]);
    }
    Ok(())
}
