//! Owner that a rule is for.

use crate::{
    observed::Source,
    policy::pattern::{ContainerPattern, ExecutablePattern, UnitPattern},
};

/// Owner, as `from` says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A container, and every program in it.
    Container(String),
    /// A unit, and every program in it.
    Unit(String),
    /// A program, a user, or both; at least one.
    Process {
        /// Path of the executable.
        exe: Option<String>,
        /// User id.
        uid: Option<u32>,
    },
}

impl Owner {
    /// Returns the owner that a rule for flows of this source is for.
    ///
    /// A unit that is made anew each time, under another name, says nothing about
    /// tomorrow: there it is the program and its user, if they can be named.
    ///
    /// # Errors
    ///
    /// Why there can be no rule.
    pub fn of(source: &Source) -> Result<Self, &'static str> {
        if let Some(container) = container(source) {
            return Ok(Self::Container(container));
        }
        let exe = source.exe_for_rules().known().map(literal);
        let exe = exe.filter(|pattern| ExecutablePattern::parse(pattern).is_ok());
        let unit = unit(source);
        match (unit, exe, source.uid) {
            (Some(unit), None, _) => Ok(Self::Unit(unit)),
            (Some(unit), Some(_), _) if !is_transient(&unit) => Ok(Self::Unit(unit)),
            (None, None, None) => Err("neither unit, program nor user is known"),
            (_, exe, uid) => Ok(Self::Process { exe, uid }),
        }
    }
}

/// The container as rules name it, if a rule that names it matches.
fn container(source: &Source) -> Option<String> {
    let path = source.cgroup_for_rules().known()?;
    let name = literal(source.container.as_deref()?);
    let pattern = ContainerPattern::parse(&name).ok()?;
    pattern.matches(path.as_bytes()).then_some(name)
}

/// The unit as rules name it, if a rule that names it matches.
fn unit(source: &Source) -> Option<String> {
    let path = source.cgroup_for_rules().known()?;
    let names = [&source.user_unit, &source.unit].into_iter().flatten();
    names
        .map(|name| literal(name))
        .find(|name| UnitPattern::parse(name).is_ok_and(|unit| unit.matches(path.as_bytes())))
}

/// True for a unit that a program made for itself or a login, and whose name has a
/// number in it that is another one next time.
pub fn is_transient(unit: &str) -> bool {
    let name = unit.rsplit('/').next().unwrap_or(unit);
    match name.rsplit_once('.') {
        Some(("init", "scope")) => false,
        // Named after the container that it is, and that somebody named.
        Some((stem, "scope")) => !stem.starts_with("machine-"),
        Some((stem, "service")) => {
            let number = stem.strip_prefix("run-").unwrap_or_default();
            let is_number = |number: &str| number.starts_with(|c: char| c.is_ascii_digit());
            let is_random =
                |number: &str| number.len() == 32 && number.chars().all(|c| c.is_ascii_hexdigit());
            number.strip_prefix('r').is_some_and(is_random)
                || number.strip_prefix(['u', 'p']).is_some_and(is_number)
        }
        _ => false,
    }
}

/// A glob that matches this name alone.
fn literal(name: &str) -> String {
    let mut glob = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '*' | '?' | '[' => glob.extend(['[', c, ']']),
            c => glob.push(c),
        }
    }
    glob
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_new_each_time() {
        for yes in [
            "session-3.scope",
            "run-r0123abc.scope",
            "run-u17.service",
            "run-r0123456789abcdef0123456789abcdef.service",
            "run-p12-i34.service",
            "user@1000.service/app-x-123.scope",
        ] {
            assert!(is_transient(yes), "{yes}");
        }
        for no in [
            "init.scope",
            "machine-web.scope",
            "run-parts.service",
            "run-reports.service",
            "export@7.service",
            "user@1000.service/backup.service",
        ] {
            assert!(!is_transient(no), "{no}");
        }
    }

    #[test]
    fn literals_match_themselves_alone() {
        let pattern = |path| ExecutablePattern::parse(&literal(path)).unwrap();
        for path in ["/opt/a*b", "/opt/[x]", "/opt/what?", r"/opt/\x2d", "/opt/]"] {
            assert!(pattern(path).glob().matches(path.as_bytes()), "{path}");
        }
        assert!(!pattern("/opt/a*b").glob().matches(b"/opt/axb"));
        assert!(!pattern("/opt/[x]").glob().matches(b"/opt/x"));
    }
}
