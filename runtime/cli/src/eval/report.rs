//! From answers to figures: rows of a table, and a chart.
//!
//! Invariants
//! - Every row is counted over the same questions: those that every run answered.
//! - A run is not compared with itself: the unpruned model, and chains that keep everything (whose
//!   answers are the unpruned ones), are equal to it by construction and have no interval.
//! - Runs that differ in their seed alone are one row: a question's score is the mean over seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::interval::{Estimate, METHOD, difference, estimate};
use super::measure::{Log, Record};
use super::questions::Question;
use super::runs::{BASELINES, Plan, Rule, Run};
use super::score::{common_words, normal};
use crate::output::{Align, table};
use crate::plot::{Axis, Chart, Level, Look, Series};

/// One row: a chain at a budget.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Name of the chain.
    pub(crate) name: String,
    /// Tokens asked for.
    pub(crate) keep: Option<usize>,
    /// Whether `keep` is what the last cut leaves, not the mean.
    pub(crate) keep_is_last: bool,
    /// The chain, of the first seed.
    pub(crate) chain: String,
    /// Mean visual tokens a decoder layer, as measured.
    pub(crate) visual_mean: f64,
    /// Share of right answers.
    pub(crate) score: Option<Estimate>,
    /// Difference to the unpruned model, question by question.
    pub(crate) difference: Option<Estimate>,
    /// Share of right answers where the unpruned model is right and `pool` at that budget is not.
    pub(crate) where_pool_fails: Option<Estimate>,
    /// Share of answers equal to the unpruned model's.
    pub(crate) same: Option<Estimate>,
    /// Words in common with the unpruned model's answers.
    pub(crate) words: Option<Estimate>,
    /// By task.
    pub(crate) tasks: BTreeMap<String, Estimate>,
    /// Medians, milliseconds: cutting, the prompt in the decoder, everything.
    pub(crate) ms: [f64; 3],
}

/// All rows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Rows, the unpruned model first.
    pub(crate) rows: Vec<Row>,
    /// Questions that every run answered.
    pub(crate) questions: usize,
    /// Pictures that they are about.
    pub(crate) pictures: usize,
    /// Questions that some run could not answer.
    pub(crate) failed: usize,
    /// How intervals were made.
    pub(crate) interval: &'static str,
    /// What a reader should know.
    pub(crate) notes: Vec<String>,
}

/// One group of runs with their records, question by question.
struct Group<'a> {
    run: &'a Run,
    /// `[seeds][questions]`
    records: Vec<Vec<&'a Record>>,
}

impl Group<'_> {
    /// Mean over seeds of a value of each question.
    fn values(&self, of: impl Fn(usize, &Record) -> Option<f64>) -> Vec<Option<f64>> {
        (0..self.records[0].len())
            .map(|q| {
                let values: Option<Vec<f64>> =
                    self.records.iter().map(|seed| of(q, seed[q])).collect();
                values.map(|v| v.iter().sum::<f64>() / v.len() as f64)
            })
            .collect()
    }

    fn median(&self, of: impl Fn(&Record) -> f64) -> f64 {
        let mut values: Vec<f64> = self.records.iter().flatten().map(|r| of(r)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    }
}

impl Report {
    /// Counts. Questions that a run did not answer are left out of all.
    pub(crate) fn new(plan: &Plan, questions: &[Question], log: &Log) -> Self {
        let answered = |q: &&Question| {
            plan.runs.iter().all(|run| log.get(run, q).is_some_and(|r| r.error.is_none()))
        };
        let asked: Vec<&Question> = questions.iter().filter(answered).collect();
        let mut groups: Vec<Group<'_>> = Vec::new();
        for run in &plan.runs {
            let records: Vec<&Record> = asked.iter().filter_map(|q| log.get(run, q)).collect();
            let same = |g: &&mut Group<'_>| g.run.name == run.name && g.run.keep == run.keep;
            match groups.iter_mut().find(same) {
                Some(group) => group.records.push(records),
                None => groups.push(Group { run, records: vec![records] }),
            }
        }
        let mut names: Vec<String> = asked.iter().map(|q| q.picture.name()).collect();
        names.sort();
        names.dedup();
        let pictures: Vec<usize> = asked
            .iter()
            .map(|q| names.binary_search(&q.picture.name()).unwrap_or_default())
            .collect();
        let context = Context { asked: &asked, pictures: &pictures, groups: &groups };
        Self {
            rows: groups.iter().map(|group| context.row(group)).collect(),
            questions: asked.len(),
            pictures: names.len(),
            failed: questions.len() - asked.len(),
            interval: METHOD,
            notes: plan.notes.clone(),
        }
    }
}

