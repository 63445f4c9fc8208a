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
};

use trefoil_ebpf::abi::UplinkBooks;

use crate::{
    kernel::{Change, Changes, KernelError, RouteSocket, UplinkHook},
    privileges::{self, Duty},
    settings::Uplinks,
    uplinks::{Link, Network},
};

/// What became of an interface.
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
    /// It is gone; these are its last sums.
    Gone {
        /// Its number.
        index: u32,
        /// Its books as they were at last.
        books: Option<Box<UplinkBooks>>,
    },
    /// Interfaces are not followed any more.
    Stopped(KernelError),
}

/// What follows interfaces.
pub struct Follower {
    hook: UplinkHook,
    wanted: Uplinks,
    changes: Changes,
    routes: RouteSocket,
    network: Network,
    /// Those that are watched, with their names.
    watched: BTreeMap<u32, String>,
    /// Those that cannot be, which is said once.
    failed: BTreeSet<u32>,
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
            failed: BTreeSet::new(),
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
                self.forget(index, news);
            }
        }
        let watched: Vec<u32> = self.watched.keys().copied().collect();
        for index in watched {
            if self.network.link(index).is_none() {
                self.forget(index, news);
            }
        }
        self.watch(news);
        // Those that are not to be watched any more.
        for (index, _) in self.hook.table().all()? {
            if !self.watched.contains_key(&index) {
                self.forget(index, news);
            }
        }
        Ok(())
    }

    /// Follows changes in a thread. What comes of them is sent to `news`.
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
        for change in self.changes.wait()? {
            match change {
                Change::Link(link) => {
                    if let Some(name) = self.watched.get_mut(&link.index)
                        && *name != link.name
                    {
                        name.clone_from(&link.name);
                        news.push(UplinkNews::Renamed(link.clone()));
                    }
                    self.network.add_link(link);
                }
                Change::LinkGone(index) => {
                    self.network.remove_link(index);
                    self.failed.remove(&index);
                    if self.watched.contains_key(&index) {
                        self.forget(index, news);
                    }
                }
                Change::Route(route) => self.network.add_route(&route),
                Change::Lost => self.look(news)?,
            }
        }
        self.watch(news);
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

    /// Attaches to those that are to be watched and are not. One that is watched stays
    /// so as long as it is there, wherever routes go.
    fn watch(&mut self, news: &mut Vec<UplinkNews>) {
        let uplinks = self.network.uplinks(&self.wanted).into_iter();
        let tunnels = self.network.tunnels(&self.wanted).into_iter();
        let found = uplinks.map(|index| (index, false));
        for (index, is_tunnel) in found.chain(tunnels.map(|index| (index, true))) {
            if self.watched.contains_key(&index) || self.failed.contains(&index) {
                continue;
            }
            let Some(link) = self.network.link(index).cloned() else {
                continue;
            };
            match self.hook.attach(&link, is_tunnel) {
                Ok(is_taken_over) => {
                    self.watched.insert(index, link.name.clone());
                    news.push(UplinkNews::Watched {
                        link,
                        is_tunnel,
                        is_taken_over,
                    });
                }
                Err(error) => {
                    self.failed.insert(index);
                    news.push(UplinkNews::Failed {
                        link,
                        is_tunnel,
                        error,
                    });
                }
            }
        }
    }

    fn forget(&mut self, index: u32, news: &mut Vec<UplinkNews>) {
        self.watched.remove(&index);
        let books = self.hook.table().books(index).ok().flatten().map(Box::new);
        if let Err(error) = self.hook.forget(index) {
            tracing::warn!("{error}");
        }
        news.push(UplinkNews::Gone { index, books });
    }
}
