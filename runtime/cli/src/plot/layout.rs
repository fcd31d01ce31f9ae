//! From a chart to shapes: places, grid lines, and names that keep out of each other's way.

use super::scene::{Anchor, COLOURS, Colour, HEIGHT, Marker, Shape, Size, WIDTH};
use super::{Chart, Look};

const TOP: f64 = 92.0;
const BOTTOM: f64 = HEIGHT - 58.0;
const LEFT: f64 = 64.0;
/// Least distance between the baselines of two names.
const NAME_STEP: f64 = 15.0;
/// The second half of the colours is dashed, what comes again after them dotted.
const DASHES: [&[f64]; 3] = [&[], &[7.0, 4.0], &[2.0, 3.0]];
const REFERENCES: [&[f64]; 3] = [&[7.0, 4.0], &[2.0, 3.0], &[10.0, 3.0, 2.0, 3.0]];
const MARKERS: [Marker; 7] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::Down,
    Marker::Left,
    Marker::Right,
];
/// How far lines with bars are set apart from one another, and all of them together.
const APART: (f64, f64) = (2.4, 22.0);
/// Length of the sample beside a name.
const SAMPLE: f64 = 22.0;
/// Half the width of the ends of a bar.
const CAP: f64 = 2.5;

struct Frame<'a> {
    chart: &'a Chart,
    right: f64,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.chart.x.place(value).clamp(0.0, 1.0) * (self.right - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.chart.y.place(value).clamp(0.0, 1.0) * (BOTTOM - TOP)
    }
}

fn text(at: (f64, f64), text: &str, size: Size, anchor: Anchor, colour: Colour) -> Shape {
    Shape::Text { at, text: text.to_owned(), size, anchor, colour }
}

/// All shapes of a chart, in drawing order.
pub(super) fn scene(chart: &Chart) -> Vec<Shape> {
    let series = chart.series.iter().map(|s| &s.name);
    let widest = series
        .chain(chart.levels.iter().map(|l| &l.name))
        .map(|name| Size::Small.width(name))
        .fold(60.0, f64::max);
    let frame = Frame { chart, right: (WIDTH - widest - SAMPLE - 50.0).max(WIDTH / 2.0) };
    let mut shapes = Vec::new();
    shapes.push(text((LEFT - 40.0, 30.0), &chart.title, Size::Large, Anchor::Start, Colour::Ink));
    shapes.push(text(
        (LEFT - 40.0, 50.0),
        &chart.subtitle,
        Size::Small,
        Anchor::Start,
        Colour::Grey,
    ));
    bands(&frame, &mut shapes);
    axes(&frame, &mut shapes);
    levels(&frame, &mut shapes);
    let styles = styles(chart);
    let shifts = shifts(chart);
    for ((series, style), shift) in chart.series.iter().zip(&styles).zip(&shifts) {
        let points: Vec<(f64, f64)> =
            series.points.iter().map(|&(x, y)| (frame.x(x) + shift, frame.y(y))).collect();
        for (&(x, _), &[low, high]) in points.iter().zip(&series.bars) {
            bar(x, frame.y(low), frame.y(high), style.colour, &mut shapes);
        }
        if series.look == Look::Dots {
            let dot = |&at: &(f64, f64)| Shape::Mark {
                at,
                radius: 1.6,
                marker: Marker::Circle,
                colour: Colour::Grey,
            };
            shapes.extend(points.iter().map(dot));
            continue;
        }
        let width = if series.look == Look::Reference { 1.6 } else { 2.0 };
        shapes.push(Shape::Line {
            points: points.clone(),
            width,
            colour: style.colour,
            dash: style.dash,
        });
        // Beyond a few dozen points marks would hide the line.
        if points.len() <= 40 {
            shapes.extend(points.into_iter().map(|at| Shape::Mark {
                at,
                radius: 3.6,
                marker: style.marker,
                colour: style.colour,
            }));
        }
    }
    names(&frame, &styles, &mut shapes);
    shapes
}

/// An interval with its ends.
fn bar(x: f64, bottom: f64, top: f64, colour: Colour, shapes: &mut Vec<Shape>) {
    let ends = [(bottom, bottom), (top, top)].map(|(y, _)| vec![(x - CAP, y), (x + CAP, y)]);
    for points in std::iter::once(vec![(x, bottom), (x, top)]).chain(ends) {
        shapes.push(Shape::Line { points, width: 0.8, colour, dash: &[] });
    }
}

