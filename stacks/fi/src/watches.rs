//! [`Watches`]: the ranges that libfabric's caches subscribe to, and the answer whether a cached
//! registration is still good.
//!
//! # The contract with libfabric
//!
//! libfabric registers a range first and *subscribes* to it afterwards. It asks [`valid`] before it
//! uses a cached registration again. It makes both calls under one lock of its own, so these calls
//! never overlap. If a subscription is refused, libfabric uses the registration once and does not
//! cache it. Only a *notification*, from a thread of ours, makes libfabric drop a registration that
//! nobody looks up.
//!
//! # A registration that is older than its subscription
//!
//! The memory can change between the registration and the subscription, so the subscription has to
//! decide whether the registration is stale already. A *note* decides. A note is the number of
//! events up to some moment, where an event is the placement of a watch or a report that was read.
//! Each thread keeps the note of the last moment at which it read all reports: the end of a lookup
//! that was not answered by the gate, the end of a subscription, or [`begin`], which `ibv_reg_mr`
//! calls if this library is preloaded.
//!
//! [`subscribe`] accepts only if the watch's last event is not after the note of the calling
//! thread. A thread registers and subscribes in this order, and takes no note in between. So the
//! registration began after the note, and the watch was in place then. Let U be an invalidation of
//! the range that ended after the registration began. U is read after the note, by M1 and M2, so
//! its event is later than the note. If the subscription itself reads U, the event is refused. If U
//! is read later, U makes the accepted subscription stale.
//!
//! So without `ibv_reg_mr`, the first registration of a range by a thread is refused and used once,
//! because the watch is placed after it. This needs no agreement between threads: two registrations
//! of one range that are under way at the same time have the notes of their own threads.
//!
//! # Stale subscriptions
//!
//! Several domains can cache the same range, and no call names the domain. So a watch counts its
//! subscriptions. A report makes all of them stale. While a watch has stale subscriptions, each
//! lookup of its range is answered with false, and each subscription is refused. Otherwise the
//! fresh registration of one domain could vouch for the stale one of another. A stale subscription
//! ends when libfabric drops its registration:
//!
//! - libfabric 2.1 and later unsubscribes every registration that it drops, even one whose
//!   subscription was refused. So a refused subscription counts too ([`Ends::Unsubscribed`]).
//! - Earlier releases never unsubscribe. A lookup that was answered with false drops the
//!   registration. A notification drops the registrations of all domains ([`Ends::Unsaid`]).
//!
//! A count that is too high only delays caching. A count that is too low would hide a stale
//! registration. So an end is counted only for a registration that is certainly gone. A
//! notification ends the subscriptions that were stale when it was sent. It recognises them by the
//! event that made them stale, because no subscription is accepted before all of them have ended.
//!
//! # Limits
//!
//! A watch without subscriptions stays, because the next registration of its range can use it. At
//! most [`IDLE`] such watches stay. Earlier releases than 2.1 also drop registrations without a
//! word when their caches are full. So the watch with the oldest of more than [`SUBSCRIBED`]
//! subscriptions is treated as stale, until a notification has ended it.
//!
//! [`valid`]: Watches::valid
//! [`begin`]: Watches::begin
//! [`subscribe`]: Watches::subscribe

use std::collections::{BTreeMap, HashMap};
use std::io;

use regcache::{Cookie, Monitor, VaRange};

use crate::gate::Gate;
use crate::sync::{Mutex, lock};

/// The maximum number of watches without subscriptions.
pub const IDLE: usize = 4096;

/// The number of watches with subscriptions above which the oldest one is notified, for releases
/// of libfabric that do not say when a subscription ends. libfabric's caches hold 1024 entries each
/// by default.
pub const SUBSCRIBED: usize = 16384;

/// The maximum number of watches that end to make room for one, if the driver refuses a watch.
const RECLAIMED: usize = 64;

/// The way in which libfabric says that a subscription has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// libfabric unsubscribes each registration that it drops.
    Unsubscribed,
    /// libfabric never unsubscribes.
    Unsaid,
}

/// The moment at which a thread has last read all reports; see the head of this file. A thread
/// begins with [`NONE`](Self::NONE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note(u64);

impl Note {
    /// The moment before every event.
    pub const NONE: Self = Self(0);
}

