//! `presets`: published settings by name, or one of them as the chain file it is.

use anyhow::Result;
use secateur::presets;

use crate::args::PresetsArgs;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};

/// Runs the command.
///
/// # Errors
/// A name that is not known.
pub(crate) fn run(args: &PresetsArgs, console: &Console) -> Result<Outcome> {
    let refuse = |e: secateur::ChainError| usage(e.to_string());
    if let Some(name) = &args.name {
        let name = name.strip_prefix("preset:").unwrap_or(name);
        let text = presets::text(name).map_err(refuse)?;
        if args.json {
            console.json(&row(name, text)?)?;
        } else {
            console.result(text)?;
        }
        return Ok(Outcome::Done);
    }
    let known: Vec<(&str, &str)> =
        presets::names().filter_map(|name| Some((name, presets::text(name).ok()?))).collect();
    if args.json {
        let rows = known.iter().map(|(name, text)| row(name, text));
        let rows = rows.collect::<Result<Vec<serde_json::Value>>>()?;
        console.json(&serde_json::json!({ "schema": "secateur.presets/1", "presets": rows }))?;
        return Ok(Outcome::Done);
    }
    let mut rows = vec![vec!["preset".to_owned(), "setting".to_owned()]];
    rows.extend(known.iter().map(|(name, text)| vec![(*name).to_owned(), about(text)]));
    console.result(&table(&rows, &[Align::Left; 2]))?;
    console.note(
        "`--prune preset:NAME` runs one; `secateur presets NAME` prints it with the paper's figure",
    );
    Ok(Outcome::Done)
}

fn row(name: &str, text: &str) -> Result<serde_json::Value> {
    let chain = presets::get(name).map_err(|e| usage(e.to_string()))?;
    Ok(serde_json::json!({
        "name": name, "about": about(text), "chain": chain.to_string(), "file": text,
    }))
}

/// The first sentence of a preset's comment.
fn about(text: &str) -> String {
    let comment = text.lines().map_while(|line| line.strip_prefix('#'));
    let comment = comment.map(str::trim).collect::<Vec<_>>().join(" ");
    comment.split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_says_what_it_is_in_a_sentence() {
        for name in presets::names() {
            let about = about(presets::text(name).unwrap());
            assert!((10..160).contains(&about.len()), "{name}: {about}");
        }
        assert_eq!(
            about("# K = 2 on LLaVA-1.5. Paper's\n# figure: 3.\nx = 1"),
            "K = 2 on LLaVA-1.5"
        );
    }
}
