//! UCX's structures, and the versions of UCX whose structures are known.
//!
//! libucs's header declares these structures, but UCX changes them from one minor version to the
//! next. The declarations here were compared with the headers of the releases 1.13.0 to 1.22.0, and
//! with its sources before 1.23.0. A test compiles the same comparison against the installed
//! header.

use std::ffi::{c_int, c_ulong, c_void};

/// `ucs_status_t`.
pub(crate) type Status = c_int;

pub(crate) const OK: Status = 0;
/// `UCS_ERR_UNSUPPORTED`.
pub(crate) const UNSUPPORTED: Status = -22;

/// `UCM_EVENT_VM_UNMAPPED`.
pub(crate) const VM_UNMAPPED: c_int = 1 << 17;
/// `UCM_EVENT_FLAG_NO_INSTALL` and `UCM_EVENT_FLAG_EXISTING_ALLOC`, which are no events.
pub(crate) const EVENT_FLAGS: c_int = (1 << 24) | (1 << 25);

/// `ucm_event_t`, as its callback gets it for `UCM_EVENT_VM_UNMAPPED`. The rest of the union is
/// larger, so the structure is padded.
#[repr(C)]
pub(crate) struct Event {
    pub(crate) address: *mut c_void,
    pub(crate) size: usize,
    pub(crate) rest: [usize; 6],
}

/// `ucm_event_callback_t`.
pub(crate) type Callback = unsafe extern "C" fn(c_int, *mut Event, *mut c_void);

/// The beginning of `ucs_rcache_region_t`: the range of the region.
#[repr(C)]
pub(crate) struct Region {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

pub(crate) type MemReg = unsafe extern "C" fn(
    context: *mut c_void,
    rcache: *mut c_void,
    arg: *mut c_void,
    region: *mut Region,
    flags: u16,
) -> Status;
pub(crate) type MemDereg =
    unsafe extern "C" fn(context: *mut c_void, rcache: *mut c_void, region: *mut Region);
pub(crate) type Merge = unsafe extern "C" fn(
    context: *mut c_void,
    rcache: *mut c_void,
    arg: *mut c_void,
    region: *mut Region,
);
pub(crate) type DumpRegion = unsafe extern "C" fn(
    context: *mut c_void,
    rcache: *mut c_void,
    region: *mut Region,
    buffer: *mut u8,
    max: usize,
);

/// `ucs_rcache_ops_t` before UCX 1.18.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct OpsBefore18 {
    pub(crate) mem_reg: MemReg,
    pub(crate) mem_dereg: MemDereg,
    pub(crate) dump_region: DumpRegion,
}

/// `ucs_rcache_ops_t` since UCX 1.18.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct OpsSince18 {
    pub(crate) mem_reg: MemReg,
    pub(crate) mem_dereg: MemDereg,
    pub(crate) merge: Option<Merge>,
    pub(crate) dump_region: DumpRegion,
}

/// `ucs_rcache_params_t` before UCX 1.17.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ParamsBefore17 {
    pub(crate) region_struct_size: usize,
    pub(crate) alignment: usize,
    pub(crate) max_alignment: usize,
    pub(crate) rest: Params,
}

/// `ucs_rcache_params_t` since UCX 1.17 begins with `region_struct_size`, and the fields from
/// `ucm_events` on follow. Earlier versions have two alignments between the two.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ParamsSince17 {
    pub(crate) region_struct_size: usize,
    pub(crate) rest: Params,
}

/// The fields of `ucs_rcache_params_t` that all versions have.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) ucm_events: c_int,
    pub(crate) ucm_event_priority: c_int,
    /// An [`OpsBefore18`] or an [`OpsSince18`].
    pub(crate) ops: *const c_void,
    pub(crate) context: *mut c_void,
    pub(crate) flags: c_int,
    pub(crate) max_regions: c_ulong,
    pub(crate) max_size: usize,
    pub(crate) max_unreleased: usize,
}

/// The shape of UCX's structures, and of its lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// True if `ucs_rcache_params_t` has the two alignments.
    pub(crate) has_alignments: bool,
    /// True if `ucs_rcache_ops_t` has `merge`.
    pub(crate) has_merge: bool,
    /// True if libucp has quick lookups of its own, which call `ucs_pgtable_lookup`.
    pub(crate) has_quick_lookups: bool,
}

/// A version of UCX.
pub(crate) type Version = (u32, u32, u32);

/// Returns the shape of a version of UCX; `None` if the version is unknown.
pub(crate) fn shape(version: Version) -> Option<Shape> {
    let (has_alignments, has_merge, has_quick_lookups) = match version {
        (1, 13, _) => (true, false, false),
        (1, 14..=16, _) => (true, false, true),
        (1, 17, _) => (false, false, true),
        (1, 18..=23, _) => (false, true, true),
        _ => return None,
    };
    Some(Shape {
        has_alignments,
        has_merge,
        has_quick_lookups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_versions_have_a_shape_and_others_have_none() {
        assert!(!shape((1, 13, 1)).unwrap().has_quick_lookups);
        assert!(shape((1, 16, 0)).unwrap().has_alignments);
        assert!(!shape((1, 17, 0)).unwrap().has_merge);
        assert!(shape((1, 23, 9)).unwrap().has_merge);
        for unknown in [(1, 12, 1), (1, 24, 0), (2, 13, 0), (0, 18, 0)] {
            assert_eq!(shape(unknown), None);
        }
    }
}
