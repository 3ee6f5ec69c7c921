//! Which keys are in use by work that was posted and has not completed.
//!
//! # The promise
//!
//! After `ibv_dereg_mr` returns, no work that was posted with the keys of that registration touches
//! the memory. Without a cache the device keeps this promise: it has forgotten the keys. A cache
//! that keeps the registration has to keep the promise itself. So a registration is kept only if
//! nothing that was posted with its keys can be outstanding; otherwise it is deregistered for real,
//! and the device fails the work as it would have without the shim.
//!
//! Two `ibv_mr`s that a program holds at the same time never share a key, since each has to end by
//! itself. A key thus has one of three states. It is *held* by one `ibv_mr`; it is *idle*, when
//! that `ibv_mr` was deregistered and the registration was kept; or it is gone.
//!
//! # How work is followed
//!
//! Each send queue, receive queue and shared receive queue has a [`Queue`]. A work request gets the
//! next number of its queue. The queue remembers, for each key, the last request that used it
//! ([`keys::InUse`]), and it knows the number below which all requests are *over*
//! ([`Queue::over`]). A key may be in use by the queue as long as its last request is not over.
//!
//! - A receive queue completes in order, and each request has a completion: the n-th completion
//!   ends the n-th request.
//! - A send queue completes in order, but only signaled requests are certain to have a completion:
//!   the n-th completion ends the n-th signaled request, and with it all unsignaled ones before it.
//! - A shared receive queue completes in any order, and a completion names its request only by a
//!   number that the program may use twice. All requests of the queue are over when it has had as
//!   many completions as requests; until then each of them counts as outstanding.
//! - A completion with an error is not counted. It does not tell which of the two queues of a queue
//!   pair it is of, and an unsignaled request may have one.
//! - When a queue pair is reset or destroyed, all of its requests are over.
//!
//! Every doubt makes a queue count fewer completions than there were. Suppose that `c` successful
//! completions of a queue were counted and that `d >= c` signaled requests have succeeded. The
//! requests that are taken to be over are those up to the `c`-th signaled one. As the queue
//! completes in order, these are over in truth. So it is safe to miss completions: to ignore those
//! with errors, to count a request that the device never accepted, to poll with a function that the
//! shim does not see. The price is a registration that is not kept. It would not be safe to count a
//! completion that belongs to no counted request, so a queue that has more completions than
//! requests is *lost*: it counts as using every key from then on.
//!
//! One completion may be counted for another request than its own: after a reset, completions of
//! before may still lie in the completion queue. The counting is the same over resets, so that such
//! a completion ends at most the request that it belongs to. A device may also discard them, and
//! then the queue stays behind by as many. It catches up at the reset if all completions were
//! polled by then, those with errors among them ([`all_polled`]). Otherwise it catches up
//! ([`Queue::settle`]) when the completion queue was seen empty after the reset: no completion of
//! before is left then.
//!
//! # Threads
//!
//! A poster and a thread that deregisters meet as follows, where `InUse` is the queue's memory of
//! keys and `Idle` is the device's set of idle keys:
//!
//! | poster | deregistering thread |
//! |---|---|
//! | 1. writes the key to `InUse` | 1. writes the key to `Idle` |
//! | 2. fence | 2. fence |
//! | 3. looks whether the key is in `Idle` | 3. looks whether the key is in `InUse` |
//! | 4. posts | 4. returns from `ibv_dereg_mr` |
//!
//! Both fences are sequentially consistent, so at least one of the two sees what the other wrote.
//! If the deregistering thread sees the key in use, the registration is deregistered for real. If
//! the poster sees that the key is idle, it has all idle registrations of the device deregistered
//! for real before it posts. Then the device refuses the request. This also holds for a program
//! that posts with the key long after `ibv_dereg_mr`.
//!
//! Requests get their numbers under a lock of the queue, which is held until the device has them:
//! numbers are in the device's order. Completions are counted under a lock of the completion queue,
//! which is held while it is polled. Neither of these locks is taken while a thread deregisters.
//! `Queue::over` rises only after the completion was polled, and it never sinks: a thread that
//! reads an old value takes a request for outstanding that is over.
//!
//! A thread that deregisters looks only at the queues that have a word for the key ([`users`]). A
//! queue that is not in that list yet enters it, under the list's lock, before it takes a word for
//! the key. If the deregistering thread had the lock first, the poster has seen what that thread
//! wrote before, and finds the key idle. So step 1 of the poster may be that it enters the list.
//!
//! Posting writes to lines of its own queue and reads one line of `Idle`; counting a completion
//! writes to lines of the queue and of the completion queue. Neither looks for the registration
//! that a key belongs to, or asks whether it is one of the shim's.

mod device;
mod keys;
mod queue;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod users;

pub(crate) use device::{Device, Release};
pub(crate) use queue::{Mark, Order, Post, Queue, all_polled};
