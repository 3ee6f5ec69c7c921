//! Checks the error on a machine without an RDMA device. On a machine with a device, opens the
//! device.

use regcache_verbs::{Context, Error, device_names};

#[test]
fn the_first_device_is_opened_or_its_absence_is_a_typed_error_with_advice() {
    let found = device_names().map(|names| !names.is_empty());
    match Context::open_first() {
        Ok(_) => assert!(found.is_ok_and(|found| found)),
        Err(error @ Error::NoDevice) => {
            assert!(!found.is_ok_and(|found| found));
            let said = error.to_string();
            assert!(said.contains("modprobe rdma_rxe"), "{said}");
            assert!(said.contains("rdma link add rxe0"), "{said}");
        }
        Err(other) => panic!("{other}"),
    }
}
