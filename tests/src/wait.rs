//! Waiting for a condition, never for an amount of time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take on a machine that has much else to do. It is
/// a bound for hopeless cases and no expectation: a test that has to wait this
/// long has failed.
pub const PATIENCE: Duration = Duration::from_secs(240);

const PAUSE: Duration = Duration::from_millis(5);

/// Asks until the answer is `Some`, and fails with `what` after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited {} s in vain: {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}
