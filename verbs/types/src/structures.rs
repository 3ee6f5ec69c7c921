//! The structures, as libibverbs lays them out.

use std::ffi::c_void;

/// `struct ibv_context`: an open device. Only ever behind a pointer.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    opaque: [u8; 0],
}

/// `struct ibv_pd`: a protection domain.
#[repr(C)]
#[derive(Debug)]
pub struct Pd {
    /// The device it is on.
    pub context: *mut Context,
    /// The kernel's number for it, within its context.
    pub handle: u32,
}

/// `struct ibv_mr`: a registration.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mr {
    /// The device it is on.
    pub context: *mut Context,
    /// The domain it is in.
    pub pd: *mut Pd,
    /// Address of its first byte.
    pub addr: *mut c_void,
    /// Length in bytes.
    pub length: usize,
    /// The kernel's number for it, within its context.
    pub handle: u32,
    /// The key for this process's work requests.
    pub lkey: u32,
    /// The key for a peer's.
    pub rkey: u32,
}
