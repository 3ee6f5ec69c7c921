//! [`Driver`]: the monitor of one cache of UCX.

#[cfg(feature = "fake-driver")]
pub(crate) use fake::FakeDriver as Driver;
#[cfg(not(feature = "fake-driver"))]
pub(crate) use regcache::monitor::Ummunotify as Driver;

/// A fake of the driver, for timings on a machine without it. It reports no change.
#[cfg(feature = "fake-driver")]
mod fake {
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};

    use memmap2::{Mmap, MmapMut};
    use regcache::{Cookie, Monitor, VaRange};

    pub(crate) struct FakeDriver {
        counter: Mmap,
    }

    impl FakeDriver {
        pub(crate) fn open() -> io::Result<Self> {
            let counter = MmapMut::map_anon(size_of::<AtomicU64>())?.make_read_only()?;
            Ok(Self { counter })
        }
    }

    // SAFETY: the timings register no memory.
    unsafe impl Monitor for FakeDriver {
        #[inline]
        fn generation(&self) -> u64 {
            // SAFETY: a mapping is page-aligned, at least a page long and lives as long as `self`.
            // Nothing writes to it.
            let counter = unsafe { AtomicU64::from_ptr(self.counter.as_ptr().cast_mut().cast()) };
            let generation = counter.load(Ordering::Relaxed);
            std::sync::atomic::fence(Ordering::Acquire);
            generation
        }

        fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
            Ok(())
        }

        fn unwatch(&self, _: Cookie) -> io::Result<()> {
            Ok(())
        }

        fn drain(&self, _: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
            Ok(self.generation())
        }

        fn name(&self) -> &'static str {
            "fake"
        }
    }
}