struct Context<'a> {
    asked: &'a [&'a Question],
    pictures: &'a [usize],
    groups: &'a [Group<'a>],
}

impl Context<'_> {
    /// Values with their pictures.
    fn placed(&self, values: &[Option<f64>]) -> Vec<(usize, f64)> {
        let pairs = self.pictures.iter().zip(values);
        pairs.filter_map(|(&picture, value)| Some((picture, (*value)?))).collect()
    }

    fn row(&self, group: &Group<'_>) -> Row {
        let dense = &self.groups[0];
        let scores = group.values(|_, r| r.score);
        let dense_scores = dense.values(|_, r| r.score);
        let differences: Vec<Option<f64>> =
            scores.iter().zip(&dense_scores).map(|(s, d)| Some((*s)? - (*d)?)).collect();
        let dense_answer = |q: usize| dense.records[0][q].answer.as_str();
        let same = group
            .values(|q, r| Some(f64::from(u8::from(normal(&r.answer) == normal(dense_answer(q))))));
        let words = group.values(|q, r| Some(common_words(&r.answer, dense_answer(q))));
        let pool =
            self.groups.iter().find(|g| g.run.name == "pool" && g.run.keep == group.run.keep);
        let hard = pool.map(|pool| {
            let pool = pool.values(|_, r| r.score);
            let is_hard =
                |q: usize| dense_scores[q] == Some(1.0) && pool[q].is_some_and(|s| s < 1.0);
            let kept: Vec<Option<f64>> =
                (0..scores.len()).map(|q| scores[q].filter(|_| is_hard(q))).collect();
            self.placed(&kept)
        });
        let mut tasks = BTreeMap::new();
        for question in self.asked {
            if !tasks.contains_key(&question.task) {
                let of_task: Vec<Option<f64>> = scores
                    .iter()
                    .zip(self.asked)
                    .map(|(s, q)| s.filter(|_| q.task == question.task))
                    .collect();
                if let Some(found) = estimate(&self.placed(&of_task)) {
                    tasks.insert(question.task.clone(), found);
                }
            }
        }
        // Its answers are the unpruned ones, read from the same records.
        let is_dense = group.run.key() == dense.run.key();
        let beside_itself = |measured: Option<Estimate>, mean: f64| match measured {
            Some(e) if is_dense => Some(Estimate::exact(mean, e.count)),
            measured => measured,
        };
        let is_pool = group.run.name == "pool";
        let means = group.values(|_, r| Some(r.visual_mean));
        let visual_mean = means.iter().flatten().sum::<f64>() / means.len().max(1) as f64;
        Row {
            name: group.run.name.clone(),
            keep: group.run.keep,
            keep_is_last: group.run.rule == Rule::Last,
            chain: group.run.key(),
            visual_mean,
            score: estimate(&self.placed(&scores)),
            difference: difference(&self.placed(&differences)).filter(|_| !is_dense),
            // Both are chosen by what these two answered.
            where_pool_fails: hard
                .filter(|_| !is_dense && !is_pool)
                .and_then(|values| estimate(&values)),
            same: beside_itself(estimate(&self.placed(&same)), 1.0),
            words: beside_itself(estimate(&self.placed(&words)), 1.0),
            tasks,
            ms: [
                group.median(|r| r.ms.prune),
                group.median(|r| r.ms.prefill),
                group.median(|r| r.ms.total()),
            ],
        }
    }
}

fn percent(estimate: Option<Estimate>) -> String {
    estimate.map_or_else(String::new, |e| format!("{:.1}", 100.0 * e.mean))
}

fn interval(estimate: Option<Estimate>, signed: bool) -> String {
    let Some(e) = estimate.filter(|e| !e.exact) else { return String::new() };
    let (low, high) = (100.0 * e.low, 100.0 * e.high);
    if signed { format!("[{low:+.1}, {high:+.1}]") } else { format!("[{low:.1}, {high:.1}]") }
}

