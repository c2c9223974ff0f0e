//! Checkpoints loaded for inference: embeddings as files have them, the file of packed weights and every way in which
//! it can be wrong, and the refusal of what does not fit.

use std::fs::{File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::inference::{Loading, packed_cache_path};
use olmoe_checkpoint::weights::{Random, Weights};
use olmoe_checkpoint::{Checkpoint, CheckpointError};
use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Held, Keep, Model, Precision};
use olmoe_tensor::dtype::DType;

const HF: Target = Target::HuggingFace { experts: Experts::Separate, dtype: None };

/// The release model in small, or a dense one whose queries and keys GGUF files interleave.
fn config(dense: bool) -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (256, 1, 4, 2, 64);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (99, 99, 64);
    (config.pad_token_id, config.eos_token_id) = (None, Some(98));
    let mlp = Mlp { width: 256, activation: Activation::SwiGlu };
    match &mut config.feed_forward {
        _ if dense => (config.feed_forward, config.qk_norm) = (FeedForward::Dense(mlp), None),
        FeedForward::Moe(moe) => (moe.num_experts, moe.top_k, moe.expert) = (4, 2, mlp),
        FeedForward::Dense(_) => {}
    }
    config
}

fn write(config: &ModelConfig, seed: u64, dtype: DType, target: Target, path: &Path) {
    let random = Random::new(config.clone(), seed, dtype);
    let companions = Companions::named("toy");
    Conversion::plan(&random, &companions, target).unwrap().run(path, true, &|_| {}).unwrap();
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 99).collect();
    let batch = Batch::uniform(&ids, ids.len()).unwrap();
    model.logits(&batch, &mut Activations::new(Keep::Nothing)).unwrap().to_vec()
}

fn held(model: &mut Model) -> Vec<Vec<u8>> {
    let count = model.parameters().len();
    (0..count).flat_map(|id| model.held_mut(id).map(|bytes| bytes.to_vec()).collect::<Vec<_>>()).collect()
}

#[test]
fn embeddings_stay_as_the_file_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = 0;
    for tied in [false, true] {
        let config = ModelConfig { tie_embeddings: tied, ..config(tied) };
        for mix in Mix::all() {
            made += 1;
            let path = folder.path().join(made.to_string());
            write(&config, 5, DType::F32, Target::Gguf { mix: Some(mix) }, &path);
            let checkpoint = Checkpoint::open(&path).unwrap();
            let encoding = checkpoint.encoding(0, 0);
            let mut reference = Model::new(config.clone(), Precision::Fp32, Held::Inference).unwrap();
            for (id, spec) in checkpoint.parameters().iter().enumerate() {
                let slabs = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
                let mut value = vec![0.0; spec.num_elements()];
                for (slab, out) in value.chunks_mut(spec.num_elements() / slabs).enumerate() {
                    checkpoint.encoding(id, slab).decode(&checkpoint.read(id, slab).unwrap(), out);
                }
                reference.set(&spec.name, &spec.shape, &value).unwrap();
            }
            let load =
                |precision, keep_blocks| checkpoint.load(&Loading::new(precision, keep_blocks), &|_| {}).unwrap().model;
            let model = load(Precision::Fp32, false);
            assert_eq!(logits(&model), logits(&reference), "{} tied: {tied}", mix.name());
            assert_eq!(model.bytes() as u64, checkpoint.inference_bytes(Precision::Fp32, false));
            let numbers = 99 * 256 * 4;
            let expected = if tied && encoding.is_quantized() { numbers } else { encoding.bytes(99 * 256).unwrap() };
            assert_eq!(reference.bytes() - model.bytes(), numbers - expected, "{} tied: {tied}", mix.name());

            let model = load(Precision::AmpBf16, true);
            assert_eq!(model.bytes() as u64, checkpoint.inference_bytes(Precision::AmpBf16, true));
            assert_eq!(model.encoding(0), Some(encoding), "{} tied: {tied}", mix.name());
        }
    }
}

/// A checkpoint with its file of packed weights.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk { folder: tempfile::tempdir().unwrap() };
        write(&config(false), 1, DType::Bf16, Target::Gguf { mix: Some(Mix::Q4KM) }, &desk.model());
        desk
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("model.gguf.amp_bf16.packed")
    }

    fn loading(&self) -> Loading {
        Loading { packed_cache: Some(self.cache()), ..Loading::new(Precision::AmpBf16, true) }
    }

    /// Loads; gives what is held, the notice, and whether there is a file to be written, which is.
    fn load(&self, loading: &Loading) -> (Vec<Vec<u8>>, Option<String>, bool) {
        let mut loaded = Checkpoint::open(&self.model()).unwrap().load(loading, &|_| {}).unwrap();
        let wanted = loaded.to_keep();
        let written = std::sync::atomic::AtomicU64::new(0);
        loaded.keep(&|bytes| _ = written.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed)).unwrap();
        assert_eq!(written.into_inner() > 0, wanted.is_some());
        let length = std::fs::metadata(self.cache()).unwrap().len();
        assert!(wanted.is_none_or(|wanted| wanted == length), "{wanted:?}, {length}");
        (held(&mut loaded.model), loaded.notice, wanted.is_some())
    }

    fn edit(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.cache()).unwrap();
        change(&mut bytes);
        std::fs::write(self.cache(), bytes).unwrap();
    }

    /// Changes the header and makes its hash right again.
    fn edit_header(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        self.edit(|bytes| {
            let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
            let header = String::from_utf8(bytes[48..48 + length].to_vec()).unwrap();
            assert!(header.contains(from), "{header}");
            let header = header.replacen(from, to, 1);
            bytes[48..48 + length].copy_from_slice(header.as_bytes());
            bytes[16..48].copy_from_slice(blake3::hash(header.as_bytes()).as_bytes());
        });
    }
}

