//! Packing, mixing, orders and the cache, against trl, datasets and by hand.

use std::collections::HashMap;
use std::path::Path;

use olmoe_data::instruct::{
    Amount, Content, EncodeOptions, Encoded, Example, LabelledExample, MixedRow, Packing, PairExample, Part, Purpose,
    ReadOptions, Report, Share, Source, Spans, cache_key, collect, epoch_order, files, held_out, load, mixture, pack,
    packed, shares, store,
};
use proptest::prelude::*;
use serde_json::Value;

mod shared;
use shared::tiny;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/instruct.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
}

/// Rows of consecutive numbers, all of which are targets.
fn rows(lengths: &[usize]) -> Vec<Example> {
    let mut next = 0;
    let row = |length: &usize| {
        next += *length as u32;
        Example { ids: (next - *length as u32..next).collect(), weights: vec![1.0; *length] }
    };
    lengths.iter().map(row).collect()
}

fn in_order(count: usize) -> Vec<u32> {
    (0..count as u32).collect()
}

#[test]
fn packs_are_those_of_trl() {
    let golden = golden();
    let cases = golden["packs"].as_array().unwrap();
    assert!(cases.len() >= 16);
    for case in cases {
        let lengths = numbers(&case["lengths"]);
        let packing = if case["strategy"] == "bfd" { Packing::BestFit } else { Packing::BestFitSplit };
        let capacity = case["limit"].as_u64().unwrap() as usize;
        let examples = rows(&lengths);
        let sequences = pack(&in_order(lengths.len()), &lengths, capacity, packing).unwrap();
        let sequences: Vec<_> = sequences.iter().map(|parts| packed(&examples, parts)).collect();
        let ids: Vec<Vec<usize>> =
            sequences.iter().map(|sequence| sequence.ids.iter().map(|id| *id as usize).collect()).collect();
        assert_eq!(ids, case["input_ids"].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>(), "{case}");
        let found: Vec<_> = sequences.iter().map(|sequence| sequence.lengths.clone()).collect();
        assert_eq!(found, case["seq_lengths"].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>());
    }
}

#[test]
fn no_target_crosses_a_document() {
    let lengths = [5, 2, 3, 1];
    let sequences = pack(&in_order(4), &lengths, 4, Packing::BestFitSplit).unwrap();
    let packed: Vec<_> = sequences.iter().map(|parts| packed(&rows(&lengths), parts)).collect();
    let weights: Vec<_> = packed.iter().map(|sequence| sequence.weights.clone()).collect();
    assert_eq!(weights, [vec![0.0, 1.0, 1.0, 1.0], vec![0.0, 1.0, 1.0, 0.0], vec![0.0, 1.0, 0.0]]);
}

