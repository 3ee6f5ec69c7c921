//! The shim's records of devices, queue pairs, completion queues and shared receive queues.
//!
//! A record exists from the creation of its object to its destruction. An *extended* post or poll
//! goes through `struct ibv_qp_ex` or `struct ibv_cq_ex`. Such a post or poll consists of a call
//! that starts it, further calls, and a call that ends it. An object that was created unseen has no
//! record. [`OpenDevice::cannot_see`] then marks its device: the shim keeps no registration on that
//! device any more.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use regcache::internal::FileId;

use crate::abi::{
    ContextOps, EndPoll, ExtendedPost, IbvCq, IbvQp, IbvSrq, NextPoll, OpenContext, PollCq,
    PostRecv, PostSend, QpCap, RECEIVED, SUCCESS, StartPoll, VerbsContext, Wc,
};
use crate::directory::Directory;
use crate::fork;
use crate::nearest::Nearest;
use crate::outstanding::{Cell, Device, Left, Mark, Order, Owners, Post, Queue, left};
use crate::poll;
use crate::slots::Slot;

pub(crate) static DEVICES: Directory<OpenDevice> = Directory::new();
pub(crate) static QUEUE_PAIRS: Directory<QueuePair> = Directory::new();
pub(crate) static COMPLETION_QUEUES: Directory<CompletionQueue> = Directory::new();
pub(crate) static SHARED_QUEUES: Directory<SharedQueue> = Directory::new();
/// The send queues, by queue pair.
pub(crate) static SENDS: Nearest<Queue> = Nearest::new();
/// The receive queues, by queue pair, and the shared receive queues.
pub(crate) static RECEIVES: Nearest<Queue> = Nearest::new();

/// Returns the address of an object, which is the key of its record.
pub(crate) fn address<T>(object: *mut T) -> usize {
    object.addr()
}

/// A device that the program has opened.
pub(crate) struct OpenDevice {
    /// The functions of the context before the shim replaced them, with those of `software.rs` in
    /// front.
    pub(crate) ops: ContextOps,
    pub(crate) create: Creators,
    /// The address of a function of the device's library.
    pub(crate) library: Option<*const c_void>,
    /// True if the device's library posts by system calls.
    pub(crate) in_software: bool,
    /// The work that was posted to the device.
    pub(crate) work: Device,
    /// The context, whose functions the shim replaces.
    context: *mut OpenContext,
    /// The file behind the context's descriptor.
    file: Option<FileId>,
    slot: Option<&'static Slot>,
    cells: Mutex<Cells>,
    /// The number of the process that opened the device.
    process: u64,
    /// The reason why the shim does not see all work of the device, if there is one.
    unseen: OnceLock<&'static str>,
}

/// The use of a device's cells.
#[derive(Default)]
struct Cells {
    owners: Owners,
    /// True if polls count under the lock of their completion queue, and not in the cells.
    by_lock: bool,
}

/// The functions that create the objects of an extended context.
#[derive(Clone, Copy, Default)]
pub(crate) struct Creators {
    pub(crate) wq: Option<crate::abi::CreateWq>,
    pub(crate) cq_ex: Option<crate::abi::CreateCqEx>,
    pub(crate) open_qp: Option<crate::abi::OpenQp>,
    pub(crate) qp_ex: Option<crate::abi::CreateQpEx>,
    pub(crate) srq_ex: Option<crate::abi::CreateSrqEx>,
}

// SAFETY: the functions are libibverbs's, and any thread may call them. The shim does not use the
// addresses in `ops` that are not functions.
unsafe impl Send for OpenDevice {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for OpenDevice {}

impl OpenDevice {
    /// Makes the record of an open device.
    ///
    /// # Safety
    ///
    /// The context is open. `ops` are its functions before the shim replaced them.
    pub(crate) unsafe fn new(
        context: *mut OpenContext,
        ops: ContextOps,
        extended: *mut VerbsContext,
        slot: Option<&'static Slot>,
        library: Option<*const c_void>,
        in_software: bool,
    ) -> Self {
        // SAFETY: the pointer is null or points to the extended part of an open context.
        let create = unsafe { extended.as_ref() }.map_or_else(Creators::default, |it| Creators {
            wq: it.create_wq,
            cq_ex: it.create_cq_ex,
            open_qp: it.open_qp,
            qp_ex: it.create_qp_ex,
            srq_ex: it.create_srq_ex,
        });
        Self {
            ops,
            create,
            library,
            in_software,
            work: Device::new(),
            context,
            // SAFETY: the context is open.
            file: FileId::of(unsafe { (*context).cmd_fd }).ok(),
            slot,
            cells: Mutex::default(),
            process: fork::id(),
            unseen: OnceLock::new(),
        }
    }

