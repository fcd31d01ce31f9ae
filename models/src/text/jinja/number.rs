//! Numbers as Python reads, prints and rounds them.

/// `repr(float)`: the shortest digits that read back as the same number.
pub(super) fn repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// `int(text, base)`.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim();
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefix = [(16, "0x"), (8, "0o"), (2, "0b")].into_iter().find(|(_, p)| lower.starts_with(p));
    let (base, digits) = match prefix {
        Some((of, _)) if base == of || base == 0 => (of, &lower[2..]),
        _ if base == 0 => (10, lower.as_str()),
        _ => (base, lower.as_str()),
    };
    let digits = without_underscores(digits)?;
    if !(2..=36).contains(&base) || digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i128::from_str_radix(&digits, base).ok()?;
    Some(if is_negative { -value } else { value })
}

/// `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = without_underscores(text.trim())?;
    // Rust takes the same words and digits.
    text.parse().ok()
}

/// Underscores may stand between digits.
fn without_underscores(text: &str) -> Option<String> {
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    Some(text.replace('_', ""))
}

/// `round(x, digits)`: to the nearest, of two the even one.
pub(super) fn round(x: f64, digits: i128) -> f64 {
    if !x.is_finite() || digits > 300 {
        return x;
    }
    if digits >= 0 {
        // Printing with a precision rounds the exact value.
        return format!("{x:.*}", digits as usize).parse().unwrap_or(x);
    }
    let power = 10f64.powi(i32::try_from(-digits).unwrap_or(i32::MAX));
    if power.is_infinite() { 0.0 } else { (x / power).round_ties_even() * power }
}

/// `round(x, digits)` of a whole number.
pub(super) fn round_int(x: i128, digits: i128) -> Option<i128> {
    if digits >= 0 {
        return Some(x);
    }
    let Some(power) = u32::try_from(-digits).ok().and_then(|d| 10i128.checked_pow(d)) else {
        return Some(0);
    };
    let (floor, rest) = (x.div_euclid(power), x.rem_euclid(power));
    let is_up = rest * 2 > power || (rest * 2 == power && floor % 2 != 0);
    (floor + i128::from(is_up)).checked_mul(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (x, text) in [
            (1.0, "1.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(repr(x), text);
        }
    }

    #[test]
    fn numbers_are_rounded_to_even() {
        assert_eq!((round(2.5, 0), round(2.675, 2), round(1250.0, -2)), (2.0, 2.67, 1200.0));
        assert_eq!((round_int(1250, -2), round_int(-150, -2)), (Some(1200), Some(-200)));
    }
}
