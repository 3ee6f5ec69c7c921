//! The state of the process: the watches, and the monitor that libfabric has imported.
//!
//! The import happens once, while libfabric initialises. It is final: another import of the same
//! process fails in libfabric. From then on libfabric calls the functions in `callbacks.rs`.
//!
//! While a domain is open, a thread reads the driver's reports and notifies libfabric, so that the
//! pages of freed memory do not stay pinned. The answers to libfabric do not depend on this thread.
//! Every call of libfabric holds a lock of libfabric, and a notification takes this lock. So the
//! thread notifies while it holds no lock of ours, and no call of libfabric waits for the thread.
//! The one exception is the end of the thread, for which libfabric holds another lock.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use regcache::error::chain;
use regcache::internal::{Owner, Wake, Work, Worker};
use regcache::monitor::Ummunotify;
use regcache::{Monitor, VaRange};

use crate::callbacks;
use crate::libfabric::{self, EBUSY, Fid, Libfabric, MemMonitor};
use crate::notice::notice;
use crate::watches::{Ends, Watches};

/// The value of `FI_MR_CACHE_MONITOR` with which a user asks for this library. libfabric ignores
/// it.
const OURS: &[u8] = b"ummunotify";

/// The first release of libfabric that unsubscribes each registration that it drops.
const UNSUBSCRIBES: u32 = libfabric::version(2, 1);

/// The first release with whose caches this library works. Release 1.13 can deadlock in a
/// notification.
const OLDEST: u32 = libfabric::version(1, 14);

/// The state; see the head of this file.
pub(crate) struct Process {
    pub(crate) watches: Watches<Ummunotify>,
    monitor: Imported,
    /// The number of domains, and the thread while there is one.
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    domains: u64,
    thread: Option<(Owner, Wake)>,
}

/// The structure that libfabric fills in at the import.
struct Imported(UnsafeCell<MemMonitor>);

// SAFETY: libfabric writes the structure only during the import, and before it calls any function
// of the monitor. Later accesses only read.
unsafe impl Send for Imported {}
// SAFETY: as above.
unsafe impl Sync for Imported {}

/// The state, once libfabric has imported the monitor. It is never dropped.
static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

impl Process {
    /// Returns the state, if libfabric has imported the monitor.
    #[inline]
    pub(crate) fn get() -> Option<&'static Self> {
        // SAFETY: the pointer is null, or points to a state that is never dropped.
        unsafe { PROCESS.load(Ordering::Acquire).as_ref() }
    }

    /// Imports the monitor into the libfabric that is initialising, at the first call. If libfabric
    /// keeps its own monitor although the user did not ask for it, the user gets one line that says
    /// why.
    pub(crate) fn import() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            if let Err(why) = Self::try_import() {
                notice(format_args!(
                    "{why}. libfabric keeps its own memory monitor, which does not detect every \
                     change of memory (FI_MR_CACHE_MAX_COUNT=0 switches its cache off)"
                ));
            }
        });
    }

    fn try_import() -> Result<(), String> {
        let libfabric = Libfabric::find().ok_or("libfabric.so.1 is not loaded")?;
        if libfabric
            .monitor_setting()
            .is_some_and(|setting| setting.to_bytes() != OURS)
        {
            return Ok(());
        }
        let version = libfabric.version();
        if version < OLDEST {
            let (major, minor) = (version >> 16, version & 0xffff);
            return Err(format!(
                "libfabric {major}.{minor} is too old for libregcache-fi.so, which needs 1.14"
            ));
        }
        let driver = Ummunotify::open().map_err(|error| chain(&error).to_string())?;
        let ends = match version {
            UNSUBSCRIBES.. => Ends::Unsubscribed,
            _ => Ends::Unsaid,
        };
        let watches = Watches::new(driver, ends)
            .map_err(|error| format!("no page can be mapped that fork empties: {error}"))?;
        let process = Box::new(Self {
            watches,
            monitor: Imported(UnsafeCell::new(MemMonitor {
                fid: Fid {
                    class: libfabric::CLASS_MEM_MONITOR,
                    context: ptr::null_mut(),
                    ops: ptr::null(),
                },
                export_ops: &raw const callbacks::OPS,
                import_ops: ptr::null(),
            })),
            running: Mutex::default(),
        });
        // SAFETY: if the import succeeds, the state is never dropped. The functions are never
        // unloaded, because this library is linked with `-z nodelete`. If the import fails,
        // libfabric does not keep the pointer.
        match unsafe { libfabric.import(process.monitor.0.get()) } {
            0 => {
                PROCESS.store(Box::into_raw(process), Ordering::Release);
                Ok(())
            }
            error if error == -EBUSY => Err(
                "libfabric has another memory monitor that was imported, or that is in use"
                    .to_owned(),
            ),
            error => Err(format!(
                "libfabric refused the memory monitor: {}",
                libfabric.text(error)
            )),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread. If it cannot be started, the answers to libfabric stay right.
    pub(crate) fn start(&'static self) -> c_int {
        if self.watches.in_child() {
            return 0;
        }
        let mut running = self.running();
        running.domains += 1;
        if running.thread.is_none() {
            let worker = Arc::new(Worker::default());
            let descriptor = self.watches.monitor().descriptor();
            let added = descriptor.map(|it| worker.add(it, Box::new(Notifier(self))));
            match added {
                Some(Ok(thread)) => running.thread = Some(thread),
                Some(Err(error)) => notice(format_args!(
                    "no thread can be started, so freed memory stays pinned until libfabric looks it up: {error}"
                )),
                None => {}
            }
        }
        0
    }

    /// Ends the thread, after the last domain.
    pub(crate) fn stop(&self) {
        // In a forked child there is no thread to wait for.
        if self.watches.in_child() {
            return;
        }
        let mut running = self.running();
        running.domains = running.domains.saturating_sub(1);
        let thread = running.thread.take();
        drop(running);
        drop(thread);
    }

    /// Makes the thread notify libfabric, if subscriptions are stale.
    pub(crate) fn wake_if_stale(&self) {
        if self.watches.has_stale()
            && let Some((_, wake)) = &self.running().thread
        {
            wake.wake();
        }
    }

    /// Gives the monitor up, because libfabric ends. If a domain is still open, libfabric would
    /// call a monitor that it no longer has. So the monitor stays then.
    pub(crate) fn end(&self) {
        if self.watches.in_child() {
            return;
        }
        let mut running = self.running();
        let thread = running.thread.take();
        let domains = running.domains;
        drop(running);
        // libfabric destroys the lock that a notification takes. So the thread ends first.
        drop(thread);
        if domains == 0 {
            // SAFETY: libfabric has imported the monitor, and no domain is open.
            unsafe { libfabric::close(self.monitor.0.get()) };
        }
    }

    fn notify(&self, range: VaRange) {
        let monitor = self.monitor.0.get();
        let start = ptr::without_provenance(range.start());
        // SAFETY: libfabric has stored its functions in the monitor before it opened a domain. This
        // thread holds no lock of libfabric.
        unsafe { ((*(*monitor).import_ops).notify)(monitor, start, range.len()) };
    }
}

/// The work of the thread.
struct Notifier(&'static Process);

impl Work for Notifier {
    fn begin(&self) -> bool {
        self.0.watches.drain()
    }

    /// Notifies libfabric of one range.
    fn continue_work(&self) -> bool {
        let Some(stale) = self.0.watches.stale() else {
            return false;
        };
        self.0.notify(stale.range);
        self.0.watches.notified(stale);
        true
    }
}
