//! Login sessions that exist now, and the connection that each came by.
//!
//! The first process of a session is root's, a child of the login service, and holds the connection
//! that the service has accepted, as sshd's does. A session without such a process, or with several
//! such connections, is left out. Nobody else counts: any user can have a connection look accepted, by
//! listening at the port that it was made from, and cron starts sessions with programs of users.

use std::{collections::HashMap, io, net::SocketAddr, path::Path};

use super::{Connection, Connections, Effort, audit_session, holder::ancestors, table};

/// A login session, and the connection that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    /// Audit session.
    pub session: u32,
    /// Near end.
    pub local: SocketAddr,
    /// Far end.
    pub peer: SocketAddr,
}

/// Login sessions of the caller's network namespace: in another one, somebody else may say who
/// the far end is. `proc` is `/proc` but for tests.
///
/// # Errors
///
/// If the processes cannot be listed at all.
pub fn logins(proc: &Path) -> io::Result<Vec<Login>> {
    let effort = Effort {
        namespaces: 1,
        ..Effort::LITTLE
    };
    let found = Connections::read(proc, effort)?;
    let starts = |pid| starts_session(proc, pid);
    Ok(of_connections(&found.list, starts))
}

/// True if the parent of a process is a service: in no session. A process whose parent has ended, and
/// whose parent is pid 1 since then, may be any of a session.
fn starts_session(proc: &Path, pid: u32) -> bool {
    let session_of = |pid: u32| audit_session(&proc.join(pid.to_string()));
    let parent = ancestors(proc, pid).first().copied();
    parent.is_some_and(|parent| session_of(parent).is_none())
}

fn of_connections(connections: &[Connection], starts: impl Fn(u32) -> bool) -> Vec<Login> {
    let mut found: HashMap<u32, Option<Login>> = HashMap::new();
    for connection in connections {
        if !connection.accepted || connection.protocol != table::TCP {
            continue;
        }
        for holder in &connection.holders {
            let is_first = holder.uid == Some(0) && starts(holder.pid);
            let Some(session) = holder.session.filter(|_| is_first) else {
                continue;
            };
            let login = Login {
                session,
                local: connection.local,
                peer: connection.peer,
            };
            found
                .entry(session)
                .and_modify(|known| *known = known.filter(|known| *known == login))
                .or_insert(Some(login));
        }
    }
    let mut logins: Vec<Login> = found.into_values().flatten().collect();
    logins.sort_by_key(|login| login.session);
    logins
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::connections::Holder;

    fn connection(peer: &str, accepted: bool, holders: &[(u32, u32)]) -> Connection {
        let holder = |&(pid, session): &(u32, u32)| {
            Arc::new(Holder {
                pid,
                comm: "sshd".to_owned(),
                uid: Some(0),
                gid: Some(0),
                interactive: Some(true),
                session: Some(session),
                executable: None,
                cgroup: None,
            })
        };
        Connection {
            protocol: table::TCP,
            local: "192.0.2.1:22".parse().unwrap(),
            peer: peer.parse().unwrap(),
            accepted,
            direction: None,
            uid: 0,
            holders: holders.iter().map(holder).collect(),
        }
    }

    fn peers(connections: &[Connection]) -> Vec<(u32, String)> {
        // Of each session, the processes with a number below 100 are the first.
        let logins = of_connections(connections, |pid| pid < 100);
        let pair = |login: &Login| (login.session, login.peer.to_string());
        logins.iter().map(pair).collect()
    }

    #[test]
    fn a_session_came_by_the_connection_that_its_first_process_holds() {
        let list = [
            connection("198.51.100.7:4000", true, &[(10, 3), (110, 3)]),
            connection("198.51.100.8:4000", true, &[(20, 4)]),
            // A service that somebody started in his session, and what he sends.
            connection("203.0.113.9:5000", true, &[(120, 4)]),
            connection("203.0.113.9:443", false, &[(20, 4)]),
        ];
        let expected = [(3, "198.51.100.7:4000"), (4, "198.51.100.8:4000")];
        let expected = expected.map(|(session, peer)| (session, peer.to_owned()));
        assert_eq!(peers(&list), expected);
    }

    /// A job of cron's is the first process of a session, too, and its user's.
    #[test]
    fn what_a_user_holds_says_nothing_of_where_he_came_from() {
        let mut of_user = connection("192.0.2.10:443", true, &[(10, 3)]);
        for holder in &mut of_user.holders {
            Arc::get_mut(holder).unwrap().uid = Some(1000);
        }
        assert!(peers(&[of_user]).is_empty());
    }

    #[test]
    fn a_session_is_started_by_a_child_of_a_service() {
        const NOBODY: &str = "4294967295";
        let proc = tempfile::tempdir().unwrap();
        for (pid, parent, session) in [
            (5, 1, NOBODY), // a service
            (6, 5, "3"),    // the first of a session
            (7, 6, "3"),    // its child
            (8, 1, "3"),    // of the same session, and its parent has ended
            (9, 6, "4"),    // of a session that somebody in another one started
        ] {
            let directory = proc.path().join(pid.to_string());
            std::fs::create_dir(&directory).unwrap();
            let rest = "0 ".repeat(40);
            std::fs::write(
                directory.join("stat"),
                format!("{pid} (x) S {parent} {rest}"),
            )
            .unwrap();
            std::fs::write(directory.join("sessionid"), session).unwrap();
        }
        let starting: Vec<u32> = (5..10)
            .filter(|pid| starts_session(proc.path(), *pid))
            .collect();
        assert_eq!(starting, [6]);
    }

    #[test]
    fn a_session_with_two_connections_came_by_none_that_is_known() {
        let list = [
            connection("198.51.100.7:4000", true, &[(10, 3)]),
            connection("198.51.100.8:4000", true, &[(11, 3)]),
        ];
        assert_eq!(peers(&list), []);
    }
}
