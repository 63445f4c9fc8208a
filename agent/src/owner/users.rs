//! Login names of user ids.
//!
//! The system's user database may be a directory server that is slow or gone
//! (libnss_sss, libnss_ldap), and the agent must not stand still with it. So
//! look-ups happen on a thread of their own, and a report waits for one only
//! for a moment.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Group, Uid, User};

use crate::bounded;
use crate::policy::Users;
use crate::privileges::{self, Duty};

/// How long a name is believed without asking again.
const BELIEVED: Duration = Duration::from_secs(60);
/// The same for ids that systemd gives to another service as soon as one has
/// ended (`DynamicUser=`), where a remembered name could be the wrong one.
const BELIEVED_DYNAMIC: Duration = Duration::from_secs(1);
/// The ids that `DynamicUser=` takes.
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// How long a caller waits for an answer. Files answer in far less.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many answers are kept. A host with more active users asks again.
const MOST_KEPT: usize = 4096;
/// How many questions may wait for the user database.
const MOST_WAITING: usize = 64;

/// Looks up who a user id is.
pub struct Logins {
    patience: Duration,
    shared: Arc<Shared>,
    questions: SyncSender<u32>,
}

struct Shared {
    known: Mutex<Known>,
    answered: Condvar,
}

#[derive(Default)]
struct Known {
    names: HashMap<u32, Entry>,
    /// Questions that are not answered yet.
    waiting: Vec<u32>,
}

struct Entry {
    name: Option<String>,
    until: Instant,
}

impl Logins {
    /// Starts the thread that asks the system's user database.
    pub fn start() -> io::Result<Self> {
        Self::start_with(PATIENCE, of_system)
    }

    fn start_with<F>(patience: Duration, look_up: F) -> io::Result<Self>
    where
        F: Fn(u32) -> io::Result<Option<String>> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            known: Mutex::default(),
            answered: Condvar::new(),
        });
        let (questions, asked) = mpsc::sync_channel(MOST_WAITING);
        let answers = Arc::clone(&shared);
        thread::Builder::new()
            .name("logins".to_owned())
            .spawn(move || {
                privileges::keep_only(Duty::Logins);
                answer(&asked, &answers, look_up);
            })?;
        Ok(Self {
            patience,
            shared,
            questions,
        })
    }

    /// The login name of this user; `None` if there is none, or none yet: an
    /// answer that takes long is there for a later question.
    #[must_use]
    pub fn name(&self, uid: u32) -> Option<String> {
        let mut known = self.shared.lock();
        let now = Instant::now();
        if let Some(entry) = known.names.get(&uid).filter(|entry| now < entry.until) {
            return entry.name.clone();
        }
        // While the database keeps others waiting, nobody waits for it in vain.
        let is_slow = !known.waiting.is_empty();
        if !known.waiting.contains(&uid) && self.questions.try_send(uid).is_ok() {
            known.waiting.push(uid);
        }
        if is_slow {
            return None;
        }
        let (known, _) = self
            .shared
            .answered
            .wait_timeout_while(known, self.patience, |known| known.waiting.contains(&uid))
            .unwrap_or_else(PoisonError::into_inner);
        // An answer that just came is good even if it may not be kept for long.
        let entry = known.names.get(&uid).filter(|entry| now < entry.until);
        entry.and_then(|entry| entry.name.clone())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Both threads leave the table whole at every point where they could panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_system(uid: u32) -> io::Result<Option<String>> {
    Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name))
}

/// The thread: one look-up after the other, until the questions' sender is gone.
fn answer<F>(asked: &Receiver<u32>, shared: &Shared, look_up: F)
where
    F: Fn(u32) -> io::Result<Option<String>>,
{
    while let Ok(uid) = asked.recv() {
        // A database that fails is asked again, like one that knows nothing.
        let name = look_up(uid).unwrap_or_default();
        let believed = if DYNAMIC.contains(&uid) {
            BELIEVED_DYNAMIC
        } else {
            BELIEVED
        };
        let now = Instant::now();
        let mut known = shared.lock();
        known.waiting.retain(|waiting| *waiting != uid);
        if known.names.len() >= MOST_KEPT {
            known.names.retain(|_, entry| now < entry.until);
        }
        if known.names.len() >= MOST_KEPT {
            known.names.clear();
        }
        known.names.insert(
            uid,
            Entry {
                name,
                until: now + believed,
            },
        );
        shared.answered.notify_all();
    }
}

