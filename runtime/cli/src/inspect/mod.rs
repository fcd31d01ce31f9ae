//! What a chain did to pictures, ready to be drawn: per cell of the token grid, stage by stage.
//!
//! Invariants
//! - Cells are told apart by grid, row and column, not by token index: stages that add rows count
//!   indices anew, cells stay.
//! - What is written of a stage or a view is made here, once, so that PNG and page say the same.
//! - Grids of one picture that overlap (a thumbnail and its tiles) become views of their own, so
//!   that every view can be drawn as one flat picture.

mod colour;
mod font;
pub(crate) mod html;
pub(crate) mod png;

use std::collections::BTreeMap;
use std::sync::Arc;

use secateur::{Answer, Clip, Grid, Rect, StageReport, TokenKind, TokenMap};

/// All fates, in the order of a legend.
pub(crate) const FATES: [Fate; 5] =
    [Fate::Kept, Fate::Carries, Fate::Absorbed, Fate::Dropped, Fate::Gone];

/// What became of a cell at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The model still looks at it.
    Kept,
    /// It stays, and carries others.
    Carries,
    /// It lives on in a token that carries it.
    Absorbed,
    /// This stage dropped it.
    Dropped,
    /// An earlier stage dropped it.
    Gone,
}

impl Fate {
    /// One letter for the page's data.
    pub(crate) fn letter(self) -> char {
        match self {
            Fate::Kept => 'k',
            Fate::Carries => 'c',
            Fate::Absorbed => 'a',
            Fate::Dropped => 'd',
            Fate::Gone => 'g',
        }
    }

    /// Whether a token of its own is left.
    pub(crate) fn is_there(self) -> bool {
        matches!(self, Fate::Kept | Fate::Carries)
    }

    /// For legends.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fate::Kept => "kept",
            Fate::Carries => "holds a sum of several",
            Fate::Absorbed => "summed into another",
            Fate::Dropped => "dropped by this stage",
            Fate::Gone => "dropped before",
        }
    }
}

/// A cell of the token grid.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// Index of the token before any cut.
    pub(crate) index: u32,
    /// Row in its grid.
    pub(crate) row: u32,
    /// Column in its grid.
    pub(crate) col: u32,
    /// Where it lies in the picture, pixels.
    pub(crate) rect: Rect,
    /// One entry a stage.
    pub(crate) fates: Vec<Fate>,
    /// One entry a stage: what it was ranked by.
    pub(crate) scores: Vec<Option<f32>>,
    /// One entry a stage: which sum of several cells it is part of (most, where there are several),
    /// as the place of that token after the stage.
    pub(crate) groups: Vec<Option<u32>>,
}

/// One cut.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The pruner.
    pub(crate) name: String,
    /// Where.
    pub(crate) site: String,
    /// Visual tokens before.
    pub(crate) before: usize,
    /// Visual tokens after.
    pub(crate) kept: usize,
    /// What it took, milliseconds.
    pub(crate) ms: f64,
    /// Tokens after it that are no cell: class tokens, sums of several cells.
    pub(crate) without_cell: usize,
}

/// One flat drawing: a picture under grids that do not overlap.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Index of the picture.
    pub(crate) picture: usize,
    /// Frame of it, where it is a video.
    pub(crate) frame: usize,
    /// For people: `picture 1`, `picture 1, tiles`.
    pub(crate) label: String,
    /// Its cells.
    pub(crate) cells: Vec<Cell>,
}

/// What a run said, and how long it took.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The answer.
    pub(crate) text: String,
    /// Until the first token: pixels, tower, cuts, prompt; milliseconds.
    pub(crate) first_ms: f64,
    /// Until the last, milliseconds.
    pub(crate) total_ms: f64,
}

impl Told {
    fn new(answer: &Answer) -> Self {
        let ms = &answer.report.ms;
        let first_ms = ms.process + ms.encode + ms.prune + ms.prefill;
        Self { text: answer.text.clone(), first_ms, total_ms: first_ms + ms.decode }
    }

    /// Its times in words.
    pub(crate) fn times(&self) -> String {
        format!("{:.0} ms, first token after {:.0}", self.total_ms, self.first_ms)
    }
}

/// Everything there is to draw.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// The pictures; of a video each frame is one.
    pub(crate) clips: Vec<Clip>,
    /// The question.
    pub(crate) question: String,
    /// What the pruned model said.
    pub(crate) pruned: Told,
    /// What the unpruned one said; absent where nothing was cut.
    pub(crate) dense: Option<Told>,
    /// The model.
    pub(crate) model: String,
    /// The chain.
    pub(crate) chain: String,
    /// Visual tokens before any cut.
    pub(crate) visual_in: usize,
    /// The cuts.
    pub(crate) stages: Vec<Stage>,
    /// The drawings.
    pub(crate) views: Vec<View>,
}

