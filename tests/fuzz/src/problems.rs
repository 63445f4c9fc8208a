//! Lists of problems: each has to be of use to whoever wrote the text.

use trefoil::policy::Problems;

/// Panics if one of the problems has no place in the text, or cannot be printed.
pub fn check(text: &str, problems: &Problems) {
    assert!(!problems.list.is_empty(), "refused without a reason");
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in &problems.list {
        let line = (problem.place.line as usize)
            .checked_sub(1)
            .and_then(|index| lines.get(index))
            .unwrap_or_else(|| panic!("no such line: {problem:?}"));
        // Behind the last character is where something is missing.
        let columns = 1..=line.chars().count() + 1;
        assert!(
            columns.contains(&(problem.place.column as usize)),
            "no such column: {problem:?}"
        );
        assert!(!problem.message.is_empty(), "{problem:?}");
    }
    let mut sorted = problems.list.clone();
    sorted.sort();
    sorted.dedup();
    assert!(sorted == problems.list, "out of order: {problems:?}");
    // A few words for each mistake, however long the text is.
    assert!(
        problems.to_string().len() <= 4096 + problems.list.len() * 1024 + 8 * text.len(),
        "{} bytes about {} bytes",
        problems.to_string().len(),
        text.len()
    );
}