#[test]
fn first_fit_by_hand() {
    // 6 and 5 do not share; 4 goes to 6, 3 to 5, 2 to 5 and 3.
    let lengths = [3, 6, 2, 5, 4];
    let sequences = pack(&in_order(5), &lengths, 10, Packing::FirstFit).unwrap();
    let rows: Vec<Vec<usize>> = sequences.iter().map(|parts| parts.iter().map(|part| part.row).collect()).collect();
    assert_eq!(rows, [vec![1, 4], vec![3, 0, 2]]);
    // Equal lengths go by the order.
    let sequences = pack(&[2, 0, 1], &[1, 1, 1], 2, Packing::BestFit).unwrap();
    assert_eq!(sequences[0], [Part { row: 2, start: 0, length: 1 }, Part { row: 0, start: 0, length: 1 }]);
    for (order, capacity, expected) in [(vec![3], 4, "`order` is 3"), (vec![0], 0, "`max_length` is 0")] {
        let error = pack(&order, &[1, 2, 3], capacity, Packing::BestFit).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_row_is_packed_once() {
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let packing = prop::sample::select(vec![Packing::BestFit, Packing::BestFitSplit, Packing::FirstFit]);
    proptest!(config, |(lengths in prop::collection::vec(0usize..40, 0..60), capacity in 1usize..50, packing in packing,
                        epoch in 0u64..3)| {
        let order = epoch_order(lengths.len() as u32, 6198, epoch, true).unwrap();
        let sequences = pack(&order, &lengths, capacity, packing).unwrap();
        prop_assert_eq!(&sequences, &pack(&order, &lengths, capacity, packing).unwrap());
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for parts in &sequences {
            prop_assert!(!parts.is_empty());
            prop_assert!(parts.iter().map(|part| part.length).sum::<usize>() <= capacity);
            for part in parts {
                let before = seen.entry(part.row).or_default();
                if packing == Packing::BestFitSplit {
                    prop_assert!(part.start + part.length <= lengths[part.row]);
                } else {
                    prop_assert_eq!((part.start, *before), (0, 0), "row {} comes twice", part.row);
                }
                *before += part.length;
            }
        }
        for (row, length) in lengths.iter().enumerate() {
            let kept = if packing == Packing::BestFitSplit { *length } else { *length.min(&capacity) };
            prop_assert_eq!(seen.get(&row).copied().unwrap_or(0), kept);
        }
        if packing != Packing::FirstFit && sequences.len() > 1 {
            // Nothing would fit into an earlier sequence as a whole.
            let least = |parts: &Vec<Part>| parts.iter().map(|part| part.length).sum::<usize>();
            let two_small = sequences.iter().filter(|parts| 2 * least(parts) <= capacity).count();
            prop_assert!(two_small <= 1, "{} sequences are less than half full", two_small);
        }
    });
}

#[test]
fn sources_are_shuffled_as_datasets_shuffles() {
    let golden = golden();
    for case in golden["shuffles"].as_array().unwrap() {
        let count = case["rows"].as_u64().unwrap() as u32;
        let mixed = mixture(&[Amount::Fraction(1.0)], &[count], case["seed"].as_u64().unwrap()).unwrap();
        let rows: Vec<usize> = mixed.iter().map(|row| row.row as usize).collect();
        assert_eq!(rows, numbers(&case["order"]));
    }
}

#[test]
fn mixtures_by_rows_fractions_and_epochs() {
    let share = |source: &str, amount| Share { source: source.to_owned(), amount };
    for (list, expected) in [
        (vec!["a", "0.5", "b", "1.0"], vec![Amount::Fraction(0.5), Amount::Fraction(1.0)]),
        (vec!["a", "1", "b", "0.25"], vec![Amount::Fraction(1.0), Amount::Fraction(0.25)]),
        (vec!["a", "1", "b", "3"], vec![Amount::Rows(1), Amount::Rows(3)]),
        (vec!["a", "2x", "b", "0.5"], vec![Amount::Epochs(2.0), Amount::Fraction(0.5)]),
        (vec!["a", "1.5x", "b", "7"], vec![Amount::Epochs(1.5), Amount::Rows(7)]),
        (vec![], vec![]),
    ] {
        let expected: Vec<Share> =
            expected.into_iter().zip(["a", "b"]).map(|(amount, name)| share(name, amount)).collect();
        assert_eq!(shares(&list).unwrap(), expected, "{list:?}");
    }
    for (list, expected) in [
        (vec!["a"], "\"a\" without an amount"),
        (vec!["a", "many"], "\"many\""),
        (vec!["a", "-1"], "\"-1\""),
        (vec!["a", "-0.5"], "\"-0.5\""),
        (vec!["a", "nan.0"], "\"nan.0\""),
        (vec!["a", "0.5", "b", "100"], "the fraction 0.5 beside a number above 1"),
        (vec!["a", "1.5"], "the fraction 1.5"),
        (vec!["a", "infx"], "\"infx\""),
    ] {
        let error = shares(&list).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mixed = mixture(&[Amount::Rows(2), Amount::Fraction(0.5), Amount::Epochs(2.5)], &[10, 5, 4], 42).unwrap();
    let of = |source: u32| mixed.iter().filter(|row| row.source == source).map(|row| row.row).collect::<Vec<_>>();
    assert_eq!((of(0), of(1).len(), of(2).len()), (vec![5, 6], 2, 10));
    let mut times = [0; 4];
    of(2).iter().for_each(|row| times[*row as usize] += 1);
    times.sort_unstable();
    assert_eq!(times, [2, 2, 3, 3]);
    assert_eq!(mixture(&[Amount::Epochs(3.0)], &[0], 1).unwrap(), Vec::<MixedRow>::new());
    for (amount, expected) in [
        (Amount::Rows(11), "amount` is 11 of source 0; it has to be at most the rows"),
        (Amount::Fraction(1.5), "1.5 of source 0"),
        (Amount::Fraction(f64::NAN), "NaN of source 0"),
        (Amount::Epochs(-1.0), "-1 of source 0"),
        (Amount::Epochs(1e300), "fewer than 4294967295"),
    ] {
        let error = mixture(&[amount], &[10], 42).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(mixture(&[Amount::Rows(1)], &[], 1).is_err());
}

#[test]
fn orders_of_epochs_differ_and_come_again() {
    let order = |epoch| epoch_order(100, 6198, epoch, true).unwrap();
    let all: Vec<Vec<u32>> = (0..4).map(order).collect();
    for (epoch, one) in all.iter().enumerate() {
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, in_order(100), "epoch {epoch} sees every row once");
        assert!(all[..epoch].iter().all(|earlier| earlier != one), "epoch {epoch} repeats an earlier order");
        // Whoever goes on at row 37 of this epoch, or at its beginning, sees what is left of it.
        assert_eq!(order(epoch as u64)[37..], one[37..]);
    }
    assert_eq!(epoch_order(5, 1, 9, false).unwrap(), [0, 1, 2, 3, 4]);
    // A run of two epochs, interrupted at every step: the rows seen are the same.
    let whole: Vec<u32> = (0..2).flat_map(|epoch| epoch_order(10, 7, epoch, true).unwrap()).collect();
    for stop in 0..=20usize {
        let (mut seen, mut at) = (whole[..stop].to_vec(), stop);
        while at < 20 {
            let order = epoch_order(10, 7, at as u64 / 10, true).unwrap();
            seen.push(order[at % 10]);
            at += 1;
        }
        assert_eq!(seen, whole, "{stop}");
    }
}

#[test]
fn a_key_changes_with_everything_that_decides() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (a, b, copy) = (file("a.jsonl", "one"), file("b.jsonl", "two"), file("copy.jsonl", "one"));
    let (empty, both) = (file("empty.jsonl", ""), file("both.jsonl", "onetwo"));
    let tokenizer = tiny();
    let options = EncodeOptions::default();
    let key = |files: &[&std::path::PathBuf], template: &str, options: &EncodeOptions| {
        cache_key(files, template, &tokenizer, options).unwrap()
    };
    let first = key(&[&a, &b], "t", &options);
    assert_eq!(first, key(&[&copy, &b], "t", &options), "the name does not matter");
    let released = EncodeOptions { spans: Spans::Released, ..options.clone() };
    let shorter = EncodeOptions { max_length: Some(2), ..options.clone() };
    let keys = [
        first,
        key(&[&b, &a], "t", &options),
        key(&[&a], "t", &options),
        key(&[&both], "t", &options),
        key(&[&both, &empty], "t", &options),
        key(&[&a, &b], "tt", &options),
        key(&[&a, &b], "t", &released),
        key(&[&a, &b], "t", &shorter),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "{at}");
    }
    let missing = cache_key(&[folder.path().join("none")], "t", &tokenizer, &options).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read ") && missing.contains("none"), "{missing}");
}

/// Files of rows, and a source of them.
fn source(path: &Path, amount: Amount) -> Source {
    Source { path: path.to_owned(), amount, options: ReadOptions::default() }
}

#[test]
fn sources_are_files_folders_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, r#"{"text":"a"}"#).unwrap();
    };
    for name in ["set/data/train-2.jsonl", "set/data/train-1.jsonl", "set/data/test-1.jsonl", "set/README.md"] {
        write(name);
    }
    for name in ["plain/b.json", "plain/a.csv.gz", "plain/.cache/c.jsonl", "plain/dataset_info.txt"] {
        write(name);
    }
    let names = |path: &str| -> Vec<String> {
        let found = files(&folder.path().join(path)).unwrap();
        found.iter().map(|path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("set"), ["set/data/train-1.jsonl", "set/data/train-2.jsonl"], "other splits are left out");
    assert_eq!(names("plain"), ["plain/a.csv.gz", "plain/b.json"]);
    assert_eq!(names("set/data/t*-1.js*l"), ["set/data/test-1.jsonl", "set/data/train-1.jsonl"]);
    assert_eq!(names("set/data/none.jsonl"), ["set/data/none.jsonl"], "what is missing is said where it is read");
    for path in ["set/data/x*", "set/none"] {
        write("set/none/README.md");
        let error = files(&folder.path().join(path)).unwrap_err().to_string();
        assert!(error.contains("expected a name ending in .json"), "{error}");
    }
}

