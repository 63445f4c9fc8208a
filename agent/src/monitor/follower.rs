//! Follows the interfaces that lead out of the host, and has each of them watched from
//! the moment that it is known.
//!
//! It looks once before the programs come into force, so that what is there then has
//! no gap, and goes on in a thread: attaching takes rights that the loop has given up.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use trefoil_ebpf::abi::UplinkBooks;

use crate::{
    kernel::{Change, Changes, KernelError, Others, RouteSocket, UplinkHook},
    privileges::{self, Duty},
    settings::Uplinks,
    uplinks::{Link, Network},
};

/// How often others at the exits of uplinks are looked for, though nothing was heard of any.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// News about an interface.
pub enum UplinkNews {
    /// It is watched from now on.
    Watched {
        /// The interface.
        link: Link,
        /// It is the entrance of a tunnel, and no uplink.
        is_tunnel: bool,
        /// Its books go on from an agent before.
        is_taken_over: bool,
    },
    /// Others stand at its exit than before.
    Others(u32, Others),
    /// It has another name now.
    Renamed(Link),
    /// It cannot be watched.
    Failed {
        /// The interface.
        link: Link,
        /// As of [`Self::Watched`].
        is_tunnel: bool,
        /// Why not.
        error: KernelError,
    },
    /// It is up and leads out, and the settings name others.
    LeftOut(Link),
    /// The interface with this index, which was left out or could not be watched, is watched
    /// by now, or sends nothing.
    Settled(u32),
    /// All devices, and uplinks that were here, that are in other network namespaces, as far as
    /// they are known.
    Elsewhere(Vec<(u32, Link)>),
    /// It is gone; these are its last sums.
    Gone {
        /// Its number.
        index: u32,
        /// It is in another network namespace now.
        is_moved: bool,
        /// Its books as they were at last.
        books: Option<Box<UplinkBooks>>,
    },
    /// Interfaces are not followed any more.
    Stopped(KernelError),
}

/// Follower of interfaces.
pub struct Follower {
    hook: UplinkHook,
    wanted: Uplinks,
    changes: Changes,
    routes: RouteSocket,
    network: Network,
    /// Those that are watched, with their names.
    watched: BTreeMap<u32, String>,
    /// Of uplinks, others at their exit, as was said.
    others: BTreeMap<u32, Others>,
    looked: Instant,
    /// Those that cannot be, which is said once.
    failed: BTreeSet<u32>,
    /// Those that lead out and are not to be, as was said.
    left_out: BTreeSet<u32>,
    /// Devices of other network namespaces, as was said.
    elsewhere: Vec<(u32, Link)>,
    /// Uplinks that were moved to other network namespaces: those, and indexes there.
    moved: BTreeSet<(u32, u32)>,
}

impl Follower {
    /// For the network namespace of the calling thread. Nothing is attached yet.
    pub fn new(hook: UplinkHook, wanted: Uplinks) -> Result<Self, KernelError> {
        Ok(Self {
            hook,
            wanted,
            // Before anything is listed, so that nothing is missed in between.
            changes: Changes::open()?,
            routes: RouteSocket::open()?,
            network: Network::default(),
            watched: BTreeMap::new(),
            others: BTreeMap::new(),
            looked: Instant::now(),
            failed: BTreeSet::new(),
            left_out: BTreeSet::new(),
            elsewhere: Vec::new(),
            moved: BTreeSet::new(),
        })
    }

