//! The random number generators of the programs whose orders are reproduced here.
//!
//! [`Pcg`] is `numpy.random.Generator(PCG64(seed))`, the order of training data. [`Mersenne`] is Python's `random` and
//! NumPy's older `RandomState`, the order of documents in token files and the samples of evaluation. [`IntegerSet`] is
//! Python's `set` of integers, in whose order some evaluations go through their examples.

mod integer_set;
mod mersenne;
mod pcg;

pub use integer_set::IntegerSet;
pub use mersenne::Mersenne;
pub use pcg::Pcg;
