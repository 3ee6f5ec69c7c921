//! [`FakeMonitor`], a monitor whose memory changes when the test says so, and [`FakeLibfabric`],
//! which makes the calls that libfabric's caches make.
#![allow(dead_code, reason = "each suite uses a part")]

use std::collections::HashMap;
use std::io;
use std::sync::PoisonError;

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use regcache::{Cookie, Monitor, VaRange};
use regcache_fi::watches::{Ends, Note, Refused, Watches};

/// A monitor in memory, which keeps the rules of [`Monitor`].
#[derive(Debug)]
pub(crate) struct FakeMonitor {
    generation: AtomicU64,
    watches: Mutex<HashMap<Cookie, (VaRange, bool)>>,
    /// While this is true, reports cannot be read.
    pub(crate) broken: AtomicBool,
    /// The maximum number of watches.
    most: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeMonitor {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            generation: AtomicU64::new(7),
            watches: Mutex::new(HashMap::new()),
            broken: AtomicBool::new(false),
            most,
        }
    }

    /// Reports a change of this range, as a system call does before it returns.
    pub(crate) fn change(&self, changed: VaRange) {
        let mut any = false;
        for (range, hit) in lock(&self.watches).values_mut() {
            if range.overlaps(&changed) {
                *hit = true;
                any = true;
            }
        }
        if any {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns the number of watches.
    pub(crate) fn len(&self) -> usize {
        lock(&self.watches).len()
    }
}

// SAFETY: `change` reports each watch that it finds, and raises the generation before it returns.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let mut watches = lock(&self.watches);
        if watches.len() >= self.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        assert!(watches.insert(cookie, (range, false)).is_none());
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let removed = lock(&self.watches).remove(&cookie);
        removed.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        loop {
            let before = self.generation();
            if self.broken.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Other.into());
            }
            let mut any = false;
            for (cookie, (_, hit)) in lock(&self.watches).iter_mut() {
                if std::mem::take(hit) {
                    invalidated(*cookie);
                    any = true;
                }
            }
            if !any {
                return Ok(before);
            }
        }
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

/// The registration caches of two domains. The fake makes the calls of libfabric's caches, in their
/// order. A registration is the version of the memory that it pinned.
pub(crate) struct FakeLibfabric {
    pub(crate) watches: Watches<FakeMonitor>,
    ends: Ends,
    /// For each domain, the ranges that are cached, with the versions of the memory.
    domains: [HashMap<VaRange, u64>; 2],
    /// The version of the memory of each range, from 0.
    memory: HashMap<VaRange, u64>,
    /// The number of registrations that were made.
    pub(crate) registrations: u64,
    /// The number of registrations that were cached.
    pub(crate) cached: u64,
}

impl FakeLibfabric {
    pub(crate) fn new(ends: Ends) -> Self {
        Self::limited(ends, usize::MAX)
    }

    pub(crate) fn limited(ends: Ends, watches: usize) -> Self {
        Self {
            watches: Watches::new(FakeMonitor::new(watches), ends).unwrap(),
            ends,
            domains: Default::default(),
            memory: HashMap::new(),
            registrations: 0,
            cached: 0,
        }
    }

    /// Changes the memory of the range.
    pub(crate) fn change(&mut self, range: VaRange) {
        *self.memory.entry(range).or_default() += 1;
        self.watches.monitor().change(range);
    }

    fn version(&self, range: VaRange) -> u64 {
        self.memory.get(&range).copied().unwrap_or_default()
    }

    /// Registers the range in this domain as `fi_mr_reg` does. Returns true if the registration is
    /// current.
    pub(crate) fn register(&mut self, domain: usize, range: VaRange, note: &mut Note) -> bool {
        self.register_while(domain, range, note, |_| ())
    }

    /// Does the same, and calls `during` between the registration and the subscription.
    pub(crate) fn register_while(
        &mut self,
        domain: usize,
        range: VaRange,
        note: &mut Note,
        during: impl FnOnce(&mut Self),
    ) -> bool {
        if let Some(&version) = self.domains[domain].get(&range) {
            if self.watches.valid(range, note) {
                return version == self.version(range);
            }
            self.domains[domain].remove(&range);
            if self.ends == Ends::Unsubscribed {
                self.watches.unsubscribe(range);
            }
        }
        let version = self.version(range);
        self.registrations += 1;
        during(self);
        match self.watches.subscribe(range, note) {
            Ok(()) => {
                self.cached += 1;
                self.domains[domain].insert(range, version);
            }
            Err(Refused::Forked) => panic!("this is no child"),
            Err(_) if self.ends == Ends::Unsubscribed => self.watches.unsubscribe(range),
            Err(_) => {}
        }
        true
    }

    /// Drops the oldest registration, as a cache that is full does.
    pub(crate) fn evict(&mut self, domain: usize, range: VaRange) {
        assert!(self.domains[domain].remove(&range).is_some());
        if self.ends == Ends::Unsubscribed {
            self.watches.unsubscribe(range);
        }
    }

    pub(crate) fn is_cached(&self, domain: usize, range: VaRange) -> bool {
        self.domains[domain].contains_key(&range)
    }

    /// Notifies the caches of every stale range, as the thread does.
    pub(crate) fn notify(&mut self) {
        assert!(self.watches.drain());
        while let Some(stale) = self.watches.stale() {
            for domain in 0..2 {
                let overlapping = self.domains[domain].keys().copied();
                let overlapping: Vec<_> = overlapping
                    .filter(|range| range.overlaps(&stale.range))
                    .collect();
                for range in overlapping {
                    self.evict(domain, range);
                }
            }
            self.watches.notified(stale);
        }
    }
}
