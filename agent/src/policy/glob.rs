//! Globs: patterns for strings of bytes.
//!
//! In every glob `*` is any number of bytes other than `/`, `?` is one character other
//! than that, `[a-z]` one of a set and `[!a-z]` one that is not in the set. In the path of
//! an executable `**` is any number of bytes, `/` included. There is no escape
//! character, because unit names are full of backslashes; a `*` that is meant as
//! such is written `[*]`.
//!
//! A character is one of UTF-8. Names need not be UTF-8: the beginning of a character
//! whose rest is missing counts as one, and so does any other byte that is part of none.
//! As a `*` may end at any byte, what is behind it may begin within a character.

use std::fmt;

use super::problem::Fault;

/// Inclusive ranges of bytes.
type ByteRanges = Vec<(u8, u8)>;

/// One part of a glob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Token {
    /// This byte.
    Byte(u8),
    /// One character whose first byte is in these inclusive ranges, which are sorted and do
    /// not touch. All that is beyond ASCII is in them, or nothing of it.
    Set(ByteRanges),
    /// Any number of bytes other than `/`.
    Star,
    /// Any number of bytes.
    DoubleStar,
}

/// Every byte but `/`.
pub(super) const NOT_SLASH: [(u8, u8); 2] = [(0, b'/' - 1), (b'/' + 1, u8::MAX)];

/// Bytes that go on with a character.
pub(super) const CONTINUATION: (u8, u8) = (0x80, 0xbf);

/// First bytes of a character that goes on, each with how many bytes follow.
pub(super) const LEADS: [(u8, u8, usize); 3] = [(0xc2, 0xdf, 1), (0xe0, 0xef, 2), (0xf0, 0xf4, 3)];

/// Length in bytes of the first character of `name`, which is not empty.
fn first_character(name: &[u8]) -> usize {
    let is_in = |byte: u8, first, last| first <= byte && byte <= last;
    let lead = LEADS
        .iter()
        .find(|&&(first, last, _)| is_in(name[0], first, last));
    let most = lead.map_or(0, |&(_, _, n_more)| n_more);
    let (first, last) = CONTINUATION;
    let more = name[1..].iter().take(most);
    1 + more.take_while(|&&byte| is_in(byte, first, last)).count()
}

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
            match token {
                Token::Byte(own) => {
                    for at in (0..name.len()).filter(|&at| reached[at] && name[at] == *own) {
                        next[at + 1] = true;
                    }
                }
                Token::Set(set) => {
                    let begins = |byte| set.iter().any(|&(a, b)| a <= byte && byte <= b);
                    for at in (0..name.len()).filter(|&at| reached[at] && begins(name[at])) {
                        next[at + first_character(&name[at..])] = true;
                    }
                }
                Token::Star | Token::DoubleStar => {
                    let mut is_within = false;
                    for at in 0..=name.len() {
                        is_within |= reached[at];
                        next[at] = is_within;
                        is_within &= *token == Token::DoubleStar || name.get(at) != Some(&b'/');
                    }
                }
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

    #[test]
    fn a_question_mark_is_a_character() {
        for one in ["a", "ä", "€", "\u{1f98a}"] {
            assert!(glob("x?y", &format!("x{one}y")), "{one}");
            assert!(glob("x[!a-c]?", &format!("xd{one}")), "{one}");
            assert!(!glob("x??y", &format!("x{one}y")), "{one}");
            assert!(glob("x??y", &format!("x{one}{one}y")), "{one}");
            assert!(!glob("x?y", &format!("x{one}{one}y")), "{one}");
            assert_eq!(glob("x[!a-c]y", &format!("x{one}y")), one != "a");
        }
        let broken = |pattern: &str, name: &[u8]| Glob::parse(pattern).unwrap().matches(name);
        // Each of these is one character more: the beginning of one, or part of none.
        for one in [
            &b"\xe4"[..],
            b"\x80",
            b"\xff",
            b"\xe2\x82",
            b"\xf0\x9f\xa6",
            b"\xc0",
        ] {
            let (alone, twice) = ([b"x", one, b"y"].concat(), [b"x", one, one, b"y"].concat());
            assert!(broken("x?y", &alone) && !broken("x??y", &alone), "{one:?}");
            assert!(broken("x??y", &twice) && !broken("x?y", &twice), "{one:?}");
        }
        assert!(broken("x??y", b"x\xc3\xa4\x80y"));
        assert!(broken("?", b"\xc3") && !broken("?", b"\xc3/"));
        // A `*` may take part of a character.
        assert!(broken("*??", "€".as_bytes()));
    }
}