type Place = (u32, u32, u32);

/// A share in words.
fn percent(part: usize, whole: usize) -> String {
    format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64)
}

impl Stage {
    /// What it did, for a heading.
    pub(crate) fn line(&self) -> String {
        let off = match self.without_cell {
            0 => String::new(),
            n => format!(" ({n} off grid)"),
        };
        format!("{} at {}: {} -> {}{off}", self.name, self.site, self.before, self.kept)
    }
}

impl View {
    /// What is left of it after `stage` cuts (0: before any).
    pub(crate) fn line(&self, stage: usize) -> String {
        let all = self.cells.len();
        let Some(last) = stage.checked_sub(1) else { return format!("{all} tokens") };
        let left = self.cells.iter().filter(|c| c.fates[last].is_there()).count();
        let summed = self.cells.iter().filter(|c| c.fates[last] == Fate::Absorbed).count();
        let summed =
            if summed > 0 { format!(", {summed} summed into others") } else { String::new() };
        format!("{left} of {all} left ({}){summed}", percent(left, all))
    }
}

impl Scene {
    /// What is left of all tokens after a stage, in words.
    pub(crate) fn share(&self, kept: usize) -> String {
        percent(kept, self.visual_in)
    }

    /// Range of a stage's scores, over all views, that colours are spread over: the 2nd to the
    /// 98th hundredth, so that one outlier does not leave everything else dark.
    pub(crate) fn score_range(&self, stage: usize) -> Option<(f32, f32)> {
        let cells = self.views.iter().flat_map(|v| &v.cells);
        let mut scores: Vec<f32> = cells.filter_map(|c| c.scores[stage]).collect();
        if scores.is_empty() {
            return None;
        }
        scores.sort_by(f32::total_cmp);
        let at = |share: f64| scores[((scores.len() - 1) as f64 * share).round() as usize];
        let (low, high) = (at(0.02), at(0.98));
        if low < high { Some((low, high)) } else { Some((scores[0], scores[scores.len() - 1])) }
    }

    /// The fates that occur after a stage, or after any.
    pub(crate) fn fates(&self, stage: Option<usize>) -> Vec<Fate> {
        let shown = |c: &Cell, fate| match stage {
            Some(s) => c.fates[s] == fate,
            None => c.fates.contains(&fate),
        };
        let cells = || self.views.iter().flat_map(|v| &v.cells);
        FATES.into_iter().filter(|&fate| cells().any(|c| shown(c, fate))).collect()
    }

    /// The scene of an answer that was asked for with detail, beside the unpruned one.
    pub(crate) fn new(
        clips: Vec<Clip>,
        question: &str,
        model: &str,
        answer: &Answer,
        dense: Option<&Answer>,
    ) -> Self {
        let report = &answer.report;
        let stages = report.stages.iter().map(stage).collect();
        let mut views = views(&report.dense, &report.stages);
        let mut starts = Vec::new();
        let mut drawn = Vec::new();
        for clip in clips {
            starts.push(drawn.len());
            let label = clip.label();
            drawn.extend(
                clip.frames().iter().filter_map(|f| {
                    Clip::picture(label, f.width, f.height, Arc::clone(&f.rgb)).ok()
                }),
            );
        }
        for view in &mut views {
            view.picture = starts[view.picture] + view.frame;
        }
        Self {
            clips: drawn,
            question: question.to_owned(),
            pruned: Told::new(answer),
            dense: dense.map(Told::new),
            model: model.to_owned(),
            chain: report.chain.clone(),
            visual_in: report.visual_in,
            stages,
            views,
        }
    }
}

fn stage(report: &StageReport) -> Stage {
    let is_cell = |kind| matches!(kind, TokenKind::Patch | TokenKind::Structural);
    Stage {
        name: match report.drop {
            Some(drop) => format!("{} ({})", report.pruner, drop + 1),
            None => report.pruner.clone(),
        },
        site: report.site.to_string(),
        before: report.before,
        kept: report.kept,
        ms: report.ms,
        without_cell: report.tokens.tokens.iter().filter(|t| !is_cell(t.kind)).count(),
    }
}