/// The reason why a subscription was refused. The registration must not be cached.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The range was not watched when the registration began, or has changed since.
    #[error("the range was not watched during the registration, or has changed since")]
    Unseen,
    /// A registration of the same range is stale and still cached.
    #[error("another domain still has a stale registration of the range")]
    Stale,
    /// The range cannot be watched.
    #[error("the range cannot be watched: {0}")]
    Unwatchable(io::Error),
    /// Reports cannot be read.
    #[error("the driver's reports cannot be read: {0}")]
    Unreadable(io::Error),
    /// The process is a forked child of the process that opened the driver.
    #[error("a forked child does not cache registrations")]
    Forked,
}

/// Stale subscriptions that a notification is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The range of the subscriptions.
    pub range: VaRange,
    /// The event that made them stale.
    since: u64,
    cookie: Cookie,
}

/// The watches; see the head of this file.
#[derive(Debug)]
pub struct Watches<M> {
    monitor: M,
    gate: Gate,
    ends: Ends,
    table: Mutex<Table>,
}

/// The number of events so far, and the watches.
#[derive(Debug, Default)]
struct Table {
    events: u64,
    cookies: u64,
    watches: HashMap<Cookie, Watch>,
    by_range: HashMap<VaRange, Cookie>,
    /// The watches without subscriptions, and those with subscriptions. The key is the watch's
    /// `used`, so the first watch is the oldest.
    idle: BTreeMap<u64, Cookie>,
    subscribed: BTreeMap<u64, Cookie>,
    /// The watches with stale subscriptions.
    stale: Vec<Cookie>,
}

#[derive(Debug)]
struct Watch {
    range: VaRange,
    /// The last event of the watch: its placement or the last report.
    last_event: u64,
    /// The number of events when the watch was last used.
    used: u64,
    subscriptions: usize,
    /// The number of subscriptions that a report has made stale.
    stale: usize,
    /// The event that made the first of them stale.
    stale_since: u64,
}

impl<M: Monitor> Watches<M> {
    /// Makes watches on this monitor.
    ///
    /// # Errors
    ///
    /// Returns an error if no page can be mapped that a forked child finds empty.
    pub fn new(monitor: M, ends: Ends) -> io::Result<Self> {
        Ok(Self {
            monitor,
            gate: Gate::new()?,
            ends,
            table: Mutex::default(),
        })
    }

    /// Returns the monitor.
    pub fn monitor(&self) -> &M {
        &self.monitor
    }

    /// Returns true in a forked child of the process that made the watches.
    pub fn in_child(&self) -> bool {
        self.gate.in_child()
    }

