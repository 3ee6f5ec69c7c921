//! The thread that reads userfaultfd's events.
//!
//! A thread that unmaps watched memory sleeps in `munmap` until its event has been read, with any lock
//! held that the application, malloc or the cache holds around it. So this thread waits for nobody
//! but the kernel: it takes no lock, allocates and frees nothing, logs nothing, and calls the kernel
//! only to poll, to read, to signal that there is something, and to disarm. The last takes the
//! kernel's lock of the address space, which no thread holds while it waits for its event to be read.
//! Faults it may take: on memory that is armed none is ever ours to serve, because no page is ever
//! protected.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::log::{Change, Log};
use super::raw;
use super::removal::this_thread;
use crate::thread::spawn;

/// Events asked for by one `read`: 512 bytes of stack.
const BATCH: usize = 16;

/// What the thread shares with the monitor.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) uffd: OwnedFd,
    pub(super) log: Log,
    /// Readable while there may be something to drain.
    pub(super) ready: EventFd,
    stop: EventFd,
    /// The thread's id, 0 before it has one.
    reader: AtomicI32,
}

impl Source {
    pub(super) fn new(uffd: OwnedFd) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            uffd,
            log: Log::new(),
            ready: event()?,
            stop: event()?,
            reader: AtomicI32::new(0),
        })
    }

    /// Arms the mappings in a range.
    pub(super) fn arm(&self, start: usize, end: usize) -> io::Result<()> {
        let mut register = raw::Register {
            range: range(start, end),
            mode: raw::MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the structure may be read and written. No page is protected by it, nor can it be for
        // others: the descriptor is ours.
        unsafe { raw::register(self.uffd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// Disarms them. If that fails, for a part of them, they go on sending events, which are nobody's.
    pub(super) fn disarm(&self, start: usize, end: usize) {
        let mut range = range(start, end);
        // SAFETY: the structure may be read.
        let _ = unsafe { raw::unregister(self.uffd.as_raw_fd(), &raw mut range) };
    }
}

fn range(start: usize, end: usize) -> raw::Range {
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
        let read = read_all(source);
        source.log.set_reading(false);
        let stopped = fds[1].revents().is_some_and(|it| !it.is_empty());
        // Without the descriptor there is nothing to wait for; that there are no reports any more, the
        // check tells.
        if stopped || read.is_err() {
            return;
        }
    }
}

fn read_all(source: &Source) -> nix::Result<()> {
    let mut messages = [raw::Message::default(); BATCH];
    let bytes = size_of_val(&messages);
    loop {
        let buffer = messages.as_mut_ptr().cast();
        // SAFETY: the buffer may be written, and any bytes are messages.
        let n = unsafe { libc::read(source.uffd.as_raw_fd(), buffer, bytes) };
        let n = match Errno::result(n) {
            Ok(n) => n.unsigned_abs() / size_of::<raw::Message>(),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        for message in &messages[..n] {
            enter(source, message);
        }
        source.log.raise();
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
        _ => {}
    }
}
