//! One tensor of a file: a name, a shape, a range of bytes, and how they become numbers.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};

use super::blocks::BlockFormat;
use crate::error::WeightsError;
use crate::tensor::DType;

/// Bytes that live as long as any view of them.
#[derive(Clone)]
enum Bytes {
    Mapped(Arc<memmap2::Mmap>),
    Static(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One after the other.
    Plain(DType),
    /// In quantised blocks along a row.
    Blocks(BlockFormat),
}

impl Format {
    /// Bytes of `values` consecutive numbers; of whole blocks where there are blocks.
    pub fn bytes_of(self, values: usize) -> usize {
        match self {
            Format::Plain(dtype) => values * dtype.size(),
            Format::Blocks(blocks) => values / blocks.values() * blocks.bytes(),
        }
    }

    /// Numbers that cannot be parted.
    fn unit(self) -> usize {
        match self {
            Format::Plain(_) => 1,
            Format::Blocks(blocks) => blocks.values(),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Format::Plain(dtype) => dtype.fmt(f),
            Format::Blocks(blocks) => f.write_str(blocks.name()),
        }
    }
}

/// A file, or a part of memory, that tensors stand in.
#[derive(Clone)]
pub struct WeightFile {
    label: Arc<str>,
    bytes: Bytes,
}

impl WeightFile {
    /// Maps a file.
    ///
    /// # Errors
    /// What the system says.
    #[allow(unsafe_code, reason = "mapping a file is the one thing here that needs it")]
    pub fn map(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io { path: path.to_path_buf(), source };
        // A pipe would be waited for.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            let reason = "expected a regular file".to_owned();
            return Err(WeightsError::Format { file: path.display().to_string(), reason });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. Another process that truncates
        // the file while it is mapped could fault us; the same holds for every program that maps
        // its weights, and checkpoints are replaced by rename, not in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Self { label: path.display().to_string().into(), bytes: Bytes::Mapped(Arc::new(map)) })
    }

    /// Bytes that are part of the program.
    pub fn embedded(label: &str, bytes: &'static [u8]) -> Self {
        Self { label: label.into(), bytes: Bytes::Static(bytes) }
    }

    /// Bytes in memory.
    pub fn in_memory(label: &str, bytes: Vec<u8>) -> Self {
        Self { label: label.into(), bytes: Bytes::Owned(bytes.into()) }
    }

    /// Name for errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Everything that stands in it.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// A tensor of this file, whose first byte is `start`.
    ///
    /// # Errors
    /// [`WeightsError::Format`] if the file ends before the tensor does, or a row is not made of
    /// whole blocks.
    pub fn view(
        &self,
        name: &str,
        format: Format,
        shape: &[usize],
        start: usize,
    ) -> Result<WeightView, WeightsError> {
        let wrong = |reason: String| WeightsError::Format {
            file: self.label.to_string(),
            reason: format!("tensor `{name}` {shape:?}: {reason}"),
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(format.unit()) {
            let unit = format.unit();
            return Err(wrong(format!("{format} needs rows of a multiple of {unit} values")));
        }
        let values = shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let end = values
            .and_then(|values| values.checked_mul(4).map(|_| format.bytes_of(values)))
            .and_then(|bytes| start.checked_add(bytes));
        if end.is_none_or(|end| end > self.bytes().len()) {
            return Err(wrong(format!("the file ends at byte {}", self.bytes().len())));
        }
        Ok(WeightView {
            name: name.into(),
            file: self.label.clone(),
            format,
            shape: shape.to_vec(),
            bytes: self.bytes.clone(),
            start,
            order: None,
        })
    }
}

/// One tensor of a checkpoint.
#[derive(Clone)]
pub struct WeightView {
    name: Arc<str>,
    file: Arc<str>,
    format: Format,
    shape: Vec<usize>,
    bytes: Bytes,
    start: usize,
    /// Row `i` of the tensor is row `order[i]` of the file.
    order: Option<Arc<[u32]>>,
}

impl WeightView {
    /// A view of values in memory, row-major; `shape` must have `data.len()` elements.
    ///
    /// # Panics
    /// If the shape has another number of elements.
    pub fn from_f32(name: &str, shape: &[usize], data: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape and data agree");
        WeightFile::in_memory("memory", bytemuck::cast_slice(data).to_vec())
            .view(name, Format::Plain(DType::F32), shape, 0)
            .expect("as many bytes as the shape needs")
    }

