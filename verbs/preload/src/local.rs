//! [`Local`]: the state of one thread in one process.
//!
//! Two threads that use different memory share no cache line that one of them writes to. So each
//! thread counts for itself, and has a list of free `ibv_mr`s. It also remembers the domain that it
//! used last, which saves the lock of the map.
//!
//! Records are never freed. When a thread ends, the next new thread of the process takes over its
//! record. A forked child makes its own records, because each record names its process.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use regcache::thread_word;
use regcache_verbs_types::Pd;

use crate::domain::Domain;
use crate::mrs::{FreeMrs, Owner};
use crate::notice::lock;
use crate::process::Process;

/// A counter that only one thread adds to.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub(crate) fn add_one(&self) {
        let sum = self.0.load(Ordering::Relaxed) + 1;
        self.0.store(sum, Ordering::Relaxed);
    }
}

/// The state of one thread in one process. See the file's head.
#[repr(align(128))]
pub(crate) struct Local {
    /// The process to which the record belongs.
    owner: Owner,
    /// Registrations that the cache returned.
    pub(crate) cached: Counter,
    /// Registrations that the program deregistered and the cache kept.
    pub(crate) kept: Counter,
    pub(crate) free: FreeMrs,
    /// The domain that the thread used last.
    last: Cell<Last>,
}

// SAFETY: only one thread at a time accesses the cells: the thread that has adopted the record, or
// the thread with the lock of the common record. The lock of the records orders these accesses.
unsafe impl Sync for Local {}

/// A domain of the process, and its address. It is the one at this address as long as the process's
/// map of domains has the same version.
#[derive(Clone, Copy)]
struct Last {
    pd: *const Pd,
    version: u64,
    domain: *const Domain,
}

impl Last {
    const NONE: Self = Self {
        pd: ptr::null(),
        version: 0,
        domain: ptr::null(),
    };
}

impl Local {
    const fn new(owner: Owner) -> Self {
        Self {
            owner,
            cached: Counter::new(),
            kept: Counter::new(),
            free: FreeMrs::new(),
            last: Cell::new(Last::NONE),
        }
    }

    /// Returns the record of the calling thread, if it has one in the process `owner`.
    #[inline]
    pub(crate) fn mine(owner: Owner) -> Option<&'static Self> {
        // SAFETY: the pointer is to a record, which is never freed.
        let mine = unsafe { &*mine::get() };
        (mine.owner == owner).then_some(mine)
    }

    /// Returns the domain at `pd`, if the thread has remembered it in this version of the map.
    #[inline]
    pub(crate) fn recall(&self, pd: *const Pd, version: u64) -> Option<*const Domain> {
        let last = self.last.get();
        (ptr::eq(last.pd, pd) && last.version == version).then_some(last.domain)
    }

    /// Remembers the domain at `pd`. `version` was read before the map.
    pub(crate) fn remember(&self, pd: *const Pd, version: u64, domain: &Domain) {
        self.last.set(Last {
            pd,
            version,
            domain,
        });
    }
}

/// The records of one process.
pub(crate) struct Locals {
    /// The record of the threads that are about to end and have given up their own.
    common: Local,
    uses_common: Mutex<()>,
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    all: Vec<&'static Local>,
    /// The records whose threads have ended.
    vacant: Vec<&'static Local>,
}

/// The calling thread's record.
pub(crate) struct Here<'a> {
    local: &'a Local,
    /// The lock of the common record.
    _uses: Option<MutexGuard<'a, ()>>,
}

impl Deref for Here<'_> {
    type Target = Local;

    fn deref(&self) -> &Local {
        self.local
    }
}

/// The record of the threads that have none. It belongs to no process.
static NONE: Local = Local::new(Owner(0));

thread_word! {
    /// The pointer to this thread's record or to [`NONE`].
    mod mine = "regcache_local": *const Local,
    operand: { sym NONE },
    value: &raw const NONE
}

thread_local! {
    /// Gives the record up when the thread ends.
    static ENDING: Ending = const { Ending };
}

struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(process) = Process::started()
            && let Some(mine) = Local::mine(process.owner())
        {
            mine::set(&raw const NONE);
            lock(&process.locals.records).vacant.push(mine);
        }
    }
}

impl Locals {
    /// Makes the records of a process, whose owner number is not known yet.
    pub(crate) fn new() -> Self {
        Self {
            common: Local::new(Owner(0)),
            uses_common: Mutex::new(()),
            records: Mutex::default(),
        }
    }

    /// Returns the record of the calling thread.
    pub(crate) fn here(&self, owner: Owner) -> Here<'_> {
        if let Some(local) = Local::mine(owner) {
            return Here { local, _uses: None };
        }
        if ENDING.try_with(|_| ()).is_err() {
            return Here {
                local: &self.common,
                _uses: Some(lock(&self.uses_common)),
            };
        }
        let mut records = lock(&self.records);
        let local = records.vacant.pop().unwrap_or_else(|| {
            let new: &Local = Box::leak(Box::new(Local::new(owner)));
            records.all.push(new);
            new
        });
        mine::set(local);
        Here { local, _uses: None }
    }

    /// Returns the sum of a counter over all threads.
    pub(crate) fn sum(&self, of: impl Fn(&Local) -> &Counter) -> u64 {
        let records = lock(&self.records);
        let all = records.all.iter().copied().chain([&self.common]);
        all.map(|local| of(local).0.load(Ordering::Relaxed)).sum()
    }
}
