//! The operations: one file each, formula, forward, backward, tests.
