//! A policy that is not understood is never in force, and says why.

mod world;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{detach, kernel_verb, verb};
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Lab, Record, places};
use world::{REFUSED, at, enforcing, finds_only_the_kernel, is_about_a_flow, reporting, traffic};

/// Exit code for a bad configuration.
const BAD_CONFIGURATION: i32 = 78;

/// A policy of which every line that ends in `# wrong` has a mistake.
const TEN_MISTAKES: &str = r#"mode = "enforced"                        # wrong

[zones]
home   = ["EEA", "XQ"]                   # wrong
office = ["198.51.100.0/33"]             # wrong

[[gateways]]
name      = "dublin-1"
endpoints = ["192.0.2.10:443/tpc"]       # wrong

[[rules]]
name    = "one"
from    = { unti = "export.service" }    # wrong
to      = { gateway = "dublin-2" }       # wrong
verdict = "aprove"                       # wrong

[[rules]]
name    = "two"
to      = { ports = ["http"] }           # wrong
verdict = "approve"

[[rules]]
name    = "three"
to      = { countries = ["China"] }      # wrong
verdict = "deny"

[[rules]]
name    = "four"
budget  = { bytes = "50 GiB" }           # wrong
to      = { networks = ["192.0.2.0/24"] }
verdict = "approve"
"#;

fn wrong_lines() -> Vec<usize> {
    TEN_MISTAKES
        .lines()
        .enumerate()
        .filter(|(_, line)| line.ends_with("# wrong"))
        .map(|(index, _)| index + 1)
        .collect()
}

#[test]
fn check_names_ten_mistakes_in_one_run() -> Result<()> {
    let lab = Lab::new()?;
    assert_eq!(wrong_lines().len(), 10);
    let policy = lab.file("ten-mistakes.toml");
    fs::write(&policy, TEN_MISTAKES)?;
    let path = policy.to_str().context("path")?;
    let outcome = verb(&lab, &["check", path])?;
    ensure!(outcome.code != 0, "{outcome:?}");
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    for line in wrong_lines() {
        let place = format!("{path}:{line}:");
        ensure!(text.contains(&place), "nothing about {place}\n{text}");
    }
    let named = text.matches(&format!("{path}:")).count();
    assert_eq!(named, 10, "{text}");
    lab.close()
}

/// A policy of which every line that ends in `# odd` begins a rule with a warning.
const ODDITIES: &str = r#"mode = "report"

[[rules]]
name    = "peer"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"

[[rules]]                                # odd
name    = "behind it"
to      = { networks = ["198.51.100.7"], ports = ["443/tcp"] }
verdict = "deny"

[[rules]]                                # odd
name    = "wide"
to      = { countries = ["IE"] }
verdict = "approve"

[[rules]]                                # odd
name    = "in part"
to      = { networks = ["192.0.0.0/16"], ports = ["25/tcp"] }
verdict = "deny"

[[rules]]                                # odd
name    = "a shell that is nowhere"
from    = { exe = "/nowhere/sh" }
to      = { networks = ["203.0.113.7"] }
verdict = "approve"
"#;

#[test]
fn check_warns_of_what_is_odd_and_finds_no_fault_with_it() -> Result<()> {
    let lab = Lab::new()?;
    let policy = lab.file("odd.toml");
    fs::write(&policy, ODDITIES)?;
    let settings = lab.settings()?;
    let words = ["check", text(&policy)?, "--config", text(&settings)?];
    let outcome = verb(&lab, &words)?;
    ensure!(finds_only_the_kernel(&outcome), "{outcome:?}");
    let odd: Vec<usize> = (1..)
        .zip(ODDITIES.lines())
        .filter(|(_, line)| line.ends_with("# odd"))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(odd.len(), 4);
    for line in &odd {
        let place = format!("odd.toml:{line}:");
        ensure!(outcome.stderr.contains(&place), "{place} {outcome:?}");
    }
    assert_eq!(
        outcome.stderr.matches(": warning: ").count(),
        4,
        "{outcome:?}"
    );
    ensure!(outcome.stdout.contains("4 warnings"), "{outcome:?}");
    let json = verb(&lab, &[&words[..], &["--json"]].concat())?;
    let json: serde_json::Value = serde_json::from_str(&json.stdout)?;
    let warnings = json["warnings"].as_array().context("a list")?;
    let lines: Vec<u64> = warnings
        .iter()
        .filter_map(|one| one["line"].as_u64())
        .collect();
    assert_eq!(
        lines,
        odd.iter().map(|&line| line as u64).collect::<Vec<_>>()
    );
    lab.close()
}

