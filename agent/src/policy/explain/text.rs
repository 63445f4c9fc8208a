//! Explanations for a person.

use std::fmt;

use super::{Explanation, FlowFacts, RuleTrace};
use crate::policy::source::Direction;

impl fmt::Display for Explanation {
    /// The answer first, then the rules up to the one that decides.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.as_str();
        writeln!(
            formatter,
            "{}: {}, {} ({mode} mode)",
            self.flow, self.verdict, self.outcome
        )?;
        writeln!(formatter, "  {}", self.reason)?;
        let n_asked = self.rule.map_or(self.rules.len(), |deciding| deciding + 1);
        for rule in &self.rules[..n_asked] {
            write!(formatter, "\n{}:{}: ", self.policy, rule.line)?;
            rule.fmt(formatter)?;
        }
        Ok(())
    }
}

impl fmt::Display for FlowFacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.direction, self.src_port) {
            (Some(Direction::Accepted), None) => {
                write!(formatter, "{} accepted", self.protocol)?;
            }
            (Some(Direction::Accepted), Some(port)) => {
                write!(formatter, "{} accepted on port {port}", self.protocol)?;
            }
            (_, Some(port)) => write!(formatter, "{} from port {port}", self.protocol)?,
            (_, None) => write!(formatter, "{}", self.protocol)?,
        }
        let way = match self.direction {
            Some(Direction::Accepted) => "from",
            _ => "to",
        };
        write!(formatter, " {way} {}", self.dst_addr)?;
        if let Some(port) = self.dst_port {
            write!(formatter, " port {port}")?;
        }
        match self.dst_country {
            Some(country) => write!(formatter, " ({country}")?,
            None => write!(formatter, " (country not known")?,
        }
        if let Some(asn) = self.dst_asn {
            write!(formatter, ", AS{asn}")?;
        }
        write!(formatter, ")")?;
        let whose = match self.direction {
            Some(Direction::Accepted) => "by",
            _ => "from",
        };
        match self.uid {
            Some(uid) => write!(formatter, " {whose} user id {uid}")?,
            None => write!(formatter, " {whose} a user who is not known")?,
        }
        if let Some(gid) = self.gid.filter(|gid| Some(*gid) != self.uid) {
            write!(formatter, ", group id {gid}")?;
        }
        match (self.interactive, self.session_addr) {
            (_, Some(address)) => write!(formatter, ", logged in from {address}")?,
            (Some(true), None) => write!(formatter, ", logged in")?,
            _ => {}
        }
        if let Some(exe) = &self.exe {
            write!(formatter, ", {exe}")?;
        }
        if let Some(cgroup) = &self.cgroup {
            write!(formatter, " in {cgroup}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RuleTrace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matches = match self.matches {
            true if self.could() => "could match",
            true => "matches",
            false => "does not match",
        };
        writeln!(
            formatter,
            "rule `{}` ({}) {matches}",
            self.name,
            self.verdict.as_str()
        )?;
        let width = self
            .conditions
            .iter()
            .map(|condition| condition.key.len())
            .max()
            .unwrap_or(0);
        for condition in &self.conditions {
            let holds = match condition.holds {
                true if condition.could => "may",
                true => "yes",
                false => "no ",
            };
            writeln!(
                formatter,
                "  {holds}  {:width$}  {}",
                condition.key, condition.reason
            )?;
        }
        Ok(())
    }
}
