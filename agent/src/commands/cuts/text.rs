//! Text of what would be cut: sessions one by one, the rest by owner and
//! destination.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
};

use super::{Cuts, Fate, session::Whose};
use crate::{
    policy::Mode,
    report::words::{clean, count, endpoint},
};

/// Lines that each part may have before the rest is a number.
const MOST_LINES: usize = 10;

impl Cuts {
    /// All of it for a person.
    pub fn text(&self, mode: Mode) -> String {
        let n_cut = self.would_cut.len();
        let would = match mode {
            Mode::Enforce => "enforcing it now would cut",
            Mode::Report => "if it were enforced now, it would cut",
        };
        let open = count(self.open_connections as u64, "open connection");
        let mut text = match (n_cut, self.open_connections) {
            (0, 0) => format!("{would} nothing: no connection is open\n"),
            (0, _) => format!("{would} none of {open}\n"),
            _ => format!("{would} {n_cut} of {open}:\n"),
        };
        let of = |whose| {
            self.would_cut
                .iter()
                .filter(move |fate| fate.whose == whose)
        };
        let mut n_left = 0;
        for (whose, title) in [
            (Whose::Yours, "YOUR SESSION"),
            (Whose::Login, "login session"),
        ] {
            for fate in of(whose).take(MOST_LINES) {
                text += &format!("  {title}: {}: {}\n", session(fate), judgement(fate));
            }
            n_left += of(whose).skip(MOST_LINES).count();
        }
        let groups = groups(of(Whose::Other));
        for group in groups.iter().take(MOST_LINES) {
            text += &format!("  {group}\n");
        }
        n_left += groups
            .iter()
            .skip(MOST_LINES)
            .map(|group| group.n)
            .sum::<usize>();
        if n_left > 0 {
            text += &format!("  ... and {n_left} more; `trefoil check --json` lists all\n");
        }
        for fate in self.stays.iter().take(MOST_LINES) {
            text += &format!(
                "your session stays: {}: {}\n",
                session(fate),
                judgement(fate)
            );
        }
        if let Some(fate) = of(Whose::Yours).next() {
            text += &way_out(fate);
        }
        if self.unread_processes > 0 {
            let processes = match self.unread_processes {
                1 => "1 process".to_owned(),
                n => format!("{n} processes"),
            };
            text += &format!(
                "{processes} could not be looked into: connections of theirs may be missing here, \
                 or have no name\n"
            );
        }
        if self.unread_namespaces > 0 {
            text += &format!(
                "{} could not be looked at in time: connections in there are missing here\n",
                count(self.unread_namespaces as u64, "network namespace")
            );
        }
        text
    }

    /// The same in one line, for the journal.
    pub fn summary(&self) -> String {
        let n = |whose| {
            self.would_cut
                .iter()
                .filter(|fate| fate.whose == whose)
                .count()
        };
        let n_sessions = n(Whose::Yours) + n(Whose::Login);
        let sessions = match n_sessions {
            0 => String::new(),
            n => format!(", {} among them", count(n as u64, "login session")),
        };
        let first = self.would_cut.first().map_or(String::new(), |fate| {
            format!("; the first: {}", Group::of(fate))
        });
        let unread = match self.unread_namespaces {
            0 => String::new(),
            n => format!(
                "; those of {} are not counted, since the start does not wait for them",
                count(n as u64, "network namespace")
            ),
        };
        format!(
            "enforcing the policy cuts {} of {}{sessions}{first}{unread}",
            self.would_cut.len(),
            count(self.open_connections as u64, "open connection")
        )
    }
}

/// `ssh from 203.0.113.10:51234 (CN), sshd[4711]`
fn session(fate: &Fate) -> String {
    let kind = match name(fate) {
        Some(name) if name.starts_with("sshd") || name == "dropbear" => "ssh ",
        _ => "",
    };
    let way = if fate.direction.is_some() || !kind.is_empty() {
        "from"
    } else {
        "with"
    };
    let far = endpoint(fate.dst_addr, fate.dst_port, &fate.protocol);
    format!("{kind}{way} {far}{}, {}", country(fate), who(fate))
}