impl Row {
    fn budget(&self) -> String {
        let mark = if self.keep_is_last { "*" } else { "" };
        self.keep.map_or_else(String::new, |k| format!("{k}{mark}"))
    }

    fn signed(&self) -> String {
        self.difference.map_or_else(String::new, |e| format!("{:+.1}", 100.0 * e.mean))
    }
}

impl Report {
    fn is_scored(&self) -> bool {
        self.rows.iter().any(|r| r.score.is_some())
    }

    /// The table for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut rows = vec![
            [
                "chain",
                "keep",
                "tokens",
                "score %",
                "95 %",
                "to dense",
                "95 %",
                "pool fails",
                "same %",
                "words %",
                "prune ms",
                "prefill ms",
                "all ms",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for row in &self.rows {
            rows.push(vec![
                row.name.clone(),
                row.budget(),
                format!("{:.1}", row.visual_mean),
                percent(row.score),
                interval(row.score, false),
                row.signed(),
                interval(row.difference, true),
                percent(row.where_pool_fails),
                percent(row.same),
                percent(row.words),
                format!("{:.2}", row.ms[0]),
                format!("{:.2}", row.ms[1]),
                format!("{:.2}", row.ms[2]),
            ]);
        }
        let align: Vec<Align> = std::iter::once(Align::Left).chain([Align::Right; 12]).collect();
        let mut out = table(&rows, &align);
        let _ = writeln!(out);
        out.push_str(&self.legend());
        out
    }

    /// What the columns mean, and what a reader should know.
    fn legend(&self) -> String {
        let mut out = format!(
            "{} questions about {} pictures. tokens: mean visual tokens a decoder layer. \
             Intervals: {}.\n",
            self.questions, self.pictures, self.interval
        );
        if self.is_scored() {
            out.push_str(
                "to dense: difference to the unpruned model, question by question. pool fails: \
                 score where the unpruned model is right and pool at that budget is not.\n",
            );
        }
        out.push_str(
            "same: answers equal to the unpruned model's; words: words in common with them. \
             Times: medians a question.\n",
        );
        if self.failed > 0 {
            let _ = writeln!(out, "{} questions failed in some run and are left out.", self.failed);
        }
        for note in &self.notes {
            let _ = writeln!(out, "* {note}.");
        }
        out
    }