    /// Returns false if the program has closed the context's descriptor, as daemons close all
    /// descriptors. libibverbs would then write into a file that has the descriptor's number now.
    /// The kernel has ended the registrations.
    pub(crate) fn has_descriptor(&self) -> bool {
        // SAFETY: the context is open.
        FileId::of(unsafe { (*self.context).cmd_fd }).ok() == self.file
    }

    /// Removes the records of all objects on the device, which was closed.
    pub(crate) fn closed(&self) {
        let is_mine = |device: &Arc<Self>| std::ptr::eq(&**device, self);
        for pair in QUEUE_PAIRS.remove_all(|it| is_mine(&it.device)) {
            pair.leave();
        }
        drop(COMPLETION_QUEUES.remove_all(|it| is_mine(&it.device)));
        for shared in SHARED_QUEUES.remove_all(|it| is_mine(&it.device)) {
            shared.leave();
        }
        if let Some(slot) = self.slot {
            slot.give_back();
        }
    }

    /// Lets the queues of a new queue pair read its cell. Returns `None` if the cell may count
    /// completions of another queue pair. Polls then count by lock.
    fn cell(
        &self,
        number: u32,
        sends: &Arc<Queue>,
        receives: Option<&Arc<Queue>>,
    ) -> Option<&'static Cell> {
        // SAFETY: this device is in the slot.
        let cell = self.slot.map(|slot| unsafe { slot.cell(number) })?;
        let mut cells = self.cells.lock();
        if cells.by_lock {
            // A poll that began before may still count in the cell.
            cells.owners.give_back(number, false);
            return None;
        }
        if cells.owners.take(number, cell, sends, receives) {
            return Some(cell);
        }
        drop(cells);
        self.count_by_lock();
        None
    }

    /// Makes all polls from now on count under the lock of their completion queue. The shim needs
    /// this to see that no completion is left of a queue pair that was reset or destroyed.
    fn count_by_lock(&self) {
        if self.slot.is_none() {
            return;
        }
        self.cells.lock().by_lock = true;
        // SAFETY: the context is open. The place is aligned, and the program only reads it.
        let poll_cq = unsafe {
            AtomicPtr::from_ptr((&raw mut (*self.context).ops.poll_cq).cast::<*mut ()>())
        };
        poll_cq.store(poll::poll_cq as *mut (), Ordering::Release);
    }

    /// Marks the device: from now on the shim may miss work or completions. Returns true if the
    /// device was not marked yet.
    pub(crate) fn cannot_see(&self, why: &'static str) -> bool {
        self.unseen.set(why).is_ok()
    }

    /// Returns the reason of the first [`cannot_see`](Self::cannot_see).
    #[inline]
    pub(crate) fn marked(&self) -> Option<&'static str> {
        self.unseen.get().copied()
    }

    /// Returns true if this process has opened the device. If the parent opened it, a thread of the
    /// parent may have held a queue's lock at the fork. No thread of the child would release that
    /// lock.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == fork::id()
    }

    /// Returns the reason why the shim does not see all work of the device, if there is one.
    pub(crate) fn unseen(&self) -> Option<&'static str> {
        if self.is_ours() {
            self.marked()
        } else {
            Some("a device was opened by the parent of this process")
        }
    }
}

/// A shared receive queue.
pub(crate) struct SharedQueue {
    object: usize,
    pub(crate) device: Arc<OpenDevice>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) max_sge: u32,
}

impl SharedQueue {
    pub(crate) fn create(device: Arc<OpenDevice>, srq: *mut IbvSrq, max_wr: u32, max_sge: u32) {
        let queue = device.work.queue(Order::Any, max_wr, max_sge);
        let shared = Self {
            object: address(srq),
            device,
            queue,
            max_sge,
        };
        Arc::new(shared).enter();
    }