/// How far to the right each line stands: bars at one place would lie on one another.
fn shifts(chart: &Chart) -> Vec<f64> {
    let count = chart.series.iter().filter(|s| !s.bars.is_empty()).count();
    let step = APART.0.min(APART.1 / count.max(1) as f64);
    let mut place = -(count as f64 - 1.0) / 2.0;
    let shift = |has_bars: bool| {
        if !has_bars {
            return 0.0;
        }
        place += 1.0;
        (place - 1.0) * step
    };
    chart.series.iter().map(|s| !s.bars.is_empty()).map(shift).collect()
}

struct Style {
    colour: Colour,
    dash: &'static [f64],
    marker: Marker,
}

fn styles(chart: &Chart) -> Vec<Style> {
    let (mut coloured, mut reference) = (0, 0);
    let mut style = |look: Look| match look {
        Look::Dots => Style { colour: Colour::Grey, dash: &[], marker: Marker::Circle },
        Look::Reference => {
            reference += 1;
            let i = reference - 1;
            let marker = MARKERS[i % MARKERS.len()];
            Style { colour: Colour::Reference, dash: REFERENCES[i % REFERENCES.len()], marker }
        }
        Look::Coloured => {
            coloured += 1;
            let i = coloured - 1;
            Style {
                colour: Colour::Series(i % COLOURS),
                dash: DASHES[(2 * i / COLOURS).min(DASHES.len() - 1)],
                marker: MARKERS[i % MARKERS.len()],
            }
        }
    };
    chart.series.iter().map(|s| style(s.look)).collect()
}

fn axes(frame: &Frame<'_>, shapes: &mut Vec<Shape>) {
    let line =
        |points: Vec<(f64, f64)>, colour| Shape::Line { points, width: 1.0, colour, dash: &[] };
    for (value, name) in &frame.chart.y.ticks {
        let y = frame.y(*value);
        shapes.push(line(vec![(LEFT, y), (frame.right, y)], Colour::Faint));
        shapes.push(text((LEFT - 8.0, y + 4.0), name, Size::Small, Anchor::End, Colour::Ink));
    }
    for (value, name) in &frame.chart.x.ticks {
        let x = frame.x(*value);
        shapes.push(line(vec![(x, BOTTOM), (x, BOTTOM + 5.0)], Colour::Ink));
        shapes.push(text((x, BOTTOM + 20.0), name, Size::Small, Anchor::Middle, Colour::Ink));
    }
    shapes.push(line(vec![(LEFT, BOTTOM), (frame.right, BOTTOM)], Colour::Ink));
    let below = ((LEFT + frame.right) / 2.0, BOTTOM + 42.0);
    shapes.push(text(below, &frame.chart.x.label, Size::Small, Anchor::Middle, Colour::Ink));
    let above = (LEFT - 40.0, TOP - 14.0);
    shapes.push(text(above, &frame.chart.y.label, Size::Small, Anchor::Start, Colour::Ink));
}

fn bands(frame: &Frame<'_>, shapes: &mut Vec<Shape>) {
    for [low, high] in frame.chart.levels.iter().filter_map(|level| level.band) {
        let (top, bottom) = (frame.y(high), frame.y(low));
        let at = [LEFT, top, frame.right - LEFT, bottom - top];
        shapes.push(Shape::Rect { at, colour: Colour::Band });
    }
}

fn levels(frame: &Frame<'_>, shapes: &mut Vec<Shape>) {
    for level in &frame.chart.levels {
        let y = frame.y(level.value);
        let points = vec![(LEFT, y), (frame.right, y)];
        shapes.push(Shape::Line { points, width: 1.2, colour: Colour::Grey, dash: &[] });
    }
}

