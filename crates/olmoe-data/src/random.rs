//! The random number generators of the programs whose orders are reproduced here.
//!
//! [`Pcg`] is `numpy.random.Generator(PCG64(seed))`, the order of training data. [`Mersenne`] is Python's `random` and
//! NumPy's older `RandomState`, the order of documents in token files.

mod mersenne;
mod pcg;

pub use mersenne::Mersenne;
pub use pcg::Pcg;
