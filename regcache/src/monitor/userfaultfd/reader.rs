//! The thread that reads userfaultfd's events.
//!
//! A thread that unmaps watched memory sleeps in `munmap` until its event has been read, with any lock
//! held that the application, malloc or the cache holds around it. So this thread waits for nobody
//! but the kernel: it takes no lock, allocates and frees nothing, logs nothing, and calls the kernel
//! only to poll, to read, to signal that there is something, and to disarm. The last takes the
//! kernel's lock of the address space, which no thread holds while it waits for its event to be read.
//! Faults it may take, but for one of those that it serves itself: what it touches is in use and
//! present.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::dontneed::this_thread;
use super::event_log::{Change, Log};
use super::faults::Faults;
use super::open::Opened;
use super::raw;
use crate::sys::thread::spawn;

/// Events asked for by one `read`: 512 bytes of stack.
const BATCH: usize = 16;

/// What the thread shares with the monitor.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) uffd: OwnedFd,
    /// Whether missing pages of what is armed are asked for.
    asks_for_pages: bool,
    /// A page's size.
    pub(super) page: usize,
    pub(super) log: Log,
    /// Readable while there may be something to drain.
    pub(super) ready: EventFd,
    stop: EventFd,
    /// The thread's id, 0 before it has one.
    reader: AtomicI32,
}

impl Source {
    pub(super) fn new(opened: Opened, page: usize) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            uffd: opened.uffd,
            asks_for_pages: opened.asks_for_pages,
            page,
            log: Log::new(),
            ready: event()?,
            stop: event()?,
            reader: AtomicI32::new(0),
        })
    }

    /// Whether a page that is missing where something is armed is asked for, and was taken away.
    pub(super) fn asks_for_pages(&self) -> bool {
        self.asks_for_pages
    }

    /// Arms the mappings in a range.
    pub(super) fn arm(&self, start: usize, end: usize) -> io::Result<()> {
        let mut mode = raw::MODE_WP;
        if self.asks_for_pages {
            mode |= raw::MODE_MISSING;
            populate(start, end);
        }
        let mut register = raw::Register {
            range: range(start, end),
            mode,
            ioctls: 0,
        };
        // SAFETY: the structure may be read and written. No page is protected by it, nor can it be for
        // others: the descriptor is ours.
        unsafe { raw::register(self.uffd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// The page that a fault is about.
    fn page_of(&self, message: &raw::Message) -> usize {
        message.words[1] as usize & !(self.page - 1)
    }

    /// Disarms them. If that fails, for a part of them, they go on sending events, which are nobody's.
    pub(super) fn disarm(&self, start: usize, end: usize) {
        let mut range = range(start, end);
        // SAFETY: the structure may be read.
        let _ = unsafe { raw::unregister(self.uffd.as_raw_fd(), &raw mut range) };
    }
}

/// Has the kernel bring the pages that a registration would need anyway, without asking for each. Where it cannot, the
/// registration will tell.
fn populate(start: usize, end: usize) {
    let at = std::ptr::without_provenance_mut(start);
    // SAFETY: no page is replaced but such as a write would replace.
    let _ = unsafe { libc::madvise(at, end - start, libc::MADV_POPULATE_WRITE) };
}

pub(super) fn range(start: usize, end: usize) -> raw::Range {
    raw::Range {
        start: start as u64,
        len: (end - start) as u64,
    }
}

/// The thread, which is stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    source: Arc<Source>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    pub(super) fn start(source: &Arc<Source>) -> io::Result<Self> {
        let source = Arc::clone(source);
        let its = Arc::clone(&source);
        let thread = spawn("regcache-uffd", move || run(&its))?;
        // Until it has said who it is: by then it has mapped what a thread maps for itself.
        while source.reader.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        Ok(Self {
            source,
            thread: Some(thread),
        })
    }

    /// None.
    #[cfg(all(test, not(loom)))]
    pub(super) fn absent(source: &Arc<Source>) -> Self {
        Self {
            source: Arc::clone(source),
            thread: None,
        }
    }

    /// The thread's id.
    pub(super) fn id(&self) -> i32 {
        self.source.reader.load(Ordering::Relaxed)
    }

    /// In a forked child, where there is no such thread.
    pub(super) fn forget(&mut self) {
        std::mem::forget(self.thread.take());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // Cannot fail: it would take 2^64 - 1 of them.
        let _ = self.source.stop.write(1);
        // It does not panic.
        let _ = thread.join();
    }
}

fn run(source: &Source) {
    source.reader.store(this_thread(), Ordering::Relaxed);
    let mut faults = Faults::default();
    loop {
        let mut fds = [
            PollFd::new(source.uffd.as_fd(), PollFlags::POLLIN),
            PollFd::new(source.stop.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, PollTimeout::NONE);
        if !matches!(polled, Ok(_) | Err(Errno::EINTR)) {
            return;
        }
        source.log.set_reading(true);
        let read = read_all(source, &mut faults);
        source.log.set_reading(false);
        let stopped = fds[1].revents().is_some_and(|it| !it.is_empty());
        // Without the descriptor there is nothing to wait for; that there are no reports any more, the
        // check tells.
        if stopped || read.is_err() {
            return;
        }
    }
}

fn read_all(source: &Source, faults: &mut Faults) -> nix::Result<()> {
    let mut messages = [raw::Message::default(); BATCH];
    let bytes = size_of_val(&messages);
    loop {
        let buffer = messages.as_mut_ptr().cast();
        // SAFETY: the buffer may be written, and any bytes are messages.
        let n = unsafe { libc::read(source.uffd.as_raw_fd(), buffer, bytes) };
        let n = match Errno::result(n) {
            Ok(n) => n.unsigned_abs() / size_of::<raw::Message>(),
            Err(Errno::EAGAIN) if faults.serve_rest(source) => return Ok(()),
            Err(Errno::EAGAIN) => {
                // The kernel goes on with its change when the thread runs whose event was read.
                thread::yield_now();
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        for message in &messages[..n] {
            enter(source, message);
        }
        source.log.raise();
        for message in &messages[..n] {
            answer(source, message, faults);
        }
        // Fails only where it is readable already.
        let _ = source.ready.write(1);
    }
}

fn enter(source: &Source, message: &raw::Message) {
    let words = message.words.map(|word| word as usize);
    let change = |start, end, is_removal| Change {
        pages: (start, end),
        is_removal,
    };
    match message.event {
        raw::EVENT_UNMAP => source.log.enter(change(words[0], words[1], false)),
        raw::EVENT_REMOVE => source.log.enter(change(words[0], words[1], true)),
        raw::EVENT_REMAP => {
            let [from, to, len] = words;
            source
                .log
                .enter(change(from, from.saturating_add(len), false));
            // The mapping is armed where it is now. If anybody watches it there, it was watched as
            // something else before, or armed twice: it starts over.
            source.disarm(to, to.saturating_add(len));
            source.log.enter(change(to, to.saturating_add(len), false));
        }
        raw::EVENT_PAGEFAULT => {
            let page = source.page_of(message);
            source
                .log
                .enter(change(page, page.saturating_add(source.page), false));
        }
        _ => {}
    }
}

/// What is to be done when the messages have been entered, and the generation raised.
fn answer(source: &Source, message: &raw::Message, faults: &mut Faults) {
    match message.event {
        raw::EVENT_PAGEFAULT => faults.serve(source, source.page_of(message)),
        // They will be missing, and whoever touches them need not ask.
        raw::EVENT_REMOVE if source.asks_for_pages => {
            let [start, end, _] = message.words.map(|word| word as usize);
            source.disarm(start, end);
        }
        _ => {}
    }
}
