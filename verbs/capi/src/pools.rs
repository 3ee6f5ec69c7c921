//! The pools of a process. A pool that was destroyed keeps its limit for the caches that have
//! joined it, because each of them holds a reference to the Rust pool.

use regcache::Pool;

use crate::caches;
use crate::error::Error;
use crate::table::{Object, Table};
use crate::thread_record::ThreadRecord;

/// The maximum number of pools in a process.
const MOST: usize = 1024;

impl Object for Pool {
    const KIND: &'static str = "pool";

    type AtOnce = ();

    fn at_once(&self) -> &() {
        &()
    }
}

static POOLS: Table<Pool, { caches::MOST as u32 }, MOST> = Table::new();

/// Enters a pool into the table, and returns the pool's handle.
pub(crate) fn enter(pool: Pool) -> Result<u64, Error> {
    POOLS.enter(pool)
}

/// Calls `action` with a pool of this process. The pool is not destroyed before `action` returns.
pub(crate) fn with<T>(
    thread: &ThreadRecord,
    handle: u64,
    action: impl FnOnce(&Pool) -> Result<T, Error>,
) -> Result<T, Error> {
    POOLS.with(thread, handle, |pool| {
        pool.check_process()?;
        action(pool)
    })
}

/// Takes a pool out of the table.
pub(crate) fn destroy(thread: &ThreadRecord, handle: u64) -> Result<(), Error> {
    // A forked child may not destroy its parent's pool.
    with(thread, handle, |_| Ok(()))?;
    POOLS.remove(handle, |_| Ok(())).map(drop)
}
