//! Instances, their order and their batches: as NumPy and OLMo's trainer have them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use olmoe_data::pretrain::{
    Batch, DataSet, DataSettings, Loader, LoaderSettings, Order, OrderSettings, Repetition, RepetitionFilter,
    document_lengths,
};
use olmoe_data::token_file::{MegatronWriter, TokenType};
use olmoe_tensor::ops::cross_entropy::IGNORE;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn golden(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(Path::new("tests/golden").join(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn orders_as_numpy_shuffles() {
    // The vectors of the specification.
    let order = |n, seed| Order::new(n, OrderSettings { seed, ..OrderSettings::default() }).unwrap();
    for (seed, expected) in [
        (6198, [17, 4, 14, 3, 5, 12, 6, 15, 18, 13, 10, 11, 2, 19, 0, 16, 7, 9, 8, 1]),
        (42, [15, 9, 14, 7, 12, 10, 6, 19, 3, 0, 16, 5, 11, 18, 2, 4, 17, 1, 13, 8]),
        (0, [4, 19, 6, 2, 13, 16, 3, 11, 10, 8, 0, 12, 7, 5, 18, 17, 14, 9, 1, 15]),
    ] {
        assert_eq!(order(20, seed).indices(), expected);
    }
    assert_eq!(order(1000, 6199).indices()[..10], [363, 586, 975, 648, 897, 311, 471, 834, 968, 2]);
    let cases = golden("orders.json");
    assert_eq!(cases.len(), 15);
    for case in cases {
        let settings = OrderSettings {
            seed: number(&case["seed"]),
            epoch: number(&case["epoch"]),
            drop_last: case["drop_last"] == true,
            world_size: number(&case["world"]) as usize,
            shuffle: true,
        };
        let order = Order::new(number(&case["instances"]) as u32, settings).unwrap();
        assert_eq!(order.len() as u64, number(&case["len"]), "{case}");
        let first = numbers(&case["first"]);
        assert_eq!(order.indices()[..first.len()], first, "{case}");
        let bytes: Vec<u8> = order.indices().iter().flat_map(|index| index.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(case["sha256"], hash, "{case}");
    }
    let plain = Order::new(5, OrderSettings { shuffle: false, ..OrderSettings::default() }).unwrap();
    assert_eq!(plain.indices(), [0, 1, 2, 3, 4]);
}

#[test]
fn orders_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("run/train_data");
    let order = Order::new(1001, OrderSettings::default()).unwrap();
    let path = order.write(&to).unwrap();
    assert_eq!(path, to.join("global_indices.npy"));
    // No header: numbers from the first byte on.
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((bytes.len(), &bytes[..4]), (4004, &order.indices()[0].to_le_bytes()[..]));
    assert_eq!(Order::read(&path).unwrap(), order);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
    std::fs::write(&path, &bytes[..9]).unwrap();
    for (result, expected) in [
        (Order::read(&path).map(|_| ()), "has 9 bytes, which is not a multiple of the 4 of uint32"),
        (Order::read(&to.join("none")).map(|_| ()), "cannot read"),
        (order.write(&path.join("below a file")).map(|_| ()), "cannot make the folder of"),
        (Order::new(4, OrderSettings { world_size: 0, ..OrderSettings::default() }).map(|_| ()), "`world_size` is 0"),
        (
            Order::new(4, OrderSettings { world_size: 1 << 33, ..OrderSettings::default() }).map(|_| ()),
            "an order holds fewer than 4294967295",
        ),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn repetitions_as_the_rows_of_a_period_show_them() {
    let cases = golden("repetitions.json");
    assert_eq!(cases.len(), 60);
    let mut found = 0;
    for case in cases {
        let (low, high) = (number(&case["min"]) as usize, number(&case["max"]) as usize);
        let ids = numbers(&case["ids"]);
        let expected: Vec<_> = case["found"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                let at = |i: usize| number(&one[i]) as usize;
                Repetition { start: at(0), end: at(1), period: at(2) }
            })
            .collect();
        let filter = |max_count| RepetitionFilter { min_period: low, max_period: high, max_count };
        assert_eq!(filter(32).find(&ids), expected, "{case}");
        let most = expected.iter().map(Repetition::times).max().unwrap_or(0);
        for count in [1, 2, 3, most, most + 1, 32] {
            assert_eq!(filter(count).passes(&ids), most < count || most == 0, "{count}: {case}");
        }
        found += expected.len();
    }
    assert!(found > 100, "{found}");
    for ids in [&[][..], &[1], &[1, 1]] {
        assert!(RepetitionFilter { max_count: 0, ..RepetitionFilter::default() }.passes(ids));
    }
    // Thirty-one dashes are accepted, thirty-two are filtered out.
    for (count, passes) in [(31, true), (32, false)] {
        let ids: Vec<u32> = (100..130).chain(vec![7; count]).chain(200..230).collect();
        assert_eq!(RepetitionFilter::default().passes(&ids), passes);
    }
}

#[test]
fn documents_of_an_instance() {
    for (ids, expected) in [
        (&[1, 2, 0, 3, 0, 4][..], &[3, 2, 1][..]),
        (&[1, 2, 0], &[3]),
        (&[0, 0, 5], &[1, 1, 1]),
        (&[5, 6], &[2]),
        (&[], &[]),
    ] {
        assert_eq!(document_lengths(ids, 0), expected, "{ids:?}");
    }
}

/// Files of numbers that tell where they are: thousands for the file, the rest for the place.
fn files(lengths: &[usize]) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let write = |(file, length): (usize, &usize)| {
        let path = folder.path().join(format!("{file}.npy"));
        let ids: Vec<u8> = (0..*length).flat_map(|at| ((file * 1000 + at) as u16).to_le_bytes()).collect();
        std::fs::write(&path, ids).unwrap();
        path
    };
    let paths = lengths.iter().enumerate().map(write).collect();
    (folder, paths)
}

#[test]
fn instances_of_files() {
    let (_folder, paths) = files(&[9, 3, 0, 4, 8]);
    let data = DataSet::open(DataSettings::new(paths.clone(), 4)).unwrap();
    assert_eq!((data.len(), data.is_empty()), (5, false));
    let mut ids = [0; 4];
    for (index, file, first) in [(0, 0, 0), (1, 0, 4), (2, 3, 3000), (3, 4, 4000), (4, 4, 4004)] {
        assert_eq!(data.read(index, &mut ids, None, &mut Vec::new()).unwrap(), file);
        assert_eq!(ids, [first, first + 1, first + 2, first + 3]);
        assert_eq!(data.locate(index).unwrap(), (file, u64::from(first % 1000)));
        assert_eq!(data.path(file), Some(paths[file].as_path()));
    }
    // With ratios: the instances of the first file two and a half times, those of the last one never.
    let ratios = Some(vec![2.5, 1.0, 1.0, 3.0, 0.0]);
    let mixed = DataSet::open(DataSettings { ratios, ..DataSettings::new(paths, 4) }).unwrap();
    let places: Vec<_> = (0..mixed.len()).map(|index| mixed.locate(index).unwrap()).collect();
    assert_eq!(places, [(0, 0), (0, 0), (0, 4), (0, 4), (0, 4), (3, 0), (3, 0), (3, 0)]);
}

#[test]
fn instances_of_megatron_files_and_masks() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = MegatronWriter::create(&folder.path().join("set"), TokenType::I32).unwrap();
    writer.sequence(&[1, 2, 3]).unwrap();
    writer.sequence(&[4, 5, 6, 7]).unwrap();
    writer.finish().unwrap();
    let mask = folder.path().join("mask.npy");
    std::fs::write(&mask, [1, 0, 1, 1, 0, 1, 1]).unwrap();
    let settings = DataSettings {
        label_mask_paths: Some(vec![mask.clone()]),
        attention_mask: Some(6),
        doc_lengths: Some(2),
        instance_filter: Some(RepetitionFilter { max_count: 3, ..RepetitionFilter::default() }),
        ..DataSettings::new(vec![folder.path().join("set.bin")], 3)
    };
    let data = DataSet::open(settings.clone()).unwrap();
    let batch = Batch::read(&data, &[1, 0], 2).unwrap();
    assert_eq!((&batch.ids[..], batch.size, batch.sequence_length), (&[4, 5, 6, 1, 2, 3][..], 2, 3));
    assert_eq!(batch.label_mask, Some(vec![true, false, true, true, false, true]));
    assert_eq!(batch.attention_mask, Some(vec![true, true, false, true, true, true]));
    assert_eq!(batch.instance_mask, Some(vec![true, true]));
    assert_eq!(batch.doc_lengths, Some(vec![vec![3], vec![2, 1]]));
    assert_eq!((batch.indices.as_slice(), batch.files.as_slice(), batch.next), (&[1, 0][..], &[0, 0][..], 2));
    // Successors: 5 is masked, 6 is padding; 2 is masked, 3 counts.
    assert_eq!(batch.targets()[..], [IGNORE, IGNORE, IGNORE, IGNORE, 3, IGNORE]);
    std::fs::write(&mask, [1, 0, 1, 1, 0, 2, 1]).unwrap();
    let error = Batch::read(&data, &[1], 1).unwrap_err().to_string();
    assert!(error.contains("token 5 of") && error.contains("mask.npy is 2, but ids are below 2"), "{error}");
    std::fs::write(&mask, [1, 0]).unwrap();
    let error = DataSet::open(settings).unwrap_err().to_string();
    assert!(error.contains("mask.npy has 2 entries") && error.contains("set.bin has 7 tokens"), "{error}");
}

#[test]
fn repeated_instances_have_no_targets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let ids: Vec<u16> = [vec![9; 40], (0..40).collect()].concat();
    std::fs::write(&path, ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let filter = Some(RepetitionFilter::default());
    let data = DataSet::open(DataSettings { instance_filter: filter, ..DataSettings::new(vec![path], 40) }).unwrap();
    let batch = Batch::read(&data, &[0, 1], 2).unwrap();
    assert_eq!(batch.instance_mask, Some(vec![false, true]));
    let targets = batch.targets();
    assert!(targets[..40].iter().all(|id| *id == IGNORE));
    assert_eq!(targets[40..], [(1..40).collect(), vec![IGNORE]].concat());
}

#[test]
fn bad_data_sets_are_errors() {
    let (_folder, paths) = files(&[9, 3]);
    type Edit = fn(&mut DataSettings);
    let cases: [(&str, Edit, &str); 11] = [
        ("missing", |s| s.paths[1] = "none.npy".into(), "none.npy"),
        ("no files", |s| s.paths.clear(), "the 0 token files hold no whole instance"),
        ("short files", |s| s.sequence_length = 10, "the 2 token files hold no whole instance of 10 tokens"),
        ("no length", |s| s.sequence_length = 0, "`model.max_sequence_length` is 0"),
        ("other type", |s| s.dtype = TokenType::U32, "not a multiple of the 4 of uint32"),
        ("masks", |s| s.label_mask_paths = Some(vec![]), "`data.label_mask_paths` has 0 entries, and there are 2"),
        ("ratios", |s| s.ratios = Some(vec![1.0; 3]), "`data.ratios` has 3 entries"),
        ("negative ratio", |s| s.ratios = Some(vec![1.0, -0.5]), "`data.ratios` is -0.5"),
        ("no ratio", |s| s.ratios = Some(vec![f64::NAN, 1.0]), "`data.ratios` is NaN"),
        ("huge ratio", |s| s.ratios = Some(vec![1e300, 1.0]), "an order holds fewer than 4294967295"),
        ("nothing left", |s| s.ratios = Some(vec![0.0, 0.0]), "hold no whole instance"),
    ];
    for (name, edit, expected) in cases {
        let mut settings = DataSettings::new(paths.clone(), 3);
        edit(&mut settings);
        let error = DataSet::open(settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let data = DataSet::open(DataSettings { vocabulary: 1002, ..DataSettings::new(paths, 3) }).unwrap();
    for (index, expected) in
        [(3, "1.npy is 1002, but ids are below 1002"), (4, "there is no instance 4, since the token files have 4;")]
    {
        let error = Batch::read(&data, &[index], 1).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The batches as lists of instances, with the position after each.
fn batches(data: &Arc<DataSet>, order: &Arc<Order>, settings: LoaderSettings) -> Vec<(Vec<u32>, u64)> {
    let loader = Loader::new(data.clone(), order.clone(), settings).unwrap();
    let expected = loader.remaining();
    let all: Vec<_> = loader
        .map(|batch| batch.unwrap())
        .map(|batch| {
            // The fields of a batch agree with its content.
            for (i, index) in batch.indices.iter().enumerate() {
                assert_eq!(batch.ids[i * 4], index % 100 * 4 + index / 100 * 1000);
            }
            (batch.indices, batch.next)
        })
        .collect();
    assert_eq!(all.len(), expected);
    all
}

#[test]
fn batches_from_anywhere_on_are_the_same() {
    let (_folder, paths) = files(&[401, 402, 121]);
    let data = Arc::new(DataSet::open(DataSettings::new(paths, 4)).unwrap());
    assert_eq!(data.len(), 230);
    let order = Arc::new(Order::new(data.len(), OrderSettings::default()).unwrap());
    let settings = LoaderSettings { batch_size: 16, ..LoaderSettings::default() };
    let all = batches(&data, &order, settings);
    assert_eq!(all.iter().flat_map(|(indices, _)| indices).copied().collect::<Vec<_>>(), order.indices());
    assert_eq!((all.len(), all[0].1, all[14].0.len(), all[14].1), (15, 16, 6, 230));
    for prefetch in [0, 1, 3, 100] {
        for done in [1, 7, 14, 15] {
            let start = all[done - 1].1;
            assert_eq!(batches(&data, &order, LoaderSettings { start, prefetch, ..settings }), all[done..]);
        }
    }
    // From the middle of a batch, as after a change of the batch size.
    let odd = batches(&data, &order, LoaderSettings { start: 5, ..settings });
    assert_eq!(odd[0], (order.indices()[5..21].to_vec(), 21));
    let full = batches(&data, &order, LoaderSettings { drop_last: true, ..settings });
    assert_eq!(full, all[..14]);
    let few = batches(&data, &order, LoaderSettings { max_examples: Some(20), ..settings });
    assert_eq!(few, [all[0].clone(), (order.indices()[16..20].to_vec(), 20)]);
    for start in [230, 231, u64::MAX] {
        assert_eq!(batches(&data, &order, LoaderSettings { start, ..settings }), []);
    }
}

#[test]
fn ranks_share_every_batch() {
    let (_folder, paths) = files(&[401, 402, 121]);
    let data = Arc::new(DataSet::open(DataSettings::new(paths, 4)).unwrap());
    for (drop_last, world_size) in [(true, 4), (false, 4), (true, 3), (false, 7)] {
        let order = OrderSettings { drop_last, world_size, ..OrderSettings::default() };
        let order = Arc::new(Order::new(data.len(), order).unwrap());
        for start in [0, 84] {
            let settings = LoaderSettings { batch_size: 84, world_size, drop_last, start, ..LoaderSettings::default() };
            let ranks: Vec<_> =
                (0..world_size).map(|rank| batches(&data, &order, LoaderSettings { rank, ..settings })).collect();
            for step in 0..ranks[0].len() {
                let from = start as usize + step * 84;
                let whole = &order.indices()[from..(from + 84).min(order.len())];
                for (rank, batches) in ranks.iter().enumerate() {
                    let own: Vec<u32> = whole.iter().skip(rank).step_by(world_size).copied().collect();
                    assert_eq!(batches[step], (own, (from + whole.len()) as u64), "{rank} of {world_size}");
                }
            }
        }
    }
}

#[test]
fn errors_come_to_the_caller() {
    let (_folder, paths) = files(&[400]);
    let data =
        Arc::new(DataSet::open(DataSettings { vocabulary: 200, ..DataSettings::new(paths.clone(), 4) }).unwrap());
    let order = Arc::new(Order::new(100, OrderSettings { shuffle: false, ..OrderSettings::default() }).unwrap());
    let settings = LoaderSettings { batch_size: 20, ..LoaderSettings::default() };
    let mut loader = Loader::new(data.clone(), order.clone(), settings).unwrap();
    assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("token 200 of") && error.contains("0.npy is 200, but ids are below 200"), "{error}");
    assert!(loader.next().is_none() && loader.remaining() == 0);
    // An order made from other files, and files that were removed.
    let other = Arc::new(Order::new(1000, OrderSettings::default()).unwrap());
    let error = Loader::new(data.clone(), other, settings).unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("since the token files have 100;"), "{error}");
    std::fs::remove_file(&paths[0]).unwrap();
    let error = Loader::new(data.clone(), order.clone(), settings).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("0.npy"), "{error}");
    // A loader that is dropped while batches are read ahead.
    drop(Loader::new(data.clone(), order.clone(), settings).unwrap());
    for (settings, expected) in [
        (LoaderSettings { batch_size: 0, ..settings }, "`global_train_batch_size` is 0"),
        (LoaderSettings { world_size: 3, ..settings }, "`global_train_batch_size` is 20; it has to be a multiple"),
        (LoaderSettings { rank: 2, world_size: 2, ..settings }, "`rank` is 2"),
        (LoaderSettings { world_size: 0, ..settings }, "`rank` is 0"),
    ] {
        let error = Loader::new(data.clone(), order.clone(), settings).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn orders_are_permutations(instances in 0u32..3000, seed: u64, epoch in 0u64..5) {
        let order = Order::new(instances, OrderSettings { seed, epoch, ..OrderSettings::default() }).unwrap();
        let mut sorted = order.indices().to_vec();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..instances).collect::<Vec<_>>());
    }

    #[test]
    fn documents_cover_an_instance(ids in proptest::collection::vec(0u32..4, 0..50)) {
        let lengths = document_lengths(&ids, 0);
        prop_assert_eq!(lengths.iter().sum::<u32>() as usize, ids.len());
        prop_assert!(lengths.iter().all(|length| *length > 0));
    }
}
