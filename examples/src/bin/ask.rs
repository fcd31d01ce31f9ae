//! Ask one question about a picture and print the answer as it comes.
//!
//! `cargo run --release -p secateur-examples --bin ask [PICTURE] [QUESTION]`

use std::io::Write;

use secateur::{ModelSource, Request, Vlm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/images/photo-cat.jpg");
    let picture = args.next().unwrap_or_else(|| default.to_owned());
    let question = args.next().unwrap_or_else(|| "What is in this picture?".to_owned());

    let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    let mut session = vlm.session().chain("vtc_cls:keep=64");
    let request = Request::new(question).path(&picture)?;
    let mut stream = session.ask(request)?;
    for piece in stream.by_ref() {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    let report = stream.finish()?.report;
    println!(
        "\n{} of {} visual tokens, {:.0} ms",
        report.visual_kept, report.visual_in, report.ms.total
    );
    Ok(())
}
