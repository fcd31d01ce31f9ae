//! What a chain did to pictures, ready to be drawn: per cell of the token grid, stage by stage.
//!
//! Invariants
//! - Cells are told apart by grid, row and column, not by token index: stages that add rows count
//!   indices anew, cells stay.
//! - Grids of one picture that overlap (a thumbnail and its tiles) become views of their own, so
//!   that every view can be drawn as one flat picture.

mod colour;
mod font;
pub(crate) mod html;
pub(crate) mod png;

use std::collections::BTreeMap;
use std::sync::Arc;

use secateur::{Answer, Clip, Grid, Rect, StageReport, TokenKind, TokenMap};

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
    /// Index of the token that carries it, if one does.
    pub(crate) carried_by: Option<u32>,
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
    /// Index of the frame in its video.
    pub(crate) frame: usize,
    /// For people: `picture 1`, `picture 1, tiles`.
    pub(crate) label: String,
    /// Its cells.
    pub(crate) cells: Vec<Cell>,
}

/// Everything there is to draw.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// The pictures; of a video each frame is one.
    pub(crate) clips: Vec<Clip>,
    /// The question.
    pub(crate) question: String,
    /// The answer.
    pub(crate) answer: String,
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

impl Scene {
    /// The scene of an answer that was asked for with detail.
    pub(crate) fn new(clips: Vec<Clip>, question: &str, model: &str, answer: &Answer) -> Self {
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
            answer: answer.text.clone(),
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
        site: report.site.clone(),
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
            carried_by: None,
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
    let mut there: BTreeMap<Place, bool> = BTreeMap::new();
    let mut absorbed: BTreeMap<Place, u32> = BTreeMap::new();
    for token in &report.tokens.tokens {
        let place = (token.grid, token.row, token.col);
        if token.kind == TokenKind::Patch {
            there.insert(place, token.members.len() > 1);
        }
        for (member, _) in &token.members {
            if let Some(place) = place_of.get(member) {
                absorbed.insert(*place, token.index);
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
        let fate = match there.get(place) {
            Some(true) => Fate::Carries,
            Some(false) => Fate::Kept,
            None if absorbed.contains_key(place) => Fate::Absorbed,
            None if was_there => Fate::Dropped,
            None => Fate::Gone,
        };
        cell.carried_by = match fate {
            Fate::Absorbed => absorbed.get(place).copied(),
            _ => None,
        };
        cell.fates.push(fate);
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

/// The view of each grid, and picture, frame and label of each view.
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

/// Range of a stage's scores in a view that colours are spread over: the 2nd to the 98th
/// hundredth, so that one outlier does not leave everything else dark.
pub(crate) fn score_range(view: &View, stage: usize) -> Option<(f32, f32)> {
    let mut scores: Vec<f32> = view.cells.iter().filter_map(|c| c.scores[stage]).collect();
    if scores.is_empty() {
        return None;
    }
    scores.sort_by(f32::total_cmp);
    let at = |share: f64| scores[((scores.len() - 1) as f64 * share).round() as usize];
    let (low, high) = (at(0.02), at(0.98));
    if low < high { Some((low, high)) } else { Some((scores[0], scores[scores.len() - 1])) }
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
            site: "input".into(),
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
        assert_eq!(score_range(&views[0], 0), Some((0.0, 2.0)));
        assert_eq!(score_range(&views[0], 1), None);
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
