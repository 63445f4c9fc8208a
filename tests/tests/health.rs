//! Truth of `check` and `status`: about this kernel, losses, interfaces.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_lab::agent::{Agent, acknowledge, detach, kernel_verb, trefoil, verb, verb_in};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{approving, at, reporting, traffic};

/// Sixteen flows have room, and each datagram beyond is counted as lost for them.
const SMALL: &str = "sweep_interval = \"100ms\"\n[tables]\nflows = 16\n";

fn parsed(json: &str) -> Result<Value> {
    serde_json::from_str(json).with_context(|| json.to_owned())
}

fn status(lab: &Lab) -> Result<Value> {
    parsed(&kernel_verb(lab, "status", &["--json"])?.stdout)
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Sends from one socket to more peers than have room.
fn lose(lab: &Lab) -> Result<()> {
    let first = at("198.51.100.64".parse()?, 9);
    let words = ["udp-many", &first, "--destinations", "40", "--count", "80"];
    traffic(lab)?.args(words).run()?.success().map(drop)
}

fn findings_about(lab: &Lab, subject: &str) -> Result<Vec<String>> {
    let findings = texts(&status(lab)?["findings"]).into_iter();
    Ok(findings.filter(|it| it.contains(subject)).collect())
}

fn wait_for_loss(lab: &Lab) -> Result<String> {
    wait_for("status has the loss, and when it was", || {
        let found = findings_about(lab, "flows-full")?.into_iter().next();
        Ok(found.filter(|it| it.contains("seen at 2") || it.contains("seen from 2")))
    })
}

#[test]
fn check_says_what_the_agent_then_lacks() -> Result<()> {
    let lab = Lab::new()?;
    let checked = parsed(&verb(&lab, &["check", "--json"])?.stdout)?;
    ensure!(checked["kernel_tried"] == true, "{checked:#}");
    let mut lacking: BTreeMap<String, String> = BTreeMap::new();
    for hook in checked["kernel"].as_array().context("no hooks")? {
        if hook["supported"] != true {
            let text = |name: &str| hook[name].as_str().unwrap_or_default().to_owned();
            lacking.insert(text("name"), text("without"));
            let why = text("why");
            ensure!(
                !why.to_lowercase().contains("verifier"),
                "an empty log: {why}"
            );
        }
    }
    let mut agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    let told = agent
        .records()?
        .iter()
        .filter(|it| it.text("subject").starts_with("hook "));
    let told: BTreeMap<String, String> = told
        .map(|it| {
            let reason = it.text("reason");
            let without = reason.strip_prefix("not covered: ").unwrap_or(&reason);
            let without = without.split(" (load program").next().unwrap_or_default();
            (it.text("subject").replace("hook ", ""), without.to_owned())
        })
        .collect();
    ensure!(told == lacking, "check: {lacking:#?}; the agent: {told:#?}");
    // And status: what a promise needs is a finding until somebody has taken note, all else a note.
    let said = status(&lab)?;
    let (findings, notes) = (texts(&said["findings"]), texts(&said["notes"]));
    for hook in checked["kernel"].as_array().into_iter().flatten() {
        let name = hook["name"].as_str().context("no name")?;
        let subject = format!("hook {name} on this kernel");
        let says = |list: &[String]| list.iter().any(|it| it.contains(&subject));
        let is_promised = hook["breaks_promise"] == true;
        ensure!(says(&findings) == is_promised, "{name}: {said:#}");
        ensure!(
            says(&notes) == (lacking.contains_key(name) && !is_promised),
            "{name}: {said:#}"
        );
    }
    acknowledge(&lab)?;
    let said = status(&lab)?;
    ensure!(said["healthy"] == true, "{said:#}");
    agent.stop(Signal::SIGINT)?;
    lab.close()
}

#[test]
fn check_without_root_says_that_nothing_was_tried() -> Result<()> {
    const NOBODY: u32 = 65_534;
    let lab = Lab::new()?;
    let checked = lab.program_as(NOBODY, trefoil()?)?.args(["check"]).run()?;
    ensure!(
        checked
            .stdout
            .contains("the programs were not loaded (only root may load them)")
            && !checked.stdout.contains("has everything"),
        "{checked:?}"
    );
    lab.close()
}

fn acknowledged(records: &[Record], subject: &str) -> Vec<Record> {
    let about = |it: &&Record| it.is("state", "acknowledged") && it.is("subject", subject);
    records.iter().filter(about).cloned().collect()
}

fn wait_for_acknowledged(agent: &mut Agent<'_>, n: usize) -> Result<Vec<Record>> {
    agent.wait_for("records of acknowledgements", |records| {
        let found = acknowledged(records, "flows-full");
        (found.len() >= n).then_some(found)
    })
}

#[test]
fn an_acknowledged_loss_is_no_finding_and_the_next_one_is() -> Result<()> {
    let lab = Lab::new()?;
    let agent = || lab.agent().policy(&approving()).settings(SMALL);
    let mut first = agent().start()?;
    lose(&lab)?;
    wait_for_loss(&lab)?;
    ensure!(kernel_verb(&lab, "status", &[])?.code == 1);
    let said = kernel_verb(&lab, "status", &["--acknowledge"])?;
    wait_for("all is as it should be", || {
        Ok((kernel_verb(&lab, "status", &[])?.code == 0).then_some(()))
    })?;
    ensure!(
        said.stdout.contains("acknowledged by root at 2"),
        "{said:?}"
    );
    let told = wait_for_acknowledged(&mut first, 1)?;
    let lost = told[0].number("total")?;
    ensure!(
        told[0].text("reason").contains("by root at 2"),
        "{}",
        told[0]
    );
    ensure!(
        told[0].is("event", "loss") && told[0].is("count", 0),
        "{}",
        told[0]
    );

    // It covers nothing that comes later, and what it covers stays so with the next agent.
    let mut records = first.stop(Signal::SIGKILL)?.1;
    lose(&lab)?;
    let found = findings_about(&lab, "flows-full")?;
    ensure!(
        found.len() == 1 && found[0].contains(&format!("when it was {lost}")),
        "{found:?}"
    );
    // With no agent, the next one tells.
    acknowledge(&lab)?;
    ensure!(findings_about(&lab, "flows-full")?.is_empty());
    let mut second = agent().start()?;
    let told = wait_for_acknowledged(&mut second, 1)?;
    ensure!(told[0].number("total")? > lost, "{}", told[0]);
    ensure!(findings_about(&lab, "flows-full")?.is_empty());
    records.extend(second.stop(Signal::SIGINT)?.1);
    ensure!(
        acknowledged(&records, "flows-full").len() == 2,
        "each is told once"
    );
    lab.close()
}

#[test]
fn counters_that_begin_anew_are_covered_by_no_acknowledgement_of_before() -> Result<()> {
    let lab = Lab::new()?;
    for _ in 0..2 {
        let agent = lab.agent().policy(&approving()).settings(SMALL).start()?;
        lose(&lab)?;
        wait_for_loss(&lab)?;
        acknowledge(&lab)?;
        ensure!(findings_about(&lab, "flows-full")?.is_empty());
        // It takes the tables out.
        agent.stop(Signal::SIGINT)?;
    }
    lab.close()
}

#[test]
fn status_from_another_network_namespace_has_the_agents_interfaces() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab.agent().policy(&reporting()).uplink("auto").start()?;
    let pins = lab.pins();
    let words = [
        "status",
        "--json",
        "--pin-dir",
        pins.to_str().context("path")?,
    ];
    let names = |said: &Value| -> Vec<String> {
        let uplinks = said["uplinks"].as_object().into_iter().flatten();
        uplinks.map(|(name, _)| name.clone()).collect()
    };
    let same = |of: &str| -> Result<()> {
        let inside = status(&lab)?;
        let outside = parsed(&verb_in(&lab.foreign, &words)?.stdout)?;
        ensure!(!names(&inside).is_empty(), "{of}: {inside:#}");
        ensure!(names(&inside) == names(&outside), "{of}: {outside:#}");
        Ok(())
    };
    same("a running agent")?;
    let words_of_one = ["udp", &at(places::FOREIGN, 9), "--hold"];
    let mut stays = traffic(&lab)?.args(words_of_one).start()?;
    stays.line()?;
    agent.stop(Signal::SIGKILL)?;
    same("an agent that is dead, where a process is in its namespace")?;
    stays.proceed()?;
    stays.finish()?;
    let outside = parsed(&verb_in(&lab.foreign, &words)?.stdout)?;
    let says = |it: &String| it.starts_with("uplinks are not looked at: ");
    ensure!(texts(&outside["findings"]).iter().any(says), "{outside:#}");
    detach(&lab)?;
    lab.close()
}

