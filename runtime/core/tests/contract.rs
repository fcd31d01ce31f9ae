//! The contract's own promises: chains read back as they print, maps compose, geometry inverts.

use proptest::prelude::*;
use secateur_core::chain::{ChainSpec, Params, StageSpec};
use secateur_core::clip::Grid;
use secateur_core::error::ChainError;
use secateur_core::prune::{Budget, Merge, Selection, Site};
use secateur_core::tokens::{TokenKind, TokenMap, VisualToken};
use toml::{Table, Value};

fn grid(rows: u32, cols: u32) -> Grid {
    Grid {
        picture: 0,
        frame: 0,
        tile: 0,
        rows,
        cols,
        origin: [0.0, 0.0],
        cell: [10.0, 10.0],
        source: [cols * 10, rows * 10],
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (-1000i64..100_000).prop_map(Value::Integer),
        (-1e6f64..1e6).prop_map(Value::Float),
        any::<bool>().prop_map(Value::Boolean),
        "[a-z][a-z_]{0,8}"
            .prop_filter("not a keyword", |s| s != "true"
                && s != "false"
                && s.parse::<f64>().is_err())
            .prop_map(Value::String),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..4)
                .prop_map(|m| Value::Table(m.into_iter().collect::<Table>())),
        ]
    })
}

fn chain() -> impl Strategy<Value = ChainSpec> {
    let stage = ("[a-z][a-z_]{1,9}", prop::collection::btree_map("[a-z_]{1,8}", value(), 0..4))
        .prop_filter("names with a meaning", |(name, _)| name != "none" && name != "floor")
        .prop_map(|(pruner, params)| StageSpec { pruner, params: params.into_iter().collect() });
    (prop::collection::vec(stage, 0..4), prop::option::of(1usize..9))
        .prop_map(|(stages, floor)| ChainSpec { stages, floor })
}

