//! Dense row-major arrays.

use std::ops::{Deref, DerefMut, Range};

use bytemuck::Pod;

use crate::memory::Buffer;

/// A dense row-major array of one to three dimensions. It dereferences to the slice of all its numbers.
#[derive(Clone, Debug)]
pub struct Tensor<T: Pod = f32> {
    data: Buffer<T>,
    dims: [usize; 3],
    rank: usize,
}

impl<T: Pod> Tensor<T> {
    /// A tensor with arbitrary contents.
    pub fn scratch(shape: &[usize]) -> Tensor<T> {
        Tensor::from_buffer(Buffer::scratch(shape.iter().product()), shape)
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Tensor<T> {
        Tensor::from_buffer(Buffer::zeroed(shape.iter().product()), shape)
    }

    /// A tensor with a copy of `data`, which has as many numbers as the shape.
    pub fn new(data: &[T], shape: &[usize]) -> Tensor<T> {
        Tensor::from_buffer(Buffer::copy_of(data), shape)
    }

    fn from_buffer(data: Buffer<T>, shape: &[usize]) -> Tensor<T> {
        assert!((1..=3).contains(&shape.len()), "a tensor has one to three dimensions, not {shape:?}");
        assert_eq!(data.len(), shape.iter().product(), "the numbers of a tensor of shape {shape:?}");
        let mut dims = [1; 3];
        dims[..shape.len()].copy_from_slice(shape);
        Tensor { data, dims, rank: shape.len() }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The first dimension.
    pub fn rows(&self) -> usize {
        self.dims[0]
    }

    /// Numbers in a row: the product of all dimensions but the first.
    pub fn cols(&self) -> usize {
        self.dims[1] * self.dims[2]
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[T] {
        let n = self.cols();
        &self.data[i * n..(i + 1) * n]
    }

    /// Row `i`, to write.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        let n = self.cols();
        &mut self.data[i * n..(i + 1) * n]
    }

    /// Rows `range`.
    pub fn row_range(&self, range: Range<usize>) -> &[T] {
        let n = self.cols();
        &self.data[range.start * n..range.end * n]
    }
}

impl<T: Pod> Deref for Tensor<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data
    }
}

impl<T: Pod> DerefMut for Tensor<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data
    }
}
