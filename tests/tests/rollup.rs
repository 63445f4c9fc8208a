//! Rolled up or not, every byte and every refusal is in exactly one final record.

mod world;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use trefoil_lab::agent::detach;
use trefoil_lab::sink::UdpSink;
use trefoil_lab::{Lab, Record, places};
use world::{REFUSED, TRAFFIC, approving, at, enforcing, gapless, is_final, told, traffic};

const MANY: u64 = 500;

/// [`MANY`] processes that send a datagram to the foreign host.
fn burst(lab: &Lab) -> Result<Vec<Record>> {
    let outcome = traffic(lab)?
        .args([
            "burst",
            &at(places::FOREIGN, 9),
            "--count",
            &MANY.to_string(),
        ])
        .args(["--program", TRAFFIC])
        .run()?
        .success()?;
    told(&outcome)
}

/// Records whose numbers are in no other.
fn is_counted(record: &Record) -> bool {
    is_final(record) || record.is("state", "rollup")
}

fn sum(records: &[Record], name: &str) -> Result<u64> {
    let counted = records.iter().filter(|record| is_counted(record));
    counted.map(|record| record.number(name).or(Ok(0))).sum()
}

#[test]
fn rolled_up_flows_add_up() -> Result<()> {
    for (flows, settings) in [("rollup", ""), ("auto", "flows_rate = 10\n")] {
        let lab = Lab::new()?;
        let sink = UdpSink::new(&lab.foreign, 9)?;
        let agent = lab
            .agent()
            .policy(&approving())
            .settings(settings)
            .flows(flows)
            .start()?;
        burst(&lab)?;
        sink.wait_for_packets(MANY)?;
        let (_, records) = agent.stop(Signal::SIGINT)?;
        let link = lab.link_to(&lab.foreign)?;
        assert_eq!(sum(&records, "packets_out")?, link.tx_packets, "{flows}");
        assert_eq!(sum(&records, "bytes_out")?, link.ip_bytes_out(), "{flows}");
        let new = records
            .iter()
            .map(|record| record.number("bytes_new").or(Ok(0)));
        let new: u64 = new.sum::<Result<u64>>()?;
        assert_eq!(new, link.ip_bytes_out(), "{flows}");
        let rollups: Vec<&Record> = records
            .iter()
            .filter(|record| record.is("state", "rollup"))
            .collect();
        let finals = records.iter().filter(|record| is_final(record)).count() as u64;
        let mut rolled_up = 0;
        for rollup in &rollups {
            rolled_up += rollup.number("flows")?;
            for (name, expected) in [
                ("exe", TRAFFIC),
                ("unit", "lab.service"),
                ("rule", "anywhere"),
                ("dst_port", "9"),
            ] {
                ensure!(
                    rollup.is(name, expected),
                    "{name} is not {expected}: {rollup}"
                );
            }
        }
        assert_eq!(rolled_up + finals, MANY, "{flows}");
        ensure!(
            !rollups.is_empty() && (flows == "auto" || finals == 0),
            "{flows}: {finals}"
        );
        gapless(&records)?;
        lab.close()?;
    }
    Ok(())
}

#[test]
fn a_flood_of_violations_is_counted_exactly() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab
        .agent()
        .policy(&enforcing())
        .settings("violations_rate = 10\n")
        .start()?;
    let children = burst(&lab)?;
    ensure!(children.iter().all(|child| child.is("code", REFUSED)));
    let (_, records) = agent.stop(Signal::SIGTERM)?;
    detach(&lab)?;
    let violations: Vec<Record> = records
        .iter()
        .filter(|record| record.is("event", "violation"))
        .cloned()
        .collect();
    assert_eq!(sum(&violations, "refused")?, MANY, "{violations:?}");
    assert_eq!(sum(&violations, "bytes_out")?, 0);
    ensure!(
        (violations.len() as u64) < MANY / 2,
        "{} records",
        violations.len()
    );
    gapless(&records)?;
    lab.close()
}
