//! Files of tokens: headerless ones and Megatron's, read, written, and broken in every way.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use olmoe_data::token_file::{Megatron, MegatronWriter, TokenFile, TokenFileError, TokenType};
use proptest::prelude::*;

const ALL: [TokenType; 8] = [
    TokenType::U8,
    TokenType::U16,
    TokenType::U32,
    TokenType::U64,
    TokenType::I8,
    TokenType::I16,
    TokenType::I32,
    TokenType::I64,
];

fn read(file: &TokenFile, start: u64, count: usize, vocabulary: u32) -> Result<Vec<u32>, TokenFileError> {
    let mut ids = vec![7; count];
    file.read(start, &mut ids, vocabulary, &mut Vec::new()).map(|()| ids)
}

#[test]
fn types_and_their_numbers() {
    for (dtype, bytes, max) in ALL
        .into_iter()
        .zip([1, 2, 4, 8, 1, 2, 4, 8])
        .zip([
            u64::from(u8::MAX),
            u64::from(u16::MAX),
            u64::from(u32::MAX),
            u64::MAX,
            i8::MAX as u64,
            i16::MAX as u64,
            i32::MAX as u64,
            i64::MAX as u64,
        ])
        .map(|((dtype, bytes), max)| (dtype, bytes, max))
    {
        assert_eq!((dtype.bytes(), dtype.max()), (bytes, max), "{dtype}");
        assert_eq!(TokenType::from_name(dtype.name()), Some(dtype));
        let ids = [0, 1, 100, max.min(4_000_000_000) as u32];
        let mut written = Vec::new();
        dtype.write(&ids, &mut written);
        let mut back = [9; 4];
        dtype.read(&written, &mut back);
        assert_eq!(back, ids, "{dtype}");
    }
    assert_eq!(TokenType::from_name("float32"), None);
}

#[test]
fn plain_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part-0-00000.npy");
    fs::write(&path, [1u16, 2, 50279, 4, 5].map(u16::to_le_bytes).concat()).unwrap();
    let file = TokenFile::open(&path, TokenType::U16).unwrap();
    assert_eq!((file.len(), file.is_empty(), file.dtype()), (5, false, TokenType::U16));
    assert_eq!(read(&file, 0, 5, 50280).unwrap(), [1, 2, 50279, 4, 5]);
    assert_eq!(read(&file, 3, 2, 50280).unwrap(), [4, 5]);
    assert_eq!(read(&file, 5, 0, 50280).unwrap(), [0; 0]);
    fs::write(&path, b"").unwrap();
    assert!(TokenFile::open(&path, TokenType::U16).unwrap().is_empty());
}

#[test]
fn files_beyond_four_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.npy");
    // A sparse file, except for its end.
    let tokens = (1u64 << 32) + 77;
    let file = File::create(&path).unwrap();
    file.set_len(tokens * 2).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::FileExt::write_all_at(&file, &[7, 0, 8, 0], tokens * 2 - 4).unwrap();
    let file = TokenFile::open(&path, TokenType::U16).unwrap();
    assert_eq!(file.len(), tokens);
    #[cfg(unix)]
    assert_eq!(read(&file, tokens - 3, 3, 9).unwrap(), [0, 7, 8]);
}

