//! [`Reader`]: the thread that reads userfaultfd's events.
//!
//! A thread that unmaps watched memory sleeps in `munmap` until the reader has read the event. The
//! sleeping thread may hold any lock of the application, of malloc or of the cache. So the reader
//! must not wait for another thread: it takes no lock, allocates and frees no memory, and writes no
//! log message. The reader makes system calls only to wait, to read, to yield, to supply pages, to
//! raise a signal, and to disarm mappings. Disarming takes the kernel's lock of the address
//! space. No thread holds that lock while it waits until its event is read. So the reader can
//! always go on.
//!
//! The reader may cause page faults, but never one that it would have to serve itself. All memory
//! that the reader touches is in use and present.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use nix::errno::Errno;

use super::dontneed::this_thread;
use super::event_log::Change;
use super::faults::Faults;
use super::raw;
use super::source::{STOP, Source};
use crate::sys::thread::spawn;

/// The maximum number of events that one `read` returns. The buffer for them takes 512 bytes of
/// stack.
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
        // A new thread maps some memory for itself before it stores its id. So after this wait, the
        // reader makes no such mapping while memory is watched.
        while source.reader.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        Ok(Self {
            source,
            thread: Some(thread),
        })
    }

    /// Returns a reader that has no thread and reads no events.
    #[cfg(all(test, not(loom)))]
    pub(super) fn absent(source: &Arc<Source>) -> Self {
        Self {
            source: Arc::clone(source),
            thread: None,
        }
    }

    /// Returns the id of the reader's thread.
    pub(super) fn id(&self) -> i32 {
        self.source.reader.load(Ordering::Relaxed)
    }

    /// Forgets the handle in a forked child. The thread does not exist there. Dropping the handle
    /// would end the signal, which the processes share, and stop the parent's thread.
    pub(super) fn forget(&mut self) {
        std::mem::forget(self.thread.take());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // If the program has closed the reader's descriptors, the reader may never wake. It reads
        // nothing then.
        if !self.source.stop.end() || self.source.events.get().is_err() {
            return;
        }
        // `join` returns an error only after a panic. The reader does not panic, so the result is
        // ignored.
        let _ = thread.join();
    }
}

fn run(source: &Source) {
    source.reader.store(this_thread(), Ordering::Relaxed);
    let mut faults = Faults::default();
    loop {
        let Some(stopped) = wait(source) else {
            return;
        };
        source.log.set_reading(true);
        let read = read_all(source, &mut faults);
        source.log.set_reading(false);
        // If reading fails, the userfaultfd cannot be used any more, so the reader ends. After that
        // the monitor's check fails at each lookup. So no lookup relies on the missing reports.
        if stopped || read.is_err() {
            return;
        }
    }
}

/// Waits until there are events, or until the reader has to stop, and returns true for the latter.
/// Returns `None` if the monitor's descriptors were closed.
fn wait(source: &Source) -> Option<bool> {
    let epoll = source.events.get().ok()?.as_raw_fd();
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
    // SAFETY: the call writes at most two events.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 2, -1) };
    match Errno::result(count) {
        Ok(count) => {
            let mut ready = events.iter().take(count.unsigned_abs() as usize);
            Some(ready.any(|event| event.u64 == STOP))
        }
        Err(Errno::EINTR) => Some(false),
        Err(_) => None,
    }
}

fn read_all(source: &Source, faults: &mut Faults) -> nix::Result<()> {
    let mut messages = [raw::Message::default(); BATCH];
    let bytes = size_of_val(&messages);
    // If the program has closed the descriptor, its number may name a file of the program.
    let uffd = source.uffd.get().map_err(|_| Errno::EBADF)?.as_raw_fd();
    loop {
        let buffer = messages.as_mut_ptr().cast();
        // SAFETY: the buffer may be written, and any bytes are valid messages.
        let n = unsafe { libc::read(uffd, buffer, bytes) };
        let n = match Errno::result(n) {
            Ok(n) => n.unsigned_abs() / size_of::<raw::Message>(),
            Err(Errno::EAGAIN) if faults.serve_rest(source) => return Ok(()),
            Err(Errno::EAGAIN) => {
                // Some pages could not be supplied because a change is in flight. The change ends
                // when the thread whose event was read runs again. So the reader lets other threads
                // run.
                thread::yield_now();
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        for message in &messages[..n] {
            enter(source, message);
        }
        source.announce();
        for message in &messages[..n] {
            answer(source, message, faults);
        }
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
            // The mapping is still armed (see `mod.rs`) at its new addresses. If these addresses
            // are watched, the watch was placed for other memory, or the mapping was armed twice.
            // So the reader disarms the mapping, and reports the watches of the new addresses.
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

/// Serves the fault or the removal that a message reports. The reader calls this after it has
/// entered all messages and raised the generation.
fn answer(source: &Source, message: &raw::Message, faults: &mut Faults) {
    match message.event {
        raw::EVENT_PAGEFAULT => faults.serve(source, source.page_of(message)),
        // The pages will be missing after the removal. The reader disarms them, so that it need not
        // serve a fault on each of them.
        raw::EVENT_REMOVE if source.asks_for_pages() => {
            let [start, end, _] = message.words.map(|word| word as usize);
            source.disarm(start, end);
        }
        _ => {}
    }
}