proptest! {
    #[test]
    fn a_chain_reads_back_as_it_prints(spec in chain()) {
        prop_assert_eq!(ChainSpec::parse(&spec.to_string()).unwrap(), spec);
    }

    #[test]
    fn any_text_is_a_chain_or_an_error(text in "\\PC{0,60}") {
        let _ = ChainSpec::parse(&text);
        let _ = ChainSpec::from_toml("x", &text);
    }

    #[test]
    fn brackets_and_separators_do_not_panic(text in "[a-z:=,;\\[\\]{}0-9.]{0,60}") {
        let _ = ChainSpec::parse(&text);
    }

    #[test]
    fn two_cuts_are_one_cut(
        rows in 1u32..6, cols in 1u32..6, first in any::<u64>(), second in any::<u64>(),
    ) {
        let map = TokenMap::raster(vec![grid(rows, cols)]);
        let pick = |n: usize, bits: u64| -> Vec<u32> {
            (0..n as u32).filter(|i| bits >> (i % 64) & 1 == 1).collect()
        };
        let a = pick(map.len(), first);
        let b = pick(a.len(), second);
        let twice = map.compose(&Selection::keep(a.clone())).compose(&Selection::keep(b.clone()));
        let once = map.compose(&Selection::keep(b.iter().map(|&i| a[i as usize]).collect()));
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn the_middle_of_a_cell_leads_back_to_it(
        rows in 1u32..40, cols in 1u32..40, x in -50.0f64..50.0, y in -50.0f64..50.0,
        w in 0.3f64..40.0, h in 0.3f64..40.0, row in 0u32..40, col in 0u32..40,
    ) {
        let grid = Grid { origin: [x, y], cell: [w, h], ..grid(rows, cols) };
        let (row, col) = (row % rows, col % cols);
        let rect = grid.cell_rect(row, col);
        let found = grid.cell_at(rect.x + rect.width / 2.0, rect.y + rect.height / 2.0);
        prop_assert_eq!(found, Some((row, col)));
    }

    #[test]
    fn a_budget_is_met(count in 0usize..500, share in 0.001f64..1.0, keep in 0usize..600) {
        prop_assert!(Budget::Count(keep).resolve(count, &[]) == keep.min(count));
        let kept = Budget::Share(share).resolve(count, &[]);
        prop_assert!(kept <= count && (kept >= 1 || count == 0));
        let scores: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let kept = Budget::Mass(share).resolve(count, &scores);
        let best: f64 = (count - kept..count).map(|i| i as f64).sum();
        let total: f64 = (0..count).map(|i| i as f64).sum();
        prop_assert!(best >= share * total - 1e-6 * total);
    }
}

#[test]
fn inline_and_file_mean_the_same() {
    let inline = ChainSpec::parse(
        "vtc_cls:keep=64,fastv:layer=2:keep=0.5:debias={trend={kind=exp;rate=1.03}}",
    )
    .unwrap();
    let file = ChainSpec::from_toml(
        "chain.toml",
        "[[stage]]\ntype = \"vtc_cls\"\nkeep = 64\n[[stage]]\ntype = \"fastv\"\nlayer = 2\n\
         keep = 0.5\ndebias = { trend = { kind = \"exp\", rate = 1.03 } }\n",
    )
    .unwrap();
    assert_eq!(inline, file);
}

#[test]
fn an_unknown_parameter_names_the_nearest_known_one() {
    let mut table = Table::new();
    table.insert("kep".into(), Value::Integer(3));
    let params = Params::new("fastv", &table);
    params.budget("keep").unwrap();
    params.count("layer").unwrap();
    let error = params.finish().unwrap_err().to_string();
    assert!(error.contains("`kep`") && error.contains("keep, layer"), "{error}");
}

#[test]
fn a_chain_file_says_nothing_that_the_inline_form_cannot() {
    let read = |stage: &str| ChainSpec::from_toml("c.toml", &format!("[[stage]]\n{stage}\n"));
    for stage in [
        "type = \"vision_{ip\"",
        "type = \"a,b\"",
        "type = \"none\"",
        "type = \"\"",
        "type = \" fastv\"",
        "type = \"fastv\"\n\"la:yer\" = 2",
        "type = \"fastv\"\nprofile = \"a;b]\"",
        "type = \"fastv\"\nprofile = \"\"",
    ] {
        let error = read(stage).unwrap_err().to_string();
        assert!(error.contains("c.toml") && error.contains("stage 0"), "{error}");
    }
    for stage in ["type = \"fastv\"\nkeep = \"mass:0.9\"\nlayer = 2", "type = \"x\"\nl = [1, 2.5]"]
    {
        let spec = read(stage).unwrap();
        assert_eq!(ChainSpec::parse(&spec.to_string()).unwrap().to_string(), spec.to_string());
    }
}

#[test]
fn a_chain_file_with_a_typo_is_refused() {
    let error = ChainSpec::from_toml("c.toml", "[[stages]]\ntype = \"fastv\"\n").unwrap_err();
    assert!(
        matches!(&error, ChainError::Parse { reason, .. } if reason.contains("stages")),
        "{error}"
    );
}

fn with_newline() -> TokenMap {
    let mut map = TokenMap::raster(vec![grid(1, 3)]);
    map.tokens.push(VisualToken {
        index: 3,
        grid: 0,
        row: 0,
        col: 3,
        kind: TokenKind::Structural,
        coverage: 1.0,
        members: Vec::new(),
    });
    map
}

#[test]
fn a_selection_that_breaks_a_rule_is_refused() {
    let map = with_newline();
    let cases: [(Selection, &str); 6] = [
        (Selection::keep(vec![1, 0, 3]), "ascending"),
        (Selection::keep(vec![0, 0, 3]), "ascending"),
        (Selection::keep(vec![0, 3, 9]), "does not exist"),
        (Selection::keep(vec![0, 1]), "structural"),
        (
            Selection {
                kept: vec![0, 3],
                merges: vec![Merge { target: 1, terms: vec![(1, 1.0)] }],
                ..Selection::default()
            },
            "not kept",
        ),
        (Selection { kept: vec![0, 3], cls: true, ..Selection::default() }, "encoder site"),
    ];
    for (selection, reason) in cases {
        let error = selection.check(&map, Site::Input).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(Selection::keep(vec![0, 3]).check(&map, Site::Input), Ok(()));
}

#[test]
fn merged_tokens_remember_their_members() {
    let map = TokenMap::raster(vec![grid(1, 4)]);
    let merge = |target, terms: &[(u32, f32)]| Merge { target, terms: terms.to_vec() };
    let once = map.compose(&Selection {
        kept: vec![0, 2],
        merges: vec![merge(2, &[(1, 0.25), (2, 0.5), (3, 0.25)])],
        ..Selection::default()
    });
    assert_eq!(once.tokens[1].members, [(1, 0.25), (2, 0.5), (3, 0.25)]);
    let twice = once.compose(&Selection {
        kept: vec![0],
        merges: vec![merge(0, &[(0, 0.5), (1, 0.5)])],
        ..Selection::default()
    });
    assert_eq!(twice.tokens[0].members, [(0, 0.5), (1, 0.125), (2, 0.25), (3, 0.125)]);
}

#[test]
fn added_rows_stand_with_their_crop() {
    let second = Grid { tile: 1, ..grid(1, 2) };
    let map = TokenMap::raster(vec![grid(1, 2), second]);
    let after = map.compose(&Selection {
        kept: vec![1, 2],
        appended: vec![
            Merge { target: 0, terms: vec![(0, 1.0)] },
            Merge { target: 3, terms: vec![(3, 1.0)] },
        ],
        cls: true,
        ..Selection::default()
    });
    let kinds: Vec<TokenKind> = after.tokens.iter().map(|t| t.kind).collect();
    use TokenKind::{Cls, Merged, Patch};
    assert_eq!(kinds, [Cls, Patch, Merged, Cls, Patch, Merged]);
    assert_eq!(after.indices(), [0, 1, 2, 3, 4, 5]);
    assert!(after.rebased);
}