    /// Looks at everything, and has those interfaces watched that lead out.
    pub fn look(&mut self, news: &mut Vec<UplinkNews>) -> Result<(), KernelError> {
        self.network = Network::default();
        for link in self.routes.links()? {
            self.network.add_link(link);
        }
        for route in self.routes.routes()? {
            self.network.add_route(&route);
        }
        // Books that an agent before has left, of an interface that went meanwhile.
        for (index, _) in self.hook.table().all()? {
            if self.network.link(index).is_none() {
                self.forget(index, false, news);
            }
        }
        let watched: Vec<u32> = self.watched.keys().copied().collect();
        for index in watched {
            if self.network.link(index).is_none() {
                self.forget(index, false, news);
            }
        }
        self.watch(news);
        // Those that are not to be watched any more.
        for (index, _) in self.hook.table().all()? {
            if !self.watched.contains_key(&index) {
                self.forget(index, false, news);
            }
        }
        self.look_elsewhere(news);
        self.look_at_others(news);
        Ok(())
    }

    /// Looks at what else stands at the exit of each uplink.
    fn look_at_others(&mut self, news: &mut Vec<UplinkNews>) {
        self.looked = Instant::now();
        for index in self.watched.keys().copied() {
            match self.hook.others(index) {
                Ok(others) => {
                    let said = self.others.entry(index).or_default();
                    if *said != others {
                        said.clone_from(&others);
                        news.push(UplinkNews::Others(index, others));
                    }
                }
                Err(error) => tracing::warn!("{}", crate::kernel::with_causes(&error)),
            }
        }
    }

    /// Looks for devices in other network namespaces, where nobody watches them, and for other
    /// uplinks that were moved there.
    fn look_elsewhere(&mut self, news: &mut Vec<UplinkNews>) {
        match self.routes.links_elsewhere() {
            Ok(mut links) => {
                let place = |(namespace, link): &(u32, Link)| (*namespace, link.index);
                let is_there = |moved: &(u32, u32)| links.iter().any(|one| place(one) == *moved);
                self.moved.retain(is_there);
                links.retain(|one| one.1.is_device() || self.moved.contains(&place(one)));
                if links != self.elsewhere {
                    self.elsewhere.clone_from(&links);
                    news.push(UplinkNews::Elsewhere(links));
                }
            }
            Err(error) => tracing::warn!("{}", crate::kernel::with_causes(&error)),
        }
    }

