//! [`Shared`]: one monitor for several caches.
//!
//! A program has one cache for each protection domain or device. If these caches share a monitor, a
//! range that several of them have registered is watched only once.
//!
//! # Why each cache can rely on a shared monitor
//!
//! The shared state has a *member* for each cache. Each member has *subscriptions* to watches of
//! the monitor (`subscriptions.rs`). One lock protects everything but the monitor itself.
//!
//! - M1: a report names a watch of the monitor. The thread that drains the monitor marks every
//!   subscription to that watch. A mark stays until the subscription's cache drains. So each cache
//!   finds every report that concerns it.
//! - M2: no cache can subscribe to a watch before the watch is placed. A cache may subscribe while
//!   an invalidation is in flight that was already reported. By rule M2, the monitor repeats the
//!   report after the invalidation ends. So the cache does not miss the invalidation.
//! - M3: the generation of each share is the generation of the monitor. A cache's drain returns the
//!   generation of the monitor's last drain. All invalidations up to that generation were marked,
//!   and the cache's drain has reported all marks of the cache.
//! - M4: a mark is a number in a subscription, and an element of the list of the member's marks. A
//!   new subscription reserves the element in advance, so that draining does not allocate.
//! - M6: no cache can subscribe to a watch that was reported. A lookup drains before it watches. So
//!   the range of a later subscriber still has the memory that it had when the monitor's `watch`
//!   did not refuse it.
//! - If draining the monitor fails, reports of any cache may be lost. So the next drain of each
//!   cache fails.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::contract::{Cookie, Monitor};
use super::poll_fd::when_readable;
use super::subscriptions::{Ended, Subscriptions};
use crate::range::VaRange;
use crate::sys::descriptor::{Private, Signal};
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Mutex, lock};
use crate::sys::worker::Worker;

/// One cache's share of a monitor. [`Shared::subscribe`] makes a share for another cache.
///
/// ```
/// # use std::io;
/// # use regcache::{Cache, Registrar, VaRange};
/// # struct Device;
/// # // SAFETY: there is no device that reaches memory.
/// # unsafe impl Registrar for Device {
/// #     type Access = ();
/// #     type Registration = VaRange;
/// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
/// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
/// # }
/// use regcache::monitor::{Shared, auto};
///
/// let first = Shared::new(auto())?;
/// let second = first.subscribe()?;
/// let one = Cache::builder(Device).monitor(first).build()?;
/// let other = Cache::builder(Device).monitor(second).build()?;
/// # Ok::<_, io::Error>(())
/// ```
#[derive(Debug)]
pub struct Shared<M: Monitor> {
    hub: Arc<Hub<M>>,
    member: usize,
    /// An epoll instance, which polls readable if the monitor has reports or the signal was raised.
    /// Another member's drain raises the signal after it has marked a subscription of this member.
    /// `None` if the monitor has no file descriptor.
    ready: Option<(Private<OwnedFd>, Arc<Signal>)>,
}

#[derive(Debug)]
struct Hub<M> {
    monitor: M,
    /// The thread that reaps for all members.
    worker: std::sync::Arc<Worker>,
    fork: ForkMark,
    board: Mutex<Board>,
}

#[derive(Debug)]
struct Board {
    /// The generation up to which the monitor was drained.
    drained: u64,
    /// The watches that were or are being placed on the monitor, and the subscriptions to them.
    subscriptions: Subscriptions,
    /// The members. A member has the same index in `subscriptions`.
    members: Vec<Member>,
}

/// The state of one cache's share.
#[derive(Debug, Default)]
struct Member {
    /// False if this member can be reused for another cache.
    joined: bool,
    /// True if reports may have been lost, so that the next drain of this member must fail.
    lost: bool,
    signal: Option<Arc<Signal>>,
    /// True if the signal was raised and not lowered since.
    is_notified: bool,
}

impl<M: Monitor> Shared<M> {
    /// Returns the first share of `monitor`.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it refuses a file descriptor or a page that the share needs.
    pub fn new(monitor: M) -> io::Result<Self> {
        let board = Board {
            drained: monitor.generation(),
            subscriptions: Subscriptions::new(),
            members: Vec::new(),
        };
        let hub = Arc::new(Hub {
            monitor,
            worker: std::sync::Arc::default(),
            fork: ForkMark::new(1)?,
            board: Mutex::new(board),
        });
        Self::join(hub)
    }

    /// Returns a share of the same monitor, for another cache.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`new`](Self::new), and an error in a forked child.
    pub fn subscribe(&self) -> io::Result<Self> {
        Self::join(Arc::clone(&self.hub))
    }

    /// Returns the number of ranges that all caches together watch now. Returns 0 in a forked
    /// child.
    pub fn watches(&self) -> usize {
        if self.hub.fork.in_child() {
            return 0;
        }
        lock(&self.hub.board).subscriptions.watches()
    }