/// Names at the right behind a sample of the line, each at the height where it ends if there is
/// room, tied to that end by a thin line.
fn names(frame: &Frame<'_>, styles: &[Style], shapes: &mut Vec<Shape>) {
    let lines = frame.chart.series.iter().zip(styles).filter_map(|(s, style)| {
        let last = s.points.iter().copied().max_by(|a, b| frame.x(a.0).total_cmp(&frame.x(b.0)))?;
        let style = (s.look != Look::Dots).then_some(style);
        let colour = style.map_or(Colour::Grey, |s| s.colour);
        Some((s.name.as_str(), colour, (frame.x(last.0), frame.y(last.1)), style))
    });
    let levels = frame.chart.levels.iter().map(|level| {
        (level.name.as_str(), Colour::Grey, (frame.right, frame.y(level.value)), None)
    });
    let mut ends: Vec<_> = lines.chain(levels).collect();
    ends.sort_by(|a: &(_, _, (f64, f64), _), b| a.2.1.total_cmp(&b.2.1));
    let wanted: Vec<f64> = ends.iter().map(|e| e.2.1).collect();
    let places = spread(&wanted, NAME_STEP, TOP, BOTTOM);
    for ((name, colour, end, style), y) in ends.into_iter().zip(places) {
        let x = frame.right + 30.0;
        let tie = vec![(end.0 + 6.0, end.1), (frame.right + 14.0, y), (x - 4.0, y)];
        shapes.push(Shape::Line { points: tie, width: 0.7, colour: Colour::Tie, dash: &[] });
        if let Some(style) = style {
            let points = vec![(x, y), (x + SAMPLE, y)];
            shapes.push(Shape::Line { points, width: 2.0, colour, dash: style.dash });
            let at = (x + SAMPLE / 2.0, y);
            shapes.push(Shape::Mark { at, radius: 3.6, marker: style.marker, colour });
        }
        let x = if style.is_some() { x + SAMPLE + 6.0 } else { x };
        shapes.push(text((x, y + 4.0), name, Size::Small, Anchor::Start, colour));
    }
}

/// Ascending places as near to `wanted` (ascending) as a distance of `step` allows, within bounds
/// if there is room: groups that collide share their mean.
fn spread(wanted: &[f64], step: f64, low: f64, high: f64) -> Vec<f64> {
    let mut groups: Vec<(f64, usize)> = Vec::new();
    let half = |count: usize| (count as f64 - 1.0) * step / 2.0;
    let within = |center: f64, count: usize| center.min(high - half(count)).max(low + half(count));
    for &y in wanted {
        groups.push((within(y, 1), 1));
        while let [.., (a, n), (b, m)] = groups[..] {
            if b - half(m) - (a + half(n)) >= step {
                break;
            }
            let mean = (a * n as f64 + b * m as f64) / (n + m) as f64;
            groups.truncate(groups.len() - 2);
            groups.push((within(mean, n + m), n + m));
        }
    }
    groups
        .into_iter()
        .flat_map(|(center, count)| (0..count).map(move |i| center - half(count) + i as f64 * step))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_distance_and_stay_inside() {
        for wanted in [vec![100.0, 101.0, 102.0, 300.0], vec![92.0; 6], vec![541.0, 541.0, 542.0]] {
            let places = spread(&wanted, NAME_STEP, TOP, BOTTOM);
            assert_eq!(places.len(), wanted.len());
            assert!(places.windows(2).all(|w| w[1] - w[0] >= NAME_STEP - 1e-9), "{places:?}");
            assert!(
                places.iter().all(|&y| (TOP - 1e-9..=BOTTOM + 1e-9).contains(&y)),
                "{places:?}"
            );
        }
        assert_eq!(spread(&[100.0, 200.0], NAME_STEP, TOP, BOTTOM), [100.0, 200.0]);
    }

    #[test]
    fn fourteen_lines_differ_in_colour_and_in_marker_or_dash() {
        let chart = super::super::tests::chart();
        let mut many = chart.clone();
        many.series = vec![chart.series[0].clone(); 15];
        let styles = styles(&many);
        for (i, a) in styles.iter().enumerate().take(14) {
            for b in &styles[..i] {
                assert_ne!(a.colour, b.colour);
                assert!(a.marker != b.marker || a.dash != b.dash, "{i}");
            }
        }
        assert_eq!(styles[14].colour, styles[0].colour);
        assert_ne!(styles[14].dash, styles[0].dash);
    }

    #[test]
    fn bars_reach_from_end_to_end_and_stand_side_by_side() {
        let mut chart = super::super::tests::chart();
        for series in &mut chart.series {
            series.bars = series.points.iter().map(|p| [p.1 - 3.0, p.1 + 2.0]).collect();
        }
        let frame = Frame { chart: &chart, right: 700.0 };
        let shifts = shifts(&chart);
        assert_eq!(shifts, [-2.4, 0.0, 2.4]);
        let mut shapes = Vec::new();
        bar(10.0, frame.y(40.0), frame.y(50.0), Colour::Ink, &mut shapes);
        let Shape::Line { points, .. } = &shapes[0] else { panic!("a line") };
        assert_eq!(points, &[(10.0, frame.y(40.0)), (10.0, frame.y(50.0))]);
        let lines =
            |chart: &Chart| scene(chart).iter().filter(|s| matches!(s, Shape::Line { .. })).count();
        let mut without = chart.clone();
        without.series.iter_mut().for_each(|s| s.bars.clear());
        assert_eq!(lines(&chart), lines(&without) + 3 * 5 * 3);
    }
}
