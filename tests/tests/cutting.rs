//! A connection that the policy does not approve any more is cut, and both ends know it
//! at once. Nothing else is.

mod world;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{AgentBuilder, detach};
use trefoil_lab::namespace::Namespace;
use trefoil_lab::program::{Outcome, Program, Running};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Agent, Lab, Record, places};
use world::{REFUSED, RULES, TRAFFIC, approving, at, enforcing, mapped_at, reporting, traffic};

const UDP_PORT: u16 = 9;
const TCP_PORT: u16 = 443;
/// Where programs on the host under test accept connections, from this port on.
const SERVED_PORT: u16 = 5000;

/// A user and a group that no policy of the other tests knows.
const GROUP: u32 = 4711;

/// Exit code of `traffic` for an error that is no refusal.
const FAILED: i32 = 14;

/// An agent that enforces a policy which approves everything.
fn permissive(lab: &Lab) -> AgentBuilder<'_> {
    let policy = approving().replace("\"report\"", "\"enforce\"");
    lab.agent()
        .policy(&policy)
        .settings("sweep_interval = \"100ms\"\nheartbeat_interval = \"1s\"\n")
}

/// A listener of the test's own, outside of the lab's control group.
fn listen(place: &Namespace) -> Result<TcpListener> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, TCP_PORT));
    place.enter(|| Ok(TcpListener::bind(any)?))
}

/// A connection with a program at one end and the test at the other.
struct Pair {
    what: &'static str,
    program: Running,
    far: TcpStream,
}

impl Pair {
    /// The program connects, and waits.
    fn connected(
        what: &'static str,
        program: Program,
        to: &str,
        listener: &TcpListener,
    ) -> Result<Self> {
        let mut program = program.args(["tcp", to, "--wait"]).start()?;
        let far = listener.accept()?.0;
        program.line()?;
        Ok(Self { what, program, far })
    }

    /// The program is connected to, sends a byte, and waits.
    fn accepted(what: &'static str, lab: &Lab, from: &Namespace, port: u16) -> Result<Self> {
        let mut program = traffic(lab)?
            .args(["serve", &port.to_string(), "--bytes", "1", "--wait"])
            .start()?;
        program.line()?;
        let mut far = from.enter(|| Ok(TcpStream::connect((places::HOST, port))?))?;
        // So far only the listener has answered.
        far.read_exact(&mut [0])?;
        program.line()?;
        Ok(Self { what, program, far })
    }

    /// Waits until both ends say that it was cut, and nobody had to send for that.
    fn expect_cut(mut self) -> Result<u32> {
        let pid = self.program.pid();
        let outcome = self.program.finish()?;
        ensure!(
            outcome.code == FAILED && outcome.stdout.contains("ECONNABORTED"),
            "{}: {outcome:?}",
            self.what
        );
        let mut rest = Vec::new();
        let end = self.far.read_to_end(&mut rest);
        let is_reset = end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        ensure!(is_reset, "{}: the far end does not know", self.what);
        Ok(pid)
    }

    /// Ends it from the far end, which works only if it was there until then.
    fn expect_there(self) -> Result<()> {
        drop(self.far);
        self.program.finish()?.success().context(self.what)?;
        Ok(())
    }
}

fn is_policy(record: &Record, state: &str) -> bool {
    record.is("event", "policy") && record.is("state", state)
}

/// Waits until policies have come into force, the first included.
fn in_force(agent: &mut Agent<'_>, count: usize) -> Result<()> {
    agent.wait_for(&format!("policy {count} is in force"), |records| {
        let found = records
            .iter()
            .filter(|record| is_policy(record, "in-force"));
        (found.count() == count).then_some(())
    })
}

/// Waits long enough for the agent to have looked at all connections more than once.
fn some_time(agent: &mut Agent<'_>) -> Result<()> {
    let heartbeats = |records: &[Record]| {
        let found = records
            .iter()
            .filter(|record| record.is("event", "heartbeat"));
        found.count()
    };
    let before = heartbeats(agent.records()?);
    agent.wait_for("three heartbeats", |records| {
        (heartbeats(records) >= before + 3).then_some(())
    })
}

