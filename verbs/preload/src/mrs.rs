//! The `struct ibv_mr`s that programs are given in place of libibverbs's own.
//!
//! Each `ibv_reg_mr` gets one of its own, whichever registration stands behind it. They live in
//! chunks that are never freed, so that an address tells for ever whether it is one of ours: of
//! this process, or inherited from the process that forked it. Those that were given back are used
//! again last of all, so that giving one back twice is nearly always noticed.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use regcache_verbs_types::Mr;

use crate::domain::Held;

/// The `ibv_mr` that a program sees, and the fields that libibverbs's providers look for after it:
/// they have these two in
/// front of what is their own (`struct verbs_mr`).
#[repr(C)]
struct Face {
    mr: Mr,
    /// An ordinary one: 0.
    kind: c_int,
    access: c_int,
}

enum State {
    Free,
    /// Somebody has taken the content, and will give this back or put some content in again.
    Taken,
    Full(Held),
}

/// The program reads the face; all else is done under the lock of the one who owns the `Mrs`.
#[repr(C)]
struct Slot {
    face: UnsafeCell<Face>,
    state: UnsafeCell<State>,
}

/// Never freed or changed, once it is in the list.
struct Chunk {
    next: *const Chunk,
    owner: Owner,
    slots: Box<[Slot]>,
}

/// A process, as opposed to those that it was forked from. 0 is none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) usize);

/// The newest chunk, of this process or of one that it was forked from.
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

const FIRST_CHUNK: usize = 64;

/// Where an `ibv_mr` is from.
pub(crate) enum Origin {
    /// It is libibverbs's.
    Libibverbs,
    /// It belongs to a process that this one was forked from.
    Inherited,
    /// It is, or was, one of ours.
    Ours(Ours),
}

/// An `ibv_mr` of ours.
#[derive(Clone, Copy)]
pub(crate) struct Ours(NonNull<Slot>);

/// The `ibv_mr`s of one process.
#[derive(Default)]
pub(crate) struct Mrs {
    free: VecDeque<Ours>,
    made: usize,
}

// SAFETY: what the slots hold, a guard or the address of a registration, may be used from any
// thread.
unsafe impl Send for Mrs {}

impl Mrs {
    /// Where `mr` is from, as this process sees it. Reads nothing at `mr`.
    pub(crate) fn origin(this: Owner, mr: *mut Mr) -> Origin {
        let mut next: *const Chunk = CHUNKS.load(Ordering::Acquire);
        // SAFETY: null, or a chunk: complete before it came into the list, and never freed.
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

    /// A new one that shows `face`.
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

    /// Puts content in where it was taken out, and shows `face` from now on.
    pub(crate) fn fill(&mut self, ours: Ours, face: Mr, access: c_int, content: Held) {
        let face = Face {
            mr: face,
            kind: 0,
            access,
        };
        // SAFETY: under the lock, and the program does not read it: it has not been given it yet,
        // or is in the call that changes it.
        unsafe { ours.0.as_ref().face.get().write(face) };
        self.set(ours, State::Full(content));
    }

    /// Takes out what is behind it; `None` if the program has given it back before, or is just
    /// doing so.
    pub(crate) fn take(&mut self, ours: Ours) -> Option<Held> {
        match self.set(ours, State::Taken) {
            State::Full(content) => Some(content),
            other => {
                self.set(ours, other);
                None
            }
        }
    }

    /// As it was before [`take`](Self::take).
    pub(crate) fn put_back(&mut self, ours: Ours, content: Held) {
        self.set(ours, State::Full(content));
    }

    /// Gives back one whose content was taken.
    pub(crate) fn free(&mut self, ours: Ours) {
        self.set(ours, State::Free);
        self.free.push_back(ours);
    }

    fn set(&mut self, ours: Ours, state: State) -> State {
        // SAFETY: the slot is never freed, and `&mut self` is the lock.
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
        // Only this process adds to the list, under the lock.
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
    /// The pointer that the program has.
    pub(crate) fn mr(self) -> *mut Mr {
        self.0.as_ptr().cast()
    }

    /// The `ibv_mr` that it shows, and its access, for the thread that has taken the content.
    pub(crate) fn face(self) -> (Mr, c_int) {
        // SAFETY: the slot is never freed, and only written by who has taken its content.
        let face = unsafe { &*self.0.as_ref().face.get() };
        (face.mr, face.access)
    }
}