#[test]
fn packed_weights_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let tied = ModelConfig { tie_embeddings: true, ..config(true) };
    let targets = [HF, Target::Olmo { dtype: None }, Target::Gguf { mix: None }, Target::Gguf { mix: Some(Mix::Q4_0) }];
    let mut made = 0;
    for config in [config(false), config(true), tied] {
        for target in targets {
            for (precision, keep_blocks) in
                [(Precision::AmpBf16, true), (Precision::Fp32, false), (Precision::Fp32, true)]
            {
                made += 1;
                let path = folder.path().join(made.to_string());
                write(&config, 2, DType::Bf16, target, &path);
                let checkpoint = Checkpoint::open(&path).unwrap();
                let mut plain = checkpoint.load(&Loading::new(precision, keep_blocks), &|_| {}).unwrap().model;
                let expected = held(&mut plain);
                let loading = Loading {
                    packed_cache: Some(packed_cache_path(&path, None, precision)),
                    ..Loading::new(precision, keep_blocks)
                };
                let mut first = checkpoint.load(&loading, &|_| {}).unwrap();
                assert!(first.notice.is_none() && first.to_keep().is_some());
                first.keep(&|_| {}).unwrap();
                let mut second = checkpoint.load(&loading, &|_| {}).unwrap();
                assert!(second.notice.is_none() && second.to_keep().is_none());
                assert!(held(&mut second.model) == expected && held(&mut first.model) == expected);
                assert_eq!(logits(&second.model), logits(&plain));
            }
        }
    }
}

/// What happens to the file or the checkpoint, and what is said about it.
type Case = (&'static str, Box<dyn Fn(&Desk)>, &'static str);

#[test]
fn packed_weights_are_used_only_as_long_as_they_are_right() {
    let desk = Desk::new();
    let loading = desk.loading();
    let (expected, notice, wanted) = desk.load(&loading);
    assert!(notice.is_none() && wanted);
    assert_eq!(desk.load(&loading), (expected.clone(), None, false));
    let whole = std::fs::read(desk.cache()).unwrap();
    let header_end = 48 + u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let flip = |at: usize| move |desk: &Desk| desk.edit(|bytes| bytes[at] ^= 0x10);
    let cut = |to: usize| move |desk: &Desk| desk.edit(|bytes| bytes.truncate(to));
    let put = |at: usize, with: &'static [u8]| {
        move |desk: &Desk| desk.edit(|bytes| bytes[at..at + with.len()].copy_from_slice(with))
    };
    let last = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let touched = SystemTime::now() - Duration::from_secs(3600);
    let cases: Vec<Case> = vec![
        ("empty", Box::new(cut(0)), "cut short"),
        ("a piece of the head", Box::new(cut(20)), "cut short"),
        ("a piece of the header", Box::new(cut(header_end - 1)), "cut short"),
        ("the header alone", Box::new(cut(header_end)), "bytes, expected"),
        ("a byte less", Box::new(cut(whole.len() - 1)), "bytes, expected"),
        ("a byte more", Box::new(|desk| desk.edit(|bytes| bytes.push(0))), "bytes, expected"),
        ("another version", Box::new(put(8, &[2, 0, 0, 0])), "another version"),
        ("a header without end", Box::new(put(12, &[255; 4])), "cut short"),
        ("a header of nothing", Box::new(put(12, &[0; 4])), "header is damaged"),
        ("its hash", Box::new(flip(16)), "header is damaged"),
        ("the header", Box::new(flip(header_end - 30)), "header is damaged"),
        ("no JSON", Box::new(|desk| desk.edit_header("{\"source", "[\"source")), "header is damaged"),
        ("an offset", Box::new(|desk| desk.edit_header("\"offset\":4096", "\"offset\":8192")), "another version"),
        ("a name", Box::new(|desk| desk.edit_header("embed_tokens", "embed_tokenz")), "another version"),
        ("a precision", Box::new(|desk| desk.edit_header("amp_bf16", "amp_bf17")), "another precision"),
        ("the first number", Box::new(flip(header_end.next_multiple_of(4096))), "is damaged"),
        ("the last number", Box::new(flip(last)), "is damaged"),
        (
            "a checkpoint that was touched",
            Box::new(move |desk| {
                let file = File::options().append(true).open(desk.model()).unwrap();
                file.set_times(FileTimes::new().set_modified(touched)).unwrap();
            }),
            "the checkpoint has changed",
        ),
        (
            "other weights of the same size and time",
            Box::new(|desk| {
                let time = std::fs::metadata(desk.model()).unwrap().modified().unwrap();
                write(&config(false), 3, DType::Bf16, Target::Gguf { mix: Some(Mix::Q4KM) }, &desk.model());
                let file = File::options().append(true).open(desk.model()).unwrap();
                file.set_times(FileTimes::new().set_modified(time)).unwrap();
            }),
            "the checkpoint has changed",
        ),
        (
            "weights of another type",
            Box::new(|desk| {
                write(&config(false), 1, DType::Bf16, Target::Gguf { mix: Some(Mix::Q5KM) }, &desk.model());
            }),
            "the checkpoint has changed",
        ),
    ];
    for (name, change, fragment) in cases {
        change(&desk);
        let plain = Loading { packed_cache: None, ..loading.clone() };
        let mut right = Checkpoint::open(&desk.model()).unwrap().load(&plain, &|_| {}).unwrap().model;
        let right = held(&mut right);
        let (got, notice, wanted) = desk.load(&loading);
        assert!(notice.as_deref().is_some_and(|notice| notice.contains(fragment)), "{name}: {notice:?}");
        assert!(wanted && got == right, "{name}");
        assert_eq!(desk.load(&loading), (right, None, false), "{name}, again");
    }
    // A file of another kind is nobody's cache: it stays.
    let good = std::fs::read(desk.cache()).unwrap();
    put(0, b"GGUF")(&desk);
    let mut loaded = Checkpoint::open(&desk.model()).unwrap().load(&loading, &|_| {}).unwrap();
    assert!(loaded.notice.as_deref().is_some_and(|notice| notice.contains("not a file of packed weights")));
    assert!(matches!(loaded.keep(&|_| {}), Err(CheckpointError::NotReplaced { .. })));
    assert_eq!(std::fs::read(desk.cache()).unwrap()[..4], *b"GGUF");
    std::fs::write(desk.cache(), good).unwrap();
    // Another layout, and blocks that became numbers.
    let text = String::from_utf8_lossy(&std::fs::read(desk.cache()).unwrap()[48..header_end]).into_owned();
    let layout = text.split("\"layout\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let other: String = layout.chars().rev().collect();
    desk.edit_header(&layout, &other);
    let (_, notice, wanted) = desk.load(&loading);
    assert!(wanted && notice.unwrap().contains("another version"));
    let (_, notice, wanted) = desk.load(&Loading { keep_blocks: false, ..loading.clone() });
    assert!(wanted && notice.unwrap().contains("another precision"));
}