/// Connections that are the same to a reader.
struct Group<'a> {
    sample: &'a Fate,
    n: usize,
    one_process: bool,
}

impl<'a> Group<'a> {
    fn of(sample: &'a Fate) -> Self {
        Self {
            sample,
            n: 1,
            one_process: true,
        }
    }
}

/// Returns the key that the connections of a group have in common.
fn kind(fate: &Fate) -> impl Eq + Hash + use<'_> {
    // The port of a client says nothing.
    let port = match fate.direction {
        Some(_) => fate.src_port,
        None => fate.dst_port,
    };
    let far = (fate.direction, fate.dst_addr, &fate.protocol, port);
    let judged = (fate.verdict, &fate.rule);
    (&fate.cgroup, &fate.exe, far, judged)
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = self.sample;
        if self.n > 1 {
            write!(f, "{} × ", self.n)?;
        }
        let who = if self.one_process {
            who(fate)
        } else {
            kind_of(fate)
        };
        match fate.direction {
            Some(_) => write!(
                f,
                "{who} with its client {}{} on port {}/{}",
                fate.dst_addr,
                country(fate),
                fate.src_port,
                fate.protocol
            )?,
            None => {
                let far = endpoint(fate.dst_addr, fate.dst_port, &fate.protocol);
                write!(f, "{who} to {far}{}", country(fate))?;
            }
        }
        write!(f, ": {}", judgement(fate))
    }
}

/// Groups, the largest first.
fn groups<'a>(fates: impl Iterator<Item = &'a Fate>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut places: HashMap<_, usize> = HashMap::new();
    for fate in fates {
        match places.entry(kind(fate)) {
            Entry::Occupied(place) => {
                let group = &mut groups[*place.get()];
                group.n += 1;
                group.one_process &= group.sample.pid == fate.pid;
            }
            Entry::Vacant(place) => {
                place.insert(groups.len());
                groups.push(Group::of(fate));
            }
        }
    }
    groups.sort_by_key(|group| Reverse(group.n));
    groups
}

fn name(fate: &Fate) -> Option<&str> {
    match &fate.exe {
        Some(exe) => exe.rsplit('/').next(),
        None => fate.comm.as_deref(),
    }
}

/// `curl[4711] (shop.service)`
fn who(fate: &Fate) -> String {
    match fate.pid {
        Some(pid) => described(fate, &format!("[{pid}]")),
        None => "a process that is not known".to_owned(),
    }
}

/// `curl (shop.service)`
fn kind_of(fate: &Fate) -> String {
    described(fate, "")
}

fn described(fate: &Fate, pid: &str) -> String {
    let name = clean(name(fate).unwrap_or("unknown process"));
    match fate.user_unit.as_ref().or(fate.unit.as_ref()) {
        Some(unit) => format!("{name}{pid} ({})", clean(unit)),
        None => format!("{name}{pid}"),
    }
}

fn country(fate: &Fate) -> String {
    fate.dst_country
        .map_or(String::new(), |country| format!(" ({country})"))
}

fn judgement(fate: &Fate) -> String {
    match &fate.rule {
        Some(rule) => format!("{} by rule \"{}\"", fate.verdict, clean(rule)),
        None => fate.verdict.to_owned(),
    }
}

/// A rule that would keep a session.
fn way_out(fate: &Fate) -> String {
    let prefix = if fate.dst_addr.is_ipv4() { 32 } else { 128 };
    let from = match &fate.exe {
        // Rules on executables do not match what is no file of the host.
        Some(exe) if fate.exe_note.is_none() => format!("from = {{ exe = \"{}\" }}, ", clean(exe)),
        _ => String::new(),
    };
    format!(
        "your session stays with a rule before all others that approves\n  {from}to = {{ networks = \
         [\"{}/{prefix}\"] }}\n",
        fate.dst_addr
    )
}
