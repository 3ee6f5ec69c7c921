//! The `struct ibv_mr`s that programs get in place of libibverbs's own.
//!
//! Each call of `ibv_reg_mr` returns its own `ibv_mr`, even if several `ibv_mr`s share a
//! registration one after another. The `ibv_mr`s are in slots, and the slots are in chunks that are
//! never freed. So an address always shows whether the `ibv_mr` is the shim's, and whether this
//! process or an ancestor made it. A thread reuses its free slots in the order in which they became
//! free, so that a second `ibv_dereg_mr` is usually noticed.
//!
//! # Threads
//!
//! A slot is *free*, *full* or *taken*. A free slot is in one list: that of one thread
//! (`local.rs`), or that of the process. Only the thread that has removed the slot from its list
//! fills the slot. A thread that deregisters takes the registration out of a full slot, by a
//! compare-and-exchange. So only one of two threads gets the registration. The slot then belongs to
//! that thread, which fills the slot or frees it. Threads that use different memory use different
//! slots, and each slot has a cache line of its own.

use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::ffi::c_int;
use std::hint::cold_path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use regcache_verbs_types::Mr;

use crate::domain::Held;

/// The `ibv_mr` that a program sees, and the two fields that libibverbs's providers expect directly
/// after it (`struct verbs_mr`).
#[repr(C)]
struct Face {
    mr: Mr,
    /// The kind of the memory region. 0 means an ordinary one.
    kind: c_int,
    access: c_int,
}

/// The place of one `ibv_mr`. The program reads `face`.
#[repr(C, align(64))]
struct Slot {
    face: UnsafeCell<Face>,
    /// [`FREE`], [`TAKEN`], or the registration that the program holds.
    held: AtomicPtr<()>,
}

/// The slot holds no registration.
const FREE: *mut () = ptr::null_mut();
/// A thread has taken the registration out, and will free or fill the slot.
const TAKEN: *mut () = ptr::without_provenance_mut(1);

/// A block of slots. No chunk is freed or changed once it is in the list.
struct Chunk {
    next: *const Chunk,
    owner: Owner,
    slots: Box<[Slot]>,
}

/// A number for the process, which differs from the numbers of its ancestors. 0 stands for no
/// process.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) usize);

/// The newest chunk, which this process or an ancestor has added; null if there is none.
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

/// The number of slots in the first chunk. Each further chunk doubles the number of slots.
const FIRST_CHUNK: usize = BATCH;

/// The number of free slots that move together between the list of a thread and that of the
/// process.
const BATCH: usize = 64;

/// The number of free slots that the list of a thread has room for.
const ROOM: usize = 2 * BATCH;

/// The origin of an `ibv_mr`.
pub(crate) enum Origin {
    /// libibverbs made it.
    Libibverbs,
    /// An ancestor of this process made it.
    Inherited,
    /// This process made it, and may have freed it since.
    Ours(Ours),
}

/// The slot of an `ibv_mr` that this shim made.
#[derive(Clone, Copy)]
pub(crate) struct Ours(NonNull<Slot>);

// SAFETY: any thread may use a slot, in the order that the file's head describes.
unsafe impl Send for Ours {}

impl Origin {
    /// Returns the origin of `mr`, as seen by the process `this`. Does not read the memory at `mr`.
    #[inline]
    pub(crate) fn of(mr: *mut Mr, this: Owner) -> Self {
        let mut next: *const Chunk = CHUNKS.load(Ordering::Acquire);
        // SAFETY: the pointer is null or points to a chunk. The chunk was complete before it
        // entered the list, and it is never freed.
        while let Some(chunk) = unsafe { next.as_ref() } {
            let slots = &*chunk.slots;
            let offset = mr.addr().wrapping_sub(slots.as_ptr().addr());
            if let Some(slot) = slots.get(offset / size_of::<Slot>()) {
                if chunk.owner != this || !offset.is_multiple_of(size_of::<Slot>()) {
                    return Self::Inherited;
                }
                return Self::Ours(Ours(NonNull::from(slot)));
            }
            next = chunk.next;
        }
        Self::Libibverbs
    }
}

