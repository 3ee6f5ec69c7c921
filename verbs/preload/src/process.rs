//! The state of one process: settings, monitor, domains, the `ibv_mr`s of the program, and
//! counters.
//!
//! A forked child has a copy of the parent's memory, but the parent's registrations are not the
//! child's. A lock that another thread of the parent held stays locked in the copy for ever. So a
//! child reads no state of its parent. The pointer to the state is in a page under
//! `MADV_WIPEONFORK`, so a child finds null. The child makes its own state when it first registers
//! memory. The parent's state does not change.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use regcache::Uncancelled;
use regcache::error::chain;
use regcache::internal::before_each;
use regcache::monitor::{Auto, Shared, Ummunotify, Userfaultfd, auto};
use regcache_verbs_types::{Context, Pd};

use crate::counts::{Counts, Gone};
use crate::domain::Domain;
use crate::fork;
use crate::local::{Here, Local, Locals};
use crate::mrs::{Mrs, Ours, Owner};
use crate::notice::{lock, notice};
use crate::objects::{DEVICES, OpenDevice, address};
use crate::on_signal;
use crate::real::{self, Inside};
use crate::settings::{Settings, Watching};

/// The maximum time that a call waits until other threads have deregistered idle registrations.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// The same before a fork, which succeeds even if other threads have not.
const BEFORE_FORK: Duration = Duration::from_millis(100);

/// The state of one process. See the file's head.
pub(crate) struct Process {
    pub(crate) settings: Settings,
    /// True if an ancestor had opened a device or registered memory when it forked.
    is_child: bool,
    /// True if nothing is cached. The user has been told the reason.
    off: AtomicBool,
    monitoring: Mutex<Monitoring>,
    /// The domains, by the address of the `ibv_pd`.
    domains: RwLock<BTreeMap<usize, Arc<Domain>>>,
    /// The version of `domains`, which grows when a domain is removed. It changes under the lock.
    version: AtomicU64,
    mrs: Mutex<Mrs>,
    pub(crate) locals: Locals,
    pub(crate) counts: Counts,
    pub(crate) gone: Mutex<Gone>,
}

enum Monitoring {
    /// The process has not tried to open a monitor yet.
    Untried,
    By(Shared<Auto>),
    Impossible,
}

/// The reason why a domain has no cache.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoDomain {
    /// The shim does not see all work of the device.
    Unseen,
    /// Nothing is cached in this process.
    Off,
}

fn seen(domain: Arc<Domain>) -> Result<Arc<Domain>, NoDomain> {
    match domain.unseen() {
        None => Ok(domain),
        Some(why) => Err(NoDomain::unseen(why)),
    }
}

/// Marks the device: from now on the shim may miss work or completions. All idle registrations on
/// the device end.
pub(crate) fn cannot_see(device: &OpenDevice, why: &'static str) {
    if device.cannot_see(why)
        && let Some(process) = Process::started()
    {
        say_that_nothing_is_kept(why);
        process.give_up_idle_of(device);
    }
}

/// Tells the user once why nothing is cached on a device: for the first such device only.
fn say_that_nothing_is_kept(why: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        notice(format_args!("registrations end with ibv_dereg_mr: {why}"));
    }
}

/// Deregisters all idle registrations before the process forks. Otherwise the kernel would copy
/// their memory for the child during the fork, because it copies all pinned pages.
///
/// A signal handler may fork while its thread is inside the shim, and may hold a lock. Then nothing
/// is done. If another thread holds a lock, that thread is running and will release it.
extern "C" fn before_fork() {
    if Inside::is_set() || Uncancelled::is_begun() {
        return;
    }
    let _uncancelled = Uncancelled::begin();
    let _inside = Inside::enter();
    if let Some(process) = Process::started() {
        for domain in process.domains() {
            domain.give_up_idle(BEFORE_FORK);
        }
    }
}

impl NoDomain {
    fn unseen(why: &str) -> Self {
        say_that_nothing_is_kept(why);
        Self::Unseen
    }
}