    /// Adds the record to the tables.
    pub(crate) fn enter(self: Arc<Self>) {
        let (object, queue) = (self.object, Arc::clone(&self.queue));
        if let Some(old) = SHARED_QUEUES.insert(object, self) {
            old.destroyed();
        }
        RECEIVES.insert(object, queue);
    }

    /// Removes the queue from the table for posts.
    pub(crate) fn leave(&self) {
        RECEIVES.remove(self.object);
    }

    pub(crate) fn destroyed(&self) {
        self.queue.destroy();
    }
}

/// A queue pair, with its queues and the device's functions that post to it.
pub(crate) struct QueuePair {
    object: usize,
    pub(crate) device: Arc<OpenDevice>,
    number: u32,
    pub(crate) all_signaled: bool,
    pub(crate) cap: QpCap,
    pub(crate) sends: Arc<Queue>,
    /// The receive queue of this queue pair; `None` if it uses a shared one.
    pub(crate) receives: Option<Arc<Queue>>,
    /// The receive queue to which the queue pair's receive completions belong. It may be a shared
    /// one.
    received: Option<Arc<Queue>>,
    /// The number of completions with errors since the last reset that were counted by lock.
    errors: Arc<AtomicU64>,
    /// The cell that counts completions, and its errors at the last reset.
    cell: Option<(&'static Cell, AtomicU64)>,
    /// The most errors from before the last reset that may have been left then.
    stale: AtomicU64,
    send_cq: Option<Arc<CompletionQueue>>,
    recv_cq: Option<Arc<CompletionQueue>>,
    pub(crate) post_send: Option<PostSend>,
    pub(crate) post_recv: Option<PostRecv>,
    /// The device's functions for extended posts.
    pub(crate) extended: Option<ExtendedPost>,
    /// The post between `ibv_wr_start` and `ibv_wr_complete`. It borrows `sends`.
    extended_post: UnsafeCell<Option<(Post<'static>, Mark)>>,
}

// SAFETY: only the thread that holds the lock of `sends` touches the post, by the rules of the
// functions for extended posts.
unsafe impl Send for QueuePair {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// Adds the record of a queue pair that was just created.
    ///
    /// # Safety
    ///
    /// `qp` is a queue pair on this device.
    pub(crate) unsafe fn create(
        device: Arc<OpenDevice>,
        qp: *mut IbvQp,
        cap: QpCap,
        all_signaled: bool,
        extended: Option<ExtendedPost>,
    ) {
        // SAFETY: the caller keeps the contract of this function.
        let it = unsafe { &*qp };
        let sends = device
            .work
            .queue(Order::Signaled, cap.max_send_wr, cap.max_send_sge);
        let receives = it.srq.is_null().then(|| {
            device
                .work
                .queue(Order::Each, cap.max_recv_wr, cap.max_recv_sge)
        });
        // SAFETY: the program does not destroy the queues that the queue pair uses.
        let (shared, send_cq, recv_cq) = unsafe {
            (
                SHARED_QUEUES.get(address(it.srq)),
                COMPLETION_QUEUES.share(address(it.send_cq)),
                COMPLETION_QUEUES.share(address(it.recv_cq)),
            )
        };
        let shared = shared.map(|it| Arc::clone(&it.queue));
        let received = receives.clone().or(shared);
        let cell = device.cell(it.qp_num, &sends, received.as_ref());
        let pair = Self {
            object: address(qp),
            cell: cell.map(|cell| {
                let errors = cell.errors.load(Ordering::Acquire);
                (cell, AtomicU64::new(errors))
            }),
            number: it.qp_num,
            all_signaled,
            cap,
            received,
            stale: AtomicU64::new(0),
            errors: Arc::default(),
            receives,
            sends,
            send_cq,
            recv_cq,
            post_send: device.ops.post_send,
            post_recv: device.ops.post_recv,
            extended,
            extended_post: UnsafeCell::new(None),
            device,
        };
        pair.count_completions();
        Arc::new(pair).enter();
    }

    /// Adds the record to the tables.
    pub(crate) fn enter(self: Arc<Self>) {
        let (object, sends) = (self.object, Arc::clone(&self.sends));
        let receives = self.receives.clone();
        if let Some(old) = QUEUE_PAIRS.insert(object, self) {
            old.destroyed();
        }
        SENDS.insert(object, sends);
        if let Some(receives) = receives {
            RECEIVES.insert(object, receives);
        }
    }

    /// Removes the queues from the tables for posts.
    pub(crate) fn leave(&self) {
        SENDS.remove(self.object);
        RECEIVES.remove(self.object);
    }

    /// Tells the completion queues to count the completions of this queue pair from now on.
    pub(crate) fn count_completions(&self) {
        if let Some(cq) = &self.send_cq {
            cq.count(self.number, &self.errors, Some(&self.sends), None);
        }
        if let Some(cq) = &self.recv_cq {
            cq.count(self.number, &self.errors, None, self.received.as_ref());
        }
    }

    /// Tells the completion queues to ignore the completions of this queue pair: a later queue pair
    /// may have the same number.
    pub(crate) fn ignore_completions(&self) {
        for cq in [&self.send_cq, &self.recv_cq].into_iter().flatten() {
            cq.ignore(self.number);
        }
    }

    /// Returns its completions that may be left to be polled.
    fn left(&self) -> Left {
        let mut errors = self.errors.load(Ordering::Relaxed);
        if let Some((cell, before)) = &self.cell
            && self.sends.reads(&cell.sends)
        {
            let counted = cell.errors.load(Ordering::Acquire);
            errors += counted.wrapping_sub(before.load(Ordering::Relaxed));
        }
        let stale = self.stale.load(Ordering::Relaxed);
        match &self.receives {
            Some(receives) => left(&self.sends, receives, errors, stale),
            // A shared receive queue does not show how many of its receives this queue pair has
            // taken.
            None => Left {
                all_polled: false,
                errors: stale,
            },
        }
    }

    /// Marks the queues as destroyed: the device does no more work for the queue pair.
    pub(crate) fn destroyed(&self) {
        let left = self.left();
        let is_clean = left.all_polled && left.errors == 0;
        let owners = &mut self.device.cells.lock().owners;
        owners.give_back(self.number, is_clean);
        if is_clean {
            for cq in [&self.send_cq, &self.recv_cq].into_iter().flatten() {
                cq.change(|counting| counting.forget(self.number));
            }
        }
        let queues = [Some(&self.sends), self.receives.as_ref()];
        for queue in queues.into_iter().flatten() {
            queue.destroy();
        }
    }

    /// Marks all requests as over: the device has discarded the work of the queue pair.
    pub(crate) fn reset(&self) {
        let Left { all_polled, errors } = self.left();
        self.stale.store(errors, Ordering::Relaxed);
        self.errors.store(0, Ordering::Relaxed);
        if let Some((cell, before)) = &self.cell {
            let counted = cell.errors.load(Ordering::Acquire);
            before.store(counted, Ordering::Relaxed);
        }
        let queues = [
            (&self.send_cq, Some(&self.sends)),
            (&self.recv_cq, self.receives.as_ref()),
        ];
        let mut is_settled = true;
        for (cq, queue) in queues {
            is_settled &= match (cq, queue) {
                (Some(cq), Some(queue)) => cq.reset(queue, all_polled),
                (None, Some(queue)) => queue.reset(all_polled),
                (_, None) => true,
            };
        }
        if !is_settled {
            self.device.count_by_lock();
        }
    }

    /// Begins an extended post.
    ///
    /// # Safety
    ///
    /// This thread is in `ibv_wr_start` for this queue pair.
    pub(crate) unsafe fn begin(&self) {
        // SAFETY: `self` lives until the queue pair is destroyed. The program does not destroy it
        // between `ibv_wr_start` and the end of the post.
        let sends: &'static Arc<Queue> = unsafe { &*ptr::from_ref(&self.sends) };
        let post = sends.post();
        let mark = post.mark();
        // SAFETY: this thread holds the lock of the send queue.
        unsafe { *self.extended_post.get() = Some((post, mark)) };
    }

    /// Returns the extended post that this thread has begun.
    ///
    /// # Safety
    ///
    /// This thread has begun an extended post.
    #[expect(
        clippy::mut_from_ref,
        reason = "only the thread that holds the queue's lock calls this"
    )]
    pub(crate) unsafe fn begun(&self) -> &mut Option<(Post<'static>, Mark)> {
        // SAFETY: the contract says that this thread has begun the post, so it holds the lock.
        unsafe { &mut *self.extended_post.get() }
    }
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    pub(crate) device: Arc<OpenDevice>,
    pub(crate) poll_cq: Option<PollCq>,
    /// The device's functions for extended polling.
    pub(crate) extended: Option<ExtendedPoll>,
    /// The counters of completions. The lock is held while the queue is polled.
    counting: Mutex<Counting>,
    /// The lock of `counting` between `ibv_start_poll` and `ibv_end_poll`.
    extended_poll: UnsafeCell<Option<MutexGuard<'static, Counting>>>,
    /// The thread that is between `ibv_start_poll` and `ibv_end_poll`; 0 if none is.
    extended_by: AtomicUsize,
}