fn views(dense: &TokenMap, reports: &[StageReport]) -> Vec<View> {
    let mut cells: BTreeMap<Place, Cell> = BTreeMap::new();
    for token in &dense.tokens {
        let Some(rect) = dense.rect_of(token) else { continue };
        let cell = Cell {
            index: token.index,
            row: token.row,
            col: token.col,
            rect,
            fates: Vec::new(),
            scores: Vec::new(),
            groups: Vec::new(),
        };
        cells.insert((token.grid, token.row, token.col), cell);
    }
    let place_of: BTreeMap<u32, Place> = cells.iter().map(|(place, c)| (c.index, *place)).collect();
    let mut before = dense;
    for report in reports {
        follow(&mut cells, &place_of, before, report);
        before = &report.tokens;
    }
    let mut by_view: BTreeMap<usize, Vec<Cell>> = BTreeMap::new();
    let (view_of, labels) = arrange(&dense.grids);
    for ((grid, _, _), cell) in cells {
        by_view.entry(view_of[grid as usize]).or_default().push(cell);
    }
    by_view
        .into_iter()
        .map(|(view, mut cells)| {
            cells.sort_by_key(|c| c.index);
            let (picture, frame, label) = labels[view].clone();
            View { picture, frame, label, cells }
        })
        .collect()
}

/// Writes one stage into the cells.
fn follow(
    cells: &mut BTreeMap<Place, Cell>,
    place_of: &BTreeMap<u32, Place>,
    before: &TokenMap,
    report: &StageReport,
) {
    // Cells that are there, with the sum that they hold; the sum that any cell is most part of.
    let mut there: BTreeMap<Place, Option<u32>> = BTreeMap::new();
    let mut summed: BTreeMap<Place, (f32, u32)> = BTreeMap::new();
    for (at, token) in report.tokens.tokens.iter().enumerate() {
        let sum = (token.members.len() > 1).then_some(at as u32);
        if token.kind == TokenKind::Patch {
            there.insert((token.grid, token.row, token.col), sum);
        }
        for (member, weight) in token.members.iter().filter(|_| sum.is_some()) {
            let Some(place) = place_of.get(member) else { continue };
            let best = summed.entry(*place).or_insert((*weight, at as u32));
            if weight.abs() > best.0.abs() {
                *best = (*weight, at as u32);
            }
        }
    }
    let mut scores: BTreeMap<Place, f32> = BTreeMap::new();
    if let Some((indices, values)) = &report.scores {
        let by_index: BTreeMap<u32, Place> =
            before.tokens.iter().map(|t| (t.index, (t.grid, t.row, t.col))).collect();
        for (index, score) in indices.iter().zip(values) {
            if let Some(place) = by_index.get(index) {
                scores.insert(*place, *score);
            }
        }
    }
    for (place, cell) in cells.iter_mut() {
        let was_there = cell.fates.last().is_none_or(|f| *f != Fate::Gone && *f != Fate::Dropped);
        let part_of = summed.get(place).map(|(_, at)| *at);
        let (fate, group) = match there.get(place) {
            Some(Some(own)) => (Fate::Carries, Some(*own)),
            Some(None) => (Fate::Kept, None),
            None if part_of.is_some() => (Fate::Absorbed, part_of),
            None if was_there => (Fate::Dropped, None),
            None => (Fate::Gone, None),
        };
        cell.fates.push(fate);
        cell.groups.push(group);
        cell.scores.push(scores.get(place).copied().filter(|s| s.is_finite()));
    }
}

fn extent(grid: &Grid) -> [f64; 4] {
    let [x, y] = grid.origin;
    [x, y, x + f64::from(grid.cols) * grid.cell[0], y + f64::from(grid.rows) * grid.cell[1]]
}

fn overlap(a: &Grid, b: &Grid) -> bool {
    let ([ax, ay, ar, ab], [bx, by, br, bb]) = (extent(a), extent(b));
    // Tiles touch; rounding must not make them overlap.
    let slack = 0.5 * a.cell[0].min(b.cell[0]).min(a.cell[1]).min(b.cell[1]);
    ax < br - slack && bx < ar - slack && ay < bb - slack && by < ab - slack
}

