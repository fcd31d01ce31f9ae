//! The coverage floor: no cell of the patch grid loses every token.
//!
//! For grounding: a chain with `floor = g` keeps at least one token in every `g x g` block of
//! patches of every crop, whatever the scores say.
//!
//! Invariants
//! - A block is covered if a kept token lies in it or was merged into a kept one.
//! - The number of kept tokens stays what the pruner chose as long as some block has two or more;
//!   below one token a block the floor wins over the budget.
//! - Where two tokens tie, the lower index is kept.

use std::collections::BTreeMap;

use crate::prune::Selection;
use crate::tokens::{TokenKind, TokenMap};

/// Adds a token to every uncovered block and takes the worst ones from crowded blocks in exchange.
pub(crate) fn enforce(cells: usize, tokens: &TokenMap, selection: &mut Selection) {
    let block = |i: usize| {
        let t = &tokens.tokens[i];
        (t.kind == TokenKind::Patch).then(|| (t.grid, t.row / cells as u32, t.col / cells as u32))
    };
    let score = |i: usize| selection.scores.as_ref().map_or(0.0, |s| s[i]);
    let mut kept = vec![false; tokens.len()];
    for &i in &selection.kept {
        kept[i as usize] = true;
    }
    let mut blocks: BTreeMap<(u32, u32, u32), (usize, Vec<usize>)> = BTreeMap::new();
    for (i, stays) in kept.iter().enumerate() {
        if let Some(key) = block(i) {
            let entry = blocks.entry(key).or_default();
            entry.0 += usize::from(*stays);
            entry.1.push(i);
        }
    }
    for merge in selection.merges.iter().chain(&selection.appended) {
        for key in merge.terms.iter().filter_map(|&(i, _)| block(i as usize)) {
            blocks.entry(key).or_default().0 += 1;
        }
    }
    let mut added = 0usize;
    for (count, members) in blocks.values_mut().filter(|(count, _)| *count == 0) {
        let best = members.iter().copied().reduce(|a, b| if score(b) > score(a) { b } else { a });
        if let Some(best) = best {
            kept[best] = true;
            *count = 1;
            added += 1;
        }
    }
    let is_target = |i: usize| selection.merges.iter().any(|m| m.target as usize == i);
    let mut removable: Vec<usize> = selection
        .kept
        .iter()
        .map(|&i| i as usize)
        .filter(|&i| block(i).is_some() && !is_target(i))
        .collect();
    removable.sort_by(|&a, &b| score(a).total_cmp(&score(b)).then(b.cmp(&a)));
    for i in removable {
        if added == 0 {
            break;
        }
        if let Some(entry) = block(i).and_then(|key| blocks.get_mut(&key))
            && entry.0 > 1
        {
            entry.0 -= 1;
            kept[i] = false;
            added -= 1;
        }
    }
    selection.kept = (0..tokens.len() as u32).filter(|&i| kept[i as usize]).collect();
}
