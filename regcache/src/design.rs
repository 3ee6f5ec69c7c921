//! The protocol of the cache, and the argument that it never returns a stale registration.
//!
//! The file `core/entry.rs` has the corresponding argument for a single entry.
//! `docs/design/proof.md` lists the models and tests that try to find a hole in either argument.
//!
//! # The protocol
//!
//! The protocol compares two numbers. The monitor's `generation` rises before an invalidating call
//! returns, and before the kernel can hand out the address again (rule M3 of [`Monitor`]). The
//! cache's `drained` is the generation up to which every invalidated entry was unlinked.
//!
//! **Hit** ([`Cache::get`]). Load `generation`, and go on only if it equals `drained`. In a forked
//! child the two are never equal. Take a reference to the entry that the hints name, if that entry
//! is live. If the entry serves the request, return it. If any of these steps fails, take the slow
//! path. A hit takes no lock, makes no system call and allocates nothing. A hit writes to the cache
//! line of its entry and to no other.
//!
//! **Drain** (`core/mod.rs`). Under the lock, read the monitor's reports until none is left. Kill
//! and unlink the entry that each report names (`core/entry.rs` defines killing). The monitor then
//! returns the generation of the moment at which no report was left. Store that generation in
//! `drained`.
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
//! 3. The lookup goes on without a drain only if `drained` equals the value that it loaded.
//!    `drained` is always a value that a drain returned. A drain that returns g or a later value
//!    has reported U. (The first value of `drained` is older than the first entry.)
//!
//!    The store to `drained` releases and the load acquires. So this lookup sees everything that
//!    the draining thread did before the store. If E was published before that drain, the drain
//!    killed E. If E was still being registered, the drain marked E's slot as invalidated. The miss
//!    looked at that mark under the lock, after a drain of its own, and did not publish E. In both
//!    cases an attempt to acquire E fails.
//! 4. If `drained` differs, the lookup takes the lock, drains, and searches the index before it
//!    releases the lock. This drain loads the generation, or reads the report, after the lookup
//!    began. So the argument of step 3 holds here as well.
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
//! reference, the thread that drops the guard deregisters the entry. Otherwise the entry waits for
//! the next thread that leaves the slow path or is about to register. The reaper may be that
//! thread. No thread deregisters while it holds the lock. After the deregistration the slot is
//! vacant, and its room in the budget is free.
//!
//! The content of each entry holds a reference to the core, so guards may outlive the cache.
//!
//! [`Cache::get`]: crate::Cache::get
//! [`Monitor`]: crate::monitor::Monitor
//! [`CHECKED`]: crate::monitor::Monitor::CHECKED
