//! The structures, with the layout of libibverbs.

use std::ffi::c_void;

/// `struct ibv_context`: an open device. It is used only behind a pointer.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    opaque: [u8; 0],
}

/// `struct ibv_pd`: a protection domain.
#[repr(C)]
#[derive(Debug)]
pub struct Pd {
    /// The device of the protection domain.
    pub context: *mut Context,
    /// The kernel's number of the protection domain, within its context.
    pub handle: u32,
}

/// `struct ibv_mr`: a registration.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mr {
    /// The device of the registration.
    pub context: *mut Context,
    /// The protection domain of the registration.
    pub pd: *mut Pd,
    /// The address of the first byte.
    pub addr: *mut c_void,
    /// The length in bytes.
    pub length: usize,
    /// The kernel's number of the registration, within its context.
    pub handle: u32,
    /// The key for the work requests of this process.
    pub lkey: u32,
    /// The key for the requests of a peer.
    pub rkey: u32,
}