impl Ours {
    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: slots are never freed.
        unsafe { self.0.as_ref() }
    }

    /// Returns the pointer that the program has.
    #[inline]
    pub(crate) fn mr(self) -> *mut Mr {
        self.0.as_ptr().cast()
    }

    /// Returns the `ibv_mr` that the program sees, and its access. Only the thread that has taken
    /// the registration out may call this.
    pub(crate) fn face(self) -> (Mr, c_int) {
        // SAFETY: only the thread that has taken the slot writes `face`.
        let face = unsafe { &*self.slot().face.get() };
        (face.mr, face.access)
    }

    /// Puts a registration into the slot, and shows `face` from now on. Only the thread to which
    /// the slot belongs may call this.
    #[inline]
    pub(crate) fn fill(self, face: Mr, access: c_int, held: Held) {
        let face = Face {
            mr: face,
            kind: 0,
            access,
        };
        // SAFETY: the slot belongs to this thread. The program does not read `face` now: it has not
        // received the pointer yet, or it is inside the call that changes the registration.
        unsafe { self.slot().face.get().write(face) };
        self.put_back(held);
    }

    /// Puts back the registration that [`take`](Self::take) has taken out.
    #[inline]
    pub(crate) fn put_back(self, held: Held) {
        let held = held.into_raw().as_ptr();
        self.slot().held.store(held, Ordering::Release);
    }

    /// Takes the registration out of the slot. Returns `None` if another `ibv_dereg_mr` has done so
    /// before.
    #[inline(always)]
    pub(crate) fn take(self) -> Option<Held> {
        let place = &self.slot().held;
        let found = place.load(Ordering::Relaxed);
        if found == FREE || found == TAKEN {
            return None;
        }
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        match place.compare_exchange(found, TAKEN, acquire, relaxed) {
            // SAFETY: the pointer is from `put_back`, so it is not null. The exchange gives it to
            // this thread alone.
            Ok(_) => Some(unsafe { Held::from_raw(NonNull::new_unchecked(found)) }),
            Err(_) => {
                cold_path();
                None
            }
        }
    }
}

/// The free slots of one thread, with room for [`ROOM`]. The slot that became free first is the
/// next to be used.
pub(crate) struct FreeMrs {
    places: [Cell<Ours>; ROOM],
    /// The number of slots that were ever removed. Its remainder by [`ROOM`] is a place.
    removed: Cell<u32>,
    /// The number of slots that were ever added.
    added: Cell<u32>,
}

impl FreeMrs {
    pub(crate) const fn new() -> Self {
        Self {
            places: [const { Cell::new(Ours(NonNull::dangling())) }; ROOM],
            removed: Cell::new(0),
            added: Cell::new(0),
        }
    }

    fn place(&self, count: u32) -> &Cell<Ours> {
        &self.places[count as usize % ROOM]
    }

    /// Returns the slot that is removed next; `None` if the list is empty.
    #[inline]
    pub(crate) fn first(&self) -> Option<Ours> {
        let removed = self.removed.get();
        if removed == self.added.get() {
            return None;
        }
        Some(self.place(removed).get())
    }

    /// Removes the first slot, which belongs to the calling thread from then on. The list is not
    /// empty.
    #[inline]
    pub(crate) fn remove_first(&self) {
        self.removed.set(self.removed.get().wrapping_add(1));
    }

    /// Removes the first slot and returns it; `None` if the list is empty.
    pub(crate) fn pop(&self) -> Option<Ours> {
        let first = self.first()?;
        self.remove_first();
        Some(first)
    }

    /// Returns true if the list has no room.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.added.get().wrapping_sub(self.removed.get()) as usize == ROOM
    }

    /// Frees a slot that belongs to the calling thread and whose registration was taken out. The
    /// list must have room.
    #[inline]
    pub(crate) fn push(&self, ours: Ours) {
        ours.slot().held.store(FREE, Ordering::Relaxed);
        let added = self.added.get();
        self.place(added).set(ours);
        self.added.set(added.wrapping_add(1));
    }
}

/// The free slots of a process that are in no thread's list.
#[derive(Default)]
pub(crate) struct Mrs {
    free: VecDeque<Ours>,
    made: usize,
}

impl Mrs {
    /// Moves free slots to an empty list of a thread.
    pub(crate) fn refill(&mut self, owner: Owner, list: &FreeMrs) {
        if self.free.is_empty() {
            self.grow(owner);
        }
        let count = self.free.len().min(BATCH);
        self.free.drain(..count).for_each(|ours| list.push(ours));
    }

    /// Moves free slots from a full list of a thread.
    pub(crate) fn relieve(&mut self, list: &FreeMrs) {
        self.free
            .extend(std::iter::from_fn(|| list.pop()).take(BATCH));
    }

    fn grow(&mut self, owner: Owner) {
        let count = self.made.max(FIRST_CHUNK);
        let vacant = || Slot {
            face: UnsafeCell::new(Face {
                mr: NOTHING,
                kind: 0,
                access: 0,
            }),
            held: AtomicPtr::new(FREE),
        };
        let chunk = Box::new(Chunk {
            next: CHUNKS.load(Ordering::Acquire),
            owner,
            slots: (0..count).map(|_| vacant()).collect(),
        });
        let chunk = Box::leak(chunk);
        // The caller holds the lock, and only this process adds to its list. So the list does not
        // change here.
        CHUNKS.store(chunk, Ordering::Release);
        let slots = chunk.slots.iter();
        self.free
            .extend(slots.map(|slot| Ours(NonNull::from(slot))));
        self.made += count;
    }
}

const NOTHING: Mr = Mr {
    context: ptr::null_mut(),
    pd: ptr::null_mut(),
    addr: ptr::null_mut(),
    length: 0,
    handle: 0,
    lkey: 0,
    rkey: 0,
};
