//! Relation of a connection to the caller: the caller's own session, somebody else's
//! login, or any.

use std::{env, net::SocketAddr, path::Path, process};

use serde::Serialize;

use crate::connections::{Connection, Holder, ancestors, audit_session};

/// Programs that hold the connection of somebody who logged in.
const LOGIN_PROGRAMS: [&str; 4] = ["sshd", "sshd-session", "dropbear", "in.telnetd"];

/// Relation of a connection to the caller; the most painful to lose first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Whoever asks came in by it.
    Yours,
    /// Somebody else came in by it.
    Login,
    /// Nobody came in by it.
    Other,
}

/// Where this process was started from.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// Its parents. One of them that holds a connection is what it hangs on.
    pub ancestors: Vec<u32>,
    /// The far and near end that the login program told its children of.
    pub told: Option<(SocketAddr, SocketAddr)>,
    /// Audit session: whoever left the line of parents, as in a terminal
    /// multiplexer, still has that of the login.
    pub session: Option<u32>,
}

impl Asker {
    /// Whoever started this process.
    pub fn this_process(proc: &Path) -> Self {
        Self {
            ancestors: ancestors(proc, process::id()),
            told: env::var("SSH_CONNECTION")
                .ok()
                .as_deref()
                .and_then(ssh_connection),
            session: audit_session(&proc.join("self")),
        }
    }

    /// Tells the relation of a connection to this asker.
    pub fn whose(&self, connection: &Connection) -> Whose {
        let any = |is: &dyn Fn(&Holder) -> bool| connection.holders.iter().any(|one| is(one));
        let is_told = self.told == Some((connection.peer, connection.local));
        let is_login = connection.accepted && any(&is_login_program);
        // A daemon is nobody's session, but all of its children are of the same one.
        let is_same = self.session.is_some() && any(&|holder| holder.session == self.session);
        if is_told || any(&|holder| self.ancestors.contains(&holder.pid)) || is_login && is_same {
            Whose::Yours
        } else if is_login {
            Whose::Login
        } else {
            Whose::Other
        }
    }
}

fn is_login_program(holder: &Holder) -> bool {
    LOGIN_PROGRAMS.contains(&holder.name().as_str())
}

/// `203.0.113.10 51234 192.0.2.1 22`: the client's end and the server's.
fn ssh_connection(text: &str) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> = text.split(' ').collect();
    let &[client, client_port, server, server_port] = words.as_slice() else {
        return None;
    };
    let end = |address: &str, port: &str| {
        // Of link scope, it has the interface behind it.
        let address = address.split('%').next()?;
        let address: std::net::IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), port.parse().ok()?))
    };
    Some((end(client, client_port)?, end(server, server_port)?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::connections::Executable;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn held_by(pid: u32, exe: &str, session: Option<u32>) -> Connection {
        Connection {
            protocol: 6,
            local: at("192.0.2.1:22"),
            peer: at("203.0.113.10:51234"),
            accepted: true,
            direction: None,
            uid: 0,
            holders: vec![Arc::new(Holder {
                pid,
                comm: "x".to_owned(),
                uid: Some(0),
                gid: Some(0),
                interactive: None,
                session,
                executable: Some(Executable {
                    path: exe.into(),
                    foreign: false,
                }),
                cgroup: None,
            })],
        }
    }

    #[test]
    fn what_the_login_program_tells_its_children() {
        assert_eq!(
            ssh_connection("203.0.113.10 51234 192.0.2.1 22"),
            Some((at("203.0.113.10:51234"), at("192.0.2.1:22")))
        );
        assert_eq!(
            ssh_connection("2001:db8:3::10 51234 2001:db8:1::1 22"),
            Some((at("[2001:db8:3::10]:51234"), at("[2001:db8:1::1]:22")))
        );
        assert_eq!(
            ssh_connection("fe80::1%eth0 51234 fe80::2%eth0 22"),
            Some((at("[fe80::1]:51234"), at("[fe80::2]:22")))
        );
        assert_eq!(
            ssh_connection("::ffff:203.0.113.10 51234 ::ffff:192.0.2.1 22"),
            ssh_connection("203.0.113.10 51234 192.0.2.1 22")
        );
        for wrong in ["", "UNKNOWN 65535 UNKNOWN 65535", "203.0.113.10 51234 22"] {
            assert_eq!(ssh_connection(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn your_session_is_what_you_came_in_by() {
        let sshd = held_by(7, "/usr/sbin/sshd", Some(3));
        let web = held_by(8, "/usr/sbin/nginx", Some(3));
        let nobody = Asker::default();
        assert_eq!(nobody.whose(&sshd), Whose::Login);
        assert_eq!(nobody.whose(&web), Whose::Other);

        let child = Asker {
            ancestors: vec![9, 8, 7],
            ..Asker::default()
        };
        assert_eq!(child.whose(&sshd), Whose::Yours);
        // Whatever it is: this process hangs on it.
        assert_eq!(child.whose(&web), Whose::Yours);

        let told = Asker {
            told: Some((at("203.0.113.10:51234"), at("192.0.2.1:22"))),
            ..Asker::default()
        };
        assert_eq!(told.whose(&sshd), Whose::Yours);
        let elsewhere = Asker {
            told: Some((at("203.0.113.10:51235"), at("192.0.2.1:22"))),
            ..Asker::default()
        };
        assert_eq!(elsewhere.whose(&sshd), Whose::Login);

        // In a terminal multiplexer, whose server has no parent but the first
        // process, and that kept the environment of another login.
        let multiplexed = Asker {
            session: Some(3),
            ..elsewhere
        };
        assert_eq!(multiplexed.whose(&sshd), Whose::Yours);
        assert_eq!(multiplexed.whose(&web), Whose::Other);
    }

    #[test]
    fn what_a_login_program_began_itself_is_no_login() {
        let mut forwarded = held_by(7, "/usr/sbin/sshd", None);
        forwarded.accepted = false;
        assert_eq!(Asker::default().whose(&forwarded), Whose::Other);
    }
}
