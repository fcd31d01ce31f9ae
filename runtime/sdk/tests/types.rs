//! What every program counts on of the types: they print, and go from thread to thread.

use std::fmt::Debug;

use secateur::{
    Answer, Error, MemoryForecast, Outline, Report, Request, Session, Stage, Stream, Vlm,
    VlmBuilder,
};

fn prints_and_moves<T: Debug + Send>() {}
fn is_shared<T: Sync>() {}
fn reads_back<T: serde::Serialize + serde::de::DeserializeOwned>() {}

#[test]
fn builders_and_streams_print_and_go_to_other_threads() {
    prints_and_moves::<VlmBuilder>();
    prints_and_moves::<Vlm>();
    prints_and_moves::<Outline>();
    prints_and_moves::<Session>();
    prints_and_moves::<Stream<'static>>();
    prints_and_moves::<Request>();
    prints_and_moves::<Stage>();
    prints_and_moves::<Answer>();
    prints_and_moves::<Error>();
    prints_and_moves::<MemoryForecast>();
    is_shared::<Vlm>();
    reads_back::<Answer>();
    reads_back::<Report>();
}
