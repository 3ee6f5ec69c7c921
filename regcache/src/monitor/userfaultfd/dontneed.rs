//! [`Removal`]: a removal of pages that was reported, and the proof that it is over.
//!
//! `MADV_DONTNEED` and similar calls are reported *before* the pages are removed. The removing
//! thread waits until the event is read, and removes the pages after that. No event reports the end
//! of the removal. A registration made in between pins pages that are about to be removed. So the
//! pages are *under suspicion* after the event: the cache does not retain registrations of them.
//!
//! The monitor lists the threads of the process after the event. The suspicion ends when each of
//! them was seen not to remove pages. A thread does not remove pages if it is the calling thread,
//! or if it sleeps in another system call. `/proc/self/task/TID/syscall` shows that system call. A
//! thread that runs all the time and never misses the cache keeps the pages under suspicion. In
//! that case lookups of the pages are slow, but never stale.
//!
//! One case is not detected: a removal by another process that shares the memory and is not a
//! `vfork` child. A removal by a `vfork` child is detected, because the parent sleeps in `vfork`
//! until the child ends. `may_be_removing` returns true for a thread in `vfork`.

use std::fs;
use std::io;

use super::coverage::Pages;

#[derive(Debug)]
pub(super) struct Removal {
    pub(super) pages: Pages,
    /// The threads that may be removing the pages; `None` until the threads of the process were
    /// listed.
    suspects: Option<Vec<i32>>,
}

impl Removal {
    pub(super) fn new(pages: Pages) -> Self {
        Self {
            pages,
            suspects: None,
        }
    }

    pub(super) fn overlaps(&self, (start, end): Pages) -> bool {
        self.pages.0 < end && start < self.pages.1
    }

    /// Returns true if the removal is over. The caller knows that the `innocent` threads are not
    /// removing pages.
    pub(super) fn is_over(&mut self, innocent: &[i32]) -> bool {
        // The removing thread has caused the event, so it already existed. Threads that start after
        // this list was made need no check.
        if self.suspects.is_none() {
            self.suspects = threads().ok();
        }
        let Some(suspects) = &mut self.suspects else {
            return false;
        };
        suspects.retain(|&thread| !innocent.contains(&thread) && may_remove(thread));
        suspects.is_empty()
    }
}

/// Returns the id of the calling thread.
pub(super) fn this_thread() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Returns the ids of all threads of the process.
fn threads() -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        threads.push(id.ok_or(io::ErrorKind::InvalidData)?);
    }
    Ok(threads)
}

/// Returns false if the thread is certainly not removing pages.
fn may_remove(thread: i32) -> bool {
    let task = format!("/proc/self/task/{thread}");
    match fs::read_to_string(format!("{task}/syscall")) {
        Ok(said) => may_be_removing(&said),
        // Either the thread has ended, or the kernel does not show its system call. If its
        // directory is gone, the thread has ended and removes no pages.
        Err(_) => !matches!(fs::exists(task), Ok(false)),
    }
}

/// Returns true if the content of a thread's `/proc/self/task/TID/syscall` allows that the thread
/// is removing pages.
///
/// The content is `running`, or the number and the arguments of the system call that the thread
/// sleeps in. The number -1 stands for no system call. Such a thread is in a page fault, or it is a
/// worker of the kernel, such as io_uring's. Such a worker may remove pages as well.
fn may_be_removing(said: &str) -> bool {
    let call = said
        .split_whitespace()
        .next()
        .and_then(|it| it.parse::<i64>().ok());
    let Some(call) = call.filter(|&call| call >= 0) else {
        return true;
    };
    // Besides the calls that remove pages, the list has `clone` and `vfork`. These may wait for a
    // child that shares the memory and removes pages.
    [
        libc::SYS_madvise,
        libc::SYS_process_madvise,
        libc::SYS_clone,
        libc::SYS_clone3,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
    ]
    .contains(&call)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_thread_is_understood() {
        assert!(may_be_removing("running\n"));
        assert!(may_be_removing("-1 0x7ffc 0x7f00\n"));
        assert!(may_be_removing(&format!("{} 0x1 0x2\n", libc::SYS_madvise)));
        assert!(may_be_removing(""));
        assert!(!may_be_removing(&format!("{} 0x1 0x2\n", libc::SYS_futex)));
    }

    #[test]
    fn a_removal_is_over_when_every_thread_was_seen_elsewhere() {
        let (tell, id) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let busy = thread::spawn(move || {
            tell.send(this_thread()).unwrap();
            while stopped.try_recv().is_err() {}
        });
        let busy_id = id.recv().unwrap();
        let mut removal = Removal {
            pages: (0, 4096),
            suspects: Some(vec![busy_id, this_thread()]),
        };
        assert!(!removal.is_over(&[this_thread()]), "one is still running");
        stop.send(()).unwrap();
        busy.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !removal.is_over(&[this_thread()]) {
            assert!(Instant::now() < deadline, "the thread has ended");
        }
        assert!(Removal::new((0, 1)).suspects.is_none());
    }
}
