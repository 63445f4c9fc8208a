//! Traffic to the foreign host, without a pause or with one, while a test does something.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use trefoil_lab::{Lab, places, wait_for};

use super::{at, traffic};

/// How often each sender has sent.
pub type Rounds = [AtomicU64; 3];

/// Sends to the foreign host without a pause, by a connection, a connected and
/// an unconnected socket, while `act` runs, which is told how often each has sent.
pub fn while_sending<T>(lab: &Lab, act: impl FnOnce(&Rounds) -> Result<T>) -> Result<T> {
    while_sending_every(Duration::ZERO, lab, act)
}

/// Sends as [`while_sending`] does, with a pause between rounds, for what takes long: the
/// processors are left to the agents.
pub fn while_sending_every<T>(
    pause: Duration,
    lab: &Lab,
    act: impl FnOnce(&Rounds) -> Result<T>,
) -> Result<T> {
    let (end, rounds) = (AtomicBool::new(false), Rounds::default());
    let (end, rounds) = (&end, &rounds);
    let datagrams = ["--hold", "--count", "200", "--size", "300"];
    let mut senders = [
        traffic(lab)?
            .args([
                "tcp",
                &at(places::FOREIGN, 443),
                "--hold",
                "peer",
                "--bytes",
                "200000",
            ])
            .start()?,
        traffic(lab)?
            .args(["udp", &at(places::FOREIGN, 9), "--connected"])
            .args(datagrams)
            .start()?,
        traffic(lab)?
            .args(["udp", &at(places::FOREIGN6, 9)])
            .args(datagrams)
            .start()?,
    ];
    for sender in &mut senders {
        sender.line()?;
    }
    std::thread::scope(|scope| -> Result<T> {
        let mut threads = Vec::new();
        for (mut sender, rounds) in senders.into_iter().zip(rounds) {
            threads.push(scope.spawn(move || -> Result<()> {
                while !end.load(Ordering::Relaxed) {
                    sender.proceed()?;
                    sender.line()?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(pause);
                }
                sender.finish()?.success()?;
                Ok(())
            }));
        }
        let acted = act(rounds);
        end.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        acted
    })
}

/// Waits until each sender has sent some more: the round that it is in, and others.
pub fn some_more(rounds: &Rounds) -> Result<()> {
    for of_one in rounds {
        let goal = of_one.load(Ordering::Relaxed) + 4;
        wait_for("more is sent", || {
            Ok((of_one.load(Ordering::Relaxed) >= goal).then_some(()))
        })?;
    }
    Ok(())
}
