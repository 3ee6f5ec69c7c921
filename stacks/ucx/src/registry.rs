//! Finds the description of a cache by the address of UCX's cache, or of the cache's table.
//!
//! Each lookup of a program searches here, so a search takes no lock and makes a few loads. An entry
//! is published by its keys: a thread that reads a key with acquire ordering sees the description
//! that was stored before. No thread looks an address up before UCX has returned it, or after UCX
//! has begun to destroy the cache. So an entry that is found is not removed during its use.
//!
//! The arrays also hold the entries of a parent process, in a forked child. The caches of the
//! parent are at the same addresses in the child, and their gates are closed there.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::cache::Cache;

/// The maximum number of caches at one time. UCX makes one for each context, and versions before
/// 1.16 make one more for each device of a context.
const MAX: usize = 256;

/// The key of an entry that is not used. No cache and no table has this address.
const EMPTY: usize = 1;
/// The key of an entry that is being filled. No cache has this address.
const BUSY: usize = 2;

static RCACHES: [AtomicUsize; MAX] = [const { AtomicUsize::new(EMPTY) }; MAX];
static TABLES: [AtomicUsize; MAX] = [const { AtomicUsize::new(EMPTY) }; MAX];
static CACHES: [AtomicPtr<Cache>; MAX] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX];
/// All entries at this number and above have always been empty.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Adds a cache. `table` is `None` if the cache has no quick lookups. Returns the description if
/// there is no room.
pub(crate) fn insert(
    rcache: usize,
    table: Option<usize>,
    cache: Box<Cache>,
) -> Result<(), Box<Cache>> {
    for (i, key) in RCACHES.iter().enumerate() {
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        if key.compare_exchange(EMPTY, BUSY, acquire, relaxed).is_err() {
            continue;
        }
        USED.fetch_max(i + 1, Ordering::Release);
        CACHES[i].store(Box::into_raw(cache), Ordering::Relaxed);
        TABLES[i].store(table.unwrap_or(EMPTY), Ordering::Release);
        key.store(rcache, Ordering::Release);
        return Ok(());
    }
    Err(cache)
}

/// Removes a cache, and returns its description.
pub(crate) fn remove(rcache: usize) -> Option<Box<Cache>> {
    let i = position(&RCACHES, rcache)?;
    let cache = CACHES[i].swap(ptr::null_mut(), Ordering::Relaxed);
    TABLES[i].store(EMPTY, Ordering::Relaxed);
    RCACHES[i].store(EMPTY, Ordering::Release);
    // SAFETY: `insert` made the pointer from a box, and this function has taken it out.
    (!cache.is_null()).then(|| unsafe { Box::from_raw(cache) })
}

/// Returns the description of a cache.
pub(crate) fn by_rcache(rcache: usize) -> Option<&'static Cache> {
    find(&RCACHES, rcache)
}

/// Returns the description of the cache with this table, if the cache has quick lookups.
pub(crate) fn by_table(table: usize) -> Option<&'static Cache> {
    find(&TABLES, table)
}

/// Returns true if the key is that of the first entry, and the gate of its cache is open.
#[inline]
fn first_is_open(keys: &[AtomicUsize; MAX], key: usize) -> bool {
    if keys[0].load(Ordering::Acquire) != key {
        return false;
    }
    // SAFETY: the key was published after the pointer, and the entry stays during its use. So the
    // pointer is that of a description.
    let cache = unsafe { &*CACHES[0].load(Ordering::Relaxed) };
    cache.gate.is_open()
}

/// Returns true if the cache is the first entry, and its gate is open. Most programs have one cache.
#[inline]
pub(crate) fn first_is_open_by_rcache(rcache: usize) -> bool {
    first_is_open(&RCACHES, rcache)
}

/// Returns true if the table is that of the first entry, and the gate of its cache is open.
#[inline]
pub(crate) fn first_is_open_by_table(table: usize) -> bool {
    first_is_open(&TABLES, table)
}

fn find(keys: &[AtomicUsize; MAX], key: usize) -> Option<&'static Cache> {
    let i = position(keys, key)?;
    // SAFETY: as in `first_is_open`.
    unsafe { CACHES[i].load(Ordering::Relaxed).as_ref() }
}

fn position(keys: &[AtomicUsize; MAX], key: usize) -> Option<usize> {
    let used = USED.load(Ordering::Acquire).min(MAX);
    (0..used).find(|&i| keys[i].load(Ordering::Acquire) == key)
}
