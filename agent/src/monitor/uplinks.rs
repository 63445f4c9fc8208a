//! Records of the loop about uplinks: which are watched, and what their books hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
};

use trefoil_ebpf::abi::{Uplink, UplinkBooks};

use super::{Follower, Monitor, UplinkNews};
use crate::{
    clock::{self, BootClock},
    kernel::{Kernel, KernelError, Others, RouteSocket, UplinkTable},
    report::{Balanced, Coverage, Record},
    settings,
    uplinks::Link,
};

/// The uplinks that are watched.
pub(super) struct Uplinks {
    table: UplinkTable,
    routes: RouteSocket,
    /// `None` if nobody follows interfaces, or not any more.
    news: Option<mpsc::Receiver<UplinkNews>>,
    watched: BTreeMap<u32, Watched>,
    unwatched: BTreeMap<Place, Unwatched>,
}

/// The number of the network namespace, if it is another, and of the interface.
type Place = (Option<u32>, u32);

/// An interface that may send out of the host, and that nobody watches.
struct Unwatched {
    subject: String,
    reason: String,
}

struct Watched {
    link: Link,
    uplink: Uplink,
}

impl Watched {
    fn subject(&self) -> String {
        subject(&self.link, self.uplink.is_tunnel())
    }
}

const ELSEWHERE: &str =
    "it is in another network namespace, and what leaves by it there no uplink's hook sees";

/// Returns the subject of records about an interface.
fn subject(link: &Link, is_tunnel: bool) -> String {
    let what = if is_tunnel { "tunnel" } else { "uplink" };
    format!("{what} {}", link.name)
}

impl Uplinks {
    /// Before the programs come into force: finds the interfaces that lead out, and has
    /// them watched from then on. The second is what there is to say of them.
    pub(super) fn prepare(
        kernel: &Kernel,
        wanted: &settings::Uplinks,
    ) -> Result<(Option<Follower>, Vec<UplinkNews>), KernelError> {
        let mut news = Vec::new();
        if *wanted == settings::Uplinks::None {
            return Ok((None, news));
        }
        let Some(hook) = kernel.uplink_hook()? else {
            return Ok((None, news));
        };
        let mut follower = Follower::new(hook, wanted.clone())?;
        follower.look(&mut news)?;
        Ok((Some(follower), news))
    }

    /// With the programs in force: follows what changes from now on. `told` is what came
    /// before.
    pub(super) fn follow(
        kernel: &Kernel,
        follower: Option<Follower>,
        told: &[UplinkNews],
    ) -> Result<Self, KernelError> {
        let mut news = None;
        if let Some(mut follower) = follower {
            follower.in_force(told)?;
            let (sender, receiver) = mpsc::channel();
            follower
                .start(sender)
                .map_err(|error| KernelError::failed("start a thread", error))?;
            news = Some(receiver);
        }
        Ok(Self {
            table: UplinkTable::open(kernel.pins())?,
            routes: RouteSocket::open()?,
            news,
            watched: BTreeMap::new(),
            unwatched: BTreeMap::new(),
        })
    }

    pub(super) fn routes(&mut self) -> &mut RouteSocket {
        &mut self.routes
    }

    /// Returns the subjects of records about those that are watched, by index.
    pub(super) fn subjects(&self) -> Vec<(u32, String)> {
        let watched = self.watched.iter();
        watched
            .map(|(index, watched)| (*index, watched.subject()))
            .collect()
    }

    /// Interfaces that may send out of the host and are not watched, with the reason.
    pub(super) fn unwatched(&self) -> Vec<(String, String)> {
        let all = self.unwatched.values();
        all.map(|one| (one.subject.clone(), one.reason.clone()))
            .collect()
    }

    /// Notes that nobody watches an interface. Returns what there is to say, unless that was
    /// said.
    fn leave(&mut self, place: Place, link: &Link, is_tunnel: bool, why: &str) -> Option<Record> {
        let subject = subject(link, is_tunnel);
        let record = Record::coverage(&subject, Coverage::Uncovered, Some(why), clock::unix_us());
        let reason = why.to_owned();
        let is_new = self.unwatched.insert(place, Unwatched { subject, reason });
        is_new.is_none().then_some(record)
    }

    /// Which interface sends out of the host without a watcher no more. Returns what there is
    /// to say.
    fn settle(&mut self, place: Place) -> Option<Record> {
        let Unwatched { subject, .. } = self.unwatched.remove(&place)?;
        let reason = Some("it is down or gone, and sends nothing");
        let record = Record::coverage(&subject, Coverage::Covered, reason, clock::unix_us());
        Some(record)
    }