/// The id of the user with this login name, for a policy that names him. Waits
/// for the user database however long it takes.
///
/// # Errors
///
/// The user database cannot be asked, which is not the same as "no such user".
pub fn uid(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// The id of the group with this name, as [`uid`].
///
/// # Errors
///
/// The user database cannot be asked.
pub fn gid(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// This host's users and groups, as its database has them. Where that cannot be
/// asked, nobody is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfHost;

impl Users for OfHost {
    fn uid(&self, name: &str) -> Option<u32> {
        uid(name).ok().flatten()
    }

    fn gid(&self, name: &str) -> Option<u32> {
        gid(name).ok().flatten()
    }

    fn subordinate_uids(&self, uid: u32, name: Option<&str>) -> Option<Vec<(u32, u32)>> {
        let file = read("/etc/subuid")?;
        // Several login names may have one id, and each of them a line.
        let passwd = read("/etc/passwd")?;
        let named = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        });
        let mut owners: Vec<String> = named.collect();
        owners.extend(of_system(uid).ok()?);
        owners.extend(name.map(str::to_owned));
        owners.push(uid.to_string());
        subordinate(&file, |owner| owners.iter().any(|own| own == owner))
    }

    fn subordinate_gids(&self) -> Option<Vec<(u32, u32)>> {
        subordinate(&read("/etc/subgid")?, |_| true)
    }
}

/// Ranges of ids, by whom they are asked for.
type Ranges<K> = HashMap<K, Option<Vec<(u32, u32)>>>;

/// As [`OfHost`], and each question is asked once: for whoever asks the same of record after record.
#[derive(Debug, Default)]
pub struct OfHostOnce {
    uids: RefCell<HashMap<String, Option<u32>>>,
    gids: RefCell<HashMap<String, Option<u32>>>,
    subordinate_uids: RefCell<Ranges<(u32, Option<String>)>>,
    subordinate_gids: OnceCell<Option<Vec<(u32, u32)>>>,
}

impl Users for OfHostOnce {
    fn uid(&self, name: &str) -> Option<u32> {
        let mut known = self.uids.borrow_mut();
        *known
            .entry(name.to_owned())
            .or_insert_with(|| OfHost.uid(name))
    }

    fn gid(&self, name: &str) -> Option<u32> {
        let mut known = self.gids.borrow_mut();
        *known
            .entry(name.to_owned())
            .or_insert_with(|| OfHost.gid(name))
    }

    fn subordinate_uids(&self, uid: u32, name: Option<&str>) -> Option<Vec<(u32, u32)>> {
        let mut known = self.subordinate_uids.borrow_mut();
        let entry = known.entry((uid, name.map(str::to_owned)));
        let ranges = entry.or_insert_with(|| OfHost.subordinate_uids(uid, name));
        ranges.clone()
    }

    fn subordinate_gids(&self) -> Option<Vec<(u32, u32)>> {
        let ranges = self
            .subordinate_gids
            .get_or_init(|| OfHost.subordinate_gids());
        ranges.clone()
    }
}

/// The content of a file, empty if the host has none; `None` if it cannot be read.
fn read(path: &str) -> Option<String> {
    /// Those of 200,000 users.
    const MAX_BYTES: u64 = 4 << 20;
    match bounded::read_text(Path::new(path), MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(String::new()),
        read => read.ok(),
    }
}