    /// Name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File it stands in.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// How its numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs, or rows change whose order or blocks are not the file's.
    #[must_use]
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape keeps the elements");
        let is_free = self.order.is_none() && self.format.unit() == 1;
        assert!(is_free || shape.last() == self.shape.last(), "reshape keeps rows");
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// The tensor whose row `i` is row `order[i]` of this one; a vector's rows are its elements.
    ///
    /// # Panics
    /// If `order` has another length than there are rows, or names one that is not there.
    #[must_use]
    pub fn reordered(&self, order: Vec<u32>) -> Self {
        let rows = self.shape[0];
        assert!(order.len() == rows && order.iter().all(|&r| (r as usize) < rows), "rows exist");
        let order = match &self.order {
            None => order,
            Some(first) => order.iter().map(|&r| first[r as usize]).collect(),
        };
        Self { order: Some(order.into()), ..self.clone() }
    }

    /// Rows `first .. first + count` of a tensor with at least one dimension.
    ///
    /// # Panics
    /// If there are fewer rows.
    #[must_use]
    pub fn rows(&self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.shape[0], "row range inside the tensor");
        let mut shape = self.shape.clone();
        shape[0] = count;
        let (start, order) = match &self.order {
            None => (self.start + first * self.row_size(), None),
            Some(order) => (self.start, Some(order[first..first + count].into())),
        };
        Self { shape, start, order, ..self.clone() }
    }

    /// Tells the system that these bytes will not be read soon: a mapped file's pages leave the
    /// resident size once they are packed elsewhere. They can still be read, from the file.
    #[allow(unsafe_code, reason = "advice about mapped pages")]
    pub fn release(&self) {
        #[cfg(target_os = "linux")]
        if let Bytes::Mapped(map) = &self.bytes {
            let len = self.bytes().len();
            // SAFETY: the mapping is private, read-only and backed by the file, so dropped pages
            // read back as they were.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, len)
            };
            // Advice that is not taken costs memory and nothing else.
            if let Err(error) = advised {
                tracing::debug!(tensor = %self.name, %error, "pages were not released");
            }
        }
    }

    /// The raw little-endian bytes, in the order of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.as_slice()[self.start..self.start + self.format.bytes_of(self.len())]
    }

    /// The raw bytes of row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_bytes(&self, index: usize) -> &[u8] {
        let index = self.order.as_ref().map_or(index, |order| order[index] as usize);
        let size = self.row_size();
        let first = self.start + index * size;
        &self.bytes.as_slice()[first..first + size]
    }

    /// Bytes of a row.
    fn row_size(&self) -> usize {
        self.format.bytes_of(self.shape[1..].iter().product())
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        crate::memory::ensure_of::<f32>(self.len());
        let mut out = vec![0.0; self.len()];
        self.read_f32(0, &mut out);
        out
    }

    /// Elements `first .. first + out.len()`, row-major, as f32.
    ///
    /// # Panics
    /// If the range is longer than the tensor.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) {
        if let (None, Format::Plain(dtype)) = (&self.order, self.format) {
            let size = dtype.size();
            read_plain(dtype, &self.bytes()[first * size..(first + out.len()) * size], out);
            return;
        }
        let width: usize = self.shape[1..].iter().product();
        let (mut first, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, column) = (first / width, first % width);
            let (part, later) = rest.split_at_mut(rest.len().min(width - column));
            let bytes = self.row_bytes(row);
            match self.format {
                Format::Plain(dtype) => {
                    let size = dtype.size();
                    read_plain(dtype, &bytes[column * size..(column + part.len()) * size], part);
                }
                Format::Blocks(blocks) => blocks.read(bytes, column, part),
            }
            first += part.len();
            rest = later;
        }
    }
}

fn read_plain(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        DType::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
    }
}

impl std::fmt::Debug for WeightView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.name, self.shape, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(rows: usize, cols: usize) -> WeightView {
        let data: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        WeightView::from_f32("w", &[rows, cols], &data)
    }

    #[test]
    fn reordered_rows_are_read_in_their_new_order() {
        let view = counting(3, 2).reordered(vec![2, 0, 1]);
        assert_eq!(view.to_f32(), [4.0, 5.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(view.rows(1, 2).to_f32(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(view.reordered(vec![1, 2, 0]).to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut middle = [0.0; 3];
        view.read_f32(1, &mut middle);
        assert_eq!(middle, [5.0, 0.0, 1.0]);
    }

    #[test]
    fn a_tensor_that_does_not_fit_its_file_is_an_error_that_names_it() {
        let file = WeightFile::in_memory("x.gguf", vec![0; 64]);
        let f32 = Format::Plain(DType::F32);
        assert!(file.view("w", f32, &[4, 4], 0).is_ok());
        for (shape, start) in [(vec![4, 4], 4), (vec![usize::MAX, 2], 0), (vec![17], 0)] {
            let error = file.view("w", f32, &shape, start).unwrap_err().to_string();
            assert!(error.contains("x.gguf") && error.contains("`w`"), "{error}");
        }
        let error = file.view("w", Format::Blocks(BlockFormat::Q8_0), &[1, 33], 0).unwrap_err();
        assert!(error.to_string().contains("multiple of 32"), "{error}");
    }
}
