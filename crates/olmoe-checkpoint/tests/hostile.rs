//! Pickles and archives made to do harm: a typed error each, with little memory and no panic.

mod archive;
#[path = "bad_files/memory.rs"]
mod memory;

use olmoe_checkpoint::{pickle, torch};

use archive::{Entry, dict, entries, file, int, ints, pickle, tensor, text, tuple, zip};
use memory::measured;

/// Memory in proportion to the input, plus a little.
fn allowed(input: &[u8]) -> usize {
    96 * input.len() + 16 * 1024
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn hostile_pickles() {
    let p = |body: &[u8]| join(&[b"\x80\x04", body]);
    let long = "x".repeat(100_000);
    let many = |unit: &[u8], times: usize, end: &[u8]| p(&join(&[&unit.repeat(times), end]));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "not a pickle"),
        ("protocol 0", b"cos\nsystem\n(S'ls'\ntR.".to_vec(), "not a pickle"),
        ("protocol 1", b"}q\0.".to_vec(), "not a pickle"),
        ("protocol 6", b"\x80\x06N.".to_vec(), "protocol 6, expected 2 to 5"),
        ("no opcode", p(b""), "1 bytes expected, 0 are left"),
        ("os.system", p(b"cos\nsystem\n\x8c\x02ls\x85R."), "`os.system`"),
        ("posix.system", p(b"\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R."), "`posix.system`"),
        ("builtins.eval", p(b"cbuiltins\neval\n\x8c\x011\x85R."), "`builtins.eval`"),
        ("builtins.getattr", p(b"c__builtin__\ngetattr\n."), "`__builtin__.getattr`"),
        ("dotted name", p(b"ctorch\nSize.__reduce__\n."), "`torch.Size.__reduce__`"),
        ("torch.load", p(b"ctorch\nload\n\x8c\x01a\x85R."), "`torch.load`"),
        ("long global", p(&join(&[b"c", long.as_bytes(), b"\nf\n."])), "xxx….f`"),
        ("control characters", p(b"co\x1b[2Js\nsystem\n."), "`o\\u{1b}[2Js.system`"),
        ("global without end", p(b"cos"), "3 bytes expected, 2 are left"),
        ("INST", p(b"(ios\nsystem\n."), "opcode 0x69 ('i')"),
        ("OBJ", p(b"(N)o."), "opcode 0x6f ('o')"),
        ("NEWOBJ_EX", p(b")}\x92."), "opcode 0x92"),
        ("extension", p(b"\x82\x01."), "opcode 0x82"),
        ("persistent name", p(b"Pname\n."), "opcode 0x50 ('P')"),
        ("text integer", p(b"I1\n."), "opcode 0x49 ('I')"),
        ("call of a storage", p(b"ctorch\nFloatStorage\n)R."), "call of torch.FloatStorage is not known"),
        ("object of a storage", p(b"ctorch\nFloatStorage\n)\x81."), "call of torch.FloatStorage is not known"),
        ("call of a string", p(b"\x8c\x01f)R."), "call of a string makes no sense"),
        ("arguments that are none", p(b"ctorch\nSize\nNR."), "a tuple of arguments, found None"),
        ("OrderedDict of items", p(b"ccollections\nOrderedDict\n]\x85R."), "OrderedDict with items"),
        ("attributes of a tuple", p(b")}b."), "a dict to give attributes to, found a tuple"),
        ("attributes of a call", p(b"ctorch\nSize\n)R}b."), "attributes to, found a torch.Size"),
        ("module that is no string", p(b"K\x01\x8c\x01a\x93."), "expected a string, found an int"),
        ("underflow of STOP", p(b"."), "stack is empty"),
        ("underflow of POP", p(b"N00."), "stack is empty"),
        ("underflow of DUP", p(b"2."), "stack is empty"),
        ("underflow of TUPLE3", p(b"NN\x87."), "stack is empty"),
        ("underflow of REDUCE", p(b")R."), "stack is empty"),
        ("underflow of BUILD", p(b"Nb."), "stack is empty"),
        ("underflow of SETITEM", p(b"}Ns."), "stack is empty"),
        ("underflow of MEMOIZE", p(b"\x94."), "stack is empty"),
        ("underflow of BINPERSID", p(b"Q."), "stack is empty"),
        ("pop through a mark", p(b"N(0."), "stack is empty"),
        ("append through a mark", p(b"](Na."), "stack is empty"),
        ("tuple without a mark", p(b"t."), "group that was not begun"),
        ("POP_MARK without a mark", p(b"1."), "group that was not begun"),
        ("append to a tuple", p(b")Na."), "expected a list, found a tuple"),
        ("item of a list", p(b"]NNs."), "expected a dict, found a list"),
        ("key without a value", p(b"}(Nu."), "key without a value"),
        ("memo that is not there", p(b"h\0."), "memo 0 of 0"),
        ("memo far away", p(b"j\xff\xff\xff\xff."), "memo 4294967295 of 0"),
        ("memo with gaps", p(b"Nr\xff\xff\xff\x7f."), "memo 2147483647 of 0"),
        ("LONG1 cut", p(b"\x8a\xff\x01"), "255 bytes expected, 1 are left"),
        ("LONG4 of 4 GiB", p(b"\x8b\xff\xff\xff\xff."), "4294967295 bytes expected, 1 are left"),
        ("BINUNICODE of 4 GiB", p(b"X\xff\xff\xff\xffa."), "4294967295 bytes expected"),
        ("BINUNICODE8 of 2^63", p(b"\x8d\0\0\0\0\0\0\0\x80a."), "9223372036854775808 bytes expected"),
        ("BINBYTES8 of 2^64-1", p(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffa."), "18446744073709551615 bytes"),
        ("BYTEARRAY8 of 2^64-1", p(b"\x96\xff\xff\xff\xff\xff\xff\xff\xffa."), "18446744073709551615 bytes"),
        ("frame of 2^64-1", p(b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN."), "18446744073709551615 bytes"),
        ("not UTF-8", p(b"\x8c\x01\xff."), "not UTF-8"),
        ("two values", p(b"NN."), "1 values and 0 bytes are left over"),
        ("bytes after the end", p(b"N.N"), "0 values and 1 bytes are left over"),
        ("open group at the end", p(b"(N."), "0 values and 0 bytes are left over"),
        ("stack bomb", many(b"N", pickle::MAX_STACK + 1, b"."), "more than 65536 values on the stack"),
        ("mark bomb", many(b"(", 1000, b"."), "more than 256 open groups"),
        ("value bomb", many(b"N0", pickle::MAX_VALUES + 1, b"N."), "more than 131072 values"),
        ("memo bomb", many(b"\x94", pickle::MAX_MEMO + 1, b"."), "stack is empty"),
        ("remembering bomb", p(&join(&[b"N", &b"\x94".repeat(pickle::MAX_MEMO + 1)])), "remembered values"),
        ("too long", p(&vec![b'N'; pickle::MAX_BYTES]), "more than the 8388608 that are read"),
    ];
    for (name, bytes, expected) in cases {
        let (result, memory) = measured(|| pickle::parse(&bytes));
        let error = result.expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.len() < 400, "{name}: {error}");
        assert!(memory <= allowed(&bytes), "{name}: {memory} bytes for {}", bytes.len());
    }
}

/// Values that are harmless as such, however they are entangled.
#[test]
fn entangled_values_are_read_and_dropped() {
    let p = |body: &[u8]| join(&[b"\x80\x04", body, b"."]);
    let cases = [
        ("list in itself", p(b"]\x94h\0a")),
        ("dict in itself", p(b"}\x94\x8c\x01ah\0s")),
        ("dict in its attributes", p(b"}\x94h\0b")),
        ("nested lists", p(&join(&[&b"]".repeat(60_000), &b"a".repeat(59_999)]))),
        ("nested tuples", p(&join(&[b"N", &b"\x85".repeat(100_000)]))),
        ("2^50000 leaves", p(&join(&[b"N", &b"2\x86".repeat(50_000)]))),
        ("persistent of persistent", p(&join(&[b"N", &b"Q".repeat(1000)]))),
    ];
    for (name, bytes) in cases {
        let (result, memory) = measured(|| pickle::parse(&bytes).map(drop));
        result.expect(name);
        assert!(memory <= allowed(&bytes), "{name}: {memory} bytes for {}", bytes.len());
    }
}

fn state(items: &[Vec<u8>]) -> Vec<u8> {
    zip(&entries(&pickle(&dict(items))))
}

/// A good file after a change of its entries.
fn edited(change: impl FnOnce(&mut Vec<Entry>)) -> Vec<u8> {
    let mut entries = entries(&pickle(&dict(&[text("w"), good()])));
    change(&mut entries);
    zip(&entries)
}

/// A good file after a change of its bytes.
fn patched(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = file(&good());
    change(&mut bytes);
    bytes
}

fn good() -> Vec<u8> {
    tensor("0", 6, 0, &[2, 3], &[3, 1])
}

/// Replaces a number in the last record of an archive.
fn at_end(bytes: &mut [u8], from_end: usize, value: &[u8]) {
    let at = bytes.len() - from_end;
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn hostile_files() {
    let key = || text("w");
    let nested = |depth| join(&[&b"}\x8c\x01d".repeat(depth), b"}", &b"s".repeat(depth)]);
    let parameter = |data: &[u8]| join(&[b"ctorch._utils\n_rebuild_parameter\n", data, b"\x88N\x87R"]);
    let storage = |items: &[Vec<u8>]| {
        let arguments = tuple(&[join(&[&tuple(items), b"Q"]), int(0), ints(&[1]), ints(&[1]), b"\x89N".to_vec()]);
        file(&join(&[b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments, b"R"]))
    };
    let items: Vec<u8> = (0..=torch::MAX_ENTRIES as i64).flat_map(|i| join(&[&int(i), b"Ns"])).collect();
    let crowd = join(&[b"}", &items]);
    let kind = || b"ctorch\nFloatStorage\n".to_vec();
    let longest = "k".repeat(250);
    let long_keys = [&b"}"[..], &text(&longest)].concat().repeat(5);
    let wide = |value: &[u8]| patched(|bytes| at_end(bytes, 10, value));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        // The archive.
        ("empty", vec![], "no end of a zip archive"),
        ("an end alone", join(&[b"PK\x05\x06", &[0; 18]]), "0 entries <folder>/data.pkl"),
        ("a comment", patched(|b| b.extend(b"hi")), "no end of a zip archive"),
        ("comment length", patched(|b| at_end(b, 2, &[1, 0])), "no end of a zip archive"),
        ("directory of 4 GiB", wide(&[0xfe, 0xff, 0xff, 0xff]), "a directory of 4294967294 bytes at"),
        ("directory beyond the file", patched(|b| at_end(b, 6, &[0xfe, 0xff, 0xff, 0xff])), "at 4294967294 does not"),
        (
            "directory one byte off",
            patched(|b| {
                let at = b[b.len() - 6];
                at_end(b, 6, &[at - 1])
            }),
            "directory is not that",
        ),
        ("more entries", patched(|b| at_end(b, 12, &[4])), "directory is not that of 4 entries"),
        ("many entries", patched(|b| at_end(b, 12, &[0xfe, 0xff])), "directory is not that of 65534 entries"),
        ("fewer entries", patched(|b| at_end(b, 12, &[2, 0])), "directory is not that of 2 entries"),
        ("zip64 without its records", patched(|b| at_end(b, 6, &[0xff; 4])), "no zip64 locator"),
        ("entry beyond the file", edited(|e| e[2].shift = 1 << 30), "does not end before the directory"),
        ("entry at 2^63", edited(|e| e[2].shift = i64::MIN), "does not end before the directory"),
        (
            "entry at 2^64-1",
            edited(|e| {
                e[0].shift = -1;
            }),
            "does not end before the directory",
        ),
        (
            "entry of 4 GiB",
            edited(|e| (e[2].bytes, e[2].stored) = (1 << 32, 1 << 32)),
            "4294967296 bytes with a header",
        ),
        ("entry of 2^64-1", edited(|e| (e[2].bytes, e[2].stored) = (u64::MAX, u64::MAX)), "does not end before"),
        ("entry over the directory", edited(|e| (e[2].bytes, e[2].stored) = (25, 25)), "does not end before"),
        ("header elsewhere", edited(|e| e[2].shift = -3), "no header of an entry"),
        ("overlap", edited(|e| (e[0].bytes, e[0].stored) = (e[0].bytes + 1, e[0].stored + 1)), "overlap"),
        (
            "one header for two",
            edited(|e| {
                e[1].shift = -((30 + 10 + e[0].data.len()) as i64);
                e[1].name = b"a/other.pk".to_vec()
            }),
            "overlap",
        ),
        ("two of one name", edited(|e| e.push(e[2].clone())), "two entries `a/data/0`"),
        ("compressed", edited(|e| e[2].method = 8), "`a/data/0` is compressed (method 8)"),
        ("compressed pickle", edited(|e| e[0].method = 14), "`a/data.pkl` is compressed (method 14)"),
        ("encrypted", edited(|e| e[2].flags = 1), "`a/data/0` is compressed (method 0) or encrypted"),
        ("two sizes", edited(|e| e[2].stored = 20), "stored with 20 bytes but has 24"),
        ("name that is no text", edited(|e| e[1].name = vec![0xff; 11]), "name of entry 1 is not UTF-8"),
        // The folder.
        (
            "no pickle",
            edited(|e| {
                e.remove(0);
            }),
            "0 entries <folder>/data.pkl",
        ),
        ("no folder", edited(|e| e[0].name = b"data.pkl".to_vec()), "0 entries <folder>/data.pkl"),
        ("two pickles", edited(|e| e.push(Entry::new("b/data.pkl", b"\x80\x02N."))), "2 entries <folder>/data.pkl"),
        ("big-endian", edited(|e| e[1] = Entry::new("a/byteorder", b"big")), "byte order `big`, expected `little`"),
        ("long byte order", edited(|e| e[1] = Entry::new("a/byteorder", &[b'x'; 99])), "byte order `xxxxxxxxxxxxxxxx`"),
        ("storage elsewhere", edited(|e| e[2].name = b"b/data/0".to_vec()), "the archive has no entry `a/data/0`"),
        (
            "storage missing",
            edited(|e| {
                e.remove(2);
            }),
            "the archive has no entry `a/data/0`",
        ),
        (
            "storage too small",
            edited(|e| e[2] = Entry::new("a/data/0", &[0; 23])),
            "6 elements of 4 bytes, but `a/data/0` has 23",
        ),
        // The dict.
        ("os.system", zip(&entries(b"\x80\x02cos\nsystem\n\x8c\x02ls\x85R.")), "`os.system`, which is not among"),
        ("a number", zip(&entries(b"\x80\x02K\x01.")), "holds an int, not a dict"),
        ("a tensor", zip(&entries(&pickle(&good()))), "holds a tensor, not a dict"),
        ("dict in itself", zip(&entries(b"\x80\x02}q\0\x8c\x01ah\0s.")), "`a` contains itself"),
        ("list as key", state(&[b"]".to_vec(), good()]), "a key in `` is a list"),
        ("tuple as nested key", state(&[key(), dict(&[tuple(&[]), good()])]), "a key in `w` is a tuple"),
        ("two of one key", state(&[key(), good(), key(), good()]), "two values are named `w`"),
        ("number and its text", state(&[int(3), good(), text("3"), good()]), "two values are named `3`"),
        ("two of one path", state(&[text("a.b"), good(), text("a"), dict(&[text("b"), good()])]), "named `a.b`"),
        (
            "dict in two places",
            zip(&entries(&pickle(&join(&[b"}(\x8c\x01a}\x94\x8c\x01bh\0u"])))),
            "`b` contains itself or occurs twice",
        ),
        ("deep dict", zip(&entries(&pickle(&nested(40)))), "lies in more than 32 dicts"),
        ("deeper dict", zip(&entries(&pickle(&nested(20_000)))), "lies in more than 32 dicts"),
        ("long key", state(&[join(&[b"X\x01\x04\0\0", "k".repeat(1025).as_bytes()]), good()]), "a name of 1025 bytes"),
        ("long path", zip(&entries(&pickle(&join(&[&long_keys, b"Nsssss"])))), "more than the 1024 of a name"),
        ("too many values", zip(&entries(&pickle(&crowd))), "more than 16384 values"),
        // The tensors.
        ("transposed", file(&tensor("0", 6, 0, &[2, 3], &[1, 2])), "with strides [1, 2], not row-major"),
        ("expanded", file(&tensor("0", 6, 0, &[1000, 3], &[0, 1])), "with strides [0, 1], not row-major"),
        ("every second", file(&tensor("0", 6, 0, &[3], &[2])), "with strides [2], not row-major"),
        ("negative size", file(&tensor("0", 6, 0, &[-2, 3], &[3, 1])), "sizes of 0 or more, found -2"),
        ("negative stride", file(&tensor("0", 6, 0, &[2, 3], &[-3, 1])), "strides of 0 or more, found -3"),
        ("negative offset", file(&tensor("0", 6, -1, &[2, 3], &[3, 1])), "offset of 0 or more, found -1"),
        ("negative storage", file(&tensor("0", -6, 0, &[2, 3], &[3, 1])), "0 or more elements, found -6"),
        (
            "offset too far",
            file(&tensor("0", 6, 1, &[2, 3], &[3, 1])),
            "from element 1 on does not fit its storage of 6",
        ),
        ("offset of 2^63-1", file(&tensor("0", 6, i64::MAX, &[2, 3], &[3, 1])), "does not fit its storage"),
        ("empty, too far", file(&tensor("0", 6, 7, &[0], &[1])), "from element 7 on does not fit"),
        ("too large", file(&tensor("0", 6, 0, &[3, 3], &[3, 1])), "does not fit its storage of 6"),
        ("size of 2^63-1", file(&tensor("0", 6, 0, &[i64::MAX], &[1])), "does not fit its storage of 6"),
        ("size of 2^64", file(&tensor("0", 6, 0, &[1 << 32, 1 << 32], &[1 << 32, 1])), "overflows"),
        ("empty, of 2^65", file(&tensor("0", 6, 0, &[0, 1 << 33, 1 << 32], &[0, 0, 0])), "overflows"),
        (
            "storage of 2^63-1",
            file(&tensor("0", i64::MAX, 0, &[2, 3], &[3, 1])),
            "9223372036854775807 elements of 4 bytes",
        ),
        ("storage of 7", file(&tensor("0", 7, 0, &[2, 3], &[3, 1])), "7 elements of 4 bytes, but `a/data/0` has 24"),
        ("key of another folder", file(&tensor("../data.pkl", 6, 0, &[6], &[1])), "no entry `a/data/../data.pkl`"),
        ("no strides", file(&tensor("0", 6, 0, &[2, 3], &[])), "one stride for each size"),
        ("many axes", file(&tensor("0", 6, 0, &[1; 17], &[1; 17])), "at most 16 axes, found 17"),
        ("parameter of a number", file(&parameter(b"N")), "a parameter made of a tensor, found None"),
        (
            "parameter of a parameter",
            file(&parameter(&parameter(&good()))),
            "a parameter made of a tensor, found a tensor",
        ),
        ("parameter of nothing", file(b"ctorch._utils\n_rebuild_parameter\n)R"), "made of a tensor, found 0 arguments"),
        ("tensor of nothing", file(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "six or seven arguments, found 0"),
        (
            "storage of text",
            storage(&[text("storage"), text("FloatStorage"), text("0"), text("cpu"), int(6)]),
            "a storage (\"storage\", type, key, location, elements), found a string",
        ),
        (
            "storage of a function",
            storage(&[text("storage"), b"ctorch\nSize\n".to_vec(), text("0"), text("cpu"), int(6)]),
            "found a class or function",
        ),
        ("storage of a module", storage(&[text("module"), kind(), text("0"), text("cpu"), int(6)]), "found a string"),
        ("storage by number", storage(&[text("storage"), kind(), int(0), text("cpu"), int(6)]), "found an int"),
        (
            "storage of 2^70",
            storage(&[text("storage"), kind(), text("0"), text("cpu"), b"\x8a\x09\0\0\0\0\0\0\0\0\x40".to_vec()]),
            "0 or more elements, found an int",
        ),
        ("storage of four", storage(&[text("storage"), kind(), text("0"), text("cpu")]), "found a tuple"),
    ];
    assert_eq!(torch::read_from(&file(&good())[..]).unwrap().tensors.len(), 1);
    assert_eq!(torch::read_from(&file(&parameter(&good()))[..]).unwrap().tensors.len(), 1);
    for (name, bytes, expected) in cases {
        let (result, memory) = measured(|| torch::read_from(&bytes[..]));
        let error = result.expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.len() < 2600, "{name}: {error}");
        assert!(memory <= allowed(&bytes), "{name}: {memory} bytes for {}", bytes.len());
    }
}

/// The pickle of a good file, cut at every byte inside an archive that is right.
#[test]
fn pickles_cut_short() {
    let pickle = pickle(&dict(&[text("w"), good()]));
    for length in 0..pickle.len() {
        assert!(matches!(torch::read_from(&zip(&entries(&pickle[..length]))[..]), Err(torch::TorchError::Pickle(_))));
    }
}