#[test]
fn check_finds_nothing_wrong_with_what_is_shipped() -> Result<()> {
    let lab = Lab::new()?;
    let example = lab.file("example.toml");
    fs::write(&example, places::EXAMPLE_POLICY)?;
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let settings = packaging.join("trefoil.toml");
    let (v4, v6) = (lab.file("geoip"), lab.file("geoip6"));
    for policy in [&example, &packaging.join("policy.toml")] {
        let mut words = vec!["check", text(policy)?, "--config", text(&settings)?];
        for file in [&v4, &v6] {
            words.extend(["--geo", text(file)?]);
        }
        let outcome = verb(&lab, &words)?;
        let policy = policy.display();
        ensure!(finds_only_the_kernel(&outcome), "{policy}: {outcome:?}");
        // The package's policy begins with a region, which is many countries.
        let n_warnings = outcome.stderr.matches(": warning: ").count();
        ensure!(
            n_warnings == outcome.stderr.matches("whole countries").count() && n_warnings <= 1,
            "{outcome:?}"
        );
    }
    lab.close()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

#[test]
fn the_agent_does_not_start_with_a_policy_that_it_does_not_understand() -> Result<()> {
    let lab = Lab::new()?;
    let outcome = lab.agent().policy(TEN_MISTAKES).run_to_end()?;
    assert_eq!(outcome.code, BAD_CONFIGURATION, "{outcome:?}");
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(text.contains("policy.toml:1:"), "{text}");
    assert!(lab.pinned().is_empty(), "{:?}", lab.pinned());
    lab.close()
}

#[test]
fn nor_with_settings_that_it_does_not_understand() -> Result<()> {
    let lab = Lab::new()?;
    let outcome = lab
        .agent()
        .settings("[tabels]\nevents_bytes = 1\n")
        .run_to_end()?;
    assert_eq!(outcome.code, BAD_CONFIGURATION, "{outcome:?}");
    ensure!(
        format!("{}{}", outcome.stdout, outcome.stderr).contains("tabels"),
        "{outcome:?}"
    );
    lab.close()
}

fn policies(records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().filter(|record| record.is("event", "policy"))
}

#[test]
fn a_reload_with_mistakes_keeps_the_old_policy_and_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let before = policies(agent.records()?).count();
    agent.reload(TEN_MISTAKES)?;
    let record = agent.wait_for("a record about the reload", |records| {
        policies(records).nth(before).cloned()
    })?;
    ensure!(record.is("state", "refused"), "{record}");
    let journal = lab.journal()?;
    let sequence = format!("TREFOIL_SEQ={}", record.text("seq"));
    let entry = trefoil_lab::wait_for("its entry", || Ok(journal.entries(&[&sequence])?.pop()))?;
    ensure!(
        entry.number("PRIORITY")? <= 3,
        "a refused policy is an error: {entry}"
    );
    ensure!(entry.text("MESSAGE").contains("policy"), "{entry}");

    let refused = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?;
    assert_eq!(refused.code, REFUSED, "{refused:?}");
    traffic(&lab)?
        .args(["udp", &at(places::PEER, 9)])
        .run()?
        .success()?;
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn a_reload_applies_to_open_flows_from_their_next_packet_on() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let mut agent = lab.agent().policy(&reporting()).start()?;
    let mut held = [&["--connected"][..], &[]]
        .iter()
        .map(|more| {
            let mut held = traffic(&lab)?
                .args(["udp", &at(places::FOREIGN, 9), "--hold"])
                .args(more.iter())
                .start()?;
            held.line()?;
            held.proceed()?;
            held.line()?;
            Ok(held)
        })
        .collect::<Result<Vec<_>>>()?;
    sink.wait_for_packets(2)?;

    let before = policies(agent.records()?).count();
    agent.reload(&enforcing())?;
    let record = agent.wait_for("a record about the reload", |records| {
        policies(records).nth(before).cloned()
    })?;
    ensure!(
        record.is("state", "in-force") && record.is("mode", "enforce"),
        "{record}"
    );

    for mut held in held.drain(..) {
        held.proceed()?;
        let outcome = held.finish()?;
        ensure!(outcome.code == REFUSED, "{outcome:?}");
    }
    assert_eq!(sink.arrived().packets, 2);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

/// Approves by country alone.
const BY_COUNTRY: &str = r#"mode = "enforce"

[[rules]]
name    = "inside"
to      = { countries = ["EEA"] }
verdict = "approve"
"#;

#[test]
fn other_country_data_is_another_generation_and_names_itself() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    // Or the peer's own refusal would be what the socket says next.
    let _peer = UdpSink::new(&lab.peer, 9)?;
    let mut agent = lab.agent().policy(BY_COUNTRY).start()?;
    let first = agent.wait_for("the policy in force", |records| {
        policies(records).next().cloned()
    })?;
    let mut held = traffic(&lab)?
        .args(["udp", &at(places::PEER, 9), "--connected", "--hold"])
        .start()?;
    held.line()?;
    held.proceed()?;
    held.line()?;
    let refused = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?;
    assert_eq!(refused.code, REFUSED, "{refused:?}");

    // The same places the other way round.
    let data = places::country_file_v4();
    let data = data.replace(",CN", ",XX").replace(",DE", ",CN");
    fs::write(lab.file("geoip"), data.replace(",XX", ",IE"))?;
    agent.reload(BY_COUNTRY)?;
    let second = agent.wait_for("a record about the reload", |records| {
        let mut of_policies = policies(records).filter(|record| record.is("state", "in-force"));
        of_policies.nth(1).cloned()
    })?;
    assert_eq!(first.text("policy"), second.text("policy"), "{second}");
    ensure!(first.text("geo") != second.text("geo"), "{first} {second}");

    traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9)])
        .run()?
        .success()?;
    sink.wait_for_packets(1)?;
    held.proceed()?;
    let outcome = held.finish()?;
    ensure!(
        outcome.code == REFUSED,
        "what was open is judged by the new data: {outcome:?}"
    );
    let judged = agent.wait_for("flows under either data", |records| {
        let about = |address: IpAddr, verdict: &str, geo: &Record| {
            let found = records.iter().find(|record| {
                is_about_a_flow(record)
                    && record.is("dst_addr", address)
                    && record.is("verdict", verdict)
                    && record.is("geo", geo.text("geo"))
            });
            found.cloned()
        };
        let refused = about(places::FOREIGN, "unapproved", &first)?;
        let passed = about(places::FOREIGN, "approved", &second)?;
        Some([refused, passed])
    })?;
    ensure!(judged[0].is("dst_country", "CN"), "{}", judged[0]);
    ensure!(judged[1].is("dst_country", "IE"), "{}", judged[1]);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn an_address_that_the_host_loses_is_judged_from_the_next_packet_on() -> Result<()> {
    let lab = Lab::new()?;
    let sink = UdpSink::new(&lab.foreign, 9)?;
    let own = format!("{}/32 dev lo", places::FOREIGN);
    lab.host.ip(&format!("address add {own}\n"))?;
    let mut agent = lab.agent().policy(&enforcing()).start()?;
    let mut held = traffic(&lab)?
        .args(["udp", &at(places::FOREIGN, 9), "--hold"])
        .start()?;
    held.line()?;
    held.proceed()?;
    held.line()?;

    let before = policies(agent.records()?).count();
    lab.host.ip(&format!("address del {own}\n"))?;
    agent.wait_for("another generation of the policy", |records| {
        policies(records).nth(before).cloned()
    })?;
    held.proceed()?;
    let outcome = held.finish()?;
    ensure!(outcome.code == REFUSED, "{outcome:?}");
    assert_eq!(sink.arrived().packets, 0);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}

