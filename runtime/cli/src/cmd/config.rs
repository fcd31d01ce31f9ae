//! `config show`: the settings in force, and where each came from.

use anyhow::Result;

use crate::args::{self, ConfigAction, ConfigArgs};
use crate::config::{Origin, Settings};
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};

/// Runs the command.
///
/// # Errors
/// A command that does not exist.
pub(crate) fn run(args: &ConfigArgs, settings: &Settings, console: &Console) -> Result<Outcome> {
    let ConfigAction::Show { origin, command: name, json } = &args.action;
    let command = args::command();
    if command.find_subcommand(name).is_none() {
        let names = command.get_subcommands().map(|c| c.get_name());
        let nearest = secateur_core::chain::nearest_first(name, names);
        return Err(usage(format!("no command `{name}`; known are {}", nearest.join(", "))));
    }
    let rows = settings.effective(&command, name);
    if *json {
        let mut object = serde_json::Map::new();
        for (key, values, origin) in rows {
            let value =
                serde_json::json!({"value": values.join(","), "origin": origin.to_string()});
            object.insert(key, value);
        }
        let whole = serde_json::json!({
            "schema": "secateur.config/1", "command": name, "settings": object,
        });
        console.json(&whole)?;
        return Ok(Outcome::Done);
    }
    let mut lines = Vec::new();
    for (key, values, from) in rows {
        let mut line = vec![key, "=".to_owned(), values.join(",")];
        if *origin {
            line.push(match from {
                Origin::Default => "default".to_owned(),
                from => from.to_string(),
            });
        }
        lines.push(line);
    }
    console.words(&table(&lines, &[Align::Left; 4]))?;
    Ok(Outcome::Done)
}