    fn join(hub: Arc<Hub<M>>) -> io::Result<Self> {
        hub.refuse_child()?;
        let ready = match hub.monitor.descriptor() {
            Some(monitor) => Some(ready_with(monitor)?),
            None => None,
        };
        let joining = Member {
            joined: true,
            signal: ready.as_ref().map(|(_, signal)| Arc::clone(signal)),
            ..Member::default()
        };
        let member = {
            let members = &mut lock(&hub.board).members;
            let left = members.iter().position(|member| !member.joined);
            let member = left.unwrap_or(members.len());
            if member == members.len() {
                members.push(joining);
            } else {
                members[member] = joining;
            }
            member
        };
        Ok(Self { hub, member, ready })
    }
}

fn ready_with(monitor: BorrowedFd<'_>) -> io::Result<(Private<OwnedFd>, Arc<Signal>)> {
    let signal = Signal::new()?;
    let epoll = when_readable(&[&monitor, &signal])?;
    Ok((epoll, Arc::new(signal)))
}

impl<M> Hub<M> {
    fn refuse_child(&self) -> io::Result<()> {
        if self.fork.in_child() {
            return Err(io::Error::other(
                "this monitor watches the parent process's memory",
            ));
        }
        Ok(())
    }
}

impl Board {
    /// Drains the monitor, and marks the reported subscriptions of all members. A report may come
    /// before the monitor's counter is raised, so the counter does not tell that there is none.
    fn drain(&mut self, monitor: &impl Monitor, by: usize) -> io::Result<()> {
        let Self {
            subscriptions,
            members,
            ..
        } = self;
        let drained = monitor.drain(&mut |cookie| subscriptions.report(cookie));
        match drained {
            Ok(generation) => self.drained = generation,
            Err(_) => members.iter_mut().for_each(|it| it.lost = true),
        }
        for (i, member) in members.iter_mut().enumerate() {
            if i != by && (member.lost || subscriptions.has_marked(i)) {
                member.notify();
            }
        }
        drained.map(drop)
    }
}

impl Member {
    /// Makes the member's file descriptor readable.
    fn notify(&mut self) {
        if let Some(signal) = &self.signal
            && !self.is_notified
        {
            signal.raise();
            self.is_notified = true;
        }
    }
}

// SAFETY: the head of this file argues that a share keeps each rule of the trait.
unsafe impl<M: Monitor> Monitor for Shared<M> {
    const CHECKED: bool = M::CHECKED;

    #[inline]
    fn generation(&self) -> u64 {
        self.hub.monitor.generation()
    }

    #[inline]
    fn is_intact(&self, range: VaRange) -> bool {
        self.hub.monitor.is_intact(range)
    }

    fn counter(&self) -> Option<NonNull<AtomicU64>> {
        self.hub.monitor.counter()
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        self.hub.refuse_child()?;
        let new = lock(&self.hub.board)
            .subscriptions
            .subscribe(self.member, range, cookie)?;
        let Some(ours) = new else {
            return Ok(());
        };
        // This call may wait until an invalidation ends. The lock is not held during the call, so
        // that lookups in other caches can go on. If a cache subscribes to the same range
        // meanwhile, the cache places a second watch.
        let placed = self.hub.monitor.watch(range, ours);
        let subscriptions = &mut lock(&self.hub.board).subscriptions;
        match placed {
            Ok(()) => {
                subscriptions.offer(ours);
                Ok(())
            }
            Err(error) => {
                subscriptions.end(self.member, cookie);
                Err(error)
            }
        }
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let board = &mut *lock(&self.hub.board);
        match board.subscriptions.end(self.member, cookie) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Ended::Subscription) => Ok(()),
            Some(Ended::Watch(ours)) => self.hub.monitor.unwatch(ours),
        }
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        self.hub.refuse_child()?;
        let board = &mut *lock(&self.hub.board);
        let drained = board.drain(&self.hub.monitor, self.member);
        let member = &mut board.members[self.member];
        if let Some(signal) = &member.signal
            && member.is_notified
        {
            signal.lower()?;
            member.is_notified = false;
        }
        while let Some(cookie) = board.subscriptions.take_marked(self.member) {
            invalidated(cookie);
        }
        let lost = std::mem::take(&mut member.lost);
        drained?;
        if lost {
            return Err(io::Error::other(
                "reports were lost when another cache drained the shared monitor",
            ));
        }
        Ok(board.drained)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(|(epoll, _)| epoll.unchecked())
    }

    fn worker(&self) -> Option<std::sync::Arc<Worker>> {
        Some(std::sync::Arc::clone(&self.hub.worker))
    }

    fn name(&self) -> &'static str {
        self.hub.monitor.name()
    }
}

impl<M: Monitor> Drop for Shared<M> {
    fn drop(&mut self) {
        if self.hub.fork.in_child() {
            // The monitor belongs to the parent process. Dropping the monitor here would close file
            // descriptors that the parent still uses. So the child leaks the monitor.
            std::mem::forget(Arc::clone(&self.hub));
            return;
        }
        // A cache usually ends all its watches before it drops its share. This code ends the
        // watches that are left.
        let left: Vec<_> = {
            let board = lock(&self.hub.board);
            board.subscriptions.cookies(self.member).collect()
        };
        for cookie in left {
            if let Err(error) = self.unwatch(cookie) {
                tracing::error!(?cookie, %error, "the monitor refused to end a watch");
            }
        }
        lock(&self.hub.board).members[self.member] = Member::default();
    }
}
