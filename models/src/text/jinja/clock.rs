//! `strftime_now`: the local time in the letters of `datetime.strftime` with the C library of Linux.

use jiff::ZonedDateTime;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The local time now.
pub(super) fn now(format: &str) -> String {
    strftime(format, &ZonedDateTime::now())
}

/// A time as Python's `datetime` without a zone prints it: `%z` and `%Z` are empty.
fn strftime(format: &str, time: &ZonedDateTime) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let letters = &rest[at + 1..];
        let flag = letters.chars().next().filter(|c| "-_0^#".contains(*c));
        let after = &letters[flag.map_or(0, char::len_utf8)..];
        let letter = after.chars().next();
        match letter.and_then(|letter| field(letter, flag, time)) {
            Some(text) => {
                out.push_str(&text);
                rest = &after[letter.map_or(0, char::len_utf8)..];
            }
            // What is no letter stays as it is.
            None => {
                out.push('%');
                rest = letters;
            }
        }
    }
    out + rest
}

/// The text of one letter.
fn field(letter: char, flag: Option<char>, time: &ZonedDateTime) -> Option<String> {
    let number = |value: i64, width: usize, pad: char| match flag {
        Some('-') => value.to_string(),
        Some('_') => format!("{value:>width$}"),
        Some('0') => format!("{value:0>width$}"),
        _ if pad == ' ' => format!("{value:>width$}"),
        _ => format!("{value:0width$}"),
    };
    let padded = |value: i64, width: usize| Some(number(value, width, '0'));
    let (hour, day) = (i64::from(time.hour()), i64::from(time.day()));
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let weekday = i64::from(time.weekday().to_monday_zero_offset());
    let day_of_year = i64::from(time.day_of_year());
    let iso = time.date().iso_week_date();
    let word = |text: &str| {
        Some(if matches!(flag, Some('^' | '#')) { text.to_uppercase() } else { text.to_owned() })
    };
    let (month_name, day_name) = (MONTHS[time.month() as usize - 1], DAYS[weekday as usize]);
    let whole = |format: &str| Some(strftime(format, time));
    match letter {
        'Y' => padded(i64::from(time.year()), 1),
        'C' => padded(i64::from(time.year()) / 100, 2),
        'y' => padded(i64::from(time.year()) % 100, 2),
        'G' => padded(i64::from(iso.year()), 1),
        'g' => padded(i64::from(iso.year()) % 100, 2),
        'm' => padded(i64::from(time.month()), 2),
        'd' => padded(day, 2),
        'e' => Some(number(day, 2, ' ')),
        'j' => padded(day_of_year, 3),
        'H' => padded(hour, 2),
        'k' => Some(number(hour, 2, ' ')),
        'I' => padded(twelve, 2),
        'l' => Some(number(twelve, 2, ' ')),
        'M' => padded(i64::from(time.minute()), 2),
        'S' => padded(i64::from(time.second()), 2),
        'f' => Some(format!("{:06}", time.subsec_nanosecond() / 1000)),
        's' => Some(time.timestamp().as_second().to_string()),
        'u' => padded(weekday + 1, 1),
        'w' => padded((weekday + 1) % 7, 1),
        'U' => padded((day_of_year - 1 + 7 - (weekday + 1) % 7) / 7, 2),
        'W' => padded((day_of_year - 1 + 7 - weekday) / 7, 2),
        'V' => padded(i64::from(iso.week()), 2),
        'B' => word(month_name),
        'b' | 'h' => word(&month_name[..3]),
        'A' => word(day_name),
        'a' => word(&day_name[..3]),
        'p' if flag == Some('#') => Some(if hour < 12 { "am" } else { "pm" }.into()),
        'p' => Some(if hour < 12 { "AM" } else { "PM" }.into()),
        'P' => Some(if hour < 12 { "am" } else { "pm" }.into()),
        'D' | 'x' => whole("%m/%d/%y"),
        'F' => whole("%Y-%m-%d"),
        'T' | 'X' => whole("%H:%M:%S"),
        'R' => whole("%H:%M"),
        'r' => whole("%I:%M:%S %p"),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'n' => Some("\n".into()),
        't' => Some("\t".into()),
        'z' | 'Z' => Some(String::new()),
        '%' => Some("%".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are those of Python 3.12 on Linux for the same times.
    #[test]
    fn letters_are_those_of_python() {
        let at = |text: &str| text.parse::<ZonedDateTime>().expect("a time");
        let summer = at("2026-07-04T05:06:07.089[Europe/Berlin]");
        for (format, want) in [
            ("%d %b %Y", "04 Jul 2026"),
            ("%-d %B %Y, %-I:%M %p", "4 July 2026, 5:06 AM"),
            ("%F %T %j %U %W %V", "2026-07-04 05:06:07 185 26 26 27"),
            ("%A %a %e %k %l %y %C %u %w", "Saturday Sat  4  5  5 26 20 6 6"),
            ("%D %R %r %c", "07/04/26 05:06 05:06:07 AM Sat Jul  4 05:06:07 2026"),
            ("%f|%z|%Z|%%|%Q|%", "089000|||%|%Q|%"),
            ("%^a %#B %_d %-j %P %h", "SAT JULY  4 185 am Jul"),
        ] {
            assert_eq!(strftime(format, &summer), want, "{format}");
        }
        let noon = at("2024-12-30T12:00:00[America/New_York]");
        assert_eq!(strftime("%I %p %G-%V %-m/%-d", &noon), "12 PM 2025-01 12/30");
    }
}