#[test]
fn what_a_new_policy_does_not_approve_is_cut_and_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let (foreign, peer) = (listen(&lab.foreign)?, listen(&lab.peer)?);
    let datagrams = UdpSink::new(&lab.foreign, UDP_PORT)?;
    let mut agent = permissive(&lab).start()?;
    let connect = |what, to: String, listener: &TcpListener| {
        Pair::connected(what, traffic(&lab)?, &to, listener)
    };
    let to_be_cut = [
        connect("idle", at(places::FOREIGN, TCP_PORT), &foreign)?,
        connect("IPv6", at(places::FOREIGN6, TCP_PORT), &foreign)?,
        connect("mapped", mapped_at(places::FOREIGN, TCP_PORT), &foreign)?,
        Pair::accepted("accepted", &lab, &lab.foreign, SERVED_PORT)?,
    ];
    let to_stay = [
        connect("approved", at(places::PEER, TCP_PORT), &peer)?,
        connect("approved IPv6", at(places::PEER6, TCP_PORT), &peer)?,
        Pair::accepted("accepted from the peer", &lab, &lab.peer, SERVED_PORT + 1)?,
        Pair::connected(
            "approved by its group",
            lab.program_as(GROUP, TRAFFIC)?,
            &at(places::FOREIGN, TCP_PORT),
            &foreign,
        )?,
        Pair::connected(
            "not watched",
            Program::new(TRAFFIC, &lab.host, None, None)?,
            &at(places::FOREIGN, TCP_PORT),
            &foreign,
        )?,
    ];
    // Sends as much as it can: its packets are dropped before it is cut.
    let sending = traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN, TCP_PORT)])
        .args(["--bytes", "1000000000000"])
        .start()?;
    let mut received = foreign.accept()?.0;
    let receiver = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match received.read(&mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    });
    let mut sockets = Vec::new();
    for more in [&["--hold"][..], &["--hold", "--connected"]] {
        let mut socket = traffic(&lab)?
            .args(["udp", &at(places::FOREIGN, UDP_PORT)])
            .args(more)
            .start()?;
        socket.line()?;
        socket.proceed()?;
        socket.line()?;
        sockets.push(socket);
    }
    datagrams.wait_for_packets(2)?;

    agent.reload(&format!(
        "mode = \"enforce\"\n\n[[rules]]\nname = \"a group\"\nfrom = {{ group = {GROUP} }}\n\
         to = {{ networks = [\"{}/32\"] }}\nverdict = \"approve\"\n{RULES}",
        places::FOREIGN
    ))?;

    let mut pids = vec![sending.pid()];
    let outcome = sending.finish()?;
    ensure!(
        outcome.code == FAILED && outcome.stdout.contains("ECONNABORTED"),
        "{outcome:?}"
    );
    let end = receiver.join().ok().flatten();
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    for pair in to_be_cut {
        pids.push(pair.expect_cut()?);
    }
    for mut socket in sockets {
        // It is the same socket, and what it sends is refused: no other error.
        socket.proceed()?;
        let outcome = socket.finish()?;
        assert_eq!(outcome.code, REFUSED, "{outcome:?}");
    }
    let message = agent.wait_for("how many were cut", |records| {
        records
            .iter()
            .find(|record| is_policy(record, "cut") && record.is("total", pids.len()))
            .cloned()
    })?;
    ensure!(message.is("count", pids.len()), "{message}");
    for pid in &pids {
        let (first, last) = agent.wait_for(&format!("the end of {pid}'s flow"), |records| {
            let of_pid = |kind: &str| {
                let is_cut = |record: &&Record| {
                    record.is("event", kind)
                        && record.is("pid", pid)
                        && record.is("verdict", "denied")
                };
                records.iter().rfind(is_cut).cloned()
            };
            let last = of_pid("flow").filter(|record| record.is("state", "closed"))?;
            Some((of_pid("violation")?, last))
        })?;
        for (name, expected) in [("outcome", "cut"), ("rule", "never there"), ("end", "seen")] {
            ensure!(last.is(name, expected), "{name} is not {expected}: {last}");
        }
        assert_eq!(first.text("flow"), last.text("flow"));
        // The reset, and nothing else.
        ensure!(last.number("packets_out")? == 1, "{last}");
        ensure!(last.number("bytes_out")? <= 72, "{last}");
    }
    some_time(&mut agent)?;
    for pair in to_stay {
        pair.expect_there()?;
    }
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let n_cut = records
        .iter()
        .filter(|record| is_policy(record, "cut"))
        .count();
    assert_eq!(n_cut, 1, "it was said once");
    detach(&lab)?;
    lab.close()
}

