//! Accounts for keys that are in use by outstanding work: work that was posted and has not
//! completed.
//!
//! # The promise
//!
//! After `ibv_dereg_mr` returns, no work that was posted with the keys of that registration touches
//! the memory. Without a cache the device keeps this promise, because it has invalidated the keys.
//! A cache that keeps the registration has to keep the promise itself. So the shim keeps a
//! registration only if no outstanding work can use its keys. Otherwise the shim deregisters it.
//! The device then fails the work as it would without the shim.
//!
//! Two `ibv_mr`s that a program holds at the same time never share a key, since the key of each has
//! to end separately. So a key has one of three states. It is *held* while an `ibv_mr` has it. It
//! is *idle* if that `ibv_mr` was deregistered and the shim kept the registration. It is *gone*
//! after the registration was deregistered.
//!
//! # How work is followed
//!
//! Each send queue, receive queue and shared receive queue has a [`Queue`]. A work request gets the
//! next number of its queue. For each key, the queue remembers the last request that used the key
//! ([`keys::InUse`]). The queue also knows a number below which all requests are *over*: they use
//! no memory any more ([`Queue::over`]). The queue may use a key as long as the last request with
//! that key is not over.
//!
//! - A receive queue completes in order, and each request has a completion. So the n-th completion
//!   ends the n-th request.
//! - A send queue completes in order, but only a signaled request is certain to have a completion.
//!   So the n-th completion ends the n-th signaled request and all unsignaled ones before it.
//! - A shared receive queue completes in any order. A completion names its request only by a number
//!   that the program may use twice. So all requests of the queue are over when it has had as many
//!   completions as requests. Until then each request counts as outstanding.
//! - A completion with an error is not counted. Such a completion does not show whether it belongs
//!   to the send queue or to the receive queue. Also, an unsignaled request may have one.
//! - When a queue pair is reset or destroyed, all of its requests are over.
//!
//! Every doubt makes a queue count fewer completions than there were. Suppose that `c` successful
//! completions of a queue were counted, and that `d >= c` signaled requests have succeeded. The
//! shim treats the requests up to the `c`-th signaled one as over. These requests are over, because
//! the queue completes in order. So it is safe if the count of completions is too low. Three cases
//! make it too low: a completion with an error, a counted request that the device never accepted,
//! and a poll by a function that the shim does not interpose. The price is a registration that is
//! not kept. It would not be safe to count a completion that belongs to no counted request. So a
//! queue with more completions than requests is *lost*: it counts as using every key from then on.
//!
//! After a reset, completions from before it may still be in the completion queue. The shim may
//! count such a completion for another request than its own. The counting continues over resets, so
//! such a completion ends at most the request to which it belongs. A device may also discard these
//! completions, and the count of the queue then stays too low. The reset corrects the count if all
//! completions were polled by then, including those with errors ([`all_polled`]). Otherwise
//! [`Queue::settle`] corrects the count, once the completion queue was seen empty after the reset.
//! The completion queue then holds no completion from before the reset.
//!
//! # Threads
//!
//! The following table shows a poster and a thread that deregisters. `InUse` is the queue's record
//! of keys, and `Idle` is the device's set of idle keys:
//!
//! | poster | deregistering thread |
//! |---|---|
//! | 1. writes the key to `InUse` | 1. writes the key to `Idle` |
//! | 2. fence | 2. fence |
//! | 3. looks whether the key is in `Idle` | 3. looks whether the key is in `InUse` |
//! | 4. posts | 4. returns from `ibv_dereg_mr` |
//!
//! Both fences are sequentially consistent, so at least one of the two threads sees the other's
//! write. If the deregistering thread sees the key in use, it deregisters the registration. If the
//! poster sees that the key is idle, it deregisters all idle registrations of the device before it
//! posts. Then the device refuses the request. This also holds for a program that posts with the
//! key long after `ibv_dereg_mr`.
//!
//! Requests get their numbers under a lock of the queue. The poster holds this lock until the
//! device has the requests, so the numbers are in the device's order. Completions are counted under
//! a lock of the completion queue, which is held during a poll. A thread that deregisters takes
//! neither lock. `Queue::over` rises only after the completion was polled, and never falls. So a
//! thread that reads an old value may treat a request as outstanding although it is over, which is
//! safe.
//!
//! A thread that deregisters looks only at the queues that have a word for the key. (A word is an
//! element of [`keys::InUse`], and [`users`] has the lists of these queues.) A queue that is not in
//! the key's list enters it, under the list's lock, before the queue takes a word for the key. If
//! the deregistering thread had the lock first, the poster sees that thread's earlier writes, and
//! so finds the key idle. So the table also holds if step 1 of the poster enters the list.
//!
//! Posting writes only to cache lines of its own queue, and reads one line of `Idle`. Counting a
//! completion writes to lines of the queue and of the completion queue. Neither step looks up a
//! registration, or checks whether a key belongs to the shim. So the cost does not grow with the
//! number of registrations.

mod device;
mod keys;
mod queue;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod users;

pub(crate) use device::{Device, Release};
pub(crate) use queue::{Mark, Order, Post, Queue, all_polled};
