//! Identity of a sender, whatever a user without privileges does to look like another.

mod world;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, places};
use world::{REFUSED, TRAFFIC, all_of, at, is_about_a_flow, lacks_hook, other_root};

/// A user without privileges.
const USER: u32 = 12_345;

/// Approves one executable on its way to the peer, and nothing else.
fn only(exe: &Path) -> String {
    format!(
        "mode = \"enforce\"\n\
         [[rules]]\n\
         name = \"the approved program\"\n\
         from = {{ exe = \"{}\" }}\n\
         to = {{ networks = [\"198.51.100.0/24\"] }}\n\
         verdict = \"approve\"\n",
        exe.display()
    )
}

#[test]
fn a_path_that_a_user_has_mounted_is_not_the_hosts() -> Result<()> {
    let lab = Lab::new()?;
    let approved = lab.copy_program(TRAFFIC, "approved/program")?;
    let root = other_root(&lab, "root", &approved)?;
    let sink = TcpSink::new(&lab.peer, 443)?;
    let agent = lab.agent().policy(&only(&approved)).start()?;
    let mut expected = Vec::new();
    for (way, exe, note, code) in [
        ("not", Some(approved.clone()), "", 0),
        ("memory", None, "foreign", REFUSED),
        ("bound", Some(approved.clone()), "foreign", REFUSED),
        ("bound-inside", Some(approved.clone()), "foreign", REFUSED),
        ("bound-gone", None, "foreign", REFUSED),
        ("tree", Some(approved.clone()), "foreign", REFUSED),
        ("pivoted", Some(approved.clone()), "foreign", REFUSED),
        // Only the process sees it there.
        (
            "root",
            Some(root.join(approved.strip_prefix("/")?)),
            "",
            REFUSED,
        ),
    ] {
        let outcome = lab
            .program_as(USER, TRAFFIC)?
            .args([
                "forge".as_ref(),
                way.as_ref(),
                approved.as_os_str(),
                root.as_os_str(),
            ])
            .args([at(places::PEER, 443)])
            .run()?;
        ensure!(outcome.code == code, "{way}: {outcome:?}");
        expected.push((way, outcome.pid, exe, note));
    }
    assert_eq!(sink.connections(), 1);
    let records = all_of(agent, &lab)?;
    for (way, pid, exe, note) in expected {
        let record = records
            .iter()
            .find(|record| is_about_a_flow(record) && record.is("pid", pid))
            .with_context(|| format!("{way}: no record"))?;
        let (exe, told) = (
            exe.map(|path| path.display().to_string()),
            record.text("exe"),
        );
        ensure!(exe.is_none_or(|exe| exe == told), "{way}: {record}");
        ensure!(
            record.is("exe_note", note) || note.is_empty() && record.text("exe_note").is_empty(),
            "{way}: {record}"
        );
    }
    lab.close()
}

/// In a user namespace of his own, a user says which file his process was executed from: the agent knows
/// better of what it saw executed, and says of the rest that it was in his hands.
#[test]
fn what_a_user_says_that_he_executes_is_not_the_hosts() -> Result<()> {
    let lab = Lab::new()?;
    let approved = lab.copy_program(TRAFFIC, "approved/program")?;
    let sink = TcpSink::new(&lab.peer, 443)?;
    let start = || -> Result<_> {
        let mut program = lab
            .program_as(USER, TRAFFIC)?
            .args(["say-executed".as_ref(), approved.as_os_str()])
            .args([at(places::PEER, 443)])
            .start()?;
        program.line()?;
        let said = fs::read_link(format!("/proc/{}/exe", program.pid()))?;
        ensure!(said == approved, "the kernel says {}", said.display());
        Ok(program)
    };
    let older = start()?;
    let agent = lab.agent().policy(&only(&approved)).start()?;
    let newer = start()?;
    let mut expected = Vec::new();
    for (mut program, exe, note) in [
        (older, approved.as_path(), "foreign"),
        (newer, Path::new(TRAFFIC), ""),
    ] {
        program.proceed()?;
        let outcome = program.finish()?;
        ensure!(outcome.code == REFUSED, "{note}: {outcome:?}");
        expected.push((outcome.pid, exe, note));
    }
    assert_eq!(sink.connections(), 0);
    let records = all_of(agent, &lab)?;
    for (pid, exe, note) in expected {
        let record = records
            .iter()
            .find(|record| is_about_a_flow(record) && record.is("pid", pid))
            .with_context(|| format!("{note}: no record"))?;
        ensure!(record.is("exe", exe.display().to_string()), "{record}");
        ensure!(record.text("exe_note") == note, "{record}");
    }
    lab.close()
}