/// Returns a number of this thread, which no other living thread has.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// The functions in `struct ibv_cq_ex` that the shim interposes.
#[derive(Clone, Copy)]
pub(crate) struct ExtendedPoll {
    pub(crate) start: StartPoll,
    pub(crate) next: NextPoll,
    pub(crate) end: EndPoll,
}

// SAFETY: only the thread that holds the lock touches the guard, by the rules of the functions for
// extended polling. A lock of parking_lot may be released by another thread than the one that took
// it.
unsafe impl Send for CompletionQueue {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for CompletionQueue {}

/// The counters for the completions of one queue pair.
#[derive(Clone, Default)]
struct Counted {
    sends: Option<Arc<Queue>>,
    receives: Option<Arc<Queue>>,
    errors: Option<Arc<AtomicU64>>,
    /// True if the queue pair is destroyed. The program may still poll its completions.
    gone: bool,
}

/// The queue pairs of a completion queue, by their numbers.
#[derive(Default)]
pub(crate) struct Counting {
    pairs: HashMap<u32, Counted, BuildHasherDefault<Spread>>,
    /// The queue pair that was looked up last, with its number.
    latest: Option<(u32, Counted)>,
    /// The number of destroyed queue pairs in `pairs`.
    gone: usize,
    /// True if the queue may hold completions from before a reset, or of a destroyed queue pair.
    unsettled: bool,
}

/// The number of destroyed queue pairs that a completion queue remembers while polls count in
/// cells. Only polls that count by lock can settle them.
const GONE: usize = 1000;

/// A hasher for numbers of queue pairs. The device chooses them, so no attacker can make them
/// collide.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl CompletionQueue {
    pub(crate) fn create(device: Arc<OpenDevice>, cq: *mut IbvCq, extended: Option<ExtendedPoll>) {
        let known = Self {
            poll_cq: device.ops.poll_cq,
            device,
            extended,
            counting: Mutex::default(),
            extended_poll: UnsafeCell::new(None),
            extended_by: AtomicUsize::new(0),
        };
        drop(COMPLETION_QUEUES.insert(address(cq), Arc::new(known)));
    }

