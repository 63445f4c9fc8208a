//! Reloads under load: every decision is by one of two policies as a whole, and what
//! both approve does not notice.
//!
//! The policies contradict each other on half of the destinations, and their rules are in
//! opposite order with other ones between. So a decision that read tables of both would
//! deny what both approve, approve what both deny, or name a rule that does not fit its
//! policy; each of these fails the test.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::{detach, kernel_verb};
use trefoil_lab::sink::{TcpSink, UdpSink};
use trefoil_lab::{Lab, Record, places, wait_for};
use world::{is_about_a_flow, traffic};

/// How many reloads there are: a number that is worth waiting for here. Set it to
/// 1000 to see that as many hold.
const RELOADS: &str = "TREFOIL_TEST_RELOADS";
const N_RELOADS: usize = 200;

const UDP_PORT: u16 = 9;
const TCP_PORT: u16 = 443;

/// Approved by both, by the first, by the second, and by none.
const DESTINATIONS: [(&str, IpAddr, [bool; 2]); 4] = [
    ("both", places::GATEWAY, [true, true]),
    ("first", places::PEER, [true, false]),
    ("second", places::FOREIGN, [false, true]),
    ("none", places::UNPLACED, [false, false]),
];

/// The policy with this number, 0 or 1.
fn policy(number: usize) -> String {
    let mut rules: Vec<String> = DESTINATIONS
        .iter()
        .map(|(name, address, approved)| {
            let verdict = if approved[number] { "approve" } else { "deny" };
            format!(
                "[[rules]]\nname = \"{number} {name}\"\nto = {{ networks = [\"{address}/32\"] }}\n\
                 verdict = \"{verdict}\"\n"
            )
        })
        .collect();
    if number == 1 {
        // Other classes of destinations, ports and executables, and more clauses.
        let mut more: Vec<String> = (0..40)
            .map(|n| {
                format!(
                    "[[rules]]\nname = \"1 filler {n}\"\nfrom = {{ exe = \"/nowhere/{n}*\" }}\n\
                     to = {{ networks = [\"192.0.2.{}/32\"], ports = [\"{}/udp\"] }}\n\
                     verdict = \"{}\"\n",
                    100 + n,
                    n + 1,
                    ["approve", "deny"][n % 2],
                )
            })
            .collect();
        rules.reverse();
        more.extend(rules);
        rules = more;
    }
    format!("mode = \"enforce\"\n{}", rules.concat())
}

/// Sends to each destination by datagram, and by connection: those that went, were refused, failed.
type Sent = BTreeMap<(IpAddr, bool), [u64; 3]>;

fn sent(lines: &str) -> Result<Sent> {
    let mut all = Sent::new();
    for line in lines.lines() {
        let line = Record::parse(line)?;
        let to: IpAddr = line.text("to").parse()?;
        let sum = all.entry((to, line.is("way", "tcp"))).or_default();
        for (sum, name) in sum.iter_mut().zip(["went", "refused", "failed"]) {
            *sum += line.number(name)?;
        }
    }
    Ok(all)
}

/// Fails unless a record about a flow agrees with one policy as a whole.
fn agrees(record: &Record, policies: &BTreeMap<String, usize>) -> Result<()> {
    let number = *policies
        .get(&record.text("policy"))
        .with_context(|| format!("of no policy: {record}"))?;
    let to: IpAddr = record.text("dst_addr").parse()?;
    let (name, _, approved) = DESTINATIONS
        .iter()
        .find(|(_, address, _)| *address == to)
        .with_context(|| format!("to nowhere: {record}"))?;
    let verdict = if approved[number] {
        "approved"
    } else {
        "denied"
    };
    ensure!(
        record.is("verdict", verdict) && record.is("rule", format!("{number} {name}")),
        "not what policy {number} says about {name}: {record}"
    );
    Ok(())
}

