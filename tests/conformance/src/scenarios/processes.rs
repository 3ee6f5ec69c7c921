//! Scenarios that involve child processes, other threads, the dynamic loader or `process_madvise`.

use std::env;
use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use nix::errno::Errno;
use regcache_repro::{
    Memory, PAGE, SCENARIO_LEN, Scenario, Written, map, map_at, same_address, scenario, unmap,
};

use super::calls::{none, supported};
use super::files::{free_file, map_file, truncate_and_extend};

pub(super) const PROCESSES: &[Scenario] = &[
    Scenario {
        changed: none,
        replaces: false,
        free: |memory| {
            unmap(memory);
            end_child();
        },
        ..scenario("fork_then_write", |_| child_that_waits())
    },
    Scenario {
        changed: none,
        replaces: false,
        ..scenario("fork_then_write_by_the_child", |memory| {
            by_a_child(|| {
                // SAFETY: the child writes only to its own copy of the memory.
                unsafe { memory.as_ptr().write_bytes(0x77, memory.len()) };
                Ok(())
            })
        })
    },
    Scenario {
        make: || {
            let memory = map(SCENARIO_LEN)?;
            // SAFETY: the memory is mapped, and this is the only reference to it.
            unsafe { memory.bytes() }.fill(1);
            child_that_waits()?;
            Ok(memory)
        },
        // Either registering or the first write copies the shared pages (copy-on-write). If
        // registering has copied them, the write replaces no page.
        replaces: false,
        written: Written::ByTheChange,
        free: |memory| {
            unmap(memory);
            end_child();
        },
        ..scenario("first_write_to_what_a_child_has_too", |memory| {
            // SAFETY: the memory is mapped, and this is the only reference to it.
            unsafe { memory.bytes() }.fill(2);
            Ok(())
        })
    },
    Scenario {
        make: || map_file(libc::MAP_SHARED),
        free: free_file,
        ..scenario("ftruncate_by_another_process", |memory| {
            by_a_child(|| truncate_and_extend(memory))
        })
    },
    Scenario {
        replaces: false,
        ..scenario("process_madvise_pageout_by_another", |memory| {
            by_a_child(|| {
                // SAFETY: this call has no preconditions.
                process_madvise(unsafe { libc::getppid() }, memory, libc::MADV_PAGEOUT)
            })
        })
    },
    scenario("process_madvise_dontneed", |memory| {
        // SAFETY: this call has no preconditions.
        process_madvise(unsafe { libc::getpid() }, memory, libc::MADV_DONTNEED)
    }),
    scenario("munmap_by_a_child_that_shares_the_memory", |memory| {
        extern "C" fn run(memory: *mut libc::c_void) -> i32 {
            // SAFETY: the memory is the scenario's own, and no reference to it exists. The child
            // shares the thread-local storage of this thread. So the child calls only `syscall`.
            // That call may set errno, but this thread does not read errno.
            let done = unsafe { libc::syscall(libc::SYS_munmap, memory, SCENARIO_LEN) };
            i32::from(done != 0)
        }
        let mut stack = vec![0_u128; 4096];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack outlives the child, because CLONE_VFORK suspends this thread until the
        // child has ended.
        let child = unsafe { libc::clone(run, top, flags, memory.as_ptr().cast()) };
        Errno::result(child)?;
        // SAFETY: the process identifier is that of the child made above.
        unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
    Scenario {
        make: start_thread,
        free: |_| end_thread(),
        ..scenario("thread_ends_and_another_has_its_stack", |memory| {
            end_thread();
            let again = start_thread()?;
            same_address(memory, again)
        })
    },
    Scenario {
        make: load,
        free: |memory| {
            if !unload() {
                unmap(memory);
            }
        },
        ..scenario("dlclose_then_mmap", |memory| {
            unload();
            map_at(memory, libc::MAP_FIXED_NOREPLACE)
        })
    },
];

/// The process identifier of the current scenario's child. One variable suffices, because only one
/// scenario runs at a time.
static CHILD: AtomicI32 = AtomicI32::new(0);

fn child_that_waits() -> io::Result<()> {
    // SAFETY: the child only makes system calls.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        loop {
            // SAFETY: `pause` has no preconditions. The child waits until SIGKILL ends it.
            unsafe { libc::pause() };
        }
    }
    CHILD.store(child, Ordering::Relaxed);
    Ok(())
}