#[test]
fn a_hard_link_has_the_path_that_a_user_gave_it() -> Result<()> {
    let lab = Lab::new()?;
    let approved = lab.copy_program(TRAFFIC, "approved/program")?;
    fs::create_dir(lab.file("home"))?;
    let link = lab.file("home/program");
    fs::hard_link(&approved, &link)?;
    let agent = lab.agent().policy(&only(&approved)).start()?;
    let outcome = lab
        .program_as(USER, &link)?
        .args(["tcp", &at(places::PEER, 443)])
        .run()?;
    ensure!(outcome.code == REFUSED, "{outcome:?}");
    let records = all_of(agent, &lab)?;
    let record = records
        .iter()
        .find(|record| is_about_a_flow(record) && record.is("pid", outcome.pid))
        .context("no record")?;
    ensure!(record.is("exe", link.display().to_string()), "{record}");
    lab.close()
}

/// Bytes that a connection carries before its sender is another.
const HELLO: u64 = 5;
/// More than all buffers between the two hold.
const MOST: &str = "50000000";

#[test]
fn nothing_is_sent_by_what_an_approved_program_executes() -> Result<()> {
    let lab = Lab::new()?;
    let approved = lab.copy_program(TRAFFIC, "approved/program")?;
    let sink = TcpSink::new(&lab.peer, 443)?;
    let mut agent = lab.agent().policy(&only(&approved)).start()?;
    let sender = lab
        .program(&approved)?
        .args(["become", &at(places::PEER, 443), "--bytes", MOST])
        .args(["--program", TRAFFIC])
        .start()?;
    agent.wait_for("what the other program sends is dropped", |records| {
        records.iter().find(|record| {
            is_about_a_flow(record)
                && record.is("exe", TRAFFIC)
                && record.is("verdict", "unapproved")
                && record.is("outcome", "dropped")
        })?;
        Some(())
    })?;
    // Before the programs are gone and the kernel sends what waits.
    assert_eq!(sink.bytes(), HELLO);
    drop(sender);
    let records = all_of(agent, &lab)?;
    let hello = records.iter().any(|record| {
        let exe = record.is("exe", approved.display().to_string());
        is_about_a_flow(record) && exe && record.is("outcome", "passed")
    });
    ensure!(hello, "{records:?}");
    lab.close()
}

/// By MPTCP another socket sends than the one that the process uses, and is judged as of whoever
/// uses that one.
#[test]
fn who_has_changed_is_judged_as_what_it_is_now_by_mptcp() -> Result<()> {
    let lab = Lab::new()?;
    let sink = TcpSink::new(&lab.peer, 443)?;
    let policy = "mode = \"enforce\"\n\
                  [[rules]]\n\
                  name = \"as it was\"\n\
                  from = { user = 0 }\n\
                  to = { networks = [\"198.51.100.0/24\"] }\n\
                  verdict = \"approve\"\n";
    let mut agent = lab.agent().policy(policy).start()?;
    let sender = lab
        .program(TRAFFIC)?
        .args(["become", &at(places::PEER, 443), "--mptcp", "--twice"])
        .args(["--bytes", MOST, "--uid", &USER.to_string()])
        .start()?;
    agent.wait_for("what it sends now is dropped", |records| {
        records.iter().find(|record| {
            is_about_a_flow(record)
                && record.is("pid", sender.pid())
                && record.is("uid", USER)
                && record.is("verdict", "unapproved")
        })?;
        Some(())
    })?;
    // Where only what was sent is told of, that is one call later.
    let sent = sink.bytes();
    assert!((HELLO..=HELLO + 1).contains(&sent), "{sent} B arrived");
    drop(sender);
    all_of(agent, &lab)?;
    lab.close()
}