    /// Follows changes in a thread. Results are sent to `news`.
    pub fn start(mut self, news: mpsc::Sender<UplinkNews>) -> io::Result<()> {
        let follow = move || {
            privileges::keep_only(Duty::Uplinks);
            loop {
                let mut told = Vec::new();
                let done = self.step(&mut told);
                if let Err(error) = done {
                    // Those that are watched go on being.
                    told.push(UplinkNews::Stopped(error));
                }
                let is_over = matches!(told.last(), Some(UplinkNews::Stopped(_)));
                for one in told {
                    if news.send(one).is_err() {
                        return;
                    }
                }
                if is_over {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("uplinks".to_owned());
        thread.spawn(follow).map(drop)
    }

    /// Waits for changes and does what they ask for.
    fn step(&mut self, news: &mut Vec<UplinkNews>) -> Result<(), KernelError> {
        let (mut may_be_elsewhere, mut traffic_changed) = (false, false);
        for change in self.changes.wait()? {
            match change {
                Change::Link(link) => {
                    if let Some(name) = self.watched.get_mut(&link.index)
                        && *name != link.name
                    {
                        name.clone_from(&link.name);
                        news.push(UplinkNews::Renamed(link.clone()));
                    }
                    // One may have come back.
                    may_be_elsewhere |=
                        !self.elsewhere.is_empty() && self.network.link(link.index).is_none();
                    self.network.add_link(link);
                }
                Change::LinkGone(index) => self.lose(index, false, news),
                Change::LinkMoved { index, to } => {
                    let link = self.network.link(index);
                    if self.watched.contains_key(&index) && link.is_some_and(Link::leads_out) {
                        self.moved.insert(to);
                    }
                    self.lose(index, true, news);
                    may_be_elsewhere = true;
                }
                Change::NamespaceGone => may_be_elsewhere |= !self.elsewhere.is_empty(),
                Change::Route(route) => self.network.add_route(&route),
                Change::Traffic => traffic_changed = true,
                Change::Lost => self.look(news)?,
            }
        }
        if may_be_elsewhere {
            self.look_elsewhere(news);
        }
        self.watch(news);
        // Of a program that is attached without a filter the kernel tells nobody.
        if traffic_changed || self.looked.elapsed() >= LOOK_INTERVAL {
            self.look_at_others(news);
        }
        self.in_force(news)
    }

    /// With the programs in force: notes that the interfaces that came to be watched are
    /// counted from now on.
    pub fn in_force(&mut self, news: &[UplinkNews]) -> Result<(), KernelError> {
        for one in news {
            if let UplinkNews::Watched {
                link,
                is_taken_over: false,
                ..
            } = one
            {
                self.hook.counts(link.index)?;
            }
        }
        Ok(())
    }

    /// Attaches to those that are to be watched and are not, those first that may send now.
    /// One that is watched stays so as long as it is there, wherever routes go.
    fn watch(&mut self, news: &mut Vec<UplinkNews>) {
        let uplinks = self.network.uplinks(&self.wanted).into_iter();
        let tunnels = self.network.tunnels(&self.wanted).into_iter();
        let found = uplinks.map(|index| (index, false));
        let found = found.chain(tunnels.map(|index| (index, true)));
        let found = found.filter_map(|(index, is_tunnel)| {
            let is_settled = self.watched.contains_key(&index) || self.failed.contains(&index);
            let link = self.network.link(index).filter(|_| !is_settled)?;
            Some((link.clone(), is_tunnel))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(link, _)| !link.is_up);
        for (link, is_tunnel) in found {
            match self.hook.attach(&link, is_tunnel) {
                Ok(is_taken_over) => {
                    self.watched.insert(link.index, link.name.clone());
                    news.push(UplinkNews::Watched {
                        link,
                        is_tunnel,
                        is_taken_over,
                    });
                }
                // It sends nothing, and its coming up is a change.
                Err(error) if !link.is_up => tracing::debug!("{error}"),
                Err(error) => {
                    self.failed.insert(link.index);
                    news.push(UplinkNews::Failed {
                        link,
                        is_tunnel,
                        error,
                    });
                }
            }
        }
        self.settle(news);
    }

    /// Says which interfaces lead out and are not watched, and which are that no more.
    fn settle(&mut self, news: &mut Vec<UplinkNews>) {
        let network = &self.network;
        let is_up = |index: &u32| network.link(*index).is_some_and(|link| link.is_up);
        let (failed, quiet) = self.failed.iter().partition(|index| is_up(index));
        self.failed = failed;
        let quiet: BTreeSet<u32> = quiet;
        news.extend(quiet.into_iter().map(UplinkNews::Settled));
        let mut left_out = network.left_out(&self.wanted);
        left_out.retain(|index| !self.watched.contains_key(index));
        let settled = &self.left_out - &left_out;
        news.extend(settled.into_iter().map(UplinkNews::Settled));
        let new = &left_out - &self.left_out;
        let new = new.into_iter().filter_map(|index| network.link(index));
        news.extend(new.cloned().map(UplinkNews::LeftOut));
        self.left_out = left_out;
    }

    /// An interface is not here any more.
    fn lose(&mut self, index: u32, is_moved: bool, news: &mut Vec<UplinkNews>) {
        self.network.remove_link(index);
        if self.watched.contains_key(&index) {
            self.forget(index, is_moved, news);
        }
    }

    fn forget(&mut self, index: u32, is_moved: bool, news: &mut Vec<UplinkNews>) {
        self.watched.remove(&index);
        self.others.remove(&index);
        let books = self.hook.table().books(index).ok().flatten().map(Box::new);
        if let Err(error) = self.hook.forget(index) {
            tracing::warn!("{error}");
        }
        news.push(UplinkNews::Gone {
            index,
            is_moved,
            books,
        });
    }
}
