//! Text from outside, made harmless for terminals: a file name or a caption must not move the
//! cursor, recolour the screen or reverse the reading order.

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with every harmful character but newline and tab shown as its code.
pub(crate) fn clean(text: &str) -> String {
    escape(text, |c| c != '\n' && c != '\t')
}

/// The text on one line: newlines become spaces, everything else harmful its code.
pub(crate) fn clean_line(text: &str) -> String {
    let spaced: String = text
        .trim()
        .chars()
        .map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c })
        .collect();
    escape(&spaced, |_| true)
}

fn escape(text: &str, also: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) && also(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\u{9b}c\u{7f}"), "a\\u{1b}[31mb\\u{9b}c\\u{7f}");
        assert_eq!(clean("two\nlines\there"), "two\nlines\there");
        assert_eq!(clean("gpj\u{202e}exe"), "gpj\\u{202e}exe");
        assert_eq!(clean("naïve 図"), "naïve 図");
    }

    #[test]
    fn a_line_stays_a_line() {
        assert_eq!(clean_line(" a\r\nb\u{7} "), "a  b\\u{7}");
    }
}
