//! [`Removal`]: pages that are about to go, and how it is known that they have gone.
//!
//! `MADV_DONTNEED` and its like are reported *before* the pages go: the thread that removes them goes on
//! when the report has been read, and nothing tells when it is done. Memory registered in between is
//! registered with pages that are about to go. So from the report on, the pages are under suspicion:
//! what is looked up there is not cached, until it has been seen of every thread that the process had
//! then that it was somewhere else. A thread is somewhere else if it is the one that asks, or if it
//! sleeps in some other system call, which `/proc/self/task/TID/syscall` tells. One that is running
//! all the time, and never misses the cache, keeps the suspicion alive: slow, not stale.
//!
//! What this cannot see are processes, not threads, that share the memory without `vfork`, whose
//! parent sleeps in a call that is not above suspicion.

use std::fs;
use std::io;

use super::coverage::Pages;

#[derive(Debug)]
pub(super) struct Removal {
    pub(super) pages: Pages,
    /// Threads that may be at it; `None` if they have not been listed yet.
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

    /// True if it is over. Threads in `innocent` are known to remove nothing.
    pub(super) fn is_over(&mut self, innocent: &[i32]) -> bool {
        // A thread that was made later is not the one.
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

/// The caller's id.
pub(super) fn this_thread() -> i32 {
    nix::unistd::gettid().as_raw()
}

fn threads() -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        threads.push(id.ok_or(io::ErrorKind::InvalidData)?);
    }
    Ok(threads)
}

/// False if the thread is certainly not removing pages.
fn may_remove(thread: i32) -> bool {
    let task = format!("/proc/self/task/{thread}");
    match fs::read_to_string(format!("{task}/syscall")) {
        Ok(said) => may_be_removing(&said),
        // It has ended, or the kernel does not tell.
        Err(_) => !matches!(fs::exists(task), Ok(false)),
    }
}

/// What the file says is `running`, or the number of the system call that the thread sleeps in and its
/// arguments. -1 is no call of the thread's own: a page fault, or a worker of the kernel's, io_uring's
/// perhaps, which remove pages as well.
fn may_be_removing(said: &str) -> bool {
    let call = said
        .split_whitespace()
        .next()
        .and_then(|it| it.parse::<i64>().ok());
    let Some(call) = call.filter(|&call| call >= 0) else {
        return true;
    };
    // The last of them wait for a child that shares the memory.
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
