//! [`Reader`]: the thread that reads userfaultfd's events.
//!
//! A thread that unmaps watched memory sleeps in `munmap` until the reader has read the event. The
//! sleeping thread may hold any lock of the application, of malloc or of the cache. So the reader
//! must not wait for another thread: it takes no lock, allocates and frees no memory, and logs
//! nothing. It makes system calls only to poll, to read, to yield, to supply pages, to signal that
//! there is something to drain, and to disarm. Disarming takes the kernel's lock of the address
//! space. No thread holds that lock while it waits for its event to be read.
//!
//! The reader may cause page faults, but never one that it would have to serve itself. The memory
//! that it touches is in use and present.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dontneed::this_thread;
use super::event_log::Change;
use super::faults::Faults;
use super::raw;
use super::source::Source;
use crate::sys::thread::spawn;

/// The maximum number of events that one `read` returns. They take 512 bytes of stack.
const BATCH: usize = 16;

/// The handle of the reader's thread. Dropping the handle stops the thread.
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
        // A new thread maps some memory for itself. It has done so by the time it stores its id.
        // This wait keeps those mappings before the first watch.
        while source.reader.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        Ok(Self {
            source,
            thread: Some(thread),
        })
    }

    /// Returns a reader without a thread.
    #[cfg(all(test, not(loom)))]
    pub(super) fn absent(source: &Arc<Source>) -> Self {
        Self {
            source: Arc::clone(source),
            thread: None,
        }
    }

    /// Returns the thread's id.
    pub(super) fn id(&self) -> i32 {
        self.source.reader.load(Ordering::Relaxed)
    }

    /// Forgets the handle in a forked child, where the thread does not exist.
    pub(super) fn forget(&mut self) {
        std::mem::forget(self.thread.take());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // This write cannot fail. It would fail only after 2^64 - 1 other writes.
        let _ = self.source.stop.write(1);
        // The thread does not panic, so there is no error to handle.
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
        // If reading fails, the file descriptor is of no more use, and there is nothing to wait
        // for. From then on, the monitor's check fails, so no lookup relies on missing reports.
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
        // SAFETY: the buffer may be written, and any bytes are valid messages.
        let n = unsafe { libc::read(source.uffd.as_raw_fd(), buffer, bytes) };
        let n = match Errno::result(n) {
            Ok(n) => n.unsigned_abs() / size_of::<raw::Message>(),
            Err(Errno::EAGAIN) if faults.serve_rest(source) => return Ok(()),
            Err(Errno::EAGAIN) => {
                // A change in flight ends when the thread whose event was read runs again. So the
                // reader lets other threads run.
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
        // The write fails only if the eventfd is readable already, so an error does no harm.
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
            // The mapping is still armed at its new place. If that place is watched, the watch was
            // placed for other memory, or the mapping was armed twice. So the mapping is disarmed,
            // and the watches of the new place are reported.
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

/// Answers a message after all messages were entered and the generation was raised.
fn answer(source: &Source, message: &raw::Message, faults: &mut Faults) {
    match message.event {
        raw::EVENT_PAGEFAULT => faults.serve(source, source.page_of(message)),
        // The pages will be missing after the removal. They are disarmed, so that an access to them
        // brings new pages without a fault that the reader has to serve.
        raw::EVENT_REMOVE if source.asks_for_pages() => {
            let [start, end, _] = message.words.map(|word| word as usize);
            source.disarm(start, end);
        }
        _ => {}
    }
}
