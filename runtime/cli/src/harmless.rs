//! What `./secateur.toml` may set. That file comes with a folder, and the folder may come from
//! anywhere: it must not decide which files are read, what is run or where anything is written.
//!
//! Invariant: a key that does not stand here is refused there; a new flag is, until somebody has
//! thought about it.

use crate::args::values;

/// What a value must be to do no harm.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Allowed {
    /// Whatever the flag takes.
    Any,
    /// Words; `@FILE` would put a file of the user before the model.
    Words,
    /// A chain or preset; a name of a file would be read.
    Chain,
    /// A count up to the default: a limit may be lowered.
    CountUpTo(u64),
    /// Bytes up to the default.
    BytesUpTo(u64),
}

/// The keys, by flag.
pub(crate) const KEYS: &[(&str, Allowed)] = &[
    // What is asked and how it is answered.
    ("prompt", Allowed::Words),
    ("system", Allowed::Words),
    ("max-tokens", Allowed::Any),
    ("temperature", Allowed::Any),
    ("top-p", Allowed::Any),
    ("top-k", Allowed::Any),
    ("min-p", Allowed::Any),
    ("repetition-penalty", Allowed::Any),
    ("seed", Allowed::Any),
    ("stop", Allowed::Any),
    ("separator", Allowed::Any),
    // Pruning.
    ("prune", Allowed::Chain),
    ("keep", Allowed::Any),
    // Arithmetic, threads, batches.
    ("dtype", Allowed::Any),
    ("device", Allowed::Any),
    ("threads", Allowed::Any),
    ("jobs", Allowed::Any),
    ("batch-size", Allowed::Any),
    // How pictures and videos are seen.
    ("image-aspect", Allowed::Any),
    ("image-backend", Allowed::Any),
    ("scale-max-pixels", Allowed::Any),
    ("scale-min-pixels", Allowed::Any),
    ("fps", Allowed::Any),
    ("max-frames", Allowed::Any),
    ("sampling", Allowed::Any),
    // Limits and failures.
    ("max-pixels", Allowed::CountUpTo(100_000_000)),
    ("max-file-size", Allowed::BytesUpTo(256 << 20)),
    ("item-timeout", Allowed::Any),
    ("max-failures", Allowed::Any),
    ("fail-fast", Allowed::Any),
    ("error-on-empty", Allowed::Any),
    // Display.
    ("color", Allowed::Any),
    ("progress", Allowed::Any),
    ("quiet", Allowed::Any),
    ("verbose", Allowed::Any),
];

/// Why a flag of these values may not stand in `./secateur.toml`; `None` if it may.
pub(crate) fn refusal(flag: &str, flag_values: &[String]) -> Option<String> {
    let Some((_, allowed)) = KEYS.iter().find(|(name, _)| *name == flag) else {
        return Some("may not be set by the file of a working folder".to_owned());
    };
    flag_values.iter().find_map(|value| allowed.refusal(value))
}

impl Allowed {
    fn refusal(self, value: &str) -> Option<String> {
        match self {
            Allowed::Any => None,
            Allowed::Words => {
                value.starts_with('@').then(|| "may hold words there, and no @FILE".to_owned())
            }
            Allowed::Chain => value
                .ends_with(".toml")
                .then(|| "may hold a chain or preset:NAME there, and no file".to_owned()),
            Allowed::CountUpTo(most) => above(values::count(value), most),
            Allowed::BytesUpTo(most) => above(values::bytes(value), most),
        }
    }

    /// The same in a few words, for the reference.
    #[cfg(test)]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Allowed::Any => "yes",
            Allowed::Words => "yes, no `@FILE`",
            Allowed::Chain => "yes, no file",
            Allowed::CountUpTo(_) | Allowed::BytesUpTo(_) => "yes, up to the default",
        }
    }
}

fn above(value: Result<u64, String>, most: u64) -> Option<String> {
    value.is_ok_and(|value| value > most).then(|| "may be lowered there, and not raised".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_a_flag_and_limits_end_at_their_defaults() {
        let command = crate::args::command();
        let flags = |name: &str| {
            let all = command.get_subcommands().chain([&command]);
            let flags = all.flat_map(|c| c.get_arguments());
            flags.filter(|a| a.get_long() == Some(name)).cloned().collect::<Vec<_>>()
        };
        for (name, allowed) in KEYS {
            let found = flags(name);
            assert!(!found.is_empty(), "{name}");
            if matches!(allowed, Allowed::CountUpTo(_) | Allowed::BytesUpTo(_)) {
                let defaults = found.iter().flat_map(|a| a.get_default_values());
                for default in defaults {
                    let default = default.to_str().unwrap().to_owned();
                    assert_eq!(refusal(name, &[default]), None, "{name}");
                }
                assert!(refusal(name, &["1G".into()]).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn what_names_a_file_or_steers_output_is_refused() {
        let is_refused = |flag: &str, value: &str| refusal(flag, &[value.to_owned()]).is_some();
        for (flag, value) in [
            ("output", "x"),
            ("extension", "sh"),
            ("on-existing", "overwrite"),
            ("force", "true"),
            ("model", "m"),
            ("encoder", "x.onnx"),
            ("onnx-library", "x.so"),
            ("recursive", "true"),
            ("follow", "true"),
            ("prompt", "@/etc/passwd"),
            ("prune", "x.toml"),
        ] {
            assert!(is_refused(flag, value), "{flag}");
        }
        for (flag, value) in [("prompt", "What?"), ("prune", "preset:x"), ("max-tokens", "9")] {
            assert!(!is_refused(flag, value), "{flag}");
        }
    }
}