    /// Returns true if nothing has changed, so that every cached registration is still good. Takes
    /// no lock.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.gate.is_open(self.monitor.generation())
    }

    /// Returns whether a cached registration of this range is still good. If it is not, the caller
    /// must drop the registration before it releases its lock.
    pub fn valid(&self, range: VaRange, note: &mut Note) -> bool {
        if self.is_current() {
            return true;
        }
        if self.gate.in_child() {
            return false;
        }
        let mut table = lock(&self.table);
        let read = self.read_reports(&mut table, note);
        let Some(cookie) = table.by_range.get(&range).copied() else {
            return false;
        };
        let is_good = |watch: &Watch| watch.subscriptions > 0 && watch.stale == 0;
        let valid = read.is_ok() && table.watches.get(&cookie).is_some_and(is_good);
        if !valid && self.ends == Ends::Unsaid {
            table.end(cookie, 1);
        }
        self.settle(&mut table);
        valid
    }

    /// Prepares a registration of this range, which the calling thread makes next.
    pub fn begin(&self, range: VaRange, note: &mut Note) {
        if self.gate.in_child() {
            return;
        }
        let mut table = lock(&self.table);
        // If the range cannot be watched, or the reports cannot be read, the subscription fails
        // and says why.
        let _ = self.watch(&mut table, range);
        let _ = self.read_reports(&mut table, note);
        self.settle(&mut table);
    }

    /// Decides whether the registration of this range, which the calling thread has just made, can
    /// be cached.
    ///
    /// # Errors
    ///
    /// Returns the reason why the registration must not be cached.
    pub fn subscribe(&self, range: VaRange, note: &mut Note) -> Result<(), Refused> {
        if self.gate.in_child() {
            return Err(Refused::Forked);
        }
        let mut table = lock(&self.table);
        let before = *note;
        let read = self.read_reports(&mut table, note);
        let decided = match self.watch(&mut table, range) {
            Err(error) => Err(Refused::Unwatchable(error)),
            Ok(cookie) => {
                let decided = match (read, table.watches.get(&cookie)) {
                    (Err(error), _) => Err(Refused::Unreadable(error)),
                    (Ok(()), Some(watch)) if watch.stale > 0 => Err(Refused::Stale),
                    (Ok(()), Some(watch)) if watch.last_event <= before.0 => Ok(()),
                    (Ok(()), _) => Err(Refused::Unseen),
                };
                if decided.is_ok() || self.ends == Ends::Unsubscribed {
                    table.subscribe(cookie);
                }
                // The placement of the watch is part of what the thread knows from now on.
                if !matches!(decided, Err(Refused::Unreadable(_))) {
                    *note = Note(table.events);
                }
                decided
            }
        };
        if self.ends == Ends::Unsaid && table.subscribed.len() > SUBSCRIBED {
            table.suspect_oldest();
        }
        self.settle(&mut table);
        decided
    }

    /// Notes that libfabric has dropped a registration of this range.
    pub fn unsubscribe(&self, range: VaRange) {
        if self.ends == Ends::Unsaid || self.gate.in_child() {
            return;
        }
        let mut table = lock(&self.table);
        if let Some(cookie) = table.by_range.get(&range).copied() {
            table.end(cookie, 1);
        }
        self.settle(&mut table);
    }

    /// Reads all reports. Returns false if they cannot be read. Then every subscription is stale,
    /// because reports may have been lost.
    pub fn drain(&self) -> bool {
        if self.gate.in_child() {
            return true;
        }
        let mut table = lock(&self.table);
        let read = self.read_reports(&mut table, &mut { Note::NONE });
        self.settle(&mut table);
        read.is_ok()
    }

    /// Returns a range with stale subscriptions. The caller notifies libfabric, and then calls
    /// [`notified`](Self::notified).
    pub fn stale(&self) -> Option<Stale> {
        let table = lock(&self.table);
        let cookie = *table.stale.last()?;
        let watch = table.watches.get(&cookie)?;
        Some(Stale {
            range: watch.range,
            since: watch.stale_since,
            cookie,
        })
    }

    /// Ends the stale subscriptions, because libfabric was notified and has dropped their
    /// registrations.
    pub fn notified(&self, stale: Stale) {
        let mut table = lock(&self.table);
        let is_same = |watch: &&Watch| watch.stale > 0 && watch.stale_since == stale.since;
        if let Some(watch) = table.watches.get(&stale.cookie).filter(is_same) {
            let ended = watch.stale;
            table.end(stale.cookie, ended);
        }
        self.settle(&mut table);
    }

    /// Returns whether some subscriptions are stale, so that a notification is due.
    pub fn has_stale(&self) -> bool {
        self.gate.has_stale()
    }

    /// Returns the numbers of watches with and without subscriptions.
    pub fn counts(&self) -> (usize, usize) {
        let table = lock(&self.table);
        (table.subscribed.len(), table.idle.len())
    }

    /// Reads all reports, marks the subscriptions that they make stale, and moves the note to this
    /// moment.
    fn read_reports(&self, table: &mut Table, note: &mut Note) -> io::Result<()> {
        match self.monitor.drain(&mut |cookie| table.report(cookie)) {
            Ok(generation) => {
                self.gate.set_stale(table.stale.len());
                self.gate.drained(generation);
                *note = Note(table.events);
                Ok(())
            }
            Err(error) => {
                table.report_all();
                self.gate.set_stale(table.stale.len());
                Err(error)
            }
        }
    }

    /// Returns the watch of this range. Places it if there is none.
    fn watch(&self, table: &mut Table, range: VaRange) -> io::Result<Cookie> {
        if let Some(cookie) = table.by_range.get(&range).copied() {
            table.touch(cookie);
            return Ok(cookie);
        }
        table.cookies += 1;
        let cookie = Cookie(table.cookies);
        if let Err(error) = self.monitor.watch(range, cookie) {
            // The limit of watches may be exhausted.
            if self.remove_idle(table, RECLAIMED) == 0 {
                return Err(error);
            }
            self.monitor.watch(range, cookie)?;
        }
        table.place(range, cookie);
        Ok(cookie)
    }

    /// Ends up to `most` watches without subscriptions, the oldest ones first. Returns their
    /// number.
    fn remove_idle(&self, table: &mut Table, most: usize) -> usize {
        for removed in 0..most {
            let Some((_, cookie)) = table.idle.pop_first() else {
                return removed;
            };
            if let Some(watch) = table.watches.remove(&cookie) {
                table.by_range.remove(&watch.range);
            }
            // An error would mean that there is no such watch, so there is nothing left to do.
            let _ = self.monitor.unwatch(cookie);
        }
        most
    }

    /// Ends a step of the protocol: removes watches above the limit, and stores the number of stale
    /// ones.
    fn settle(&self, table: &mut Table) {
        let above = table.idle.len().saturating_sub(IDLE);
        self.remove_idle(table, above);
        self.gate.set_stale(table.stale.len());
    }
}

