//! Keeps `docs/configuration.md` in step with the flags: its table is made from them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::harmless;

const BEGIN: &str =
    "<!-- The table is made from the flags; see the test that names this file. -->\n";

/// One row: commands, default, meaning.
type Row = (Vec<String>, String, String);

fn table() -> String {
    let command = crate::args::command();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for owner in command.get_subcommands().chain([&command]) {
        let name = if owner.get_name() == command.get_name() { "every" } else { owner.get_name() };
        for arg in owner.get_arguments() {
            let flag = arg.get_long().filter(|l| !matches!(*l, "help" | "version" | "config"));
            let Some(flag) = flag else { continue };
            let default: Vec<_> =
                arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let row = rows
                .entry(flag.replace('-', "_"))
                .or_insert_with(|| (Vec::new(), default.join(", "), help));
            row.0.push(name.to_owned());
        }
    }
    let mut text = "| key | commands | default | in `./secateur.toml` | meaning |\n\
                    | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (key, (commands, default, help)) in rows {
        let flag = key.replace('_', "-");
        let known = harmless::KEYS.iter().find(|(name, _)| *name == flag);
        let local = known.map_or("no", |(_, allowed)| allowed.words());
        let default = match &*default {
            "" => String::new(),
            " " => "a space".to_owned(),
            other => format!("`{other}`"),
        };
        let help = help.replace('\n', " ").replace('|', "\\|");
        text += &format!("| `{key}` | {} | {default} | {local} | {help} |\n", commands.join(", "));
    }
    text
}

#[test]
fn the_configuration_reference_is_in_step_with_the_flags() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let (head, old) = text.split_once(BEGIN).expect("the mark before the table");
    let new = table();
    if std::env::var_os("SECATEUR_UPDATE_DOCS").is_some_and(|v| v == "1") {
        let text = format!("{head}{BEGIN}{new}");
        crate::write::replace_one(&path, text.as_bytes()).expect("docs/configuration.md");
    } else {
        assert!(
            old == new,
            "docs/configuration.md is behind the flags; `SECATEUR_UPDATE_DOCS=1 cargo test -p \
             secateur-cli configuration_reference` writes it"
        );
    }
}