#[test]
fn bad_plain_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    type Case = (&'static str, &'static [u8], TokenType, u64, usize, &'static str);
    let cases: [Case; 12] = [
        ("odd size", &[1, 2, 3], TokenType::U16, 0, 1, "has 3 bytes, which is not a multiple of the 2 of uint16"),
        ("size of another type", &[1, 2, 3, 4, 5, 6], TokenType::U32, 0, 1, "not a multiple of the 4 of uint32"),
        ("header", b"\x93NUMPY\x01\0v\0{'descr'", TokenType::U16, 0, 1, "has a NumPy header"),
        ("beyond", &[1, 0, 2, 0], TokenType::U16, 1, 2, "has 2 tokens, so 2 from token 1 on cannot be read"),
        (
            "far beyond",
            &[1, 0, 2, 0],
            TokenType::U16,
            u64::MAX,
            2,
            "so 2 from token 18446744073709551615 on cannot be read",
        ),
        ("id", &[1, 0, 2, 0, 100, 0], TokenType::U16, 1, 2, "token 2 of "),
        ("id", &[1, 0, 2, 0, 100, 0], TokenType::U16, 1, 2, " is 100, but ids are below 100"),
        ("negative", &[1, 0xff], TokenType::I8, 0, 2, "token 1 of "),
        ("negative", &[1, 0xff], TokenType::I8, 0, 2, " is -1, but"),
        ("negative and wide", &[0, 0, 0, 0, 0, 0, 0, 0x80], TokenType::I64, 0, 1, " is -9223372036854775808, but"),
        ("unsigned and wide", &[0xff; 8], TokenType::U64, 0, 1, " is 18446744073709551615, but"),
        ("just above u32", &[3, 0, 0, 0, 1, 0, 0, 0], TokenType::U64, 0, 1, " is 4294967299, but"),
    ];
    for (name, bytes, dtype, start, count, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let error = TokenFile::open(&path, dtype).and_then(|file| read(&file, start, count, 100));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("x.npy"), "{name}: {error}");
    }
    let error = |path: &Path| TokenFile::open(path, TokenType::U16).unwrap_err().to_string();
    assert!(error(folder.path()).contains("is not a file"));
    assert!(error(&folder.path().join("none.npy")).contains("cannot read the token file"));
    fs::write(&path, [1; 8]).unwrap();
    let file = TokenFile::open(&path, TokenType::U16).unwrap();
    fs::write(&path, [1; 4]).unwrap();
    let error = read(&file, 1, 2, 1000).unwrap_err().to_string();
    assert!(error.contains("has become shorter"), "{error}");
}

/// Ids as a tokenizer of so many tokens makes them: most are small, and all kinds of bytes come.
fn ids(count: u32, vocabulary: u32) -> Vec<u32> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) % vocabulary.min(100 + 40 * i)).collect()
}

#[test]
fn numbers_of_another_type_are_refused_by_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part-0-00000.npy");
    let unsigned = [TokenType::U8, TokenType::U16, TokenType::U32, TokenType::U64];
    let mut told = 0;
    for (vocabulary, count) in [(200, 1_000), (262, 999), (50_280, 4_000), (50_280, 40_000), (100_278, 3_001)] {
        for truth in unsigned.into_iter().filter(|of| of.max() >= u64::from(vocabulary) - 1) {
            let mut bytes = Vec::new();
            truth.write(&ids(count, vocabulary), &mut bytes);
            fs::write(&path, &bytes).unwrap();
            for dtype in unsigned {
                let opened = TokenFile::open_for(&path, dtype, vocabulary);
                // Every byte is a valid id, so only the list of documents tells the types apart.
                let untold = dtype == TokenType::U8 && vocabulary > 300;
                match opened {
                    Ok(file) => {
                        assert!(dtype == truth && file.len() == u64::from(count) || untold, "{truth} as {dtype}")
                    }
                    Err(error) => {
                        assert!(dtype != truth, "{vocabulary}: {error}");
                        let text = error.to_string();
                        let expected = format!("part-0-00000.npy holds numbers of type {truth}, not {dtype}: ");
                        assert!(text.contains(&expected), "{vocabulary}, {count}: {truth} as {dtype}: {text}");
                        assert!(text.contains(&format!("set `memmap_dtype: {truth}`")), "{text}");
                        told += 1;
                    }
                }
            }
        }
    }
    assert!(told > 30, "{told}");
}

