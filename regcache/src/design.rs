//! The protocol of the cache, and the argument that it never returns a stale registration.
//!
//! The file `core/entry.rs` has the corresponding argument for a single entry.
//! `docs/design/proof.md` lists the models and tests that try to find a hole in either argument.
//!
//! # The protocol
//!
//! The protocol compares three numbers. The monitor's `generation` rises before an invalidating
//! call returns, and before the kernel can hand out the address again (rule M3 of [`Monitor`]). The
//! generation of the *marks* is the one up to which every invalidated entry was marked. The cache's
//! `drained` is the generation up to which every invalidated entry was unlinked.
//!
//! **Hit** ([`Cache::get`]). Load `generation`, and go on only if it equals `drained`. In a forked
//! child the two are never equal. Take a reference to the entry that the hints name, if that entry
//! is live. If the entry serves the request, return it. If any of these steps fails, take the slow
//! path. A hit takes no lock, makes no system call and allocates nothing. A hit writes to the cache
//! line of its entry and to no other. If several threads use one entry at once, their hits write to
//! lines of the threads instead (`core/spread.rs`).
//!
//! **Hit while entries are marked** (`core/marks.rs`). Load `generation`, and go on only if it
//! equals the generation of the marks. Go on only if the entry that the hints name has no mark.
//! *Then* take a reference as above.
//!
//! **Drain** (`core/mod.rs`). Under the lock, read the monitor's reports until none is left. Mark
//! the entry that each report names. The monitor then returns the generation of the moment at which
//! no report was left. Store that generation as the generation of the marks.
//!
//! **Unlinking** (`core/mod.rs`). Under the lock, kill marked entries and unlink them
//! (`core/entry.rs` defines killing). Clear each mark after the kill. When no marked entry is left,
//! store the generation of the marks in `drained`. The lookup that drains unlinks up to 64 entries.
//! The reaper, or a thread that calls [`Cache::reap`], unlinks the others in pieces. It releases
//! the lock between two pieces, and then waits until the threads that wait for the lock have got
//! it.
//!
//! **Miss** (`core/lookup.rs`). Reserve a slot; *watch, then register*; drain. If the watch was
//! invalidated since it was placed, deregister, end the watch and start over. Otherwise make room
//! and publish the entry. If another lookup is making a registration that will serve this one, wait
//! for it, and start over.
//!
//! # Why a lookup never returns a stale registration
//!
//! Let U be an operation that changed pages of the range. Assume that U returned before the lookup
//! began. Alternatively, assume that the thread that looks up got the address from a mapping call
//! that could succeed only because of U. Let E be an entry for the range that was registered before
//! U. The claim is that the lookup does not return E.
//!
//! 1. E's watch was placed before E was registered, hence before U ended. If U started after the
//!    watch was placed, U is reported (M1). Otherwise U was in flight while the watch was placed.
//!    Then U is reported (M2), or U was over before the watch was in place. If U was over, the
//!    registration came after U and pinned the pages that U had left. In that case E is not stale.
//! 2. It remains to consider a U that is reported. The generation rose for U before the lookup
//!    began (M3). Let g be the generation after that rise. The lookup's load of `generation`
//!    returns g or a later value.
//! 3. The lookup goes on without a drain only if `drained`, or the generation of the marks, equals
//!    the value that it loaded. Both are always values that a drain returned. A drain that returns
//!    g or a later value has reported U. (The first values are older than the first entry.)
//!
//!    The store to `drained` releases and the load acquires. So this lookup sees everything that
//!    was done before the store. If E was published before that drain, the drain marked E.
//!    `drained` is stored only when no entry is marked, so E was killed before. If E was still
//!    being registered, the drain marked E's slot as invalidated. The miss looked at that mark
//!    under the lock, after a drain of its own, and did not publish E. In both cases an attempt to
//!    acquire E fails.
//!
//!    If only the generation of the marks equals the loaded value, E may still be live. But E has a
//!    mark, or was killed before its mark was cleared. `core/marks.rs` argues that the lookup sees
//!    the mark, or fails to acquire E.
//! 4. If both differ, the lookup takes the lock, drains, and searches the index before it releases
//!    the lock. This drain loads the generation, or reads the report, after the lookup began. So E
//!    is marked or dead when the lookup searches. A search that finds a marked entry unlinks it.
//!
//! If a monitor is [`CHECKED`], its generation alone may rise too late for step 2. So the lookup
//! first calls `is_intact`. If `is_intact` returns true, the generation includes U by then, and the
//! steps above hold. If it returns false, every entry that covers the range is unlinked, and
//! pending registrations that would cover the range start over. So the lookup returns a
//! registration that was made after the lookup began, hence after U.
//!
//! Entries that overlap the range without covering it stay linked. Such entries cannot serve this
//! lookup. A lookup that such an entry can serve calls `is_intact` for its own range.
//!
//! A lookup that starts over clears the mark of its slot before it places a new watch. The
//! registration that the mark was about is gone by then. A lookup that waited starts over too. So
//! steps 2 to 4 hold from the drain that follows the wait.
//!
//! A lookup that returns an uncached registration makes that registration itself. So the
//! registration was made after U. This holds as well if the monitor failed, or if the registration
//! was meant for the cache and there was no room.
//!
//! # When registrations are deregistered
//!
//! A killed entry is deregistered after its last reference is dropped. If a guard owned that
//! reference, the thread that drops the guard deregisters the entry. Otherwise the entry is *dead*,
//! and waits on a list. The rules for this list keep lookups from paying for the dead of others:
//!
//! - A hit deregisters nothing, and neither does a lookup that drains and then hits.
//! - Where there is a reaper, a lookup that leaves dead or marked entries wakes the reaper. The
//!   reaper handles the entries of all caches that share its monitor, in pieces.
//! - Without a reaper, a miss deregisters up to eight dead entries. [`Cache::reap`] deregisters
//!   all.
//! - A miss that needs room deregisters as many dead entries as the room requires. It evicts live
//!   entries only if the dead and the marked ones are not enough. The same holds if the device is
//!   exhausted.
//! - [`Cache::flush`], [`Cache::invalidate`] and the drop of the cache deregister all dead entries.
//!
//! Dead entries count against the limits of the cache until they are deregistered. So they are
//! bounded by these limits, even if the reaper is slow. Without a reaper, the list becomes shorter
//! with each miss, because a miss makes one registration and deregisters up to eight.
//!
//! No thread deregisters while it holds the lock. After the deregistration the slot is vacant, and
//! its room in the budget is free.
//!
//! The content of each entry holds a reference to the core, so guards may outlive the cache.
//!
//! [`Cache::get`]: crate::Cache::get
//! [`Cache::reap`]: crate::Cache::reap
//! [`Cache::flush`]: crate::Cache::flush
//! [`Cache::invalidate`]: crate::Cache::invalidate
//! [`Monitor`]: crate::monitor::Monitor
//! [`CHECKED`]: crate::monitor::Monitor::CHECKED
