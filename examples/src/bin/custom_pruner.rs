//! A pruner of your own, usable by name in any chain: keep the tokens nearest the middle.
//!
//! `cargo run --release -p secateur-examples --bin custom_pruner`

use std::sync::Arc;

use secateur::prune::{Budget, Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur::{ChainError, ModelInfo, ModelSource, Params, Request, RunError, Vlm, parse_chain};

#[derive(Debug)]
struct Centre {
    keep: Budget,
}

impl Centre {
    fn build(params: &Params<'_>) -> Result<Box<dyn Pruner>, ChainError> {
        let keep = params.budget("keep")?.unwrap_or(Budget::Share(0.5));
        Ok(Box::new(Self { keep }))
    }
}

impl Pruner for Centre {
    fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Input).budget(self.keep).into())
    }

    // For `explain`: what the budget leaves.
    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        Some(self.keep.resolve(current, &[]))
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = &cut.tokens.tokens;
        let scores: Vec<f32> = tokens
            .iter()
            .map(|t| {
                let grid = cut.tokens.grid_of(t);
                let off = |at: u32, size: u32| (at as f32 + 0.5) / size as f32 - 0.5;
                -(off(t.row, grid.rows).powi(2) + off(t.col, grid.cols).powi(2))
            })
            .collect();
        let mut ranked: Vec<usize> =
            (0..tokens.len()).filter(|&i| tokens[i].is_candidate()).collect();
        let keep = self.keep.resolve(ranked.len(), &scores);
        // A stable sort: of equal scores the lower index stays in front.
        ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let stays = |i: &usize| !tokens[*i].is_candidate() || ranked[..keep].contains(i);
        let kept = (0..tokens.len()).filter(stays).map(|i| i as u32).collect();
        Ok(Selection { scores: Some(scores), ..Selection::keep(kept) })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vlm =
        Vlm::builder(ModelSource::Embedded).pruner("centre", Arc::new(Centre::build)).open()?;
    secateur::testkit::check(&Centre { keep: Budget::Count(16) }, vlm.info())?;
    let chain = parse_chain("centre:keep=64,fastv:layer=2:keep=0.5")?;
    print!("{}", vlm.explain(&chain)?);
    let picture = image::open(concat!(env!("CARGO_MANIFEST_DIR"), "/images/photo-cat.jpg"))?;
    let request = Request::new("What is in this picture?").image(&picture)?;
    println!("{}", vlm.session().chain(chain).ask(request)?.finish()?.text);
    Ok(())
}
