//! Runs programs with several threads on the fake device. A fake driver accepts every watch.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use regcache_test_support::fake_driver;

use preload::{on_fake_device, preloading, run, shim};

#[test]
fn registrations_pass_from_thread_to_thread() {
    let program = on_fake_device("handover", "mlx5", "threads", None);
    let mut command = preloading(&[fake_driver(), shim()], program);
    let ran = run(command.arg("500")).ok();
    let summary = ran.summary();
    assert_eq!(ran.stdout, format!("asked={}\n", summary.number("asked")));
    assert_eq!(summary.number("cached"), summary.number("asked"));
    assert_eq!(summary.number("kept"), summary.number("cached"));
}
