//! `pruners`: the pruners, or one of them with its paper and parameters, and which fit a model.
//!
//! Of pruners that a program brings itself the names are known, and no more.

use std::fmt::Write as _;

use anyhow::Result;
use secateur::pruners::{Entry, PRUNERS};
use secateur::{Outline, Vlm, presets};
use secateur_core::chain::nearest_first;

use crate::args::PrunersArgs;
use crate::hub::{self, Needs};
use crate::job;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};

/// Runs the command.
///
/// # Errors
/// A name that is not known, a model that cannot be read.
pub(crate) fn run(args: &PrunersArgs, console: &Console) -> Result<Outcome> {
    let own = own(args);
    if let Some(name) = args.name.as_deref().filter(|name| own.contains(name)) {
        return brought(name, args, console);
    }
    let named = args.name.as_deref().map(|name| find(name, &own)).transpose()?;
    let outline = args.model.as_deref().map(|_| open(args, console)).transpose()?;
    let entries: Vec<&Entry> = named.map_or_else(|| PRUNERS.iter().collect(), |entry| vec![entry]);
    if args.json {
        let known = entries.into_iter().map(|entry| json(entry, outline.as_ref()));
        let brought = own.iter().filter(|_| named.is_none()).map(|name| json_of_own(name));
        let rows: Vec<serde_json::Value> = known.chain(brought).collect();
        console.json(&serde_json::json!({ "schema": "secateur.pruners/1", "pruners": rows }))?;
        return Ok(Outcome::Done);
    }
    match named {
        Some(entry) => console.words(&page(entry, outline.as_ref()))?,
        None => {
            console.words(&list(&own, outline.as_ref()))?;
            console.note("`secateur pruners NAME` says what one reads and takes");
        }
    }
    Ok(Outcome::Done)
}

const OF_THE_PROGRAM: &str = "a pruner of this program";

/// Names that the program brought beside ours.
fn own(args: &PrunersArgs) -> Vec<&str> {
    args.pruners.names().filter(|name| secateur::pruners::find(name).is_none()).collect()
}

/// What can be said of a pruner that the program brought.
fn brought(name: &str, args: &PrunersArgs, console: &Console) -> Result<Outcome> {
    if args.json {
        let rows = [json_of_own(name)];
        console.json(&serde_json::json!({ "schema": "secateur.pruners/1", "pruners": rows }))?;
    } else {
        console.words(&format!(
            "{name}\n  {OF_THE_PROGRAM}; `explain --prune {name}:..` says where it cuts and what it reads\n"
        ))?;
    }
    Ok(Outcome::Done)
}

fn json_of_own(name: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "summary": OF_THE_PROGRAM })
}

fn find(name: &str, own: &[&str]) -> Result<&'static Entry> {
    secateur::pruners::find(name).ok_or_else(|| {
        let known = PRUNERS.iter().map(|entry| entry.name).chain(own.iter().copied());
        let known = nearest_first(name, known).join(", ");
        usage(format!("no pruner `{name}`; known are {known}"))
    })
}

fn open(args: &PrunersArgs, console: &Console) -> Result<Outline> {
    let model = args.model.as_deref();
    hub::fetch(model, Needs::Description, args.offline, console)?;
    job::outline(Vlm::builder(job::source(model, args.mmproj.as_deref())?), model, None)
}

/// Why a pruner, as in its example, does not run on a model.
fn obstacle(entry: &Entry, outline: &Outline) -> Option<String> {
    let chain = secateur::parse_chain(entry.example).map_err(|e| e.to_string());
    chain.and_then(|chain| outline.resolve(&chain).map_err(|e| e.to_string())).err()
}

/// Presets that name a pruner.
fn presets_of(entry: &Entry) -> Vec<&'static str> {
    let uses = |name: &&str| {
        presets::get(name).is_ok_and(|chain| chain.stages.iter().any(|s| s.pruner == entry.name))
    };
    presets::names().filter(uses).collect()
}

fn list(own: &[&str], outline: Option<&Outline>) -> String {
    let mut head = vec!["pruner", "cuts at", "keeps"];
    if let Some(outline) = outline {
        head.insert(2, &outline.info().name);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<String>>()];
    for entry in PRUNERS {
        let mut row = vec![entry.name.to_owned(), entry.sites.to_owned(), entry.summary.to_owned()];
        if let Some(outline) = outline {
            let fits = if obstacle(entry, outline).is_none() { "fits" } else { "-" };
            row.insert(2, fits.to_owned());
        }
        rows.push(row);
    }
    for name in own {
        let mut row = vec![(*name).to_owned(), String::new(), OF_THE_PROGRAM.to_owned()];
        if outline.is_some() {
            row.insert(2, String::new());
        }
        rows.push(row);
    }
    table(&rows, &[Align::Left; 4])
}

fn page(entry: &Entry, outline: Option<&Outline>) -> String {
    let mut rows = vec![
        ("keeps", entry.summary.to_owned()),
        ("paper", entry.paper.to_owned()),
        ("cuts at", entry.sites.to_owned()),
        ("reads", entry.reads.to_owned()),
        ("example", format!("--prune {}", quoted(entry.example))),
    ];
    let presets = presets_of(entry);
    if !presets.is_empty() {
        rows.push(("presets", presets.join(", ")));
    }
    if let Some(outline) = outline {
        let name = &outline.info().name;
        rows.push(match obstacle(entry, outline) {
            None => ("model", format!("it runs on {name}")),
            Some(why) => ("model", format!("it does not run on {name} as in the example: {why}")),
        });
    }
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut out = format!("{}\n{}\nparameters\n", entry.name, table(&rows, &[Align::Left; 2]));
    // Writing to a String cannot fail.
    for parameter in entry.parameters() {
        let _ = writeln!(out, "  {} = {}", parameter.name, parameter.default);
        let _ = writeln!(out, "      {}", parameter.meaning);
        if !parameter.aliases.is_empty() {
            let _ = writeln!(out, "      also {}", parameter.aliases.join(", "));
        }
    }
    out
}

/// What a shell needs quotes for.
fn quoted(chain: &str) -> String {
    if chain.contains(['{', ';', '[']) { format!("'{chain}'") } else { chain.to_owned() }
}

fn json(entry: &Entry, outline: Option<&Outline>) -> serde_json::Value {
    let parameters: Vec<serde_json::Value> = entry
        .parameters()
        .map(|p| {
            serde_json::json!({
                "name": p.name, "aliases": p.aliases, "default": p.default, "meaning": p.meaning,
            })
        })
        .collect();
    let mut row = serde_json::json!({
        "name": entry.name, "summary": entry.summary, "paper": entry.paper, "sites": entry.sites,
        "reads": entry.reads, "example": entry.example, "debias": entry.debias,
        "presets": presets_of(entry), "parameters": parameters,
    });
    if let Some(outline) = outline {
        let obstacle = obstacle(entry, outline);
        row["fits"] = obstacle.is_none().into();
        row["obstacle"] = obstacle.into();
    }
    row
}