#[test]
fn who_has_changed_user_group_or_unit_is_judged_as_what_it_is_now() -> Result<()> {
    let lab = Lab::new()?;
    let (user, other) = (USER.to_string(), lab.unit("other.service")?);
    for (from, change, field, now) in [
        ("user = 0", ["--uid", &user], "uid", user.as_str()),
        ("group = 0", ["--gid", &user], "uid", "0"),
        (
            "unit = \"lab.service\"",
            ["--cgroup", other.to_str().context("a path")?],
            "unit",
            "other.service",
        ),
    ] {
        let sink = TcpSink::new(&lab.peer, 443)?;
        let policy = format!(
            "mode = \"enforce\"\n\
             [[rules]]\n\
             name = \"as it was\"\n\
             from = {{ {from} }}\n\
             to = {{ networks = [\"198.51.100.0/24\"] }}\n\
             verdict = \"approve\"\n"
        );
        let mut agent = lab.agent().policy(&policy).start()?;
        if lacks_hook(&mut agent, "tcp_sendmsg_locked")? {
            // There the whole call is judged as before it.
            continue;
        }
        let sender = lab
            .program(TRAFFIC)?
            .args(["become", &at(places::PEER, 443), "--bytes", MOST])
            .args(change)
            .start()?;
        agent.wait_for("what it sends now is dropped", |records| {
            records.iter().find(|record| {
                is_about_a_flow(record)
                    && record.is("pid", sender.pid())
                    && record.is("verdict", "unapproved")
                    && record.is(field, now)
            })?;
            Some(())
        })?;
        assert_eq!(sink.bytes(), HELLO, "{from}");
        drop(sender);
        all_of(agent, &lab)?;
    }
    lab.close()
}

/// The flow of the datagrams is known by then, and goes on as it has for whoever has not changed.
#[test]
fn and_so_is_a_packets_who_writes_its_header_himself() -> Result<()> {
    let lab = Lab::new()?;
    let (user, other) = (USER.to_string(), lab.unit("other.service")?);
    let unit = other.to_str().context("a path")?;
    for (from, change) in [
        ("user = 0", ["--uid", &user]),
        ("unit = \"lab.service\"", ["--cgroup", unit]),
    ] {
        let policy = format!(
            "mode = \"enforce\"\n[[rules]]\nname = \"as it was\"\nfrom = {{ {from} }}\n\
             to = {{ networks = [\"198.51.100.0/24\"] }}\nverdict = \"approve\"\n"
        );
        let agent = lab.agent().policy(&policy).start()?;
        let before = lab.link_to(&lab.peer)?;
        let words = ["become", &at(places::PEER, 53), "--raw", "--twice"];
        // Where only what was sent tells who did, the first of two is judged as of who sent before.
        lab.program(TRAFFIC)?.args(words).args(change).run()?;
        let packets = lab.link_to(&lab.peer)?.since(before).tx_packets;
        ensure!((1..=2).contains(&packets), "{from}: {packets} left");
        all_of(agent, &lab)?;
    }
    lab.close()
}

#[test]
fn a_datagrams_sender_that_has_changed_is_judged_as_what_it_is_now() -> Result<()> {
    let lab = Lab::new()?;
    let (user, other) = (USER.to_string(), lab.unit("other.service")?);
    let unit = other.to_str().context("a path")?;
    for (from, change) in [
        ("user = 0", ["--uid", &user]),
        ("group = 0", ["--gid", &user]),
        ("unit = \"lab.service\"", ["--cgroup", unit]),
    ] {
        let sink = UdpSink::new(&lab.peer, 53)?;
        let policy = format!(
            "mode = \"enforce\"\n\
             [[rules]]\n\
             name = \"as it was\"\n\
             from = {{ {from} }}\n\
             to = {{ networks = [\"198.51.100.0/24\"] }}\n\
             verdict = \"approve\"\n"
        );
        let agent = lab.agent().policy(&policy).start()?;
        let sender = || {
            let become_another = lab.program(TRAFFIC)?;
            let peer = at(places::PEER, 53);
            anyhow::Ok(become_another.args(["become", &peer, "--unconnected", "--bytes", "7"]))
        };
        sender()?.args(["--twice"]).run()?.success()?;
        let outcome = sender()?.args(change).run()?;
        ensure!(outcome.code == REFUSED, "{from}: {outcome:?}");
        // Two greetings, and what the first says after its own.
        assert_eq!(sink.wait_for_packets(4)?.bytes, 2 * HELLO + 1 + 7, "{from}");
        all_of(agent, &lab)?;
    }
    lab.close()
}