impl Table {
    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn place(&mut self, range: VaRange, cookie: Cookie) {
        let event = self.next_event();
        let watch = Watch {
            range,
            last_event: event,
            used: event,
            subscriptions: 0,
            stale: 0,
            stale_since: 0,
        };
        self.watches.insert(cookie, watch);
        self.by_range.insert(range, cookie);
        self.idle.insert(event, cookie);
        // So `report` never allocates.
        let more = self.watches.len() - self.stale.len();
        self.stale.reserve(more);
    }

    /// Makes the watch the most recently used one. A use is an event of no watch.
    fn touch(&mut self, cookie: Cookie) {
        let now = self.next_event();
        if let Some(watch) = self.watches.get_mut(&cookie) {
            let queue = match watch.subscriptions {
                0 => &mut self.idle,
                _ => &mut self.subscribed,
            };
            queue.remove(&watch.used);
            watch.used = now;
            queue.insert(now, cookie);
        }
    }

    /// Counts a subscription.
    fn subscribe(&mut self, cookie: Cookie) {
        if let Some(watch) = self.watches.get_mut(&cookie) {
            if watch.subscriptions == 0 {
                self.idle.remove(&watch.used);
                self.subscribed.insert(watch.used, cookie);
            }
            watch.subscriptions += 1;
        }
    }

    /// Counts the end of `number` subscriptions. Stale ones end first only if no other is left: if
    /// one is stale, only a subscription that was refused is not.
    fn end(&mut self, cookie: Cookie, number: usize) {
        let Some(watch) = self.watches.get_mut(&cookie) else {
            return;
        };
        let had = watch.subscriptions;
        watch.subscriptions = had.saturating_sub(number);
        if watch.stale > watch.subscriptions {
            watch.stale = watch.subscriptions;
            if watch.stale == 0 {
                self.stale.retain(|it| *it != cookie);
            }
        }
        if had > 0 && watch.subscriptions == 0 {
            self.subscribed.remove(&watch.used);
            self.idle.insert(watch.used, cookie);
        }
    }

    /// Notes a report of this watch.
    fn report(&mut self, cookie: Cookie) {
        let event = self.next_event();
        if let Some(watch) = self.watches.get_mut(&cookie) {
            watch.last_event = event;
            if watch.stale == 0 && watch.subscriptions > 0 {
                watch.stale_since = event;
                self.stale.push(cookie);
            }
            watch.stale = watch.subscriptions;
        }
    }

    /// Notes a report of every watch, because reports may have been lost.
    fn report_all(&mut self) {
        let all: Vec<_> = self.watches.keys().copied().collect();
        for cookie in all {
            self.report(cookie);
        }
    }

    /// Treats the subscriptions of the watch that was not used for the longest time as stale.
    fn suspect_oldest(&mut self) {
        let fresh = |cookie: &&Cookie| self.watches.get(cookie).is_some_and(|it| it.stale == 0);
        if let Some(cookie) = self.subscribed.values().find(fresh).copied() {
            self.report(cookie);
        }
    }
}
