//! Text to tokens, with the whitespace rules of `trim_blocks` and `lstrip_blocks`.
//!
//! Invariants
//! - Line breaks are `\n` and the last one of the source is dropped, as Jinja does.
//! - A tag's end inside brackets is not one: `{{ {'a': {}} }}`.

use super::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Data(String),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(String),
    Text(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The source as Jinja reads it.
pub(super) fn normal(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<(Token, usize)>,
    /// Whether what came last ended a line.
    starts_line: bool,
}

/// Tokens with their lines.
///
/// # Errors
/// Tags that do not end, characters that are none of the language.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let mut lexer = Lexer { source, at: 0, line: 1, tokens: Vec::new(), starts_line: true };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    Ok(lexer.tokens)
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Syntax { line: self.line, reason: reason.into() }
    }

    /// Goes on behind `bytes` bytes.
    fn skip(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        if !passed.is_empty() {
            self.starts_line = passed.ends_with('\n');
        }
        self.at += bytes;
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// Text up to the next tag, and that tag.
    fn root(&mut self) -> Result<()> {
        let rest = self.rest();
        let begin = rest
            .match_indices('{')
            .find(|(i, _)| matches!(rest.as_bytes().get(i + 1), Some(b'%' | b'{' | b'#')));
        let Some((begin, _)) = begin else {
            self.data(rest);
            self.skip(rest.len());
            return Ok(());
        };
        let (kind, sign) = (rest.as_bytes()[begin + 1], rest.as_bytes().get(begin + 2).copied());
        self.before(&rest[..begin], sign, kind != b'{');
        self.skip(begin + 2);
        if matches!(sign, Some(b'-' | b'+')) {
            self.skip(1);
        }
        match kind {
            b'#' => {
                let length =
                    self.rest().find("#}").ok_or_else(|| self.error("a comment does not end"))?;
                let sign = self.rest()[..length].bytes().last();
                self.skip(length + 2);
                self.after(sign, true);
                Ok(())
            }
            b'%' if self.raw_begins() => self.raw(),
            b'%' => {
                self.push(Token::BlockBegin);
                self.tag("%}", Token::BlockEnd)
            }
            _ => {
                self.push(Token::PrintBegin);
                self.tag("}}", Token::PrintEnd)
            }
        }
    }

    /// Text in front of a tag: `-` strips all whitespace, `+` none, otherwise a block's own
    /// indentation goes.
    fn before(&mut self, text: &str, sign: Option<u8>, is_block: bool) {
        let kept = match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(b'+') => text,
            _ if is_block => {
                let line = text.rfind('\n').map_or(0, |i| i + 1);
                let is_start = line > 0 || self.starts_line;
                if is_start && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
            _ => text,
        };
        self.data(kept);
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
    }

    /// Whitespace behind a tag: `-` strips all, `+` none, otherwise a block's line break goes.
    fn after(&mut self, sign: Option<u8>, is_block: bool) {
        let rest = self.rest();
        let length = match sign {
            Some(b'-') => rest.len() - rest.trim_start_matches(is_space).len(),
            Some(b'+') => 0,
            _ => usize::from(is_block && rest.starts_with('\n')),
        };
        self.skip(length);
    }

    fn raw_begins(&self) -> bool {
        word_tag(self.rest(), "raw").is_some()
    }

    /// Text as it stands between `raw` and `endraw`.
    fn raw(&mut self) -> Result<()> {
        let (length, sign) = word_tag(self.rest(), "raw").unwrap_or_default();
        self.skip(length);
        if sign == Some(b'-') {
            self.after(sign, false);
        }
        let rest = self.rest();
        let end = rest.match_indices("{%").find_map(|(at, _)| {
            let inside = &rest[at + 2..];
            let first = inside.bytes().next().filter(|b| matches!(b, b'-' | b'+'));
            let signed = usize::from(first.is_some());
            let (length, last) = word_tag(&inside[signed..], "endraw")?;
            Some((at, first, 2 + signed + length, last))
        });
        let (at, first, length, last) = end.ok_or_else(|| self.error("`raw` does not end"))?;
        self.before(&rest[..at], first, true);
        self.skip(at + length);
        self.after(last, true);
        Ok(())
    }

    /// The inside of a tag.
    fn tag(&mut self, end: &str, closing: Token) -> Result<()> {
        let mut open: Vec<char> = Vec::new();
        loop {
            let rest = self.rest();
            let spaces = rest.len() - rest.trim_start_matches(is_space).len();
            if spaces > 0 {
                self.skip(spaces);
                continue;
            }
            let Some(c) = rest.chars().next() else {
                return Err(self.error(format!("a tag does not end: `{end}` is missing")));
            };
            let signed = matches!(c, '-' | '+') && rest[1..].starts_with(end);
            // `+}}` is no end of a print.
            let is_end = rest.starts_with(end) || (signed && (c == '-' || end == "%}"));
            if is_end && open.is_empty() {
                self.skip(end.len() + usize::from(signed));
                self.push(closing);
                self.after(signed.then_some(c as u8), end == "%}");
                return Ok(());
            }
            if c.is_ascii_digit() {
                self.number()?;
            } else if c == '_' || c.is_alphabetic() {
                let length =
                    rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.push(Token::Name(rest[..length].to_owned()));
                self.skip(length);
            } else if c == '"' || c == '\'' {
                self.text(c)?;
            } else {
                let known = OPERATORS.into_iter().find(|o| rest.starts_with(o));
                let operator =
                    known.ok_or_else(|| self.error(format!("unexpected character {c:?}")))?;
                match c {
                    '(' | '[' | '{' => open.push(c),
                    ')' | ']' | '}' => {
                        let partner = match c {
                            ')' => '(',
                            ']' => '[',
                            _ => '{',
                        };
                        if open.pop() != Some(partner) {
                            return Err(self.error(format!("unexpected `{c}`")));
                        }
                    }
                    _ => {}
                }
                self.push(Token::Operator(operator));
                self.skip(operator.len());
            }
        }
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let digits = |from: usize| {
            let mut to = from;
            while bytes.get(to).is_some_and(u8::is_ascii_digit)
                || (bytes.get(to) == Some(&b'_')
                    && bytes.get(to + 1).is_some_and(u8::is_ascii_digit)
                    && to > from)
            {
                to += 1;
            }
            to
        };
        let too_large = || self.error("a number is too large");
        let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
        let lower = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        if let Some((_, radix)) = prefixes.into_iter().find(|(p, _)| *p == lower) {
            let length = rest[2..]
                .find(|c: char| c != '_' && !c.is_digit(radix))
                .map_or(rest.len(), |n| n + 2);
            let value = i128::from_str_radix(&rest[2..length].replace('_', ""), radix);
            let value = value.map_err(|_| too_large())?;
            self.push(Token::Int(value));
            self.skip(length);
            return Ok(());
        }
        let whole = digits(0);
        let mut end = whole;
        // `a.1.2` are two indices.
        let is_index = self.source[..self.at].ends_with('.');
        if !is_index
            && bytes.get(end) == Some(&b'.')
            && bytes.get(end + 1).is_some_and(u8::is_ascii_digit)
        {
            end = digits(end + 1);
        }
        if !is_index && matches!(bytes.get(end), Some(b'e' | b'E')) {
            let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if bytes.get(signed).is_some_and(u8::is_ascii_digit) {
                end = digits(signed);
            }
        }
        let text = rest[..end].replace('_', "");
        let token = if end == whole {
            Token::Int(text.parse().map_err(|_| too_large())?)
        } else {
            Token::Float(text.parse().map_err(|_| too_large())?)
        };
        self.push(token);
        self.skip(end);
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut out = String::new();
        let mut letters = rest.char_indices().skip(1);
        while let Some((at, c)) = letters.next() {
            if c == quote {
                self.push(Token::Text(out));
                self.skip(at + 1);
                return Ok(());
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let Some((at, escape)) = letters.next() else { break };
            let code = |digits: &str| {
                let radix = if escape.is_ascii_digit() { 8 } else { 16 };
                u32::from_str_radix(digits, radix).ok().and_then(char::from_u32)
            };
            let plain = match escape {
                'n' => Some('\n'),
                't' => Some('\t'),
                'r' => Some('\r'),
                '\\' | '\'' | '"' => Some(escape),
                'a' => Some('\u{7}'),
                'b' => Some('\u{8}'),
                'f' => Some('\u{c}'),
                'v' => Some('\u{b}'),
                '\n' => continue,
                _ => None,
            };
            if let Some(plain) = plain {
                out.push(plain);
                continue;
            }
            let digits = match escape {
                'x' => rest.get(at + 1..at + 3),
                'u' => rest.get(at + 1..at + 5),
                'U' => rest.get(at + 1..at + 9),
                '0'..='7' => {
                    let end = (at..at + 3)
                        .find(|i| !matches!(rest.as_bytes().get(*i), Some(b'0'..=b'7')));
                    rest.get(at..end.unwrap_or(at + 3))
                }
                _ => {
                    // Python keeps what it does not know.
                    out.extend(['\\', escape]);
                    continue;
                }
            };
            let taken = digits.filter(|d| d.chars().all(|c| c.is_ascii_hexdigit()));
            let taken = taken.and_then(|digits| Some((digits, code(digits)?)));
            let (taken, c) =
                taken.ok_or_else(|| self.error("a text holds an escape that is none"))?;
            out.push(c);
            let more = if escape.is_ascii_digit() { taken.len() - 1 } else { taken.len() };
            letters.by_ref().take(more).for_each(drop);
        }
        Err(self.error("a text does not end"))
    }
}

/// Whether a tag's inside is one word: its length with the end of the tag, and the sign there.
fn word_tag(rest: &str, word: &str) -> Option<(usize, Option<u8>)> {
    let tail = rest.trim_start_matches(is_space).strip_prefix(word)?.trim_start_matches(is_space);
    let sign = tail.bytes().next().filter(|b| matches!(b, b'-' | b'+'));
    let end = tail[usize::from(sign.is_some())..].strip_prefix("%}")?;
    Some((rest.len() - end.len(), sign))
}

/// What Python's `\s` takes.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