/// A hierarchy of version 1: the machine's, or one that is mounted for as long as this lives.
struct Legacy {
    root: PathBuf,
    is_ours: bool,
}

impl Legacy {
    fn find(lab: &Lab) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut of_kind = mounts.lines().filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let is_whole = mount.next() == Some("/") && kind.starts_with("cgroup ");
            mount.next().filter(|_| is_whole)
        });
        if let Some(root) = of_kind.next() {
            return Ok(Self {
                root: root.into(),
                is_ours: false,
            });
        }
        let root = lab.file("legacy");
        fs::create_dir_all(&root)?;
        let options = Some("none,name=trefoil-test");
        mount(
            Some("none"),
            &root,
            Some("cgroup"),
            MsFlags::empty(),
            options,
        )?;
        Ok(Self {
            root,
            is_ours: true,
        })
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = umount(&self.root);
        }
    }
}

#[test]
fn a_container_in_control_groups_of_version_1_alone_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let legacy = Legacy::find(&lab)?;
    // Of this test alone.
    let id = format!("{:064x}", u128::from(std::process::id()) << 64 | 0xc0ffee);
    let agent = lab.agent().policy(&reporting());
    let mut agent = agent.settings("heartbeat_interval = \"1s\"\n").start()?;
    let engine = legacy.root.join("docker");
    let had_engine = engine.exists();
    let group = engine.join(&id);
    fs::create_dir_all(&group)?;
    let subject = format!("container docker:{id}");
    let told = agent.wait_for("the container is told", |records| {
        let mut all = records.iter();
        all.find(|it| it.is("event", "coverage") && it.is("subject", &subject))
            .cloned()
    });
    fs::remove_dir(&group)?;
    if !had_engine {
        fs::remove_dir(&engine)?;
    }
    let told = told?;
    ensure!(
        told.is("state", "partly") && told.text("message").contains("version 1"),
        "{told}"
    );
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    drop(legacy);
    lab.close()
}
