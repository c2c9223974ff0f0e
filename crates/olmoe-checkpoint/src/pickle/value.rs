//! What a pickle can hold: a flat list of values that refer to each other by index.

/// A function or class that a pickle may name.
#[derive(Debug, PartialEq, Eq)]
pub struct Global {
    /// Its module.
    pub module: &'static str,
    /// Its name in the module.
    pub name: &'static str,
    /// Whether it may be called, which makes an inert node.
    pub(super) callable: bool,
}

impl Global {
    const fn function(module: &'static str, name: &'static str) -> Self {
        Self { module, name, callable: true }
    }

    const fn storage(name: &'static str) -> Self {
        Self { module: "torch", name, callable: false }
    }
}

pub(super) static ORDERED_DICT: Global = Global::function("collections", "OrderedDict");

/// All that a pickle may name.
pub(super) static GLOBALS: [&Global; 14] = [
    &ORDERED_DICT,
    &Global::function("torch._utils", "_rebuild_tensor_v2"),
    &Global::function("torch._utils", "_rebuild_parameter"),
    &Global::function("torch", "Size"),
    &Global::storage("FloatStorage"),
    &Global::storage("HalfStorage"),
    &Global::storage("BFloat16Storage"),
    &Global::storage("DoubleStorage"),
    &Global::storage("LongStorage"),
    &Global::storage("IntStorage"),
    &Global::storage("ShortStorage"),
    &Global::storage("CharStorage"),
    &Global::storage("ByteStorage"),
    &Global::storage("BoolStorage"),
];

/// Where a value lies in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub(super) u32);

/// One value; those inside it by reference.
#[derive(Clone, Debug, PartialEq)]
pub enum PickleValue<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A larger integer: two's complement, little-endian.
    LongInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// A string.
    Str(&'a str),
    /// `bytes` or a `bytearray`.
    Bytes(&'a [u8]),
    /// A list.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A `dict` or `OrderedDict`: keys and values in the order written, keys neither checked nor made unique.
    Dict(Vec<(Id, Id)>),
    /// The name of a known class or function.
    Global(&'static Global),
    /// A reference to something stored outside of the pickle.
    Persistent(Id),
    /// What a known function would have been called with.
    Reduce {
        /// The function.
        function: &'static Global,
        /// Its arguments, a tuple.
        arguments: Id,
    },
}

impl PickleValue<'_> {
    /// What kind of value it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::LongInt(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Persistent(_) => "a stored object",
            Self::Reduce { function, .. } => match function.name {
                "Size" => "a torch.Size",
                _ => "a tensor",
            },
        }
    }
}

/// The values of a pickle.
#[derive(Clone, Debug)]
pub struct Pickle<'a> {
    pub(super) values: Vec<PickleValue<'a>>,
    pub(super) root: Id,
}

impl<'a> Pickle<'a> {
    /// The value that was pickled.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The value at a place that this pickle gave.
    pub fn value(&self, id: Id) -> &PickleValue<'a> {
        &self.values[id.0 as usize]
    }
}
