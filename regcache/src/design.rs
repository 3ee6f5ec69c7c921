//! The protocol of the cache, and the argument that it never returns a stale registration.
//!
//! The file `core/entry.rs` has the argument for a single entry, and
//! `docs/design/proof.md` lists the models and tests that look for a hole in both.
//!
//! # The protocol
//!
//! The monitor's `generation` rises before an invalidating call returns, and before the address can
//! be handed out again (M3 of [`Monitor`]). The cache's `drained` is the generation up to which
//! every invalidated entry was unlinked.
//!
//! **Hit** ([`Cache::get`]). Load `generation`. Go on if it equals `drained`; in a forked child it
//! never does. Take a reference to the entry that the hints name, if that entry is live. If the
//! entry covers the request, return it. A hit takes no lock, makes no system call and allocates
//! nothing. It writes to the entry's own cache line and to no other.
//!
//! **Drain** (`core/mod.rs`). Under the lock: ask the monitor for all invalidated watches, and kill
//! and unlink the entry of each. Then store into `drained` the generation of the moment at which no
//! report was left.
//!
//! **Miss** (`core/lookup.rs`). Make room; *watch, then register*; drain. If the watch was
//! invalidated meanwhile, deregister and start over. Otherwise publish the entry.
//!
//! # Why a lookup never returns a stale registration
//!
//! Let U be an operation that changed pages of the range. Let U have returned before the lookup
//! began. Or let the looking-up thread have been given the address by a mapping call that could
//! only be satisfied because U had happened. Let E be an entry for the range, registered before U.
//! To show: the lookup does not return E.
//!
//! 1. E's watch was placed before its registration, hence before U ends. If U started after the
//!    watch was placed, it is reported (M1). Otherwise U was in flight while the watch was placed.
//!    Then U is reported (M2), or it was over before the watch was in place. In the latter case U
//!    was over before the registration, which pinned the pages after U.
//! 2. In either case the generation rose for U before the lookup began (M3). The lookup's load of
//!    `generation` returns that value, g, or a later one.
//! 3. The lookup goes on without draining only if `drained` equals the value that it loaded.
//!    `drained` takes values that a drain has returned, and a drain that returns g or more has
//!    reported U before. The store to `drained` releases and the load acquires, so this lookup sees
//!    all that the draining thread did before. (The first value of `drained` is from before the
//!    first entry.) So E is dead. Or, if U came while E was being registered, E was never
//!    published. In the latter case the drain marked its slot as invalidated, and the miss looked
//!    at that mark under the lock after its own drain. Either way an acquire of E fails.
//! 4. If `drained` differs, the lookup drains first and looks in the index, under one lock. The
//!    drain loads the generation, or reads the report, after the lookup began, so the same holds.
//!
//! With a monitor that is [`CHECKED`] step 2 holds because the lookup asks the
//! monitor first. One answer is that the generation includes U when `is_intact` returns; then all
//! that follows is as above. With the other answer, every entry that covers the range is unlinked,
//! and pending registrations that would cover it start over. So the lookup returns a registration
//! that was made after it began, and so after U. Entries that overlap the range and do not cover it
//! are left alone: the monitor is asked about them when they are looked up.
//!
//! An uncached registration is made after the lookup began, so after U.
//!
//! # When registrations are deregistered
//!
//! The thread that drops the last reference of a killed entry deregisters it. If a guard was the
//! last owner, that is the thread which drops it. Otherwise it is the next thread that leaves the
//! slow path or is about to register; the reaper is one of them. No thread deregisters under the
//! lock. After that the slot is vacant again and its room is free.
//!
//! Each cached registration holds a reference to the core, so guards may outlive the cache.
//!
//! [`Cache::get`]: crate::Cache::get
//! [`Monitor`]: crate::monitor::Monitor
//! [`CHECKED`]: crate::monitor::Monitor::CHECKED