    /// Takes over which devices are in other network namespaces. Returns what there is to say.
    fn look_elsewhere(&mut self, links: &[(u32, Link)]) -> Vec<Record> {
        let place = |(namespace, link): &(u32, Link)| (Some(*namespace), link.index);
        let there: BTreeSet<Place> = links.iter().map(place).collect();
        let before: Vec<Place> = self.unwatched.keys().copied().collect();
        let gone = before.into_iter();
        let gone = gone.filter(|place| place.0.is_some() && !there.contains(place));
        let mut records: Vec<Record> = gone.filter_map(|place| self.settle(place)).collect();
        for one in links {
            records.extend(self.leave(place(one), &one.1, false, ELSEWHERE));
        }
        records
    }

    /// All counters in the books of an interface; `None` if it has none.
    pub(super) fn counters(&self, index: u32) -> Result<Option<Vec<u64>>, KernelError> {
        let (uplink, books) = (self.table.get(index)?, self.table.books(index)?);
        Ok(uplink.and(books).map(|books| {
            let counters = books.judged.iter().chain(&books.unjudged);
            let counters = counters.chain(&books.dropped);
            counters
                .flat_map(|sum| [sum.bytes, sum.wire_bytes, sum.frames])
                .collect()
        }))
    }

    /// False if the interface is gone.
    pub(super) fn is_there(&mut self, index: u32) -> bool {
        !matches!(self.routes.counters(index), Ok(None))
    }

    /// Opens books again that somebody has closed.
    pub(super) fn begin_again(&mut self, index: u32) -> Result<(), KernelError> {
        match self.watched.get(&index) {
            Some(watched) => self.table.begin(index, &watched.uplink),
            None => Ok(()),
        }
    }
}

impl Monitor {
    /// Reports which interfaces are watched from the start.
    pub(super) fn report_uplinks(
        &mut self,
        wanted: &settings::Uplinks,
        news: Vec<UplinkNews>,
    ) -> Result<(), KernelError> {
        for one in news {
            self.tell_uplink(one, false)?;
        }
        let mut watched = self.uplinks.watched.values();
        if watched.all(|watched| watched.uplink.is_tunnel()) {
            let why = match wanted {
                settings::Uplinks::None => "the settings say to watch no uplink",
                settings::Uplinks::Named(_) => {
                    "none of the uplinks that the settings name is there"
                }
                settings::Uplinks::Auto => "no interface is known to lead out of the host",
            };
            // The reason names the traffic that no socket hook sees.
            let reason = format!(
                "{why}: traffic that is forwarded, kernel tunnels and packet sockets are not seen"
            );
            self.reporter.emit(Record::coverage(
                "traffic past sockets",
                Coverage::Uncovered,
                Some(&reason),
                clock::unix_us(),
            ));
        }
        self.hand_over();
        Ok(())
    }

    /// Reports interfaces that came and went.
    pub(super) fn take_uplink_news(&mut self) -> Result<(), KernelError> {
        let Some(receiver) = self.uplinks.news.take() else {
            return Ok(());
        };
        loop {
            match receiver.try_recv() {
                Ok(news) => self.tell_uplink(news, true)?,
                Err(mpsc::TryRecvError::Empty) => {
                    self.uplinks.news = Some(receiver);
                    return Ok(());
                }
                // Said by the thread itself, unless it has panicked: then on standard
                // error, and here.
                Err(mpsc::TryRecvError::Disconnected) => {
                    let reason = Some("the thread that follows interfaces has ended");
                    let record = Record::coverage(
                        "new uplinks",
                        Coverage::Uncovered,
                        reason,
                        clock::unix_us(),
                    );
                    self.reporter.emit(record);
                    return Ok(());
                }
            }
        }
    }