/// The ranges of subordinate ids, first and last, that a file as of subuid(5) gives to these owners: a
/// login name or a user id, the first id and the number of ids on each line. `None` if a line about one
/// of them says something else.
fn subordinate(file: &str, is_owner: impl Fn(&str) -> bool) -> Option<Vec<(u32, u32)>> {
    let mut ranges = Vec::new();
    for line in file.lines() {
        let mut fields = line.split(':').map(str::trim);
        let is_comment = line.starts_with('#') || line.trim().is_empty();
        if is_comment || !fields.next().is_some_and(&is_owner) {
            continue;
        }
        let (first, count): (u32, u32) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        if let Some(more) = count.checked_sub(1) {
            ranges.push((first, first.saturating_add(more)));
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Long enough for a machine that is busy with other things.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_is_asked_once_says_the_same() {
        let once = OfHostOnce::default();
        for _ in 0..2 {
            assert_eq!(once.uid("root"), Some(0));
            assert_eq!(once.gid("root"), Some(0));
            assert_eq!(once.gid("no-group-is-called-like-this"), None);
            assert_eq!(once.subordinate_gids(), OfHost.subordinate_gids());
            for uid in [0, 4_000_000_001] {
                let asked = once.subordinate_uids(uid, None);
                assert_eq!(asked, OfHost.subordinate_uids(uid, None));
            }
        }
        assert_eq!(once.uids.borrow().len(), 1);
        assert_eq!(once.subordinate_uids.borrow().len(), 2);
    }

    #[test]
    fn root_has_a_name_on_every_host() {
        let logins = Logins::start_with(LONG, of_system).unwrap();
        assert_eq!(logins.name(0).as_deref(), Some("root"));
        assert_eq!(logins.name(4_000_000_001), None);
        assert_eq!(uid("root").unwrap(), Some(0));
        assert_eq!(uid("no-user-is-called-like-this").unwrap(), None);
        assert_eq!(gid("root").unwrap(), Some(0));
        assert_eq!(OfHost.gid("no-group-is-called-like-this"), None);
    }

    #[test]
    fn subordinate_ids_are_those_of_their_owner() {
        let file = "bob:100000:65536\n# nobody's\n\n1001:300000:10\nalice:165536:65536\nbob:500:0\n\
                    bob:4294967290:100\n";
        let of = |owner: &'static str| subordinate(file, move |one| one == owner);
        let of_bob = vec![(100_000, 165_535), (4_294_967_290, u32::MAX)];
        assert_eq!(of("bob"), Some(of_bob));
        assert_eq!(of("1001"), Some(vec![(300_000, 300_009)]));
        assert_eq!(of("bo"), Some(vec![]));
        assert_eq!(subordinate(file, |_| true).unwrap().len(), 4);
        for line in ["bob", "bob:1", "bob:x:1", "bob:1:0x10", "bob:1:4294967296"] {
            assert_eq!(subordinate(line, |_| true), None, "{line}");
            assert_eq!(subordinate(line, |_| false), Some(vec![]), "{line}");
        }
    }

    #[test]
    fn an_answer_is_kept_for_its_time() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let logins = Logins::start_with(LONG, move |uid| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok((uid != 7).then(|| format!("user{uid}")))
        })
        .unwrap();
        for _ in 0..3 {
            assert_eq!(logins.name(1).as_deref(), Some("user1"));
            assert_eq!(
                logins.name(7),
                None,
                "that there is no name is an answer, too"
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        let until = |uid: u32| logins.shared.lock().names[&uid].until;
        assert!(until(1) > Instant::now() + BELIEVED / 2);
        logins.shared.lock().names.get_mut(&1).unwrap().until = Instant::now();
        assert_eq!(logins.name(1).as_deref(), Some("user1"));
        assert_eq!(asked.load(Ordering::SeqCst), 3);

        assert_eq!(logins.name(*DYNAMIC.start()).as_deref(), Some("user61184"));
        assert!(until(*DYNAMIC.start()) <= Instant::now() + BELIEVED_DYNAMIC);
    }

    #[test]
    fn a_database_that_hangs_keeps_nobody_waiting() {
        let (release, released) = mpsc::channel::<()>();
        let logins = Logins::start_with(PATIENCE, move |uid| {
            released.recv().ok();
            Ok(Some(format!("user{uid}")))
        })
        .unwrap();
        let start = Instant::now();
        for uid in 0..1000 {
            assert_eq!(logins.name(uid), None);
        }
        assert!(
            start.elapsed() < PATIENCE * 20,
            "only the first caller waits"
        );
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while logins.name(0).is_none() {
            assert!(Instant::now() < deadline, "the answer never came");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(logins.name(0).as_deref(), Some("user0"));
    }

    #[test]
    fn the_table_does_not_grow_without_end() {
        let logins = Logins::start_with(LONG, |_| Ok(None)).unwrap();
        for uid in 0..MOST_KEPT as u32 + 100 {
            assert_eq!(logins.name(uid), None);
        }
        assert!(logins.shared.lock().names.len() <= MOST_KEPT);
    }
}
