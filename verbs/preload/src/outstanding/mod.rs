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
//! Each send queue, receive queue and shared receive queue has a [`Queue`]. The queue counts the
//! *signaled* requests that the device has accepted. A signaled request is one that is certain to
//! have a completion: each receive, and each send with the flag. The *position* of a request is the
//! number of the next signaled request at its post. So a signaled request has its own number, and
//! an unsignaled one has that of the signaled request after it. For each key, the queue remembers
//! the position of the last request that used the key ([`keys::InUse`]). The queue may use a key as
//! long as this request is not *over*, which means that it uses no memory any more.
//!
//! - A receive queue completes in order, and each request has a completion. So the n-th completion
//!   ends the n-th request.
//! - A send queue completes in order, but only a signaled request is certain to have a completion.
//!   So the n-th completion ends all requests up to position n.
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
//! # The common way
//!
//! Posting and polling must cost little, and `ibv_dereg_mr` may cost more. So the common way keeps
//! counts only, and `ibv_dereg_mr` draws the conclusions.
//!
//! Most requests use the key of the request before. Such requests form a *run* ([`Queue::again`]).
//! In a run, a post takes the lock of the queue, compares the key, and adds 1 to the count of
//! requests. It notes no position: the last request of a run is the last signaled request of the
//! queue. The thread that ends the run notes that position. Each post that is not of the run ends
//! it, and so does a thread that deregisters a key which the queue has used.
//!
//! A poll adds 1 to a counter for the queue pair's number ([`cells`]). It takes no lock, so it
//! counts some time after the device has removed the completion from the completion queue. That
//! does no harm as long as all completions of the counter belong to one queue. Two things end
//! this: a reset, after which completions from before may still be counted, and a second queue pair
//! with the same cell.
//!
//! After a reset, a completion from before may be counted for another request than its own. The
//! counting continues over resets, so such a completion ends at most the request to which it
//! belongs. A device may also discard these completions, and the count of the queue then stays too
//! low. The reset corrects the count if all completions were polled by then, including those with
//! errors ([`left`]). Otherwise polls of the device change to another way for good: they
//! count under a lock of the completion queue, which they hold from before the poll. When such a
//! poll finds the completion queue empty, no completion from before the reset is in the queue. So
//! [`Queue::settle`] corrects the count then. A poll of the first way may still be about to count a
//! completion from before. So the queue ignores its cell from then on.
//!
//! A queue reads a cell only if no other queue pair can count there ([`Owners`]). If a new queue
//! pair has the cell of another one, none of the two reads the cell any more, and polls count by
//! lock.
//!
//! # Threads
//!
//! Each queue has a lock, which is a bit in the word that counts its requests. A poster holds the
//! lock until the device has the requests, so the positions are in the device's order. A thread
//! that deregisters takes the locks of the queues that have an element of [`keys::InUse`] for the
//! key ([`users`]).
//!
//! Suppose that a thread deregisters a key, and that another thread posts with the key to some
//! queue. The first thread adds the key to the device's set of idle keys. Then it takes the lock of
//! the key's list of queues, and looks at each queue in the list that has a word for the key, under
//! the lock of the queue. It ends the run there. There are three cases:
//!
//! - The queue has a word for the key, and the post was before this look. Then the look finds the
//!   position of the request. The registration is kept only if the request is over.
//! - The queue has a word for the key, and the post is after this look. The run has ended, so the
//!   post is not of the run. It checks whether the key is idle. It has had the lock of the queue
//!   after the first thread, so it finds the key there.
//! - The queue had no word for the key, or was not in the list. Then the post takes a word under
//!   the lock of the list, and checks afterwards whether the key is idle. It has had the lock of
//!   the list after the first thread, so it finds the key there. If it had the lock before, the
//!   first thread would have found the word.
//!
//! A poster that finds its key idle deregisters all idle registrations of the device before it
//! posts. Then the device refuses the request. This also holds for a program that posts with the
//! key long after `ibv_dereg_mr`.
//!
//! A thread that deregisters waits only a short time for the lock of a queue. If it does not get
//! the lock, it treats the key as used. So it does not wait for the device, and a thread may
//! deregister while it has an extended post open. A poster waits for the lock of a list while it
//! has the lock of its queue. This cannot be for ever, since threads with the lock of a list wait
//! only a short time.
//!
//! The counts of completions only rise, and a completion is counted after it was polled. So a
//! thread that reads an old value may treat a request as outstanding although it is over, which is
//! safe.
//!
//! In the common way a post writes to one cache line, which belongs to its queue. A poll writes to
//! one cache line, which belongs to the queue pair. Neither step looks up a registration, or checks
//! whether a key belongs to the shim. So the cost does not grow with the number of registrations.

mod cells;
mod device;
mod keys;
mod queue;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod users;

pub(crate) use cells::{CELLS, Cell, Owners};
pub(crate) use device::{Device, Release};
pub(crate) use queue::{Left, Mark, Order, Post, Queue, left};
