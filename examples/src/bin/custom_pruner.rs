//! A pruner of your own, usable by name in any chain: keep the tokens nearest the middle. The pruner
//! itself is in `src/lib.rs`.
//!
//! `cargo run --release -p secateur-examples --bin custom_pruner`

use std::sync::Arc;

use secateur::prune::Budget;
use secateur::{ModelSource, Request, Vlm, parse_chain};
use secateur_examples::Centre;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vlm =
        Vlm::builder(ModelSource::Embedded).pruner("centre", Arc::new(Centre::build)).open()?;
    secateur::testkit::check(&Centre { keep: Budget::Count(16), across: 1.0 }, vlm.info())?;
    let chain = parse_chain("centre:keep=64,fastv:layer=2:keep=0.5")?;
    print!("{}", vlm.explain(&chain)?);
    let picture = image::open(concat!(env!("CARGO_MANIFEST_DIR"), "/images/photo-cat.jpg"))?;
    let request = Request::new("What is in this picture?").image(&picture)?;
    println!("{}", vlm.session().chain(chain).ask(request)?.finish()?.text);
    Ok(())
}
