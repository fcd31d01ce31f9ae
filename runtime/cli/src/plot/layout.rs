//! From a chart to shapes: places, grid lines, and names that keep out of each other's way.

use super::scene::{Anchor, Colour, FAINT, GREY, HEIGHT, INK, Marker, PALETTE, Shape, Size, WIDTH};
use super::{Chart, Look};

const TOP: f64 = 92.0;
const BOTTOM: f64 = HEIGHT - 58.0;
const LEFT: f64 = 64.0;
/// Least distance between the baselines of two names.
const NAME_STEP: f64 = 15.0;
const BAND: Colour = [243, 243, 243];
const DASHES: [&[f64]; 3] = [&[], &[7.0, 4.0], &[2.0, 3.0]];
const MARKERS: [Marker; 4] = [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond];

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
    let frame = Frame { chart, right: (WIDTH - widest - 44.0).max(WIDTH / 2.0) };
    let mut shapes = Vec::new();
    shapes.push(text((LEFT - 40.0, 30.0), &chart.title, Size::Large, Anchor::Start, INK));
    shapes.push(text((LEFT - 40.0, 50.0), &chart.subtitle, Size::Small, Anchor::Start, GREY));
    bands(&frame, &mut shapes);
    axes(&frame, &mut shapes);
    levels(&frame, &mut shapes);
    let styles = styles(chart);
    for (series, style) in chart.series.iter().zip(&styles) {
        let points: Vec<(f64, f64)> =
            series.points.iter().map(|&(x, y)| (frame.x(x), frame.y(y))).collect();
        if series.look == Look::Dots {
            let dot = |&at: &(f64, f64)| Shape::Mark {
                at,
                radius: 1.6,
                marker: Marker::Circle,
                colour: GREY,
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

struct Style {
    colour: Colour,
    dash: &'static [f64],
    marker: Marker,
}

fn styles(chart: &Chart) -> Vec<Style> {
    let (mut coloured, mut reference) = (0, 0);
    let mut style = |look: Look| match look {
        Look::Dots => Style { colour: GREY, dash: &[], marker: Marker::Circle },
        Look::Reference => {
            reference += 1;
            let marker = MARKERS[reference % MARKERS.len()];
            Style { colour: [70, 70, 70], dash: DASHES[1 + reference % 2], marker }
        }
        Look::Coloured => {
            coloured += 1;
            let i = coloured - 1;
            Style {
                colour: PALETTE[i % PALETTE.len()],
                dash: DASHES[(i / PALETTE.len()) % DASHES.len()],
                marker: MARKERS[(i + i / PALETTE.len()) % MARKERS.len()],
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
        shapes.push(line(vec![(LEFT, y), (frame.right, y)], FAINT));
        shapes.push(text((LEFT - 8.0, y + 4.0), name, Size::Small, Anchor::End, INK));
    }
    for (value, name) in &frame.chart.x.ticks {
        let x = frame.x(*value);
        shapes.push(line(vec![(x, BOTTOM), (x, BOTTOM + 5.0)], INK));
        shapes.push(text((x, BOTTOM + 20.0), name, Size::Small, Anchor::Middle, INK));
    }
    shapes.push(line(vec![(LEFT, BOTTOM), (frame.right, BOTTOM)], INK));
    let below = ((LEFT + frame.right) / 2.0, BOTTOM + 42.0);
    shapes.push(text(below, &frame.chart.x.label, Size::Small, Anchor::Middle, INK));
    let above = (LEFT - 40.0, TOP - 14.0);
    shapes.push(text(above, &frame.chart.y.label, Size::Small, Anchor::Start, INK));
}

fn bands(frame: &Frame<'_>, shapes: &mut Vec<Shape>) {
    for [low, high] in frame.chart.levels.iter().filter_map(|level| level.band) {
        let (top, bottom) = (frame.y(high), frame.y(low));
        let at = [LEFT, top, frame.right - LEFT, bottom - top];
        shapes.push(Shape::Rect { at, colour: BAND });
    }
}

fn levels(frame: &Frame<'_>, shapes: &mut Vec<Shape>) {
    for level in &frame.chart.levels {
        let y = frame.y(level.value);
        let points = vec![(LEFT, y), (frame.right, y)];
        shapes.push(Shape::Line { points, width: 1.2, colour: GREY, dash: &[] });
    }
}

/// Names at the right, each at the height where its line ends if there is room, tied to that end
/// by a thin line.
fn names(frame: &Frame<'_>, styles: &[Style], shapes: &mut Vec<Shape>) {
    let lines = frame.chart.series.iter().zip(styles).filter_map(|(s, style)| {
        let last = s.points.iter().copied().max_by(|a, b| frame.x(a.0).total_cmp(&frame.x(b.0)))?;
        Some((s.name.as_str(), style.colour, (frame.x(last.0), frame.y(last.1))))
    });
    let levels = frame
        .chart
        .levels
        .iter()
        .map(|level| (level.name.as_str(), GREY, (frame.right, frame.y(level.value))));
    let mut ends: Vec<(&str, Colour, (f64, f64))> = lines.chain(levels).collect();
    ends.sort_by(|a, b| a.2.1.total_cmp(&b.2.1));
    let wanted: Vec<f64> = ends.iter().map(|e| e.2.1).collect();
    let places = spread(&wanted, NAME_STEP, TOP, BOTTOM);
    for ((name, colour, end), y) in ends.into_iter().zip(places) {
        let x = frame.right + 30.0;
        let tie = vec![(end.0 + 6.0, end.1), (frame.right + 14.0, y), (x - 4.0, y)];
        shapes.push(Shape::Line { points: tie, width: 0.7, colour: [190, 190, 190], dash: &[] });
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
    fn lines_of_one_colour_differ_in_their_dashes() {
        let chart = super::super::tests::chart();
        let mut many = chart.clone();
        many.series = vec![chart.series[0].clone(); 14];
        let styles = styles(&many);
        assert_eq!(styles[0].colour, styles[7].colour);
        assert_ne!(styles[0].dash, styles[7].dash);
    }
}