#[test]
fn rows_are_made_ready_for_a_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pairs = file(
        "pairs.jsonl",
        r#"{"prompt":"p","chosen":"good","rejected":"bad"}
           {"prompt":"p","chosen":"good","rejected":"  "}"#,
    );
    let judged = file(
        "judged.jsonl",
        r#"{"prompt":"p","completion":"yes","label":true}
           {"prompt":"p","completion":"no","label":false}"#,
    );
    let whole = Amount::Fraction(1.0);
    let contents = |path: &Path, purpose| -> Vec<String> {
        let (mixed, records, _) = collect(&[source(path, whole)], purpose, 1).unwrap();
        assert_eq!(mixed.len(), records[0].len());
        let kinds = records[0].iter().map(|record| match &record.content {
            Content::Sample(_) => "sample".to_owned(),
            Content::Pair(_) => "pair".to_owned(),
            Content::Labelled(labelled) => labelled.desirable.to_string(),
            Content::Tokens(_) => "tokens".to_owned(),
        });
        kinds.collect()
    };
    assert_eq!(contents(&pairs, Purpose::Samples), ["sample", "sample"], "the chosen answers");
    assert_eq!(contents(&pairs, Purpose::Pairs), ["pair", "pair"]);
    assert_eq!(contents(&pairs, Purpose::Judged), ["true", "false", "true"], "an empty answer is left out");
    assert_eq!(contents(&judged, Purpose::Judged), ["true", "false"]);
    assert_eq!(contents(&judged, Purpose::Samples), ["sample"], "the desirable answers");
    let error = collect(&[source(&judged, whole)], Purpose::Pairs, 1).unwrap_err().to_string();
    assert!(error.contains("judged.jsonl row 1: the row is a judged answer, expected a pair"), "{error}");
    let (_, _, reports) =
        collect(&[source(&judged, whole), source(&pairs, Amount::Rows(1))], Purpose::Samples, 1).unwrap();
    let counts: Vec<_> = reports.iter().map(|report| (report.rows, report.unfit, report.taken)).collect();
    assert_eq!(counts, [(1, 1, 1), (2, 0, 1)]);
}