#[test]
fn the_list_of_documents_counts_the_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part-0-00000.npy");
    let list = |rows: &str| {
        let file = File::create(folder.path().join("part-0-00000.csv.gz")).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, rows.as_bytes()).unwrap();
        gz.finish().unwrap();
    };
    // Too few numbers to tell the type.
    let mut bytes = Vec::new();
    TokenType::U16.write(&[5, 50_279, 7, 50_279], &mut bytes);
    fs::write(&path, &bytes).unwrap();
    let open = |dtype| TokenFile::open_for(&path, dtype, 50_280);
    for dtype in [TokenType::U8, TokenType::U32] {
        assert!(open(dtype).is_ok(), "{dtype}: nothing tells");
    }
    list("0,2,a,docs.jsonl.gz,1\r\n2,4,\"b, c\",docs.jsonl.gz,2\r\n");
    assert_eq!(open(TokenType::U16).unwrap().len(), 4);
    for dtype in [TokenType::U8, TokenType::U32, TokenType::U64] {
        let error = open(dtype).unwrap_err().to_string();
        let why = "part-0-00000.csv.gz beside it counts 4 tokens, and the file has 8 bytes";
        assert!(error.contains(&format!("holds numbers of type uint16, not {dtype}: {why}")), "{error}");
    }
    // An invalid list, or that of another file, is ignored.
    for rows in ["", "start,end,id\r\n", "0,3,a,b,1\r\n", "9,4,a,b,1\r\n", "0,0,a,b,1", "-1,4,a,b,1"] {
        list(rows);
        assert!(open(TokenType::U32).is_ok(), "{rows:?}");
    }
    fs::write(folder.path().join("part-0-00000.csv.gz"), b"no gzip").unwrap();
    assert!(open(TokenType::U32).is_ok());
}

#[test]
fn what_is_no_mistake_is_let_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    for (name, ids) in [
        ("padding alone", vec![1u32; 1000]),
        ("zeros", vec![0; 1000]),
        ("every other one the same", (0..1000).map(|i| if i % 2 == 0 { 7 } else { 0 }).collect()),
        ("few", (0..20).map(|i| if i % 2 == 0 { 7 + i } else { 0 }).collect()),
        ("bytes", (0..1000).map(|i| i * 7 % 90).collect()),
        ("one id too high", (0..1000).map(|i| if i == 500 { 60_000 } else { i * 7 % 50_000 }).collect()),
        ("all ids too high", (0..1000).map(|i| 51_000 + i * 13 % 14_000).collect()),
        ("none", Vec::new()),
    ] {
        let mut bytes = Vec::new();
        TokenType::U16.write(&ids, &mut bytes);
        fs::write(&path, &bytes).unwrap();
        TokenFile::open_for(&path, TokenType::U16, 50_280).unwrap_or_else(|error| panic!("{name}: {error}"));
        TokenFile::open_for(&path, TokenType::U16, u32::MAX).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // A size that fits no other type, and a NumPy header, remain errors of their own.
    fs::write(&path, [1, 2, 3]).unwrap();
    let error = TokenFile::open_for(&path, TokenType::U16, 50_280).unwrap_err();
    assert!(matches!(error, TokenFileError::Size { bytes: 3, .. }), "{error}");
    fs::write(&path, b"\x93NUMPY\x01\0v\0{'descr': '<u2'}\n1").unwrap();
    let error = TokenFile::open_for(&path, TokenType::U16, 50_280).unwrap_err();
    assert!(matches!(error, TokenFileError::Header { .. }), "{error}");
}

/// The index of two documents, of sequences of 2 and 1 and of 3 numbers, put together by hand.
fn index(code: u8, bytes_each: i64) -> Vec<u8> {
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(code);
    index.extend(3u64.to_le_bytes());
    index.extend(3u64.to_le_bytes());
    [2i32, 1, 3].iter().for_each(|length| index.extend(length.to_le_bytes()));
    [0i64, 2, 3].iter().for_each(|start| index.extend((start * bytes_each).to_le_bytes()));
    [0i64, 2, 3].iter().for_each(|bound| index.extend(bound.to_le_bytes()));
    index
}

