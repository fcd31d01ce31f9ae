//! The newest frames of a camera: the producer never waits, the consumer never sees an old frame.
//!
//! Invariants
//! - At most `capacity` frames are held; a new one pushes out the oldest.
//! - Frames of another size than the last empty the buffer: a clip has one size.
//!
//! Not here: the camera. A driver's thread pushes; [`LiveFrames`] is cheap to clone.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::error::InputError;

/// A bounded buffer of the newest frames, shared between producer and consumer.
#[derive(Clone, Debug)]
pub struct LiveFrames {
    shared: Arc<(Mutex<Buffer>, Condvar)>,
    label: Arc<str>,
}

#[derive(Debug)]
struct Buffer {
    frames: VecDeque<Frame>,
    capacity: usize,
    /// Frames pushed so far.
    pushed: u64,
}

impl LiveFrames {
    /// A buffer of the newest `capacity` frames (at least 1); `label` names it in errors.
    pub fn new(label: &str, capacity: usize) -> Self {
        let buffer = Buffer { frames: VecDeque::new(), capacity: capacity.max(1), pushed: 0 };
        Self { shared: Arc::new((Mutex::new(buffer), Condvar::new())), label: label.into() }
    }

    /// Adds a frame, with its capture time if it is known. Never waits for a consumer.
    pub fn push(&self, frame: Frame) {
        let (buffer, arrived) = &*self.shared;
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let other = buffer
            .frames
            .back()
            .is_some_and(|f| (f.width, f.height) != (frame.width, frame.height));
        if other {
            buffer.frames.clear();
        }
        if buffer.frames.len() == buffer.capacity {
            buffer.frames.pop_front();
        }
        buffer.frames.push_back(frame);
        buffer.pushed += 1;
        arrived.notify_all();
    }

    /// Number of frames pushed so far.
    pub fn pushed(&self) -> u64 {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).pushed
    }

    /// Waits until more than `seen` frames were pushed; `false` if `timeout` passed first.
    pub fn wait(&self, seen: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (buffer, arrived) = &*self.shared;
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        while buffer.pushed <= seen {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let waited = arrived.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner);
            buffer = waited.0;
        }
        true
    }

    /// The newest frame as a picture; `None` before the first.
    ///
    /// # Errors
    /// As [`Clip::picture`].
    pub fn picture(&self) -> Option<Result<Clip, InputError>> {
        let buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = buffer.frames.back()?.clone();
        drop(buffer);
        Some(Clip::picture(&*self.label, frame.width, frame.height, frame.rgb))
    }

    /// The newest `count` frames, every `stride`-th, as a video that ends with the newest frame;
    /// fewer while the buffer fills, `None` before the first. Times count from its first frame.
    ///
    /// # Errors
    /// As [`Clip::from_frames`].
    pub fn clip(&self, count: usize, stride: usize) -> Option<Result<Clip, InputError>> {
        let buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut frames: Vec<Frame> =
            buffer.frames.iter().rev().step_by(stride.max(1)).take(count.max(1)).cloned().collect();
        drop(buffer);
        frames.reverse();
        let first = frames.first()?.time_s;
        for frame in &mut frames {
            frame.time_s = frame.time_s.zip(first).map(|(t, start)| t - start);
        }
        let span = frames.last()?.time_s.filter(|s| *s > 0.0);
        let fps = span.map(|s| (frames.len() - 1) as f64 / s);
        let info = VideoInfo { fps, duration_s: span };
        Some(Clip::from_frames(&*self.label, frames, info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(i: u8, width: u32) -> Frame {
        let rgb = vec![i; width as usize * 3].into();
        Frame { width, height: 1, rgb, time_s: Some(100.0 + f64::from(i) * 0.1) }
    }

    #[test]
    fn the_newest_frames_win_and_memory_is_bounded() {
        let live = LiveFrames::new("camera", 6);
        assert!(live.picture().is_none() && live.clip(4, 1).is_none());
        for i in 0..20 {
            live.push(frame(i, 4));
        }
        let clip = live.clip(3, 2).unwrap().unwrap();
        let levels: Vec<u8> = clip.frames().iter().map(|f| f.rgb[0]).collect();
        assert_eq!(levels, [15, 17, 19]);
        assert!((clip.video().unwrap().fps.unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(clip.frames()[0].time_s, Some(0.0));
        assert_eq!(live.clip(100, 1).unwrap().unwrap().frames().len(), 6);
        assert_eq!(live.picture().unwrap().unwrap().frames()[0].rgb[0], 19);
        live.push(frame(20, 5));
        assert_eq!(live.clip(100, 1).unwrap().unwrap().frames().len(), 1);
    }

    #[test]
    fn a_consumer_waits_for_the_next_frame_only() {
        let live = LiveFrames::new("camera", 2);
        assert!(!live.wait(0, Duration::from_millis(1)));
        let producer = live.clone();
        let pushing = std::thread::spawn(move || producer.push(frame(1, 2)));
        assert!(live.wait(0, Duration::from_secs(20)));
        pushing.join().unwrap();
        assert_eq!(live.pushed(), 1);
    }
}
