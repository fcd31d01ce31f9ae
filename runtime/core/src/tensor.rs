//! Activations: one dense matrix of f32 rows, on the host or on a device.
//!
//! Invariants
//! - A `Tensor` is `[rows, cols]`, row-major, contiguous. Heads, tiles and patches are ranges of
//!   columns or rows; nothing here knows about them.
//! - Only an implementation of [`crate::ops::Ops`] looks at the storage; models, encoders and the
//!   prefill loop pass tensors on.
//! - Host storage starts on a 64-byte boundary, so that no vector load of a kernel is split.

use std::fmt;

/// Storage types of weights in a checkpoint, and of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// Where an operation set keeps its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory.
    Cpu,
    /// The CUDA device with this ordinal.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// One cache line of f32: the unit of host storage, so that it starts on a 64-byte boundary.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

#[derive(Clone)]
enum Storage {
    Host(Vec<Line>),
}

/// A dense f32 matrix `[rows, cols]`, row-major.
#[derive(Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    storage: Storage,
}

impl Tensor {
    /// A host tensor `[rows, cols]` of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let lines = (rows * cols).div_ceil(16);
        crate::memory::ensure_of::<Line>(lines);
        Self { rows, cols, storage: Storage::Host(vec![Line([0.0; 16]); lines]) }
    }

    /// A host tensor that copies `data`, whose length must be `rows * cols`.
    ///
    /// # Panics
    /// If the length is another one: the caller's shape arithmetic is wrong.
    pub fn from_slice(rows: usize, cols: usize, data: &[f32]) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] tensor needs rows * cols values");
        let mut tensor = Self::zeros(rows, cols);
        tensor.host_mut().copy_from_slice(data);
        tensor
    }

    /// A host tensor of rows of `cols` values each.
    pub(crate) fn from_rows(cols: usize, data: &[f32]) -> Self {
        Self::from_slice(data.len() / cols.max(1), cols, data)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The same values as `[rows, cols]` of another shape with the same number of elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    #[must_use]
    pub fn reshaped(mut self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.rows * self.cols, "reshape keeps the number of elements");
        self.rows = rows;
        self.cols = cols;
        self
    }

    /// Makes this a `[rows, cols]` tensor of unspecified values, keeping its memory if it is
    /// large enough: scratch tensors live as long as a request and are resized per layer.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        let Storage::Host(lines) = &mut self.storage;
        let len = (rows * cols).div_ceil(16);
        if len > lines.capacity() {
            crate::memory::ensure_of::<Line>(len);
        }
        lines.resize(len, Line([0.0; 16]));
        self.rows = rows;
        self.cols = cols;
    }

    /// The values in host memory, row-major.
    pub fn host(&self) -> &[f32] {
        let Storage::Host(lines) = &self.storage;
        &bytemuck::cast_slice(lines)[..self.rows * self.cols]
    }

    /// The values in host memory, row-major, for writing.
    pub fn host_mut(&mut self) -> &mut [f32] {
        let Storage::Host(lines) = &mut self.storage;
        &mut bytemuck::cast_slice_mut(lines)[..self.rows * self.cols]
    }

    /// Row `i` of a host tensor.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.host()[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i` of a host tensor, for writing.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.host_mut()[i * cols..(i + 1) * cols]
    }
}

impl Default for Tensor {
    fn default() -> Self {
        Self::zeros(0, 0)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor [{}, {}]", self.rows, self.cols)
    }
}
