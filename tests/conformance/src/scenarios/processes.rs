//! Scenarios in which others change the memory or a copy of it: children, other processes, threads
//! that end, the dynamic loader.

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
                // SAFETY: the child's copy.
                unsafe { memory.as_ptr().write_bytes(0x77, memory.len()) };
                Ok(())
            })
        })
    },
    Scenario {
        make: || {
            let memory = map(SCENARIO_LEN)?;
            // SAFETY: mapped, and the only reference.
            unsafe { memory.bytes() }.fill(1);
            child_that_waits()?;
            Ok(memory)
        },
        // The registration or the first write copies the pages.
        replaces: false,
        written: Written::ByTheChange,
        free: |memory| {
            unmap(memory);
            end_child();
        },
        ..scenario("first_write_to_what_a_child_has_too", |memory| {
            // SAFETY: mapped, and the only reference.
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
                // SAFETY: has no preconditions.
                process_madvise(unsafe { libc::getppid() }, memory, libc::MADV_PAGEOUT)
            })
        })
    },
    scenario("process_madvise_dontneed", |memory| {
        // SAFETY: has no preconditions.
        process_madvise(unsafe { libc::getpid() }, memory, libc::MADV_DONTNEED)
    }),
    scenario("munmap_by_a_child_that_shares_the_memory", |memory| {
        extern "C" fn run(memory: *mut libc::c_void) -> i32 {
            // SAFETY: the memory is the scenario's own, and there is no reference to it. The child
            // makes one system call by number, since it shares this thread's errno.
            let done = unsafe { libc::syscall(libc::SYS_munmap, memory, SCENARIO_LEN) };
            i32::from(done != 0)
        }
        let mut stack = vec![0_u128; 4096];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack outlives the child, as CLONE_VFORK suspends this thread until it has
        // gone.
        let child = unsafe { libc::clone(run, top, flags, memory.as_ptr().cast()) };
        Errno::result(child)?;
        // SAFETY: the child made above.
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

/// The child of the current scenario. One scenario is played at a time.
static CHILD: AtomicI32 = AtomicI32::new(0);

fn child_that_waits() -> io::Result<()> {
    // SAFETY: the child calls nothing but the kernel.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        loop {
            // SAFETY: waits for SIGKILL.
            unsafe { libc::pause() };
        }
    }
    CHILD.store(child, Ordering::Relaxed);
    Ok(())
}

fn end_child() {
    let child = CHILD.swap(0, Ordering::Relaxed);
    if child > 0 {
        // SAFETY: the child made by `child_that_waits`.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, ptr::null_mut(), 0);
        }
    }
}

/// Does something in a child, without allocating there. Every error is returned as `Unsupported`.
fn by_a_child(what: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the child calls nothing but the kernel.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        let done = what();
        // SAFETY: the end of the child.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the child made above.
    Errno::result(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
    if status == 0 {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn process_madvise(process: i32, memory: Memory, advice: i32) -> io::Result<()> {
    // SAFETY: takes a process and flags.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    let vector = libc::iovec {
        iov_base: memory.as_ptr().cast(),
        iov_len: memory.len(),
    };
    let call = libc::SYS_process_madvise;
    // SAFETY: the memory is the scenario's own, and there is no reference to it.
    let done = unsafe { libc::syscall(call, process, &raw const vector, 1, advice, 0) };
    let done = Errno::result(done).map(drop).map_err(io::Error::from);
    // SAFETY: the file descriptor made above.
    unsafe { libc::close(process as i32) };
    supported(done)
}

/// A thread that waits for its end, and the sender whose drop ends it.
struct Waiting {
    thread: thread::JoinHandle<()>,
    end: mpsc::Sender<()>,
}

static THREAD: Mutex<Option<Waiting>> = Mutex::new(None);

/// Starts a thread, and returns a part of its stack that it has not used yet.
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
    // SAFETY: memory of the scenario's thread or library, which nothing else uses.
    unsafe { Memory::at((here - STACK / 2) & !(PAGE - 1), SCENARIO_LEN) }
}

fn end_thread() {
    let waiting = THREAD.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Waiting { thread, end }) = waiting {
        drop(end);
        let _ = thread.join();
    }
}

/// The loaded library.
static LIBRARY: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// Loads the library that cargo puts beside the program or the test, and returns memory of it.
fn load() -> io::Result<Memory> {
    let path = library().ok_or(io::ErrorKind::Unsupported)?;
    let path = CString::new(path.into_os_string().into_encoded_bytes())?;
    // SAFETY: terminated strings. The library runs nothing when it is loaded.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            // A static program cannot load libraries.
            return Err(io::ErrorKind::Unsupported.into());
        }
        LIBRARY.store(library, Ordering::Relaxed);
        let start = libc::dlsym(library, c"REGCACHE_DLCLOSE_FIXTURE".as_ptr());
        Memory::at(start.expose_provenance(), SCENARIO_LEN)
    }
}

/// Unloads the library. Returns true if it was loaded.
fn unload() -> bool {
    let library = LIBRARY.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: loaded by `load`, and nobody has a reference to anything in it.
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