#[test]
fn an_agent_that_starts_cuts_what_sends_where_it_may_not() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = listen(&lab.foreign)?;
    let mut older = traffic(&lab)?
        .args(["tcp", &at(places::FOREIGN, TCP_PORT), "--hold", "peer"])
        .args(["--bytes", "10"])
        .start()?;
    older.line()?;
    let mut far = foreign.accept()?.0;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    older.proceed()?;
    older.line()?;
    let end = far
        .read_to_end(&mut Vec::new())
        .map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    agent.wait_for("it was cut", |records| {
        records
            .iter()
            .any(|record| is_policy(record, "cut"))
            .then_some(())
    })?;
    older.proceed()?;
    let outcome: Outcome = older.finish()?;
    assert_eq!(outcome.code, FAILED, "{outcome:?}");
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_policy_that_only_reports_cuts_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = listen(&lab.foreign)?;
    let mut agent = permissive(&lab).start()?;
    let pair = Pair::connected(
        "reported",
        traffic(&lab)?,
        &at(places::FOREIGN, TCP_PORT),
        &foreign,
    )?;
    agent.reload(&reporting())?;
    in_force(&mut agent, 2)?;
    some_time(&mut agent)?;
    pair.expect_there()?;
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    ensure!(!records.iter().any(|record| is_policy(record, "cut")));
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_trial_cuts_and_once_it_is_over_nothing_is_cut() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = listen(&lab.foreign)?;
    let mut agent = lab
        .agent()
        .policy(&approving())
        .settings(
            "confirm_within = \"3s\"\nsweep_interval = \"100ms\"\nheartbeat_interval = \"1s\"\n",
        )
        .start()?;
    let connect = |what| {
        Pair::connected(
            what,
            traffic(&lab)?,
            &at(places::FOREIGN, TCP_PORT),
            &foreign,
        )
    };
    let before = connect("before the trial")?;
    agent.reload(&enforcing())?;
    before.expect_cut()?;
    agent.wait_for("the trial is over", |records| {
        records
            .iter()
            .any(|record| is_policy(record, "reverted"))
            .then_some(())
    })?;
    let after = connect("after the trial")?;
    some_time(&mut agent)?;
    after.expect_there()?;
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let n_cut = records
        .iter()
        .filter(|record| is_policy(record, "cut"))
        .count();
    assert_eq!(n_cut, 1);
    detach(&lab)?;
    lab.close()
}

/// An address behind the host, as that of a container.
const CONTAINER: &str = "192.0.2.129";

/// A namespace whose packets the host forwards.
fn behind_the_host(lab: &Lab) -> Result<Namespace> {
    let container = Namespace::new("container")?;
    lab.host.enter(|| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        Ok(())
    })?;
    lab.host.ip(&format!(
        "link add to-container type veth peer name to-host netns {}\n\
         address add 192.0.2.128/31 dev to-container\n\
         link set to-container up\n",
        container.path()
    ))?;
    container.ip(&format!(
        "link set lo up\n\
         address add {CONTAINER}/31 dev to-host\n\
         link set to-host up\n\
         route add default via 192.0.2.128\n"
    ))?;
    let [host, foreign] = [places::HOST, places::FOREIGN].map(|address: IpAddr| address);
    lab.foreign.ip(&format!(
        "route add {CONTAINER}/32 via {host} dev to-host src {foreign} onlink\n"
    ))?;
    Ok(container)
}

#[test]
fn what_is_in_another_namespace_cannot_be_cut_and_its_packets_are_dropped() -> Result<()> {
    let lab = Lab::new()?;
    let container = behind_the_host(&lab)?;
    let foreign = listen(&lab.foreign)?;
    let mut agent = permissive(&lab).start()?;
    let unit = lab.unit("container.service")?;
    let mut program = Program::new(TRAFFIC, &container, Some(&unit), None)?
        .args(["tcp", &at(places::FOREIGN, TCP_PORT), "--hold", "peer"])
        .args(["--bytes", "10"])
        .start()?;
    let mut far = foreign.accept()?.0;
    program.line()?;
    agent.reload(&enforcing())?;
    let left = agent.wait_for("it cannot be cut", |records| {
        records
            .iter()
            .find(|record| is_policy(record, "cut"))
            .cloned()
    })?;
    ensure!(left.is("count", 0) && left.is("total", 1), "{left}");
    ensure!(left.text("message").contains("network namespace"), "{left}");
    program.proceed()?;
    program.line()?;
    agent.wait_for("its packets are dropped", |records| {
        records
            .iter()
            .any(|record| record.is("pid", program.pid()) && record.is("outcome", "dropped"))
            .then_some(())
    })?;
    far.set_nonblocking(true)?;
    let nothing = far.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    drop(program);
    drop(container);
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let n_told = records
        .iter()
        .filter(|record| is_policy(record, "cut"))
        .count();
    assert_eq!(n_told, 1, "it was said once");
    detach(&lab)?;
    lab.close()
}
