//! Text as the source of a manual page: what has a meaning there is escaped.

/// Longest line of running text.
const WIDTH: usize = 78;

/// Running text, one sentence or part of one a line. Text between backticks is
/// literal, and bold.
pub fn prose(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut is_code = false;
    for word in text.split_whitespace() {
        let mut escaped = String::new();
        for (index, part) in word.split('`').enumerate() {
            if index > 0 {
                is_code = !is_code;
                escaped += if is_code { "\\fB" } else { "\\fP" };
            }
            escaped += &if is_code {
                literal_text(part)
            } else {
                plain(part)
            };
        }
        // A font must not last over the end of a line, where a macro may follow.
        let ends_sentence = !is_code && word.trim_end_matches([')', '"']).ends_with(['.', '?']);
        if word.ends_with("...") {
            escaped += "\\&";
        }
        if !line.is_empty() && line.len() + 1 + escaped.len() > WIDTH && !is_within_code(&line) {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += &escaped;
        if ends_sentence {
            lines.push(std::mem::take(&mut line));
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
        .iter()
        .map(|line| format!("{}\n", guarded(line)))
        .collect()
}

fn is_within_code(line: &str) -> bool {
    line.matches("\\fB").count() != line.matches("\\fP").count()
}

/// A literal display: as it is written, character by character.
pub fn display(text: &str) -> String {
    let mut out = ".Bd -literal -offset indent\n".to_owned();
    for line in text.lines() {
        out += &guarded(&literal_text(line));
        out.push('\n');
    }
    out + ".Ed\n"
}

/// One argument of a macro.
pub fn argument(text: &str) -> String {
    let text = literal_text(text).replace('"', "\\(dq");
    if text.is_empty() || text.contains(' ') {
        format!("\"{text}\"")
    } else {
        text
    }
}

/// A line that begins with a control character is no request.
fn guarded(line: &str) -> String {
    if line.starts_with(['.', '\'']) {
        format!("\\&{line}")
    } else {
        line.to_owned()
    }
}

fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\\' => "\\e".to_owned(),
            _ if c.is_ascii() => c.to_string(),
            _ => format!("\\[u{:04X}]", u32::from(c)),
        })
        .collect()
}

/// As [`plain`], but nothing is replaced by what looks better in print: this may
/// be copied into a shell.
fn literal_text(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\\' => "\\e".to_owned(),
            '-' => "\\-".to_owned(),
            '\'' => "\\(aq".to_owned(),
            '`' => "\\(ga".to_owned(),
            '^' => "\\(ha".to_owned(),
            '~' => "\\(ti".to_owned(),
            _ if c.is_ascii() => c.to_string(),
            _ => format!("\\[u{:04X}]", u32::from(c)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_is_escaped() {
        assert_eq!(
            display(".x -y 'z' \\"),
            ".Bd -literal -offset indent\n\\&.x \\-y \\(aqz\\(aq \\e\n.Ed\n"
        );
        assert_eq!(argument("a \"b\""), "\"a \\(dqb\\(dq\"");
        assert_eq!(argument("--to"), "\\-\\-to");
    }

    #[test]
    fn running_text_has_its_sentences_on_lines_of_their_own() {
        assert_eq!(
            prose("One (`a-b c`). Two → three"),
            "One (\\fBa\\-b c\\fP).\nTwo \\[u2192] three\n"
        );
    }
}
