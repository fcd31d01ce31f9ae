//! How large a picture may be before it is refused.
//!
//! Invariants
//! - Every limit is compared with what the header says, before the pixels are allocated.
//! - A refusal names what was found, the limit and the setting that raises it.

use secateur_core::error::InputError;

/// Limits on one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width times height).
    pub max_pixels: u64,
    /// Longest side, pixels.
    pub max_side: u32,
    /// Most bytes of the file.
    pub max_file_bytes: u64,
    /// Most bytes that decoding one picture may hold at a time, the picture included.
    pub max_alloc_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pixels: 100_000_000,
            max_side: 65_535,
            max_file_bytes: 256 << 20,
            // As many as 100 million pixels take: formats that are read row by row need no more.
            max_alloc_bytes: 300_000_000,
        }
    }
}

impl Limits {
    /// Refuses a file by its length.
    ///
    /// # Errors
    /// [`InputError::TooLarge`]; [`InputError::Empty`] for a file of no bytes.
    pub(super) fn check_file(&self, path: &str, bytes: u64) -> Result<(), InputError> {
        if bytes == 0 {
            return Err(InputError::Empty { path: path.to_owned(), width: 0, height: 0 });
        }
        if bytes > self.max_file_bytes {
            return Err(InputError::TooLarge {
                path: path.to_owned(),
                found: format!("a file of {bytes} bytes"),
                limit: format!("{} bytes (max_file_size)", self.max_file_bytes),
            });
        }
        Ok(())
    }

    /// Refuses a picture by the size its header gives.
    ///
    /// # Errors
    /// [`InputError::TooLarge`]; [`InputError::Empty`] for a side of zero.
    pub(crate) fn check_size(&self, path: &str, width: u32, height: u32) -> Result<(), InputError> {
        if width == 0 || height == 0 {
            return Err(InputError::Empty { path: path.to_owned(), width, height });
        }
        let found = format!("a picture of {width}x{height} pixels");
        let refuse = |limit: String| {
            Err(InputError::TooLarge { path: path.to_owned(), found: found.clone(), limit })
        };
        if width > self.max_side || height > self.max_side {
            return refuse(format!("{} pixels a side", self.max_side));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return refuse(format!("{} pixels (max_pixels)", self.max_pixels));
        }
        Ok(())
    }

    /// Refuses a picture by what decoding it holds.
    ///
    /// # Errors
    /// [`InputError::TooLarge`].
    pub(super) fn check_memory(
        &self,
        path: &str,
        width: u32,
        height: u32,
        peak_bytes: u64,
    ) -> Result<(), InputError> {
        if peak_bytes <= self.max_alloc_bytes {
            return Ok(());
        }
        Err(InputError::TooLarge {
            path: path.to_owned(),
            found: format!("a picture of {width}x{height} pixels that takes {peak_bytes} bytes"),
            limit: format!("{} bytes (max_decode_memory)", self.max_alloc_bytes),
        })
    }

    /// The same limits in the decoders' words.
    pub(super) fn for_decoder(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_image_width = Some(self.max_side);
        limits.max_image_height = Some(self.max_side);
        limits.max_alloc = Some(self.max_alloc_bytes);
        limits
    }
}
