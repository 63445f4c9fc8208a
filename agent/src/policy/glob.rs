//! Globs: patterns for strings of bytes.
//!
//! In every glob `*` is any number of bytes other than `/`, `?` is one of them,
//! `[a-z]` one of a set and `[!a-z]` one that is not in the set. In the path of an
//! executable `**` is any number of bytes, `/` included. There is no escape
//! character, because unit names are full of backslashes; a `*` that is meant as
//! such is written `[*]`.

use std::fmt;

use super::problem::Fault;

/// Inclusive ranges of bytes.
type ByteRanges = Vec<(u8, u8)>;

/// One part of a glob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Token {
    /// This byte.
    Byte(u8),
    /// One byte out of these inclusive ranges, which are sorted and do not touch.
    Set(ByteRanges),
    /// Any number of bytes other than `/`.
    Star,
    /// Any number of bytes.
    DoubleStar,
}

/// Every byte but `/`.
pub(super) const NOT_SLASH: [(u8, u8); 2] = [(0, b'/' - 1), (b'/' + 1, u8::MAX)];

/// A pattern for a string of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob {
    text: String,
    tokens: Vec<Token>,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// More than two `*` in a row, or a malformed set.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            tokens.push(match byte {
                b'*' if rest.first() == Some(&b'*') => {
                    let stars = rest.iter().take_while(|&&byte| byte == b'*').count();
                    if stars > 1 {
                        return Err(
                            Fault::new(format!("`{text}` has more than two `*` in a row"))
                                .help("`*` is anything but `/`, `**` is anything"),
                        );
                    }
                    rest = &rest[1..];
                    Token::DoubleStar
                }
                b'*' => Token::Star,
                b'?' => Token::Set(NOT_SLASH.to_vec()),
                b'[' => {
                    let (set, after) = parse_set(rest, text)?;
                    rest = after;
                    Token::Set(set)
                }
                0 => return Err(Fault::new("a name cannot contain a NUL byte")),
                byte => Token::Byte(byte),
            });
        }
        Ok(Self {
            text: text.to_owned(),
            tokens,
        })
    }

    /// As the policy writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parts, in order.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Length in bytes of the shortest name that matches.
    pub(super) fn shortest(&self) -> usize {
        let is_one = |token: &&Token| matches!(token, Token::Byte(_) | Token::Set(_));
        self.tokens.iter().filter(is_one).count()
    }

    /// True when the whole of `name` matches. Walks the parts one by one; the
    /// tables of the automaton are tested against this.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        // `reached[i]`: the tokens so far can match the first `i` bytes.
        let mut reached = vec![false; name.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; name.len() + 1];
            for end in 0..=name.len() {
                let byte = end.checked_sub(1).map(|last| name[last]);
                next[end] = match (token, byte) {
                    (Token::Byte(own), Some(byte)) => reached[end - 1] && *own == byte,
                    (Token::Set(set), Some(byte)) => {
                        reached[end - 1] && set.iter().any(|&(a, b)| a <= byte && byte <= b)
                    }
                    (Token::Star, Some(byte)) => reached[end] || next[end - 1] && byte != b'/',
                    (Token::DoubleStar, Some(_)) => reached[end] || next[end - 1],
                    (Token::Star | Token::DoubleStar, None) => reached[0],
                    (Token::Byte(_) | Token::Set(_), None) => false,
                };
            }
            reached = next;
        }
        reached[name.len()]
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.text)
    }
}

/// Reads a set behind its `[`; returns it with what follows its `]`.
fn parse_set<'t>(rest: &'t [u8], whole: &str) -> Result<(ByteRanges, &'t [u8]), Fault> {
    let unclosed = || {
        Fault::new(format!("`{whole}` has a `[` without its `]`"))
            .help("write `[[]` for the character itself")
    };
    let (negated, mut rest) = match rest {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut members = [false; 256];
    // As everywhere, a `]` that comes first is a member.
    let mut is_first = true;
    loop {
        let (first, last, after) = match rest {
            [b']', after @ ..] if !is_first => {
                rest = after;
                break;
            }
            [first, b'-', last, after @ ..] if *last != b']' => (*first, *last, after),
            [first, after @ ..] => (*first, *first, after),
            [] => return Err(unclosed()),
        };
        if !first.is_ascii() || !last.is_ascii() {
            return Err(Fault::new(format!(
                "`{whole}` has a `[...]` with more than ASCII in it"
            ))
            .help("use `*`, or list the names in full"));
        }
        if first > last {
            return Err(Fault::new(format!(
                "`{whole}` has the range `{}-{}`, which ends before it begins",
                char::from(first),
                char::from(last)
            )));
        }
        members[usize::from(first)..=usize::from(last)].fill(true);
        is_first = false;
        rest = after;
    }
    if !negated && members[usize::from(b'/')] {
        return Err(Fault::new(format!("`{whole}` has a `/` inside `[...]`"))
            .help("only `**` matches `/`, or `/` itself"));
    }
    let mut ranges = ByteRanges::new();
    for byte in 0..=u8::MAX {
        if byte != b'/' && members[usize::from(byte)] != negated {
            match ranges.last_mut() {
                Some((_, last)) if u16::from(*last) + 1 == u16::from(byte) => *last = byte,
                _ => ranges.push((byte, byte)),
            }
        }
    }
    Ok((ranges, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(pattern: &str, name: &str) -> bool {
        Glob::parse(pattern).unwrap().matches(name.as_bytes())
    }

    #[test]
    fn globs() {
        assert!(glob("/usr/*/x", "/usr/bin/x"));
        assert!(!glob("/usr/*/x", "/usr/local/bin/x"));
        assert!(glob("/usr/**/x", "/usr/local/bin/x"));
        assert!(glob("/usr/**", "/usr/"));
        assert!(glob("a?c", "abc"));
        assert!(!glob("a?c", "a/c"));
        assert!(!glob("a?c", "ac"));
        assert!(glob("[a-c]x", "bx"));
        assert!(!glob("[!a-c]x", "bx"));
        assert!(!glob("[!a]x", "/x"));
        assert!(glob("[]]", "]"));
        assert!(glob("[a-]", "-"));
        assert!(glob("[*]", "*"));
        assert!(!glob("[*]", "a"));
        assert!(glob(r"a\x2db", r"a\x2db"));
        assert!(glob("", ""));
        assert!(glob("*", ""));
        assert!(!glob("a.b", "axb"));
        assert!(glob("*", "a\n\u{e4}"));
    }
}
