//! Values with units as people type them: counts, bytes, times, failures.

use std::fmt;
use std::time::Duration;

fn number_and_unit(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let digits = text[..end].replace('_', "");
    let number: f64 =
        digits.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

fn whole(number: f64, factor: f64, text: &str) -> Result<u64, String> {
    let value = number * factor;
    if value > 9.0e15 {
        return Err(format!("`{text}` is too large"));
    }
    Ok(value.round() as u64)
}

/// `1500`, `100k`, `100M`, `2G`.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit {
        "" => 1.0,
        "k" | "K" => 1e3,
        "m" | "M" => 1e6,
        "g" | "G" => 1e9,
        other => return Err(format!("unknown unit `{other}`; known are k, M, G")),
    };
    whole(number, factor, text)
}

/// `4096`, `256MiB`, `1GB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        other => {
            return Err(format!("unknown unit `{other}`; known are KB, MB, GB, KiB, MiB, GiB"));
        }
    };
    whole(number, factor, text)
}

/// `120s`, `2m`, `500ms`, `1.5h`; a bare number counts seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1e3,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        other => return Err(format!("unknown unit `{other}`; known are ms, s, m, h")),
    };
    if !(seconds > 0.0 && seconds < 1e9) {
        return Err(format!("`{text}` is not a time above zero"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// How many failed items stop a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MaxFailures {
    /// More than that many.
    Count(usize),
    /// More than that share of the items tried, once twenty were tried.
    Percent(f64),
}

impl MaxFailures {
    /// Whether `failed` of `tried` items are too many.
    pub(crate) fn is_exceeded(self, failed: usize, tried: usize) -> bool {
        match self {
            MaxFailures::Count(most) => failed > most,
            MaxFailures::Percent(most) => {
                tried >= 20 && failed as f64 * 100.0 > most * tried as f64
            }
        }
    }
}

impl fmt::Display for MaxFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxFailures::Count(most) => write!(f, "{most}"),
            MaxFailures::Percent(most) => write!(f, "{most}%"),
        }
    }
}

/// `10` or `5%`.
pub(crate) fn max_failures(text: &str) -> Result<MaxFailures, String> {
    if let Some(percent) = text.trim().strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| format!("`{text}` is not a share"))?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("`{text}` is not between 0% and 100%"));
        }
        return Ok(MaxFailures::Percent(percent));
    }
    text.trim()
        .parse()
        .map(MaxFailures::Count)
        .map_err(|_| format!("`{text}` is neither a number nor a share such as 5%"))
}

/// A number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auto {
    /// The command chooses.
    Auto,
    /// That many.
    Number(usize),
}

/// `auto` or a number of at least 1.
pub(crate) fn auto(text: &str) -> Result<Auto, String> {
    match text.trim() {
        "auto" => Ok(Auto::Auto),
        digits => match digits.parse() {
            Ok(0) | Err(_) => Err(format!("`{text}` is neither `auto` nor a number from 1")),
            Ok(number) => Ok(Auto::Number(number)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!(count("100M"), Ok(100_000_000));
        assert_eq!(count("1_000"), Ok(1000));
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("1GB"), Ok(1_000_000_000));
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(max_failures("5%"), Ok(MaxFailures::Percent(5.0)));
        assert_eq!(auto("auto"), Ok(Auto::Auto));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for text in ["", "M", "-1", "1x", "1e30", "nan"] {
            assert!(count(text).is_err(), "{text}");
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["0", "0s", "s", "5y"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["-1", "101%", "x%", "many"] {
            assert!(max_failures(text).is_err(), "{text}");
        }
        assert!(auto("0").is_err());
    }

    #[test]
    fn a_share_of_failures_waits_for_twenty_items() {
        let most = MaxFailures::Percent(10.0);
        assert!(!most.is_exceeded(5, 5));
        assert!(most.is_exceeded(3, 20));
        assert!(!most.is_exceeded(2, 20));
        assert!(MaxFailures::Count(0).is_exceeded(1, 1));
    }
}