#[test]
fn packed_weights_that_cannot_be_kept_do_no_harm() {
    let desk = Desk::new();
    // A folder has the name.
    std::fs::create_dir(desk.cache()).unwrap();
    std::fs::write(desk.cache().join("letter.txt"), "dear").unwrap();
    let checkpoint = Checkpoint::open(&desk.model()).unwrap();
    let mut loaded = checkpoint.load(&desk.loading(), &|_| {}).unwrap();
    assert!(
        loaded.notice.as_deref().is_some_and(|notice| notice.contains("not a regular file")),
        "{:?}",
        loaded.notice
    );
    assert!(matches!(loaded.keep(&|_| {}), Err(CheckpointError::NotReplaced { .. })));
    assert!(desk.cache().join("letter.txt").exists());
    assert!(logits(&loaded.model).iter().all(|x| x.is_finite()));
}

#[test]
fn names_of_packed_weights() {
    let folder = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(folder.path()).unwrap();
    for name in ["a/model", "b/model"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let path = |model: &str, folder| packed_cache_path(&root.join(model), folder, Precision::Fp32);
    assert_eq!(path("a/model", None), root.join("a/model.fp32.packed"));
    assert_eq!(path("a/../a/model/", None), root.join("a/model.fp32.packed"));
    let [a, b] = ["a/model", "b/model"].map(|model| path(model, Some(Path::new("kept"))));
    assert!(a != b && a.starts_with("kept") && a.to_str().unwrap().ends_with(".fp32.packed"), "{a:?}");
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_read() {
    let desk = Desk::new();
    let checkpoint = Checkpoint::open(&desk.model()).unwrap();
    let read = |_| panic!("nothing is read");
    let loading = Loading { beside: 1 << 50, ..Loading::new(Precision::AmpBf16, true) };
    let error = checkpoint.load(&loading, &read).map(drop).unwrap_err();
    let CheckpointError::Memory { weights, beside, needed, available, .. } = error else { panic!("{error}") };
    assert_eq!((weights, beside), (checkpoint.inference_bytes(Precision::AmpBf16, true), 1 << 50));
    assert_eq!(needed, weights + beside);
    assert!(available < needed);
    let text = error.to_string();
    assert!(text.contains("GB for the weights at amp_bf16") && text.contains("1125899.91 GB for caches"), "{text}");
    let encodings = checkpoint.encodings(true);
    assert!(matches!(encodings[0], Some(Encoding::Blocks(_))));
}
