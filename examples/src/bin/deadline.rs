//! A control loop's view: a deadline, and what was done until it passed.
//!
//! `cargo run --release -p secateur-examples --bin deadline [MILLISECONDS]`

use std::time::{Duration, Instant};

use secateur::{Error, ModelSource, Request, Vlm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = std::env::args().nth(1).map_or(Ok(30), |text| text.parse())?;
    let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    let picture = image::open(concat!(env!("CARGO_MANIFEST_DIR"), "/images/photo-cat.jpg"))?;
    let request = Request::new("Describe the image.")
        .image(&picture)?
        .deadline(Instant::now() + Duration::from_millis(limit));
    let mut session = vlm.session();
    match session.ask(request).and_then(|stream| stream.finish()) {
        Ok(answer) => println!("in time: {}", answer.text),
        Err(Error::Cancelled { reason, partial }) => {
            let text = partial.map_or(String::new(), |answer| answer.text);
            println!("{reason}; until then: {text:?}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