    /// The tables for a document: score by budget, and by task at every budget.
    pub(crate) fn markdown(&self) -> String {
        let mut budgets: Vec<usize> = self.rows.iter().filter_map(|r| r.keep).collect();
        budgets.sort_unstable_by(|a, b| b.cmp(a));
        budgets.dedup();
        let mut out = String::new();
        let scored = self.is_scored();
        let value = |row: &Row| if scored { row.score } else { row.words };
        let _ = writeln!(
            out,
            "{} in percent at equal visual tokens (mean over decoder layers):\n",
            if scored { "Score" } else { "Words in common with the unpruned model's answers" }
        );
        let heads: Vec<String> = budgets.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "| chain | {} |", heads.join(" | "));
        let _ = writeln!(out, "|---|{}", "---:|".repeat(budgets.len()));
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        for name in names {
            let mut cells = Vec::new();
            for &budget in &budgets {
                let at = |r: &&Row| r.name == name && (r.keep == Some(budget) || r.keep.is_none());
                cells.push(self.rows.iter().find(at).map_or_else(String::new, |row| {
                    let is_off = (row.visual_mean - budget as f64).abs() > 0.02 * budget as f64;
                    let mark = if is_off && row.keep.is_some() {
                        format!(" ({:.0})", row.visual_mean)
                    } else {
                        String::new()
                    };
                    let interval = interval(value(row), false);
                    format!("{} {interval}", percent(value(row))).trim_end().to_owned() + &mark
                }));
            }
            let _ = writeln!(out, "| `{name}` | {} |", cells.join(" | "));
        }
        out.push_str(
            "\nIn round brackets: the true mean where it is another than the column's. A cut inside \
             the decoder cannot have a mean below what the layers before it see; there a single \
             cut leaves the column's number.\n",
        );
        if scored {
            self.by_task(&budgets, &mut out);
        }
        let _ = writeln!(out, "\n{}", self.legend().trim_end().replace('\n', "  \n"));
        out
    }

    fn by_task(&self, budgets: &[usize], out: &mut String) {
        let Some(dense) = self.rows.first() else { return };
        let tasks: Vec<&String> = dense.tasks.keys().collect();
        for &budget in budgets {
            let _ = writeln!(out, "\nBy task at {budget} tokens:\n");
            let heads: Vec<String> =
                tasks.iter().map(|t| format!("{t} ({})", dense.tasks[*t].count)).collect();
            let _ = writeln!(
                out,
                "| chain | tokens | score | to dense | pool fails | {} | prefill ms |",
                heads.join(" | ")
            );
            let _ = writeln!(out, "|---|{}", "---:|".repeat(tasks.len() + 5));
            let here = |r: &&Row| r.keep == Some(budget) || r.keep.is_none();
            for row in self.rows.iter().filter(here) {
                let cells: Vec<String> =
                    tasks.iter().map(|t| percent(row.tasks.get(*t).copied())).collect();
                let _ = writeln!(
                    out,
                    "| `{}` | {:.0} | {} | {} {} | {} | {} | {:.2} |",
                    row.name,
                    row.visual_mean,
                    percent(row.score),
                    row.signed(),
                    interval(row.difference, true),
                    percent(row.where_pool_fails),
                    cells.join(" | "),
                    row.ms[1]
                );
            }
        }
    }

    /// Score (or agreement, where nothing is scored) against tokens.
    pub(crate) fn chart(&self, model: &str) -> Chart {
        let scored = self.is_scored();
        let value = |row: &Row| if scored { row.score } else { row.words };
        let point = |row: &Row| {
            let e = value(row)?;
            Some(((row.visual_mean, 100.0 * e.mean), [100.0 * e.low, 100.0 * e.high]))
        };
        let mut series: Vec<Series> = Vec::new();
        for row in self.rows.iter().skip(1) {
            let Some((point, bar)) = point(row) else { continue };
            match series.iter_mut().find(|s| s.name == row.name) {
                Some(line) => {
                    line.points.push(point);
                    line.bars.push(bar);
                }
                None => {
                    let is_reference = BASELINES.contains(&row.name.as_str());
                    let look = if is_reference { Look::Reference } else { Look::Coloured };
                    let (points, bars) = (vec![point], vec![bar]);
                    series.push(Series { name: row.name.clone(), points, bars, look });
                }
            }
        }
        for line in &mut series {
            let mut both: Vec<_> = line.points.iter().copied().zip(line.bars.clone()).collect();
            both.sort_by(|a, b| b.0.0.total_cmp(&a.0.0));
            (line.points, line.bars) = both.into_iter().unzip();
        }
        let levels: Vec<Level> = self
            .rows
            .first()
            .and_then(value)
            .filter(|_| scored)
            .map(|e| Level {
                name: "unpruned".into(),
                value: 100.0 * e.mean,
                band: Some([100.0 * e.low, 100.0 * e.high]),
            })
            .into_iter()
            .collect();
        let places = series.iter().flat_map(|s| &s.points);
        let (low, high) =
            places.clone().fold((f64::INFINITY, 0.0f64), |(l, h), p| (l.min(p.0), h.max(p.0)));
        let bands = levels.iter().filter_map(|l| l.band);
        let ends = bands.chain(series.iter().flat_map(|s| s.bars.iter().copied())).flatten();
        let label = if scored { "score, %" } else { "words in common with unpruned answers, %" };
        Chart {
            title: if scored {
                "Score against visual tokens"
            } else {
                "Agreement against visual tokens"
            }
            .into(),
            subtitle: format!(
                "{model}; {} questions, {} pictures; bars{}: 95 % (lines stand a little apart)",
                self.questions,
                self.pictures,
                if scored { " and grey band" } else { "" }
            ),
            x: Axis::powers_of_two(
                "visual tokens a decoder layer, mean (log scale)",
                low.max(1.0),
                high.max(2.0),
            )
            .reversed(),
            y: Axis::linear(label, places.map(|p| p.1).chain(ends)),
            series,
            levels,
        }
    }
}
