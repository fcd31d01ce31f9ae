//! Several requests with different pictures and chains in one pass, a result for each.
//!
//! `cargo run --release -p secateur-examples --bin batch`

use std::path::Path;

use secateur::{ModelSource, Request, Vlm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let mut pictures: Vec<_> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "png" || e == "jpg"))
        .collect();
    pictures.sort();
    let chains =
        ["none", "vtc_cls:keep=64", "grid:keep=64", "vtc_cls:keep=128,fastv:layer=2:keep=0.5"];
    let mut requests = Vec::new();
    for (picture, chain) in pictures.iter().zip(chains.into_iter().cycle()) {
        let request = Request::new("Describe the image.").path(picture)?;
        requests.push(request.chain(chain));
    }
    let answers = vlm.batch_with(requests, |progress| {
        eprint!("\r{} of {} answered", progress.ended, progress.requests);
    });
    eprintln!();
    for (picture, result) in pictures.iter().zip(answers) {
        let name = picture.file_name().unwrap_or_default().to_string_lossy();
        match result {
            Ok(answer) => println!(
                "{name} [{} of {} tokens, {}]: {}",
                answer.report.visual_kept,
                answer.report.visual_in,
                answer.report.chain,
                answer.text
            ),
            Err(error) => println!("{name}: {error}"),
        }
    }
    Ok(())
}