/// The view of each grid; picture, frame and label of each view.
fn arrange(grids: &[Grid]) -> (Vec<usize>, Vec<(usize, usize, String)>) {
    let mut views: Vec<Vec<usize>> = Vec::new();
    let mut view_of = Vec::new();
    for (g, grid) in grids.iter().enumerate() {
        let fits = |view: &Vec<usize>| {
            view.iter().all(|&other| {
                let other = &grids[other];
                other.picture == grid.picture && other.frame == grid.frame && !overlap(other, grid)
            })
        };
        let view = views.iter().position(fits).unwrap_or_else(|| {
            views.push(Vec::new());
            views.len() - 1
        });
        views[view].push(g);
        view_of.push(view);
    }
    let labels = views
        .iter()
        .map(|view| {
            let grid = &grids[view[0]];
            let several = views.iter().filter(|v| grids[v[0]].picture == grid.picture).count() > 1;
            let mut label = format!("picture {}", grid.picture + 1);
            if grid.frame > 0 {
                label.push_str(&format!(", frame {}", grid.frame + 1));
            }
            if several {
                label.push_str(if view.len() > 1 { ", tiles" } else { ", whole" });
            }
            (grid.picture as usize, grid.frame as usize, label)
        })
        .collect();
    (view_of, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur::VisualToken;

    fn grid(tile: u32, origin: [f64; 2], cell: f64) -> Grid {
        Grid {
            picture: 0,
            frame: 0,
            tile,
            rows: 2,
            cols: 2,
            origin,
            cell: [cell, cell],
            source: [40, 40],
        }
    }

    fn report(
        tokens: TokenMap,
        before: usize,
        scores: Option<(Vec<u32>, Vec<f32>)>,
    ) -> StageReport {
        StageReport {
            entry: 0,
            drop: None,
            pruner: "p".into(),
            site: secateur::prune::Site::Input,
            before,
            kept: tokens.len(),
            ms: 0.0,
            indices: tokens.indices(),
            recycled: Vec::new(),
            scores,
            tokens,
            notes: Vec::new(),
        }
    }

    fn pick(map: &TokenMap, indices: &[usize]) -> TokenMap {
        TokenMap::new(
            map.grids.clone(),
            indices.iter().map(|&i| map.tokens[i].clone()).collect::<Vec<VisualToken>>(),
        )
    }

    #[test]
    fn a_cell_is_followed_from_stage_to_stage() {
        let dense = TokenMap::raster(vec![grid(0, [0.0, 0.0], 20.0)]);
        let mut first = pick(&dense, &[0, 1, 3]);
        first.tokens[0].members = vec![(0, 0.5), (2, 0.5)];
        let second = pick(&first, &[1]);
        let reports = [
            report(first, 4, Some((vec![0, 1, 2, 3], vec![1.0, 2.0, 0.0, f32::NAN]))),
            report(second, 3, None),
        ];
        let views = views(&dense, &reports);
        let fates: Vec<String> =
            views[0].cells.iter().map(|c| c.fates.iter().map(|f| f.letter()).collect()).collect();
        assert_eq!(fates, ["cd", "kk", "ad", "kd"]);
        assert_eq!(views[0].cells[1].scores, [Some(2.0), None]);
        assert_eq!(views[0].cells[3].scores, [None, None]);
        assert_eq!(views[0].cells[0].groups, [Some(0), None]);
        assert_eq!(views[0].cells[2].groups, [Some(0), None]);
        assert_eq!(views[0].cells[1].groups, [None, None]);
        assert_eq!(views[0].line(1), "3 of 4 left (75 %), 1 summed into others");
        assert_eq!(views[0].line(2), "1 of 4 left (25 %)");
        let scene = Scene { views, ..png::tests::scene() };
        assert_eq!(scene.score_range(0), Some((0.0, 2.0)));
        assert_eq!(scene.score_range(1), None);
        assert_eq!(scene.fates(Some(0)), [Fate::Kept, Fate::Carries, Fate::Absorbed]);
        assert_eq!(scene.fates(Some(1)), [Fate::Kept, Fate::Dropped]);
    }

    #[test]
    fn what_is_pooled_is_one_group_around_the_cell_that_holds_it() {
        let dense = TokenMap::raster(vec![grid(0, [0.0, 0.0], 20.0)]);
        let mut pooled = pick(&dense, &[0, 3]);
        pooled.tokens[0].members = vec![(0, 0.6), (2, 0.4)];
        // Half of cell 0 lies under the second mean too: it is shown with the first.
        pooled.tokens[1].members = vec![(0, 0.2), (1, 0.4), (3, 0.4)];
        let views = views(&dense, &[report(pooled, 4, None)]);
        let groups: Vec<Option<u32>> = views[0].cells.iter().map(|c| c.groups[0]).collect();
        assert_eq!(groups, [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(views[0].line(1), "2 of 4 left (50 %), 2 summed into others");
    }

    #[test]
    fn a_thumbnail_and_its_tiles_are_two_views() {
        let grids = [
            grid(0, [0.0, 0.0], 20.0),
            grid(1, [0.0, 0.0], 10.0),
            grid(2, [20.0, 0.0], 10.0),
            grid(3, [0.0, 20.0], 10.0),
        ];
        let (view_of, labels) = arrange(&grids);
        assert_eq!(view_of, [0, 1, 1, 1]);
        assert_eq!(labels[1], (0, 0, "picture 1, tiles".to_owned()));
    }
}
