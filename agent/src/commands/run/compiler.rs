//! The thread that reads policy and country data anew, and compiles.
//!
//! Reading a million prefixes takes long on a slow host, and the loop has to drain
//! events meanwhile and to tell the service manager that it lives. Puts nothing in
//! force: the loop does.

use std::{io, net::IpAddr, sync::Arc, sync::mpsc, thread};

use tokio::sync::mpsc as results;

use super::super::sources::Origins;
use crate::{
    clock,
    geo::Geo,
    monitor::Compilation,
    privileges::{self, Duty},
    settings::Settings,
};

/// Compiles on request, one request at a time.
pub struct Compiler {
    requests: mpsc::Sender<Request>,
    results: results::UnboundedReceiver<Renewal>,
    is_busy: bool,
    /// Somebody has asked again meanwhile.
    again: bool,
}

/// Request to compile, by what has changed.
enum Request {
    /// Somebody wants policy and country data read anew.
    Reread,
    /// The host has these addresses now.
    Addresses(Vec<IpAddr>),
}

/// Result of a request.
pub struct Renewal {
    /// True if a person asked for it.
    pub is_asked: bool,
    /// When the reading began, nanoseconds since boot.
    pub began_ns: u64,
    /// The policy to put in force.
    pub result: Result<Renewed, Refusal>,
}

/// A policy, and what it was made with.
pub struct Renewed {
    /// The policy.
    pub policy: Compilation,
    /// Country data.
    pub geo: Arc<Geo>,
    /// The host's addresses.
    pub own_addresses: Vec<IpAddr>,
}

/// Why there is no policy to put in force.
pub struct Refusal {
    /// Source that was read.
    pub source: String,
    /// Problems of the source.
    pub problems: String,
}

impl Compiler {
    /// Starts the thread. `origins` is what the policy in force was made from.
    pub fn start(settings: Settings, origins: Origins) -> io::Result<Self> {
        let (requests, asked) = mpsc::channel();
        let (done, results) = results::unbounded_channel();
        thread::Builder::new()
            .name("compiler".to_owned())
            .spawn(move || {
                privileges::keep_only(Duty::Compiler);
                answer(&asked, &done, &settings, origins);
            })?;
        Ok(Self {
            requests,
            results,
            is_busy: false,
            again: false,
        })
    }

    /// True while a policy is being made.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Asks for everything to be read anew. A compilation that is under way is finished
    /// first and does not do, since its files were read before.
    pub fn reread(&mut self) {
        if self.is_busy {
            self.again = true;
        } else {
            self.ask(Request::Reread);
        }
    }

    /// Asks for the same policy with other addresses of the host. Not while it is busy.
    pub fn readdress(&mut self, own_addresses: Vec<IpAddr>) {
        self.ask(Request::Addresses(own_addresses));
    }

    fn ask(&mut self, request: Request) {
        self.is_busy = true;
        // If the thread has ended, `done` says so.
        let _ = self.requests.send(request);
    }

    /// Waits for the policy that was asked for; for ever if none was. `None`: the
    /// thread has ended, which it does only by a panic.
    pub async fn done(&mut self) -> Option<Renewal> {
        let renewal = self.results.recv().await?;
        self.is_busy = false;
        if std::mem::take(&mut self.again) {
            self.ask(Request::Reread);
        }
        Some(renewal)
    }
}

fn answer(
    requests: &mpsc::Receiver<Request>,
    done: &results::UnboundedSender<Renewal>,
    settings: &Settings,
    mut origins: Origins,
) {
    for request in requests {
        let renewal = Renewal {
            is_asked: matches!(request, Request::Reread),
            began_ns: clock::since_boot_ns(),
            result: renew(request, settings, &mut origins),
        };
        if done.send(renewal).is_err() {
            return;
        }
    }
}

/// Compiles; what cannot be used leaves `origins` as they were.
fn renew(request: Request, settings: &Settings, origins: &mut Origins) -> Result<Renewed, Refusal> {
    match request {
        Request::Reread => {
            let read = Origins::read(settings).map_err(|failure| Refusal {
                source: settings.policy.display().to_string(),
                problems: failure.to_string(),
            })?;
            let renewed = compile(&read)?;
            *origins = read;
            Ok(renewed)
        }
        Request::Addresses(own_addresses) => {
            origins.own_addresses = own_addresses;
            compile(origins)
        }
    }
}

fn compile(origins: &Origins) -> Result<Renewed, Refusal> {
    let policy = origins.compile().map_err(|problems| Refusal {
        source: origins.text.source.clone(),
        problems: problems.to_string(),
    })?;
    Ok(Renewed {
        policy,
        geo: Arc::clone(&origins.geo),
        own_addresses: origins.own_addresses.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Settings that name files in a directory.
    fn settings(dir: &Path) -> Settings {
        let file = dir.join("trefoil.toml");
        let [policy, geo] = ["policy.toml", "geo"].map(|name| dir.join(name));
        let text = format!("policy = {policy:?}\ngeo = [{geo:?}]\n");
        fs::write(&file, text).unwrap();
        fs::write(geo, "192.0.2.0,192.0.2.255,IE\n").unwrap();
        Settings::load(Some(&file)).unwrap()
    }

    fn write_policy(settings: &Settings, mode: &str) {
        fs::write(&settings.policy, format!("mode = \"{mode}\"\n")).unwrap();
    }

    fn mode(renewal: Renewal) -> Result<&'static str, String> {
        match renewal.result {
            Ok(renewed) => Ok(renewed.policy.compiled.mode().as_str()),
            Err(refusal) => Err(refusal.problems),
        }
    }

    #[tokio::test]
    async fn who_asks_while_it_is_busy_gets_what_was_written_before() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        write_policy(&settings, "report");
        let origins = Origins::read(&settings).unwrap();
        let mut compiler = Compiler::start(settings.clone(), origins).unwrap();
        compiler.readdress(vec!["192.0.2.1".parse().unwrap()]);
        write_policy(&settings, "enforce");
        compiler.reread();
        let first = compiler.done().await.unwrap();
        assert!(!first.is_asked);
        assert_eq!(mode(first), Ok("report"));
        assert!(compiler.is_busy());
        let second = compiler.done().await.unwrap();
        assert!(second.is_asked);
        assert_eq!(mode(second), Ok("enforce"));
        assert!(!compiler.is_busy());
    }

    #[tokio::test]
    async fn a_policy_that_is_refused_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        write_policy(&settings, "report");
        let origins = Origins::read(&settings).unwrap();
        let mut compiler = Compiler::start(settings.clone(), origins).unwrap();
        write_policy(&settings, "reprot");
        compiler.reread();
        let refused = mode(compiler.done().await.unwrap()).unwrap_err();
        assert!(refused.contains("reprot"), "{refused}");
        compiler.readdress(Vec::new());
        assert_eq!(mode(compiler.done().await.unwrap()), Ok("report"));
    }
}
