//! Decoded frames to RGB8, by the matrix and range that each frame names.
//!
//! Invariants
//! - Matrix (BT.601, BT.709, BT.2020, SMPTE 240M, FCC) and range (limited, full) are the frame's
//!   own, at every pixel format and depth; a frame that names none is BT.601, limited.
//! - The size never changes, and neither primaries nor transfer function are converted.
//!
//! Method: FFmpeg's scaler as torchcodec 0.17 sets it, which is what transformers decodes by: bits
//! equal to its for 8 and 10 bit, 4:2:0 to 4:4:4, interlaced or not. PyAV 18 differs in two places:
//! its filter of subsampled 10-bit chroma is bilinear (up to 23 levels at the hardest edges), and
//! it takes the fields of an interlaced frame apart.

use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Error, filter, frame};

/// What a filter graph is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    format: Pixel,
    width: u32,
    height: u32,
}

/// Converts frame after frame; a change of size or format makes a new graph.
#[derive(Default)]
pub(super) struct ToRgb {
    graph: Option<(Shape, filter::Graph)>,
}

impl ToRgb {
    /// A frame as RGB24. The pixels of `raw` are moved out of it.
    ///
    /// # Errors
    /// FFmpeg's, for a format that it cannot convert.
    pub(super) fn convert(&mut self, raw: &mut frame::Video) -> Result<frame::Video, Error> {
        let shape = Shape { format: raw.format(), width: raw.width(), height: raw.height() };
        if self.graph.as_ref().is_none_or(|(made_for, _)| *made_for != shape) {
            self.graph = Some((shape, graph(shape)?));
        }
        let (_, graph) = self.graph.as_mut().ok_or(Error::Bug)?;
        // The graph checks that times rise; they are not its business.
        raw.set_pts(None);
        graph.get("in").ok_or(Error::Bug)?.source().add(raw)?;
        let mut rgb = frame::Video::empty();
        graph.get("out").ok_or(Error::Bug)?.sink().frame(&mut rgb)?;
        Ok(rgb)
    }
}

fn graph(shape: Shape) -> Result<filter::Graph, Error> {
    let find = |name: &str| filter::find(name).ok_or(Error::FilterNotFound);
    let name = shape.format.descriptor().ok_or(Error::InvalidData)?.name();
    let mut graph = filter::Graph::new();
    let source = format!(
        "video_size={}x{}:pix_fmt={name}:time_base=1/1:pixel_aspect=1/1",
        shape.width, shape.height
    );
    graph.add(&find("buffer")?, "in", &source)?;
    graph.add(&find("buffersink")?, "out", "")?;
    graph
        .output("in", 0)?
        .input("out", 0)?
        .parse("scale=flags=bicubic:interl=0,format=pix_fmts=rgb24")?;
    graph.validate()?;
    Ok(graph)
}