    #[inline]
    pub(crate) fn counting(&self) -> MutexGuard<'_, Counting> {
        self.counting.lock()
    }

    fn count(
        &self,
        number: u32,
        errors: &Arc<AtomicU64>,
        sends: Option<&Arc<Queue>>,
        receives: Option<&Arc<Queue>>,
    ) {
        self.change(|counting| counting.count(number, errors, sends, receives));
    }

    /// Changes the table of queue pairs. The thread may be inside its own extended poll.
    fn change<T>(&self, change: impl FnOnce(&mut Counting) -> T) -> T {
        if self.extended_by.load(Ordering::Relaxed) == this_thread() {
            // SAFETY: this thread has begun an extended poll and has not ended it.
            if let Some(counting) = unsafe { self.begun() } {
                return change(counting);
            }
        }
        change(&mut self.counting())
    }

    fn ignore(&self, number: u32) {
        if self.change(|counting| counting.ignore(number)) {
            self.device.count_by_lock();
        }
    }

    fn reset(&self, queue: &Arc<Queue>, all_polled: bool) -> bool {
        self.change(|counting| {
            let is_settled = queue.reset(all_polled);
            counting.unsettled |= !is_settled;
            is_settled
        })
    }

    /// Begins an extended poll.
    ///
    /// # Safety
    ///
    /// This thread is in `ibv_start_poll` for this queue.
    pub(crate) unsafe fn begin(&self) {
        let counting = self.counting();
        // SAFETY: `self` lives until the queue is destroyed. The program does not destroy it during
        // a poll.
        let counting = unsafe {
            std::mem::transmute::<MutexGuard<'_, Counting>, MutexGuard<'static, Counting>>(counting)
        };
        // SAFETY: this thread holds the lock.
        unsafe { *self.extended_poll.get() = Some(counting) };
        self.extended_by.store(this_thread(), Ordering::Relaxed);
    }

    /// Ends an extended poll.
    ///
    /// # Safety
    ///
    /// This thread has begun an extended poll.
    pub(crate) unsafe fn end(&self) {
        self.extended_by.store(0, Ordering::Relaxed);
        // SAFETY: the contract says that this thread has begun the poll, so it holds the lock.
        drop(unsafe { self.begun() }.take());
    }

    /// Returns the counters, locked by the extended poll that this thread has begun.
    ///
    /// # Safety
    ///
    /// This thread has begun an extended poll.
    #[expect(
        clippy::mut_from_ref,
        reason = "only the thread that holds the lock calls this"
    )]
    pub(crate) unsafe fn begun(&self) -> &mut Option<MutexGuard<'static, Counting>> {
        // SAFETY: the contract says that this thread has begun the poll, so it holds the lock.
        unsafe { &mut *self.extended_poll.get() }
    }
}