    /// Reports what became of one interface. `while_running`: what it sent before was
    /// sent past an agent that was there.
    pub(super) fn tell_uplink(
        &mut self,
        news: UplinkNews,
        while_running: bool,
    ) -> Result<(), KernelError> {
        let time_us = clock::unix_us();
        let record = match news {
            UplinkNews::Watched {
                link,
                is_tunnel,
                is_taken_over,
            } => {
                self.uplinks.unwatched.remove(&(None, link.index));
                let Some(uplink) = self.uplinks.table.get(link.index)? else {
                    return Ok(());
                };
                let subject = subject(&link, is_tunnel);
                let record = if is_tunnel {
                    let reason = Some("what waits in it is known by who sent it when it leaves");
                    Record::coverage(&subject, Coverage::Covered, reason, time_us)
                } else {
                    // Of what left while it began to be watched some may be in the books.
                    let before_bytes = (!is_taken_over).then_some(uplink.after_bytes);
                    Record::uplink(&link.name, before_bytes, while_running, time_us)
                };
                let guard = &mut self.tampering.guard;
                guard.hold_uplink(link.index, &subject)?;
                self.uplinks
                    .watched
                    .insert(link.index, Watched { link, uplink });
                record
            }
            UplinkNews::Others(index, others) => {
                let Some(watched) = self.uplinks.watched.get(&index) else {
                    return Ok(());
                };
                let (state, reason) = at_exit(&others);
                Record::coverage(&watched.subject(), state, Some(&reason), time_us)
            }
            UplinkNews::Renamed(link) => {
                let Some(watched) = self.uplinks.watched.get_mut(&link.index) else {
                    return Ok(());
                };
                let reason = format!("it was called {} before", watched.link.name);
                watched.link = link;
                let subject = watched.subject();
                Record::coverage(&subject, Coverage::Covered, Some(&reason), time_us)
            }
            UplinkNews::Failed {
                link,
                is_tunnel,
                error,
            } => {
                let why = crate::kernel::with_causes(&error);
                let place = (None, link.index);
                let record = self.uplinks.leave(place, &link, is_tunnel, &why);
                self.emit_all(record);
                return Ok(());
            }
            UplinkNews::LeftOut(link) => {
                const WHY: &str = "it leads out of the host, and the settings name other uplinks";
                let record = self.uplinks.leave((None, link.index), &link, false, WHY);
                self.emit_all(record);
                return Ok(());
            }
            UplinkNews::Settled(index) => {
                let record = self.uplinks.settle((None, index));
                self.emit_all(record);
                return Ok(());
            }
            UplinkNews::Elsewhere(links) => {
                let records = self.uplinks.look_elsewhere(&links);
                self.emit_all(records);
                return Ok(());
            }
            UplinkNews::Gone {
                index,
                is_moved,
                books,
            } => {
                self.tampering.forget_uplink(index);
                let Some(watched) = self.uplinks.watched.remove(&index) else {
                    return Ok(());
                };
                if let Some(books) = books.filter(|_| !watched.uplink.is_tunnel()) {
                    let record = books_of(&watched, &books, None, time_us);
                    self.reporter.emit(record);
                }
                let reason = match is_moved {
                    true => ELSEWHERE,
                    false => "the interface is gone, and its counter with it",
                };
                Record::coverage(
                    &watched.subject(),
                    Coverage::Uncovered,
                    Some(reason),
                    time_us,
                )
            }
            UplinkNews::Stopped(error) => {
                let reason = crate::kernel::with_causes(&error);
                Record::coverage("new uplinks", Coverage::Uncovered, Some(&reason), time_us)
            }
        };
        self.reporter.emit(record);
        Ok(())
    }

    fn emit_all(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            self.reporter.emit(record);
        }
    }

    /// Interfaces that may send out of the host and are not watched, with the reason.
    pub fn unwatched(&self) -> Vec<(String, String)> {
        self.uplinks.unwatched()
    }

    /// Reports the books of every uplink.
    pub(super) fn report_books(&mut self) {
        let uplinks = &mut self.uplinks;
        for (index, watched) in &uplinks.watched {
            if watched.uplink.is_tunnel() {
                continue;
            }
            // It may have gone a moment ago: then its last sums come as news.
            let look = match uplinks.table.look(*index, &mut uplinks.routes) {
                Ok(Some(look)) => look,
                Ok(None) => continue,
                // The sums go on; they are in the books of the next time.
                Err(error) => {
                    tracing::warn!("{}", crate::kernel::with_causes(&error));
                    continue;
                }
            };
            // A port of a device that nothing is plugged into.
            if watched.link.is_device() && look.after_bytes == 0 {
                continue;
            }
            let is_exact = watched.link.counts_before_segmentation();
            let balance = look.balance(&watched.uplink, is_exact);
            let record = books_of(watched, &look.books, Some(balance), clock::unix_us());
            self.reporter.emit(record);
        }
    }
}

/// Describes the others at the exit of an uplink.
fn at_exit(others: &Others) -> (Coverage, String) {
    let mut parts = Vec::new();
    if !others.behind.is_empty() {
        parts.push(format!(
            "behind the hook stands what may change or send elsewhere that which was judged: {}",
            others.behind.join("; ")
        ));
    }
    if !others.before.is_empty() {
        parts.push(format!(
            "what these let pass for good does not come to the hook, and is a remainder of the \
             books: {}",
            others.before.join("; ")
        ));
    }
    if parts.is_empty() {
        let reason = "nothing else stands at its exit any more";
        return (Coverage::Covered, reason.to_owned());
    }
    (Coverage::Partly, parts.join("; "))
}

fn books_of(
    watched: &Watched,
    books: &UplinkBooks,
    balance: Option<crate::uplinks::Balance>,
    time_us: u64,
) -> Record {
    Record::books(&Balanced {
        uplink: &watched.link.name,
        since_us: BootClock::read().unix_us(watched.uplink.attached_ns),
        time_us,
        books,
        balance,
    })
}
