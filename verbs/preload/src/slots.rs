//! [`Slot`]: the place of an open device. The shim's functions for the device find its functions
//! and cells there.
//!
//! Each slot has its own copy of the functions that post and poll. So these functions know their
//! slot, and need not look up a device. A device that finds no vacant slot gets the functions that
//! look everything up.

use std::cell::UnsafeCell;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::MmapMut;

use crate::abi::{ContextOps, PollCq, PostRecv, PostSend, PostSrqRecv};
use crate::outstanding::{CELLS, Cell};
use crate::{poll, post};

const COUNT: usize = 8;

/// See the file's head.
pub(crate) struct Slot {
    is_taken: AtomicBool,
    content: UnsafeCell<Content>,
}

/// The content of a slot. It changes only while a device takes the slot.
struct Content {
    post_send: Option<PostSend>,
    post_recv: Option<PostRecv>,
    post_srq_recv: Option<PostSrqRecv>,
    poll_cq: Option<PollCq>,
    /// The cells, which the first device makes and all later devices use; null before.
    cells: *mut Cell,
}

// SAFETY: the content changes only while a device takes the slot. No function of the shim reads it
// then, since the program has not got the device yet.
unsafe impl Sync for Slot {}

pub(crate) static SLOTS: [Slot; COUNT] = [const { Slot::new() }; COUNT];

/// The shim's functions for the device in one slot.
struct Functions {
    post_send: PostSend,
    post_recv: PostRecv,
    post_srq_recv: PostSrqRecv,
    poll_cq: PollCq,
}

impl Functions {
    const fn of<const SLOT: usize>() -> Self {
        Self {
            post_send: post::post_send_again::<SLOT>,
            post_recv: post::post_recv_again::<SLOT>,
            post_srq_recv: post::post_srq_recv_again::<SLOT>,
            poll_cq: poll::poll_and_count::<SLOT>,
        }
    }
}

static FUNCTIONS: [Functions; COUNT] = [
    Functions::of::<0>(),
    Functions::of::<1>(),
    Functions::of::<2>(),
    Functions::of::<3>(),
    Functions::of::<4>(),
    Functions::of::<5>(),
    Functions::of::<6>(),
    Functions::of::<7>(),
];

/// Defines the functions that return the device's functions.
macro_rules! functions {
    ($($name:ident: $type:ty;)*) => {
        $(
            /// Returns the device's function.
            ///
            /// # Safety
            ///
            /// A device with this function is in the slot.
            #[inline]
            pub(crate) unsafe fn $name(&self) -> $type {
                // SAFETY: a device is in the slot, so the content does not change. The device has
                // the function.
                unsafe { (*self.content.get()).$name.unwrap_unchecked() }
            }
        )*
    };
}

impl Slot {
    const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            content: UnsafeCell::new(Content {
                post_send: None,
                post_recv: None,
                post_srq_recv: None,
                poll_cq: None,
                cells: ptr::null_mut(),
            }),
        }
    }

    /// Takes a vacant slot for a device with these functions, and replaces the functions. Returns
    /// `None` if no slot is vacant.
    pub(crate) fn take(ops: &mut ContextOps) -> Option<&'static Self> {
        let mut slots = SLOTS.iter().zip(&FUNCTIONS);
        let (slot, functions) =
            slots.find(|(slot, _)| !slot.is_taken.swap(true, Ordering::Acquire))?;
        // SAFETY: this thread has just taken the slot, so no other thread uses the content.
        let content = unsafe { &mut *slot.content.get() };
        if content.cells.is_null() {
            let Ok(mut cells) = MmapMut::map_anon(CELLS * size_of::<Cell>()) else {
                slot.give_back();
                return None;
            };
            content.cells = cells.as_mut_ptr().cast();
            mem::forget(cells);
        }
        content.post_send = ops.post_send;
        content.post_recv = ops.post_recv;
        content.post_srq_recv = ops.post_srq_recv;
        content.poll_cq = ops.poll_cq;
        // A function that the device lacks stays null.
        ops.post_send = ops.post_send.and(Some(functions.post_send));
        ops.post_recv = ops.post_recv.and(Some(functions.post_recv));
        ops.post_srq_recv = ops.post_srq_recv.and(Some(functions.post_srq_recv));
        ops.poll_cq = ops.poll_cq.and(Some(functions.poll_cq));
        Some(slot)
    }

    /// Makes the slot vacant, because its device was closed.
    pub(crate) fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }

    /// Returns the cell of a queue pair.
    ///
    /// # Safety
    ///
    /// A device is in the slot.
    #[inline]
    pub(crate) unsafe fn cell(&self, number: u32) -> &'static Cell {
        // SAFETY: a device is in the slot, so the content does not change. The first device has
        // made so many cells, with zeros, which are valid cells. They are never unmapped.
        unsafe {
            &*(*self.content.get())
                .cells
                .add(usize::from(Cell::of(number)))
        }
    }

    functions! {
        post_send: PostSend;
        post_recv: PostRecv;
        post_srq_recv: PostSrqRecv;
        poll_cq: PollCq;
    }
}