fn end_child() {
    let child = CHILD.swap(0, Ordering::Relaxed);
    if child > 0 {
        // SAFETY: the process identifier is that of the child that `child_that_waits` made.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, ptr::null_mut(), 0);
        }
    }
}

/// Calls `what` in a forked child. `what` must not allocate. If `what` fails, the function returns
/// `Unsupported`.
fn by_a_child(what: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the child only makes system calls.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        let done = what();
        // SAFETY: `_exit` has no preconditions. It ends the child.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the process identifier is that of the child made above.
    Errno::result(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
    if status == 0 {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn process_madvise(process: i32, memory: Memory, advice: i32) -> io::Result<()> {
    // SAFETY: the call takes a process identifier and flags, and no pointer.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    let vector = libc::iovec {
        iov_base: memory.as_ptr().cast(),
        iov_len: memory.len(),
    };
    let call = libc::SYS_process_madvise;
    // SAFETY: the memory is the scenario's own, and no reference to it exists.
    let done = unsafe { libc::syscall(call, process, &raw const vector, 1, advice, 0) };
    let done = Errno::result(done).map(drop).map_err(io::Error::from);
    // SAFETY: the file descriptor was made above, and is not used after this call.
    unsafe { libc::close(process as i32) };
    supported(done)
}

/// A thread that waits on a channel, and the sender of that channel. The thread ends when the
/// sender is dropped.
struct Waiting {
    thread: thread::JoinHandle<()>,
    end: mpsc::Sender<()>,
}

static THREAD: Mutex<Option<Waiting>> = Mutex::new(None);

/// Starts a thread, and returns a part of the thread's stack that the thread has not used yet.
fn start_thread() -> io::Result<Memory> {
    const STACK: usize = 2 << 20;
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let thread = thread::Builder::new().stack_size(STACK).spawn(move || {
        let here = 0_u8;
        let _ = tell.send((&raw const here).expose_provenance());
        let _ = ended.recv();
    })?;
    let here = told.recv().map_err(io::Error::other)?;
    *THREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Waiting { thread, end });
    // SAFETY: the addresses lie in the middle of the thread's stack. The thread only waits, so it
    // does not use this part of its stack.
    unsafe { Memory::at((here - STACK / 2) & !(PAGE - 1), SCENARIO_LEN) }
}

fn end_thread() {
    let waiting = THREAD.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Waiting { thread, end }) = waiting {
        drop(end);
        let _ = thread.join();
    }
}

/// The handle of the loaded library, or null if no library is loaded.
static LIBRARY: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// Loads the library of the crate `dlclose-fixture`, and returns the memory in it. Cargo puts the
/// library next to the program or the test.
fn load() -> io::Result<Memory> {
    let path = library().ok_or(io::ErrorKind::Unsupported)?;
    let path = CString::new(path.into_os_string().into_encoded_bytes())?;
    // SAFETY: the two strings end with null bytes. The library runs no code when it is loaded.
    // `dlsym` returns the address of a static of 64 KiB, and nothing else uses this static.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            // A statically linked program cannot load libraries, so the scenario is not supported.
            return Err(io::ErrorKind::Unsupported.into());
        }
        LIBRARY.store(library, Ordering::Relaxed);
        let start = libc::dlsym(library, c"REGCACHE_DLCLOSE_FIXTURE".as_ptr());
        Memory::at(start.expose_provenance(), SCENARIO_LEN)
    }
}

/// Unloads the library. Returns true if a library was loaded and the call succeeded.
fn unload() -> bool {
    let library = LIBRARY.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: `load` loaded the library, and no reference to any part of it exists.
    !library.is_null() && unsafe { libc::dlclose(library) } == 0
}

fn library() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let dir = program.parent()?;
    [dir.to_owned(), dir.join("deps")]
        .iter()
        .map(|dir| dir.join("libregcache_dlclose_fixture.so"))
        .find(|path| path.exists())
}
