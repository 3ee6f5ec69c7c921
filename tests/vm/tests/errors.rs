//! Tests bad input to a cache on the real driver and device. For each bad input, the lookup must
//! return a typed error, and must leave no entry behind. The message of the error must advise the
//! user. Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use regcache::monitor::{OpenError, Ummunotify};
use regcache::{Cache, Error, RangeError, RegisterError};
use regcache_tests_vm::{Child, PAGE, Pages};
use regcache_verbs::{Access, Context, MrRegistrar, Pd};

type VerbsCache = Cache<MrRegistrar, Ummunotify>;

fn cache() -> VerbsCache {
    let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
    Cache::builder(MrRegistrar::new(&pd))
        .monitor(Ummunotify::open().unwrap())
        .build()
        .unwrap()
}

/// Looks the memory up, and returns the error. Checks that the failed lookup leaves no entry
/// behind.
fn refused(cache: &VerbsCache, start: *const u8, len: usize, access: Access) -> Error {
    let error = cache.get(start, len, access).unwrap_err();
    let stats = cache.stats();
    assert_eq!(
        (stats.entries, stats.bytes, stats.leaked),
        (0, 0, 0),
        "{error}"
    );
    error
}

fn says(error: &dyn std::error::Error, advice: &str) {
    let said = error.to_string();
    assert!(said.contains(advice), "{said}");
}

#[test]
fn zero_bytes() {
    let (cache, memory) = (cache(), Pages::new(1).unwrap());
    let error = refused(&cache, memory.page(0), 0, Access::LOCAL_WRITE);
    assert!(matches!(error, Error::Range(RangeError::ZeroLength { .. })));
    says(&error, "ask for at least one");
}

#[test]
fn a_range_that_wraps() {
    let (cache, memory) = (cache(), Pages::new(1).unwrap());
    let error = refused(&cache, memory.page(0), usize::MAX, Access::LOCAL_WRITE);
    assert!(matches!(
        error,
        Error::Range(RangeError::AddressWraps {
            len: usize::MAX,
            ..
        })
    ));
    says(&error, "check the length");
}

#[test]
fn an_address_that_is_not_mapped() {
    let (cache, memory) = (cache(), Pages::new(4).unwrap());
    memory.unmap(2, 1).unwrap();
    let error = refused(&cache, memory.page(0), 4 * PAGE, Access::LOCAL_WRITE);
    let Error::Register(RegisterError::NotMapped { hole, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(hole, memory.page(2).addr());
    says(&error, "nothing is mapped at 0x");
}

#[test]
fn addresses_of_the_kernel() {
    let cache = cache();
    for start in [0, PAGE, 1 << 63, usize::MAX - 2 * PAGE] {
        let start = std::ptr::without_provenance(start);
        let error = refused(&cache, start, PAGE, Access::LOCAL_WRITE);
        assert!(
            matches!(error, Error::Register(RegisterError::NotMapped { .. })),
            "{error}"
        );
    }
}

#[test]
fn read_only_memory_with_write_access() {
    let (cache, memory) = (cache(), Pages::new(3).unwrap());
    memory.protect(1, 1, libc::PROT_READ).unwrap();
    for access in [Access::LOCAL_WRITE, Access::REMOTE_WRITE] {
        let error = refused(&cache, memory.page(0), 3 * PAGE, access);
        let Error::Register(RegisterError::Protected {
            at,
            ref permissions,
            ..
        }) = error
        else {
            panic!("{error}")
        };
        assert_eq!((at, permissions.as_str()), (memory.page(1).addr(), "r--p"));
        says(&error, "mprotect it, or ask for less");
    }
    drop(
        cache
            .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
            .unwrap(),
    );
}

/// Runs `body` in a child. The user of the child may lock only 64 KiB and may not raise that limit.
fn as_nobody(body: impl FnOnce(VerbsCache) -> bool) {
    let child = Child::fork(|| {
        // The child opens the device before it changes its user, because the device's file belongs
        // to root.
        let cache = cache();
        let limit = libc::rlimit {
            rlim_cur: 64 << 10,
            rlim_max: 64 << 10,
        };
        // SAFETY: the structure is readable.
        let limited = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
        // SAFETY: the calls access no memory, and the child has only one thread.
        let dropped = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
        limited == 0 && dropped && body(cache)
    });
    assert!(child.unwrap().succeeded().unwrap());
}

#[test]
fn more_memory_than_rlimit_memlock() {
    as_nobody(|cache| {
        let memory = Pages::new(32).unwrap();
        let error = refused(&cache, memory.page(0), 32 * PAGE, Access::LOCAL_WRITE);
        says(&error, "RLIMIT_MEMLOCK allows 65536 bytes");
        says(&error, "ulimit -l");
        matches!(
            error,
            Error::Register(RegisterError::MemlockLimit { limit: 65536, .. })
        )
    });
}

#[test]
fn at_rlimit_memlock_idle_registrations_make_room() {
    as_nobody(|cache| {
        let memory = Pages::new(40).unwrap();
        for i in 0..10 {
            drop(
                cache
                    .get(memory.page(4 * i), 4 * PAGE, Access::LOCAL_WRITE)
                    .unwrap(),
            );
        }
        let stats = cache.stats();
        stats.evictions >= 6 && stats.bytes <= 64 << 10
    });
}

#[test]
fn a_forked_child() {
    let (cache, memory) = (cache(), Pages::new(1).unwrap());
    let held = cache
        .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
        .unwrap();
    let child = Child::fork(|| {
        let error = cache
            .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
            .unwrap_err();
        says(&error, "build caches and pools of your own");
        matches!(error, Error::Forked)
    });
    assert!(child.unwrap().succeeded().unwrap());
    drop(held);
    drop(
        cache
            .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
            .unwrap(),
    );
    assert_eq!(cache.stats().hits, 1);
}

#[test]
fn no_driver_and_no_permission() {
    let error = Ummunotify::open_at("/dev/no-such-driver").unwrap_err();
    assert!(matches!(error, OpenError::NoDriver { .. }));
    says(&error, "make -C kernel dkms-install");
    let child = Child::fork(|| {
        // SAFETY: the calls access no memory, and the child has only one thread.
        let dropped = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
        let error = Ummunotify::open_at("/dev/mem").unwrap_err();
        says(&error, "chmod a+r");
        dropped && matches!(error, OpenError::NoPermission { .. })
    });
    assert!(child.unwrap().succeeded().unwrap());
}

#[test]
fn no_such_device() {
    let error = Context::open("rxe99").unwrap_err();
    says(&error, "rxe0");
}