#[test]
fn megatron_files_as_the_format_says() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("corpus.text");
    for (code, dtype) in [
        (1, TokenType::U8),
        (2, TokenType::I8),
        (3, TokenType::I16),
        (4, TokenType::I32),
        (5, TokenType::I64),
        (8, TokenType::U16),
    ] {
        let mut writer = MegatronWriter::create(&name.with_extension("text.bin"), dtype).unwrap();
        writer.sequence(&[1, 2]).unwrap();
        writer.sequence(&[3]).unwrap();
        writer.end_document();
        writer.sequence(&[4, 5, 6]).unwrap();
        assert!(!folder.path().join("corpus.text.idx").exists() || code > 1);
        writer.finish().unwrap();
        let written = fs::read(folder.path().join("corpus.text.idx")).unwrap();
        assert_eq!(written, index(code, dtype.bytes() as i64), "{dtype}");
        let mut numbers = Vec::new();
        dtype.write(&[1, 2, 3, 4, 5, 6], &mut numbers);
        assert_eq!(fs::read(folder.path().join("corpus.text.bin")).unwrap(), numbers, "{dtype}");
        // The name of either file, or their common stem, opens the data set.
        for path in ["corpus.text.bin", "corpus.text.idx"] {
            let set = Megatron::open(&folder.path().join(path)).unwrap();
            assert_eq!((set.num_sequences(), set.num_documents()), (3, 2));
            assert_eq!((set.document(0), set.document(1), set.document(2)), (Some(0..2), Some(2..3), None));
            assert_eq!(set.document(usize::MAX), None);
            assert_eq!((set.length(2), set.length(3), set.mode(0)), (Some(3), None, None));
            let sequence = |i| set.sequence(i, 100).unwrap();
            assert_eq!((sequence(0), sequence(1), sequence(2)), (Some(vec![1, 2]), Some(vec![3]), Some(vec![4, 5, 6])));
            assert_eq!(sequence(3), None);
            let tokens = TokenFile::open(&folder.path().join(path), TokenType::U64).unwrap();
            assert_eq!((&tokens, tokens.dtype(), tokens.len()), (set.tokens(), dtype, 6));
            assert_eq!(read(&tokens, 1, 4, 100).unwrap(), [2, 3, 4, 5]);
        }
    }
    let with_modes = [index(8, 2), vec![0, 1, 255]].concat();
    fs::write(folder.path().join("corpus.text.idx"), with_modes).unwrap();
    let set = Megatron::open(&folder.path().join("corpus.text.bin")).unwrap();
    assert_eq!((set.mode(1), set.mode(2), set.mode(3)), (Some(1), Some(-1), None));
    assert_eq!(
        (MegatronWriter::dtype_for(50_304), MegatronWriter::dtype_for(65_500)),
        (TokenType::U16, TokenType::I32)
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn bad_megatron_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    type Edit = fn(&mut Vec<u8>);
    let cases: [(&str, Edit, &str); 22] = [
        ("empty", Vec::clear, "it has 0 bytes, and its header alone has 34"),
        ("header cut", |i| i.truncate(33), "it has 33 bytes"),
        ("magic", |i| i[0] = b'X', "it begins with [88, "),
        ("version", |i| i[9] = 2, "its version is 2, not 1"),
        ("float", |i| i[17] = 7, "its type has the code 7"),
        ("code 0", |i| i[17] = 0, "its type has the code 0"),
        ("code 255", |i| i[17] = 255, "its type has the code 255"),
        ("another type", |i| i[17] = 4, "sequence 2 has 3 numbers of 4 bytes from byte 6 on"),
        ("more sequences", |i| i[18] = 4, "4 sequences with 3 document bounds take 106"),
        ("huge count", |i| i[18..26].fill(255), "18446744073709551615 sequences"),
        ("huge bounds", |i| i[26..34].fill(255), "18446744073709551615 document bounds"),
        ("cut", |i| i.truncate(90), "it has 90 bytes, and 3 sequences with 3 document bounds take 94"),
        ("too long", |i| i.extend([0; 8]), "it has 102 bytes"),
        ("negative length", |i| i[34..38].fill(255), "sequence 0 has -1 numbers"),
        (
            "long sequence",
            |i| i[42..46].copy_from_slice(&4i32.to_le_bytes()),
            "sequence 2 has 4 numbers of 2 bytes from byte 6",
        ),
        ("longest sequence", |i| i[42..46].copy_from_slice(&i32::MAX.to_le_bytes()), "sequence 2 has 2147483647"),
        ("negative start", |i| i[46..54].fill(255), "sequence 0 has 2 numbers of 2 bytes from byte -1"),
        ("odd start", |i| i[54] = 3, "sequence 1 has 1 numbers of 2 bytes from byte 3"),
        ("far start", |i| i[54..62].copy_from_slice(&i64::MAX.to_le_bytes()), "from byte 9223372036854775807"),
        ("first bound", |i| i[70] = 1, "document bound 0 is 1"),
        ("falling bounds", |i| i[78..86].fill(255), "document bound 1 is -1"),
        ("last bound", |i| i[86] = 2, "the documents end with sequence 2, and there are 3"),
    ];
    fs::write(path("x.bin"), [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]).unwrap();
    for (name, edit, expected) in cases {
        let mut bytes = index(8, 2);
        edit(&mut bytes);
        fs::write(path("x.idx"), bytes).unwrap();
        let error = Megatron::open(&path("x.bin")).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("x.idx is not a valid Megatron index"), "{name}: {error}");
    }
    fs::write(path("x.idx"), index(8, 2)).unwrap();
    let set = Megatron::open(&path("x")).unwrap();
    let error = set.sequence(1, 3).unwrap_err().to_string();
    assert!(error.contains("token 2 of") && error.contains("is 3, but ids are below 3"), "{error}");
    fs::write(path("x.bin"), [1, 2, 3]).unwrap();
    let error = Megatron::open(&path("x.idx")).unwrap_err().to_string();
    assert!(error.contains("not a multiple of the 2 of uint16"), "{error}");
    for missing in ["none.bin", "none.idx"] {
        assert!(Megatron::open(&path(missing)).unwrap_err().to_string().contains("none.idx"), "{missing}");
    }
    fs::write(path("lone.idx"), index(8, 2)).unwrap();
    assert!(Megatron::open(&path("lone")).unwrap_err().to_string().contains("lone.bin"));

    let error = MegatronWriter::create(&path("y"), TokenType::U32).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("does not have uint32"), "{error}");
    let error = MegatronWriter::create(&path("no/y"), TokenType::U16).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("cannot make"), "{error}");
    let mut writer = MegatronWriter::create(&path("y"), TokenType::U16).unwrap();
    let error = writer.sequence(&[1, 65_536]).unwrap_err().to_string();
    assert!(error.contains("uint16 does not hold the id 65536"), "{error}");
    drop(writer);
    assert!(!path("y.bin").exists() && !path("y.idx").exists());
    // An empty data set.
    MegatronWriter::create(&path("z"), TokenType::I32).unwrap().finish().unwrap();
    let set = Megatron::open(&path("z")).unwrap();
    assert_eq!((set.num_sequences(), set.num_documents(), set.tokens().is_empty()), (0, 0, true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_index_of_any_bytes_does_not_panic(at in 0usize..94, bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut damaged = index(8, 2);
        for (to, byte) in damaged[at..].iter_mut().zip(&bytes) {
            *to = *byte;
        }
        fs::write(folder.path().join("x.idx"), damaged).unwrap();
        fs::write(folder.path().join("x.bin"), [0; 12]).unwrap();
        if let Ok(set) = Megatron::open(&folder.path().join("x")) {
            for sequence in 0..set.num_sequences() {
                let _ = set.sequence(sequence, 10);
            }
        }
    }
}
