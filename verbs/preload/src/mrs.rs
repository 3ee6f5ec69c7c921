//! The `struct ibv_mr`s that programs get in place of libibverbs's own.
//!
//! Each call of `ibv_reg_mr` returns its own `ibv_mr`, even if several `ibv_mr`s share a
//! registration one after another. The `ibv_mr`s are in chunks that are never freed. So an address
//! always shows whether the `ibv_mr` is the shim's, and whether this process or an ancestor made
//! it. A freed `ibv_mr` is reused as late as possible, so that a second `ibv_dereg_mr` is usually
//! noticed.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::mem;
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

enum State {
    Free,
    /// A thread has taken the registration out, and will free the slot or put a registration back.
    Taken,
    Full(Held),
}

/// The place of one `ibv_mr`. The program reads `face`. All other accesses happen under the lock of
/// the process's `Mrs`.
#[repr(C)]
struct Slot {
    face: UnsafeCell<Face>,
    state: UnsafeCell<State>,
}

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

/// The newest chunk, which this process or an ancestor has added.
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

const FIRST_CHUNK: usize = 64;

/// The origin of an `ibv_mr`.
pub(crate) enum Origin {
    /// libibverbs made it.
    Libibverbs,
    /// An ancestor of this process made it.
    Inherited,
    /// This process made it, and may have freed it since.
    Ours(Ours),
}

/// An `ibv_mr` that this shim made.
#[derive(Clone, Copy)]
pub(crate) struct Ours(NonNull<Slot>);

/// The `ibv_mr`s of one process.
#[derive(Default)]
pub(crate) struct Mrs {
    free: VecDeque<Ours>,
    made: usize,
}

// SAFETY: a slot holds a guard and the address of a registration, and any thread may use either.
unsafe impl Send for Mrs {}

impl Mrs {
    /// Returns the origin of `mr`, as seen by this process. Does not read the memory at `mr`.
    pub(crate) fn origin(this: Owner, mr: *mut Mr) -> Origin {
        let mut next: *const Chunk = CHUNKS.load(Ordering::Acquire);
        // SAFETY: the pointer is null or points to a chunk. The chunk was complete before it
        // entered the list, and it is never freed.
        while let Some(chunk) = unsafe { next.as_ref() } {
            let slots = chunk.slots.as_ptr_range();
            let at = mr.cast::<Slot>().cast_const();
            if slots.contains(&at) {
                let offset = at.addr() - slots.start.addr();
                if chunk.owner != this || !offset.is_multiple_of(size_of::<Slot>()) {
                    return Origin::Inherited;
                }
                return Origin::Ours(Ours(NonNull::from(
                    &chunk.slots[offset / size_of::<Slot>()],
                )));
            }
            next = chunk.next;
        }
        Origin::Libibverbs
    }

    /// Makes an `ibv_mr` that shows `face` and holds the registration `content`.
    pub(crate) fn make(&mut self, owner: Owner, face: Mr, access: c_int, content: Held) -> *mut Mr {
        if self.free.is_empty() {
            self.grow(owner);
        }
        let Some(ours) = self.free.pop_front() else {
            return ptr::null_mut();
        };
        self.fill(ours, face, access, content);
        ours.mr()
    }

    /// Puts a registration into a slot, and shows `face` from now on.
    pub(crate) fn fill(&mut self, ours: Ours, face: Mr, access: c_int, content: Held) {
        let face = Face {
            mr: face,
            kind: 0,
            access,
        };
        // SAFETY: the caller holds the lock. The program does not read `face` now: it has not
        // received the pointer yet, or it is inside the call that changes the registration.
        unsafe { ours.0.as_ref().face.get().write(face) };
        self.set(ours, State::Full(content));
    }

    /// Takes the registration out of the slot. Returns `None` if another `ibv_dereg_mr` has done so
    /// before.
    pub(crate) fn take(&mut self, ours: Ours) -> Option<Held> {
        match self.set(ours, State::Taken) {
            State::Full(content) => Some(content),
            other => {
                self.set(ours, other);
                None
            }
        }
    }

    /// Puts back the registration that [`take`](Self::take) has taken out.
    pub(crate) fn put_back(&mut self, ours: Ours, content: Held) {
        self.set(ours, State::Full(content));
    }

    /// Frees a slot whose registration was taken out.
    pub(crate) fn free(&mut self, ours: Ours) {
        self.set(ours, State::Free);
        self.free.push_back(ours);
    }

    fn set(&mut self, ours: Ours, state: State) -> State {
        // SAFETY: the slot is never freed. `&mut self` proves that the caller holds the lock.
        unsafe { mem::replace(&mut *ours.0.as_ref().state.get(), state) }
    }

    fn grow(&mut self, owner: Owner) {
        let count = self.made.max(FIRST_CHUNK);
        let vacant = || Slot {
            face: UnsafeCell::new(Face {
                mr: NOTHING,
                kind: 0,
                access: 0,
            }),
            state: UnsafeCell::new(State::Free),
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

impl Ours {
    /// Returns the pointer that the program has.
    pub(crate) fn mr(self) -> *mut Mr {
        self.0.as_ptr().cast()
    }

    /// Returns the `ibv_mr` that the program sees, and its access. Only the thread that has taken
    /// the registration out may call this.
    pub(crate) fn face(self) -> (Mr, c_int) {
        // SAFETY: the slot is never freed. Only the thread that has taken its registration out
        // writes `face`.
        let face = unsafe { &*self.0.as_ref().face.get() };
        (face.mr, face.access)
    }
}
