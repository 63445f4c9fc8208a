//! Messages between the host and the program in the guest: one line of JSON for
//! each request, one for each answer, over a serial port.
//!
//! A line that is no message is skipped by both: after a reboot of the guest
//! half a line of the time before may still be on its way.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Name of the serial port, as the guest finds it in /dev/virtio-ports.
pub const PORT: &str = "trefoil";

/// A command for the guest's shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Repeated in the answer.
    pub id: u64,
    /// Command that `sh -c` runs.
    pub command: String,
    /// Its standard input.
    pub stdin: String,
}

/// Message from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// It has just started, in this boot of the guest.
    Hello {
        /// As in /proc/sys/kernel/random/boot_id.
        boot_id: String,
    },
    /// The command of request `id` has ended.
    Answer {
        /// Id of the request.
        id: u64,
        /// Exit code; 128 and the signal if it died of one, as in a shell.
        code: i32,
        /// Standard output.
        stdout: String,
        /// Standard error.
        stderr: String,
    },
}

impl Request {
    /// As a line, its end included.
    pub fn to_line(&self) -> String {
        let Self { id, command, stdin } = self;
        format!(
            "{}\n",
            json!({ "id": id, "command": command, "stdin": stdin })
        )
    }

    /// From a line.
    pub fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).context("a request in JSON")?;
        Ok(Self {
            id: value["id"].as_u64().context("an id")?,
            command: text(&value, "command")?,
            stdin: text(&value, "stdin")?,
        })
    }
}

impl Message {
    /// As a line, its end included.
    pub fn to_line(&self) -> String {
        let value = match self {
            Self::Hello { boot_id } => json!({ "boot_id": boot_id }),
            Self::Answer {
                id,
                code,
                stdout,
                stderr,
            } => json!({ "id": id, "code": code, "stdout": stdout, "stderr": stderr }),
        };
        format!("{value}\n")
    }

    /// From a line.
    pub fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).context("a message in JSON")?;
        if value.get("boot_id").is_some() {
            let boot_id = text(&value, "boot_id")?;
            return Ok(Self::Hello { boot_id });
        }
        let code = value["code"].as_i64().context("an exit code")?;
        Ok(Self::Answer {
            id: value["id"].as_u64().context("an id")?,
            code: i32::try_from(code).context("an exit code")?,
            stdout: text(&value, "stdout")?,
            stderr: text(&value, "stderr")?,
        })
    }
}

fn text(value: &Value, name: &str) -> Result<String> {
    let text = value[name].as_str().with_context(|| format!("no {name}"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let request = Request {
            id: 7,
            command: "printf 'a\nb'".into(),
            stdin: "\u{0}\"\\".into(),
        };
        let line = request.to_line();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Request::parse(&line)?, request);

        for message in [
            Message::Hello {
                boot_id: "b".into(),
            },
            Message::Answer {
                id: 7,
                code: -1,
                stdout: "a\nb".into(),
                stderr: String::new(),
            },
        ] {
            assert_eq!(Message::parse(&message.to_line())?, message);
        }
        Ok(())
    }

    #[test]
    fn half_a_line_is_no_message() {
        assert!(Message::parse("de\":0,\"stdout\":\"\"}").is_err());
    }
}
