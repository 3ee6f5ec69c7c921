//! GIDs: the addresses of ports on Ethernet, and the choice of the best one.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::iter;
use std::mem;
use std::net::Ipv6Addr;

use rdma_sys::{
    IBV_GID_TYPE_IB, IBV_GID_TYPE_ROCE_V1, IBV_GID_TYPE_ROCE_V2, ibv_context, ibv_gid,
    ibv_gid_entry,
};

use crate::{Context, Error};

unsafe extern "C" {
    /// The function that the inline `ibv_query_gid_table` of `<infiniband/verbs.h>` calls. rdma-sys
    /// declares neither function. libibverbs exports this function since rdma-core 33. On kernels
    /// without the ioctl the function reads sysfs.
    fn _ibv_query_gid_table(
        context: *mut ibv_context,
        entries: *mut ibv_gid_entry,
        max_entries: usize,
        flags: u32,
        entry_size: usize,
    ) -> libc::ssize_t;
}

/// The global address of a port: 16 bytes with the format of an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    /// Returns true for `::ffff:a.b.c.d`.
    #[must_use]
    pub fn is_ipv4_mapped(self) -> bool {
        Ipv6Addr::from(self.0).to_ipv4_mapped().is_some()
    }

    pub(crate) fn to_verbs(self) -> ibv_gid {
        ibv_gid { raw: self.0 }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The format of packets that are sent with a GID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidType {
    /// The format of InfiniBand.
    InfiniBand,
    /// Ethernet frames (RoCE v1). They are not routable, and many switches and virtual links drop
    /// them.
    RoceV1,
    /// UDP packets (RoCE v2).
    RoceV2,
    /// Another format, by its number in `enum ibv_gid_type`.
    Other(u32),
}

/// An entry of a device's GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The number of the port, from 1.
    pub port: u8,
    /// The index of the entry in the table of that port.
    pub index: u8,
    /// The GID.
    pub gid: Gid,
    /// The format of packets with this GID.
    pub kind: GidType,
}

impl Context {
    /// Returns the GIDs of all ports of the device, without the empty ones.
    ///
    /// # Errors
    ///
    /// [`Error::Query`].
    pub fn gids(&self) -> Result<Vec<GidEntry>, Error> {
        let mut room: usize = 0;
        for number in 1..=self.port_count()? {
            room += self.port(number)?.gid_table_len as usize;
        }
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut table: Vec<ibv_gid_entry> = iter::repeat_with(|| {
            // SAFETY: zero is a valid value of this C struct of integers.
            unsafe { mem::zeroed() }
        })
        .take(room)
        .collect();
        // SAFETY: the context is open, and `table` has room for `table.len()` entries of the passed
        // size.
        let found = unsafe {
            _ibv_query_gid_table(
                self.as_ptr(),
                table.as_mut_ptr(),
                table.len(),
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        let Ok(found) = usize::try_from(found) else {
            let errno = c_int::try_from(found.saturating_neg()).unwrap_or(libc::EIO);
            return Err(self.query_error("the GIDs", io::Error::from_raw_os_error(errno)));
        };
        Ok(table.iter().take(found).filter_map(entry).collect())
    }
}

/// Converts an entry. Returns `None` if its index does not fit in the 8 bits of an address's
/// `sgid_index`.
fn entry(entry: &ibv_gid_entry) -> Option<GidEntry> {
    Some(GidEntry {
        port: u8::try_from(entry.port_num).ok()?,
        index: u8::try_from(entry.gid_index).ok()?,
        // SAFETY: both fields of the union have 16 bytes and no padding. So all bytes are
        // initialised, whichever field was written.
        gid: Gid(unsafe { entry.gid.raw }),
        kind: match entry.gid_type {
            IBV_GID_TYPE_IB => GidType::InfiniBand,
            IBV_GID_TYPE_ROCE_V1 => GidType::RoceV1,
            IBV_GID_TYPE_ROCE_V2 => GidType::RoceV2,
            other => GidType::Other(other),
        },
    })
}

/// Returns the GID by which to reach `port`. GIDs of RoCE v2 come before others. Among GIDs of RoCE
/// v2, an IPv4 address comes before an IPv6 address. The reason is that a port always has a
/// link-local IPv6 GID, but the interface may not have that address. The last criterion is the
/// index.
pub(crate) fn choose(table: &[GidEntry], port: u8) -> Option<GidEntry> {
    table
        .iter()
        .copied()
        .filter(|entry| entry.port == port && !entry.gid.is_zero())
        .min_by_key(|entry| {
            (
                entry.kind != GidType::RoceV2,
                !entry.gid.is_ipv4_mapped(),
                entry.index,
            )
        })
}

#[cfg(test)]
mod tests {
    use super::{Gid, GidEntry, GidType, choose};

    fn entry(port: u8, index: u8, gid: &str, kind: GidType) -> GidEntry {
        let gid: std::net::Ipv6Addr = gid.parse().unwrap();
        GidEntry {
            port,
            index,
            gid: Gid(gid.octets()),
            kind,
        }
    }

    fn chosen(table: &[GidEntry], port: u8) -> Option<u8> {
        choose(table, port).map(|entry| entry.index)
    }

    #[test]
    fn an_ipv4_roce_v2_gid_is_preferred() {
        let table = [
            entry(1, 0, "fe80::1", GidType::RoceV1),
            entry(1, 1, "fe80::1", GidType::RoceV2),
            entry(1, 2, "::ffff:10.0.0.1", GidType::RoceV1),
            entry(1, 3, "::ffff:10.0.0.1", GidType::RoceV2),
            entry(1, 4, "::ffff:10.0.0.2", GidType::RoceV2),
        ];
        assert_eq!(chosen(&table, 1), Some(3));
        assert_eq!(chosen(&table[..3], 1), Some(1));
        assert_eq!(chosen(&table[..1], 1), Some(0));
    }

    #[test]
    fn rxe_over_lo_is_reached_by_its_ipv4_address() {
        let table = [
            entry(1, 0, "fe80::5054:ff:fe12:3456", GidType::RoceV2),
            entry(1, 1, "::ffff:127.0.0.1", GidType::RoceV2),
            entry(1, 2, "::1", GidType::RoceV2),
        ];
        assert_eq!(chosen(&table, 1), Some(1));
    }

    #[test]
    fn a_gid_of_another_port_or_of_zeroes_is_never_chosen() {
        let table = [
            entry(1, 0, "::", GidType::RoceV2),
            entry(2, 1, "::ffff:10.0.0.1", GidType::RoceV2),
        ];
        assert_eq!(chosen(&table, 1), None);
        assert_eq!(chosen(&table, 2), Some(1));
        assert_eq!(chosen(&[], 1), None);
    }
}