#[test]
fn every_decision_is_by_one_policy_as_a_whole() -> Result<()> {
    let n_reloads = match std::env::var(RELOADS) {
        Ok(number) => number.parse().context(RELOADS)?,
        Err(_) => N_RELOADS,
    };
    let lab = Lab::new()?;
    let far_ends = [&lab.gateway, &lab.peer, &lab.foreign];
    let datagrams: Vec<UdpSink> = far_ends
        .iter()
        .map(|place| UdpSink::new(place, UDP_PORT))
        .collect::<Result<_>>()?;
    let connections: Vec<TcpSink> = far_ends
        .iter()
        .map(|place| TcpSink::new(place, TCP_PORT))
        .collect::<Result<_>>()?;
    let agent = lab
        .agent()
        .policy(&policy(0))
        .flows("auto")
        .settings("[tables]\nevents_bytes = 67108864\n")
        .start()?;
    let mut sender = traffic(&lab)?
        .args(["rounds", &UDP_PORT.to_string(), &TCP_PORT.to_string()])
        .args(
            DESTINATIONS
                .iter()
                .flat_map(|(_, to, _)| ["--to".to_owned(), to.to_string()]),
        )
        .start()?;
    sender.line()?;

    let policy_file = lab.file("policy.toml");
    let began = Instant::now();
    for number in 1..=n_reloads {
        std::fs::write(&policy_file, policy(number % 2))?;
        kernel_verb(&lab, "reload", &[])?
            .success()
            .with_context(|| format!("reload {number}"))?;
    }
    println!("{n_reloads} reloads in {:.1?}", began.elapsed());
    // All ends well under a policy that stays.
    std::fs::write(&policy_file, policy(0))?;
    kernel_verb(&lab, "reload", &[])?.success()?;

    let outcome = sender.finish()?.success()?;
    let sent = sent(&outcome.stdout)?;
    let mut arrived: BTreeMap<IpAddr, u64> = BTreeMap::new();
    let went: u64 = sent
        .iter()
        .filter(|((_, is_tcp), _)| !is_tcp)
        .map(|(_, [went, ..])| went)
        .sum();
    wait_for("all datagrams arrive", || {
        arrived = datagrams
            .iter()
            .flat_map(UdpSink::by_destination)
            .map(|(to, arrived)| (to, arrived.packets))
            .collect();
        Ok((arrived.values().sum::<u64>() >= went).then_some(()))
    })
    .with_context(|| format!("{sent:?} {arrived:?}"))?;

    for (name, address, approved) in DESTINATIONS {
        for is_tcp in [false, true] {
            let [went, refused, failed] = sent[&(address, is_tcp)];
            println!("{name:6} tcp {is_tcp:5}: {went} went, {refused} refused, {failed} failed");
            ensure!(is_tcp || failed == 0, "datagrams do not fail");
            match approved {
                [true, true] => ensure!(went > 0 && refused + failed == 0, "{name}: lost some"),
                [false, false] => ensure!(went + failed == 0 && refused > 0, "{name}: let some go"),
                _ => ensure!(went > 0 && refused > 0, "{name}: was not under load"),
            }
            if !is_tcp {
                let arrived = arrived.get(&address).copied().unwrap_or_default();
                assert_eq!(arrived, went, "{name}: sent and arrived");
            }
        }
    }
    let [to_both, ..] = sent[&(places::GATEWAY, true)];
    assert_eq!(connections.first().map(TcpSink::connections), Some(to_both));

    let status = kernel_verb(&lab, "status", &["--json"])?;
    let status: serde_json::Value = serde_json::from_str(&status.stdout)?;
    let losses = status["losses"].as_object().context("no losses")?;
    println!("losses: {losses:?}");
    let missing = losses
        .get("policy-missing")
        .and_then(serde_json::Value::as_u64);
    assert_eq!(missing.unwrap_or(0), 0);

    let (_, records) = agent.stop(Signal::SIGTERM)?;
    let policies: BTreeMap<String, usize> = records
        .iter()
        .filter(|record| record.is("event", "policy") && record.is("state", "in-force"))
        .map(|record| {
            let number = usize::from(record.number("rules").unwrap_or(0) > 4);
            (record.text("policy"), number)
        })
        .collect();
    assert_eq!(policies.len(), 2, "{policies:?}");
    let mut verdicts = BTreeSet::new();
    let mut n_records = 0;
    for record in records.iter().filter(|record| is_about_a_flow(record)) {
        agrees(record, &policies)?;
        verdicts.insert((record.text("policy"), record.text("dst_addr")));
        n_records += 1;
    }
    println!("{n_records} records about flows");
    assert_eq!(verdicts.len(), 8, "{verdicts:?}");
    detach(&lab)?;
    lab.close()
}
