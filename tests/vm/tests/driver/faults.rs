//! Tests calls in which the kernel runs out of memory or cannot access the caller's memory. Each
//! test repeats a call. In each repetition, another allocation or another access of the call fails.
//!
//! The tests need a kernel with fault injection, and `cargo xtask test --kernel debug` runs one. On
//! other kernels, a test prints that nothing was tried.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// A limit that exceeds the number of places at which any call can fail.
const MOST: usize = 1000;

/// Returns the directory of debugfs. Mounts debugfs first if necessary.
fn debugfs() -> PathBuf {
    let dir = Path::new("/sys/kernel/debug");
    if !dir.join("sched").exists() {
        let mounted = Command::new("mount")
            .args(["-t", "debugfs", "debugfs"])
            .arg(dir)
            .status();
        assert!(mounted.unwrap().success());
    }
    dir.to_path_buf()
}

/// The kernel's file for fault injection in this thread. If a number N is written to the file, the
/// Nth allocation or copy after the write fails.
struct Switch(File);

impl Switch {
    /// Opens the file. Returns `None` if the kernel has no fault injection.
    fn find() -> Option<Self> {
        let path = Path::new("/proc/thread-self/fail-nth");
        if !path.exists() {
            println!("this kernel injects no faults: nothing was tried");
            return None;
        }
        for kind in ["failslab", "fail_page_alloc", "fail_usercopy"] {
            let dir = debugfs().join(kind);
            // By default, allocations that may sleep do not fail, and the kernel logs a trace for
            // each fault. These settings let such allocations fail, and turn the log off.
            for (setting, value) in [
                ("ignore-gfp-wait", "N"),
                ("min-order", "0"),
                ("verbose", "0"),
            ] {
                let setting = dir.join(setting);
                if setting.exists() {
                    fs::write(setting, value).unwrap();
                }
            }
        }
        Some(Self(
            File::options().read(true).write(true).open(path).unwrap(),
        ))
    }

    /// Runs the call and makes its `nth` allocation or copy fail. Returns two values. The first is
    /// false if the call has fewer than `nth` allocations and copies. The second is the result of
    /// the call.
    fn run<T>(&self, nth: usize, call: impl FnOnce() -> T) -> (bool, T) {
        self.0.write_all_at(nth.to_string().as_bytes(), 0).unwrap();
        let result = call();
        let mut left = [0];
        // If this read fails, the fault has hit the read itself. So the call had no fault.
        let injected = self.0.read_at(&mut left, 0).is_ok() && left == *b"0";
        while self.0.write_all_at(b"0", 0).is_err() {}
        (injected, result)
    }

    /// Runs the call once for each of its possible faults, and then without a fault. Passes each
    /// result to `check`.
    fn each<T>(&self, mut call: impl FnMut() -> T, mut check: impl FnMut(bool, T)) {
        for nth in 1..MOST {
            let (injected, result) = self.run(nth, &mut call);
            check(injected, result);
            if !injected {
                assert!(nth > 1, "the call has no place at which it can fail");
                return;
            }
        }
        panic!("more than {MOST} faults in one call");
    }
}

fn expect<T>(injected: bool, result: &nix::Result<T>, errno: &[Errno]) {
    match result {
        Ok(_) => {}
        Err(said) => assert!(
            injected && errno.contains(said),
            "{said:?}, injected: {injected}"
        ),
    }
}

#[test]
fn an_open_that_fails_leaves_nothing_and_one_that_succeeds_watches() {
    let Some(switch) = Switch::find() else {
        return;
    };
    let memory = Pages::new(1).unwrap();
    switch.each(DriverFile::open, |injected, opened| match opened {
        Ok(device) => {
            device.watch(memory.page(0), PAGE, 1).unwrap();
            memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
            assert_eq!(device.drain(), Ok((vec![1], 1)));
            memory.touch();
        }
        Err(error) => assert!(
            injected
                && matches!(
                    error.raw_os_error(),
                    Some(libc::ENOMEM | libc::EFAULT | libc::ENFILE)
                ),
            "{error}"
        ),
    });
}