#[test]
fn rows_held_out_are_in_no_other_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let lines: Vec<String> = (0..20).map(|i| format!(r#"{{"text":"{i}"}}"#)).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mix = |times| collect(&[source(&path, Amount::Epochs(times))], Purpose::Samples, 3).unwrap().0;
    let (rest, held) = held_out(mix(2.5), 0.25, 3).unwrap();
    assert_eq!(
        (rest.len(), held.len()),
        (50 - held.len() * 2 - held.iter().filter(|row| mix(0.5).contains(row)).count(), 5)
    );
    assert!(!rest.iter().any(|row| held.contains(row)));
    assert_eq!(held_out(mix(2.5), 0.25, 3).unwrap().1, held);
    assert_ne!(held_out(mix(2.5), 0.25, 4).unwrap().1, held);
    assert_eq!(held_out(mix(1.0), 7.0, 3).unwrap().1.len(), 7);
    let error = held_out(mix(1.0), 20.0, 3).unwrap_err().to_string();
    assert!(error.contains("less than the 20 different rows"), "{error}");
}

#[test]
fn encoded_rows_come_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    let key = [7; 32];
    assert_eq!(load(&path, &key).unwrap(), None);
    let mut examples = rows(&[3, 0, 5, 2, 4, 1]).into_iter();
    let mut next = || examples.next().unwrap();
    let mut first = next();
    first.weights[1] = 0.1;
    let encoded = vec![
        Encoded::Example(first),
        Encoded::Pair(PairExample::new(next(), next())),
        Encoded::Labelled(LabelledExample::new(next(), true)),
        Encoded::Labelled(LabelledExample::new(next(), false)),
        Encoded::Example(next()),
    ];
    let report = Report { rows: 9, kept: 5, first_unknown: Some("row 3".to_owned()), ..Report::default() };
    store(&path, &key, &encoded, &report).unwrap();
    assert_eq!(load(&path, &key).unwrap(), Some((encoded, report.clone())));
    assert_eq!(load(&path, &[8; 32]).unwrap(), None, "made of something else");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let loaded = load(&path, &key);
        // Another key is no damage: the rows are made again.
        assert_eq!(loaded.is_err(), !(8..40).contains(&at), "{at}");
        std::fs::write(&path, &bytes[..at]).unwrap();
        assert!(load(&path, &key).is_err(), "{at} bytes");
    }
    let uneven = Example { ids: vec![1], weights: Vec::new() };
    assert!(
        store(&path, &key, &[Encoded::Example(uneven)], &report)
            .unwrap_err()
            .to_string()
            .contains("1 tokens and 0 weights")
    );
}
