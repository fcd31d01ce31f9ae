//! Configuration files, and which of flag, environment, file and default holds.
//!
//! Precedence: flag > `SECATEUR_<FLAG>` > `--config FILE` > `./secateur.toml` >
//! `<user's configuration folder>/secateur/config.toml` > default.
//!
//! A file holds flags by their names (`batch_size = 8` or `batch-size = 8`): at the top for every
//! command that has them, in a table `[caption]` for that command alone. `./secateur.toml` comes
//! with a folder that may come from anywhere, and may set what [`crate::harmless`] lists.
//!
//! Invariants
//! - An unknown key is an error that names the file and the nearest known key.
//! - Values of files become clap's defaults, so that they pass the same checks as flags.

#[cfg(test)]
mod reference;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ArgAction;
use secateur_core::chain::nearest_first;

use crate::outcome::usage;

/// A value from a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configured {
    /// As it would be typed; several for flags that may be repeated.
    pub(crate) values: Vec<String>,
    /// The file.
    pub(crate) file: PathBuf,
}

/// What the files say, by command and flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    values: BTreeMap<(String, String), Configured>,
}

/// Where an effective value came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// An environment variable.
    Environment(String),
    /// A file.
    File(PathBuf),
    /// Nothing was said.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Environment(name) => f.write_str(name),
            Origin::File(path) => path.display().fmt(f),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A configuration file.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Where it is.
    path: PathBuf,
    /// Whether it came with the working folder, and nobody named it.
    is_local: bool,
}

#[cfg(feature = "testkit")]
impl Source {
    /// A file, and whether it came with the working folder.
    pub(crate) fn new(path: &Path, is_local: bool) -> Self {
        Self { path: path.to_path_buf(), is_local }
    }
}

/// Largest configuration file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Where a user's own file lies.
fn user_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    folder.map(|f| f.join("secateur/config.toml"))
}

/// The files that count, lowest precedence first.
pub(crate) fn files(named: Option<&Path>) -> Vec<Source> {
    let source = |is_local| move |path| Source { path, is_local };
    let user = user_file().filter(|p| p.is_file());
    let real = |path: &Path| path.canonicalize().ok();
    // Naming it says that it is meant.
    let is_named = |path: &Path| named.is_some_and(|named| real(named) == real(path));
    let local = Some(PathBuf::from("secateur.toml")).filter(|p| p.is_file() && !is_named(p));
    let named = named.map(Path::to_path_buf).map(source(false));
    user.map(source(false)).into_iter().chain(local.map(source(true))).chain(named).collect()
}

/// Variables that programs of this project read beside those of flags.
const OTHER_VARIABLES: &[&str] = &[
    "SECATEUR_ISA",
    "SECATEUR_FULL",
    "SECATEUR_GOLDEN",
    "SECATEUR_REQUIRE",
    "SECATEUR_BENCH_THREADS",
    "SECATEUR_BENCH_TFLOPS",
];

/// Variables of the environment that look like a setting and are none, in words.
pub(crate) fn unknown_variables(command: &clap::Command) -> Vec<String> {
    let commands = command.get_subcommands().chain([command]);
    let of_flags = commands.flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_env);
    let mut known: Vec<&str> = of_flags.filter_map(std::ffi::OsStr::to_str).collect();
    known.extend(OTHER_VARIABLES);
    known.sort_unstable();
    known.dedup();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut unknown: Vec<String> = set
        .filter(|name| name.starts_with("SECATEUR_") && !known.contains(&name.as_str()))
        .map(|name| {
            let nearest = nearest_first(&name, known.iter().copied());
            let nearest = nearest.first().copied().unwrap_or_default();
            format!("{name} is set and no setting has that name; did you mean {nearest}?")
        })
        .collect();
    unknown.sort();
    unknown
}

impl Settings {
    /// Reads files, lowest precedence first.
    ///
    /// # Errors
    /// Unreadable files, unknown keys, values that the flag would refuse.
    pub(crate) fn read(files: &[Source], command: &clap::Command) -> Result<Self> {
        let mut settings = Self::default();
        for file in files {
            let text = crate::job::read_text(&file.path, MAX_BYTES)
                .with_context(|| format!("cannot read {}", file.path.display()))
                .map_err(|e| usage(format!("{e:#}")))?;
            settings.add(file, &text, command)?;
        }
        Ok(settings)
    }