#[test]
fn a_registration_that_fails_is_none_and_one_that_succeeds_is_whole() {
    let Some(switch) = Switch::find() else {
        return;
    };
    let memory = Pages::new(1).unwrap();
    let device = DriverFile::open().unwrap();
    let mut invalidations = 0;
    switch.each(
        || device.watch(memory.page(0), PAGE, 1),
        |injected, result| {
            expect(injected, &result, &[Errno::ENOMEM, Errno::EFAULT]);
            memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
            memory.touch();
            if result.is_ok() {
                invalidations += 1;
                assert_eq!(device.drain(), Ok((vec![1], invalidations)));
                device.unwatch(1).unwrap();
            } else {
                assert_eq!(device.drain(), Err(Errno::EAGAIN));
                assert_eq!(device.unwatch(1), Err(Errno::EINVAL));
            }
        },
    );
    assert!(invalidations > 0);
}

#[test]
fn a_first_registration_that_fails_is_none_and_the_next_watches() {
    let Some(switch) = Switch::find() else {
        return;
    };
    let memory = Pages::new(1).unwrap();
    let mut device = DriverFile::open().unwrap();
    for nth in 1..MOST {
        let (injected, result) = switch.run(nth, || device.watch(memory.page(0), PAGE, 1));
        expect(injected, &result, &[Errno::ENOMEM, Errno::EFAULT]);
        if result.is_err() {
            device.watch(memory.page(0), PAGE, 1).unwrap();
        }
        memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
        memory.touch();
        assert_eq!(device.drain(), Ok((vec![1], 1)));
        if !injected {
            return;
        }
        device = DriverFile::open().unwrap();
    }
    panic!("more than {MOST} faults in one call");
}

#[test]
fn unregistering_that_fails_leaves_the_range() {
    let Some(switch) = Switch::find() else {
        return;
    };
    let memory = Pages::new(1).unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), PAGE, 1).unwrap();
    switch.each(
        || device.unwatch(1),
        |injected, result| {
            expect(injected, &result, &[Errno::EFAULT]);
            memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
            memory.touch();
            let left = device.drain().map(|(cookies, _)| cookies);
            if result.is_ok() {
                assert_eq!(left, Err(Errno::EAGAIN));
                device.watch(memory.page(0), PAGE, 1).unwrap();
            } else {
                assert_eq!(left, Ok(vec![1]));
            }
        },
    );
}

#[test]
fn a_read_that_fails_loses_nothing() {
    const RANGES: usize = 40;
    let Some(switch) = Switch::find() else {
        return;
    };
    let memory = Pages::new(RANGES).unwrap();
    let device = DriverFile::open().unwrap();
    for i in 0..RANGES {
        device.watch(memory.page(i), PAGE, i as u64).unwrap();
    }
    let all: Vec<_> = (0..RANGES as u64).collect();
    let mut counter = 0;
    switch.each(
        || {
            memory.advise(0, RANGES, libc::MADV_DONTNEED)?;
            counter += 1;
            let first = device.read(RANGES + 1);
            Ok((counter, first))
        },
        |injected, result: std::io::Result<_>| {
            let Ok((counter, first)) = result else {
                assert!(injected);
                return;
            };
            expect(injected, &first, &[Errno::EFAULT, Errno::ENOMEM]);
            let mut read: Vec<_> = first.unwrap_or_default();
            if read
                .last()
                .is_none_or(|event| event.kind != ummunotify_sys::LAST)
            {
                read.extend(device.read(RANGES + 1).unwrap());
            }
            let last = read.pop().unwrap();
            assert_eq!(
                (last.kind, last.user_cookie_counter),
                (ummunotify_sys::LAST, counter)
            );
            let mut cookies: Vec<_> = read.iter().map(|event| event.user_cookie_counter).collect();
            cookies.sort_unstable();
            assert_eq!(cookies, all);
            memory.touch();
        },
    );
}

#[test]
fn a_mapping_of_the_counter_that_fails_is_none() {
    let Some(switch) = Switch::find() else {
        return;
    };
    let device = DriverFile::open().unwrap();
    switch.each(
        || device.counter(),
        |injected, result| match result {
            Ok(counter) => assert_eq!(counter.get(), 0),
            Err(error) => assert!(
                injected && error.raw_os_error() == Some(libc::ENOMEM),
                "{error}"
            ),
        },
    );
}