impl Process {
    /// Returns the state of this process, and makes it if needed. Returns `None` if the kernel has
    /// no `MADV_WIPEONFORK` (before Linux 4.14).
    pub(crate) fn current() -> Option<&'static Self> {
        Self::started().or_else(Self::start)
    }

    #[cold]
    fn start() -> Option<&'static Self> {
        let place = fork::owned()?;
        let _uncancelled = Uncancelled::begin();
        let (settings, messages) = Settings::read();
        let new = Box::new(Self {
            is_child: fork::id() != fork::FIRST,
            off: AtomicBool::new(!settings.on),
            settings,
            monitoring: Mutex::new(Monitoring::Untried),
            domains: RwLock::new(BTreeMap::new()),
            version: AtomicU64::new(1),
            mrs: Mutex::new(Mrs::default()),
            locals: Locals::new(),
            counts: Counts::default(),
            gone: Mutex::default(),
        });
        let new = Box::into_raw(new);
        let installed = place.compare_exchange(
            ptr::null_mut(),
            new.cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if installed.is_err() {
            // SAFETY: another thread has installed its state first, so no other thread has seen
            // `new`.
            drop(unsafe { Box::from_raw(new) });
        } else {
            for message in messages {
                notice(format_args!("{message}"));
            }
            if let Some(process) = Self::started()
                && let Some(signal) = process.settings.snapshot_signal
            {
                on_signal::write_snapshot_at_each(signal, process);
            }
        }
        Self::started()
    }

    /// Returns the state of this process, if the process has made it.
    #[inline]
    pub(crate) fn started() -> Option<&'static Self> {
        // SAFETY: the pointer is null or points to a state that `start` has installed. No such
        // state is freed.
        unsafe { fork::owned_already().cast::<Self>().as_ref() }
    }

    /// Returns true if nothing is cached in this process.
    pub(crate) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Returns the owner number of this process. The number is the address of the process's state.
    /// The states of the process's ancestors are at other addresses, so no ancestor has this
    /// number.
    pub(crate) fn owner(&self) -> Owner {
        Owner(ptr::from_ref(self).addr())
    }

    /// Returns the record of the calling thread.
    pub(crate) fn here(&self) -> Here<'_> {
        self.locals.here(self.owner())
    }

    /// Returns a free `ibv_mr`, which belongs to the calling thread.
    pub(crate) fn free_mr(&self, here: &Local) -> Option<Ours> {
        if here.free.first().is_none() {
            lock(&self.mrs).refill(self.owner(), &here.free);
        }
        here.free.pop()
    }

    /// Frees an `ibv_mr`, which belongs to the calling thread and whose registration was taken out.
    pub(crate) fn free(&self, here: &Local, ours: Ours) {
        if here.free.is_full() {
            lock(&self.mrs).relieve(&here.free);
        }
        here.free.push(ours);
    }

    /// Returns the domain at `pd`, if the calling thread has remembered it.
    ///
    /// # Safety
    ///
    /// `pd` is a protection domain, or no thread has remembered it. The program does not deallocate
    /// the domain while the result is used.
    #[inline(always)]
    pub(crate) unsafe fn recall_domain<'a>(
        &self,
        here: &Local,
        pd: *const Pd,
    ) -> Option<&'a Domain> {
        let domain = here.recall(pd, self.version.load(Ordering::Acquire))?;
        // SAFETY: the thread has remembered the domain in this version of the map, so the map has
        // the domain. The contract says that it stays there, and that `pd` is a domain.
        let (domain, of) = unsafe { (&*domain, &*pd) };
        domain.is_of(of).then_some(domain)
    }

    /// Returns the domain at `pd`, and remembers it. If the domain has no cache, makes one.
    ///
    /// # Safety
    ///
    /// `pd` is a protection domain.
    pub(crate) unsafe fn domain(&self, pd: NonNull<Pd>) -> Result<Arc<Domain>, NoDomain> {
        let version = self.version.load(Ordering::Acquire);
        // SAFETY: the caller keeps the contract of this function.
        let domain = unsafe { self.find_domain(pd) }?;
        self.here().remember(pd.as_ptr(), version, &domain);
        Ok(domain)
    }

    /// Returns the domain at `pd`. If the domain has no cache, makes one.
    ///
    /// # Safety
    ///
    /// `pd` is a protection domain.
    unsafe fn find_domain(&self, pd: NonNull<Pd>) -> Result<Arc<Domain>, NoDomain> {
        // SAFETY: the contract says that `pd` is a protection domain.
        let of = unsafe { pd.as_ref() };
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        match domains.get(&pd.addr().get()) {
            Some(domain) if domain.is_of(of) => return seen(Arc::clone(domain)),
            _ => drop(domains),
        }
        let _uncancelled = Uncancelled::begin();
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        match domains.remove(&pd.addr().get()) {
            Some(domain) if domain.is_of(of) => {
                domains.insert(pd.addr().get(), Arc::clone(&domain));
                return seen(domain);
            }
            // The record is that of an earlier domain at the same address. The earlier domain was
            // deallocated by a call that the shim does not interpose.
            Some(other) => {
                self.note_removal();
                self.retire(&other);
            }
            None => {}
        }
        if self.is_off() {
            return Err(NoDomain::Off);
        }
        // SAFETY: the program does not close the device during this call.
        let Some(device) = (unsafe { DEVICES.share(address(of.context)) }) else {
            return Err(NoDomain::unseen(
                "a device was opened in a way that is not seen",
            ));
        };
        if let Some(why) = device.unseen() {
            return Err(NoDomain::unseen(why));
        }
        let monitor = self.monitor().ok_or(NoDomain::Off)?;
        before_each(before_fork);
        let made = Arc::clone(&self.counts.made);
        // SAFETY: the contract says that `pd` is a protection domain.
        match unsafe { Domain::new(pd, device, monitor, &self.settings, made) } {
            Ok(domain) => {
                domains.insert(pd.addr().get(), Arc::clone(&domain));
                Ok(domain)
            }
            Err(error) => {
                self.turn_off(format_args!("cannot set up a cache: {error}"));
                Err(NoDomain::Off)
            }
        }
    }

    /// Returns a subscription to the monitor. The first call opens the monitor.
    fn monitor(&self) -> Option<Shared<Auto>> {
        let mut monitoring = lock(&self.monitoring);
        if let Monitoring::Untried = *monitoring {
            *monitoring = match self.watch() {
                Ok(shared) => Monitoring::By(shared),
                Err(why) => {
                    self.turn_off(format_args!("{why}"));
                    Monitoring::Impossible
                }
            };
        }
        let Monitoring::By(shared) = &*monitoring else {
            return None;
        };
        match shared.subscribe() {
            Ok(another) => Some(another),
            Err(error) => {
                self.turn_off(format_args!("cannot wait for the monitor: {error}"));
                None
            }
        }
    }

    fn watch(&self) -> Result<Shared<Auto>, String> {
        if real::keeps_memory_from_children() {
            return Err(
                "libibverbs hides registered memory from children (ibv_fork_init, RDMAV_FORK_SAFE), \
                 and must not hide it longer than until ibv_dereg_mr"
                    .to_owned(),
            );
        }
        let monitor = match self.settings.monitor {
            Watching::Ummunotify => Ummunotify::open()
                .map(|monitor| Auto::Ummunotify(monitor.with_changes_of_protection()))
                .map_err(|error| chain(&error).to_string())?,
            Watching::Userfaultfd => Userfaultfd::open()
                .map(|monitor| Auto::Userfaultfd(Box::new(monitor)))
                .map_err(|error| chain(&error).to_string())?,
            Watching::Auto => match auto() {
                Auto::None(_) => {
                    return Err(
                        "there is neither /dev/ummunotify nor a userfaultfd that tells enough"
                            .to_owned(),
                    );
                }
                Auto::Ummunotify(monitor) => Auto::Ummunotify(monitor.with_changes_of_protection()),
                monitor => monitor,
            },
        };
        Shared::new(monitor).map_err(|error| error.to_string())
    }

    /// Returns the name of the monitor in use; "none" if there is none.
    pub(crate) fn monitor_name(&self) -> &'static str {
        match &*lock(&self.monitoring) {
            Monitoring::By(shared) => regcache::Monitor::name(shared),
            Monitoring::Untried | Monitoring::Impossible => "none",
        }
    }

    fn turn_off(&self, why: fmt::Arguments<'_>) {
        if !self.off.swap(true, Ordering::Relaxed) {
            notice(format_args!("registrations are not cached: {why}"));
        }
    }

    /// Returns all domains that have a cache.
    pub(crate) fn domains(&self) -> Vec<Arc<Domain>> {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.values().cloned().collect()
    }

    /// Returns the domain at `pd`, if it has a cache.
    pub(crate) fn known_domain(&self, pd: *mut Pd) -> Option<Arc<Domain>> {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.get(&pd.addr()).cloned()
    }

    /// Forgets the domain at `pd`, which was or will be deallocated.
    pub(crate) fn forget_domain(&self, pd: *mut Pd) {
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        let gone = domains.remove(&pd.addr());
        self.note_removal();
        drop(domains);
        if let Some(domain) = gone {
            self.retire(&domain);
        }
    }

    /// Forgets the domains of a device that is about to be closed.
    pub(crate) fn forget_device(&self, context: *mut Context) {
        let mut gone = Vec::new();
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        domains.retain(|_, domain| {
            let is_on = domain.is_on(context);
            if is_on {
                gone.push(Arc::clone(domain));
            }
            !is_on
        });
        self.note_removal();
        drop(domains);
        for domain in gone {
            domain.give_up_idle(GRACE);
            self.retire(&domain);
        }
    }

    /// Notes that a domain was removed from the map. The caller holds the lock of the map.
    fn note_removal(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Closes a domain that was removed from the map, and adds its counts to the sums.
    fn retire(&self, domain: &Domain) {
        domain.close();
        lock(&self.gone).add(&domain.stats());
    }

    /// Ends the state when the process ends. The kernel then frees the registrations of the
    /// process, except those in a domain of its parent. These exceptions last as long as
    /// the parent has the device open, so a child deregisters them itself.
    pub(crate) fn end(&self) {
        if self.is_child {
            self.give_up_idle();
        }
    }

    /// Deregisters all idle registrations on the device.
    pub(crate) fn give_up_idle_of(&self, device: &OpenDevice) {
        let _uncancelled = Uncancelled::begin();
        for domain in self.domains() {
            if domain.is_of_device(device) {
                domain.give_up_idle(GRACE);
            }
        }
    }

    /// Deregisters all cached registrations that the program does not hold. Returns true if there
    /// were any.
    pub(crate) fn give_up_idle(&self) -> bool {
        let _uncancelled = Uncancelled::begin();
        let gave_up = |domain: &Arc<Domain>| domain.give_up_idle(GRACE);
        self.domains().iter().filter(|it| gave_up(it)).count() > 0
    }
}