#[test]
fn reload_ends_when_the_policy_is_in_force_and_fails_when_it_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let send = || {
        traffic(&lab)?
            .args(["udp", &at(places::FOREIGN, 9)])
            .run()
            .map(|outcome| outcome.code)
    };
    let nobody = kernel_verb(&lab, "reload", &[])?;
    ensure!(
        nobody.code == 1 && nobody.stderr.contains("no agent is running"),
        "{nobody:?}"
    );

    let agent = lab.agent().policy(&reporting()).start()?;
    ensure!(send()? == 0);
    // No waiting: what is sent after the verb has ended is judged by the new policy.
    for _ in 0..10 {
        for (policy, expected) in [(enforcing(), REFUSED), (reporting(), 0)] {
            fs::write(lab.file("policy.toml"), policy)?;
            kernel_verb(&lab, "reload", &[])?.success()?;
            assert_eq!(send()?, expected);
        }
    }
    fs::write(lab.file("policy.toml"), TEN_MISTAKES)?;
    let refused = kernel_verb(&lab, "reload", &[])?;
    ensure!(
        refused.code == BAD_CONFIGURATION && refused.stderr.contains("policy.toml:1:"),
        "{refused:?}"
    );
    assert_eq!(send()?, 0);
    agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    lab.close()
}