impl Counting {
    fn count(
        &mut self,
        number: u32,
        errors: &Arc<AtomicU64>,
        sends: Option<&Arc<Queue>>,
        receives: Option<&Arc<Queue>>,
    ) {
        self.latest = None;
        let counted = self.pairs.entry(number).or_default();
        // The program may still poll completions of a destroyed queue pair that had this number.
        // They look like completions of the new queue pair. So the completions of the new queue
        // pair are not counted until `settle` removes the destroyed queue pair.
        if !counted.gone {
            counted.errors = Some(Arc::clone(errors));
            counted.sends = sends.cloned().or(counted.sends.take());
            counted.receives = receives.cloned().or(counted.receives.take());
        }
    }

    /// Ignores the completions of a queue pair that is about to be destroyed. Returns true if so
    /// many are ignored that polls must settle them.
    fn ignore(&mut self, number: u32) -> bool {
        self.latest = None;
        self.unsettled = true;
        self.gone += 1;
        let gone = Counted {
            gone: true,
            ..Counted::default()
        };
        self.pairs.insert(number, gone);
        self.gone > GONE
    }

    /// Forgets a queue pair that was destroyed. None of its completions can be polled any more.
    fn forget(&mut self, number: u32) {
        if self.pairs.get(&number).is_some_and(|it| it.gone) {
            self.pairs.remove(&number);
            self.gone = self.gone.saturating_sub(1);
        }
    }

    /// Counts a completion.
    #[inline]
    pub(crate) fn add(&mut self, status: c_int, number: u32, opcode: impl FnOnce() -> c_int) {
        if status != SUCCESS {
            self.add_error(number);
            return;
        }
        let counted = match &self.latest {
            Some((latest, counted)) if *latest == number => counted,
            _ => match self.look_up(number) {
                Some(counted) => counted,
                None => return,
            },
        };
        let queue = if opcode() & RECEIVED == 0 {
            &counted.sends
        } else {
            &counted.receives
        };
        if let Some(queue) = queue {
            queue.complete();
        }
    }

    #[cold]
    fn add_error(&self, number: u32) {
        if let Some(errors) = self.pairs.get(&number).and_then(|it| it.errors.as_ref()) {
            errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks the queue pair up, and remembers it as the latest.
    fn look_up(&mut self, number: u32) -> Option<&Counted> {
        let counted = self.pairs.get(&number)?;
        let (_, latest) = self.latest.insert((number, counted.clone()));
        Some(latest)
    }

    #[inline]
    pub(crate) fn add_all(&mut self, completions: &[Wc]) {
        for wc in completions {
            self.add(wc.status, wc.qp_num, || wc.opcode);
        }
    }

    /// Records that a poll has found the queue empty.
    #[inline]
    pub(crate) fn seen_empty(&mut self) {
        if self.unsettled {
            self.settle();
        }
    }

    #[cold]
    fn settle(&mut self) {
        self.unsettled = false;
        self.gone = 0;
        self.pairs.retain(|_, counted| {
            let queues = [&counted.sends, &counted.receives];
            for queue in queues.into_iter().flatten() {
                self.unsettled |= !queue.settle();
            }
            !counted.gone
        });
    }
}
