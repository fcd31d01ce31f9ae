//! Named tensors of a run, for comparing a port with its reference number by number.
//!
//! The loops hand intermediate values to a [`Trace`]; without one they cost nothing.

/// Receives named values. Shapes are outermost first.
pub trait Trace: Send {
    /// A float tensor.
    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]);
    /// An integer tensor.
    fn ints(&mut self, name: &str, shape: &[usize], values: &[i64]);
}