    fn add(&mut self, file: &Source, text: &str, command: &clap::Command) -> Result<()> {
        let fail = |reason: String| usage(format!("{}: {reason}", file.path.display()));
        let table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| fail(e.to_string().trim_end().to_owned()))?;
        let commands: Vec<&clap::Command> = command.get_subcommands().collect();
        let everywhere: Vec<String> = {
            let mut names: Vec<String> = commands.iter().flat_map(|c| flags(c)).collect();
            names.extend(flags(command));
            names.sort();
            names.dedup();
            names
        };
        for (key, value) in &table {
            if let toml::Value::Table(section) = value {
                let Some(sub) = commands.iter().find(|c| c.get_name() == key) else {
                    let names = commands.iter().map(|c| c.get_name());
                    return Err(fail(unknown("table", &format!("[{key}]"), key, names)));
                };
                let known = flags(sub);
                for (key, value) in section {
                    let flag = key.replace('_', "-");
                    if !known.contains(&flag) {
                        let names = known.iter().map(String::as_str);
                        let what = format!("{key}` in `[{}]", sub.get_name());
                        return Err(fail(unknown("key", &what, &flag, names)));
                    }
                    self.set(sub, &flag, value, file)?;
                }
                continue;
            }
            let flag = key.replace('_', "-");
            if !everywhere.contains(&flag) {
                let names = everywhere.iter().map(String::as_str);
                return Err(fail(unknown("key", key, &flag, names)));
            }
            for owner in commands.iter().copied().chain([command]) {
                if flags(owner).contains(&flag) {
                    self.set(owner, &flag, value, file)?;
                }
            }
        }
        Ok(())
    }

    fn set(
        &mut self,
        owner: &clap::Command,
        flag: &str,
        value: &toml::Value,
        file: &Source,
    ) -> Result<()> {
        let fail = |reason: &str| {
            usage(format!("{}: `{}`: {reason}", file.path.display(), flag.replace('-', "_")))
        };
        let values = texts(value).ok_or_else(|| fail("expected a text, a number or a list"))?;
        if let Some(arg) = owner.get_arguments().find(|a| a.get_long() == Some(flag)) {
            check(arg, flag, &values).map_err(|reason| fail(&reason))?;
        }
        if let Some(reason) = crate::harmless::refusal(flag, &values).filter(|_| file.is_local) {
            let user =
                user_file().map_or_else(String::new, |file| format!(", or in {}", file.display()));
            return Err(fail(&format!(
                "{reason}, since folders come from anywhere; set it by the flag --{flag}, by \
                 SECATEUR_{}, in a file that --config names (--config {} means this one){user}",
                flag.replace('-', "_").to_uppercase(),
                file.path.display()
            )));
        }
        let key = (owner.get_name().to_owned(), flag.to_owned());
        self.values.insert(key, Configured { values, file: file.path.clone() });
        Ok(())
    }

    /// The command line with the files' values as defaults.
    pub(crate) fn apply(&self, command: clap::Command) -> clap::Command {
        let names: Vec<String> =
            command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        let root = command.get_name().to_owned();
        let mut command = command.mut_args(|arg| self.with_default(&root, arg));
        for name in names {
            command = command.mut_subcommand(name.clone(), |sub| {
                sub.mut_args(|arg| self.with_default(&name, arg))
            });
        }
        command
    }

    fn with_default(&self, owner: &str, arg: clap::Arg) -> clap::Arg {
        let key = (owner.to_owned(), arg.get_long().unwrap_or_default().to_owned());
        match self.values.get(&key) {
            Some(configured) => arg.required(false).default_values(configured.values.clone()),
            None => arg,
        }
    }

    /// Every flag of a command with the value that holds if none is typed.
    pub(crate) fn effective(
        &self,
        command: &clap::Command,
        name: &str,
    ) -> Vec<(String, Vec<String>, Origin)> {
        let Some(sub) = command.find_subcommand(name) else { return Vec::new() };
        let mut rows = Vec::new();
        let of = |owner| move |arg| (owner, arg);
        let mine = sub.get_arguments().map(of(name));
        let everywhere = command.get_arguments().map(of(command.get_name()));
        for (owner, arg) in mine.chain(everywhere) {
            let Some(flag) = arg.get_long().filter(|l| !matches!(*l, "help" | "version")) else {
                continue;
            };
            let environment = arg.get_env().and_then(|name| {
                let value = std::env::var_os(name)?;
                Some((name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            });
            let key = (owner.to_owned(), flag.to_owned());
            let (values, origin) = if let Some((variable, value)) = environment {
                (vec![value], Origin::Environment(variable))
            } else if let Some(configured) = self.values.get(&key) {
                (configured.values.clone(), Origin::File(configured.file.clone()))
            } else {
                let default = arg.get_default_values().iter();
                let values = default.map(|v| v.to_string_lossy().into_owned()).collect();
                (values, Origin::Default)
            };
            rows.push((flag.replace('-', "_"), values, origin));
        }
        rows.sort();
        rows
    }
}

impl Ord for Origin {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

impl PartialOrd for Origin {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Origin {}

fn flags(command: &clap::Command) -> Vec<String> {
    command
        .get_arguments()
        .filter_map(|a| a.get_long())
        .filter(|l| !matches!(*l, "help" | "version" | "config"))
        .map(str::to_owned)
        .collect()
}

fn unknown<'a>(
    what: &str,
    shown: &str,
    word: &str,
    names: impl Iterator<Item = &'a str>,
) -> String {
    let nearest = nearest_first(word, names);
    let nearest = nearest
        .first()
        .map_or_else(String::new, |name| format!("; did you mean `{}`?", name.replace('-', "_")));
    format!("unknown {what} `{shown}`{nearest}")
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    Some(match value {
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Integer(i) => vec![i.to_string()],
        toml::Value::Float(x) => vec![x.to_string()],
        toml::Value::Boolean(b) => vec![b.to_string()],
        toml::Value::Array(items) => items.iter().map(texts).collect::<Option<Vec<_>>>()?.concat(),
        toml::Value::Datetime(_) | toml::Value::Table(_) => return None,
    })
}

/// Passes the values through the flag's own checks.
fn check(arg: &clap::Arg, flag: &str, values: &[String]) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match values {
            [word] if word == "true" || word == "false" => Ok(()),
            _ => Err("expected true or false".into()),
        };
    }
    if values.len() > 1 && !matches!(arg.get_action(), ArgAction::Append) {
        return Err("takes one value".into());
    }
    let alone = clap::Arg::new("value")
        .long(flag.to_owned())
        .action(ArgAction::Append)
        .allow_hyphen_values(true)
        .value_parser(arg.get_value_parser().clone());
    let typed = values.iter().map(|v| format!("--{flag}={v}"));
    clap::Command::new("config")
        .no_binary_name(true)
        .arg(alone)
        .try_get_matches_from(typed)
        .map(|_| ())
        .map_err(|e| {
            let text = e.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        let file = Source { path: "f.toml".into(), is_local: false };
        settings.add(&file, text, &crate::args::command())?;
        Ok(settings)
    }

    fn value(settings: &Settings, command: &str, flag: &str) -> Option<String> {
        let key = (command.to_owned(), flag.to_owned());
        settings.values.get(&key).map(|c| c.values.join(","))
    }

    #[test]
    fn a_key_at_the_top_counts_for_every_command_that_has_the_flag() {
        let settings = read("model = \"m\"\n[caption]\nbatch_size = 4\n").unwrap();
        assert_eq!(value(&settings, "caption", "model").as_deref(), Some("m"));
        assert_eq!(value(&settings, "ask", "model").as_deref(), Some("m"));
        assert_eq!(value(&settings, "caption", "batch-size").as_deref(), Some("4"));
        assert_eq!(value(&settings, "ask", "batch-size"), None);
    }

    #[test]
    fn an_unknown_key_names_file_and_nearest_key() {
        let error = read("batchsize = 4").unwrap_err().to_string();
        assert_eq!(error, "f.toml: unknown key `batchsize`; did you mean `batch_size`?");
        let error = read("[captoin]\nmodel = \"m\"").unwrap_err().to_string();
        assert!(error.contains("did you mean `caption`?"), "{error}");
        let error = read("[ask]\non_existing = \"skip\"").unwrap_err().to_string();
        assert!(error.contains("unknown key `on_existing` in `[ask]`"), "{error}");
    }

    #[test]
    fn values_pass_the_checks_of_the_flag() {
        for (text, part) in [
            ("batch_size = 0", "`batch_size`"),
            ("on_existing = \"maybe\"", "invalid value 'maybe'"),
            ("recursive = \"yes\"", "true or false"),
            ("model = [\"a\", \"b\"]", "one value"),
            ("model = { a = 1 }", "unknown table"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn flags_of_every_command_stand_at_the_top() {
        let settings = read("quiet = true\ncolor = \"never\"").unwrap();
        let command = settings.apply(crate::args::command());
        let matches = command.try_get_matches_from(["secateur", "caption", "x"]).unwrap();
        assert!(matches.get_flag("quiet"));
        assert!(read("[caption]\nquiet = true").is_err());
    }

    #[test]
    fn files_become_defaults_that_flags_override() {
        let settings = read("[caption]\nbatch_size = 4\nrecursive = true\ninclude = [\"*.a\"]\n");
        let command = settings.unwrap().apply(crate::args::command());
        let matches = command
            .clone()
            .try_get_matches_from(["secateur", "caption", "x", "--include", "*.b"])
            .unwrap();
        let sub = matches.subcommand().unwrap().1;
        assert!(sub.get_flag("recursive"));
        let include: Vec<&String> = sub.get_many("include").unwrap().collect();
        assert_eq!(include, ["*.b"]);
    }

    #[test]
    fn the_file_of_a_working_folder_sets_what_does_no_harm() {
        let local = |text: &str| {
            let file = Source { path: "secateur.toml".into(), is_local: true };
            let mut settings = Settings::default();
            settings.add(&file, text, &crate::args::command()).map(|()| settings)
        };
        let settings = local("prompt = \"What?\"\n[caption]\nmax_tokens = 9").unwrap();
        assert_eq!(value(&settings, "caption", "prompt").as_deref(), Some("What?"));
        for text in ["[caption]\noutput = \"x\"", "model = \"m\"", "onnx_library = \"x.so\""] {
            let error = local(text).unwrap_err().to_string();
            let parts = ["secateur.toml: `", "--config", "SECATEUR_", "the flag --"];
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
