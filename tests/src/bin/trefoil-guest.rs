//! The program in the guest of a VM test that runs what the host asks for.
//!
//! It is on a disk of its own, so that a change of it needs no other image, and
//! has a serial port to the host: no network, which the tests need for
//! themselves. `trefoil-guest objects` lists the BPF objects in the kernel, except
//! those of systemd, which come and go; `trefoil-guest detach PIN` takes the program of a
//! pinned link from where it is attached; `trefoil-guest write PIN` writes ones to the first
//! element of a pinned array. It knows nothing about Trefoil.

use std::fs::{File, OpenOptions, read_to_string};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use trefoil_lab::kernel::{detach_link, element, names, pinned, set_element};
use trefoil_lab::vm::wire::{Message, PORT, Request};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => serve(),
        ["detach", pin] => detach_link(Path::new(pin)),
        ["write", pin] => {
            let map = pinned(Path::new(pin))?;
            let mut ones = vec![1; element(&map, 0)?.len()];
            set_element(&map, 0, &mut ones).with_context(|| format!("write to {pin}"))
        }
        ["objects"] => {
            for name in names()?.iter().filter(|name| !name.contains(" sd_")) {
                println!("{name}");
            }
            Ok(())
        }
        _ => bail!("{arguments:?} is not understood"),
    }
}

/// Runs commands until the machine is shut down.
fn serve() -> Result<()> {
    let path = Path::new("/dev/virtio-ports").join(PORT);
    let mut port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let boot_id = read_to_string("/proc/sys/kernel/random/boot_id")?;
    say(
        &mut port,
        &Message::Hello {
            boot_id: boot_id.trim().to_owned(),
        },
    )?;
    for line in BufReader::new(port.try_clone()?).lines() {
        let Ok(request) = Request::parse(&line?) else {
            continue;
        };
        say(&mut port, &answer(&request))?;
    }
    bail!("the host closed {}", path.display())
}

fn say(port: &mut File, message: &Message) -> Result<()> {
    port.write_all(message.to_line().as_bytes())
        .context("write to the host")
}

/// Runs a request to its end. A program that could not be started has an exit
/// code, too: that of a shell which finds no such program.
fn answer(request: &Request) -> Message {
    let (code, stdout, stderr) = match run(request) {
        Ok(ended) => ended,
        Err(error) => (127, String::new(), format!("{error:#}")),
    };
    Message::Answer {
        id: request.id,
        code,
        stdout,
        stderr,
    }
}

fn run(request: &Request) -> Result<(i32, String, String)> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &request.command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start /bin/sh")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command that does not read all of it is no error.
            let _ = stdin.write_all(request.stdin.as_bytes());
        });
        child.wait_with_output()
    })
    .context("wait for /bin/sh")?;
    let signal = output.status.signal().map(|signal| 128 + signal);
    Ok((
        output.status.code().or(signal).unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
