//! [`Cq`]: a completion queue, and the completions in it.

use std::ffi::c_int;
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_cq, ibv_create_cq, ibv_destroy_cq, ibv_poll_cq, ibv_wc, ibv_wc_status, ibv_wc_status_str,
};

use crate::device::string;
use crate::errno::{check, check_ptr};
use crate::{Context, Error};

/// The status of a completed work request (`enum ibv_wc_status`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WcStatus(pub u32);

impl WcStatus {
    /// The work request succeeded.
    pub const SUCCESS: Self = Self(ibv_wc_status::IBV_WC_SUCCESS);
    /// The work request does not fit the queue pair. rxe also reports this status in place of
    /// `LOC_PROT_ERR`.
    pub const LOC_QP_OP_ERR: Self = Self(ibv_wc_status::IBV_WC_LOC_QP_OP_ERR);
    /// A local key, address or permission does not allow the work request.
    pub const LOC_PROT_ERR: Self = Self(ibv_wc_status::IBV_WC_LOC_PROT_ERR);
    /// The work request was not executed, because the queue pair had failed before.
    pub const WR_FLUSH_ERR: Self = Self(ibv_wc_status::IBV_WC_WR_FLUSH_ERR);
    /// A key, address or permission of the peer does not allow the work request.
    pub const REM_ACCESS_ERR: Self = Self(ibv_wc_status::IBV_WC_REM_ACCESS_ERR);
    /// The peer could not execute its part of the work request.
    pub const REM_OP_ERR: Self = Self(ibv_wc_status::IBV_WC_REM_OP_ERR);
    /// The peer did not answer.
    pub const RETRY_EXC_ERR: Self = Self(ibv_wc_status::IBV_WC_RETRY_EXC_ERR);

    /// Returns advice that starts with ": ", or an empty string.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::LOC_PROT_ERR | Self::LOC_QP_OP_ERR | Self::REM_ACCESS_ERR | Self::REM_OP_ERR => {
                ": does each registration allow this (a destination: LOCAL_WRITE; RDMA write: \
                 REMOTE_WRITE there; RDMA read: REMOTE_READ at the source), and is it still \
                 registered?"
            }
            Self::RETRY_EXC_ERR => {
                ": the port does not answer: check that it is up (`ibv_devinfo`)"
            }
            _ => "",
        }
    }
}

/// Displays a status as the text that libibverbs has for it.
impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: `ibv_wc_status_str` accepts any number, and returns a string of static lifetime.
        let text = unsafe { ibv_wc_status_str(self.0) };
        // SAFETY: the string from `ibv_wc_status_str` is terminated.
        f.write_str(&unsafe { string(text) })
    }
}

impl fmt::Debug for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WcStatus({}: {self})", self.0)
    }
}

/// The completion of one work request.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The number with which the work request was posted.
    pub wr_id: u64,
    /// The status of the work request.
    pub status: WcStatus,
    /// The vendor's error code; 0 if there is none.
    pub vendor_err: u32,
}

/// A completion queue. It has no event channel, so it must be polled.
#[derive(Debug)]
pub struct Cq {
    cq: NonNull<ibv_cq>,
    context: Arc<Context>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`. Providers
// lock the queue while polling.
unsafe impl Send for Cq {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Cq {}

impl Cq {
    /// Creates a queue with room for at least `depth` completions. If more completions arrive, the
    /// queue overflows and cannot be used any more.
    ///
    /// # Errors
    ///
    /// [`Error::CreateQueue`].
    pub fn create(context: &Arc<Context>, depth: u32) -> Result<Arc<Self>, Error> {
        let depth = c_int::try_from(depth).unwrap_or(c_int::MAX);
        // SAFETY: the context is open, and the queue keeps it open. There is no completion channel,
        // so the vector is 0 and the private pointer is null.
        let cq =
            unsafe { ibv_create_cq(context.as_ptr(), depth, ptr::null_mut(), ptr::null_mut(), 0) };
        let cq = check_ptr(cq).map_err(|source| Error::CreateQueue {
            what: "completion queue",
            source,
        })?;
        Ok(Arc::new(Self {
            cq,
            context: Arc::clone(context),
        }))
    }

    /// Takes the next completion out of the queue and returns it. Returns `None` without waiting if
    /// the queue is empty.
    ///
    /// # Errors
    ///
    /// [`Error::Poll`].
    pub fn poll(&self) -> Result<Option<Completion>, Error> {
        // SAFETY: zero is a valid value of this C struct of integers. (For a failed work request
        // the provider sets only some of the fields.)
        let mut wc: ibv_wc = unsafe { mem::zeroed() };
        // SAFETY: the queue is alive while `self` lives, and `wc` has room for one entry.
        let polled = unsafe { ibv_poll_cq(self.as_ptr(), 1, &raw mut wc) };
        if polled < 0 {
            return check(polled)
                .map(|()| None)
                .map_err(|source| Error::Poll { source });
        }
        Ok((polled > 0).then_some(Completion {
            wr_id: wc.wr_id,
            status: WcStatus(wc.status),
            vendor_err: wc.vendor_err,
        }))
    }

    /// Returns the pointer to the C object, which is valid while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut ibv_cq {
        self.cq.as_ptr()
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        if !self.context.is_ours() {
            return;
        }
        // SAFETY: `cq` came from `ibv_create_cq` and is destroyed once. Queue pairs that used it
        // held an `Arc` of `self`, so they are gone. `context` is dropped after this call.
        let destroyed = unsafe { ibv_destroy_cq(self.as_ptr()) };
        if let Err(error) = check(destroyed) {
            tracing::warn!(%error, "cannot destroy the completion queue");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::WcStatus;

    #[test]
    fn a_status_reads_as_libibverbs_calls_it() {
        assert_eq!(WcStatus::REM_ACCESS_ERR.to_string(), "remote access error");
        assert_eq!(WcStatus(9999).to_string(), "unknown");
    }
}
